"""Segmentation of micrographs as a task of the runtime: any strategy federates it, over any cohort.

    task = SegmentationTask(UNetDesign(), batch_size=8)
    plan = TrainingPlan(seed=0, epochs=12, steps_per_epoch=16, num_rounds=12, learning_rate=2e-3)

`steps_per_epoch` is here the number of batches after which tiles are dealt anew, not a division of the data: every
batch has `batch_size` tiles, so silos of any size, with or without synthetic tiles, do equal numbers of equal steps.
FedBN is `plan.buffers="local"` with `plan.keep_local=norm_parameters(task)`.
"""

import dataclasses
import hashlib
from collections.abc import Mapping
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
from ray_fed.learning.trainer import Trainer
from ray_fed.metrics import LOSS, MeanScores, Metric
from ray_fed.micrographs.agreement import METRICS, agreement
from ray_fed.micrographs.tile_trainer import TileMixing, TileRows, TileTrainer
from ray_fed.micrographs.tiles import SiloTiles, TileSource, stacked
from ray_fed.micrographs.unet import UNetDesign, seeded_unet


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
            {"rows": len(images), "tile": "x".join(map(str, images.shape[1:])), "hash": digest},
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


def norm_parameters(task: SegmentationTask) -> tuple[str, ...]:
    """Return the names of the norms' scales and shifts, which FedBN keeps with each silo (Li et al. 2021)."""
    norms = (nn.BatchNorm2d, nn.GroupNorm)
    modules = task.model(0).named_modules()
    named = [(name, module) for name, module in modules if isinstance(module, norms)]
    return tuple(f"{name}.{parameter}" for name, module in named for parameter, _ in module.named_parameters())


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
