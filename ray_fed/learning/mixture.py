"""A convex mixture of several models' predictions, its weights chosen on rows that none of them was trained on."""

from collections.abc import Callable, Sequence

import numpy as np

STEPS = 20
"""Weights are multiples of one part in so many: few enough that a hundred rows cannot be learned by heart."""
Judge = Callable[[np.ndarray], float]
"""Predictions [rows, ...] -> how bad they are; less is better."""


def mixture_weights(parts: Sequence[np.ndarray], judge: Judge, steps: int = STEPS) -> np.ndarray:
    """Return weights of predictions [rows, ...], 0 or more, that add up to 1; float64 [parts].

    Ensemble selection with replacement (Caruana et al., ICML 2004): step by step the part is added that makes the mean
    of those chosen so far best; of all these means the best one counts. Of two as good the first is taken, so the
    order of the parts says which is trusted when nothing speaks for another.
    """
    chosen, total = np.zeros(len(parts)), np.zeros_like(parts[0], dtype=np.float64)
    best, least = chosen, np.inf
    for step in range(1, steps + 1):
        found = [judge((total + part) / step) for part in parts]
        at = int(np.argmin(found))
        chosen, total = chosen + (np.arange(len(parts)) == at), total + parts[at]
        if found[at] < least:
            best, least = chosen / step, found[at]
    return best if best.any() else np.full(len(parts), 1.0 / len(parts))


def mixed(parts: Sequence[np.ndarray], weights: np.ndarray) -> np.ndarray:
    """Return the weighted mean of predictions [rows, ...]; parts of weight 0 are not looked at."""
    used = [weight * np.asarray(part, np.float64) for part, weight in zip(parts, weights, strict=True) if weight]
    return np.sum(used, axis=0)
