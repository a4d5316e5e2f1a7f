"""Shamir's secret sharing (1979): any `threshold` of the shares give a 32-byte secret back, fewer say nothing of it.

Arithmetic is modulo the prime 2^521 - 1. Python's whole numbers do not run in constant time; shares are made and put
together once a round, by parties who may know them.
"""

import secrets
from collections.abc import Mapping
from functools import lru_cache

PRIME = 2**521 - 1
SHARE_BYTES = 66
SECRET_BYTES = 32


def split(secret: bytes, num_shares: int, threshold: int) -> list[bytes]:
    """Return shares 1 to `num_shares` of a secret; ValueError for a threshold that cannot be met."""
    if len(secret) != SECRET_BYTES or not 1 <= threshold <= num_shares:
        raise ValueError(f"{threshold} of {num_shares} shares of {len(secret)} bytes cannot be made")
    coefficients = [int.from_bytes(secret, "big"), *(secrets.randbelow(PRIME) for _ in range(threshold - 1))]
    return [_value(coefficients, x).to_bytes(SHARE_BYTES, "big") for x in range(1, num_shares + 1)]


def _value(coefficients: list[int], x: int) -> int:
    value = 0
    for coefficient in reversed(coefficients):
        value = (value * x + coefficient) % PRIME
    return value


@lru_cache(maxsize=16)  # the same silos answer for all secrets of a round
def _weights(numbers: tuple[int, ...]) -> tuple[int, ...]:
    """Return what each share counts: prod_{j != i} x_j / (x_j - x_i)."""
    weights = []
    for x in numbers:
        numerator = denominator = 1
        for other in numbers:
            if other != x:
                numerator = numerator * other % PRIME
                denominator = denominator * (other - x) % PRIME
        weights.append(numerator * pow(denominator, -1, PRIME) % PRIME)
    return tuple(weights)


def combine(shares: Mapping[int, bytes]) -> bytes:
    """Return the secret behind shares by their number (Lagrange's polynomial at 0). ValueError when they do not belong
    together; too few shares give that error or, once in 2^265 times, a wrong secret."""
    weights = _weights(tuple(shares))
    secret = sum(int.from_bytes(share, "big") * weight for share, weight in zip(shares.values(), weights, strict=True))
    secret %= PRIME
    if secret >= 1 << (8 * SECRET_BYTES):
        raise ValueError("the shares do not belong together, or are too few")
    return secret.to_bytes(SECRET_BYTES, "big")
