"""What can be learned from a few rows of a target, with and without a library: the members of a transfer model.

member                                                 learns on
random_forest, extra_trees, ridge, gaussian_process    no source: every descriptor, the mean over them
sources                                                extra trees on what the sources predict
columns                                                extra trees on the richest descriptor and these predictions
frozen                                                 Gaussian process on all sources' frozen features
best                                                   mean of ridge regressions on the frozen features of the sources
                                                       that are best by cross-validation

"direct" is the mean of the four members without a source: what a user has without any library.

A member is fitted on some rows and predicts others; it looks at no other target value. The stack weighs them:

    w = argmin sum_i (y_i - sum_m w_m f_m(x_i))² / (n var y) + PULL sum_m (w_m - 1/M)²,   w_m >= 0, sum_m w_m = 1

with f_m(x_i) predicted by a member that has not seen the row's material. The second term keeps the weights of a few
rows near the plain mean, of which "no transfer" is a half.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ray_fed.model_library.few_rows import FITTERS, NUM_TREES, PREDICTORS
from ray_fed.model_library.heads import RidgeFit, cross_validated, fit_ridge, ridge
from ray_fed.randomness import derived_seed, generator

PULL = 0.03
STEPS, STEP = 400, 0.3
"""Of the multiplicative descent that finds the weights."""

Arrays = Mapping[str, np.ndarray]


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

    def __len__(self) -> int:
        return len(self.predictions)

    @property
    def both(self) -> np.ndarray:
        """Return the descriptor with the most columns beside what the sources predict."""
        return np.hstack((widest(self.descriptors), self.predictions))

    @property
    def side_by_side(self) -> np.ndarray:
        """Return all frozen features of a row, float64 [rows, sources x p]."""
        parts = [group.transpose(1, 0, 2).reshape(group.shape[1], -1) for group in self.frozen]
        return np.concatenate(parts, axis=1).astype(np.float64)

    def of_source(self, number: int) -> np.ndarray:
        """Return the frozen features of one source, counted over all groups, float64 [rows, p]."""
        for group in self.frozen:
            if number < len(group):
                return group[number].astype(np.float64)
            number -= len(group)
        raise IndexError(number)


def widest(descriptors: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return the descriptor with the most columns, [rows, d]."""
    return max(descriptors.values(), key=lambda values: values.shape[1])


@dataclass(frozen=True)
class FewRows:
    """What a member learns from."""

    inputs: MemberInputs
    targets: np.ndarray
    """[n]"""
    groups: np.ndarray
    """Material of each row: rows of one are on one side of every split."""

    def take(self, rows: np.ndarray) -> "FewRows":
        return FewRows(self.inputs.take(rows), self.targets[rows], self.groups[rows])


@dataclass(frozen=True)
class Effort:
    """How much is spent on a stack."""

    folds: int = 5
    best: int = 10
    """Sources of the member `best`."""
    num_trees: int = NUM_TREES
    seed: int = 0


@dataclass(frozen=True)
class StackMember:
    """One way to learn from a few rows."""

    fit: Callable[[FewRows, Effort], dict[str, np.ndarray]]
    predict: Callable[[Arrays, MemberInputs], np.ndarray]


def fold_rows(groups: np.ndarray, folds: int, draw: np.random.Generator) -> list[np.ndarray]:
    """Return the rows of each fold; groups stay together, folds are as even as that allows."""
    names = draw.permutation(np.unique(groups))
    parts = [np.flatnonzero(np.isin(groups, part)) for part in np.array_split(names, min(folds, len(names)))]
    return [part for part in parts if len(part)]


def _on_descriptors(learner: str) -> StackMember:
    """Return the member that is the mean over the descriptors of one learner: no source, and no order of them."""

    def fit(rows: FewRows, effort: Effort) -> dict[str, np.ndarray]:
        arrays = {}
        for name, values in rows.inputs.descriptors.items():
            found = FITTERS[learner](values, rows.targets, derived_seed(effort.seed, learner, name), effort.num_trees)
            arrays |= {f"{name}.{key}": value for key, value in found.items()}
        return arrays

    def predict(arrays: Arrays, inputs: MemberInputs) -> np.ndarray:
        predicted = [
            PREDICTORS[learner](inside(arrays, f"{name}."), values) for name, values in inputs.descriptors.items()
        ]
        return np.mean(predicted, axis=0)

    return StackMember(fit, predict)


def _fit_best(rows: FewRows, effort: Effort) -> dict[str, np.ndarray]:
    groups = [group.astype(np.float64) for group in rows.inputs.frozen]
    folds = fold_rows(rows.groups, effort.folds, generator(effort.seed, "best folds"))
    errors = np.abs(cross_validated(ridge, groups, rows.targets, folds, effort.seed) - rows.targets).mean(1)
    chosen = np.argsort(errors, kind="stable")[: effort.best]
    arrays = {"chosen": chosen.astype(np.int32)}
    for source in chosen.tolist():
        fit = fit_ridge(rows.inputs.of_source(source)[None], rows.targets)
        arrays |= {f"{source}.{key}": np.asarray(value, np.float64).ravel() for key, value in vars(fit).items()}
    return arrays


