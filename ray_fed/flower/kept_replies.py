"""Every answer of a run, on the coordinator's disk until the run is complete: what lets it go on after a kill.

A ServerApp is a program: where it stands cannot be written down, but what it was told can. Run again, it is told the
same, sends the same, and comes to where it stood without a silo computing anything twice. One that sends something else
than before (a clock, an unseeded generator of its own) is found out by the digest of its messages.

    file SILO/NUMBER.reply    digest of the message (64 characters), E or R, the error's words or the records
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ray_fed.errors import DataError
from ray_fed.federation.messages import Records
from ray_fed.flower.records import content_of, plain_records, record_dict, record_dict_of
from ray_fed.reporting.writing import write_atomically

DIGEST = 64


@dataclass(frozen=True)
class Outcome:
    """What became of a message: records, or an error."""

    records: Records = field(default_factory=dict, repr=False)
    error: str = ""
    is_late: bool = False
    """Whether there was no answer in time."""


class KeptReplies:
    """The answers of one run, in one folder."""

    def __init__(self, folder: Path):
        self.folder = folder

    def _path(self, silo: str, number: int) -> Path:
        return self.folder / silo / f"{number}.reply"

    def keep(self, silo: str, number: int, digest: str, outcome: Outcome) -> None:
        told = b"E" + outcome.error.encode() if outcome.error else b"R" + _content(outcome)
        write_atomically(self._path(silo, number), digest.encode() + told, durable=False)

    def find(self, silo: str, number: int, digest: str) -> Outcome | None:
        """Return the answer to a message; None where there is none. DataError where it answered another message."""
        path = self._path(silo, number)
        if not path.is_file():
            return None
        content = path.read_bytes()
        if content[:DIGEST] != digest.encode():
            differs = f"message {number} to silo '{silo}' is another one than before the run was broken off"
            raise DataError(f"{differs}: this ServerApp depends on a clock or an unseeded generator; begin a new run")
        if content[DIGEST : DIGEST + 1] == b"E":
            return Outcome(error=content[DIGEST + 1 :].decode())
        return Outcome(plain_records(record_dict_of(np.frombuffer(content[DIGEST + 1 :], np.uint8))))


def _content(outcome: Outcome) -> bytes:
    return content_of(record_dict(outcome.records)).tobytes()
