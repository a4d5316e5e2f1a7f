"""`ray-fed site relay`: a hub for a region or a consortium, which is one site of the coordinator's hub."""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from pipelines.hub import listening
from pipelines.site.check import address_of
from pipelines.site.start import say_until_interrupted, write_log
from ray_fed.config import at_home
from ray_fed.perimeter.policy import require_site_file, site_path
from ray_fed.sites.hub import Hub
from ray_fed.sites.link import Certificates, listed
from ray_fed.sites.relay import RelayAgent
from ray_fed.sites.site_file import RelayFile, read_relay_file


def run(options: Mapping[str, Any], _command_line: Sequence[str]) -> int:
    """Serve; say who is connected, who is waited for and what was added up. Ctrl-C ends it."""
    path = site_path() if options["file"] is None else require_site_file(at_home(options["file"]))
    file = read_relay_file(path)
    own = Certificates.read(file.hub.tls_folder)
    print(f"hub '{file.name}': log in {write_log(file.log_folder)}", file=sys.stderr)
    with listening(file.relay, file.hub.tls_folder) as lower:
        _serve(RelayAgent(file.name, address_of(file.hub), own, lower, file.relay.patience), file)
    return 0


def _serve(agent: RelayAgent, file: RelayFile) -> None:
    print(f"dialling {file.hub.address}; Ctrl-C ends the hub", file=sys.stderr)
    agent.start()
    try:
        say_until_interrupted(lambda: f"{_connections(agent.lower)}; added up so far: {agent.sums}")
    finally:
        agent.stop()
        print(f"hub '{file.name}' has ended: {agent.sums}", file=sys.stderr)


def _connections(hub: Hub) -> str:
    there = [site for site in sorted(hub.sites) if hub.is_connected(site)]
    missing = sorted(hub.sites - set(there))
    return f"connected: {listed(there) or 'none'}" + (f"; not yet: {listed(missing)}" if missing else "")
