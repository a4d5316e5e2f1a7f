"""Random numbers for privacy: the keystream of ChaCha20, so that who sees some of them cannot compute the others.

NumPy's and torch's generators are not made for that: from a few outputs their state, and so all noise, can be found.

Limit: the normal numbers are float64 numbers, not exact ones. The low bits of floating-point noise can tell something
about what it was added to (Mironov 2012); updates are rounded to float32 afterwards, which hides most of it, but no
proof covers that.
"""

import hashlib
import os

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20

from ray_fed.config import require

TEST_NOISE = "RAY_FED_TEST_NOISE"
KEY_BYTES = 32
BLOCK = 1 << 15


class NoiseSource:
    """A stream of random numbers from a 32-byte key; the same key gives the same stream on every machine."""

    def __init__(self, key: bytes):
        if len(key) != KEY_BYTES:
            raise ValueError(f"a key has {KEY_BYTES} bytes, not {len(key)}")
        self._stream = Cipher(ChaCha20(key, bytes(16)), mode=None).encryptor()

    @classmethod
    def secret(cls) -> "NoiseSource":
        """Return a source that nobody can repeat: its key comes from the operating system and is kept nowhere."""
        return cls(os.urandom(KEY_BYTES))

    @classmethod
    def of_process(cls, *purpose: str | int) -> "NoiseSource":
        """Return a secret source; in a process that pytest started and gave RAY_FED_TEST_NOISE a number, a repeatable
        one. No message and no option says so, only who starts the process. ConfigError where that is not a test."""
        seed = os.environ.get(TEST_NOISE)
        if seed is None:
            return cls.secret()
        unset = f"{TEST_NOISE} is set outside of a test: whoever knows it could take the noise away; unset it"
        require("PYTEST_VERSION" in os.environ, unset)
        return cls.repeatable(int(seed), *purpose)

    @classmethod
    def repeatable(cls, seed: int, *purpose: str | int) -> "NoiseSource":
        """Return a source for tests: who knows the seed knows the noise, so it protects nothing."""
        return cls(hashlib.sha256(repr((int(seed), *purpose)).encode()).digest())

    def bits(self, count: int) -> np.ndarray:
        """Return uint64 [count], each of 64 independent bits."""
        return np.frombuffer(self._stream.update(bytes(8 * count)), "<u8")

    def uniform(self, count: int) -> np.ndarray:
        """Return float64 [count] in (0, 1), multiples of 2^-54."""
        return (2.0 * (self.bits(count) >> np.uint64(11)) + 1.0) * 2.0**-54

    def normal(self, count: int) -> np.ndarray:
        """Return float64 [count], independent with mean 0 and variance 1 (Box and Muller 1958)."""
        out = np.empty(count)
        for start in range(0, count, 2 * BLOCK):
            part = out[start : start + 2 * BLOCK]
            pairs = (len(part) + 1) // 2
            radius = np.sqrt(-2.0 * np.log(self.uniform(pairs)))
            angle = 2.0 * np.pi * self.uniform(pairs)
            part[:pairs] = radius * np.cos(angle)
            part[pairs:] = (radius * np.sin(angle))[: len(part) - pairs]
        return out
