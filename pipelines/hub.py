"""The hub of a federation: where sites that their owners run dial in, for the duration of a block."""

import contextlib
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray_fed.config import require

if TYPE_CHECKING:
    from ray_fed.sites.hub import Hub


@dataclass(frozen=True)
class HubSection:
    """Where sites that their owners run dial in."""

    listen: str = "0.0.0.0:7443"
    """HOST:PORT of this machine, the one port that is to be open."""
    tls: str = "~/ray-fed/tls"
    """Folder with this machine's node.crt and node.key, and the authority's ca.crt (`ray-fed cluster certs`)."""
    sites: Any = None
    """Site -> hash of its public key, as its owner reads it out (`ray-fed site init` prints it). Another key is
    refused."""

    def __post_init__(self) -> None:
        require(re.fullmatch(r".+:[0-9]{1,5}", self.listen) is not None, f"listen={self.listen!r} must be HOST:PORT")
        require(isinstance(self.sites or {}, Mapping), f"sites={self.sites!r} must be a mapping of sites to their keys")
        for site, key in self.pins.items():
            fits = re.fullmatch(r"[0-9a-f]{64}", key) is not None
            require(fits, f"sites: {site}={key!r} must be the hash of the site's key, 64 digits 0-9 a-f in quotes")

    @property
    def pins(self) -> dict[str, str]:
        return {str(site): str(key) for site, key in (self.sites or {}).items()}


@contextlib.contextmanager
def listening(section: HubSection) -> Iterator["Hub"]:
    """Yield the hub; say where it is and which key it has, for the sites' owners to compare."""
    from ray_fed.sites.hub import Hub
    from ray_fed.sites.link import Certificates

    own = Certificates.read(Path(section.tls))
    with Hub(section.listen, own, section.pins) as hub:
        sites = ", ".join(sorted(section.pins))
        print(f"the hub listens at port {hub.port} for the sites {sites}; its key is {own.key_hash()}", file=sys.stderr)
        yield hub
