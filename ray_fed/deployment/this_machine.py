"""One machine before there is a cluster: what would break a run on it. No Ray is started."""

import ctypes
import platform
import socket
from collections.abc import Iterator, Mapping

from ray_fed.deployment.checks import Finding, NodeReport, machine_findings
from ray_fed.deployment.machine import describe_machine
from ray_fed.reporting.environment import gpu_names

PORTS: Mapping[int, str] = {6379: "cluster state (ray start --port)", 8265: "dashboard (--dashboard-port)"}
"""Those that `ray start --head` takes if it is told no other."""
TESTED_PYTHONS = ((3, 11), (3, 13))
"""The first and the last that the tests have run on, or that all dependencies have wheels for."""
UNSYNCHRONISED = 0x40
"""STA_UNSYNC of Linux: nothing keeps the clock."""


def report() -> NodeReport:
    """Return what is known of this machine."""
    return NodeReport(platform.node(), "this machine", "", float(len(gpu_names())), describe_machine(ask_torch=True))


def findings_here(node: NodeReport) -> list[Finding]:
    """Return what is wrong with this machine, failures first."""
    assert node.machine is not None
    found = [*machine_findings(node), *_of_python(node.name), *_of_ports(node.name), *_of_clock(node.name)]
    return sorted(found, key=lambda finding: finding.severity)


def _of_python(name: str) -> Iterator[Finding]:
    here, (first, last) = tuple(map(int, platform.python_version_tuple()[:2])), TESTED_PYTHONS
    if not first <= here <= last:
        wanted = " to ".join(".".join(map(str, version)) for version in TESTED_PYTHONS)
        yield Finding("warning", name, f"Python {platform.python_version()}; ray-fed is tested with {wanted}")


def _of_ports(name: str) -> Iterator[Finding]:
    for port, what in PORTS.items():
        if not _is_free(port):
            message = f"port {port} is in use: {what}; another Ray, or another program: name a free one"
            yield Finding("warning", name, message)


def _is_free(port: int) -> bool:
    with socket.socket() as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            tried.bind(("", port))
        except OSError:
            return False
    return True


def _of_clock(name: str) -> Iterator[Finding]:
    """Where the system tells: whether chrony, ntpd or timesyncd keeps its clock."""
    status = clock_status()
    if status is not None and status & UNSYNCHRONISED:
        message = "nothing keeps its clock; times of ledgers and certificates drift: let chrony or ntpd keep it"
        yield Finding("warning", name, message)


def clock_status() -> int | None:
    """Return the kernel's clock status bits (adjtimex, `struct timex`), None where there are none."""
    timex = ctypes.create_string_buffer(512)
    try:
        code = ctypes.CDLL(None).adjtimex(timex)
    except (OSError, AttributeError):
        return None
    if code < 0:
        return None
    # modes (int, padded), offset, freq, maxerror, esterror (long each), status (int)
    return ctypes.c_int.from_buffer(timex, 5 * ctypes.sizeof(ctypes.c_long)).value
