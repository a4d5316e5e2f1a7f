"""Every fault, injected for real into silo actors: the round goes on without the silo, or with its work redone."""

import os
import signal
import sys
import threading
import time
from collections import deque
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import ray

from actors.cohort import RayCohort
from actors.federation import federation
from actors.silo import SiloActor
from ray_fed.errors import QuorumLost
from ray_fed.federation.coordinator import Coordinator
from ray_fed.federation.messages import Arrived
from ray_fed.federation.rounds.job import Job
from ray_fed.federation.rounds.machine import RoundRules
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


def run(folder, fault=None, rules=None, num_silos=3, task=None):
    names = tuple(f"silo-{number}" for number in range(1, num_silos + 1))
    job = Job("federated", names, dict.fromkeys(names, PLAN), model_seed=0, rules=rules or RoundRules())
    with federation(specs(folder, fault, num_silos), task or FaultyTask(), TEST, names) as placed:
        placed.coordinator.agree()
        return list(placed.coordinator.run(job))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, ray_session):  # noqa: ARG001
    return run(tmp_path_factory.mktemp("undisturbed"))


@pytest.mark.parametrize("step", [1, 6, 9, 16])
def test_a_silo_that_exits_once_is_restored_and_the_model_is_the_same_bit_for_bit(tmp_path, undisturbed, step):
    records = run(tmp_path, Fault("exit", step, str(tmp_path / "struck")))
    assert (tmp_path / "struck").exists()
    assert_undisturbed(records, undisturbed)
    [(silo, reason)] = [restart for record in records for restart in record.restarts]
    assert (silo, reason) == ("silo-2", "its process died (killed, out of memory or crashed)")


def assert_undisturbed(records, undisturbed):
    assert all(record.participants == NAMES and not record.failures for record in records[1:])
    assert records[-1].models["federated"].tobytes() == undisturbed[-1].models["federated"].tobytes()
    assert [record.metrics for record in records] == [record.metrics for record in undisturbed]


def fault_that_strikes_twice(step, marker):
    # A class made here travels to the silo's process by value, as the tests package is not to be found there.
    @dataclass(frozen=True)
    class Twice(Fault):
        def strikes(self):
            return any(replace(self, marker=f"{self.marker}-{turn}").strikes_once() for turn in ("first", "second"))

        def strikes_once(self):
            return Fault.strikes(self)

    return Twice("exit", step, marker)


@pytest.mark.parametrize(
    "step", [pytest.param(2, id="while it redoes the round"), pytest.param(6, id="in the round after")]
)
def test_a_silo_that_dies_a_second_time_is_restored_again(tmp_path, undisturbed, step):
    records = run(tmp_path, fault_that_strikes_twice(step, str(tmp_path / "struck")))
    assert (tmp_path / "struck-second").exists()
    assert_undisturbed(records, undisturbed)


def test_a_silo_with_one_restart_is_left_out_at_its_second_death(tmp_path):
    fault = fault_that_strikes_twice(6, str(tmp_path / "struck"))
    records = run(tmp_path, fault, RoundRules(max_restarts=1))
    assert [record.participants for record in records[1:]] == [NAMES, NAMES, *[("silo-1", "silo-3")] * 2]
    assert "its process died" in records[3].failures[0][1]


class DiesAtEvaluation(FaultyTask):
    """The faulty silo's process ends, or answers too late, when it is to evaluate."""

    def evaluate(self, trainer, samples, vector):
        for fault in (fault for fault in self.faults if fault.strikes()):
            if fault.kind == "exit":
                os._exit(1)
            time.sleep(fault.seconds)
        return super().evaluate(trainer, samples, vector)


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (Fault("exit", 10**6, "struck"), "its process died (killed, out of memory or crashed)"),
        (Fault("hang", 10**6, "struck", seconds=12.0), "no answer within 5 s (round_timeout)"),
    ],
)
def test_a_silo_that_is_lost_while_it_evaluates_is_named_in_that_record(tmp_path, fault, reason):
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    fault = replace(fault, marker=str(tmp_path / "struck"))
    job = Job("federated", NAMES, dict.fromkeys(NAMES, PLAN), model_seed=0)
    try:
        with federation(specs(tmp_path, fault), DiesAtEvaluation(), None, NAMES, 5.0) as placed:
            placed.coordinator.agree()
            records = list(placed.coordinator.run(job))
    finally:
        ray.cloudpickle.unregister_pickle_by_value(sys.modules[__name__])
    assert [record.failures for record in records] == [(("silo-2", reason),), (), (), (), ()]
    assert ["silo.silo-2.mse" in record.metrics for record in records] == [False, True, True, True, True]


