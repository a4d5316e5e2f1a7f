"""Every choice of a sweep besides those of the pipeline that is swept."""

from dataclasses import dataclass, field
from typing import Literal

from ray_fed.config import require


@dataclass(frozen=True)
class SweepConfig:
    """What is varied, and how trials are run."""

    samples: int = 10
    """Draws per combination of the grid; counts with --sample only."""
    preset: Literal["none", "fig5", "fig5-heat"] = "none"
    """fig5: the eight frequencies of Guo et al. 2022, Fig. 5 and 6, and an exchange after every batch, ten repeats;
    fig5-heat: learning rate x frequency, two repeats. Both take 12,897 rows unless --rows says otherwise."""
    batch_repeats: int = 3
    """Repeats of the exchange after every batch: each takes thousands of rounds."""
    objective: str = ""
    """Metric by which trials are compared; if not given, the task's first one without a unit (R² of formation-energy,
    as in Guo et al. 2022, Fig. 5), or else its first."""
    scheduler: Literal["fifo", "asha", "median"] = "fifo"
    """Which trials Ray Tune lets run to their end: fifo all of them; the others stop the worse ones early."""
    concurrent: int = 1
    """Trials at a time on the same silos. With one, seconds of communication are those of a run of its own."""
    grid: tuple[str, ...] = field(default=(), metadata={"repeatable": "FIELD=..."})
    """Values to combine, FIELD=VALUE,VALUE,..., e.g. communication_frequency=0.05,0.25,batch; give it once per
    field."""
    sample: tuple[str, ...] = field(default=(), metadata={"repeatable": "FIELD=..."})
    """Ranges to draw from, FIELD=log:LOW:HIGH or FIELD=uniform:LOW:HIGH, e.g. learning_rate=log:1e-4:1e-2; give it once
    per field."""

    def __post_init__(self) -> None:
        for name in ("samples", "batch_repeats", "concurrent"):
            require(getattr(self, name) > 0, f"{name}={getattr(self, name)} must be positive")
        varied = bool(self.grid or self.sample) or self.preset != "none"
        require(varied, "nothing to sweep: give --grid FIELD=VALUE,VALUE, --sample FIELD=log:LOW:HIGH or --preset fig5")
