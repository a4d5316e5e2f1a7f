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
from ray_fed.federation.task import SiloSpec
from ray_fed.learning.trainer import TrainingPlan
from tests.synthetic import DrawnRows, SyntheticTask, silos

pytestmark = pytest.mark.usefixtures("ray_session")

NAMES = ("silo-1", "silo-2")
PLAN = TrainingPlan(seed=0, epochs=5000, steps_per_epoch=2, num_rounds=5000, learning_rate=0.01)
"""More rounds than a silo's process takes to come on a busy machine; what is awaited ends a run earlier."""
TASK, ROWS = SyntheticTask(), DrawnRows(40)
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


def with_a_late_one(late=TASK, source=ROWS):
    """Two silos as actors, the second of which counts as absent: a coordinator that has agreed with the first."""
    specs = [SiloSpec("silo-1", ROWS), SiloSpec("silo-2", source)]
    says = {"silo-1": TASK, "silo-2": late}
    actors = {spec.name: SiloActor.options(num_cpus=0.1).remote(spec, says[spec.name]) for spec in specs}
    coordinator = Coordinator(RayCohort(actors, specs=specs, task=TASK, absent=["silo-2"]), TASK, NAMES)
    coordinator.agree()
    return coordinator


def records_of(coordinator, seed, enough):
    """Run until a record says enough."""
    records = []
    for record in coordinator.run(Job(f"job-{seed}", NAMES, dict.fromkeys(NAMES, PLAN), seed)):
        records.append(record)
        if enough(records):
            return records
    raise AssertionError("the run came to its end")


def test_an_actor_that_finds_its_place_late_agrees_and_takes_part():
    coordinator = with_a_late_one()
    records = records_of(coordinator, 0, lambda so_far: any(record.joined for record in so_far[:-3]))
    [came] = [record for record in records if record.joined]
    assert [silo.silo for silo in came.joined] == ["silo-2"]
    assert all(record.participants == NAMES[:1] for record in records[1 : came.server_round + 1])
    assert [record.participants for record in records[came.server_round + 1 :]] == [NAMES] * 3
    assert coordinator.cohort.absent() == {}


def test_rounds_go_on_while_an_actor_waits_for_a_place_and_it_joins_when_there_is_one():
    task, (near, late) = SyntheticTask(), silos(30, 40)
    takes_all: Any = ray.remote(_Sitting).options(num_cpus=14).remote()
    ray.get(takes_all.__ray_ready__.remote())
    places = {near.name: 0.1, late.name: 12.0}
    actors = {spec.name: SiloActor.options(num_cpus=places[spec.name]).remote(spec, task) for spec in (near, late)}
    coordinator = Coordinator(RayCohort(actors, specs=[near, late], task=task, absent=[late.name]), task, NAMES)
    coordinator.agree()
    joined_in, seen = 0, []
    for record in coordinator.run(Job("federated", NAMES, dict.fromkeys(NAMES, PLAN), 0)):
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
    coordinator = with_a_late_one(late)
    records = records_of(coordinator, 0, lambda so_far: why_out(so_far[-1]).startswith(said))
    records += records_of(coordinator, 1, lambda so_far: len(so_far) == 5)
    assert all(record.participants == NAMES[:1] for record in records if record.server_round)
    assert coordinator.cohort.absent()["silo-2"].startswith(said)
    assert why_out(records[-1]).startswith(said)


def why_out(record):
    return dict(record.failures).get("silo-2", "")


def test_data_that_cannot_be_opened_bar_a_late_silo():
    coordinator = with_a_late_one(source=DrawnRows(fail="rows.csv is empty"))
    said = "silo 'silo-2' failed while opening its data"
    assert records_of(coordinator, 0, lambda so_far: said in why_out(so_far[-1]))
