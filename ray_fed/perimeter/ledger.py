"""An append-only file of hash-chained, signed lines: what left a silo, or what a coordinator received.

    {"number": 1, "previous": "0000...", "kind": "opening", "writer": ..., "public_key": ..., ...}
    {"number": 2, "previous": "<SHA-256 of line 1>", "kind": "update", ...}
    {"number": 3, "previous": "<SHA-256 of line 2>", "kind": "signature", "signature": ...}

    {"number": 9, "previous": "<SHA-256 of line 8>", "kind": "closing", "lines": 8, "messages": ..., "rounds": ...}

`previous` is the SHA-256 of the line before, so a line that is changed, dropped, added or moved breaks the chain right
there. A signature line signs itself without the signature, so its own `previous` and with it everything above: after
every `SIGN_EVERY` lines, and whenever the writer calls `sign`. Lines are written with one system call each, so a killed
process leaves whole lines only; a machine that loses its power may leave a torn one. It is cut off, and the next line
says how many bytes were. A closing line, signed, counts what stands above it: a ledger without one at its end goes on,
or was cut.

The line of a message is its `MessageDigest`. Sender and receiver compute it from the message itself, so that both ends
can be compared; no value of a row is in it.
"""

import hashlib
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from ray_fed.errors import DataError
from ray_fed.privacy.signing import SigningKey
from ray_fed.reading import parse_json

FORMAT_NAME = "ray-fed ledger"
FORMAT_VERSION = 2
"""Ledgers of version 1 have no closing line."""
FORMAT = f"{FORMAT_NAME} {FORMAT_VERSION}"
SIGN_EVERY = 64
"""A signature costs 30 µs, a line less than 20: one signature for so many lines is lost in the noise."""
GENESIS = "0" * 64
CLOSING = "closing"
"""Kind of the line that counts all lines above it."""
_JSON = json.JSONEncoder(separators=(",", ":"), allow_nan=False)
"""Made once: `json.dumps` makes one for every line."""


@dataclass(frozen=True)
class MessageDigest:
    """One message that left or arrived, in numbers."""

    kind: str
    names: tuple[str, ...]
    """Names that the message carries: its tensors, metrics or fields."""
    num_bytes: int
    """Bytes of all its fields: arrays, texts with their names, eight for each number."""
    sha256: str
    """Of the vector's bytes for an update, else of the canonical text."""
    norm: float | None = None
    """Euclidean length of its vector."""
    num_examples: int | None = None
    """Rows behind it, where it says so."""
    message_sha256: str = ""
    """Of the canonical text of all its fields, in which each array stands as the hash of its bytes."""

    def facts(self) -> dict[str, object]:
        """Return the fields as a line of a ledger has them."""
        return {
            "kind": self.kind, "names": list(self.names), "bytes": self.num_bytes, "norm": self.norm,
            "sha256": self.sha256, "message_sha256": self.message_sha256, "num_examples": self.num_examples,
        }  # fmt: skip


def vector_digest(vector: np.ndarray) -> str:
    """Return the SHA-256 of a vector's bytes as they travel: float32, little endian, contiguous."""
    return hashlib.sha256(np.ascontiguousarray(vector, np.dtype("<f4")).reshape(-1).data).hexdigest()


