"""A visitor on every node of the connected cluster: what the node is like, and the way there and back."""

import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import ray
from ray.exceptions import GetTimeoutError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ray_fed.deployment.checks import Link, NodeReport
from ray_fed.deployment.machine import Machine, describe_machine

NUM_CALLS = 9
NUM_TRANSFERS = 3


@ray.remote(num_cpus=0)
class Visitor:
    """Stands on one node while it is asked."""

    @ray.method
    def describe(self, paths: Sequence[str], ask_torch: bool) -> Machine:
        return describe_machine(paths, ask_torch)

    @ray.method
    def now(self) -> float:
        return time.time()

    @ray.method
    def take(self, array: np.ndarray) -> int:
        return array.nbytes

    @ray.method
    def give(self, num_bytes: int) -> np.ndarray:
        return np.zeros(num_bytes, np.uint8)


def check_nodes(paths_at: Mapping[str, Sequence[str]], transfer_bytes: int, timeout: float) -> list[NodeReport]:
    """Return a report of every living node, head first, then by site and name.

    paths_at: site -> paths that its silos are to read. transfer_bytes: size of the messages timed, both ways.
    timeout: seconds after which a node that does not answer is given up.
    """
    nodes = sorted((node for node in ray.nodes() if node["Alive"]), key=_place)
    names = _names(nodes)
    visitors = {node["NodeID"]: _visitor(node["NodeID"]) for node in nodes}  # they start side by side
    try:
        ids = [node["NodeID"] for node in nodes]
        return [
            _report(names[id_], node, visitors[id_], paths_at, transfer_bytes, timeout)
            for id_, node in zip(ids, nodes, strict=True)
        ]
    finally:
        for visitor in visitors.values():
            ray.kill(visitor)


def _place(node: Mapping[str, Any]) -> tuple[bool, str, str]:
    return (not _is_head(node), _site(node), node["NodeManagerHostname"])


def _is_head(node: Mapping[str, Any]) -> bool:
    return "node:__internal_head__" in node.get("Resources", {})


def _site(node: Mapping[str, Any]) -> str:
    return (node.get("Labels") or {}).get("site", "")


def _names(nodes: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Return host names; where several nodes share one, with the beginning of the node's id."""
    hosts = [node["NodeManagerHostname"] for node in nodes]
    return {
        node["NodeID"]: host if hosts.count(host) == 1 else f"{host}/{node['NodeID'][:6]}"
        for node, host in zip(nodes, hosts, strict=True)
    }


def _visitor(node_id: str) -> Any:
    return Visitor.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node_id, soft=False)).remote()


def _report(
    name: str, node: Mapping[str, Any], visitor: Any, paths_at: Mapping[str, Sequence[str]], size: int, timeout: float
) -> NodeReport:
    site, num_gpus = _site(node), node.get("Resources", {}).get("GPU", 0.0)
    known = NodeReport(name, node["NodeManagerAddress"], site, num_gpus)
    paths = [*paths_at.get(site, ()), *(paths_at.get("", ()) if site else ())]
    try:
        machine: Any = ray.get(visitor.describe.remote(paths, num_gpus > 0), timeout=timeout)
        link = _link(visitor, size, timeout)
    except GetTimeoutError:
        trouble = f"no answer within {timeout:g} s; is the way to {known.address} open in both directions?"
    except RayTaskError as error:
        trouble = f"{type(error.cause).__name__}: {error.cause}"
    except RayError as error:
        trouble = f"no process could be started there: {str(error).splitlines()[0]}"
    else:
        return NodeReport(known.name, known.address, site, num_gpus, machine, link)
    return NodeReport(known.name, known.address, site, num_gpus, trouble=trouble)


def _link(visitor: Any, size: int, timeout: float) -> Link:
    """Time small calls and large messages. The node's clock is read halfway through the quickest call."""
    calls = [_call(visitor, timeout) for _ in range(NUM_CALLS)]
    round_trip = statistics.median(seconds for seconds, _ in calls)
    _, offset = min(calls)
    there = [_sent(visitor, size, timeout) for _ in range(NUM_TRANSFERS)]
    back = [_fetched(visitor, size, timeout) for _ in range(NUM_TRANSFERS)]
    return Link(round_trip, offset, size / _net(min(there), round_trip), size / _net(min(back), round_trip))


def _call(visitor: Any, timeout: float) -> tuple[float, float]:
    started, clock = time.perf_counter(), time.time()
    there: Any = ray.get(visitor.now.remote(), timeout=timeout)
    seconds = time.perf_counter() - started
    return seconds, there - (clock + seconds / 2)


def _sent(visitor: Any, size: int, timeout: float) -> float:
    message = ray.put(np.zeros(size, np.uint8))
    started = time.perf_counter()
    ray.get(visitor.take.remote(message), timeout=timeout)
    return time.perf_counter() - started


def _fetched(visitor: Any, size: int, timeout: float) -> float:
    started = time.perf_counter()
    ray.get(visitor.give.remote(size), timeout=timeout)
    return time.perf_counter() - started


def _net(seconds: float, round_trip: float) -> float:
    """Return the seconds of a message besides those of an empty call, which can come out slower by chance."""
    return max(seconds - round_trip, 0.1 * seconds)
