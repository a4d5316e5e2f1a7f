"""A small task for tests: rows drawn from a known function, a different stretch of it at every silo."""

import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn
from torch.nn import functional

from ray_fed.errors import DataError
from ray_fed.federation.boosted_task import BoostedTask
from ray_fed.federation.messages import Metrics, SessionSpec, Update, Vector
from ray_fed.federation.silo import Silo
from ray_fed.federation.task import LocalRows, Samples, SiloSpec, Task
from ray_fed.learning.models import seeded_mlp
from ray_fed.learning.trainer import FitResult, Trainer
from ray_fed.metrics import MeanScores
from ray_fed.randomness import generator
from ray_fed.trees.settings import TreeSettings


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

    def possession(self, source: object) -> str:
        return repr(source)  # whoever knows how rows are drawn has them

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


@dataclass(frozen=True)
class OneHostile(SyntheticTask):
    """A task of which one silo answers something else than it should."""

    way: str = ""
    who: str = "silo-1"

    def silo(self, spec: SiloSpec, device: str = "cpu") -> Silo:
        return (HostileSilo if spec.name == self.who else Silo)(spec, self, device)


class HostileSilo(Silo):
    task: OneHostile

    def fit(self, session: str, server_round: int, vector: Vector) -> Update:
        return HOSTILE_UPDATES.get(self.task.way, lambda update: update)(super().fit(session, server_round, vector))

    def evaluate(self, session: str, models: Mapping[str, Vector]) -> dict[str, Metrics]:
        return HOSTILE_METRICS.get(self.task.way, lambda found: found)(super().evaluate(session, models))


def _sums(found: dict[str, Metrics], sums: object) -> dict[str, Metrics]:
    scores: Any = MeanScores(50, sums)  # type: ignore[arg-type]
    return {model: replace(metrics, train=scores, held_out=scores) for model, metrics in found.items()}


HOSTILE_UPDATES: Mapping[str, Callable[[Update], Any]] = {
    "an error": lambda update: update.no_such_field,  # type: ignore[attr-defined]
    "steps of many digits": lambda update: replace(update, num_steps=10**5000),
    "negative steps": lambda update: replace(update, num_steps=-1),
    "a huge loss": lambda update: replace(update, loss=1.7e308),
    "an infinite loss": lambda update: replace(update, loss=math.inf),
    "a huge time": lambda update: replace(update, seconds=1e308),
    "a huge vector": lambda update: replace(update, vector=np.full_like(update.vector, 1e30)),
    "a huge weight": lambda update: replace(update, num_examples=2**29),
    "rows that it does not have": lambda update: replace(update, num_examples=2**29 - 1),
    "one row more than it has": lambda update: replace(update, num_examples=41),
    "a weight of many digits": lambda update: replace(update, num_examples=10**400),
    "a text as loss": lambda update: replace(update, loss="4.2"),  # type: ignore[arg-type]
    "another shape": lambda update: replace(update, vector=update.vector[:3]),
    "a list": lambda update: replace(update, vector=update.vector.tolist()),  # type: ignore[arg-type]
}
HOSTILE_METRICS: Mapping[str, Callable[[dict[str, Metrics]], Any]] = {
    "infinite metrics": lambda found: _sums(found, {"mae": math.inf}),
    "huge metrics": lambda found: _sums(found, {"mae": 1.7e308}),
    "undeclared metrics": lambda found: _sums(found, {"accuracy": 1.0}),
    "metrics of another kind": lambda found: _sums(found, {"mae": 1.0}),
    "metrics of many digits": lambda found: _sums(found, {"mae": 10**400}),
    "texts as metrics": lambda found: _sums(found, {"mae": "x"}),
    "metrics of no model": lambda found: {},  # noqa: ARG005
    "no metrics": lambda found: 1 / 0,  # noqa: ARG005
}


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


# ---- trees on the same rows


@dataclass(frozen=True)
class SyntheticForest(BoostedTask, SyntheticTask):
    """The same rows, learned by trees. `dies_in`: rounds before which the silo of `who` dies, once each."""

    trees: TreeSettings = TreeSettings(trees=4, depth=3, leaves=6, bins=8, min_rows=5, learning_rate=0.3)  # noqa: RUF009  (frozen)
    dies_in: tuple[int, ...] = ()
    who: str = "silo-2"
    marker: str = ""

    def agreement(self) -> Mapping[str, str]:
        return {**SyntheticTask.agreement(self), **self.agreed_trees()}

    def trainer(self, samples: Samples, session: SessionSpec, silo: SiloSpec) -> Trainer:
        made = super().trainer(samples, session, silo)
        return made if silo.name != self.who or not self.dies_in else Mortal(made, self)  # type: ignore[return-value]


class Mortal:
    """A trainer whose process ends before some rounds."""

    def __init__(self, trainer: Trainer, task: SyntheticForest):
        self.trainer, self.task = trainer, task

    def __getattr__(self, name: str) -> Any:
        return getattr(self.trainer, name)

    def fit_round(self, vector: Vector, server_round: int) -> tuple[Vector, FitResult]:
        mark = Path(f"{self.task.marker}-{server_round}")
        if server_round in self.task.dies_in and not mark.exists():
            mark.touch()
            os._exit(1)
        return self.trainer.fit_round(vector, server_round)
