"""What a forest is to be: every choice that changes its bits."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from math import isfinite
from typing import Literal

from ray_fed.config import from_mapping, require
from ray_fed.errors import ConfigError

MOST_BINS = 63
MOST_DEPTH = 10
MOST_PLACES = 1 << 22
"""Of all trees of an output: a larger forest is a mistake, or meant to fill a silo's memory."""
LOSSES = "squared, log, softmax:CLASSES (3 or more) or quantile:SHARE (between 0 and 1)"


@dataclass(frozen=True)
class Group:
    """The outputs that one loss is of."""

    kind: Literal["squared", "log", "softmax", "quantile"]
    first: int
    size: int = 1
    quantile: float = 0.5

    @property
    def place(self) -> slice:
        """Where its outputs stand among all."""
        return slice(self.first, self.first + self.size)

    @property
    def of_classes(self) -> bool:
        return self.kind in ("log", "softmax")

    @classmethod
    def of(cls, text: str, first: int) -> "Group":
        """Return the group of a loss's name; ConfigError for one that is not known."""
        kind, _, number = text.partition(":")
        if kind in ("squared", "log") and not number:
            return cls(kind, first)  # type: ignore[arg-type]
        if kind == "softmax" and number.isdigit() and int(number) > 2:
            return cls("softmax", first, int(number))
        with suppress(ValueError):
            if kind == "quantile" and 0 < float(number) < 1:
                return cls("quantile", first, quantile=float(number))
        raise ConfigError(f"loss={text!r} must be {LOSSES}")


@dataclass(frozen=True)
class TreeSettings:
    """How a forest is grown. ConfigError for a value out of its range."""

    trees: int = 600
    """Boosting iterations: so many trees for each output."""
    learning_rate: float = 0.06
    """Share of a tree's values that counts."""
    depth: int = 7
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
    """Of targets that are numbers: squared, or quantile:SHARE, which the share of the rows lies below."""
    losses: tuple[str, ...] = ("squared",)
    """What is learned of each target: squared, log (two classes), softmax:K (K classes), or quantile:Q."""
    patience: int = 0
    """Stop after so many iterations in which the loss of the rows to stop by has not fallen; 0 never stops."""
    stopping_fraction: float = 0.1
    """Share of the rows that are kept to stop by, where there is a patience; whole groups of them (polymorphs of
    a formula) or, where there are no groups, rows of equal features."""

    def __post_init__(self) -> None:
        for name in ("trees", "leaves", "min_rows", "min_rows_in_bin"):
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
        size = self.trees * (1 << self.depth)
        require(size <= MOST_PLACES, f"trees={self.trees} of depth={self.depth} are {size} places, most {MOST_PLACES}")
        require(bool(self.losses), "losses=() must name one loss for each target")
        self.groups  # noqa: B018  (says what is wrong with a loss)
        of_number = Group.of(self.loss, 0).kind in ("squared", "quantile")
        require(of_number, f"loss={self.loss!r} must be squared or quantile:SHARE; that of classes comes from them")

    @cached_property
    def groups(self) -> tuple["Group", ...]:
        """The losses with the outputs that are theirs. ConfigError for one that is not known."""
        groups, first = [], 0
        for text in self.losses:
            groups.append(Group.of(text, first))
            first += groups[-1].size
        return tuple(groups)

    @cached_property
    def outputs(self) -> int:
        """Numbers predicted per row."""
        return sum(group.size for group in self.groups)

    @property
    def num_leaf_places(self) -> int:
        """Leaves of a full tree: the places of a row at the bottom."""
        return 1 << self.depth

    @property
    def num_splits(self) -> int:
        """Inner nodes of a full tree."""
        return self.num_leaf_places - 1


DEFAULTS = ("feature_fraction=0.5",)
"""Of the command, besides the settings' own: half the bytes, and as good or better (benchmarks/trees.md)."""
OF_THE_TASK = ("losses", "seed")


def tree_settings(options: Sequence[str]) -> TreeSettings:
    """Return the settings of options NAME=VALUE, later ones before earlier ones; ConfigError names the nearest known
    option. What is learned, and the seed, are not among them."""
    values = {name.strip(): value for name, _, value in (text.partition("=") for text in options)}
    for name in OF_THE_TASK:
        require(name not in values, f"tree_options: {name} comes from the targets and the options of the run")
    return from_mapping(TreeSettings, values, "tree_options")
