from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_fed.errors import ConfigError, UpdateRejected
from ray_fed.exact_sum import ExactWeightedSum
from ray_fed.federation.messages import NO_VALUES, Guard, RelayedSum, RelayedUpdate, Update
from ray_fed.federation.strategies import fed_avg

DISPATCHED = np.array([1, 1, 1, 1], np.float32)
GOOD = Update("mit", "s", 3, np.array([1, 2, 3, 4], np.float32), 10, 5, 0.25, 1.5)


def check(update=GOOD, guard=None, dispatched=DISPATCHED, server_round=3, session="s", seen=()):
    (guard or Guard()).check(update, dispatched, server_round, session, seen)


def reason(update, **given):
    with pytest.raises(UpdateRejected) as caught:
        check(update, **given)
    silo, server_round, text = caught.value.args
    assert (silo, server_round) == ("mit", 3)
    return text


def vector(*values, dtype=np.float32):
    return replace(GOOD, vector=np.array(values, dtype))


def test_a_good_update_passes():
    check()


def test_a_silo_claims_no_more_rows_than_it_told():
    told = Guard(most_examples={"mit": 10}.__getitem__)
    check(guard=told)
    said = reason(replace(GOOD, num_examples=11), guard=told)
    assert said.startswith("num_examples=11 is more than the 10 that a round can have with the rows that it told")


def test_what_a_hub_has_summed_is_held_against_what_all_its_silos_told():
    total = ExactWeightedSum(4)
    total.add(GOOD.vector, 25)
    of_hub = RelayedSum(("mit", "nims"), total)
    numbers = RelayedUpdate("mit", "s", 3, NO_VALUES, 5, 5, 0.25, 1.5, sum=of_hub, sent_bytes=16)
    check(numbers, guard=Guard(most_examples={"mit": 10, "nims": 15}.__getitem__))
    said = reason(numbers, guard=Guard(most_examples={"mit": 10, "nims": 14}.__getitem__))
    assert said.startswith("num_examples=25 is more than the 24")


def test_what_a_silo_may_send_at_the_edges_passes():
    check(replace(GOOD, num_examples=1, num_steps=0, loss=0, seconds=0))
    check(replace(GOOD, num_examples=2**29 - 1, loss=-1.0))
    read_only = GOOD.vector.copy()
    read_only.flags.writeable = False
    check(replace(GOOD, vector=read_only))


def test_a_stale_and_a_future_round_are_named_as_such():
    assert reason(replace(GOOD, server_round=2)) == "stale: it answers round 2, this is round 3"
    assert reason(replace(GOOD, server_round=9)) == "from the future: it answers round 9, this is round 3"


def test_another_session_is_refused_even_with_the_right_round():
    assert reason(replace(GOOD, session="old")) == "it belongs to another session than 's'"


def test_the_second_answer_of_a_silo_in_one_round_is_refused():
    check(seen={"jarvis"})
    assert "already answered" in reason(GOOD, seen={"jarvis", "mit"})


@pytest.mark.parametrize("server_round", [True, "3", 3.0, None])
def test_a_round_number_that_is_no_whole_number_is_refused(server_round):
    assert "not a whole number" in reason(replace(GOOD, server_round=server_round))


@pytest.mark.parametrize("num_examples", [True, 10.0, -3, 0, 2**29, 2**29 + 1])
def test_num_examples_must_be_a_positive_whole_number_below_2_to_the_29(num_examples):
    assert f"num_examples={num_examples!r} must be" in reason(replace(GOOD, num_examples=num_examples))


WORDS = "a silo's own words"
NAMED = type(WORDS, (float,), {})
"""A class whose name is a silo's words."""


@pytest.mark.parametrize("value", [WORDS, None, np.int64(10), np.str_(WORDS), [WORDS], NAMED(1.0)])
@pytest.mark.parametrize("field", ["num_examples", "num_steps", "loss", "seconds", "server_round", "session", "vector"])
def test_what_is_no_plain_number_is_not_quoted(field, value):
    """Also where no gate stands before the guard: silos of one process have none."""
    if (field, type(value)) in (("loss", NAMED), ("seconds", NAMED)):
        value = NAMED(np.inf)
    said = reason(replace(GOOD, **{field: value}))
    assert field in said
    assert not any(word in said for word in (WORDS, "10", "int64", "str_", "list"))


