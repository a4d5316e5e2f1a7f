"""What is left to be told at the end of a run: the silos' ledgers, and the coordinator's last notes."""

from collections.abc import Mapping
from dataclasses import dataclass, field

Note = Mapping[str, object]
"""One line to be, without number, time and chain."""


@dataclass(frozen=True)
class SiloLedger:
    """A silo's ledger as it handed it over."""

    content: bytes = field(repr=False)
    head: str
    """SHA-256 of its last line."""
    public_key: str


@dataclass(frozen=True)
class CollectedLedgers:
    """What is left to be told at the end of a run."""

    silos: Mapping[str, SiloLedger] = field(default_factory=dict)
    notes: tuple[Note, ...] = ()
