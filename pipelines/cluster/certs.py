"""`ray-fed cluster certs`: an authority and the machines' certificates."""

from collections.abc import Sequence
from pathlib import Path

from ray_fed.config import require
from ray_fed.deployment.certificates import Node, write_certificates


def run(nodes: Sequence[str], out: str, days: int, renew: bool, authority: str | None) -> int:
    """Write the folders and say what is to be done with them."""
    require(days > 0, f"days={days} must be positive")
    folder = Path(authority) if authority else Path(out)
    made = write_certificates(Path(out), [Node.parse(text) for text in nodes], days, renew, folder)
    for path in made:
        print(f"{path}/  bring it to {path.name} as ~/ray-fed/tls")
    print(f"{folder / 'ca.key'}  signs further machines: keep it here, and nowhere else")
    return 0
