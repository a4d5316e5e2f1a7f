"""Segmentation of micrographs as a task of the runtime: any strategy federates it, over any cohort.

    task = SegmentationTask(UNetDesign(), batch_size=8)
    plan = TrainingPlan(seed=0, epochs=12, steps_per_epoch=16, num_rounds=12, learning_rate=2e-3)

`steps_per_epoch` is here the number of batches after which all tiles are shuffled anew, not a division of the data:
every batch has `batch_size` tiles, so silos of any size, with or without synthetic tiles, do equal numbers of equal
steps.

Under differential privacy (`plan.private`, GroupNorm only) every tile, own or synthetic, is in a step's batch with
probability 1 / `steps_per_epoch` instead, whatever `batch_size` and `synthetic_weight`.

The strategy FedBN keeps the U-Net's norms with each silo.
"""

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import cast

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from ray_fed.config import require
from ray_fed.errors import DataError
from ray_fed.federation.messages import SessionSpec, Vector
from ray_fed.federation.task import LocalRows, Samples, SiloSpec, Task, feature_tensor
from ray_fed.learning.standardisation import Standardizer
from ray_fed.learning.steps import Loss
from ray_fed.learning.trainer import LocalTrainer, Trainer, TrainingPlan
from ray_fed.metrics import LOSS, MeanScores, Metric
from ray_fed.micrographs.agreement import METRICS, agreement
from ray_fed.micrographs.micrograph_set import MicrographSet
from ray_fed.micrographs.tiles import SiloTiles, Synthesis, TileSource, augmented, stacked
from ray_fed.micrographs.unet import UNetDesign, seeded_unet
from ray_fed.randomness import generator


