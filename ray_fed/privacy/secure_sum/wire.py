"""Keys and shares on their way: names and byte strings as JSON, so that reading them runs no code."""

import json
from collections.abc import Mapping

import numpy as np


def as_bytes(content: Mapping[str, bytes]) -> np.ndarray:
    """Return short byte strings by name as one uint8 array."""
    text = json.dumps({name: value.hex() for name, value in content.items()}, separators=(",", ":"))
    return np.frombuffer(text.encode(), np.uint8)


def of_bytes(data: np.ndarray) -> dict[str, bytes]:
    """Return what `as_bytes` was given; ValueError for anything else."""
    content = json.loads(np.asarray(data, np.uint8).tobytes())
    if not isinstance(content, dict):
        raise ValueError("a mapping of names to bytes is wanted")
    try:
        return {str(name): bytes.fromhex(value) for name, value in content.items()}
    except TypeError as error:
        raise ValueError("bytes are written as hexadecimal text") from error
