import contextlib
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_fed import exact_sum
from ray_fed.exact_sum import ExactWeightedSum
from ray_fed.federation import diversity
from ray_fed.federation.messages import Update

floats = st.floats(-1e6, 1e6, width=32, allow_subnormal=False)


def mean_of(pairs):
    total = ExactWeightedSum(len(pairs[0][0]))
    for vector, weight in pairs:
        total.add(np.asarray(vector, np.float32), weight)
    return total.mean()


def test_the_mean_of_two_weighted_vectors_is_the_one_computed_by_hand():
    assert mean_of([([1.0, -2.0], 1), ([3.0, 6.0], 3)]).tolist() == [2.5, 4.0]


@settings(max_examples=200)
@given(
    st.lists(st.tuples(st.tuples(floats, floats, floats), st.integers(1, 10_000)), min_size=1, max_size=8),
    st.randoms(use_true_random=False),
)
def test_the_mean_has_the_same_bits_in_every_order(pairs, random):
    shuffled = pairs.copy()
    random.shuffle(shuffled)
    assert mean_of(pairs).tobytes() == mean_of(shuffled).tobytes()


@settings(max_examples=200)
@given(st.lists(st.tuples(floats, st.integers(1, 10_000)), min_size=1, max_size=6))
def test_the_mean_is_the_exact_rational_mean_to_float32(pairs):
    exact = sum(Fraction(float(np.float32(value))) * weight for value, weight in pairs) / sum(w for _, w in pairs)
    got = float(mean_of([([value], weight) for value, weight in pairs])[0])
    assert abs(Fraction(got) - exact) <= abs(exact) * Fraction(2) ** -23 + Fraction(2) ** -60


def test_a_single_silo_gets_its_own_parameters_back_bit_for_bit():
    vector = np.random.default_rng(0).normal(size=70_000).astype(np.float32) * 0.05
    assert mean_of([(vector, 1234)]).tobytes() == vector.tobytes()


def test_which_of_two_huge_updates_is_refused_does_not_depend_on_their_order():
    huge, small = np.array([1e9], np.float32), np.array([1.0], np.float32)
    for pairs in ([(huge, 100), (small, 1)], [(small, 1), (huge, 100)]):
        total, refused = ExactWeightedSum(1), []
        for vector, weight in pairs:
            try:
                total.add(vector, weight)
            except ValueError:
                refused.append(float(vector[0]))
        assert refused == [float(huge[0])]
        assert total.mean()[0] == 1.0


def test_the_sum_stays_right_after_carries(monkeypatch):
    monkeypatch.setattr(exact_sum, "NORMALISE_EVERY", 3)
    total = ExactWeightedSum(1)
    for _ in range(10):
        total.add(np.array([-0.1], np.float32), 7)
    assert total.mean()[0] == np.float32(-0.1)


@pytest.mark.parametrize(
    ("vector", "weight", "message"),
    [
        (np.array([1.0, np.nan], np.float32), 1, "1 values are not finite"),
        (np.array([np.inf, 0.0], np.float32), 1, "not finite"),
        (np.zeros(3, np.float32), 1, "shape"),
        (np.zeros(2, np.float32), 0, "weight 0"),
        (np.zeros(2, np.float32), -5, "weight -5"),
        (np.array([1e20, 0.0], np.float32), 1, "too large"),
    ],
)
def test_a_bad_summand_is_refused_and_leaves_the_sum_as_it_was(vector, weight, message):
    total = ExactWeightedSum(2)
    total.add(np.array([1.0, 2.0], np.float32), 2)
    with pytest.raises(ValueError, match=message):
        total.add(vector, weight)
    assert total.mean().tolist() == [1.0, 2.0]


def integers(summands, num_values):
    """The definition: every product rounded to 2^-66 on its own, then whole numbers."""
    total = [0] * num_values
    for vector, weight in summands:
        for place, value in enumerate(vector):
            total[place] += round(Fraction(float(value)) * weight * 2**66)  # to even
    return [(one >> 50) for one in total], [one & (2**50 - 1) for one in total]


SIZES = st.sampled_from([0.0, 1e-30, 2.0**-67, 3e-12, 1e-6, 0.03, 1.0, 300.0, 1e6])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(SIZES, st.integers(1, 2**12), st.integers(0, 3)), min_size=1, max_size=9), st.integers(0, 99))
def test_whatever_the_sizes_and_however_few_or_many_the_integers_are_those_of_the_definition(summands, seed):
    """Three parts of 40 values: all alike, a few small ones among large ones, zeros."""
    random, total, given_ones = np.random.default_rng(seed), ExactWeightedSum(100), []
    with mock_parts(40):
        total = ExactWeightedSum(100)
        for size, weight, kind in summands:
            vector = (size * random.normal(size=100)).astype(np.float32)
            vector[:: 7 * kind + 1] *= [1.0, 1e-9, 0.0, 1e-3][kind]
            total.add(vector, weight)
            given_ones.append((vector, weight))
        mean = total.mean()
        high, low = total.parts()
    assert (high.tolist(), low.tolist()) == integers(given_ones, 100)
    sums = (high * exact_sum.HIGH_UNIT + low * (exact_sum.HIGH_UNIT / exact_sum.LOW_PER_HIGH)) / total.total_weight
    assert mean.tobytes() == sums.astype(np.float32).tobytes()
    assert total.mean().tobytes() == mean.tobytes()


@contextlib.contextmanager
def mock_parts(size):
    before, exact_sum.PART = exact_sum.PART, size
    try:
        yield
    finally:
        exact_sum.PART = before


def test_long_vectors_are_summed_by_several_threads_to_the_same_bits(monkeypatch):
    random = np.random.default_rng(0)
    pairs = [(random.normal(size=1000).astype(np.float32) * 10.0**-number, 100 + number) for number in range(5)]
    alone = mean_of(pairs)
    monkeypatch.setattr(exact_sum, "PART", 64)
    monkeypatch.setattr(exact_sum, "PER_THREAD", 300)
    monkeypatch.setattr(exact_sum.os, "sched_getaffinity", lambda _: {0, 1, 2})
    assert mean_of(pairs).tobytes() == alone.tobytes()
    one, other = ExactWeightedSum(1000), ExactWeightedSum(1000)
    for number, (vector, weight) in enumerate(pairs):
        (one if number % 2 else other).add(vector, weight)
    one.merge(ExactWeightedSum.of_parts(*other.parts(), other.total_weight, other.num_summands))
    assert one.mean().tobytes() == alone.tobytes()


def test_large_and_small_updates_go_different_ways_into_one_sum():
    total = ExactWeightedSum(1)
    for value in (2.0**35, 1.25, -(2.0**35)):
        total.add(np.array([value], np.float32), 1)
    assert total.mean().tolist() == [np.float32(1.25 / 3)]


def test_of_a_large_model_every_other_value_says_how_unlike_silos_are(monkeypatch):
    random = np.random.default_rng(1)
    sent = {name: np.zeros(30_000, np.float32) for name in "ab"}
    updates = [Update(name, "s", 1, random.normal(1, 1, 30_000).astype(np.float32), 10, 1, 0.0) for name in "ab"]
    found = []
    for most in (1 << 23, 10_000):
        monkeypatch.setattr(diversity, "MOST_PARAMETERS", most)
        measured = diversity.Diversity(sent, 30_000)
        list(measured.noted(updates))
        found.append(measured.value())
    assert found[0] == pytest.approx(4 / 3, rel=0.02)  # (1 + 1) / (1 + 1/2)
    assert found[1] == pytest.approx(found[0], rel=0.02)
    assert found[1] != found[0]
