"""Rows of a table read from the first layer's part of a message, without an optimiser.

For a first layer z = W x + b and one example, dL/dW_i = (dL/db_i) x for every unit i: the row is the ratio, whatever
the loss and the rest of the network. For a batch the ratio of unit i is a weighted mean of the rows that reach it; with
ReLU, a unit that one row alone switches on gives that row away exactly (Phong et al. 2018; Boenisch et al. 2023).
Updates of local training are sums of such gradients, and leak in the same way as long as the weights barely move.

    symbol     code       shape
    dL/dW_1    weights    [units, num_features]
    dL/db_1    bias       [units]
    x          rows       [num_rows, num_features], as the network sees them

All rows of a small batch come out at once, exactly, where the network has ReLU (`factor_candidates`; SPEAR, Dimitrov et
al. 2024, Algorithm 1, with the bias as a further feature). For B rows, [dL/dW, dL/db] = D^T [X, 1] with D [B, units]
the gradients at z: a matrix of rank B. Every column q of the change of basis from its singular vectors to D makes a row
of D, and ReLU sets about half of each to zero. So B - 1 units are drawn, the direction that vanishes on all of them is
a candidate, and those that vanish on many units more are rows of D. A draw succeeds with probability about 2^-(B-1) for
each row.

    paper      code        shape
    dL/dW      message     [units, num_features + 1], the bias last
    L, R       left, right [units, B], [B, num_features + 1]
    q          directions  [draws, B]
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from ray_fed.randomness import generator

EXACT, NEAR = 1e-2, 1e-1
"""Root mean square error over features, in standard deviations, below which a record counts as exact, as near."""
SMALLEST_BIAS = 1e-6
"""Units whose bias moved less than this share of the one that moved most carry rounding errors only."""


def row_candidates(weights: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """Return guesses [guesses, num_features]: the best single row for all units together, then dW_i / db_i of each live
    unit, the most moved unit first.

    The first is the best rank-one fit [dW, db] = delta [x, 1]: where one record is behind the message it averages over
    all units, and sees through noise in which no single unit's ratio means anything.
    """
    weights, bias = np.asarray(weights, np.float64), np.asarray(bias, np.float64)
    together = _rank_one_row(weights, bias)
    live = np.abs(bias) > SMALLEST_BIAS * np.abs(bias).max(initial=0.0)
    order = np.argsort(-np.abs(bias), kind="stable")
    order = order[live[order]]
    return np.concatenate([together, weights[order] / bias[order, None]])


def _rank_one_row(weights: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """[1, num_features], or none [0, num_features] for a message of zeros."""
    joined = np.column_stack([weights, bias])
    _, vectors = np.linalg.eigh(joined.T @ joined)
    first = vectors[:, -1]
    return (first[:-1] / first[-1])[None] if first[-1] and joined.any() else np.zeros((0, weights.shape[1]))


@dataclass(frozen=True)
class Matches:
    """How near the guesses come to a silo's own records; [num_rows] each."""

    error: np.ndarray
    """Root mean square error over features of the best guess that counts for the row; infinite without one."""
    guess: np.ndarray
    """Number of that guess, -1 without one."""

    @property
    def exact(self) -> int:
        """Rows found up to 1 % of a standard deviation."""
        return int((self.error < EXACT).sum())

    @property
    def near(self) -> int:
        """Rows found up to 10 % of a standard deviation, the exact ones left out."""
        return int(((self.error >= EXACT) & (self.error < NEAR)).sum())


def match_rows(candidates: np.ndarray, rows: np.ndarray) -> Matches:
    """Match guesses [guesses, d] with records [num_rows, d].

    A guess counts for its nearest record only, and only if it is nearer to it than the nearest *other* record is: a
    guess in the middle of many records has found none.
    """
    error, guess = np.full(len(rows), np.inf), np.full(len(rows), -1)
    if len(candidates) == 0 or len(rows) == 0:
        return Matches(error, guess)
    distance = np.sqrt(_squared_distances(candidates, rows) / rows.shape[1])
    nearest = distance.argmin(1)
    own = distance[np.arange(len(candidates)), nearest]
    for number in np.argsort(own, kind="stable"):
        record = nearest[number]
        if guess[record] < 0 and own[number] < _nearest_other(rows, int(record)):
            error[record], guess[record] = own[number], number
    return Matches(error, guess)


def match_owner(candidates: np.ndarray, rows: np.ndarray, owner: int) -> Matches:
    """Match guesses [guesses, d] with the record among rows [num_rows, d] that is behind the message, by the rule of
    `match_rows`."""
    error, guess = np.full(len(rows), np.inf), np.full(len(rows), -1)
    if len(candidates):
        own = np.sqrt(np.square(candidates - rows[owner]).mean(1))
        best = int(own.argmin())
        nearest = np.sqrt(np.square(rows - candidates[best]).mean(1).min())
        if own[best] <= nearest * (1 + 1e-9) and own[best] < _nearest_other(rows, owner):
            error[owner], guess[owner] = own[best], best
    return Matches(error, guess)


def _squared_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    # In blocks: expanding the square instead would lose the small distances that matter to rounding.
    blocks = [np.square(part[:, None] - b[None]).sum(2) for part in np.array_split(a, max(1, len(a) // 16))]
    return np.concatenate(blocks)


def _nearest_other(rows: np.ndarray, record: int) -> float:
    """Root mean square distance over features to the nearest record that is not an equal one."""
    squares = np.square(rows - rows[record]).sum(1) / rows.shape[1]
    different = squares[squares > 0]
    return float(np.sqrt(different.min())) if len(different) else np.inf


def residual_from_bias(output_bias_gradient: float) -> float:
    """Return prediction - target of a single example under a mean squared error: dL/db_out = 2 (y' - y)."""
    return output_bias_gradient / 2


def recovered_target(network: nn.Module, guess: np.ndarray, message: Sequence[Any]) -> float:
    """Return the target as the network learns it: y = F(x) - dL/db_out / 2 with the row guessed [num_features] for x;
    L is the squared error of one row."""
    with torch.no_grad():
        predicted = float(network(torch.from_numpy(guess.astype(np.float32))[None])[0, 0])
    return predicted - residual_from_bias(float(message[-1][0]))


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
