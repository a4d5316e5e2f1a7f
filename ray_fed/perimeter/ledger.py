"""An append-only file of hash-chained, signed lines: what passed a silo's boundary, or what a coordinator received.

    {"number": 1, "previous": "0000...", "kind": "opening", "writer": ..., "public_key": ..., ...}
    {"number": 2, "previous": "<SHA-256 of line 1>", "kind": "update", ...}
    {"number": 3, "previous": "<SHA-256 of line 2>", "kind": "signature", "signature": ...}

`previous` is the SHA-256 of the line before, so a line that is changed, dropped, added or moved breaks the chain right
there. A signature line signs itself without the signature, so its own `previous` and with it everything above: after
every `SIGN_EVERY` lines, and whenever the writer says so. Lines are written with one system call each, so a killed
process leaves whole lines only; a machine that loses its power may leave a torn one, which is cut off and said so.
"""

import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ray_fed.errors import DataError
from ray_fed.privacy.signing import SigningKey

FORMAT = "ray-fed ledger 1"
SIGN_EVERY = 64
"""A signature costs 30 µs, a line less than 20: one signature for so many lines is lost in the noise."""
GENESIS = "0" * 64
_JSON = json.JSONEncoder(separators=(",", ":"), allow_nan=False)
"""Made once: `json.dumps` makes one for every line."""


class Ledger:
    """The writer of one file. Opening an existing file goes on with its chain."""

    def __init__(
        self,
        path: Path,
        key: SigningKey,
        opening: Mapping[str, object],
        clock: Callable[[], float] = time.time,
        sign_every: int = SIGN_EVERY,
    ):
        self.path, self._key, self._clock, self._sign_every = path, key, clock, sign_every
        self.number, self.head, self.total, self._unsigned = 0, GENESIS, 0, 0
        path.parent.mkdir(exist_ok=True, mode=0o700)  # a folder further up that was removed stays removed
        torn = self._continue()
        self._handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        event = "reopening" if self.number else "opening"
        cut = {"torn_bytes_cut": torn} if torn else {}
        self.write({"kind": event, "format": FORMAT, "public_key": key.public, **opening, **cut})
        self.sign()

    @property
    def public_key(self) -> str:
        return self._key.public

    def write(self, facts: Mapping[str, object]) -> int:
        """Append a line and return its number. `total` grows by the line's `bytes`."""
        number = self._write(self._framed(facts))
        self.total += int(facts.get("bytes") or 0)  # type: ignore[call-overload]
        self._unsigned += 1
        if self._unsigned >= self._sign_every:
            self.sign()
        return number

    def _framed(self, facts: Mapping[str, object]) -> dict[str, object]:
        return {"number": self.number + 1, "previous": self.head, "time": round(self._clock(), 6), **facts}

    def _write(self, framed: Mapping[str, object]) -> int:
        line = to_line(framed)
        self._append(line + b"\n")
        self.number, self.head = self.number + 1, line_digest(line)
        return self.number

    def _append(self, line: bytes) -> None:
        try:
            written = os.write(self._handle, line)
        except OSError as error:
            raise DataError(f"{self.path}: {error.strerror}; nothing leaves without a line") from error
        if written != len(line):
            raise DataError(f"{self.path}: a line could not be written whole; is the disk full?")

    def sign(self) -> None:
        """Sign everything so far, if there is anything new."""
        if self._unsigned == 0:
            return
        framed = self._framed({"kind": "signature"})
        self._write({**framed, "signature": self._key.sign(to_line(framed))})
        self._unsigned = 0

    def close(self) -> None:
        """Sign and let go of the file."""
        if self._handle >= 0:
            self.sign()
            os.close(self._handle)
            self._handle = -1

    def _continue(self) -> int:
        """Take up the chain of an earlier process; returns how many bytes of a torn last line were cut off."""
        if not self.path.exists():
            return 0
        content = self.path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            os.truncate(self.path, whole)
        lines = content[:whole].splitlines()
        try:
            self.total = sum(int(json.loads(line).get("bytes") or 0) for line in lines)
        except (ValueError, AttributeError, TypeError) as error:
            raise DataError(f"{self.path} is damaged ({error}); move it away to have a new one begun") from error
        if lines:
            self.number, self.head = len(lines), line_digest(lines[-1])
        return len(content) - whole


def to_line(facts: Mapping[str, Any]) -> bytes:
    """Return facts as one line of strict JSON."""
    return _JSON.encode(facts).encode()


def line_digest(line: bytes) -> str:
    """Return the SHA-256 of a line without its end."""
    return hashlib.sha256(line).hexdigest()
