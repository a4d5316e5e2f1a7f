"""Choosing among many sources on few target rows: what the paper reports, and what is true of it.

    word        what
    direct      no transfer: mean of forest, extra trees, ridge and Gaussian process on every descriptor (members.py)
    stack       all members, "direct" among them, weighed by their errors on rows they have not seen: what is saved
    paper       the source of least CV error among all; its *CV error* is what Yamada et al. report
    nested      the same choice inside each outer fold, evaluated on that fold: no selection bias, from the same rows
    ensemble    mean of the k best sources by CV
    ranked      the source with the best error on its own property, relative to its baseline; looks at no target row
    median      the median over the sources: what a random choice would give
    oracle      the best source by held-out error: the limit, not available in practice
    permuted    the best CV error among all sources when the targets are shuffled: how much of a gain is only choosing

Every number is a mean absolute error in the target's unit. CV errors and held-out errors are given side by side.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ray_fed.errors import DataError, Trouble
from ray_fed.model_library.few_rows import NUM_TREES
from ray_fed.model_library.heads import Head, cross_validated, fitted
from ray_fed.model_library.members import (
    Effort,
    FewRows,
    MemberInputs,
    direct,
    fit_stack,
    fold_rows,
    member_predictions,
    weighed,
    widest,
)
from ray_fed.randomness import derived_seed, generator


@dataclass(frozen=True)
class SourceFeatures:
    """Frozen features of one target table under many sources, grouped by width.

    groups  per width p: float32 [sources, rows, p]
    ids     id of each source, groups behind each other
    errors  each source's held-out MAE on its own property over its baseline's, [sources]; lower is better
    predictions, tables   what all models of one source table predict on average, float64 [rows, tables]
    """

    groups: tuple[np.ndarray, ...]
    ids: tuple[str, ...]
    errors: np.ndarray
    predictions: np.ndarray
    tables: tuple[str, ...]

    def rows(self, chosen: np.ndarray) -> list[np.ndarray]:
        """Return the features of these rows, [sources, len(chosen), p] per group, float64."""
        return [group[:, chosen].astype(np.float64) for group in self.groups]


@dataclass(frozen=True)
class TransferTarget:
    """A small target with everything known about it: the study hides most rows from itself."""

    descriptors: Mapping[str, np.ndarray]
    """Name -> raw features [rows, d], for the models without transfer, sorted by name."""
    values: np.ndarray
    """[rows]"""
    groups: np.ndarray
    """Composition or molecule of each row; rows of one group are never on both sides."""


@dataclass(frozen=True)
class Protocol:
    """How a study goes."""

    rows: int = 50
    folds: int = 5
    ensemble: int = 10
    permutations: int = 0
    max_held_out: int = 1000
    seed: int = 0
    num_trees: int = NUM_TREES
    """Of each forest of the members."""
    clusters: int = 0
    """Clusters of the descriptor: one is held out in turn, folds keep them together; 0: rows at random."""


@dataclass(frozen=True)
class Draw:
    """One draw of training rows: errors by word, and what the figures show."""

    cv: Mapping[str, float]
    """MAE from the training rows alone; NaN where there is none."""
    held_out: Mapping[str, float]
    """MAE on rows that nothing has seen."""
    permuted: tuple[float, ...]
    """Best CV MAE among all sources for shuffled targets, over that of predicting the mean."""
    chosen: str
    """id of the source chosen by CV."""
    source_cv: np.ndarray
    """CV MAE of every source."""
    source_held_out: np.ndarray
    """Held-out MAE of every source."""
    parity: Mapping[str, tuple[np.ndarray, np.ndarray]]
    """"cv", "held out", "direct held out" -> (wanted, predicted)."""


def one_draw(target: TransferTarget, sources: SourceFeatures, head: Head, protocol: Protocol, number: int) -> Draw:
    """Draw training rows, choose among the sources by several rules, and evaluate them on the held-out rows.

    DataError when the target has too few groups to train and to hold out.
    """
    inside, outside, fold_groups = _drawn(target, protocol, number)
    wanted, truth = target.values[inside], target.values[outside]
    folds = fold_rows(fold_groups, protocol.folds, generator(protocol.seed, "folds", number))
    seed = derived_seed(protocol.seed, "head", number) % 2**31
    features = sources.rows(inside)
    out_of_fold = cross_validated(head, features, wanted, folds, seed)
    predicted = fitted(head, features, wanted, sources.rows(outside), seed)
    cv, held_out = np.abs(out_of_fold - wanted).mean(1), np.abs(predicted - truth).mean(1)
    order = np.argsort(cv, kind="stable")
    best, several = order[0], order[: protocol.ensemble]
    ensemble = predicted[several].mean(0)
    nested = _nested(head, features, fold_groups, wanted, protocol, seed, number)
    inputs = member_inputs(target, sources)
    effort = Effort(protocol.folds, protocol.ensemble, protocol.num_trees, seed)
    stack = fit_stack(FewRows(inputs.take(inside), wanted, fold_groups), effort)
    new = member_predictions(stack.arrays, inputs.take(outside))
    stacked = weighed(new, stack.weights)
    return Draw(
        cv={
            "direct": stack.error("direct"), "stack": stack.error("stack"),
            "paper": float(cv[best]), "nested": nested["paper"], "ensemble": nested["ensemble"],
            "ranked": _of_ranked(sources, cv), "median": float(np.median(cv)), "oracle": float("nan"),
        },
        held_out={
            "direct": mean_error(direct(new), truth), "stack": mean_error(stacked, truth),
            "paper": float(held_out[best]), "nested": float(held_out[best]), "ensemble": mean_error(ensemble, truth),
            "ranked": _of_ranked(sources, held_out), "median": float(np.median(held_out)),
            "oracle": float(held_out.min()),
        },
        permuted=_permuted(head, features, wanted, folds, protocol, number),
        chosen=sources.ids[best],
        source_cv=cv,
        source_held_out=held_out,
        parity={
            "cv": (wanted, out_of_fold[best]), "held out": (truth, predicted[best]),
            "stack held out": (truth, stacked), "direct held out": (truth, direct(new)),
        },
    )  # fmt: skip


def member_inputs(target: TransferTarget, sources: SourceFeatures) -> MemberInputs:
    """Return all columns of a target's rows."""
    return MemberInputs(target.descriptors, sources.predictions, sources.groups)


