"""Silos whose site has no machine yet, as actors. A real node that comes and goes is in test_scale.py."""

from dataclasses import replace
from typing import Any

import pytest
import ray

from actors.cohort import RayCohort
from actors.federation import federation
from actors.silo import SiloActor
from ray_fed.errors import PlacementError
from ray_fed.federation.coordinator import Coordinator
from ray_fed.federation.rounds.job import Job
from ray_fed.federation.rounds.machine import StartRules
from ray_fed.learning.trainer import TrainingPlan
from tests.synthetic import DrawnRows, SyntheticTask, silos

pytestmark = pytest.mark.usefixtures("ray_session")

NAMES = ("silo-1", "silo-2")
PLAN = TrainingPlan(seed=0, epochs=40, steps_per_epoch=2, num_rounds=40, learning_rate=0.01)
ALL_LATE = frozenset({"silo-1", "silo-2", "far"})


def at_sites():
    """Two silos at the one site there is, and one at a site without a machine."""
    return [*(replace(spec, site="lab") for spec in silos(30, 40)), replace(silos(9)[0], name="far", site="mars")]


def begin(**rules):
    with federation(at_sites(), SyntheticTask(), None, NAMES, start=StartRules(**rules)) as standing:
        agreement = standing.coordinator.agree()
        names = tuple(spec.name for spec in at_sites())
        job = Job("federated", names, dict.fromkeys(names, replace(PLAN, epochs=2, num_rounds=2)), model_seed=0)
        return agreement, list(standing.coordinator.run(job)), standing.coordinator.collect_ledgers()


def test_a_run_begins_without_a_site_that_may_be_late():
    agreement, records, _ = begin(may_be_late=ALL_LATE, fewest=2)
    assert list(agreement.silos) == list(NAMES)
    assert [record.participants for record in records[1:]] == [NAMES] * 2
    assert dict(records[1].failures) == {"far": "no machine at its site 'mars' yet"}


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        ({}, r"silo 'far': no node has the label site=mars; sites"),
        ({"timeout": 0.5}, r"silo 'far': no node has the label site=mars after 0.5 s \(start_timeout\); sites"),
        ({"may_be_late": frozenset(NAMES)}, r"silo 'far': no node has the label site=mars; sites"),
        ({"may_be_late": ALL_LATE, "fewest": 3}, "2 of 3 silos have a machine, min_fit_clients is 3; .*: mars"),
    ],
)
def test_a_run_that_may_not_begin_says_whom_it_misses(rules, said):
    with pytest.raises(PlacementError, match=said):
        begin(**rules)


def joined(late, max_sessions=1):
    """Let the second of two silos join a cohort as one that was absent; return the records of its runs."""
    task, specs = SyntheticTask(), silos(30, 40)
    says = {"silo-1": task, "silo-2": late}
    actors = {spec.name: SiloActor.options(num_cpus=0.1).remote(spec, says[spec.name]) for spec in specs}
    cohort = RayCohort(actors, specs=specs, task=task, absent=["silo-2"])
    coordinator = Coordinator(cohort, task, NAMES)
    coordinator.agree()
    jobs = [Job(f"job-{number}", NAMES, dict.fromkeys(NAMES, PLAN), number) for number in range(max_sessions)]
    return [record for job in jobs for record in coordinator.run(job)], cohort


def test_an_actor_that_finds_its_place_late_agrees_and_takes_part():
    records, cohort = joined(SyntheticTask())
    [came] = [record for record in records if record.joined]
    assert [silo.silo for silo in came.joined] == ["silo-2"]
    assert all(record.participants == NAMES[:1] for record in records[1 : came.server_round + 1])
    assert all(record.participants == NAMES for record in records[came.server_round + 1 :])
    assert came.server_round < PLAN.num_rounds
    assert cohort.absent() == {}


def test_rounds_go_on_while_an_actor_waits_for_a_place_and_it_joins_when_there_is_one():
    task, (near, late) = SyntheticTask(), silos(30, 40)
    takes_all: Any = ray.remote(_Sitting).options(num_cpus=14).remote()
    ray.get(takes_all.__ray_ready__.remote())
    places = {near.name: 0.1, late.name: 12.0}
    actors = {spec.name: SiloActor.options(num_cpus=places[spec.name]).remote(spec, task) for spec in (near, late)}
    coordinator = Coordinator(RayCohort(actors, specs=[near, late], task=task, absent=[late.name]), task, NAMES)
    coordinator.agree()
    plan = replace(PLAN, epochs=5000, num_rounds=5000)
    joined_in, seen = 0, []
    for record in coordinator.run(Job("federated", NAMES, dict.fromkeys(NAMES, plan), 0)):
        seen.append(record.participants)
        if record.server_round == 20:
            ray.kill(takes_all)
        joined_in = joined_in or (record.server_round if record.joined else 0)
        if joined_in and record.server_round == joined_in + 3:
            break
    assert joined_in > 20
    assert seen[1 : joined_in + 1] == [NAMES[:1]] * joined_in
    assert seen[joined_in + 1 :] == [NAMES] * 3


class _Sitting:
    """Takes up room."""


@pytest.mark.parametrize(
    ("late", "said"),
    [
        (SyntheticTask(says="other tables"), "it cannot join: silo 'silo-2' refused"),
        (SyntheticTask(num_features=5), "it cannot join: silo 'silo-2' failed while standardising"),
    ],
)
def test_an_actor_that_does_not_fit_stays_out_of_all_jobs_of_the_run(late, said):
    records, cohort = joined(late, max_sessions=2)
    assert all(record.participants == NAMES[:1] for record in records if record.server_round)
    assert cohort.absent()["silo-2"].startswith(said)
    assert dict(records[-1].failures)["silo-2"].startswith(said)


def test_data_that_cannot_be_opened_bar_a_late_silo():
    specs = [silos(30)[0], replace(silos(9)[0], name="silo-2", source=DrawnRows(fail="rows.csv is empty"))]
    task = SyntheticTask()
    actors = {spec.name: SiloActor.options(num_cpus=0.1).remote(spec, task) for spec in specs}
    cohort = RayCohort(actors, specs=specs, task=task, absent=["silo-2"])
    coordinator = Coordinator(cohort, task, NAMES)
    coordinator.agree()
    records = list(coordinator.run(Job("federated", NAMES, dict.fromkeys(NAMES, PLAN), 0)))
    assert "silo 'silo-2' failed while opening its data" in dict(records[-1].failures)["silo-2"]
