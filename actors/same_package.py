"""Every node of a cluster that we join runs the ray-fed that is installed there, which must be the driver's, too."""

import os
import sys
from collections.abc import Iterable, Mapping

import ray
from ray import cloudpickle
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ray_fed.deployment import installed
from ray_fed.errors import PlacementError

ANSWER_SECONDS = 180.0
"""A node that is busy starts a process in a minute at worst."""
REMEDY = "install the same wheel there, or set RAY_FED_SHIP_CODE=yes to send this process's code along"


def check_nodes() -> None:
    """PlacementError naming every living node of the connected cluster without the driver's package."""
    here = installed.installed_package()
    found = installed.differences(packages_of_nodes(), here)
    if found:
        raise PlacementError(f"{'; '.join(found)}; this process has ray-fed {here}: {REMEDY}")


def packages_of_nodes() -> dict[str, str | None]:
    """Return node -> what is installed there, of every living node. A node that is gone by now is left out."""
    # By value: a node without our package could not import what asks for it.
    cloudpickle.register_pickle_by_value(sys.modules[installed.__name__])
    ask = ray.remote(num_cpus=0, max_retries=0)(installed.installed_package)
    nodes = {node["NodeID"]: node for node in _living()}
    refs = {
        id_: ask.options(scheduling_strategy=NodeAffinitySchedulingStrategy(id_, soft=False)).remote() for id_ in nodes
    }
    return dict(_answers(refs, nodes))


def _living() -> list[dict]:
    return [node for node in ray.nodes() if node["Alive"]]


def _answers(refs: Mapping[str, "ray.ObjectRef"], nodes: Mapping[str, dict]) -> Iterable[tuple[str, str | None]]:
    for id_, ref in refs.items():
        name = f"{nodes[id_]['NodeManagerHostname']} ({nodes[id_]['NodeManagerAddress']}, {id_[:6]})"
        try:
            yield name, ray.get(ref, timeout=ANSWER_SECONDS)
        except GetTimeoutError as error:
            said = f"node {name} did not say within {ANSWER_SECONDS:g} s which ray-fed it has"
            raise PlacementError(f"{said}; see `ray-fed doctor`") from error
        except RayError as error:
            if id_ in {node["NodeID"] for node in _living()}:
                said = f"node {name} cannot say which ray-fed it has: {str(error).strip().splitlines()[-1]}"
                raise PlacementError(f"{said}; see `ray-fed doctor`") from error


def check_this_process(who: str) -> None:
    """PlacementError where a node that came later has another package than the driver. who: such as "silo 'north'"."""
    wanted = os.environ.get(installed.DRIVERS_VARIABLE)
    if not wanted:
        return
    there = installed.installed_package()
    if there != wanted:
        node = ray.util.get_node_ip_address()
        raise PlacementError(f"{who}: node {node} has ray-fed {there}, the driver has {wanted}: {REMEDY}")