def _of_ranked(sources: SourceFeatures, errors: np.ndarray) -> float:
    """Return the error of the source that is best on its own property; NaN where no source's card tells its error."""
    known = np.isfinite(sources.errors)
    return float(errors[np.nanargmin(sources.errors)]) if known.any() else float("nan")


def _drawn(target: TransferTarget, protocol: Protocol, number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return training rows, held-out rows, and what keeps training rows together in folds."""
    if not protocol.clusters:
        inside, outside = draw_rows(target.groups, protocol, number)
        return inside, outside, target.groups[inside]
    clusters = clusters_of(widest(target.descriptors), protocol.clusters, protocol.seed)
    held = number % protocol.clusters
    draw = generator(protocol.seed, "cluster draw", number)
    known = set(target.groups[clusters != held].tolist())
    outside = np.flatnonzero((clusters == held) & ~np.isin(target.groups, list(known)))
    inside = draw.permutation(np.flatnonzero(clusters != held))[: protocol.rows]
    if len(inside) < protocol.rows or len(outside) < 5:
        raise DataError(f"clusters={protocol.clusters}: cluster {held} leaves {len(inside)} rows to learn from and "
                        f"{len(outside)} held out; lower --rows or --clusters")  # fmt: skip
    return inside, draw.permutation(outside)[: protocol.max_held_out], clusters[inside]


def clusters_of(descriptor: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Return the cluster of each row, int [rows]: k-means on the standardised descriptor."""
    from sklearn.cluster import KMeans

    spread = descriptor.std(0)
    scaled = np.clip((descriptor - descriptor.mean(0)) / np.where(spread > 0, spread, 1), -5, 5)
    return KMeans(count, random_state=seed % 2**32).fit_predict(scaled)


def draw_rows(groups: np.ndarray, protocol: Protocol, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Return training rows, one per group, and held-out rows of other groups."""
    draw = generator(protocol.seed, "transfer draw", number)
    shuffled = draw.permutation(len(groups))
    _, first = np.unique(groups[shuffled], return_index=True)
    if len(first) < protocol.rows + 5:
        raise DataError(
            f"the target has {len(first)} different materials; {protocol.rows} to learn from and 5 held out are too "
            "many; lower --rows",
            failure=Trouble.TOO_FEW_ROWS,
        )
    inside = shuffled[np.sort(first)[: protocol.rows]]
    outside = np.flatnonzero(~np.isin(groups, groups[inside]))
    return inside, draw.permutation(outside)[: protocol.max_held_out]


def mean_error(predicted: np.ndarray, wanted: np.ndarray) -> float:
    """Return the mean absolute error."""
    return float(np.abs(predicted - wanted).mean())


def _nested(
    head: Head, features: Sequence[np.ndarray], groups: np.ndarray, wanted: np.ndarray, protocol: Protocol, seed: int,
    number: int,
) -> dict[str, float]:  # fmt: skip
    """Return the errors of choosing within each outer fold: of the best source, and of the mean of the best k."""
    best, several = np.empty(len(wanted)), np.empty(len(wanted))
    outer = fold_rows(groups, protocol.folds, generator(protocol.seed, "outer folds", number))
    for at, fold in enumerate(outer):
        rest = np.setdiff1d(np.arange(len(wanted)), fold)
        x = [group[:, rest] for group in features]
        inner = fold_rows(groups[rest], protocol.folds, generator(protocol.seed, "inner folds", number, at))
        order = np.argsort(np.abs(cross_validated(head, x, wanted[rest], inner, seed) - wanted[rest]).mean(1))
        predicted = fitted(head, x, wanted[rest], [group[:, fold] for group in features], seed)
        best[fold], several[fold] = predicted[order[0]], predicted[order[: protocol.ensemble]].mean(0)
    return {"paper": mean_error(best, wanted), "ensemble": mean_error(several, wanted)}


def _permuted(
    head: Head, features: Sequence[np.ndarray], wanted: np.ndarray, folds: Sequence[np.ndarray], protocol: Protocol,
    number: int,
) -> tuple[float, ...]:  # fmt: skip
    """Return the best CV error among all sources for shuffled targets, relative to predicting their mean."""
    found, alone = [], mean_error(np.full_like(wanted, wanted.mean()), wanted)
    for repeat in range(protocol.permutations):
        shuffled = generator(protocol.seed, "permutation", number, repeat).permutation(wanted)
        predicted = cross_validated(head, features, shuffled, folds, repeat)
        found.append(float(np.abs(predicted - shuffled).mean(1).min()) / alone)
    return tuple(found)
