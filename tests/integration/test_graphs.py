"""Networks on crystal graphs on silo actors: the bytes of silos in one process."""

from actors.federation import federation
from pipelines.training.setup import jobs, resolve
from ray_fed.federation.cohort import LocalCohort
from ray_fed.federation.coordinator import Coordinator
from tests.graph_crystals import written

OPTIONS = {"target": ("formation_energy_per_atom",), "model": "crystal_graph", "features": "guo65", "rounds": 3}
OPTIONS |= {"model_options": ("width=8", "depth=1", "hidden=8"), "silos": (20, 30, 15), "epochs": 3, "batch_size": 16}


def test_a_network_on_graphs_on_actors_is_that_of_one_process(tmp_path, ray_session):  # noqa: ARG001
    setup = resolve({**OPTIONS, "data": str(written(tmp_path)), "baselines": False}, (), "train")
    local = Coordinator(LocalCohort(setup.silos, setup.task, setup.test), setup.task, setup.training)
    (job,) = jobs(setup, dict(local.agree().silos), 0)
    ours = list(local.run(job))
    with federation(setup.silos, setup.task, setup.test, setup.training) as placed:
        placed.coordinator.agree()
        theirs = list(placed.coordinator.run(job))
    assert ours[-1].models["federated"].tobytes() == theirs[-1].models["federated"].tobytes()
    assert [record.metrics for record in ours] == [record.metrics for record in theirs]
