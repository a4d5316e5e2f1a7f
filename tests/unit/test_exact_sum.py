from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_fed import exact_sum
from ray_fed.exact_sum import ExactWeightedSum

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


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.floats(-1e5, 1e5, width=32), st.integers(1, 2**20)), min_size=1, max_size=9),
    st.integers(0, 2**31),
)
def test_both_ways_to_add_leave_the_same_integers(summands, seed):
    random, quick, slow = np.random.default_rng(seed), ExactWeightedSum(5), ExactWeightedSum(5)
    slow._add_shifted = slow._add_rounded
    for value, weight in summands:
        vector = (value * random.normal(size=5)).astype(np.float32)
        for total in (quick, slow):
            total.add(vector, min(weight, 2**10))
    quick._carry()
    slow.num_shifts = 0
    slow._carry()
    assert quick.high.tolist() == slow.high.tolist()
    assert quick.low.tolist() == slow.low.tolist()
    assert quick.num_shifts == 0


def test_large_and_small_updates_go_different_ways_into_one_sum():
    total = ExactWeightedSum(1)
    for value in (2.0**35, 1.25, -(2.0**35)):
        total.add(np.array([value], np.float32), 1)
    assert total.mean().tolist() == [np.float32(1.25 / 3)]
