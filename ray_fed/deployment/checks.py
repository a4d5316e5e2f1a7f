"""What would break a run on a cluster, or weaken it, judged from what its machines say. Facts in, findings out."""

import ipaddress
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import isnan
from typing import Literal

from ray_fed.deployment.machine import Machine

MB, GB = 10**6, 10**9
SHM_LEAST, SHM_ENOUGH = 32 * MB, 256 * MB
DISK_ENOUGH = 5 * GB
DISK_FULL = 0.95
"""Share in use from which Ray makes no more objects on a disk (its local_fs_capacity_threshold)."""
CLOCK_NOTED_S, CLOCK_BROKEN_S = 1.0, 3600.0
"""Times of ledgers and histories cannot be compared across sites beyond the first; beyond the second, fresh
certificates do not count yet."""
CERTIFICATE_ENDS_SOON_DAYS = 14.0


@dataclass(frozen=True)
class Link:
    """The network link between the checking process and a node."""

    round_trip_s: float
    """Median of small calls."""
    clock_offset_s: float
    """The node's clock minus ours."""
    to_node: float
    """Bytes per second."""
    from_node: float
    """Bytes per second."""


@dataclass(frozen=True)
class NodeReport:
    """What is known of one node."""

    name: str
    address: str
    site: str
    num_gpus: float
    """GPUs the node offers to Ray."""
    machine: Machine | None = None
    link: Link | None = None
    trouble: str = ""
    """Why there is no more to know."""


@dataclass(frozen=True)
class Finding:
    """One thing a user should know. A failure would break the run or open the cluster; a warning would not."""

    severity: Literal["failure", "warning"]
    where: str
    message: str

    def __str__(self) -> str:
        return f"{self.severity}: {self.where}: {self.message}"


def findings(nodes: Sequence[NodeReport], here: Machine, ships_code: bool = False) -> list[Finding]:
    """Return what is wrong with the nodes, failures first. `here` is the driver's machine, which others must equal.

    ships_code: runs take the driver's ray-fed along instead of what is installed at the nodes.
    """
    found = [finding for node in nodes for finding in _of_node(node, here, ships_code)]
    found += _of_protection(nodes, here)
    return sorted(found, key=lambda finding: finding.severity)


def _of_node(node: NodeReport, here: Machine, ships_code: bool) -> Iterator[Finding]:
    if node.machine is None:
        yield Finding("failure", node.name, node.trouble or "it did not answer")
        return
    yield from _of_versions(node.name, node.machine, here, ships_code)
    yield from machine_findings(node)
    if node.link:
        yield from _of_clock(node.name, node.link.clock_offset_s)
    for path in node.machine.missing:
        yield Finding(
            "failure", node.name, f"a silo of site '{node.site}' is to read {path}, which is not readable here"
        )


def machine_findings(node: NodeReport) -> Iterator[Finding]:
    """Yield what is wrong with a machine for itself."""
    assert node.machine is not None
    yield from _of_room(node.name, node.machine)
    yield from _of_gpus(node, node.machine)
    yield from _of_certificate(node.name, node.machine)


def _of_versions(name: str, machine: Machine, here: Machine, ships_code: bool) -> Iterator[Finding]:
    for package, wanted in here.versions.items():
        there = machine.versions.get(package)
        if there == wanted:
            continue
        if there is None and package != "ray-fed":
            yield Finding("failure", name, f"{package} is not installed; the driver has {wanted}")
        elif _must_equal(package, there, wanted):
            yield Finding(
                "failure", name, f"{package} {there}, the driver has {wanted}; install the same at every site"
            )
        elif package != "ray-fed":
            message = f"{package} {there}, the driver has {wanted}; last bits of results may differ"
            yield Finding("warning", name, message)
        else:
            message = f"ray-fed {there or 'not installed'}, the driver has {wanted}; "
            if ships_code:
                yield Finding("warning", name, f"{message}its code is sent along (RAY_FED_SHIP_CODE)")
            else:
                yield Finding("failure", name, f"{message}install the same wheel, or set RAY_FED_SHIP_CODE=yes")
    if machine.tables != here.tables:
        message = f"element tables {machine.tables}, the driver has {here.tables}; the silo would refuse to take part"
        yield Finding("failure", name, f"{message}; install the same ray-fed at every site")


