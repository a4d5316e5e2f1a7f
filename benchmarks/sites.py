"""Many sites on one machine: a Ray cluster of labelled nodes, every silo pinned to its own; seconds and bytes a round.

    python benchmarks/sites.py --nodes 8 --silos 64 --rounds 20

Prints one JSON object. The same federation in one process is run beside it, and must give the same bits.
"""

import argparse
import json
import os
import statistics
import time
from collections import Counter

NODE_STORE_BYTES = 80 << 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("nodes", 8), ("silos", 64), ("rounds", 20), ("rows", 40), ("hidden", 200)):
        parser.add_argument(f"--{name}", type=int, default=value)
    given = parser.parse_args()
    os.environ |= {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}
    print(json.dumps(measured(given), indent=2))


def measured(given: argparse.Namespace) -> dict[str, object]:
    import tests.synthetic
    from tests.clusters import cluster as cluster_of

    started = time.monotonic()
    small = {"object_store_memory": NODE_STORE_BYTES, "num_cpus": given.silos // given.nodes + 1}
    with cluster_of(**small | {"num_cpus": 0}) as cluster:
        import ray

        for number in range(given.nodes):
            cluster.add_node(wait=False, labels={"site": f"site-{number}"}, **small)
        cluster.wait_for_nodes()
        ray.init(address=cluster.address, logging_level="ERROR", log_to_driver=False)
        ray.cloudpickle.register_pickle_by_value(tests.synthetic)
        found = {"nodes": given.nodes, "silos": given.silos, "seconds_to_start_nodes": time.monotonic() - started}
        try:
            return found | _federated(given)
        finally:
            ray.shutdown()


def _federated(given: argparse.Namespace) -> dict[str, object]:
    from actors.federation import federation
    from ray_fed.federation.cohort import LocalCohort
    from ray_fed.federation.coordinator import Coordinator
    from ray_fed.federation.rounds.job import Job
    from ray_fed.federation.task import SiloSpec
    from ray_fed.learning.trainer import TrainingPlan
    from tests.synthetic import DrawnRows, SyntheticTask

    specs = [
        SiloSpec(f"silo-{number}", DrawnRows(given.rows), site=f"site-{number % given.nodes}")
        for number in range(given.silos)
    ]
    names, task = tuple(spec.name for spec in specs), SyntheticTask(hidden=(given.hidden, given.hidden))
    plan = TrainingPlan(0, epochs=given.rounds, steps_per_epoch=1, num_rounds=given.rounds, learning_rate=0.01)
    job = Job("federated", names, dict.fromkeys(names, plan), 0, evaluate_silos=False)
    started = time.monotonic()
    with federation(specs, task, SiloSpec("test", DrawnRows(50)), names) as standing:
        standing.coordinator.agree()
        ready = time.monotonic()
        records = list(standing.coordinator.run(job))
        where = Counter(_sites(standing.silos.values()))
        [coordinator] = _sites([standing.coordinator.actor])
    alone = Coordinator(LocalCohort(specs, task, SiloSpec("test", DrawnRows(50))), task, names)
    alone.agree()
    one_process = list(alone.run(job))
    seconds = sorted(record.seconds["total"] for record in records[2:])
    return {
        "seconds_to_start_silos": ready - started,
        "parameters": int(records[-1].models["federated"].size),
        "participants": sorted({len(record.participants) for record in records[1:]}),
        "coordinator_at": coordinator or "the head",
        "silos_per_site": dict(sorted(where.items())),
        "bytes_per_round": records[-1].bytes_sent,
        "ms_per_round_median": 1e3 * statistics.median(seconds),
        "ms_per_round_range": [1e3 * seconds[0], 1e3 * seconds[-1]],
        "ms_per_round_in_one_process": 1e3 * statistics.median(record.seconds["total"] for record in one_process[2:]),
        "same_bits": records[-1].models["federated"].tobytes() == one_process[-1].models["federated"].tobytes(),
    }


def _sites(silos) -> list[str]:
    """Return the label of the node each silo actor stands on, as the cluster's own tables have it."""
    import ray
    from ray._private.state import actors

    labels = {node["NodeID"]: node["Labels"].get("site", "") for node in ray.nodes()}
    return [labels[actors(silo._actor_id.hex())["Address"]["NodeID"]] for silo in silos]


if __name__ == "__main__":
    main()