def _predict_best(arrays: Arrays, inputs: MemberInputs) -> np.ndarray:
    predicted = []
    for source in arrays["chosen"].tolist():
        part = inside(arrays, f"{source}.")
        fit = RidgeFit(part["centre"][None, None], part["scale"][None, None], part["width"][None, None],
                       part["coefficients"][None, :, None], float(part["mean"][0]))  # fmt: skip
        predicted.append(fit.predict(inputs.of_source(source)[None])[0])
    return np.mean(predicted, axis=0)


def _on(learner: str, columns: Callable[[MemberInputs], np.ndarray]) -> StackMember:
    """Return the member that is one learner on some columns."""
    return StackMember(
        lambda rows, effort: FITTERS[learner](
            columns(rows.inputs), rows.targets, derived_seed(effort.seed, learner), effort.num_trees
        ),
        lambda arrays, inputs: PREDICTORS[learner](arrays, columns(inputs)),
    )


MEMBERS: Mapping[str, StackMember] = {
    **{learner: _on_descriptors(learner) for learner in FITTERS},
    "sources": _on("extra_trees", lambda inputs: inputs.predictions),
    "columns": _on("extra_trees", lambda inputs: inputs.both),
    "frozen": _on("gaussian_process", lambda inputs: inputs.side_by_side),
    "best": StackMember(_fit_best, _predict_best),
}
"""Name -> how it is fitted and predicts."""


def inside(arrays: Arrays, prefix: str) -> dict[str, np.ndarray]:
    """Return the arrays whose name begins with a prefix, without it."""
    return {name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)}


@dataclass(frozen=True)
class Stack:
    """Members and their weights, and what they predict of rows they have not seen."""

    arrays: Mapping[str, np.ndarray]
    """"MEMBER.ARRAY" -> value"""
    weights: Mapping[str, float]
    targets: np.ndarray
    """[n]"""
    out_of_fold: Mapping[str, np.ndarray]
    """Name -> prediction of each row by a member that has not seen its material, [n]; "direct"; and "stack", with
    weights that have not seen it either."""

    def error(self, name: str) -> float:
        """Return the mean absolute error of one of `out_of_fold`."""
        return float(np.abs(self.out_of_fold[name] - self.targets).mean())

    def predict(self, inputs: MemberInputs) -> np.ndarray:
        """Return predictions [m]."""
        return weighed(member_predictions(self.arrays, inputs), self.weights)


def fit_stack(rows: FewRows, effort: Effort) -> Stack:
    """Fit all members and weigh them by their predictions of rows they have not seen."""
    folds = fold_rows(rows.groups, effort.folds, generator(effort.seed, "stack folds"))
    everything = np.arange(len(rows.targets))
    seen = {name: np.empty(len(rows.targets)) for name in MEMBERS}
    for fold in folds:
        part = rows.take(np.setdiff1d(everything, fold))
        for name, member in MEMBERS.items():
            seen[name][fold] = member.predict(member.fit(part, effort), rows.inputs.take(fold))
    together = np.stack(list(seen.values()), axis=1)
    stack = np.empty(len(rows.targets))
    for fold in folds:
        rest = np.setdiff1d(everything, fold)
        stack[fold] = together[fold] @ stack_weights(together[rest], rows.targets[rest])
    weights = dict(zip(MEMBERS, stack_weights(together, rows.targets).tolist(), strict=True))
    arrays = {
        f"{name}.{key}": value for name, member in MEMBERS.items() for key, value in member.fit(rows, effort).items()
    }
    return Stack(arrays, weights, rows.targets, {**seen, "direct": direct(seen), "stack": stack})


def direct(predicted: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return the mean of the members without a source."""
    return np.mean([predicted[learner] for learner in FITTERS], axis=0)


def stack_weights(predicted: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Return the weights [members] of predictions [n, members]; see the module's head."""
    count = predicted.shape[1]
    weights, spread = np.full(count, 1 / count), float(np.var(targets)) or 1.0
    for _ in range(STEPS):
        slope = -2 * predicted.T @ (targets - predicted @ weights) / len(targets) / spread
        slope += 2 * PULL * (weights - 1 / count)
        weights = weights * np.exp(-STEP * np.clip(slope, -10, 10))
        weights /= weights.sum()
    return weights


def member_predictions(arrays: Arrays, inputs: MemberInputs) -> dict[str, np.ndarray]:
    """Return what each member predicts, [m]."""
    return {name: member.predict(inside(arrays, f"{name}."), inputs) for name, member in MEMBERS.items()}


def weighed(predicted: Mapping[str, np.ndarray], weights: Mapping[str, float]) -> np.ndarray:
    """Return the weighed mean of members' predictions, [m]."""
    return np.sum([weights[name] * values for name, values in predicted.items()], axis=0)
