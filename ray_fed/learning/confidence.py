"""Calibrated chances of classes, fitted on rows that no model was trained on, by counts alone.

Of the likeliest class, with chance p, the logarithm of the odds p / (1 - p) is corrected by a line (Platt 1999; without
offset and with two classes it is the temperature scaling of Guo et al., ICML 2017); the other classes keep their
proportions. Silos count in which bins the odds of right and of wrong predictions are.
"""

import math
from dataclasses import dataclass

import numpy as np

from ray_fed.learning.counted_quantiles import NUM_BINS, edge, histogram

FEWEST_RIGHT_OR_WRONG = 10
"""Right, and wrong, predictions without which nothing is fitted."""
MOST_STEPS = 50
TINY = 2.0**-40


@dataclass(frozen=True)
class Sureness:
    """How sure a prediction is when the network has said how sure it is: log odds become slope * log odds + offset."""

    slope: float = 1.0
    """Below 1 the network was too sure."""
    offset: float = 0.0
    num_rows: int = 0
    """Calibration rows behind it; 0 where they were too few and the chances stay as the network has them."""
    accuracy: float = math.nan
    """Share of the calibration rows that were predicted right."""

    def applied(self, chances: np.ndarray) -> np.ndarray:
        """Return calibrated chances [rows, K]; the likeliest class stays the likeliest, or equal to another."""
        chances = np.asarray(chances, np.float64)
        if not self.num_rows:
            return chances
        best = chances.argmax(axis=1)[:, None]
        top = np.take_along_axis(chances, best, axis=1)
        counted = np.clip(odds_of(top), edge(0.5), edge(NUM_BINS - 0.5))  # beyond it, odds were told apart no more
        log_odds = self.slope * np.log(counted) + self.offset
        others = np.where(top < 1, chances / np.maximum(1 - top, TINY), 1 / max(1, chances.shape[1] - 1))
        np.put_along_axis(others, best, 0.0, axis=1)
        second = others.max(axis=1, keepdims=True)
        sure = np.maximum(1 / (1 + np.exp(-log_odds)), second / (1 + second))
        found = others * (1 - sure)
        np.put_along_axis(found, best, sure, axis=1)
        return found / found.sum(axis=1, keepdims=True)


def odds_of(chance: np.ndarray) -> np.ndarray:
    return chance / np.maximum(1 - chance, TINY)


def counted_odds(chances: np.ndarray, labels: np.ndarray, fewest: int) -> np.ndarray:
    """Return counts of the odds of the likeliest class where it is right, and where it is wrong, int64 [2, NUM_BINS].

    chances [rows, K]; labels [rows], NaN where there is none.
    """
    known = np.isfinite(labels)
    odds, is_right = odds_of(chances.max(axis=1)), chances.argmax(axis=1) == labels
    return np.stack([histogram(odds[known & rows], fewest) for rows in (is_right, ~is_right)])


def sureness_of(counts: np.ndarray) -> Sureness:
    """Return the correction under which the counted rows are likeliest; counts: `counted_odds` of all silos."""
    right, wrong = counts.astype(np.float64)
    if min(right.sum(), wrong.sum()) < FEWEST_RIGHT_OR_WRONG:
        return Sureness()
    log_odds = np.log([edge(place + 0.5) for place in range(NUM_BINS)])
    slope, offset = _fitted(np.stack([log_odds, np.ones(NUM_BINS)], axis=1), right, right + wrong)
    return Sureness(slope, offset, int(counts.sum()), float(right.sum() / counts.sum()))


def _fitted(inputs: np.ndarray, right: np.ndarray, rows: np.ndarray) -> tuple[float, float]:
    """Return the coefficients of a logistic regression by Newton's method, inputs [bins, 2]; the slope not below 0."""
    found = np.array([1.0, 0.0])
    for _ in range(MOST_STEPS):
        chance = 1 / (1 + np.exp(-np.clip(inputs @ found, -40, 40)))
        gradient = inputs.T @ (right - rows * chance)
        curvature = inputs.T @ (inputs * (rows * chance * (1 - chance))[:, None]) + 1e-9 * np.eye(2)
        step = np.clip(np.linalg.solve(curvature, gradient), -1, 1)
        found = found + step
        if np.abs(step).max() < 1e-10:
            break
    return max(0.0, float(found[0])), float(found[1])
