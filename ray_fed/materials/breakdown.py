"""Where a model errs, and on what it rests: errors by element and by chemistry, worst rows, shuffled properties.

Groups overlap: a row counts for each of its elements and for one anion class. A row's group is the text that
`chemical_groups.composition_keys` makes of its formula.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ray_fed.materials.chemical_groups import ANION_CLASSES, ANIONS_BY_ELECTRONEGATIVITY
from ray_fed.materials.features.elements import SYMBOLS
from ray_fed.metrics import Metric, Scores
from ray_fed.randomness import generator

ANIONS = tuple(f"anion.{name}" for name in (*ANION_CLASSES, "other"))
ELEMENTS = tuple(f"element.{symbol}" for symbol in SYMBOLS)
GROUPS = (*ANIONS, *ELEMENTS)
"""All groups there are; of chemistry first."""
NUM_WORST = 10
LONGEST_NAME = 60


def atomic_numbers(key: str) -> set[int]:
    """Return the elements of a composition key "8:3,22:1,38:1"; none of one that was no formula."""
    return {int(part.split(":")[0]) for part in key.split(",")} if key and not key.startswith("?") else set()


def group_masks(keys: Sequence[str], names: Sequence[str]) -> dict[str, np.ndarray]:
    """Return name of a group -> which rows are in it, bool [rows]. A name that is no group has no rows."""
    masks = {name: np.zeros(len(keys), bool) for name in names}
    for row, key in enumerate(keys):
        for name in _groups_of(key):
            if name in masks:
                masks[name][row] = True
    return masks


def _groups_of(key: str) -> list[str]:
    present = atomic_numbers(key)
    anion = next((number for number in ANIONS_BY_ELECTRONEGATIVITY if number in present), None)
    kind = next((name for name, members in ANION_CLASSES.items() if anion in members), "other")
    return [f"anion.{kind}", *(f"element.{SYMBOLS[number - 1]}" for number in sorted(present))]


def shuffled_columns(features: np.ndarray, columns: Sequence[int], name: str, seed: int = 0) -> np.ndarray:
    """Return features [rows, d] with some columns shuffled among the rows, together: each row gets those of another."""
    shuffled = features.copy()
    if len(columns) and len(features):
        order = generator(seed, "shuffled features", name).permutation(len(features))
        shuffled[:, columns] = features[order][:, columns]
    return shuffled


def shuffled_rows(task: Any, features: Any, columns: Sequence[int], name: str) -> Any:
    """Return features of a property task with some columns of their table shuffled among the rows."""
    return task.changed(features, shuffled_columns(task.described(features), columns, name))


def row_badness(task: Any, targets: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Return how far off each prediction is, [rows]: the error of the first target; of classes 1 less the chance of the
    true one; NaN without a label."""
    first = targets.reshape(len(targets), -1)[:, 0]
    classes = task.targets[0].classes
    if not classes:
        return np.abs(predicted[:, 0] - first)
    known = np.nan_to_num(first, nan=0).astype(int)
    chance = np.take_along_axis(predicted[:, : len(classes)], known[:, None], axis=1)[:, 0]
    return np.where(np.isnan(first), np.nan, 1.0 - chance)


def worst_rows(task: Any, names: Sequence[str], targets: np.ndarray, predicted: np.ndarray) -> list[str]:
    """Return one line for each of the rows that are farthest off, the worst first: for who may see rows."""
    return [
        f"{one.name}: {one.true:.6g}, predicted {one.predicted:.6g}" for one in worst(task, names, targets, predicted)
    ]


@dataclass(frozen=True)
class WorstRow:
    """One row that a model misses."""

    name: str
    true: float
    """Of a class, its number."""
    predicted: float
    """Of classes the chance of the true one."""
    badness: float


def worst(task: Any, names: Sequence[str], targets: np.ndarray, predicted: np.ndarray) -> list[WorstRow]:
    """Return the NUM_WORST rows that are farthest off, the worst first. names: what their owner calls them."""
    off = row_badness(task, targets, predicted)
    order = np.argsort(-np.nan_to_num(off, nan=-1.0), kind="stable")[:NUM_WORST]
    first, is_class = targets.reshape(len(targets), -1)[:, 0], bool(task.targets[0].classes)
    return [
        WorstRow(
            str(names[row])[:LONGEST_NAME], float(first[row]), float(1 - off[row] if is_class else predicted[row, 0]),
            float(off[row]),
        )
        for row in order.tolist()
        if np.isfinite(off[row])
    ]  # fmt: skip


def scores_of_groups(task: Any, keys: Sequence[str], targets: np.ndarray, predicted: np.ndarray) -> dict[str, Scores]:
    """Return group -> scores of its rows, of all groups that have some; for rows that who asks may see."""
    masks = group_masks(keys, GROUPS)
    return {name: task.score(targets[mask], predicted[mask]) for name, mask in masks.items() if mask.any()}


def table(groups: Mapping[str, Scores], metric: Metric, fewest: int) -> list[tuple[str, int, float]]:
    """Return (group, rows, value) of groups with enough rows: anion classes, then elements, the worst first."""
    found = [
        (name, scores.num_examples, scores.values()[metric.name])
        for name, scores in groups.items()
        if scores.num_examples >= fewest and np.isfinite(scores.values().get(metric.name, np.nan))
    ]
    sign = 1 if metric.higher_is_better else -1
    return sorted(found, key=lambda row: (not row[0].startswith("anion."), sign * row[2]))


def importances(shuffles: Mapping[str, Scores], metric: Metric, whole: str) -> list[tuple[str, float]]:
    """Return (property, by how much the metric is worse with it shuffled), the most important first."""
    plain = shuffles[whole].values()[metric.name]
    found = [(name, metric.gain(plain, scores.values()[metric.name])) for name, scores in shuffles.items()]
    return sorted(((name, lost) for name, lost in found if name != whole), key=lambda each: -each[1])
