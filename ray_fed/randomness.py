"""Where every random number comes from: (seed, purpose, indices), never a global generator."""

import hashlib

import numpy as np


def derived_seed(seed: int, purpose: str, *indices: int | str) -> int:
    """Return a 63-bit seed that depends on all arguments and on nothing else (not on PYTHONHASHSEED)."""
    text = "\x1f".join([str(int(seed)), purpose, *(str(index) for index in indices)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def generator(seed: int, purpose: str, *indices: int | str) -> np.random.Generator:
    """Return a NumPy generator for one purpose, e.g. `generator(0, "shuffle", epoch, silo)`."""
    return np.random.default_rng(derived_seed(seed, purpose, *indices))
