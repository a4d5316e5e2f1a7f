import time
from dataclasses import replace

import numpy as np
import pytest
import ray

from actors.cohort import RayCohort, value_of
from actors.federation import federation
from actors.packing import NodeOffer
from actors.placement import actor_options, settle
from actors.silo import SiloActor
from ray_fed.errors import DataError, PlacementError, QuorumLost, SiloRefused
from ray_fed.federation.cohort import LocalCohort
from ray_fed.federation.coordinator import Coordinator
from ray_fed.federation.joined_cohort import JoinedCohort
from ray_fed.federation.rounds.job import Job, local_job
from ray_fed.federation.task import SiloSpec
from ray_fed.learning.trainer import TrainingPlan
from tests.sites import sites
from tests.synthetic import DrawnRows, OneHostile, SyntheticTask, UndeclaredMetric, silos

pytestmark = pytest.mark.usefixtures("ray_session")

PLAN = TrainingPlan(seed=0, epochs=6, steps_per_epoch=4, num_rounds=6, learning_rate=0.01)
NAMES = ("silo-1", "silo-2", "silo-3")
TEST = SiloSpec("test", DrawnRows(50), possession=repr(DrawnRows(50)))


def job(plan=PLAN):
    return Job("federated", NAMES, dict.fromkeys(NAMES, plan), model_seed=0)


@pytest.mark.parametrize("test", [TEST, None])
@pytest.mark.parametrize("policy", ["keep", "average"])
def test_ray_and_local_cohorts_are_bit_equal(test, policy):
    specs, task, the_job = silos(40, 60, 25, held_out=12), SyntheticTask(), job(replace(PLAN, optimizer_state=policy))
    local = Coordinator(LocalCohort(specs, task, test), task, NAMES)
    with federation(specs, task, test, NAMES) as placed:
        remote = placed.coordinator
        agreements = local.agree(), remote.agree()
        assert agreements[0].standardizer.mean.tobytes() == agreements[1].standardizer.mean.tobytes()
        for each in (the_job, local_job(the_job, the_job.plans, "local")):
            ours, theirs = list(local.run(each)), list(remote.run(each))
            assert ours == theirs
            for name, vector in ours[-1].models.items():
                assert vector.tobytes() == theirs[-1].models[name].tobytes()
        if test:
            truth, predicted = remote.predict_test(theirs[-1].models)
            assert truth.tobytes() == local.predict_test(ours[-1].models)[0].tobytes()
            assert set(predicted) == set(NAMES)


def test_silos_in_this_process_on_actors_and_at_sites_are_one_cohort_with_the_same_bits():
    specs, task = silos(40, 60, 25, held_out=12), SyntheticTask()
    actor = SiloActor.options(num_cpus=0.1).remote(specs[1], task)
    with sites(specs[2:], task) as at_site:
        parts = [LocalCohort(specs[:1], task, TEST), RayCohort({"silo-2": actor}, specs=specs[1:2], task=task), at_site]
        joined, local = (
            Coordinator(cohort, task, NAMES) for cohort in (JoinedCohort(parts), LocalCohort(specs, task, TEST))
        )
        agreements = joined.agree(), local.agree()
        assert agreements[0].standardizer.mean.tobytes() == agreements[1].standardizer.mean.tobytes()
        ours, theirs = list(joined.run(job())), list(local.run(job()))
    assert ours == theirs
    assert ours[-1].models["federated"].tobytes() == theirs[-1].models["federated"].tobytes()


def test_a_silo_that_cannot_open_its_data_raises_its_own_error_on_the_driver():
    specs = [*silos(20), SiloSpec("broken", DrawnRows(fail="rows.csv is empty"))]
    with pytest.raises(DataError) as raised, federation(specs, SyntheticTask(), None, ["silo-1"]) as placed:
        placed.coordinator.agree()
    said = str(raised.value)
    assert said.startswith("silo 'broken' failed while opening its data: its data cannot be used (DataError); ref")
    assert "rows.csv is empty" in raised.value.__notes__[0]  # who plays all silos on one machine reads it there
    assert "rows.csv" not in said  # words of a task's own code stay in the silo's log


def test_a_silo_that_disagrees_is_refused_by_name_on_the_driver():
    actors = {
        name: SiloActor.options(num_cpus=0.1).remote(SiloSpec(name, DrawnRows(9)), SyntheticTask(says=says))
        for name, says in [("one", "synthetic"), ("two", "other")]
    }
    coordinator = Coordinator(RayCohort(actors), SyntheticTask(), ["one", "two"])
    with pytest.raises(SiloRefused, match=r"silo 'two' refused"):
        coordinator.agree()


def test_the_weights_in_the_object_store_are_not_changed_by_a_silo_that_trains_on_them():
    task = SyntheticTask()
    actor = SiloActor.options(num_cpus=0.1).remote(silos(30)[0], task)
    cohort = RayCohort({"silo-1": actor})
    coordinator = Coordinator(cohort, task, ["silo-1"])
    coordinator.agree()
    from ray_fed.federation.messages import SessionSpec

    cohort.open_session({"silo-1": SessionSpec("s", PLAN, 0, coordinator.layout.digest)})
    vector = np.arange(coordinator.layout.num_parameters, dtype=np.float32)
    ref = ray.put(vector)
    update = value_of(actor.fit.remote("s", 1, ref), "silo-1", "training")
    assert not np.array_equal(update.vector, vector)
    assert np.array_equal(ray.get(ref), vector)


