"""One source played by several silos: who gets which row, decided identically by everyone who opens the source."""

import itertools
from dataclasses import dataclass

import numpy as np
import pandas as pd

from ray_fed.errors import ConfigError
from ray_fed.materials.partitions import grouped_fold, matbench_fold, partition_rows, select_rows, split_rows

PAPER_ROWS, PAPER_TEST_ROWS = 12_897, 2_897
"""Guo et al. 2022: 10,000 training and 2,897 test rows."""


@dataclass(frozen=True)
class StudyPlan:
    """How rows of one source are dealt to a test set and to silos. Depends on values and seed, not on the machine."""

    silos: tuple[int, ...] = (1000, 2000, 3000, 4000)
    """Sizes of the silos in rows; scaled in proportion when the source has more or fewer training rows."""
    rows: int | None = None
    """Rows taken from the source (a seeded choice); None takes all."""
    test_rows: int | None = None
    """Rows of the common test set; None takes the paper's share, 2,897 of 12,897."""
    split: str = "grouped"
    """grouped (all polymorphs of a formula on one side) | random (as in the paper)"""
    partition: str = "size"
    """size | anion | chemical_system | sorted_target | dirichlet | column:<name>"""
    alpha: float = 0.5
    seed: int = 0
    group: str = "formula"
    """What no grouped split and no fold cuts: formula | chemical_system."""
    folds: int | str = 0
    """The test set is one of so many folds of all rows, or of matbench's five ("matbench"); 0: `test_rows` count."""
    fold: int = 1
    """Which one, from 1."""
    is_stratified: bool = False
    """Whether the target's classes are dealt evenly over matbench's folds."""

    def assign(self, frame: pd.DataFrame) -> dict[str, np.ndarray]:
        """Return part -> row positions in `frame`: "test", "pooled" (all training rows) and one part per silo."""
        if self.rows is not None:
            chosen = select_rows(frame, self.rows, self.seed)
        elif self.folds == "matbench":  # whose folds count the rows that cannot be used, too
            chosen = np.arange(len(frame))
        else:
            chosen = np.flatnonzero((frame["reason"] == "").to_numpy())
        subset = frame.iloc[chosen].reset_index(drop=True)
        train, test = self._split(subset)
        sizes = self._sizes(len(train))
        parts = partition_rows(subset, train, self.partition, sizes, self.seed, self.alpha)
        everything = {"test": test, "pooled": train, **parts}
        return {name: np.sort(chosen[index]) for name, index in everything.items()}

    def _split(self, subset: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
        """Return (train, test)."""
        if self.folds == "matbench":
            return matbench_fold(subset, self.fold, self.is_stratified)
        if self.folds:
            return grouped_fold(subset, int(self.folds), self.fold, self.group, self.seed)
        wanted = self._test_rows(len(subset))
        return split_rows(subset, test_rows=wanted, how=self.split, seed=self.seed, group=self.group)

    def _test_rows(self, rows: int) -> int:
        if self.test_rows is None and rows < 2 * (len(self.silos) + 1):
            raise ConfigError(
                f"the source has {rows} usable rows, too few for {len(self.silos)} silos of two rows and a test set; "
                "use fewer silos or more data"
            )
        test = self.test_rows if self.test_rows is not None else round(rows * PAPER_TEST_ROWS / PAPER_ROWS)
        if not 0 < test < rows:
            raise ConfigError(f"test_rows={test} must lie between 1 and {rows - 1}: the source has {rows} usable rows")
        return test

    def _sizes(self, train: int) -> tuple[int, ...]:
        """Scale the silo sizes to sum to the training rows; the last silo takes the rounding."""
        if train < len(self.silos):
            raise ConfigError(f"{len(self.silos)} silos need as many training rows, there are {train}; use fewer silos")
        bounds = [round(train * part / sum(self.silos)) for part in np.cumsum((0, *self.silos))]
        return tuple(int(stop - start) for start, stop in itertools.pairwise(bounds))


@dataclass(frozen=True)
class StudyPart:
    """One part of a plan: "test", "pooled" or a silo's name."""

    plan: StudyPlan
    name: str

    def take(self, frame: pd.DataFrame) -> pd.DataFrame:
        """Return this part's rows of `frame`, and no other.

        Unusable rows are dealt to the silos in turn, so that each is counted once, by the silo that has it.
        """
        parts = self.plan.assign(frame)
        if self.name not in parts:
            raise ConfigError(f"the plan has no part {self.name!r}; it has {', '.join(sorted(parts))}")
        silos = [name for name in parts if name not in ("test", "pooled")]
        unusable = np.flatnonzero((frame["reason"] != "").to_numpy())
        own = unusable[silos.index(self.name) :: len(silos)] if self.name in silos else unusable[:0]
        return frame.iloc[np.sort(np.concatenate([parts[self.name], own]))].reset_index(drop=True)
