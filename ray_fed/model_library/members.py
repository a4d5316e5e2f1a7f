"""What can be learned from a few rows of a target, with and without a library: the members of a transfer model.

member              learns on
direct              no source: mean of forest, extra trees, ridge and Gaussian process on every descriptor
sources             extra trees on what the sources predict
columns             extra trees on the richest descriptor beside what the sources predict
frozen              Gaussian process on all sources' frozen features

A member is fitted on some rows and predicts others; it looks at no other target value.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ray_fed.model_library.few_rows import FITTERS, PREDICTORS
from ray_fed.randomness import derived_seed


@dataclass(frozen=True)
class MemberInputs:
    """All columns of a target's rows that a member may use."""

    descriptors: Mapping[str, np.ndarray]
    """Name -> [rows, d]"""
    predictions: np.ndarray
    """What the sources predict, [rows, tables]."""
    frozen: Sequence[np.ndarray]
    """Frozen features by width, [sources, rows, p]."""

    def take(self, rows: np.ndarray) -> "MemberInputs":
        """Return some rows."""
        chosen = {name: values[rows] for name, values in self.descriptors.items()}
        return MemberInputs(chosen, self.predictions[rows], [group[:, rows] for group in self.frozen])

    @property
    def richest(self) -> np.ndarray:
        """Return the descriptor with the most columns."""
        return max(self.descriptors.values(), key=lambda values: values.shape[1])

    @property
    def side_by_side(self) -> np.ndarray:
        """Return all frozen features of a row, float32 [rows, sources x p]."""
        return np.concatenate([group.transpose(1, 0, 2).reshape(group.shape[1], -1) for group in self.frozen], axis=1)


Predict = Callable[[MemberInputs, np.ndarray, MemberInputs, int], np.ndarray]
"""(inputs [n], targets [n], new inputs [m], seed) -> predictions [m]"""


def learned(learner: str, x: np.ndarray, y: np.ndarray, new: np.ndarray, seed: int) -> np.ndarray:
    """Return what a learner of `few_rows` predicts of new rows."""
    return PREDICTORS[learner](FITTERS[learner](x, y, seed), new)


def direct_members(inside: MemberInputs, y: np.ndarray, new: MemberInputs, seed: int) -> dict[str, np.ndarray]:
    """Return predictions [m] by "LEARNER DESCRIPTOR", of all learners on all descriptors."""
    return {
        f"{learner} {name}": learned(
            learner, values, y, new.descriptors[name], derived_seed(seed, learner, name) % 2**31
        )
        for name, values in inside.descriptors.items()
        for learner in FITTERS
    }


def direct(inside: MemberInputs, y: np.ndarray, new: MemberInputs, seed: int) -> np.ndarray:
    """Return the mean of all learners on all descriptors: no source, and no choice that a few rows could spoil."""
    return np.mean(list(direct_members(inside, y, new, seed).values()), axis=0)


def sources(inside: MemberInputs, y: np.ndarray, new: MemberInputs, seed: int) -> np.ndarray:
    return learned("extra_trees", inside.predictions, y, new.predictions, seed)


def columns(inside: MemberInputs, y: np.ndarray, new: MemberInputs, seed: int) -> np.ndarray:
    both, others = (np.hstack((one.richest, one.predictions)) for one in (inside, new))
    return learned("extra_trees", both, y, others, seed)


def frozen(inside: MemberInputs, y: np.ndarray, new: MemberInputs, seed: int) -> np.ndarray:
    first, second = (one.side_by_side.astype(np.float64) for one in (inside, new))
    return learned("gaussian_process", first, y, second, seed)
