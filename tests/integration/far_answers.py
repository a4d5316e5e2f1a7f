"""Two nodes on this machine, and a large answer made at one of them and not fetched yet: `python -m ... lost | held`.

lost: the node goes. held: its network is gone, so to say: the process that would send the answer stands still.
"""

import signal
import sys
import time
from pathlib import Path

import numpy as np

from actors import forking

forking.start()  # before Ray is imported

import ray  # noqa: E402

from actors.cohort import RayCohort  # noqa: E402
from actors.placement import actor_options  # noqa: E402
from actors.silo import SiloActor  # noqa: E402
from ray_fed.federation.coordinator import Coordinator  # noqa: E402
from ray_fed.federation.messages import Arrived, SessionSpec  # noqa: E402
from ray_fed.federation.task import SiloSpec  # noqa: E402
from ray_fed.learning.trainer import TrainingPlan  # noqa: E402
from tests.clusters import cluster  # noqa: E402
from tests.synthetic import Fault, FaultyRows, FaultyTask  # noqa: E402

SMALL = {"object_store_memory": 80 << 20, "num_cpus": 1}
FAR = SiloSpec("far", FaultyRows(30, fault=Fault("hang", 1, "at work", 5.0)), site="south")
NEAR = SiloSpec("near", FaultyRows(30), site="head")
TASK = FaultyTask(hidden=(200, 200))
PLAN = TrainingPlan(seed=0, epochs=6, steps_per_epoch=4, num_rounds=6, learning_rate=0.01)


class Scene:
    """The cluster, its silos, and an answer of the far one that is ready where it was made."""

    def __init__(self, cluster):
        self.cluster = cluster
        self.south = cluster.add_node(labels={"site": "south"}, **SMALL)
        ray.init(self.cluster.address, logging_level="ERROR", log_to_driver=False)
        specs = [FAR, NEAR]
        silos = {spec.name: SiloActor.options(**actor_options(spec)).remote(spec, TASK) for spec in specs}
        self.cohort = RayCohort(silos, specs=specs, task=TASK)
        coordinator = Coordinator(self.cohort, TASK, list(silos))
        coordinator.agree()
        self.cohort.open_session({name: SessionSpec("s", PLAN, 0, coordinator.layout.digest) for name in silos})
        self.vector = np.zeros(coordinator.layout.num_parameters, np.float32)
        self.cohort.submit("s", 1, {"far": self.vector})
        [ref] = self.cohort._pending
        while not Path("at work").exists():
            time.sleep(0.01)
        raylet(self.cluster.head_node, signal.SIGSTOP)  # it would fetch the answer at once
        ray.wait([ref], fetch_local=False)

    def told(self, timeout: float) -> str:
        answer = self.cohort.next_event(timeout)
        return f"{answer.silo} answered" if isinstance(answer, Arrived) else str(answer)


def tell(*heard: object) -> None:
    print("HEARD", *heard)  # Ray prints, too


def raylet(node, number: signal.Signals) -> None:
    for process in node.all_processes["raylet"]:
        process.process.send_signal(number)


def lost(scene: Scene) -> None:
    raylet(scene.south, signal.SIGKILL)
    raylet(scene.cluster.head_node, signal.SIGCONT)
    tell(scene.told(60.0))
    scene.cohort.submit("s", 2, {"far": scene.vector})
    tell(scene.told(60.0))
    tell(scene.cohort.evaluate("s", ["far"], {"m": scene.vector}), scene.cohort.query("q", {"far": ()}))


def held(scene: Scene) -> None:
    raylet(scene.south, signal.SIGSTOP)
    raylet(scene.cluster.head_node, signal.SIGCONT)
    scene.cohort.submit("s", 1, {"near": scene.vector})
    tell(scene.told(60.0))
    tell(scene.told(0.5))
    raylet(scene.south, signal.SIGCONT)
    tell(scene.told(60.0))


if __name__ == "__main__":
    with cluster(labels={"site": "head"}, **SMALL) as made:
        {"lost": lost, "held": held}[sys.argv[1]](Scene(made))
        ray.shutdown()
