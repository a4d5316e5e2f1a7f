"""The hub of a federation: where sites that their owners run dial in, for the duration of a block."""

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ray_fed.sites.site_file import Listening

if TYPE_CHECKING:
    from ray_fed.sites.hub import Hub


@dataclass(frozen=True)
class HubSection(Listening):
    """The coordinator's hub."""

    tls: str = "~/ray-fed/tls"
    """Folder with this machine's node.crt and node.key, and the authority's ca.crt (`ray-fed cluster certs`)."""


@contextlib.contextmanager
def listening(section: Listening, tls: Path) -> Iterator["Hub"]:
    """Yield the hub; say where it is and which key it has, for the sites' owners to compare."""
    from ray_fed.sites.hub import Hub
    from ray_fed.sites.link import Certificates

    own = Certificates.read(tls)
    with Hub(section.listen, own, section.pins) as hub:
        sites = ", ".join(sorted(section.pins))
        print(f"the hub listens at port {hub.port} for the sites {sites}; its key is {own.key_hash()}", file=sys.stderr)
        yield hub
