"""Distances between parameter vectors, with the same bits on any number of cores.

No BLAS: its dot product splits the sum over threads, so its last bits depend on the machine. Here NumPy's pairwise
sum runs over chunks and `math.fsum` adds the chunks exactly. All arithmetic is float64; the memory is one chunk.
"""

import math

import numpy as np

CHUNK = 1 << 15


def squared_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Return |a - b|^2 (Euclidean) of two float vectors [num_parameters]; both must be finite."""
    return math.fsum(
        float(np.square(np.subtract(a[start : start + CHUNK], b[start : start + CHUNK], dtype=np.float64)).sum())
        for start in range(0, len(a), CHUNK)
    )


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """Return |a - b| of two finite vectors [num_parameters]."""
    return math.sqrt(squared_distance(a, b))


def clipped(vector: np.ndarray, centre: np.ndarray, radius: float) -> np.ndarray:
    """Return centre + (vector - centre) * min(1, radius / |vector - centre|), float32 [num_parameters].

    A vector inside the ball comes back as the same object. Law: no coordinate ends up further from the centre than
    it was, so the distance never grows; it is at most `radius` up to one rounding to float32 per coordinate.
    """
    length = distance(vector, centre)
    if length <= radius:
        return vector
    return (centre + (radius / length) * np.subtract(vector, centre, dtype=np.float64)).astype(np.float32)
