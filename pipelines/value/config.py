"""What `ray-fed study value` looks at. The command line reads this file before anything else."""

from dataclasses import dataclass
from math import isfinite

from ray_fed.config import require


@dataclass(frozen=True)
class ValueConfig:
    """How many rows, how often, and whose contributions."""

    shares: tuple[float, ...] = (0.125, 0.25, 0.5, 1.0)
    """Shares of a member's rows at which its gain is measured; a share of fewer than about 100 rows is left out."""
    draws: int = 2
    """Draws of rows, of those that choose, and of initial weights, at each share: their spread is shown."""
    contributions: bool = True
    """Also score what each silo contributes: by training without it, and of networks by leaving its updates out."""

    def __post_init__(self) -> None:
        fits = len(self.shares) > 0 and all(isfinite(share) and 0 < share <= 1 for share in self.shares)
        require(fits, f"shares={self.shares} must be shares of the rows, above 0 and at most 1")
        require(list(self.shares) == sorted(set(self.shares)), f"shares={self.shares} must go up")
        require(1 <= self.draws <= 20, f"draws={self.draws} must be from 1 to 20")
