"""One measured rate, and the one it is compared with."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Measurement:
    """How fast a way of doing something is."""

    what: str
    way: str
    rate: float
    """In `unit`; more is better."""
    unit: str
    reference: float
    """Rate of the plain way, measured in the same run."""

    @property
    def ratio(self) -> float:
        return self.rate / self.reference


def cells(measurements: Sequence[Measurement]) -> list[tuple[str, ...]]:
    """Return a table; what is measured is named in the first row of its group only."""
    rows: list[tuple[str, ...]] = [("what", "way", "rate", "", "ratio")]
    before = ""
    for one in measurements:
        what = "" if one.what == before else one.what
        rows.append((what, one.way, f"{one.rate:,.3g}" if one.rate < 1000 else f"{one.rate:,.0f}", one.unit,
                     f"{one.ratio:.2f}"))  # fmt: skip
        before = one.what
    return rows
