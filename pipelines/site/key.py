"""`ray-fed site key`: the hash by which the other side knows a machine's certificate."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ray_fed.config import at_home
from ray_fed.sites.link import Certificates


def run(options: Mapping[str, Any], _command_line: Sequence[str]) -> int:
    """Print the hash of the public key of node.crt in a folder."""
    print(Certificates.read(Path(at_home(options["folder"]))).key_hash())
    return 0
