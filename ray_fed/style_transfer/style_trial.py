"""What a received style teaches: a small training on painted images alone, judged on the silo's own real images.

A generator whose images look right may still draw boundaries where a network cannot find them, or texture that it takes
for boundaries. "Painted only -> own real" sees both: the score on the silo's own validation tiles of a network that was
trained on nothing but the silo's own labels painted in a style, beside that of one trained as long on its real images.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from ray_fed.micrographs.agreement import agreement
from ray_fed.micrographs.micrograph_set import MicrographSet
from ray_fed.micrographs.segmentation_task import BoundaryLoss
from ray_fed.micrographs.tiles import augmented
from ray_fed.micrographs.unet import UNetDesign, seeded_unet
from ray_fed.randomness import derived_seed, generator

SHOWN = ("map", "vi", "ari")


@dataclass(frozen=True)
class StyleTrialPlan:
    """How long and how a trial trains."""

    design: UNetDesign
    steps: int = 64
    batch_size: int = 8
    learning_rate: float = 2e-3
    boundary_weight: float = 3.0
    erasing: float = 0.5


@dataclass(frozen=True)
class StyleTrial:
    """What one style taught."""

    painted: Mapping[str, float]
    """Metric -> value on the silo's own validation tiles, of the network that saw painted images alone."""
    real: Mapping[str, float]
    """The same of the network that saw the silo's real images alone."""

    @property
    def help_share(self) -> float:
        """ARI by painted images over ARI by real ones, from 0 on: by chance both are 0. 1 where real ones teach
        nothing: then nothing can be said against the style."""
        real = self.real["ari"]
        return max(0.0, self.painted["ari"]) / real if real > 0 else 1.0


def trained_score(
    plan: StyleTrialPlan,
    images: np.ndarray,
    masks: np.ndarray,
    validation: MicrographSet,
    seed: int,
    device: str = "cpu",
) -> dict[str, float]:
    """Return MAP, VI and ARI on real tiles of a network trained on images and masks uint8 [n, h, w] alone."""
    network = seeded_unet(plan.design, derived_seed(seed, "style trial")).to(device).train()
    loss = BoundaryLoss(plan.boundary_weight)
    optimizer = torch.optim.Adam(network.parameters(), lr=plan.learning_rate)
    pixels, labels = (torch.from_numpy(np.ascontiguousarray(part)).to(device) for part in (images, masks))
    for step in range(plan.steps):
        draws = generator(seed, "style trial batch", step)
        index = torch.from_numpy(draws.integers(0, len(pixels), plan.batch_size)).to(device)
        batch, truth = augmented(pixels[index], labels[index], draws, plan.erasing)
        optimizer.param_groups[0]["lr"] = plan.learning_rate * (1 - step / plan.steps)
        optimizer.zero_grad(set_to_none=True)
        loss(network(batch), truth).backward()
        optimizer.step()
    return _scores(network, validation, device)


@torch.no_grad()
def _scores(network: torch.nn.Module, validation: MicrographSet, device: str) -> dict[str, float]:
    logits = network.eval()(torch.from_numpy(validation.images).to(device)).cpu().numpy()
    found = [agreement(logit > 0, mask).values() for logit, mask in zip(logits, validation.masks, strict=True)]
    return {name: float(np.mean([values[name] for values in found])) for name in SHOWN}
