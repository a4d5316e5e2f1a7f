"""Quantiles of distances y - f in a leaf, from counts in agreed buckets: finer the nearer to 0, so that a forest comes
to rest exactly where the wanted share of the rows lies above it.

Of each sign there are 4 buckets for each factor of 2, from the scale down to 2^-16 of it; 0 is among the negative ones.
"""

import numpy as np

OCTAVES, PER_OCTAVE = 16, 4
PER_SIGN = OCTAVES * PER_OCTAVE
NUM_BUCKETS = 2 * PER_SIGN


def buckets(distances: np.ndarray, exponent: int) -> np.ndarray:
    """Return the bucket of each distance, int64 [rows], ascending with it; the scale is 2^exponent."""
    fraction, power = np.frexp(np.abs(distances))
    part = np.floor((2 * fraction - 1) * PER_OCTAVE)
    size = np.where(fraction == 0, 0, (power - exponent + OCTAVES - 1) * PER_OCTAVE + part)
    size = np.clip(size, 0, PER_SIGN - 1).astype(np.int64)
    return np.where(distances > 0, PER_SIGN + size, PER_SIGN - 1 - size)


def bucket_edges(exponent: int) -> np.ndarray:
    """Return the edges of all buckets, float64 [NUM_BUCKETS + 1]."""
    size = np.arange(1, PER_SIGN + 1)
    above = 2.0 ** (exponent - OCTAVES + size // PER_OCTAVE) * (1 + (size % PER_OCTAVE) / PER_OCTAVE)
    return np.concatenate([-above[::-1], [0.0], above])


def quantiles(counts: np.ndarray, share: float, exponent: int) -> np.ndarray:
    """Return the quantile of each row of counts [n, NUM_BUCKETS], between the edges of its bucket; 0 of no rows."""
    edges, total = bucket_edges(exponent), counts.sum(axis=1)
    running = np.cumsum(counts, axis=1)
    rank = share * total
    place = np.minimum((running < rank[:, None]).sum(axis=1), NUM_BUCKETS - 1)
    rows = np.arange(len(counts))
    here = np.maximum(counts[rows, place], 1)
    part = np.clip((rank - (running[rows, place] - counts[rows, place])) / here, 0, 1)
    found = edges[place] + part * (edges[place + 1] - edges[place])
    return np.where(total > 0, found, 0.0)
