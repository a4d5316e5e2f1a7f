"""What a metric is: its name, unit, direction and digits."""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ray_fed.config import require

METRIC_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_ .-]{0,63}")
TRAIN_LOSS = "train_loss"
"""Key of a round's mean training loss, and last part of a silo's: never that of an evaluation."""
RESERVED = (
    TRAIN_LOSS, "server_round", "num_examples", "bytes_sent", "participants", "failures", "epsilon", "seconds_compute",
    "seconds_communicate",
)  # fmt: skip
"""What tables and curves hold besides metrics."""


@dataclass(frozen=True)
class Metric:
    """One number that an evaluation tells of a model. All that terminal, history, report, figures, TensorBoard, sweep
    and gate know of it. ConfigError for a name that is none, or is taken."""

    name: str
    """Its key: 1 to 64 letters, digits, spaces, "_", "." and "-", beginning with a letter."""
    unit: str
    """Unit of its values; "" for a pure number."""
    higher_is_better: bool
    """Whether more of it is better."""
    digits: int
    """Decimals in tables."""
    label: str = ""
    """What people call it; its name if empty."""
    is_detail: bool = False
    """Kept in history and TensorBoard only, not in summary, tables and figures."""

    def __post_init__(self) -> None:
        wanted = "must be 1 to 64 letters, digits, '_', ' ', '.' or '-' after a letter"
        require(METRIC_NAME.fullmatch(self.name) is not None, f"metric name {self.name!r} {wanted}")
        require(self.name not in RESERVED, f"metric name {self.name!r} is taken; {', '.join(RESERVED)} are no metrics")
        require(self.digits >= 0, f"metric {self.name!r}: digits={self.digits} must be 0 or more")

    @property
    def title(self) -> str:
        """How it is called: "MAE"."""
        return self.label or self.name

    @property
    def heading(self) -> str:
        """How a column of it is called: "MAE (eV/atom)"."""
        return f"{self.title} ({self.unit})" if self.unit else self.title

    @property
    def few_digits(self) -> int:
        """Decimals where there is little room: in figures and on the line of progress."""
        return max(0, self.digits - 1)

    @property
    def worst(self) -> float:
        """The value that no model is below."""
        return -math.inf if self.higher_is_better else math.inf

    def gain(self, value: float, other: float) -> float:
        """Return by how much `value` is better than `other`; negative where it is worse."""
        return value - other if self.higher_is_better else other - value

    def best(self, values: Iterable[float]) -> float | None:
        """Return the best of the values that are numbers, None without any."""
        known = [value for value in values if math.isfinite(value)]
        return (max if self.higher_is_better else min)(known) if known else None


LOSS = Metric("loss", "", False, 4)


def reported(metrics: Iterable[Metric]) -> tuple[Metric, ...]:
    """Return those that are shown in tables and figures, in their order; the first one where all are details."""
    known = tuple(metrics)
    return tuple(metric for metric in known if not metric.is_detail) or known[:1]


def in_one_line(values: Mapping[str, float], most: int = 6) -> str:
    """Return "loss 0.1802, iou 0.9368" for a repr: four digits each, the first `most` of the values."""
    shown = [f"{name} {value:.4g}" for name, value in list(values.items())[:most]]
    return ", ".join([*shown, f"{len(values) - most} more"] if len(values) > most else shown)
