"""How far ours is ahead of each other attack of its kind on the same images, with intervals."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from pipelines.leakage.results import EXACT, MethodResult, Row, number
from ray_fed.leakage.attacks import ATTACKS
from ray_fed.leakage.fidelity import difference_interval

OURS, OURS_ITERATIVE = "ours", "l2_grey"
"""Ours with its algebra, and what it is without: each is set against its kind."""


@dataclass(frozen=True)
class Margin:
    """Ours against one other attack on one set of images."""

    data: str
    mine: str
    """ours, or its iterative part."""
    rival: str
    ours: MethodResult
    theirs: MethodResult
    sooner: int
    """Images that ours brought below 1e-3 in fewer evaluations, or alone."""
    later: int
    """Images that the other brought below 1e-3 in fewer evaluations, or alone."""
    fold: float
    """The other's evaluations to 1e-3 divided by ours, median over images. An attack that never gets there counts with
    its whole budget, so this is a lower bound."""

    @property
    def gain(self) -> float:
        """Return the difference of the rates of images below 1e-3."""
        return self.ours.exact / self.ours.samples - self.theirs.exact / self.theirs.samples

    @property
    def interval(self) -> tuple[float, float]:
        """Return the 95 % interval of `gain`."""
        return difference_interval((self.ours.exact, self.ours.samples), (self.theirs.exact, self.theirs.samples))

    @property
    def is_ahead(self) -> bool:
        """Whether ours finds at least as many images, and most of them sooner."""
        return self.gain >= 0 and self.sooner > self.later


def margins(
    data: str, methods: Mapping[str, MethodResult], rows: Mapping[str, Sequence[Row]], budget: int
) -> list[Margin]:
    """Return ours against every other attack of its kind; rows: attack -> one per image, of the same images."""
    ran = {name: result for name, result in methods.items() if result.attacks}
    found = []
    for mine, family in ((OURS, "algebraic"), (OURS_ITERATIVE, "iterative")):
        if mine in ran:
            spent = _evaluations(rows[mine])
            rivals = [name for name in ran if name != mine and rows[name] and ATTACKS[name].family == family]
            found += [_margin(data, mine, name, ran, spent, _evaluations(rows[name]), budget) for name in rivals]
    return found


def _margin(
    data: str, own: str, rival: str, methods: Mapping[str, MethodResult], mine: Mapping[int, float],
    their: Mapping[int, float], budget: int,
) -> Margin:  # fmt: skip
    both = [(mine[image], their[image]) for image in mine if image in their]
    capped = [(min(a, budget), min(b, budget)) for a, b in both]
    return Margin(
        data, own, rival, methods[own], methods[rival], sum(a < b for a, b in both), sum(b < a for a, b in both),
        median(b / a for a, b in capped),
    )  # fmt: skip


def _evaluations(rows: Sequence[Row]) -> dict[int, float]:
    """Return problem -> evaluations to 1e-3, infinite where it never got there."""
    ran = (row for row in rows if "failed" not in row)
    return {int(number(row, "problem")): number(row, f"evaluations_to_{EXACT}") or float("inf") for row in ran}


HEADER = ["data", "ours", "against", "more below 1e-3 (points)", "95 % interval", "sooner / later", "evaluations saved"]


def as_row(margin: Margin) -> list[str]:
    """Return a line of the report's table."""
    low, high = margin.interval
    return [
        margin.data, margin.mine, margin.rival, f"{100 * margin.gain:+.0f}", f"{100 * low:+.0f} .. {100 * high:+.0f}",
        f"{margin.sooner} / {margin.later}", f"{margin.fold:.1f} times",
    ]  # fmt: skip
