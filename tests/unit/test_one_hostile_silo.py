"""Whatever one silo answers, it fails by name: the round, the coordinator and the other silos go on without it."""

from dataclasses import replace

import pytest

from ray_fed.errors import QuorumLost
from ray_fed.federation.cohort import LocalCohort
from ray_fed.federation.coordinator import Coordinator
from ray_fed.federation.rounds.job import Job
from ray_fed.federation.rounds.machine import RoundRules
from ray_fed.federation.strategies import make_strategy
from ray_fed.learning.trainer import TrainingPlan
from ray_fed.perimeter.guarded_silo import GuardedSilo
from tests.synthetic import HOSTILE_METRICS, HOSTILE_UPDATES, OneHostile, silos

PLAN = TrainingPlan(seed=0, epochs=3, steps_per_epoch=2, num_rounds=3, learning_rate=0.01)
NAMES = ("silo-1", "silo-2", "silo-3")
SPECS = silos(40, 60, 25, held_out=12)
STRATEGIES = ("fed_avg", "fed_nova", "fed_adam", "median")


@pytest.fixture(autouse=True)
def site(tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_FED_SITE", str(tmp_path))


def coordinator(task, names=NAMES, is_guarded=False):
    specs = [spec for spec in SPECS if spec.name in names]
    cohort = LocalCohort(specs, task)
    if is_guarded:
        cohort.silos = {spec.name: GuardedSilo(spec, lambda spec=spec: task.silo(spec)) for spec in specs}  # type: ignore[misc]
    made = Coordinator(cohort, task, names)
    made.agree()
    return made


def records(way, names=NAMES, strategy="fed_avg", is_guarded=False, **rules):
    task = OneHostile(way=way)
    job = Job("j", names, dict.fromkeys(names, PLAN), 0, make_strategy(strategy), RoundRules(**rules))
    return list(coordinator(task, names, is_guarded).run(job))


@pytest.mark.parametrize("is_guarded", [False, True])
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("way", [way for way in HOSTILE_UPDATES if way != "an error"])
def test_a_hostile_update_is_left_out_by_name_and_the_model_is_that_of_the_others(way, strategy, is_guarded):
    made = records(way, strategy=strategy, is_guarded=is_guarded)
    raising = records("an error", strategy=strategy)
    for record, other in zip(made, raising, strict=True):
        assert record.metrics == other.metrics
        assert record.participants == (NAMES[1:] if record.server_round else ())
        assert [silo for silo, _ in record.failures] == ["silo-1"] * (record.server_round > 0)
        assert all(len(reason) < 300 for _, reason in record.failures)
    assert all(made[-1].models[name].tobytes() == vector.tobytes() for name, vector in raising[-1].models.items())


def test_under_masks_the_silo_s_own_gate_bounds_the_rows_that_it_claims():
    made = Job("j", NAMES, dict.fromkeys(NAMES, PLAN), 0, make_strategy("fed_avg"), secure_threshold=2)
    task = OneHostile(way="rows that it does not have")
    last = list(coordinator(task, is_guarded=True).run(made))[-1]
    assert last.participants == NAMES[1:]
    assert "claims more rows than a round can have" in dict(last.failures)["silo-1"]


@pytest.mark.parametrize("is_guarded", [False, True])
@pytest.mark.parametrize("way", HOSTILE_METRICS)
def test_hostile_metrics_are_left_out_by_name_and_those_of_the_others_are_told(way, is_guarded):
    made, honest = records(way, is_guarded=is_guarded), records("", is_guarded=is_guarded)
    for record, other in zip(made, honest, strict=True):
        assert [silo for silo, _ in record.failures] == ["silo-1"]
        assert record.participants == other.participants
        kept = {name for name in other.metrics if not name.startswith("silo.silo-1.") or "train_loss" in name}
        assert set(record.metrics) == kept
        assert record.metrics["silo.silo-2.mae"] == other.metrics["silo.silo-2.mae"]
    assert made[-1].models["federated"].tobytes() == honest[-1].models["federated"].tobytes()


@pytest.mark.parametrize("way", ["undeclared metrics", "a huge loss"])
def test_who_accepts_no_failures_is_told_which_silo_ends_the_run(way):
    with pytest.raises(QuorumLost, match="silo-1"):
        records(way, accept_failures=False)


def test_no_steps_are_refused_where_the_strategy_divides_by_them_and_nowhere_else(monkeypatch):
    monkeypatch.setitem(HOSTILE_UPDATES, "no steps", lambda update: replace(update, num_steps=0))  # type: ignore[arg-type]
    assert [silo for silo, _ in records("no steps", strategy="fed_nova")[-1].failures] == ["silo-1"]
    assert records("no steps")[-1].failures == ()
