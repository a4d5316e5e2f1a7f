"""Training of a silo's generator against its own discriminator (FedTransfer, Algorithm 1, line 9).

paper (FedTransfer)     code
Eq. 5  L_cGAN           cross_entropy
Eq. 6  G* = min max     discriminator_loss for D, generator_loss for G, in turn
Eq. 7  + ||y - G(x)||_1 l1_weight in StylePlan; the paper gives no factor, pix2pix takes 100
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from ray_fed.config import require, unknown_name
from ray_fed.micrographs.tiles import turned
from ray_fed.micrographs.unet import bfloat16_pays
from ray_fed.randomness import derived_seed, generator
from ray_fed.style_transfer.conditioning import GrainMaps
from ray_fed.style_transfer.image_features import GrainStatistics, measured, measured_fields
from ray_fed.style_transfer.networks import Features, GeneratorSpec, new_discriminator, new_generator

Adversary = Literal["cross_entropy", "least_squares"]


def discriminator_loss(kind: Adversary, real: Sequence[Features], fake: Sequence[Features]) -> torch.Tensor:
    """Return half the mean loss of taking real patches for real and generated ones for generated, summed over scales.

    Eq. (5) as a cross-entropy, or its least-squares form (Mao et al. 2017).
    """
    losses = [_towards(kind, r[-1], 1.0) + _towards(kind, f[-1], 0.0) for r, f in zip(real, fake, strict=True)]
    return torch.stack(losses).sum() / 2


def generator_loss(kind: Adversary, fake: Sequence[Features]) -> torch.Tensor:
    """Return the loss of not being taken for real, summed over scales: -log D(G), Eq. (5) made not to
    saturate (Goodfellow et al. 2014)."""
    return torch.stack([_towards(kind, features[-1], 1.0) for features in fake]).sum()


def feature_matching(real: Sequence[Features], fake: Sequence[Features]) -> torch.Tensor:
    """Return the mean L1 distance of the discriminator's inner features (pix2pixHD, Eq. 4), summed over layers, mean
    over scales."""
    scales = []
    for r, f in zip(real, fake, strict=True):
        pairs = zip(r[:-1], f[:-1], strict=True)
        layers = [functional.l1_loss(b.float(), a.float().detach()) for a, b in pairs]
        scales.append(torch.stack(layers).sum() * 4 / (len(layers) + 1))
    return torch.stack(scales).mean()


def _towards(kind: Adversary, logits: torch.Tensor, goal: float) -> torch.Tensor:
    logits = logits.float()  # bf16 logits lose the small differences that the losses measure
    goals = torch.full_like(logits, goal)
    if kind == "least_squares":
        return functional.mse_loss(logits, goals)
    return functional.binary_cross_entropy_with_logits(logits, goals)


@dataclass(frozen=True)
class StylePlan:
    """How a generator is trained; everything besides seed and data."""

    generator: GeneratorSpec = field(default_factory=GeneratorSpec)
    adversary: Adversary = "least_squares"
    l1_weight: float = 0.0
    """Factor of Eq. (7)'s L1 term; 0 leaves it out."""
    feature_weight: float = 10.0
    """Factor of the feature matching; 0 leaves it out."""
    discriminator_width: int = 16
    discriminator_layers: int = 2
    discriminator_scales: int = 2
    epochs: int = 50
    batch_size: int = 2
    learning_rate: float = 2e-4
    """Adam's (beta 0.5, 0.999); constant for half of the epochs, then linear to zero."""
    low_precision: bool = True
    """bfloat16 where the device has units for it."""

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "discriminator_width", "discriminator_layers", "discriminator_scales"):
            require(getattr(self, name) >= 1, f"{name}={getattr(self, name)} must be at least 1")
        require(self.learning_rate > 0, f"style learning_rate={self.learning_rate} must be positive")
        for name in ("l1_weight", "feature_weight"):
            require(getattr(self, name) >= 0, f"{name}={getattr(self, name)} must not be negative")


PRESETS = {
    "pix2pix": StylePlan(
        GeneratorSpec("unet"), "cross_entropy", l1_weight=10.0, feature_weight=0.0, discriminator_scales=1
    ),
    "pix2pixhd": StylePlan(GeneratorSpec("residual", blocks=6), "least_squares"),
    "hybrid": StylePlan(GeneratorSpec("unet"), "least_squares"),
}
"""pix2pix: U-Net, one PatchGAN, Eqs. (5)-(7). pix2pixhd: residual generator, two scales, least squares, feature
matching. hybrid: the second one's losses on the first one's generator."""


def style_plan(preset: str) -> StylePlan:
    """Return a preset by name; ConfigError names the nearest."""
    if preset not in PRESETS:
        raise unknown_name("style preset", preset, PRESETS)
    return PRESETS[preset]


