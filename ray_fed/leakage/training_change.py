"""Other ways to train the same rows: how the training is cut into messages, by what optimiser, how privately."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import ceil

from ray_fed.config import require, unknown_name
from ray_fed.learning.private_steps import PrivateSteps
from ray_fed.learning.trainer import TrainingPlan
from ray_fed.privacy.accounting import PrivacyAccount
from ray_fed.privacy.compression import METHODS, Compression


@dataclass(frozen=True)
class TrainingChange:
    """`batch:8+steps:1+dp:8+sgd+int8`; what is not named stays as the federation has it."""

    batch: int | None = None
    """Rows of one silo per step."""
    steps: int | None = None
    """Local steps per message."""
    sgd: bool = False
    """Plain SGD instead of the federation's optimiser: its update is a sum of gradients."""
    dp: float | None = None
    """Epsilon of DP-SGD over the whole run, example level, at delta 1e-5 (privacy/dp)."""
    compression: Compression | None = None
    """Of the updates, with error feedback (privacy/compression.py)."""

    def __str__(self) -> str:
        numbers = (("batch", self.batch), ("steps", self.steps), ("dp", self.dp))
        words = ["sgd"] * self.sgd + ([self.compression.method] if self.compression else [])
        return "+".join([*(f"{name}:{value:g}" for name, value in numbers if value is not None), *words])

    def of(self, plans: Mapping[str, TrainingPlan], sizes: Mapping[str, int]) -> dict[str, TrainingPlan]:
        """Return the plans of all silos with as many passes over the rows, changed.

        sizes: silo -> training rows. All silos take as many steps per pass as the largest needs.
        """
        some = next(iter(plans.values()))
        per_epoch = some.steps_per_epoch if self.batch is None else ceil(max(sizes.values()) / self.batch)
        total = some.epochs * per_epoch
        rounds = some.num_rounds if self.steps is None else max(1, total // self.steps)
        changes: dict[str, object] = {"steps_per_epoch": per_epoch, "num_rounds": min(rounds, total)}
        if self.sgd:
            changes |= {"optimizer": "sgd", "optimizer_state": "keep"}
        if self.dp:
            changes["private"] = PrivateSteps(noise_for(self.dp, 1 / per_epoch, total), test_seed=0)
        if self.compression:
            changes["compression"] = self.compression
        return {name: replace(plan, **changes) for name, plan in plans.items()}  # type: ignore[arg-type]


def noise_for(epsilon: float, probability: float, num_steps: int) -> float:
    """Return the smallest noise multiplier, to 1 %, with which `num_steps` private steps spend at most `epsilon`."""
    low, high = 1e-2, 1e-2
    while PrivacyAccount("example", high, probability).epsilon(num_steps) > epsilon:
        low, high = high, 2 * high
    while high > 1.01 * low:
        middle = (low * high) ** 0.5
        fits = PrivacyAccount("example", middle, probability).epsilon(num_steps) <= epsilon
        low, high = (low, middle) if fits else (middle, high)
    return high


def parse_change(text: str) -> TrainingChange:
    """Return the change written as batch:N, steps:N, dp:EPSILON, sgd or a compression, joined by '+'; ConfigError for
    anything else."""
    found: dict[str, object] = {}
    for part in text.split("+"):
        name, _, number = part.partition(":")
        if name not in ("batch", "steps", "dp", "sgd", *METHODS):
            raise unknown_name("change", name, ["batch", "steps", "dp", "sgd", *METHODS])
        if name in ("batch", "steps"):
            require(number.isdecimal() and int(number) >= 1, f"change {part!r} must be {name}:NUMBER, 1 or more")
            found[name] = int(number)
        elif name == "dp":
            found[name] = _epsilon(number, part)
        else:
            require(not number, f"change {part!r}: {name} takes no number")
            found |= {"sgd": True} if name == "sgd" else {"compression": Compression(name)}  # type: ignore[arg-type]
    return TrainingChange(**found)  # type: ignore[arg-type]


def _epsilon(number: str, part: str) -> float:
    is_number = number.replace(".", "", 1).isdecimal()
    require(is_number and float(number) > 0, f"change {part!r} must be dp:EPSILON, above 0")
    return float(number)
