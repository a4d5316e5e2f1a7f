"""All rows of a small batch at once, exactly, from a ReLU network's first layer.

For z = W x + b and a batch of B rows, [dL/dW, dL/db] = D^T [X, 1] with D [B, units] the gradients at z: a matrix of
rank B. Every column q of the change of basis from its singular vectors to D makes a row of D, and ReLU sets about
half of each to zero. So B - 1 units are drawn, the direction that vanishes on all of them is a candidate, and those
that vanish on many units more are rows of D (SPEAR, Dimitrov et al. 2024, Algorithm 1, with the
bias as a further feature).
A draw succeeds with probability about 2^-(B-1) for each row.

    paper      code        shape
    dL/dW      message     [units, num_features + 1], the bias last
    L, R       left, right [units, B], [B, num_features + 1]
    q          directions  [draws, B]
"""

import numpy as np

from ray_fed.randomness import generator

LARGEST_BATCH = 10
"""Rows of the largest batch that is taken apart: draws grow as 2^B."""
DRAWS_PER_ROW = 20
"""In units of 2^B: a row that ReLU sets to zero on half of the units comes up about 40 times."""
ROUNDING = 30.0
"""Entries below this many times the message's rounding error count as zero."""
APART = 1e-2
"""Length outside the span of those already found that makes a unit vector a new direction."""
FEWEST_ZEROS = 0.1
"""Share of units that a row of D leaves at zero, at least, besides those drawn."""


def factor_candidates(weights: np.ndarray, bias: np.ndarray, batch_size: int, seed: int = 0) -> np.ndarray:
    """Return the rows behind dL/dW [units, num_features] and dL/db [units]; [batch_size, num_features], or none
    [0, num_features] where the message is not that of `batch_size` rows of a ReLU network."""
    nothing = np.zeros((0, weights.shape[1]))
    message = np.column_stack([weights, bias]).astype(np.float64)
    message = message[np.abs(message).max(1) > 0]
    if not 2 <= batch_size <= LARGEST_BATCH or len(message) < 2 * batch_size:
        return nothing
    left, sizes, right = np.linalg.svd(message, full_matrices=False)
    rounding = max(_rounding(sizes[batch_size:], message.shape), np.finfo(np.float32).eps * sizes[0] / 100)
    left, right = left[:, :batch_size] * sizes[:batch_size], right[:batch_size]
    columns = _sparse_directions(left, ROUNDING * rounding, seed)
    if len(columns) < batch_size:
        return nothing
    scaled = np.linalg.solve(columns.T, right)  # [B, num_features + 1]: each row up to a factor
    factors = scaled[:, -1:]
    return scaled[:, :-1] / factors if np.abs(factors).min() > 0 else nothing


def _rounding(rest: np.ndarray, shape: tuple[int, ...]) -> float:
    """Return the standard deviation of an entry's rounding error from the singular values that should be zero."""
    return float(rest[0] / (np.sqrt(shape[0]) + np.sqrt(shape[1]))) if len(rest) else 0.0


def _sparse_directions(left: np.ndarray, zero: float, seed: int) -> np.ndarray:
    """Return directions whose image under `left` [units, B] vanishes on many units, the sparsest first [<= B, B]."""
    units, batch_size = left.shape
    draws = DRAWS_PER_ROW * 2**batch_size
    draw = generator(seed, "units that vanish together")
    chosen = draw.integers(0, units, (draws, batch_size - 1))
    _, _, basis = np.linalg.svd(left[chosen])  # [draws, B, B]; the last vector vanishes on the drawn
    directions = basis[:, -1]
    images = np.abs(directions @ left.T)
    zeros = np.where(images.max(1) > 10 * zero, (images < zero).sum(1), 0)
    enough = batch_size - 1 + FEWEST_ZEROS * units
    order = [number for number in np.argsort(-zeros, kind="stable") if zeros[number] >= enough]
    return _independent(directions[order], left, zero)


def _independent(directions: np.ndarray, left: np.ndarray, zero: float) -> np.ndarray:
    """Return the first directions that are independent, each fitted to all the units on which it vanishes."""
    kept, span = [], np.zeros((0, left.shape[1]))
    for direction in directions:
        if _outside(direction, span) > APART:
            fitted = np.linalg.svd(left[np.abs(left @ direction) < zero])[2][-1]
            if _outside(fitted, span) > APART:
                kept.append(fitted)
                span = np.linalg.qr(np.array(kept).T)[0].T
        if len(kept) == left.shape[1]:
            break
    return np.array(kept).reshape(-1, left.shape[1])


def _outside(direction: np.ndarray, span: np.ndarray) -> float:
    """Return the length of the part of a unit vector that lies outside an orthonormal `span` [k, B]."""
    return float(np.linalg.norm(direction - span.T @ (span @ direction)))