@dataclass(frozen=True)
class Pairs:
    """Labels and images of one silo on one device."""

    maps: GrainMaps
    images: torch.Tensor
    """uint8 [n, h, w]."""
    features: torch.Tensor
    """float32 [n, most grains + 1, NUM_FEATURES], measured in the images."""
    statistics: GrainStatistics
    """Of the features."""
    fields: torch.Tensor
    """float16 [n, 2, h, w], light and line, measured in the images."""

    @classmethod
    def of(cls, images: np.ndarray, masks: np.ndarray, device: str = "cpu") -> "Pairs":
        maps = GrainMaps.of(masks)
        fields, light = measured_fields(images, masks)
        even = images - light.numpy()
        features, statistics = measured(even, maps.grains.numpy(), maps.shapes.numpy())
        there = GrainMaps(*(part.to(device) for part in (maps.boundary, maps.grains, maps.shapes)))
        pixels = torch.from_numpy(np.ascontiguousarray(images)).to(device)
        return cls(there, pixels, torch.from_numpy(features).to(device), statistics, fields.half().to(device))

    def __len__(self) -> int:
        return len(self.images)

    def targets(self, index: torch.Tensor) -> torch.Tensor:
        """Return images as float32 [len(index), 1, h, w] in [-1, 1]."""
        return self.images[index].float().div_(127.5).sub_(1).unsqueeze(1)


class GeneratorTraining:
    """One adversarial training; `run` returns the trained generator and the losses of every epoch."""

    def __init__(self, pairs: Pairs, plan: StylePlan, seed: int):
        plan.generator.check_size(*pairs.images.shape[1:])
        self.pairs, self.plan, self.seed = pairs, plan, seed
        device = pairs.images.device
        self.generator = new_generator(plan.generator, seed).to(device)
        self.discriminator = new_discriminator(
            plan.discriminator_width, plan.discriminator_layers, plan.discriminator_scales, seed
        ).to(device)
        self.optimizers = [_adam(self.generator, plan), _adam(self.discriminator, plan)]
        self.draws = torch.Generator(device).manual_seed(derived_seed(seed, "generator inputs"))

    def run(self) -> tuple[nn.Module, list[dict[str, float]]]:
        """Train for the plan's epochs."""
        history = []
        for epoch in range(1, self.plan.epochs + 1):
            self._set_learning_rate(epoch)
            steps = [self.step(index, *symmetry) for index, symmetry in self._batches(epoch)]
            # Read once per epoch: a number per step would make a GPU wait for every one of them.
            history.append({name: float(torch.stack([step[name] for step in steps]).mean()) for name in steps[0]})
        return self.generator.eval(), history

    def step(self, index: torch.Tensor, quarter_turns: int = 0, mirrored: bool = False) -> dict[str, torch.Tensor]:
        """One step of discriminator and generator on the labels `index`; returns the losses before it, 0-d."""
        pairs, names = self.pairs, self.plan.generator.inputs
        inputs = pairs.maps.inputs(index, names, pairs.features[index], pairs.fields[index].float(), self.draws)
        parts = (inputs, self.pairs.maps.label(index), self.pairs.targets(index))
        inputs, label, real = (turned(part, quarter_turns, mirrored) for part in parts)
        device, plan = real.device, self.plan
        with autocast(device, plan.low_precision):
            fake = self.generator(inputs).float()
            both = self.discriminator(torch.cat([label, label]), torch.cat([real, fake.detach()]))
        seen_real, seen_fake = _halves(both, 0), _halves(both, 1)
        loss_d = discriminator_loss(plan.adversary, seen_real, seen_fake)
        self._descend(1, loss_d)
        with autocast(device, plan.low_precision):
            # The weights of the discriminator need no gradient here; leaving it out saves a third of the pass.
            self.discriminator.requires_grad_(False)
            judged = self.discriminator(label, fake)
            self.discriminator.requires_grad_(True)
        loss_g = generator_loss(plan.adversary, judged)
        matching = feature_matching(seen_real, judged) if plan.feature_weight else torch.zeros((), device=device)
        l1 = functional.l1_loss(fake, real)
        self._descend(0, loss_g + plan.feature_weight * matching + plan.l1_weight * l1)
        losses = {"generator": loss_g, "discriminator": loss_d, "feature_matching": matching, "l1": l1}
        return {name: value.detach() for name, value in losses.items()}

    def _descend(self, network: int, loss: torch.Tensor) -> None:
        self.optimizers[network].zero_grad(set_to_none=True)
        loss.backward()
        self.optimizers[network].step()

    def _set_learning_rate(self, epoch: int) -> None:
        done = (epoch - 1) / self.plan.epochs
        rate = self.plan.learning_rate * min(1.0, 2 * (1 - done))
        for optimizer in self.optimizers:
            optimizer.param_groups[0]["lr"] = rate

    def _batches(self, epoch: int):
        """Yield (label numbers, (quarter turns, mirrored)) of an epoch, drawn from (seed, epoch) alone."""
        draws = generator(self.seed, "generator batches", epoch)
        order = torch.from_numpy(draws.permutation(len(self.pairs))).to(self.pairs.images.device)
        for index in order.split(self.plan.batch_size):
            yield index, (int(draws.integers(4)), bool(draws.integers(2)))


def _adam(module: nn.Module, plan: StylePlan) -> torch.optim.Adam:
    return torch.optim.Adam(module.parameters(), lr=plan.learning_rate, betas=(0.5, 0.999), fused=True)


def _halves(features: list, half: int) -> list[list[torch.Tensor]]:
    """Return the first or the second half of a batch, in all features of all scales."""
    return [[layer.chunk(2)[half] for layer in scale] for scale in features]


def autocast(device: torch.device, wanted: bool = True) -> AbstractContextManager:
    """Compute in bfloat16 where the device has units for it."""
    if wanted and bfloat16_pays(device):
        return torch.autocast(device.type, torch.bfloat16)
    return nullcontext()