@dataclass(frozen=True)
class BoundaryLoss:
    """Binary cross-entropy, a boundary pixel counting `weight` times; divided by the sum of the weights."""

    weight: float = 3.0

    def __call__(self, logits: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
        """Return the mean loss of logits [n, H, W] on masks [n, H, W] (1 = boundary), 0-d."""
        return self.per_image(logits, masks, whole=True)

    def per_image(self, logits: torch.Tensor, masks: torch.Tensor, whole: bool = False) -> torch.Tensor:
        """Return the loss of each image [n], or over all pixels as one when `whole`."""
        true = masks.to(logits.dtype)
        weight = 1 + (self.weight - 1) * true
        loss = weight * functional.binary_cross_entropy_with_logits(logits, true, reduction="none")
        axes = (0, 1, 2) if whole else (1, 2)
        return loss.sum(axes) / weight.sum(axes)


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
        """Yield (images, masks) of each step; everything drawn depends on (seed, step, silo) alone, except in a private
        session: there it is secret which tiles are drawn and how they are augmented."""
        epoch, order = -1, np.zeros(0, np.int64)
        for step in steps:
            if step // self.plan.steps_per_epoch != epoch:
                epoch = step // self.plan.steps_per_epoch
                order = self._order_of(epoch)
                self._renew_synthetic(epoch)
            self._set_rate(step)
            yield self._private_batch() if self.plan.private else self._seeded_batch(step, order)

    def _seeded_batch(self, step: int, order: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        start = step % self.plan.steps_per_epoch * self.mixing.batch_size
        index = torch.from_numpy(order[start : start + self.mixing.batch_size]).to(self.features.device)
        rng = generator(self.plan.seed, "augmentation", step, self.silo)
        images, masks = self.features.index_select(0, index), self.targets.index_select(0, index)
        return augmented(images, masks, rng, self.mixing.erasing)

    def _private_batch(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return tiles drawn in secret, perhaps none, augmented in secret.

        With a known seed, an observer could follow how one tile more in the batch changes the augmentation of all
        others, and the noise covers no more than one tile's own gradient.
        """
        images, masks = self._chosen()
        rng = np.random.default_rng(self._noise.bits(4))
        return augmented(images, masks, rng, self.mixing.erasing) if len(images) else (images, masks)

    def _order_of(self, epoch: int) -> np.ndarray:
        real, slots = self.rows.num_real, self.plan.steps_per_epoch * self.mixing.batch_size
        rng = generator(self.plan.seed, "tiles", epoch, self.silo)
        return tile_order(real, len(self.rows.features) - real, slots, self.mixing.synthetic_weight, rng)

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


@dataclass(frozen=True)
class TileSamples(Samples):
    """Tiles on the silo's device."""

    test_features: torch.Tensor | None
    """Images of the silo's own test tiles."""


@dataclass(frozen=True)
class SegmentationTask(Task):
    """A U-Net that finds grain boundaries. `SiloSpec.source` is a `TileSource`."""

    design: UNetDesign = field(default_factory=UNetDesign)
    batch_size: int = 8
    """Tiles per step."""
    boundary_weight: float = 3.0
    """How often a boundary pixel counts in the loss against a grain pixel."""
    synthetic_weight: float = 1.0
    """How often a synthetic tile is drawn against one of the silo's own; 0: never."""
    erasing: float = 0.5
    """Probability that a rectangle of an image is painted over."""
    decay: bool = True
    """Lower the learning rate linearly to 0 over the run."""
    num_scored: int = 16
    """Of its own training tiles, how many a silo scores a model on (validation tiles are all scored)."""
    standardises: bool = field(default=False, init=False)  # type: ignore[assignment]

    def __post_init__(self) -> None:
        require(self.batch_size > 0, f"batch_size={self.batch_size} must be positive")
        require(self.boundary_weight > 0, f"boundary_weight={self.boundary_weight} must be positive")
        require(self.synthetic_weight >= 0, f"synthetic_weight={self.synthetic_weight} must not be negative")
        require(0 <= self.erasing <= 1, f"erasing={self.erasing} must be a probability")

    @property
    def loss(self) -> BoundaryLoss:  # type: ignore[override]
        return BoundaryLoss(self.boundary_weight)

    def model(self, seed: int) -> nn.Module:
        return seeded_unet(self.design, seed)

    def agreement(self) -> Mapping[str, str]:
        return {"task": "grain boundaries", "network": repr(self.design)}

    def load(self, spec: SiloSpec) -> TileRows:
        tiles = cast(TileSource, spec.source).open(spec.name)
        _check(spec.name, tiles)
        made = tiles.synthetic if self.synthetic_weight else None
        images = stacked(tiles.train.images, made.images if made else None)
        masks = stacked(tiles.train.masks, made.masks if made else None)
        digest = hashlib.sha256(images.tobytes() + masks.tobytes()).hexdigest()[:16]
        return TileRows(
            images,
            masks,
            tiles.validation.images,
            tiles.validation.masks,
            {},
            {"rows": len(images), "tile": list(images.shape[1:]), "hash": digest},
            self.agreement(),
            num_real=len(tiles.train),
            synthesis=tiles.synthesis if made else None,
            test=tiles.test,
        )

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """Loss, MAP, VI and ARI on validation tiles; where a silo has test tiles, the same of them as `test_<name>`."""
        shown = (LOSS, *METRICS)
        of_tests = (dataclasses.replace(m, name=name_on_tests(m.name), label="", is_detail=True) for m in shown)
        return (*shown, *of_tests)

    def score(self, targets: np.ndarray, outputs: np.ndarray) -> MeanScores:
        """Return loss, MAP, VI with its parts, and ARI (see `SegmentationScores`) of logits [n, H, W], as sums."""
        names = [metric.name for metric in METRICS]
        if len(targets) == 0:
            return MeanScores(0, dict.fromkeys([LOSS.name, *names], 0.0))
        loss = self.loss.per_image(torch.from_numpy(outputs), torch.from_numpy(targets)).numpy()
        per_image = [agreement(logits > 0, mask).values() for logits, mask in zip(outputs, targets, strict=True)]
        found = {name: np.array([values[name] for values in per_image]) for name in names}
        return MeanScores.of({LOSS.name: loss, **found})

    def most_examples(self, num_examples: int, plan: TrainingPlan) -> int:
        """Every silo takes the same number of steps, with tiles drawn again and again, however many it has."""
        if plan.private:
            return super().most_examples(num_examples, plan)
        return self.batch_size * plan.most_steps

    def prepare(self, rows: LocalRows, standardizer: Standardizer | None, device: str) -> TileSamples:
        assert isinstance(rows, TileRows)
        plain = super().prepare(rows, standardizer, device)
        test = None if rows.test is None else feature_tensor(rows.test.images, None, device)
        return TileSamples(**vars(plain), test_features=test)

    def trainer(self, samples: Samples, session: SessionSpec, silo: SiloSpec) -> TileTrainer:
        rows, module = samples.rows, self.model(session.model_seed)
        assert isinstance(rows, TileRows)
        mixing = TileMixing(self.batch_size, self.synthetic_weight, self.erasing, self.decay)
        features, targets = samples.features, samples.targets
        return TileTrainer(module, features, targets, session.plan, silo.name, self.loss, mixing, rows)

    def evaluate(self, trainer: Trainer, samples: Samples, vector: Vector) -> tuple[MeanScores, MeanScores]:
        """Score all validation tiles, but only a fixed sample of the silo's own training tiles."""
        assert isinstance(samples, TileSamples)
        rows = samples.rows
        assert isinstance(rows, TileRows)
        count = 0 if trainer.plan.private else min(rows.num_real, self.num_scored)
        sample = np.linspace(0, rows.num_real - 1, count).astype(np.int64)
        train = trainer.predict(samples.features[torch.from_numpy(sample).to(samples.features.device)], vector)
        held_out = trainer.predict(samples.held_out_features, vector)
        scores = self.score(rows.held_out_targets, held_out.cpu().numpy())
        if rows.test is not None and samples.test_features is not None:
            tested = trainer.predict(samples.test_features, vector)
            scores = _beside(scores, self.score(rows.test.masks, tested.cpu().numpy()))
        return self.score(rows.targets[sample], train.cpu().numpy()), scores


def name_on_tests(name: str) -> str:
    """Return what a metric is called on the test tiles."""
    return f"test_{name}"


def _check(silo: str, tiles: SiloTiles) -> None:
    if len(tiles.train) == 0:
        raise DataError(f"silo '{silo}': no tiles to train on")
    for what, other in (("validation", tiles.validation), ("synthetic", tiles.synthetic), ("test", tiles.test)):
        if other is not None and len(other) and other.size != tiles.train.size:
            raise DataError(
                f"silo '{silo}': {what} tiles are {other.size}, training tiles {tiles.train.size}; cut them to one size"
            )
    if tiles.synthesis is not None and tiles.synthetic is None:
        raise DataError(f"silo '{silo}': a synthesis needs the synthetic tiles of epoch 0 beside it")


def _beside(scores: MeanScores, tested: MeanScores) -> MeanScores:
    """Return the scores with the test's means as `test_<name>`.

    One count serves both, so that merged silos' test means are weighted by the silos' validation tiles.
    """
    means = {name_on_tests(name): value * scores.num_examples for name, value in tested.values().items()}
    return MeanScores(scores.num_examples, {**scores.sums, **means})


def tile_order(num_real: int, num_synthetic: int, slots: int, weight: float, rng: np.random.Generator) -> np.ndarray:
    """Return which tile takes each place [slots]: synthetic ones are numbered from `num_real` on.

    Synthetic tiles fill the share weight S / (R + weight S); within its kind every tile is used equally often (+-1).
    """
    share = weight * num_synthetic / (num_real + weight * num_synthetic)
    synthetic = int(np.floor(slots * share + rng.random()))
    order = np.concatenate(
        [_cycled(num_real, slots - synthetic, rng), num_real + _cycled(num_synthetic, synthetic, rng)]
    )
    return rng.permutation(order)


def _cycled(number: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """Return `count` of 0..number-1, each again only after all others had their turn."""
    if count <= 0:
        return np.zeros(0, np.int64)
    return np.concatenate([rng.permutation(number) for _ in range(-(-count // number))])[:count]
