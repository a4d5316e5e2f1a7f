"""What a forest is to be: every choice that changes its bits."""

from dataclasses import dataclass
from math import isfinite

from ray_fed.config import require

MOST_BINS = 63
MOST_DEPTH = 10
LOSSES = ("squared", "log", "softmax", "quantile")


@dataclass(frozen=True)
class TreeSettings:
    """How a forest is grown. ConfigError for a value out of its range."""

    trees: int = 600
    """Boosting iterations: so many trees for each output."""
    learning_rate: float = 0.06
    """Share of a tree's values that counts."""
    depth: int = 6
    """Splits on the way to a leaf: an iteration takes at most one exchange more."""
    leaves: int = 31
    """Most leaves of a tree; at each level the splits that gain most come first."""
    bins: int = MOST_BINS
    """Most bins of a feature, besides the one of missing values."""
    levels: int = 64
    """Steps from 0 to the scale of a gradient; 4 are too few, 64 as good as none (Shi et al. 2022, with leaf values
    renewed)."""
    min_rows: int = 20
    """Fewest rows of all silos together in a leaf."""
    min_rows_in_bin: int = 5
    """Fewest rows of all silos together in a bin, and behind the scale of the gradients."""
    l2: float = 0.0
    """Added to the number of rows (to the sum of second derivatives) in gains and leaf values."""
    feature_fraction: float = 1.0
    """Share of the features that a tree may split on, chosen by the seed."""
    seed: int = 0
    """Of the choice of features, and of rows to stop by."""
    loss: str = "squared"
    """squared | log (binary) | softmax (classes) | quantile."""
    outputs: int = 1
    """Numbers predicted per row: targets, classes or quantiles."""
    quantiles: tuple[float, ...] = ()
    """Of the quantile loss, one per output."""
    patience: int = 0
    """Stop after so many iterations in which the loss of the rows to stop by has not fallen; 0 never stops."""
    stopping_fraction: float = 0.1
    """Share of the rows that are kept to stop by, where there is a patience; rows with equal features stay together."""

    def __post_init__(self) -> None:
        for name in ("trees", "leaves", "min_rows", "min_rows_in_bin", "outputs"):
            require(getattr(self, name) >= 1, f"{name}={getattr(self, name)} must be 1 or more")
        require(1 <= self.depth <= MOST_DEPTH, f"depth={self.depth} must be from 1 to {MOST_DEPTH}")
        require(self.leaves >= 2, f"leaves={self.leaves} must be 2 or more")
        require(2 <= self.bins <= MOST_BINS, f"bins={self.bins} must be from 2 to {MOST_BINS}")
        require(1 <= self.levels <= 1024, f"levels={self.levels} must be from 1 to 1024")
        require(0 < self.learning_rate <= 1, f"learning_rate={self.learning_rate} must lie in (0, 1]")
        require(isfinite(self.l2) and self.l2 >= 0, f"l2={self.l2} must be a finite number, 0 or more")
        require(0 < self.feature_fraction <= 1, f"feature_fraction={self.feature_fraction} must lie in (0, 1]")
        require(self.patience >= 0, f"patience={self.patience} must be 0 or more")
        require(0 < self.stopping_fraction < 1, f"stopping_fraction={self.stopping_fraction} must lie in (0, 1)")
        require(self.loss in LOSSES, f"loss={self.loss!r} must be one of {', '.join(LOSSES)}")
        require(self.loss != "softmax" or self.outputs > 2, "loss=softmax needs three classes or more; use log for two")
        fits = (self.loss == "quantile") == bool(self.quantiles)
        require(fits and len(self.quantiles) in (0, self.outputs), "quantiles: one for each output, of loss=quantile")
        require(all(0 < q < 1 for q in self.quantiles), f"quantiles={self.quantiles} must lie between 0 and 1")

    @property
    def num_leaf_places(self) -> int:
        """Leaves of a full tree: the places of a row at the bottom."""
        return 1 << self.depth

    @property
    def num_splits(self) -> int:
        """Inner nodes of a full tree."""
        return self.num_leaf_places - 1