@pytest.mark.parametrize("num_steps", [-1, 1.0, False])
def test_num_steps_must_be_a_whole_number(num_steps):
    assert f"num_steps={num_steps!r} must be" in reason(replace(GOOD, num_steps=num_steps))


@pytest.mark.parametrize("loss", [np.nan, np.inf, -np.inf, None, True, "0.1", 10**400])
def test_a_loss_must_be_finite(loss):
    assert "not a finite number" in reason(replace(GOOD, loss=loss))


@pytest.mark.parametrize("seconds", [-0.5, np.nan])
def test_a_time_must_be_finite_and_not_negative(seconds):
    assert "seconds=" in reason(replace(GOOD, seconds=seconds))


@pytest.mark.parametrize(
    ("update", "message"),
    [
        (vector(1, 2, 3), "shape (3,) instead of (4,)"),
        (replace(GOOD, vector=GOOD.vector.reshape(2, 2)), "shape (2, 2) instead of (4,)"),
        (vector(1, 2, 3, 4, dtype=np.float64), "dtype <f8 instead of float32"),
        (vector(1, 2, 3, 4, dtype=">f4"), "dtype >f4 instead of float32"),
        (vector(1, 2, 3, 4, dtype=object), "dtype |O instead of float32"),
        (replace(GOOD, vector=np.zeros(8, np.float32)[::2]), "not contiguous (strides (8,))"),
        (replace(GOOD, vector=[1.0, 2.0, 3.0, 4.0]), "the vector is not a plain array"),
        (replace(GOOD, vector=np.ma.masked_array(GOOD.vector, [0, 1, 0, 0])), "the vector is not a plain array"),
        (vector(1, np.nan, 3, np.inf), "2 values are not finite (first at 1)"),
        (vector(1, 2, 3, -np.inf), "1 values are not finite (first at 3)"),
        (vector(1, 2, 3, -1e13), "largest |value| 1e+13 times num_examples=10 is above 6.87e+10"),
    ],
)
def test_a_vector_that_cannot_be_averaged_is_refused_with_its_defect(update, message):
    assert message in reason(update)


def test_a_move_longer_than_the_bound_is_refused():
    """The move is (0, 1, 2, 3), its length sqrt(14) = 3.7417."""
    check(guard=Guard(max_norm=3.7417))
    assert reason(GOOD, guard=Guard(max_norm=3.7416)) == "it moved by 3.74166, more than max_norm=3.7416"


@pytest.mark.parametrize("max_norm", [0.0, -1.0, np.inf, np.nan])
def test_a_bound_that_is_no_bound_is_a_configuration_error(max_norm):
    with pytest.raises(ConfigError, match="must be positive and finite, or None"):
        Guard(max_norm)


def test_the_guard_changes_nothing_it_is_given():
    seen, before = {"jarvis"}, GOOD.vector.copy()
    check(seen=seen, guard=Guard(max_norm=100))
    assert seen == {"jarvis"}
    assert GOOD.vector.tobytes() == before.tobytes()
    assert DISPATCHED.tolist() == [1, 1, 1, 1]


@given(
    st.lists(st.floats(width=32), min_size=1, max_size=4),
    st.one_of(st.integers(-2, 2**30), st.floats()),
    st.one_of(st.floats(), st.integers()),
)
def test_whatever_passes_the_guard_can_be_averaged_and_the_rest_is_rejected(values, num_examples, loss):
    update = Update("mit", "s", 3, np.array(values, np.float32), num_examples, 1, loss)
    try:
        Guard().check(update, np.zeros(2, np.float32), 3, "s")
    except UpdateRejected:
        return
    mean = fed_avg(2, [update])
    np.testing.assert_allclose(mean, update.vector, rtol=1e-6, atol=1e-20)
