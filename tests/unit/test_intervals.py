"""Conformal intervals from counts: what is counted, what is not told, and what the bounds cover."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_fed.learning import counted_quantiles as cq
from ray_fed.learning.intervals import (
    ALL,
    IntervalScale,
    counted_errors,
    coverage_of,
    intervals_of,
    scale_of,
    spread_of,
)

NUMBERS = st.lists(st.floats(0, 1e6), max_size=60)


@given(NUMBERS, st.integers(1, 9))
def test_each_count_is_none_or_enough_and_all_rows_count_once(values, fewest):
    counts = cq.histogram(np.array(values), fewest)
    assert ((counts == 0) | (counts >= fewest)).all()
    assert counts.sum() == (len(values) if len(values) >= fewest else 0)


@given(st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=200), st.floats(0.05, 0.95))
def test_a_counted_quantile_lies_within_one_bin_of_the_conformal_one(values, level):
    rank = math.ceil((len(values) + 1) * level)
    found = cq.quantile(cq.histogram(np.array(values)), level)
    if rank > len(values):
        assert found == math.inf
    else:
        exact = sorted(values)[rank - 1]
        assert exact * 2 ** (-1 / cq.PER_OCTAVE) * (1 - 1e-9) <= found <= exact * 2 ** (1 / cq.PER_OCTAVE) * (1 + 1e-9)


@given(NUMBERS, NUMBERS)
def test_counts_of_two_silos_add_up_to_the_counts_of_both(first, second):
    both = cq.histogram(np.array(first)) + cq.histogram(np.array(second))
    np.testing.assert_array_equal(both, cq.histogram(np.array([*first, *second])))


@pytest.mark.parametrize("value", [0.0, 1e-300, 1e300, math.inf, math.nan])
def test_numbers_outside_the_bins_are_counted_at_their_ends(value):
    counts = cq.histogram(np.array([value]))
    assert counts.sum() == counts[0] + counts[-1] == 1


def test_a_quantile_in_the_last_bin_is_no_bound():
    assert cq.quantile(cq.histogram(np.full(99, 1e9)), 0.9) == math.inf


@settings(max_examples=30)
@given(st.lists(st.floats(0.01, 10), min_size=30, max_size=90))
def test_a_share_and_a_quantile_are_inverse_to_each_other(values):
    counts = cq.histogram(np.array(values))
    share = cq.share_up_to(counts, cq.quantile(counts, 0.7))
    assert abs(share - math.ceil((len(values) + 1) * 0.7) / len(values)) < 1e-9


def test_what_few_rows_alone_have_moves_to_where_their_neighbours_are():
    values = np.array([1.0] * 20 + [64.0, 128.0])
    counts = cq.histogram(values, 5)
    assert counts[cq.bins_of(np.array([64.0, 128.0]))].sum() == 0
    assert counts.sum() == 22


def rows_of(rng, num_rows):
    """Errors four times as large in one chemistry as in the other, and larger where the silos' models disagree."""
    groups = np.where(rng.random(num_rows) < 0.5, "oxide", "halide")
    spread = rng.uniform(0, 1, num_rows)
    errors = rng.normal(size=num_rows) * (0.2 + spread) * np.where(groups == "oxide", 4, 1)
    return errors, spread, groups


def test_intervals_cover_what_they_promise_in_each_chemistry_and_of_rows_never_seen():
    rng, names = np.random.default_rng(0), ("halide", "oxide", "pnictide")
    silos = [rows_of(rng, n) for n in (60, 120, 200, 400, 800)]
    one = IntervalScale(floor=0.2)
    found = sum(counted_errors(e, one.of(d, g), g, names, 5) for e, d, g in silos)
    scale = scale_of(found, names, floor=0.2)
    assert set(scale.by_group) == {ALL, "halide", "oxide"}
    assert scale.by_group["oxide"] / scale.by_group["halide"] == pytest.approx(4, rel=0.2)
    scaled = sum(counted_errors(e, scale.of(d, g), g, names, 5) for e, d, g in silos)
    calibrated = intervals_of(found, scaled, names, scale)
    assert calibrated.own == ("halide", "oxide")
    assert calibrated.num_rows == 1580
    errors, spread, groups = rows_of(rng, 20_000)
    lower, upper = calibrated.bounds(errors * 0, spread, groups)["0.9"]
    inside = (lower <= errors) & (errors <= upper)
    for rows in (groups == "oxide", groups == "halide", slice(None)):
        assert 0.88 < inside[rows].mean() < 0.92
    halves = {level: half.of(spread, groups) for level, half in calibrated.halves.items()}
    told = coverage_of({level: counted_errors(errors, half, groups, names, 1) for level, half in halves.items()}, names)
    assert told[ALL].shares["0.9"] == pytest.approx(inside.mean(), abs=0.005)
    assert told[ALL].widths["0.9"] == pytest.approx((upper - lower).mean(), rel=0.02)
    assert told["halide"].num_rows == (groups == "halide").sum()
    assert "pnictide" not in told


def test_rows_without_a_label_count_nowhere():
    errors = np.array([np.nan] * 7 + [0.1] * 29)
    counts = counted_errors(errors, np.ones(36), ["oxide"] * 36, ("oxide",), 5)
    assert counts.sum() == 4 * 29


def test_models_that_are_not_there_have_no_spread():
    assert spread_of(np.empty((0, 3)), np.arange(3.0)).tolist() == [0, 0, 0]
    assert spread_of(np.array([[1.0], [-1.0]]), np.zeros(1)).tolist() == [1.0]


def test_too_few_calibration_rows_promise_nothing():
    counts = counted_errors(np.ones(5), np.ones(5), ["oxide"] * 5, ("oxide",), 5)
    assert counts[:, 1].sum() == 0  # one count of five rows says nothing of the tails
    found = intervals_of(counts, counts, ("oxide",), IntervalScale())
    assert {level: half.of_group("oxide") for level, half in found.halves.items()} == {
        "0.5": pytest.approx(1.0, rel=0.1), "0.9": math.inf,
    }  # fmt: skip
    assert found.own == ()
    assert max(found.halves["0.9"].numbers(("oxide",))) < 1e8  # what goes with a question is finite


def test_a_chemistry_with_rows_enough_has_quantiles_of_its_own_and_another_those_of_all_in_its_unit():
    rng, names = np.random.default_rng(0), ("halide", "oxide")
    groups = ["oxide"] * 400 + ["halide"] * 30
    errors = np.concatenate([rng.uniform(0, 1, 400), 3 * rng.exponential(size=30)])  # of other shapes
    one = IntervalScale()
    plain = counted_errors(errors, np.ones(430), groups, names, 1)
    scale = scale_of(plain, names, 1.0)
    found = intervals_of(plain, counted_errors(errors, scale.of(np.zeros(430), groups), groups, names, 1), names, scale)
    assert found.own == ("oxide",)
    assert found.halves["0.9"].of_group("oxide") == pytest.approx(0.9, rel=0.1)
    shared = found.halves["0.9"].of_group("halide") / scale.of_group("halide")
    assert shared == pytest.approx(found.halves["0.9"].of_group(ALL) / scale.of_group(ALL))
    assert one.of_group("oxide") == 1.0
