"""A small task for tests: rows drawn from a known function, a different stretch of it at every silo."""

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from torch import nn
from torch.nn import functional

from ray_fed.errors import DataError
from ray_fed.federation.task import LocalRows, SiloSpec, Task
from ray_fed.learning.models import seeded_mlp
from ray_fed.metrics import MeanScores
from ray_fed.randomness import generator


@dataclass(frozen=True)
class DrawnRows:
    """The `source` of the synthetic task: how many rows, which of them are held out, and what goes wrong."""

    num_rows: int = 60
    num_held_out: int = 0
    fail: str = ""


@dataclass(frozen=True)
class SyntheticTask(Task):
    """y = sum of squares of three features, plus noise drawn from (seed, silo)."""

    hidden: tuple[int, ...] = (8,)
    num_features: int = 3
    seed: int = 0
    says: str = "synthetic"

    loss = staticmethod(functional.mse_loss)

    def model(self, seed: int) -> nn.Module:
        return seeded_mlp(self.num_features, self.hidden, seed)

    def agreement(self) -> Mapping[str, str]:
        return {"task": self.says}

    def load(self, spec: SiloSpec) -> LocalRows:
        wanted = spec.source
        assert isinstance(wanted, DrawnRows)
        if wanted.fail:
            raise DataError(f"silo '{spec.name}': {wanted.fail}")
        random = generator(self.seed, "rows", spec.name)
        x = random.normal(size=(wanted.num_rows + wanted.num_held_out, self.num_features))
        y = np.square(x).sum(axis=1) + 0.1 * random.normal(size=len(x))
        n = wanted.num_rows
        return LocalRows(x[:n], y[:n], x[n:], y[n:], {}, {"num_rows": n}, self.agreement())


class UndeclaredMetric(SyntheticTask):
    """Tells a number that it did not announce."""

    def score(self, targets: np.ndarray, outputs: np.ndarray) -> MeanScores:  # noqa: ARG002
        return MeanScores(len(targets), {"surprise": 0.0})


def silos(*sizes: int, held_out: int = 0) -> list[SiloSpec]:
    return [SiloSpec(f"silo-{number}", DrawnRows(size, held_out)) for number, size in enumerate(sizes, start=1)]


@dataclass(frozen=True)
class Fault:
    """Something that goes wrong inside a silo's process at its `step`-th training step, once per marker file."""

    kind: str
    """exit | raise | hang | nan"""
    step: int
    marker: str
    seconds: float = 0.0

    def strikes(self) -> bool:
        """Whether this is the first time; the marker survives the process."""
        try:
            Path(self.marker).touch(exist_ok=False)
        except FileExistsError:
            return False
        return True


@dataclass(frozen=True)
class FaultyRows(DrawnRows):
    """Rows of a silo whose process has a fault."""

    fault: Fault | None = None


@dataclass(frozen=True)
class FaultyTask(SyntheticTask):
    """The synthetic task in a process of its own, where the silo's fault strikes during training."""

    calls: list[int] = field(default_factory=lambda: [0], compare=False)
    faults: list[Fault] = field(default_factory=list, compare=False)

    def load(self, spec: SiloSpec) -> LocalRows:
        if isinstance(spec.source, FaultyRows) and spec.source.fault:
            self.faults[:] = [spec.source.fault]
        return super().load(spec)

    def loss(self, prediction, target):  # type: ignore[override]
        self.calls[0] += 1
        due = [fault for fault in self.faults if self.calls[0] >= fault.step and fault.strikes()]
        wrong = float("nan") if any(fault.kind == "nan" for fault in due) else 1.0
        for fault in due:
            if fault.kind == "exit":
                os._exit(1)
            if fault.kind == "raise":
                raise RuntimeError("disk full")
            if fault.kind == "hang":
                time.sleep(fault.seconds)
        return functional.mse_loss(prediction, target) * wrong
