"""Adversarial losses of the two presets, over the scales of a discriminator.

paper (FedTransfer)     code
Eq. 5  L_cGAN           cross_entropy
Eq. 6  G* = min max     discriminator_loss for D, generator_loss for G, in turn
Eq. 7  + ||y - G(x)||_1 l1_weight in StylePlan; the paper gives no factor, pix2pix takes 100
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch.nn import functional

from ray_fed.style_transfer.discriminators import Features

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
    logits = logits.float()  # bf16 logits lose the small differences the game is about
    goals = torch.full_like(logits, goal)
    if kind == "least_squares":
        return functional.mse_loss(logits, goals)
    return functional.binary_cross_entropy_with_logits(logits, goals)
