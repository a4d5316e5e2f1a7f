"""Images of a received style on the receiver's own labels (FedTransfer, Algorithm 1, lines 15-16)."""

import numpy as np
import torch
from torch import nn

from ray_fed.style_transfer.conditioning import GrainMaps
from ray_fed.style_transfer.fields import drawn_fields
from ray_fed.style_transfer.generators import GeneratorSpec
from ray_fed.style_transfer.grain_features import GrainStatistics
from ray_fed.style_transfer.training import autocast

PORTION_PIXELS = 1 << 21
"""Pixels that go through a generator at once."""


@torch.no_grad()
def synthesise(
    module: nn.Module,
    spec: GeneratorSpec,
    maps: GrainMaps,
    index: torch.Tensor,
    statistics: GrainStatistics,
    seed: int,
    low_precision: bool = True,
) -> torch.Tensor:
    """Return uint8 images [len(index), h, w] of the labels `index`; another seed gives other grains and noise.

    statistics: what the grains' levels and bands are drawn from.
    """
    spec.check_size(*maps.boundary.shape[1:])
    device = maps.boundary.device
    draws = torch.Generator(device).manual_seed(seed)
    module = module.to(device).eval()
    size = max(1, PORTION_PIXELS // maps.boundary[0].numel())
    with autocast(device, low_precision):
        parts = []
        for part in index.split(size):
            features = statistics.drawn(len(part), maps.num_grains, draws)
            fields = drawn_fields(len(part), (maps.boundary.shape[1], maps.boundary.shape[2]), draws)
            parts.append(module(maps.inputs(part, spec.inputs, features, fields, draws)))
    images = torch.cat(parts)[:, 0].float()
    if statistics.noise:
        images += torch.randn(images.shape, generator=draws, device=device) * (2 * statistics.noise)
    return images.add_(1).mul_(127.5).round_().clamp_(0, 255).to(torch.uint8)


def grey_l1(images: np.ndarray | torch.Tensor, others: np.ndarray | torch.Tensor) -> float:
    """Return the mean absolute difference of uint8 images, grey values in [0, 1]."""
    a, b = (torch.as_tensor(part).float() for part in (images, others))
    return float((a - b).abs().mean()) / 255
