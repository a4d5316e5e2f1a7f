"""`ray-fed doctor`: two tables about this machine or the nodes of a cluster, and what is wrong with them."""

from collections.abc import Callable, Mapping, Sequence
from math import isnan
from typing import Any, TypeVar

from pipelines.cluster.config import DoctorConfig
from ray_fed.deployment.checks import Finding, Link, NodeReport, findings
from ray_fed.deployment.machine import Machine, describe_machine
from ray_fed.errors import PlacementError
from ray_fed.federation.task import SiloSpec
from ray_fed.materials.databases.kinds import is_on_disk
from ray_fed.materials.property_task import CrystalRows
from ray_fed.reporting.terminal import aligned

UNKNOWN = "-"
Known = TypeVar("Known")


def run(options: Mapping[str, Any], _command_line: Sequence[str]) -> int:
    """Look at this machine or visit the nodes, print what they are like and what is wrong; 1 when a run would break."""
    config = DoctorConfig(**options)
    if config.address is None:
        return _look_here()
    silos = _silos_of(config.federation)
    from actors.session import session, ships_code

    # Its own code goes along: it has to look at nodes on which another ray-fed is installed, or none.
    with session(config.address, ship_code=True):
        from actors import cluster_check

        nodes = cluster_check.check_nodes(_paths_at(silos), round(config.megabytes * 1e6), config.timeout)
        found = [*findings(nodes, describe_machine(), ships_code()), *_of_places(silos)]
    print(software_table(nodes))
    print(machine_table(nodes))
    return conclusion(found, len(nodes), len(silos))


def _look_here() -> int:
    from ray_fed.deployment.this_machine import findings_here, report

    here = report()
    print(software_table([here]))
    print(machine_table([here]))
    return conclusion(findings_here(here), 1, 0)


def _silos_of(federation: str | None) -> tuple[SiloSpec, ...]:
    if federation is None:
        return ()
    from pipelines.training.setup import resolve

    return resolve({"federation": federation}).silos


def _paths_at(silos: Sequence[SiloSpec]) -> dict[str, list[str]]:
    """Return site -> paths its silos will read."""
    paths: dict[str, list[str]] = {}
    for silo in silos:
        assert isinstance(silo.source, CrystalRows)
        if is_on_disk(silo.source.source.path):
            paths.setdefault(silo.site, []).append(silo.source.source.path)
    return paths


def _of_places(silos: Sequence[SiloSpec]) -> list[Finding]:
    """Return one finding for each site that cannot hold its silos."""
    from actors.placement import offers, settle

    found, nodes = [], offers()
    for site in sorted({silo.site for silo in silos}):
        try:
            settle([silo for silo in silos if silo.site == site], nodes)
        except PlacementError as error:
            found.append(Finding("failure", f"site {site}" if site else "cluster", str(error)))
    return found


def software_table(nodes: Sequence[NodeReport]) -> str:
    """Return one line per node: where it stands and what is installed."""
    header = ["node", "address", "site", "ray-fed", "ray", "torch", "python", "tables"]
    rows = [[node.name, node.address, node.site or UNKNOWN, *_of(node.machine, _versions, 5)] for node in nodes]
    return aligned([header, *rows], rule=True)


def machine_table(nodes: Sequence[NodeReport]) -> str:
    """Return one line per node: what it has, how it is protected, and the way there."""
    header = ["node", "GPUs", "shm GB", "disk GB", "token", "TLS", "clock ms", "round trip ms", "to MB/s", "from MB/s"]
    rows = [[node.name, f"{node.num_gpus:g}", *_of(node.machine, _room, 4), *_of(node.link, _way, 4)] for node in nodes]
    return aligned([header, *rows], right=(1, 2, 3, 6, 7, 8, 9), rule=True)


def _of(known: Known | None, cells: Callable[[Known], list[str]], width: int) -> list[str]:
    return [UNKNOWN] * width if known is None else cells(known)


def _versions(machine: Machine) -> list[str]:
    found = [machine.versions[name] or UNKNOWN for name in ("ray-fed", "ray", "torch", "python")]
    return [*found, machine.tables]


def _room(machine: Machine) -> list[str]:
    room = [f"{size / 1e9:.1f}" for size in (machine.shm_free, machine.disk_free)]
    return [*room, "yes" if machine.auth_mode == "token" else "no", _tls(machine)]


def _tls(machine: Machine) -> str:
    days = machine.certificate_days
    if days is None:
        return "no"
    return "unreadable" if isnan(days) else f"{days:.0f} days"


def _way(link: Link) -> list[str]:
    times = [f"{1e3 * seconds:.1f}" for seconds in (link.clock_offset_s, link.round_trip_s)]
    return [*times, *(f"{speed / 1e6:,.0f}" for speed in (link.to_node, link.from_node))]


def conclusion(found: Sequence[Finding], num_nodes: int, num_silos: int) -> int:
    """Print what is wrong and return the exit code."""
    for finding in found:
        print(finding)
    failures = sum(finding.severity == "failure" for finding in found)
    held = f", {_counted(num_silos, 'silo')} placed" if num_silos and not failures else ""
    said = _counted(failures, "failure") if failures else "nothing here would break a run"
    print(f"{_counted(num_nodes, 'node')}{held}: {said}, {_counted(len(found) - failures, 'warning')}")
    return 1 if failures else 0


def _counted(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"
