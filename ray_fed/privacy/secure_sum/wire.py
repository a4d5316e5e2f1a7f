"""Keys and shares on their way: names and byte strings as JSON, so that reading them runs no code."""

import json
from collections.abc import Mapping

import numpy as np

from ray_fed.reading import parse_json

MAX_BYTES = 1 << 26
"""Of one message: what ten thousand silos tell one another at a time, with room."""


def as_bytes(content: Mapping[str, bytes]) -> np.ndarray:
    """Return short byte strings by name as one uint8 array."""
    text = json.dumps({name: value.hex() for name, value in content.items()}, separators=(",", ":"))
    return np.frombuffer(text.encode(), np.uint8)


def of_bytes(data: np.ndarray) -> dict[str, bytes]:
    """Return what `as_bytes` was given; ValueError for anything else."""
    if type(data) is not np.ndarray or data.dtype != np.uint8 or data.ndim != 1 or data.nbytes > MAX_BYTES:
        raise ValueError(f"a row of at most {MAX_BYTES:,} bytes is wanted")
    content = parse_json(data.tobytes(), "the message", "the sender must speak the same version")
    if not isinstance(content, dict) or not all(isinstance(value, str) for value in content.values()):
        raise ValueError("a mapping of names to hexadecimal text is wanted")
    return {name: bytes.fromhex(value) for name, value in content.items()}
