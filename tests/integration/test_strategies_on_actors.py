"""What strategies ask of actors: messages of every size, local state that survives a death, silos that never wait."""

from dataclasses import replace

import numpy as np
import pytest

from actors.federation import federation
from actors.session import OUR_INLINE_BYTES
from ray_fed.federation.cohort import LocalCohort
from ray_fed.federation.coordinator import Coordinator
from ray_fed.federation.rounds.job import Job
from ray_fed.federation.rounds.machine import RoundRules
from ray_fed.federation.strategies import make_strategy
from ray_fed.federation.task import SiloSpec
from ray_fed.learning.layout import Layout
from ray_fed.learning.trainer import TrainingPlan
from tests.synthetic import DrawnRows, Fault, FaultyRows, FaultyTask, SyntheticTask

pytestmark = pytest.mark.usefixtures("ray_session")

PLAN = TrainingPlan(seed=0, epochs=4, steps_per_epoch=4, num_rounds=4, learning_rate=0.01)
NAMES = ("silo-1", "silo-2")
TEST = SiloSpec("test", DrawnRows(50))


def specs(folder, fault=None):
    faults = (None, fault)
    return [
        SiloSpec(name, FaultyRows(40, fault=each), state_folder=str(folder / "state"))
        for name, each in zip(NAMES, faults, strict=True)
    ]


def job(strategy, **plan):
    return Job("federated", NAMES, dict.fromkeys(NAMES, replace(PLAN, **plan)), 0, make_strategy(strategy))


def on_actors(folder, the_job, task=None, fault=None):
    with federation(specs(folder, fault), task or FaultyTask(), TEST, NAMES) as placed:
        placed.coordinator.agree()
        return list(placed.coordinator.run(the_job))


def test_a_model_too_large_for_rays_messages_gives_the_bits_of_one_process(tmp_path):
    task = SyntheticTask(hidden=(900, 700))
    assert 4 * Layout.of(task.model(0)).size > OUR_INLINE_BYTES
    the_job = job("fed_avg", num_rounds=2, epochs=1)
    local = Coordinator(LocalCohort(specs(tmp_path / "local"), task, TEST), task, NAMES)
    local.agree()
    ours = on_actors(tmp_path / "ray", the_job, task)
    assert ours[-1].models["federated"].tobytes() == list(local.run(the_job))[-1].models["federated"].tobytes()


@pytest.mark.parametrize("step", [1, 7])
def test_a_silo_that_dies_under_scaffold_takes_up_its_control_variate_again(tmp_path, step):
    undisturbed = on_actors(tmp_path / "a", job("scaffold"))
    records = on_actors(tmp_path / "b", job("scaffold"), fault=Fault("exit", step, str(tmp_path / "struck")))
    assert (tmp_path / "struck").exists()
    assert records[-1].models["federated"].tobytes() == undisturbed[-1].models["federated"].tobytes()


def test_asynchronous_silos_are_heard_as_they_come_and_a_death_stops_nobody(tmp_path):
    fault = Fault("exit", 6, str(tmp_path / "struck"))
    the_job = replace(job("fed_buff", num_rounds=20, epochs=20), rules=RoundRules(max_restarts=1))
    records = on_actors(tmp_path, the_job, fault=fault)
    assert (tmp_path / "struck").exists()
    assert [record.server_round for record in records] == list(range(21))
    assert records[-1].metrics["federated.mae"] < records[0].metrics["federated.mae"]
    assert all(np.isfinite(record.metrics["federated.mae"]) for record in records)
    heard = {silo for record in records for silo in record.participants}
    assert heard == set(NAMES)


def test_a_slow_silo_does_not_hold_up_asynchronous_rounds(tmp_path):
    fault = Fault("hang", 1, str(tmp_path / "struck"), seconds=600.0)
    records = on_actors(tmp_path, job("fed_buff", num_rounds=6, epochs=6), fault=fault)
    assert [record.participants for record in records[1:]] == [("silo-1",)] * 6
    assert sum(record.seconds["total"] for record in records) < 300.0  # the other silo sleeps for 600 s