def _must_equal(package: str, there: str | None, wanted: str | None) -> bool:
    """Whether a difference breaks messages: Ray's whole version, Python's first two numbers, NumPy's first."""
    counted = {"ray": 99, "python": 2, "numpy": 1}.get(package, 0)
    return (there or "").split(".")[:counted] != (wanted or "").split(".")[:counted]


def _of_room(name: str, machine: Machine) -> Iterator[Finding]:
    if machine.shm_free < SHM_ENOUGH:
        severity = "failure" if machine.shm_free < SHM_LEAST else "warning"
        message = f"{machine.shm_free / MB:.0f} MB of shared memory free; enlarge /dev/shm (containers: --shm-size)"
        yield Finding(severity, name, message)
    if machine.disk_used > DISK_FULL:
        message = f"disk {100 * machine.disk_used:.0f} % full; Ray makes no objects beyond {100 * DISK_FULL:.0f} %"
        yield Finding("failure", name, f"{message}: free some space")
    elif machine.disk_free < DISK_ENOUGH:
        yield Finding("warning", name, f"{machine.disk_free / GB:.1f} GB of disk free for logs and spilling")


def _of_gpus(node: NodeReport, machine: Machine) -> Iterator[Finding]:
    if node.num_gpus > machine.gpus_seen:
        message = f"offers {node.num_gpus:g} GPU to Ray, its graphics driver lists {machine.gpus_seen}"
        yield Finding("failure", node.name, f"{message}; check nvidia-smi there, or start it with --num-gpus=0")
    elif node.num_gpus and machine.torch_has_gpu is False:
        yield Finding(
            "failure", node.name, "torch cannot use its GPU; install a CUDA build of torch that fits its driver"
        )


def _of_certificate(name: str, machine: Machine) -> Iterator[Finding]:
    days = machine.certificate_days
    if days is None:
        return
    if isnan(days):
        yield Finding("failure", name, "its certificate cannot be read; see RAY_TLS_SERVER_CERT there")
    elif days < CERTIFICATE_ENDS_SOON_DAYS:
        severity, message = ("failure", "has ended") if days < 0 else ("warning", f"ends in {days:.0f} days")
        yield Finding(severity, name, f"its certificate {message}; renew it: ray-fed cluster certs --renew")


def _of_clock(name: str, offset_s: float) -> Iterator[Finding]:
    if abs(offset_s) > CLOCK_NOTED_S:
        severity = "failure" if abs(offset_s) > CLOCK_BROKEN_S else "warning"
        where = "ahead" if offset_s > 0 else "behind"
        yield Finding(severity, name, f"its clock is {abs(offset_s):.1f} s {where}; let chrony or ntpd keep it")


def _of_protection(nodes: Sequence[NodeReport], here: Machine) -> Iterator[Finding]:
    """A cluster that nobody else can reach needs neither token nor TLS."""
    reachable = [node for node in nodes if not _is_loopback(node.address)]
    machines = [here, *(node.machine for node in nodes if node.machine)]
    if not reachable:
        return
    if any(machine.auth_mode != "token" for machine in machines):
        message = "no token: whoever reaches its ports can run code at every site; set RAY_AUTH_MODE=token everywhere"
        yield Finding("failure", "cluster", message)
    if len({node.address for node in nodes}) > 1 and not all(machine.has_tls for machine in machines):
        message = "no TLS: the token and all parameters cross the network readable; see `ray-fed cluster certs`"
        yield Finding("warning", "cluster", message)


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"
