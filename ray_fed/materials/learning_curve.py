"""What a silo gains from a model of the others as a function of how many rows it has itself; answered before it joins.

The model was trained without the silo, so it has seen none of its rows. Some of them are taken, whole groups at a time;
a fifth of these chooses lengths and weights, the others are learned from. Then the mixture with the model of the others
is compared with the mixture without, on rows that took no part in either.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import ceil
from typing import Any

import numpy as np

from ray_fed.federation.messages import Vector
from ray_fed.learning.trainer import TrainingPlan
from ray_fed.materials.member_answers import (
    GAINED,
    LOST,
    OWN,
    PERSONAL,
    Both,
    SiloLike,
    member_scores,
    unseen_rows,
)
from ray_fed.materials.personal import FEWEST_ROWS, Rows, Workshop
from ray_fed.materials.row_counts import TEST
from ray_fed.randomness import generator

CHOOSING = 5
"""One group of so many chooses; the others are learned from."""
OF_A_POINT = (PERSONAL, OWN, GAINED, LOST)


@dataclass(frozen=True)
class Point:
    """How many rows, and which draw of them."""

    share: float
    """Of the silo's rows."""
    draw: int

    @property
    def name(self) -> str:
        return f"share{round(1000 * self.share)}.draw{self.draw}"


def points(shares: Sequence[float], draws: int) -> list[Point]:
    return [Point(share, draw) for share in shares for draw in range(draws)]


def names_of(asked: Sequence[Point]) -> list[str]:
    """Return the names by which a silo tells of points."""
    return [f"{name}.{point.name}" for point in asked for name in OF_A_POINT]


def curve(
    silo: SiloLike, asked: Sequence[Point], method: str, plan: TrainingPlan, batch_size: int, others: Vector
) -> dict[str, Both]:
    """Return name of `names_of` -> scores on the rows that chose, and on unseen ones; without points of too few
    rows."""
    unseen, found = unseen_rows(silo), dict[str, Both]()
    for point, workshop in _workshops(silo, asked, plan, batch_size):
        personal = workshop.personal(method, others, workshop.own_network())
        scores = member_scores(silo.task, personal, workshop.calibration, unseen)
        found |= {f"{name}.{point.name}": scores[name] for name in OF_A_POINT if name in scores}
    return found


def _workshops(
    silo: SiloLike, asked: Sequence[Point], plan: TrainingPlan, batch_size: int
) -> Iterator[tuple[Point, Workshop]]:
    rows: Any = silo.rows
    whole = Rows(rows.features, rows.targets, rows.formulas[TEST], rows.groups)
    for point in asked:
        chosen = drawn(whole.groups, point, plan.seed, silo.spec.name)
        learned, choosing = _split(whole.groups, chosen)
        if len(choosing) < FEWEST_ROWS:
            continue
        steps = ceil(len(learned) / batch_size)
        part = replace(rows, features=rows.features[learned], targets=rows.targets[learned])
        samples = silo.task.prepare(part, silo.samples.standardizer, silo.device)
        drawn_plan = replace(plan, steps_per_epoch=steps, seed=plan.seed + point.draw)
        yield (
            point,
            Workshop(silo.task, samples, whole.taken(learned), whole.taken(choosing), drawn_plan, silo.spec.name),
        )


def drawn(groups: Sequence[str], point: Point, seed: int, silo: str) -> np.ndarray:
    """Return the rows of a point, ascending: groups in an order of the draw's, until there are as many as asked for.
    Fewer rows of one draw are among its more."""
    names = sorted(set(groups))
    order = generator(seed, "rows of a curve", point.draw, silo).permutation(len(names))
    place = {names[number]: at for at, number in enumerate(order)}
    at = np.array([place[group] for group in groups])
    counts = np.cumsum(np.bincount(at, minlength=len(names)))
    num_groups = int(np.searchsorted(counts, point.share * len(groups), side="left")) + 1
    return np.flatnonzero(at < num_groups)


def _split(groups: Sequence[str], rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows to learn from, and those to choose by: every fifth group."""
    numbers: list[int] = rows.tolist()
    taken = [groups[at] for at in numbers]
    names = {group: at for at, group in enumerate(sorted(set(taken)))}
    chooses = np.array([names[group] % CHOOSING == 0 for group in taken])
    return rows[~chooses], rows[chooses]
