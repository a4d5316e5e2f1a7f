"""`ray-fed cluster certs`: an authority and the machines' certificates."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ray_fed.config import require
from ray_fed.deployment.certificates import Node, write_certificates


def run(options: Mapping[str, Any], _command_line: Sequence[str]) -> int:
    """Write the folders and say what is to be done with them."""
    days, out = options["days"], Path(options["out"])
    require(days > 0, f"days={days} must be positive")
    folder = Path(options["authority"] or out)
    made = write_certificates(out, [Node.parse(text) for text in options["nodes"]], days, options["renew"], folder)
    for path in made:
        print(f"{path}/  bring it to {path.name} as ~/ray-fed/tls")
    print(f"{folder / 'ca.key'}  signs further machines: keep it here, and nowhere else")
    return 0
