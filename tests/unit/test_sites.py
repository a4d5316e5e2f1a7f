"""Silos at sites: one contract and the same bits as the other cohorts, over real connections."""

from dataclasses import replace

import pytest

from ray_fed.errors import DataError, QuorumLost
from ray_fed.federation.cohort import LocalCohort
from ray_fed.federation.coordinator import Coordinator
from ray_fed.federation.joined_cohort import JoinedCohort
from ray_fed.federation.rounds.job import Job, local_job
from ray_fed.federation.silo import Evaluator
from ray_fed.federation.strategies.boosting import BoostedTrees
from ray_fed.federation.task import SiloSpec
from ray_fed.learning.trainer import TrainingPlan
from ray_fed.privacy.compression import Compression
from tests.sites import sites
from tests.synthetic import DrawnRows, SyntheticForest, SyntheticTask, UndeclaredMetric, silos

PLAN = TrainingPlan(seed=0, epochs=6, steps_per_epoch=4, num_rounds=6, learning_rate=0.01)
NAMES = ("silo-1", "silo-2", "silo-3")
TEST = SiloSpec("test", DrawnRows(50))
TASK = SyntheticTask()
SPECS = silos(40, 60, 25, held_out=12)


def job(plan=PLAN, **changes):
    return Job("federated", NAMES, dict.fromkeys(NAMES, plan), model_seed=0, **changes)


def bits(records):
    return [{name: value.tobytes() for name, value in record.state.items()} for record in records]


def run(cohort, *jobs, task=TASK):
    coordinator = Coordinator(cohort, task, NAMES)
    agreement = coordinator.agree()
    return agreement, [list(coordinator.run(each)) for each in jobs or (job(),)]


def assert_equal(ours, theirs):
    assert ours[0].standardizer.mean.tobytes() == theirs[0].standardizer.mean.tobytes()
    for one, other in zip(ours[1], theirs[1], strict=True):
        assert one == other
        assert bits(one) == bits(other)


@pytest.mark.parametrize(
    "changes",
    [{}, {"optimizer_state": "average"}, {"compression": Compression("int8")}],
    ids=lambda changes: next(iter(changes), "plain"),
)
def test_silos_at_sites_give_the_bits_of_silos_in_this_process(changes):
    the_job = job(replace(PLAN, **changes))
    jobs = the_job, local_job(the_job, the_job.plans, "local")
    with sites(SPECS, TASK, evaluator=Evaluator(TEST, TASK)) as cohort:
        assert_equal(run(LocalCohort(SPECS, TASK, TEST), *jobs), run(cohort, *jobs))


def test_secure_sums_over_sites_give_the_same_bits():
    the_job = job(secure_threshold=2)
    with sites(SPECS, TASK) as cohort:
        assert_equal(run(LocalCohort(SPECS, TASK), the_job), run(cohort, the_job))


@pytest.mark.parametrize("secure_threshold", [0, 2])
def test_trees_over_sites_have_the_bits_of_trees_in_this_process(secure_threshold):
    task = SyntheticForest()
    strategy = BoostedTrees(task.trees, task.num_features)
    rounds = strategy.num_rounds
    plan = TrainingPlan(0, rounds, 1, rounds, compression=None if secure_threshold else Compression())
    the_job = job(plan, strategy=strategy, secure_threshold=secure_threshold)
    _, (ours,) = run(LocalCohort(SPECS, task), the_job, task=task)
    with sites(SPECS, task) as cohort:
        _, (theirs,) = run(cohort, the_job, task=task)
    assert ours[-1].models["federated"].tobytes() == theirs[-1].models["federated"].tobytes()
    assert len(ours) == len(theirs) < rounds


def test_silos_of_two_kinds_are_one_cohort_with_the_same_bits():
    with sites(SPECS[1:], TASK) as cohort:
        joined = JoinedCohort([LocalCohort(SPECS[:1], TASK, TEST), cohort])
        assert_equal(run(LocalCohort(SPECS, TASK, TEST)), run(joined))


def test_a_silo_that_cannot_open_its_data_raises_its_own_kind_of_error_here():
    specs = [*silos(20), SiloSpec("silo-2", DrawnRows(fail="rows.csv is empty"))]
    with sites(specs, TASK) as cohort, pytest.raises(DataError) as raised:
        cohort.open()
    assert str(raised.value).startswith("silo 'silo-2'")
    assert "rows.csv" not in str(raised.value)


def test_a_metric_that_the_task_did_not_declare_ends_the_run_where_no_silo_tells_another():
    task = UndeclaredMetric()
    with sites(SPECS, task) as cohort, pytest.raises(QuorumLost) as raised:
        run(cohort, task=task)
    assert all(f"'{spec.name}'" in str(raised.value) for spec in SPECS)
    assert "metrics refused" in str(raised.value)
    assert "Task.metrics" in str(raised.value)
