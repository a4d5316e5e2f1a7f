"""`federate` on actors: the same rounds, stops, choices and folders as in one process."""

from dataclasses import replace

import pytest

from pipelines import EarlyStopping, Federated, StopTraining, Training, federate
from ray_fed.errors import CallbackFailed
from tests.unit.test_federate_engine import SILOS, TASK, bits, rows

pytestmark = pytest.mark.usefixtures("ray_session")
TRAINING = Training(rounds=6, epochs=6, batch_size=16, learning_rate=0.05)


def train(cohort, **options):
    return federate(TASK, SILOS, TRAINING, cohort=cohort, tensorboard=False, **options)


def shrinking(server_round, module):
    assert not module.training
    return {"score": -abs(server_round - 2)}


def stop_after_two(record):
    if record.server_round == 2:
        raise StopTraining("enough")


def raise_after_one(record):
    if record.server_round == 1:
        raise ValueError("my bug")


def test_a_run_that_ends_early_by_a_function_of_the_coordinator_is_the_one_in_one_process():
    best = EarlyStopping("central.score", patience=2, higher_is_better=True)
    local, there = (train(cohort, evaluate_fn=shrinking, early_stopping=best) for cohort in ("local", "ray"))
    assert there.best_round == 2
    assert there.records[-1].server_round == 4
    assert bits(there) == bits(local)
    assert [record.metrics for record in there.records] == [record.metrics for record in local.records]


def test_callbacks_end_a_run_after_the_very_round_and_it_is_gone_on_with(tmp_path):
    stopped = train("ray", callbacks=[stop_after_two])
    assert bits(stopped) == bits(train("local", callbacks=[stop_after_two]))
    with pytest.raises(CallbackFailed, match="callback raise_after_one, round 1: ValueError: my bug") as raised:
        train("ray", callbacks=[raise_after_one], out=tmp_path / "run")
    assert len(raised.value.result.records) == 2
    resumed = train("ray", out=tmp_path / "run", resume=True)
    whole = train("local", out=tmp_path / "whole")
    assert bits(resumed) == bits(whole)
    assert (tmp_path / "run" / "history.jsonl").read_bytes() == (tmp_path / "whole" / "history.jsonl").read_bytes()
    assert (tmp_path / "run" / "ledger" / "coordinator.jsonl").is_file()
    assert bits(Federated.load(tmp_path / "run", TASK)) == bits(whole)


def test_what_no_silo_can_evaluate_ends_the_run_on_actors_as_in_one_process():
    from ray_fed.errors import QuorumLost

    task = replace(TASK, scores={"accuracy": raises})
    for cohort in ("local", "ray"):
        with pytest.raises(QuorumLost, match=r"round 0: quorum lost: no silo evaluates the model: silo 'a': .*ZeroDiv"):
            federate(task, SILOS, TRAINING, cohort=cohort)


def raises(out, y):
    raise ZeroDivisionError(f"{len(out)} {len(y)}")


def odd_at_b(seed):
    x, y, *held_out = rows(seed)
    return x, y + 7 * (seed == 2), *held_out


def test_why_a_silo_of_a_private_cluster_is_left_out_is_said_in_its_own_words(capsys):
    task, training = replace(TASK, samples=odd_at_b), replace(TRAINING, rounds=1, epochs=1)
    result = federate(task, SILOS, training, tensorboard=False)
    assert [silo for silo, _ in result.records[1].failures] == ["b"]
    assert "out of bounds" in capsys.readouterr().err
