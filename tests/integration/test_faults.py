"""Every fault, injected for real into silo actors: the round goes on without the silo, or with its work redone."""

from dataclasses import replace

import numpy as np
import pytest
import ray

from actors.cohort import RayCohort
from actors.federation import federation
from actors.silo import SiloActor
from ray_fed.errors import QuorumLost
from ray_fed.federation.coordinator import Coordinator, Job
from ray_fed.federation.rounds import RoundRules
from ray_fed.federation.task import SiloSpec
from ray_fed.learning.trainer import TrainingPlan
from tests.synthetic import DrawnRows, Fault, FaultyRows, FaultyTask, SyntheticTask

pytestmark = pytest.mark.usefixtures("ray_session")

PLAN = TrainingPlan(seed=0, epochs=4, steps_per_epoch=4, num_rounds=4, learning_rate=0.01)
NAMES = ("silo-1", "silo-2", "silo-3")
TEST = SiloSpec("test", DrawnRows(50))


def specs(folder, fault=None, num_silos=3):
    """Silos of which the second has the fault."""
    faults = [fault if number == 2 else None for number in range(1, num_silos + 1)]
    return [
        SiloSpec(f"silo-{number}", FaultyRows(30 * number, fault=each), state_folder=str(folder / "state"))
        for number, each in enumerate(faults, start=1)
    ]


def run(folder, fault=None, rules=None, num_silos=3):
    names = tuple(f"silo-{number}" for number in range(1, num_silos + 1))
    job = Job("federated", names, dict.fromkeys(names, PLAN), model_seed=0, rules=rules or RoundRules())
    with federation(specs(folder, fault, num_silos), FaultyTask(), TEST, names) as placed:
        placed.coordinator.agree()
        return list(placed.coordinator.run(job))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, ray_session):  # noqa: ARG001
    return run(tmp_path_factory.mktemp("undisturbed"))


@pytest.mark.parametrize("step", [1, 6, 9, 16])
def test_a_silo_that_exits_once_is_restored_and_the_model_is_the_same_bit_for_bit(tmp_path, undisturbed, step):
    records = run(tmp_path, Fault("exit", step, str(tmp_path / "struck")))
    assert (tmp_path / "struck").exists()
    assert all(record.participants == NAMES and not record.failures for record in records[1:])
    assert records[-1].models["federated"].tobytes() == undisturbed[-1].models["federated"].tobytes()
    assert [record.metrics for record in records] == [record.metrics for record in undisturbed]


def test_a_silo_without_restarts_left_is_left_out_with_its_reason(tmp_path):
    records = run(tmp_path, Fault("exit", 6, str(tmp_path / "struck")), RoundRules(max_restarts=0))
    assert [record.participants for record in records[1:]] == [NAMES, *[("silo-1", "silo-3")] * 3]
    assert records[2].failures[0][0] == "silo-2"
    assert "its process died" in records[2].failures[0][1]


def test_a_silo_that_raises_misses_one_round_and_is_recorded_with_its_error(tmp_path):
    records = run(tmp_path, Fault("raise", 6, str(tmp_path / "struck")))
    assert records[2].failures == (("silo-2", "RuntimeError: disk full"),)
    assert [len(record.participants) for record in records[1:]] == [3, 2, 3, 3]


def test_a_nan_update_is_quarantined_and_the_model_stays_finite(tmp_path):
    records = run(tmp_path, Fault("nan", 6, str(tmp_path / "struck")))
    [(silo, reason)] = records[2].failures
    assert silo == "silo-2"
    assert "update refused" in reason
    assert np.isfinite(records[-1].models["federated"]).all()


def test_a_hung_silo_is_left_behind_at_the_deadline_and_its_late_update_is_in_no_model(tmp_path):
    fault = Fault("hang", 6, str(tmp_path / "struck"), seconds=60.0)
    records = run(tmp_path, fault, RoundRules(round_timeout=2.0))
    assert records[2].failures == (("silo-2", "late: no answer before the deadline"),)
    assert [record.participants for record in records[2:]] == [("silo-1", "silo-3")] * 3
    assert 1.9 <= records[2].seconds["total"] < 30.0  # the deadline, not the silo's sleep


def test_losing_the_quorum_stops_the_run_with_one_clear_message(tmp_path):
    rules = RoundRules(min_fit_clients=3)
    with pytest.raises(QuorumLost, match=r"round 2: quorum lost: 2 updates, min_fit_clients is 3: 'silo-2'.*disk full"):
        run(tmp_path, Fault("raise", 6, str(tmp_path / "struck")), rules)


def test_eight_silos_take_part_again_after_one_hard_exit(tmp_path):
    """The scenario in which a well-known framework loses seven of eight silos for good."""
    records = run(tmp_path, Fault("exit", 2, str(tmp_path / "struck")), num_silos=8)
    assert [len(record.participants) for record in records[1:]] == [8] * 4


TAMPERED = {
    "wrong shape": ({"vector": np.zeros(3, np.float32)}, "shape"),
    "wrong type": ({"vector": np.zeros(41, np.float64)}, "dtype"),
    "negative count": ({"num_examples": -5}, "num_examples=-5"),
    "stale round": ({"server_round": 1}, "stale"),
    "round of the future": ({"server_round": 9}, "future"),
    "another session": ({"session": "other"}, "session"),
}


@pytest.mark.parametrize("what", TAMPERED)
def test_a_tampered_update_is_quarantined_with_the_reason(what):
    changes, reason = TAMPERED[what]
    plain = SiloActor.__ray_metadata__.modified_class

    class Tampering(plain):
        def fit(self, session, server_round, vector):
            update = super().fit(session, server_round, vector)
            return replace(update, **changes) if server_round == 2 else update

    task, names = SyntheticTask(), ("honest", "tampering")
    handles = {
        "honest": SiloActor.options(num_cpus=0.1).remote(SiloSpec("honest", DrawnRows(30)), task),
        "tampering": ray.remote(Tampering).options(num_cpus=0.1).remote(SiloSpec("tampering", DrawnRows(30)), task),
    }
    coordinator = Coordinator(RayCohort(handles), task, names)
    coordinator.agree()
    records = list(coordinator.run(Job("federated", names, dict.fromkeys(names, PLAN), model_seed=0)))
    assert [len(record.participants) for record in records[1:]] == [2, 1, 2, 2]
    assert reason in records[2].failures[0][1]
    for handle in handles.values():
        ray.kill(handle)
