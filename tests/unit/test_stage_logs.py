"""What TensorBoard shows of FedTransfer: methods as curves in the same charts, while they run."""

from dataclasses import replace

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pipelines.fedtransfer.results import validation_losses
from pipelines.fedtransfer.stage_logs import StageLogs
from ray_fed.errors import SiloFailed
from ray_fed.federation.rounds.job import RoundRecord

STAGE = "fed_avg@fold0-seed0"


def record(server_round: int, loss: float, stage: str = STAGE) -> RoundRecord:
    metrics = {"train_loss": loss, "silo.iron.train_loss": loss, "silo.iron.loss": loss / 2, "silo.iron.map": 0.5}
    return RoundRecord(stage, "federated", server_round, 3, metrics, ("iron",), (), 0, {}, None)


def curves(folder) -> dict[str, list[tuple[int, float]]]:
    """Return tag -> points."""
    events = EventAccumulator(str(folder)).Reload()
    return {tag: [(e.step, round(e.value, 3)) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_a_method_is_a_model_and_its_rounds_are_seen_before_it_ends(tmp_path):
    logs = StageLogs(tmp_path)
    logs.begin({"methods": ("fed_avg",), "rounds": 3}, "a-run", [STAGE], ["iron"])
    logs.on_round_end(record(0, 0.8))
    logs.on_round_end(record(1, 0.6))
    logs.close()
    assert curves(tmp_path) == {
        "model/fed_avg-fold0-seed0/validation_loss/iron": [(0, 0.4), (1, 0.3)],
        "model/fed_avg-fold0-seed0/train_loss": [(0, 0.8), (1, 0.6)],
    }


def test_a_stage_that_is_done_again_leaves_no_points_of_the_time_before(tmp_path):
    other, broken, again = StageLogs(tmp_path), StageLogs(tmp_path), StageLogs(tmp_path)
    other.on_round_end(record(0, 0.7, "other@fold0-seed0"))
    other.close()
    broken.on_round_end(record(0, 0.8))
    broken.on_round_end(record(1, 0.9))
    broken.close()
    again.on_round_end(record(0, 0.8))
    again.done({"stage": STAGE, "fold": 0, "chosen": {"federated": 1},
                "test": {"federated": {"iron": {"map": 0.5, "vi": 0.25, "ari": 0.75, "loss": 1.0}}}})  # fmt: skip
    found = curves(tmp_path)
    assert {tag: points for tag, points in found.items() if "/fed_avg-" in tag} == {
        "model/fed_avg-fold0-seed0/validation_loss/iron": [(0, 0.4)],
        "model/fed_avg-fold0-seed0/train_loss": [(0, 0.8)],
        "model/fed_avg-fold0-seed0/map/iron": [(1, 0.5)],
        "model/fed_avg-fold0-seed0/vi/iron": [(1, 0.25)],
        "model/fed_avg-fold0-seed0/ari/iron": [(1, 0.75)],
    }
    assert found["model/other-fold0-seed0/train_loss"] == [(0, 0.7)]


def test_each_model_of_training_alone_has_its_own_scores(tmp_path):
    logs, scores = StageLogs(tmp_path), {"map": 0.5, "vi": 0.25, "ari": 0.75}
    stage = "separate@fold0-seed0"
    logs.on_round_end(record(0, 0.8, stage))
    test = {"iron": {"iron": scores}, "austenite": {"iron": scores}}
    logs.done({"stage": stage, "fold": 0, "chosen": {"iron": 1, "austenite": 2}, "test": test})
    found = curves(tmp_path)
    assert {tag: found[tag] for tag in found if "/map/" in tag} == {
        "model/separate-fold0-seed0 iron/map/iron": [(1, 0.5)],
        "model/separate-fold0-seed0 austenite/map/iron": [(2, 0.5)],
    }


def test_a_silo_that_died_in_the_evaluation_is_not_judged_by_its_training_loss():
    """Its training loss is known by then, and says something else."""
    whole = record(2, 0.8)
    assert validation_losses(whole, ["iron"]) == {"iron": 0.4}
    died = replace(whole, metrics={"train_loss": 0.8, "silo.iron.train_loss": 0.8})
    with pytest.raises(SiloFailed, match="silo 'iron' failed while evaluating round 2: it told no validation loss"):
        validation_losses(died, ["iron"])
