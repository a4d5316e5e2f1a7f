"""Every choice of `ray-fed bench`."""

from dataclasses import dataclass
from typing import Literal

from ray_fed.config import require

PARTS = ("local-step", "aggregation", "exchange", "large", "frequency")


@dataclass(frozen=True)
class BenchConfig:
    """What is measured, and for how long."""

    parts: tuple[Literal["local-step", "aggregation", "exchange", "large", "frequency"], ...] = PARTS
    """local-step: a training step against eager PyTorch; aggregation: the exact weighted mean against a plain one;
    exchange: rounds per second with an exchange after every batch, against a plain loop; large: the
    same of a model of 25 million parameters; frequency: share of
    computing at communication frequency 0.25."""
    full: bool = False
    """Measure for minutes, as the pages under benchmarks/ do, instead of seconds."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where local steps are measured."""

    def __post_init__(self) -> None:
        require(bool(self.parts), "parts is empty; name one of " + ", ".join(PARTS))
