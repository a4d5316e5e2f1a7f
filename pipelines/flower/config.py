"""What can be chosen of `ray-fed flower`."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class FlowerConfig:
    """What can be chosen of a run of a Flower app; all else is the app's own."""

    silos: int | None = None
    """How many; if not given, as many as the app's folder says, or 10."""
    cohort: Literal["ray", "local"] = "ray"
    """ray makes every silo an actor; local keeps all silos in this process, with the same results."""
    address: str = "local"
    """Ray cluster to join; local starts a private one."""
    seed: int = 0
    """Of the global generators of server and clients."""
    round_timeout: float | None = None
    """Most seconds for an answer of a silo; a shorter limit of the app's own counts."""
    out: str | None = None
    """Folder of the run: history, curves, model, the silos' ledgers; none keeps nothing."""
