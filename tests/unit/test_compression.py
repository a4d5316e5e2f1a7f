"""Codes of updates: hand-computed values, laws, and rounds that go on as if nothing were left out."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as drawn

from ray_fed.errors import ConfigError, PerimeterRefused
from ray_fed.federation.cohort import LocalCohort
from ray_fed.federation.coordinator import Coordinator
from ray_fed.federation.messages import Update
from ray_fed.federation.rounds.job import Job
from ray_fed.learning.trainer import TrainingPlan
from ray_fed.perimeter.checks import KINDS
from ray_fed.perimeter.gate import Gate, Request
from ray_fed.perimeter.policy import Policy
from ray_fed.privacy.compression import BLOCK, METHODS, Compression, decode, rebuilt
from tests.synthetic import SyntheticTask, silos

PLAN = TrainingPlan(seed=0, epochs=40, steps_per_epoch=4, num_rounds=40, learning_rate=0.01, optimizer="sgd")
MOVES = drawn.arrays(np.float32, st.integers(1, 3000), elements=st.floats(-1e4, 1e4, width=32))


def around(method, move, **options):
    code = Compression(method, **options).encode(np.asarray(move, np.float32))
    return decode(code, len(move))


def test_half_precision_keeps_eleven_bits_and_never_becomes_infinite():
    assert around("fp16", [1.0, 1 + 2**-10, 1 + 2**-12, 1e9, -1e9]).tolist() == [1.0, 1 + 2**-10, 1.0, 65504, -65504]


def test_bf16_rounds_to_the_nearest_eight_bits_ties_to_even():
    move = [1.0, 1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-8 + 2**-20, -3e38]
    assert around("bf16", move)[:4].tolist() == [1.0, 1.0, 1 + 2**-6, 1 + 2**-7]
    assert np.isfinite(around("bf16", [np.finfo(np.float32).max])).all()


def test_eight_bits_divide_the_largest_value_of_a_block_by_127():
    move = np.zeros(BLOCK + 2, np.float32)
    move[:3], move[BLOCK:] = [127, -1.4, 0.6], [0.0, 254.0]
    back = around("int8", move)
    assert back[:3].tolist() == [127, -1, 1]
    assert back[BLOCK:].tolist() == [0, 254]


def test_top_k_sends_the_largest_values_and_of_equal_ones_the_first():
    assert around("top_k", [1, -5, 2, 5, 2], share=0.6).tolist() == [0, -5, 2, 5, 0]


@pytest.mark.parametrize(("method", "num_bytes"), [("fp16", 20001), ("bf16", 20001), ("int8", 10041), ("top_k", 801)])
def test_a_code_of_ten_thousand_values_has_as_many_bytes_as_promised(method, num_bytes):
    assert Compression(method).encode(np.ones(10_000, np.float32)).nbytes == num_bytes


@given(MOVES, st.sampled_from(METHODS))
def test_what_a_code_leaves_out_is_small(move, method):
    """Relative half step of a float, half a step of a block, or nothing above the smallest value sent."""
    error = np.abs(move - around(method, move, share=0.1)).max()
    peak = float(np.abs(move).max())
    least = {"fp16": 2**-11, "bf16": 2**-8, "int8": 0.51 / 127, "top_k": 1.0}[method]
    assert error <= least * peak + 2**-24


@given(MOVES, st.sampled_from(METHODS))
def test_a_decoded_move_codes_to_itself(move, method):
    once = around(method, move, share=0.1)
    np.testing.assert_allclose(around(method, once, share=0.1), once, rtol=3e-7)


@given(st.binary(max_size=60))
def test_foreign_bytes_are_refused_or_make_a_vector_of_the_right_length(data):
    try:
        move = decode(np.frombuffer(data, np.uint8), 5)
    except ValueError:
        return
    assert (move.shape, move.dtype) == ((5,), np.float32)


def test_positions_that_do_not_rise_are_refused():
    code = Compression("top_k", 1.0).encode(np.ones(2, np.float32))
    code[1:9] = np.array([1, 1], "<u4").view(np.uint8)
    with pytest.raises(ValueError, match="do not rise"):
        decode(code, 2)


def test_options_that_make_no_sense_are_refused():
    with pytest.raises(ConfigError, match=r"top_k_share=0 must lie in \(0, 1\]"):
        Compression("top_k", 0)
    with pytest.raises(ConfigError, match="compression sends parameters alone"):
        replace(PLAN, optimizer_state="average", compression=Compression())


# ---- in rounds


def last(compression, plan=PLAN):
    specs = silos(40, 60)
    names = tuple(spec.name for spec in specs)
    ours = Coordinator(LocalCohort(specs, SyntheticTask()), SyntheticTask(), names)
    ours.agree()
    plan = replace(plan, compression=compression)
    return list(ours.run(Job("federated", names, dict.fromkeys(names, plan), 0)))[-1]


@pytest.mark.parametrize("method", METHODS)
def test_with_error_feedback_coded_rounds_end_where_plain_rounds_end(method):
    plain, coded = last(None), last(Compression(method, 0.1))
    assert coded.metrics["train_loss"] == pytest.approx(plain.metrics["train_loss"], rel=0.1)
    size = plain.models["federated"].nbytes
    code = len(Compression(method, 0.1).encode(np.zeros(size // 4, np.float32)))
    assert coded.bytes_sent == 2 * (size + code) < plain.bytes_sent


def test_without_error_feedback_top_k_falls_behind(monkeypatch):
    """The control of the test above: it is the feedback that closes the gap."""
    with_feedback = last(Compression("top_k", 0.05)).metrics["train_loss"]
    monkeypatch.setattr(
        "ray_fed.learning.trainer.LocalTrainer.compress",
        lambda self, received, vector: self.plan.compression.encode(vector - received),
    )
    assert last(Compression("top_k", 0.05)).metrics["train_loss"] > 1.1 * with_feedback


# ---- through the gate


def update(**changes):
    received = np.linspace(0, 1, 50, dtype=np.float32)
    code = Compression("int8").encode(np.linspace(0.1, 0.2, 50, dtype=np.float32))
    sent = Update("a", "s", 1, rebuilt(received, code), 40, 1, 0.5, 0.0, code)
    return replace(sent, **changes), Request("update", "s", 1, received)


def test_an_update_travels_as_its_code_and_arrives_with_the_same_bits():
    sent, asked = update()
    passed = Gate("a", Policy(), KINDS).admit(sent, asked)
    assert passed.packed().vector.nbytes == 0
    assert passed.packed().unpacked(asked.vector).vector.tobytes() == sent.vector.tobytes()


def test_the_gate_refuses_a_code_that_says_something_else_than_the_vector():
    other = Compression("int8").encode(np.linspace(0.1, 0.3, 50, dtype=np.float32))
    sent, asked = update(code=other)
    with pytest.raises(PerimeterRefused, match="its code and its vector differ"):
        Gate("a", Policy(), KINDS).admit(sent, asked)
