"""Integers modulo 2^128: the exact sum's fixed-point numbers in a ring in which masks cancel.

A value n w of `ExactWeightedSum` is a whole number of units 2^-66. Here it is that number modulo 2^128, as two
uint64 words [count, 2], lower word first. Sums stay below 2^127 by the limits of the exact sum, so nothing is lost:
the masked sum, unmasked, has the bits of the plain one.
"""

from collections.abc import Sequence

import numpy as np

from ray_fed.exact_sum import ExactWeightedSum

WORDS = 2
LOW_BITS = np.uint64(50)
LOW_MASK = np.uint64((1 << 50) - 1)
WORD = np.uint64(64)
CHUNK = 1 << 14


def encoded(vector: np.ndarray, weight: int) -> np.ndarray:
    """Return weight * vector in the ring, uint64 [len(vector), 2]. ValueError for what the exact sum refuses, too."""
    one = ExactWeightedSum(len(vector))
    one.add(vector, weight)
    high, low = one.parts()
    ring = np.empty((len(vector), WORDS), np.uint64)
    ring[:, 0] = (high.view(np.uint64) << LOW_BITS) | low.view(np.uint64)
    ring[:, 1] = (high >> np.int64(14)).view(np.uint64)  # arithmetic: negative numbers keep their sign
    return ring


def decoded(ring: np.ndarray, total_weight: int, num_summands: int) -> ExactWeightedSum:
    """Return the exact sum behind ring elements uint64 [count, 2]."""
    low = (ring[:, 0] & LOW_MASK).view(np.int64)
    high = ((ring[:, 1] << (WORD - LOW_BITS)) | (ring[:, 0] >> LOW_BITS)).view(np.int64)
    return ExactWeightedSum.of_parts(high, low, total_weight, num_summands)


def of_integers(numbers: Sequence[int]) -> np.ndarray:
    """Return whole numbers as ring elements, uint64 [len(numbers), 2]; ValueError for one of 2^120 or more."""
    if any(abs(number) >> 120 for number in numbers):
        raise ValueError("a number is too large to be added up")
    words = [(number & (1 << 64) - 1, number >> 64 & (1 << 64) - 1) for number in numbers]
    return np.array(words, np.uint64).reshape(len(words), WORDS)


def integers(ring: np.ndarray) -> list[int]:
    """Return the whole numbers, from -2^127 to 2^127 - 1, behind ring elements uint64 [count, 2]."""
    found = [low | high << 64 for low, high in ring.tolist()]
    return [number - (1 << 128) if number >> 127 else number for number in found]


def whole(number: int) -> np.ndarray:
    """Return a whole number below 2^64 as one ring element, uint64 [1, 2]."""
    return np.array([[number, 0]], np.uint64)


def add(total: np.ndarray, other: np.ndarray) -> None:
    """total += other modulo 2^128, in place; both uint64 [count, 2]."""
    total[:, 0] += other[:, 0]
    total[:, 1] += other[:, 1] + (total[:, 0] < other[:, 0])  # a sum below its summand has wrapped around


def subtract(total: np.ndarray, other: np.ndarray) -> None:
    """total -= other modulo 2^128, in place."""
    borrow = total[:, 0] < other[:, 0]
    total[:, 0] -= other[:, 0]
    total[:, 1] -= other[:, 1] + borrow
