"""`python -m tests.integration.pretend_gpus` places silos on a cluster with four GPUs that are not there, and prints
what came: GPUs x silos -> how many actors stand, what a blocked one is told, what a GPU torch cannot use comes to."""

import json
from dataclasses import replace

from actors.session import session, set_private_token

set_private_token()

import ray  # noqa: E402

from actors import placement, waiting  # noqa: E402
from actors.federation import silo_actors  # noqa: E402
from actors.leakage import run_tasks  # noqa: E402
from actors.packing import NodeOffer, hardest_first, share  # noqa: E402
from ray_fed.errors import PlacementError  # noqa: E402
from ray_fed.federation.task import SiloSpec  # noqa: E402
from tests.synthetic import SyntheticTask, silos  # noqa: E402

GPUS = 4


@ray.remote
class Stand:
    pass


def placed(count: int) -> int:
    """Return how many of so many equal silos Ray places."""
    specs = [SiloSpec(f"silo-{number}", None) for number in range(count)]
    settled, _ = placement.settle(specs, [NodeOffer("box", "", 64.0, GPUS)])
    actors = {spec.name: Stand.options(num_gpus=spec.num_gpus, num_cpus=0).remote() for spec in hardest_first(settled)}
    late = waiting.until_ready(actors, specs, 60.0)
    for actor in actors.values():
        ray.kill(actor)
    return count - len(late)


def told() -> list[str]:
    """Return what is said of a silo that wants a GPU where others have a part of each."""
    others = {f"other-{number}": Stand.options(num_gpus=0.6, num_cpus=0).remote() for number in range(GPUS)}
    waiting.until_ready(others, [SiloSpec(name, None, 0.6) for name in others], 60.0)
    lines: list[str] = []
    blocked = Stand.options(num_gpus=1, num_cpus=0).remote()
    waiting.until_ready({"late": blocked}, [SiloSpec("late", None, 1.0, 0.0)], 1.0, lines.append, speaks_after=0.2)
    for actor in [blocked, *others.values()]:
        ray.kill(actor)
    return lines


def refused(function) -> str:
    try:
        function()
    except PlacementError as error:
        return str(error)
    return "not refused"


def unusable() -> None:
    specs = [replace(spec, num_gpus=share(4), num_cpus=0.1) for spec in silos(9)]
    with silo_actors(specs, SyntheticTask()) as actors:
        actors.open()


if __name__ == "__main__":
    with session("local", num_cpus=8, num_gpus=GPUS):
        import tests.synthetic

        ray.cloudpickle.register_pickle_by_value(tests.synthetic)
        came = {
            "placed": placed(6),
            "told": told(),
            "unusable": refused(unusable),
            "task": refused(lambda: list(run_tasks([], num_cpus=99))),
        }
    print(json.dumps(came))
