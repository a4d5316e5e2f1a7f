"""What a ledger keeps of a message: kind, names, bytes, norm and a SHA-256, so that both ends can compare them.

Sender and receiver compute a `MessageDigest` from the message itself; nothing in it tells a value of a row.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import numpy as np

from ray_fed.federation.messages import Metrics, SiloDescription, Update
from ray_fed.learning.standardisation import ColumnMoments


@dataclass(frozen=True)
class MessageDigest:
    """One message that passed, in numbers."""

    kind: str
    names: tuple[str, ...]
    """Names that the message carries: its tensors, metrics or fields."""
    num_bytes: int
    """Bytes of its arrays, or of its text where it has none."""
    sha256: str
    """Of the vector's bytes for an update, else of the canonical text."""
    norm: float | None = None
    """Euclidean length of its vector."""
    num_examples: int | None = None
    """Rows behind it, where it says so."""

    def facts(self) -> dict[str, object]:
        """Return the fields as a line of a ledger has them."""
        return {
            "kind": self.kind, "names": list(self.names), "bytes": self.num_bytes, "norm": self.norm,
            "sha256": self.sha256, "num_examples": self.num_examples,
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


def canonical_text(message: object) -> str:
    """Return a message as one text that is equal for equal messages; floats by their bits, arrays by their hash."""
    return json.dumps(_plain(message), sort_keys=True, separators=(",", ":"))


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        shown = {field.name: _plain(getattr(value, field.name)) for field in fields(value) if field.compare}
        return {"": type(value).__name__, **shown}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.ndarray):
        return [
            value.dtype.str,
            list(value.shape),
            hashlib.sha256(np.ascontiguousarray(value).reshape(-1).data).hexdigest(),
        ]
    if isinstance(value, float):
        return value.hex()
    return value if value is None or isinstance(value, bool | int | str) else repr(value)


def digest_of(message: object) -> MessageDigest:
    """Return the passage of a message of a kind that is known here, by `KNOWN`; TypeError for any other."""
    for kind, (cls, describe) in KNOWN.items():
        if type(message) is cls:
            return describe(kind, message)
    raise TypeError(f"a {type(message).__name__} is no message")


def size_of(message: object) -> int:
    """Return the bytes of a message as its passage counts them, without hashing an update."""
    return message.num_bytes if isinstance(message, Update) else digest_of(message).num_bytes


def _of_update(kind: str, update: Update) -> MessageDigest:
    norm = float(np.sqrt(np.dot(update.vector, update.vector)))
    names = ("vector", "loss", "num_steps")
    return MessageDigest(kind, names, update.num_bytes, vector_digest(update.vector), norm, update.num_examples)


def of_text(kind: str, message: object, names: tuple[str, ...], num_examples: int | None = None) -> MessageDigest:
    """Return the passage of a small message: its canonical text is hashed."""
    text = canonical_text(message).encode()
    return MessageDigest(kind, names, len(text), hashlib.sha256(text).hexdigest(), None, num_examples)


def _of_description(kind: str, said: SiloDescription) -> MessageDigest:
    return of_text(kind, said, tuple(sorted({*said.fingerprint, *said.agreement})), said.num_examples)


def _of_moments(kind: str, moments: ColumnMoments) -> MessageDigest:
    num_bytes = moments.mean.nbytes + moments.m2.nbytes
    text = of_text(kind, moments, ("mean", "m2"), moments.num_examples)
    return MessageDigest(kind, text.names, num_bytes, text.sha256, None, moments.num_examples)


def _of_metrics(kind: str, by_model: dict[str, Metrics]) -> MessageDigest:
    names = sorted({name for metrics in by_model.values() for name in metrics.held_out.values()})
    counts = [max(metrics.train.num_examples, metrics.held_out.num_examples) for metrics in by_model.values()]
    return of_text(kind, by_model, tuple(names), max(counts, default=0))


KNOWN: dict[str, tuple[type, Callable[[str, Any], MessageDigest]]] = {
    "description": (SiloDescription, _of_description),
    "moments": (ColumnMoments, _of_moments),
    "update": (Update, _of_update),
    "metrics": (dict, _of_metrics),
}
"""Kind -> (class, how it is described)."""