def tensors_digest(arrays: Mapping[str, np.ndarray]) -> str:
    """Return the SHA-256 of named tensors in the order of their names, whatever file they come from."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(f"{name}\0{list(arrays[name].shape)}\0".encode())
        digest.update(np.ascontiguousarray(arrays[name], np.dtype("<f4")).reshape(-1).data)
    return digest.hexdigest()


def message_digest(
    kind: str,
    message: object,
    names: tuple[str, ...],
    num_examples: int | None = None,
    norm: float | None = None,
    content: str = "",
) -> MessageDigest:
    """Return the digest of a message: it counts and covers every field. `content` is the hash of its one array, where
    that has a name of its own in a ledger."""
    whole = hashlib.sha256(canonical_text(message).encode()).hexdigest()
    return MessageDigest(kind, names, bytes_of(message), content or whole, norm, num_examples, whole)


def canonical_text(message: object) -> str:
    """Return a message as one text that is equal for equal messages; floats by their bits, arrays by their hash."""
    return json.dumps(_plain(message), sort_keys=True, separators=(",", ":"))


def bytes_of(value: Any) -> int:
    """Return the bytes of all that a message holds: arrays, texts with their names, eight for each number. A packed
    update counts its code in the vector's place."""
    if isinstance(value, np.ndarray):
        return value.nbytes
    if isinstance(value, str | bytes):
        return len(value.encode() if isinstance(value, str) else value)
    if isinstance(value, Mapping):
        return sum(bytes_of(key) + bytes_of(part) for key, part in value.items())
    if isinstance(value, list | tuple):
        return sum(map(bytes_of, value))
    if is_dataclass(value):
        unsent = "vector" if getattr(value, "code", None) is not None else ""
        return sum(bytes_of(getattr(value, field.name)) for field in fields(value) if field.name != unsent)
    return 0 if value is None else 8


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return {"": type(value).__name__, **{field.name: _plain(getattr(value, field.name)) for field in fields(value)}}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.ndarray):
        digest = hashlib.sha256(np.ascontiguousarray(value).reshape(-1).data).hexdigest()
        return [value.dtype.str, list(value.shape), digest]
    if isinstance(value, float):
        return value.hex()
    if value is None or isinstance(value, bool | int | str):
        return value
    raise TypeError(f"a {type(value).__name__} is no part of a message")


class LedgerCounts:
    """What the lines of a ledger come to; writer and reader count alike."""

    def __init__(self) -> None:
        self.lines, self.bytes = 0, 0
        self.messages: Counter[str] = Counter()
        """Kind -> lines."""
        self.rounds: dict[str, int] = {}
        """Session -> its last round."""

    def add(self, facts: Mapping[str, Any]) -> None:
        """Count one line."""
        self.lines += 1
        self.bytes += facts.get("bytes") or 0
        self.messages[facts["kind"]] += 1
        session = facts.get("session")
        if session:
            self.rounds[session] = max(self.rounds.get(session, 0), facts.get("round") or 0)

    def facts(self) -> dict[str, object]:
        """Return the counts as a closing line has them."""
        return {"lines": self.lines, "messages": dict(self.messages), "rounds": dict(self.rounds)}


class Ledger:
    """The writer of one file. Opening an existing file continues its chain."""

    def __init__(
        self,
        path: Path,
        key: SigningKey,
        opening: Mapping[str, object],
        clock: Callable[[], float] = time.time,
        sign_every: int = SIGN_EVERY,
    ):
        self.path, self._key, self._clock, self._sign_every = path, key, clock, sign_every
        self.head, self.counts, self._unsigned, self._closed_at = GENESIS, LedgerCounts(), 0, 0
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

    @property
    def number(self) -> int:
        """Number of the last line."""
        return self.counts.lines

    @property
    def total(self) -> int:
        """Bytes of all messages."""
        return self.counts.bytes

    def write(self, facts: Mapping[str, object]) -> int:
        """Append a line and return its number. `total` grows by the line's `bytes`."""
        number = self._write(self._framed(facts))
        self._unsigned += 1
        if self._unsigned >= self._sign_every:
            self.sign()
        return number

    def _framed(self, facts: Mapping[str, object]) -> dict[str, object]:
        return {"number": self.number + 1, "previous": self.head, "time": round(self._clock(), 6), **facts}

    def _write(self, framed: Mapping[str, object]) -> int:
        line = to_line(framed)
        self._append(line + b"\n")
        self.counts.add(framed)
        self.head = line_digest(line)
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

    def write_closing(self, facts: Mapping[str, object] = MappingProxyType({})) -> None:
        """Count the lines so far in a signed one, with further facts; nothing where the last such line still holds."""
        if self._closed_at != self.number:
            self.write({"kind": CLOSING, **self.counts.facts(), **facts})
            self.sign()
            self._closed_at = self.number

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
            for line in lines:
                self.counts.add(parse_json(line, self.path))
        except (DataError, KeyError, AttributeError, TypeError) as error:
            raise DataError(f"{self.path} is damaged ({error}); move it away to have a new one begun") from error
        if lines:
            self.head = line_digest(lines[-1])
        return len(content) - whole


def to_line(facts: Mapping[str, Any]) -> bytes:
    """Return facts as one line of strict JSON."""
    return _JSON.encode(facts).encode()


def line_digest(line: bytes) -> str:
    """Return the SHA-256 of a line without its end."""
    return hashlib.sha256(line).hexdigest()
