"""A small task for tests: rows drawn from a known function, a different stretch of it at every silo."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from torch import nn
from torch.nn import functional

from ray_fed.errors import DataError
from ray_fed.federation.task import LocalRows, SiloSpec
from ray_fed.learning.models import seeded_mlp
from ray_fed.randomness import generator


@dataclass(frozen=True)
class DrawnRows:
    """The `source` of the synthetic task: how many rows, which of them are held out, and what goes wrong."""

    num_rows: int = 60
    num_held_out: int = 0
    fail: str = ""


@dataclass(frozen=True)
class SyntheticTask:
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


def silos(*sizes: int, held_out: int = 0) -> list[SiloSpec]:
    return [SiloSpec(f"silo-{number}", DrawnRows(size, held_out)) for number, size in enumerate(sizes, start=1)]