def test_more_gpus_than_the_cluster_has_are_refused_with_what_is_there():
    specs = [replace(spec, num_gpus=1.0) for spec in silos(9, 9, 9)]
    with pytest.raises(
        PlacementError, match=r"ask for 3 GPUs together, there are 2: box \(2 GPU, 8 CPU\).*num_gpus=0\.5 for each"
    ):
        settle(specs, [NodeOffer("box", "", 8.0, 2.0)])


def test_a_cluster_without_gpus_trains_on_cpu_and_says_so_once():
    settled, notices = settle([replace(spec, num_gpus=1.0) for spec in silos(9, 9)], [NodeOffer("box", "", 8.0, 0.0)])
    assert [spec.num_gpus for spec in settled] == [0.0, 0.0]
    assert notices == ["no GPU in this cluster: the silos train on CPU"]


def test_an_unknown_site_is_refused_at_once_with_the_sites_there_are():
    start = time.perf_counter()
    specs = [replace(silos(9)[0], site="mit")]
    with (
        pytest.raises(
            PlacementError, match=r"silo 'silo-1': no node has the label site=mit; sites in this cluster: lab"
        ),
        federation(specs, SyntheticTask(), None, ["silo-1"]),
    ):
        pass
    assert time.perf_counter() - start < 60  # without the look at the labels Ray waits for good


def test_a_silo_asks_for_its_site_and_its_share_of_a_gpu():
    spec = replace(silos(9)[0], site="eth", num_gpus=0.5)
    assert actor_options(spec) == {"num_cpus": 1.0, "num_gpus": 0.5, "label_selector": {"site": "eth"}}


def test_an_even_share_of_the_gpus_is_the_default():
    settled, notices = settle(silos(9, 9, 9), [NodeOffer("box", "", 8.0, 2.0)])
    assert [spec.num_gpus for spec in settled] == [0.5, 0.5, 0.5]
    assert notices == []


def test_no_silo_gets_more_than_one_gpu_and_none_from_another_site():
    specs = [replace(spec, site=site) for spec, site in zip(silos(9, 9), ("a", "b"), strict=True)]
    settled, _ = settle(specs, [NodeOffer("one", "a", 8.0, 4.0), NodeOffer("two", "b", 8.0, 0.0)])
    assert [spec.num_gpus for spec in settled] == [1.0, 0.0]


def test_a_node_that_came_later_with_another_installation_holds_no_silo():
    drivers = {"env_vars": {"RAY_FED_DRIVER_PACKAGE": "0.1.0+0123456789ab"}}
    actor = SiloActor.options(num_cpus=0.1, runtime_env=drivers).remote(silos(30)[0], SyntheticTask())
    with pytest.raises(
        PlacementError, match=r"silo 'silo-1': node .* has ray-fed .*, the driver has 0\.1\.0\+0123456789ab"
    ):
        value_of(actor.open.remote(), "silo-1", "opening its data")


def test_a_silo_stands_at_its_site():
    specs = [replace(spec, site="lab") for spec in silos(30, 30, 30)]
    with federation(specs, SyntheticTask(), None, NAMES) as placed:
        assert set(placed.coordinator.agree().silos) == set(NAMES)


def test_a_silo_that_was_started_elsewhere_refuses_to_open_its_data():
    spec = replace(silos(30)[0], site="elsewhere")
    actor = SiloActor.options(num_cpus=0.1).remote(spec, SyntheticTask())
    with pytest.raises(
        PlacementError, match=r"silo 'silo-1' belongs to site 'elsewhere' but was started at site 'lab'"
    ):
        RayCohort({"silo-1": actor}).open()


def test_a_metric_that_the_task_did_not_declare_ends_the_run_where_no_silo_tells_another():
    with federation(silos(40, 60, 25, held_out=12), UndeclaredMetric(), None, NAMES) as placed:
        placed.coordinator.agree()
        with pytest.raises(QuorumLost) as raised:
            list(placed.coordinator.run(job()))
    assert all(f"'{name}'" in str(raised.value) for name in NAMES)
    assert "metrics refused" in str(raised.value)
    assert "Task.metrics" in str(raised.value)


WAYS = ("steps of many digits", "a huge loss", "a huge time", "a huge vector", "infinite metrics", "undeclared metrics")


@pytest.mark.parametrize("way", WAYS)
def test_one_hostile_silo_fails_by_name_and_the_others_go_on_as_in_one_process(way):
    specs, task = silos(40, 60, 25, held_out=12), OneHostile(way=way)
    local = Coordinator(LocalCohort(specs, task), task, NAMES)
    with federation(specs, task, None, NAMES) as placed:
        placed.coordinator.agree()
        theirs = list(placed.coordinator.run(job()))
    local.agree()
    ours = list(local.run(job()))
    assert theirs[-1].models["federated"].tobytes() == ours[-1].models["federated"].tobytes()
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.metrics == other.metrics
        assert [silo for silo, _ in mine.failures] == [silo for silo, _ in other.failures]
        assert {silo for silo, _ in other.failures} <= {"silo-1"}
    assert theirs[-1].failures
