"""Keys and shares on their way: names and byte strings as MessagePack, so that reading them runs no code."""

from collections.abc import Mapping

import msgspec
import numpy as np

MAX_BYTES = 1 << 26
"""Of one message: what ten thousand silos tell one another at a time, with room."""


def as_bytes(content: Mapping[str, bytes]) -> np.ndarray:
    """Return short byte strings by name as one uint8 array."""
    return np.frombuffer(msgspec.msgpack.encode(dict(content)), np.uint8)


def of_bytes(data: np.ndarray) -> dict[str, bytes]:
    """Return what `as_bytes` was given; ValueError for anything else."""
    if type(data) is not np.ndarray or data.dtype != np.uint8 or data.ndim != 1 or data.nbytes > MAX_BYTES:
        raise ValueError(f"a row of at most {MAX_BYTES:,} bytes is wanted")
    try:
        return msgspec.msgpack.decode(data.tobytes(), type=dict[str, bytes])
    except (msgspec.DecodeError, RecursionError) as error:
        raise ValueError(
            "a mapping of names to byte strings is wanted; the sender must speak the same version"
        ) from error
