"""Does a generator repeat the images it was trained on? Asked before it may leave; a crude probe, not a proof.

Two questions. (1) Is it better on the labels it has seen? The L1 distance to the true image on training labels against
that on held-out labels. (2) Given held-out labels, does it paint a training image? The distance from each generated
image to the nearest training image, against the distance from a *real* held-out image to its nearest training image:
a generator that paints the style is about as far away as reality is, one that copies is much nearer. Distances are root
mean squares of normalised thumbnails, the smallest over the eight symmetries of a square.

What it cannot see: details copied into otherwise new images, and anything a determined attacker extracts.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from ray_fed.randomness import derived_seed
from ray_fed.style_transfer.conditioning import turned
from ray_fed.style_transfer.generators import GeneratorSpec
from ray_fed.style_transfer.grain_features import GrainStatistics
from ray_fed.style_transfer.synthesis import grey_l1, synthesise
from ray_fed.style_transfer.training import Pairs

LARGEST_GAP = 1.25
"""Held-out over training L1 above which a generator knows its training images too well."""
NEAREST_RATIO = 0.5
"""Share of the real images' distance to the training set below which a generated image is a copy."""
THUMBNAIL = 32


@dataclass(frozen=True)
class MemorisationFinding:
    """What the probe found; numbers about the generator, none about a single image."""

    train_l1: float
    """Mean |G(label) - image| on training labels; grey values in [0, 1]."""
    held_out_l1: float
    nearest_generated: float
    """Median distance of generated images to their nearest training image."""
    nearest_real: float
    """Median distance of real held-out images to their nearest training image."""
    num_copies: int
    """Generated images nearer than NEAREST_RATIO times `nearest_real`."""
    num_generated: int

    @property
    def passed(self) -> bool:
        return self.held_out_l1 <= LARGEST_GAP * self.train_l1 + 1e-9 and self.num_copies == 0

    def __str__(self) -> str:
        verdict = "no sign of memorisation" if self.passed else "memorisation"
        ratio = self.nearest_generated / self.nearest_real if self.nearest_real else float("nan")
        return (
            f"{verdict}: L1 {self.train_l1:.3f} on training labels, {self.held_out_l1:.3f} on held-out ones; "
            f"generated images are {ratio:.2f} times as far from the training images as real ones are; "
            f"{self.num_copies} of {self.num_generated} look copied"
        )


def probe_memorisation(
    module: nn.Module,
    spec: GeneratorSpec,
    training: Pairs,
    held_out: Pairs,
    statistics: GrainStatistics,
    seed: int,
) -> MemorisationFinding:
    """Return what the generator does on its training labels and on held-out ones (both at most 64)."""
    seen, unseen = (torch.arange(min(len(pairs), 64), device=pairs.images.device) for pairs in (training, held_out))
    painted = [
        synthesise(module, spec, pairs.maps, index, statistics, derived_seed(seed, "memorisation", number))
        for number, (pairs, index) in enumerate(((training, seen), (held_out, unseen)))
    ]
    known = _thumbnails(training.images)
    generated = nearest_distances(_thumbnails(painted[1]), known)
    real = nearest_distances(_thumbnails(held_out.images[unseen]), known)
    usual = float(np.median(real))
    return MemorisationFinding(
        grey_l1(painted[0], training.images[seen]),
        grey_l1(painted[1], held_out.images[unseen]),
        float(np.median(generated)),
        usual,
        int((generated < NEAREST_RATIO * usual).sum()),
        len(generated),
    )


def nearest_distances(images: torch.Tensor, known: torch.Tensor) -> np.ndarray:
    """Return each image's distance [n] to the nearest of `known`, over the eight symmetries.

    images [n, s, s], known [m, s, s]: float, as from `_thumbnails`.
    """
    flat = known.flatten(1)
    best = torch.full((len(images),), torch.inf, device=images.device)
    for quarter_turns in range(4):
        for mirrored in (False, True):
            found = torch.cdist(turned(images, quarter_turns, mirrored).flatten(1), flat).min(1).values
            best = torch.minimum(best, found)
    return (best / flat.shape[1] ** 0.5).cpu().numpy()


def _thumbnails(images: torch.Tensor) -> torch.Tensor:
    """Return uint8 images [n, h, w] as float [n, s, s], each with mean 0 and standard deviation 1."""
    small = functional.interpolate(images[:, None].float(), (THUMBNAIL, THUMBNAIL), mode="area")[:, 0]
    small = small - small.mean((1, 2), keepdim=True)
    return small / small.std((1, 2), keepdim=True).clamp_min(1e-6)
