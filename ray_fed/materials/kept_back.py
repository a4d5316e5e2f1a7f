"""How wrong a model is on the rows that silos keep back for early stopping, by counts of all silos together."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ray_fed.federation.counted_rows import CountedRows
from ray_fed.federation.messages import Vector
from ray_fed.learning.counted_quantiles import NUM_BINS, edge, mean
from ray_fed.materials.row_counts import CHEMISTRIES, CONFIDENCES, ERRORS, PARTS, VALIDATION
from ray_fed.materials.targets import Target


@dataclass(frozen=True)
class KeptBackErrors:
    """The mean over targets of their mean absolute errors, in the space of the network's outputs, and of the mean
    logarithm of what the true class was given as a chance."""

    targets: tuple[Target, ...]

    def asks(self, vector: Vector) -> list[tuple[str, tuple]]:
        part, own = np.array([PARTS.index(VALIDATION)], np.int64), np.zeros(1, np.int64)
        asked: list[tuple[str, tuple]] = []
        if self._num_numbers:
            scales = np.ones((1, self._num_numbers, 2 + len(CHEMISTRIES)))
            # A model counts its errors in units of (floor + spread): without other models the spread is 0.
            asked.append((ERRORS, (part, own, scales, vector)))
        if self._num_numbers < len(self.targets):
            asked.append((CONFIDENCES, (part, own, vector)))
        return asked

    def loss(self, answers: Sequence[CountedRows]) -> float:
        told = iter(answers)
        losses: list[float] = []
        if self._num_numbers:
            counts = next(told).counts
            found = counts.reshape(self._num_numbers, 2, 1 + len(CHEMISTRIES), NUM_BINS) if len(counts) else []
            losses += [mean(one[0, 0]) for one in found]
        if self._num_numbers < len(self.targets):
            counts = next(told).counts
            found = counts.reshape(len(self.targets) - self._num_numbers, 2, NUM_BINS) if len(counts) else []
            losses += [_log_loss(*one) for one in found]
        return float(np.mean(losses)) if losses else float("nan")

    @property
    def _num_numbers(self) -> int:
        return sum(not target.classes for target in self.targets)


def _log_loss(right: np.ndarray, wrong: np.ndarray) -> float:
    """Return the mean loss by counts of the odds of the likeliest class, where it is right and where it is wrong; of
    more than two classes the others share what it leaves."""
    odds = np.array([edge(place + 0.5) for place in range(NUM_BINS)])
    num_rows = right.sum() + wrong.sum()
    lost = right @ np.log1p(1 / odds) + wrong @ np.log1p(odds)
    return float(lost / num_rows) if num_rows else float("nan")
