"""Training on tiles: own and synthetic ones mixed, augmented on the device, seeded step by step."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from ray_fed.federation.task import LocalRows
from ray_fed.learning.steps import Loss
from ray_fed.learning.trainer import LocalTrainer, TrainingPlan
from ray_fed.micrographs.micrograph_set import MicrographSet
from ray_fed.micrographs.tiles import Synthesis, augmented
from ray_fed.randomness import generator


@dataclass(frozen=True)
class TileRows(LocalRows):
    """A silo's tiles as arrays, its own first, then the synthetic ones."""

    num_real: int = 0
    synthesis: Synthesis | None = None
    test: MicrographSet | None = None


@dataclass(frozen=True)
class TileMixing:
    """How batches are made of tiles."""

    batch_size: int
    synthetic_weight: float
    erasing: float
    decay: bool


class TileTrainer(LocalTrainer):
    """A `LocalTrainer` whose batches are mixed and augmented tiles, and whose learning rate may decay."""

    def __init__(
        self,
        module: nn.Module,
        features: torch.Tensor,
        targets: torch.Tensor,
        plan: TrainingPlan,
        silo: str,
        loss: Loss,
        mixing: TileMixing,
        rows: TileRows,
    ):
        super().__init__(module, loss, features, targets, plan, silo)
        self.mixing, self.rows = mixing, rows
        self._epoch_of_tiles = 0
        self._rate: torch.Tensor | None = None
        if features.device.type == "cuda":  # a captured graph re-reads a tensor, but keeps a number for ever
            self._rate = torch.tensor(plan.learning_rate, device=features.device)
            self.optimizer.learning_rate = self._rate  # type: ignore[attr-defined]

    def _batches(self, steps: range) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield (images, masks) of each step; everything drawn depends on (seed, step, silo) alone."""
        epoch, order = -1, np.zeros(0, np.int64)
        for step in steps:
            if step // self.plan.steps_per_epoch != epoch:
                epoch = step // self.plan.steps_per_epoch
                order = self._dealt(epoch)
                self._renew_synthetic(epoch)
            self._set_rate(step)
            start = step % self.plan.steps_per_epoch * self.mixing.batch_size
            index = torch.from_numpy(order[start : start + self.mixing.batch_size]).to(self.features.device)
            rng = generator(self.plan.seed, "augmentation", step, self.silo)
            images, masks = self.features.index_select(0, index), self.targets.index_select(0, index)
            yield augmented(images, masks, rng, self.mixing.erasing)

    def _dealt(self, epoch: int) -> np.ndarray:
        real, slots = self.rows.num_real, self.plan.steps_per_epoch * self.mixing.batch_size
        rng = generator(self.plan.seed, "tiles", epoch, self.silo)
        return deal_tiles(real, len(self.rows.features) - real, slots, self.mixing.synthetic_weight, rng)

    def _renew_synthetic(self, epoch: int) -> None:
        if self.rows.synthesis is None or epoch == self._epoch_of_tiles:
            return
        made, real, device = self.rows.synthesis(epoch), self.rows.num_real, self.features.device
        self.features = torch.cat([self.features[:real], torch.from_numpy(made.images).to(device)])
        self.targets = torch.cat([self.targets[:real], torch.from_numpy(made.masks).to(device)])
        self._epoch_of_tiles = epoch

    def _set_rate(self, step: int) -> None:
        rate = self.plan.learning_rate
        rate *= 1 - step / self.plan.total_steps if self.mixing.decay else 1
        if self._rate is None:
            self.optimizer.learning_rate = rate  # type: ignore[attr-defined]
        else:
            self._rate.fill_(rate)


def deal_tiles(num_real: int, num_synthetic: int, slots: int, weight: float, rng: np.random.Generator) -> np.ndarray:
    """Return which tile takes each place [slots]: synthetic ones are numbered from `num_real` on.

    Synthetic tiles fill the share weight S / (R + weight S); within its kind every tile is used equally often (+-1).
    """
    share = weight * num_synthetic / (num_real + weight * num_synthetic)
    synthetic = int(np.floor(slots * share + rng.random()))
    dealt = np.concatenate(
        [_cycled(num_real, slots - synthetic, rng), num_real + _cycled(num_synthetic, synthetic, rng)]
    )
    return rng.permutation(dealt)


def _cycled(number: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """Return `count` of 0..number-1, each again only after all others had their turn."""
    if count <= 0:
        return np.zeros(0, np.int64)
    return np.concatenate([rng.permutation(number) for _ in range(-(-count // number))])[:count]
