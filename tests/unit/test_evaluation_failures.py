"""An evaluation that fails is a failure of its round, said wherever rounds are told, and once per reason."""

from dataclasses import replace

import numpy as np
import pytest
from torch import nn
from torch.nn import functional

from pipelines import Training, federate
from pipelines.round_notes import FailureNotes, missed
from pipelines.training.recorder import history_line
from ray_fed import SiloSpec, TorchTask
from ray_fed.errors import QuorumLost
from ray_fed.federation.rounds.machine import RoundRules


def rows(seed):
    x = np.random.default_rng(seed).normal(size=(40, 4)).astype(np.float32)
    y = (x[:, 0] > 0).astype(np.int64)
    return x[10:], y[10:], x[:10], y[:10]


def shifted(seed):
    x, y, held_out_x, held_out_y = rows(seed)
    return x, y, held_out_x * (1e9 if seed == 2 else 1), held_out_y


SILOS = [SiloSpec("a", 1), SiloSpec("b", 2), SiloSpec("c", 3)]


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 2)

    def forward(self, x):
        return self.inner(x), x


def raises_for_huge(out, y):
    if float(out.abs().max()) > 1e6:
        raise RuntimeError("no scores here")
    return out.argmax(1) == y


def trained(network=lambda: nn.Linear(4, 2), samples=shifted, score=raises_for_huge, **options):
    task = TorchTask(network, functional.cross_entropy, samples, {"top1": score})
    return federate(task, SILOS, Training(rounds=2, epochs=2), cohort="local", **options)


def test_a_metric_that_lacks_a_silo_says_over_which_it_is_pooled_and_why():
    result = trained()
    for record in result.records:
        assert record.pooled_over == ("a", "c")
        assert record.unevaluated == record.failures == (("b", "RuntimeError: no scores here"),)
        assert {name for name in record.metrics if name.startswith("silo.b.")} <= {"silo.b.train_loss"}
        assert "evaluated by a, c alone" in repr(record)
    assert result.records[1].participants == ("a", "b", "c")
    assert result.history()["pooled_over"].tolist() == ["a, c"] * 3
    whole = trained(samples=rows)
    assert all(record.pooled_over == record.failures == () for record in whole.records)
    assert {"unevaluated", "pooled_over"}.isdisjoint(history_line(whole.records[-1], 0))


def test_history_and_summary_say_it():
    records = trained().records
    line = history_line(records[-1], 0)
    assert line["unevaluated"] == {"b": "RuntimeError: no scores here"}
    assert line["pooled_over"] == ["a", "c"]
    assert missed(records) == {"silo.b.evaluations_missed": 3, "federated.pooled_over": "a, c"}


def test_who_accepts_no_failures_is_told_of_a_failed_evaluation():
    with pytest.raises(QuorumLost, match="round 0: quorum lost: silo 'b': RuntimeError: no scores here"):
        trained(rules=RoundRules(accept_failures=False))


def test_where_no_silo_can_evaluate_the_run_ends_at_once_and_says_why():
    def broken(out, _):
        raise RuntimeError(f"no score of {tuple(out.shape)}")

    with pytest.raises(QuorumLost, match=r"round 0: quorum lost: no silo evaluates the model: silo 'a': RuntimeError"):
        trained(score=broken)


def test_a_network_with_several_outputs_is_evaluated_on_all_of_them():
    task = TorchTask(Pair, lambda out, y: functional.cross_entropy(out[0], y), rows)
    record = federate(task, SILOS, Training(rounds=2, epochs=2), cohort="local").records[-1]
    assert record.failures == ()
    assert np.isfinite(record.metrics["federated.loss"])


def test_each_reason_is_told_once_whatever_its_reference_to_a_log():
    notes = FailureNotes()
    why = "its code failed; reference {} in the log of silo 'b' at its owner's"
    first, again = why.format("0123456789ab"), why.format("ba9876543210")
    assert len(notes.lines({"b": first}, {"b": first}, ("a",))) == 2
    assert notes.lines({"b": again}, {"b": again}, ("a",)) == []
    assert notes.lines({}, {}, ()) == []
    assert notes.lines({"a": "late"}, {}, ()) == ["silo 'a' does not take part: late"]
    assert notes.lines({}, {}, ()) == ["all silos take part again"]
    assert notes.lines({"a": "late"}, {}, ()) == []


def test_a_resumed_record_has_what_the_history_says(tmp_path):
    from pipelines.training.checkpoint import Checkpoint
    from pipelines.training.recorder import timing_line
    from ray_fed.reporting.run_directory import RunDirectory

    directory = RunDirectory.create(tmp_path / "run", "test")
    records = [replace(record, models=None) for record in trained().records[:2]]
    for record in records:
        directory.append_history(history_line(record, 0))
        directory.append_timing(timing_line(record))
    assert [record for _, record in Checkpoint(directory).records()] == records