def task_that_tells_its_process(path):
    class Telling(FaultyTask):
        def load(self, spec):
            if getattr(spec.source, "fault", None):
                Path(path).write_text(str(os.getpid()))
            return super().load(spec)

    return Telling()


def test_a_silo_killed_from_outside_in_the_middle_of_a_round_is_restored(tmp_path, undisturbed):
    told, struck = tmp_path / "process", tmp_path / "struck"
    killed = []

    def kill_when_it_hangs():
        while not struck.exists():
            time.sleep(0.01)
        killed.append(int(told.read_text()))
        os.kill(killed[0], signal.SIGKILL)

    killer = threading.Thread(target=kill_when_it_hangs, daemon=True)
    killer.start()
    records = run(tmp_path, Fault("hang", 10, str(struck), seconds=600.0), task=task_that_tells_its_process(str(told)))
    killer.join(timeout=1.0)
    assert killed != [int(told.read_text())], "the process was not replaced"
    assert_undisturbed(records, undisturbed)


def test_a_silo_without_restarts_left_is_left_out_with_its_reason(tmp_path):
    records = run(tmp_path, Fault("exit", 6, str(tmp_path / "struck")), RoundRules(max_restarts=0))
    assert [record.participants for record in records[1:]] == [NAMES, *[("silo-1", "silo-3")] * 3]
    assert records[2].failures[0][0] == "silo-2"
    assert "its process died" in records[2].failures[0][1]


def test_a_silo_that_raises_misses_one_round_and_is_recorded_with_its_error(tmp_path):
    records = run(tmp_path, Fault("raise", 6, str(tmp_path / "struck")))
    [(silo, reason)] = records[2].failures
    assert silo == "silo-2"
    assert "training round 2: its code failed (RuntimeError); reference" in reason
    assert "disk full" not in reason  # words of a task's own code stay in the silo's log
    assert [len(record.participants) for record in records[1:]] == [3, 2, 3, 3]


def test_a_nan_update_is_quarantined_and_the_model_stays_finite(tmp_path):
    records = run(tmp_path, Fault("nan", 6, str(tmp_path / "struck")))
    [(silo, reason)] = records[2].failures
    assert silo == "silo-2"
    assert "update refused" in reason
    assert np.isfinite(records[-1].models["federated"]).all()


def test_a_hung_silo_is_left_behind_at_the_deadline_and_its_late_update_is_in_no_model(tmp_path):
    fault = Fault("hang", 6, str(tmp_path / "struck"), seconds=600.0)
    # The others, who need milliseconds, must make it on a busy machine, too.
    records = run(tmp_path, fault, RoundRules(round_timeout=8.0))
    assert records[2].failures == (("silo-2", "late: no answer before the deadline"),)
    assert [record.participants for record in records[2:]] == [("silo-1", "silo-3")] * 3
    assert 7.9 <= records[2].seconds["total"] < 300.0  # the deadline, not the silo's sleep


def test_losing_the_quorum_stops_the_run_with_one_clear_message(tmp_path):
    rules = RoundRules(min_fit_clients=3)
    said = r"round 2: quorum lost: 2 updates, min_fit_clients is 3: 'silo-2'.*its code failed \(RuntimeError\)"
    with pytest.raises(QuorumLost, match=said):
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


class AgainCohort(RayCohort):
    """A transport that delivers every answer once more, `delay` answers later."""

    delay = 0

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.delivered = deque()
        self.num_again = 0

    def next_event(self, timeout=None):
        if len(self.delivered) > self.delay:
            self.num_again += 1
            return self.delivered.popleft()
        found = super().next_event(timeout)
        if isinstance(found, Arrived):
            self.delivered.append(found)
        return found


@pytest.mark.parametrize(
    "delay",
    [pytest.param(0, id="at once"), pytest.param(1, id="in the same round"), pytest.param(4, id="a round later")],
)
def test_an_answer_that_arrives_twice_counts_once(tmp_path, undisturbed, delay):
    task = FaultyTask()
    handles = {spec.name: SiloActor.options(num_cpus=0.1).remote(spec, task) for spec in specs(tmp_path)}
    cohort = AgainCohort(handles)
    cohort.delay = delay
    coordinator = Coordinator(cohort, task, NAMES)
    coordinator.agree()
    records = list(coordinator.run(Job("federated", NAMES, dict.fromkeys(NAMES, PLAN), model_seed=0)))
    assert cohort.num_again >= 12 - delay - 1
    assert all(record.participants == NAMES and not record.failures for record in records[1:])
    assert records[-1].models["federated"].tobytes() == undisturbed[-1].models["federated"].tobytes()
    for handle in handles.values():
        ray.kill(handle)
