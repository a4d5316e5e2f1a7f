"""Noise on the sums of a silo's rows, so that no answer tells much of one row (Dwork et al. 2006, Gaussian mechanism).

An answer is made of groups: numbers of which one row changes the 2-norm by at most the group's sensitivity. With g
groups each gets noise of z sqrt(g) times its sensitivity, so the whole answer is one Gaussian step of multiplier z.
Numbers stay whole: rounding after the noise tells nothing further.
"""

from dataclasses import dataclass
from math import sqrt

import numpy as np

from ray_fed.privacy.noise import NoiseSource

Group = tuple[np.ndarray, float]
"""Whole numbers, and how far one row moves them (2-norm)."""
MOST = 1 << 58
"""Noised numbers are cut there, and counts at `MOST_OF_ONE_DIGIT`: they must fit the digits in which they travel."""
MOST_OF_ONE_DIGIT = (1 << 23) - 1


@dataclass(frozen=True)
class SumNoise:
    """Noise of one silo; its own, whatever others add."""

    multiplier: float
    """z: standard deviation over sensitivity."""
    public_rows: int
    """The number of rows that is told instead of the true one."""
    source: NoiseSource

    def added(self, groups: list[Group]) -> list[np.ndarray]:
        """Return the numbers of all groups of one answer with noise, int64."""
        together = self.multiplier * sqrt(len(groups))
        return [self._noised(numbers, together * sensitivity) for numbers, sensitivity in groups]

    def _noised(self, numbers: np.ndarray, deviation: float) -> np.ndarray:
        noise = np.rint(deviation * self.source.normal(numbers.size)).reshape(numbers.shape)
        return np.clip(numbers + noise.astype(np.int64), -MOST, MOST)


def without_noise(groups: list[Group]) -> list[np.ndarray]:
    """Return the numbers as they are."""
    return [numbers for numbers, _ in groups]
