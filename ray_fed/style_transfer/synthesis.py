"""Images of a style on labels (FedTransfer, Algorithm 1, lines 15-16), and whether they repeat the training images.

`probe_memorisation` is asked before a generator may leave; a crude probe, not a proof. Two questions. (1) Is it better
on the labels it has seen? The L1 distance to the true image on training labels against that on held-out labels; for
both, images are first brought to one mean and contrast, because held-out micrographs may have been taken under another
light, which no generator can know and which is no sign of anything. (2) Given held-out labels, does it paint a training
image? The distance from each generated image to the nearest training image, against the distance from a *real* held-out
image to its nearest training image: a generator that paints the style is about as far away as reality is, one that
copies is much nearer. Distances are root mean squares of normalised thumbnails, the smallest over the eight symmetries
of a square.

What it cannot see: details copied into otherwise new images, and anything a determined attacker extracts.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from ray_fed.micrographs.tiles import turned
from ray_fed.randomness import derived_seed
from ray_fed.style_transfer.conditioning import GrainMaps
from ray_fed.style_transfer.image_features import GrainStatistics, drawn_fields
from ray_fed.style_transfer.networks import GeneratorSpec
from ray_fed.style_transfer.training import Pairs, autocast

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


LARGEST_GAP = 1.25
"""Held-out over training L1, at one mean and contrast, above which a generator knows its training images too well."""
NEAREST_RATIO = 0.5
"""Share of the real images' distance to the training set below which a generated image is a copy."""
THUMBNAIL = 32


@dataclass(frozen=True)
class MemorisationFinding:
    """What the probe found; numbers about the generator, none about a single image."""

    train_l1: float
    """Mean |G(label) - image| on training labels; grey values in [0, 1]."""
    held_out_l1: float
    gap: float
    """Held-out over training L1 of images that were brought to mean 0 and standard deviation 1."""
    nearest_generated: float
    """Median distance of generated images to their nearest training image."""
    nearest_real: float
    """Median distance of real held-out images to their nearest training image."""
    num_copies: int
    """Generated images nearer than NEAREST_RATIO times `nearest_real`."""
    num_generated: int

    @property
    def passed(self) -> bool:
        return self.gap <= LARGEST_GAP and self.num_copies == 0

    def __str__(self) -> str:
        verdict = "no sign of memorisation" if self.passed else "memorisation"
        ratio = self.nearest_generated / self.nearest_real if self.nearest_real else float("nan")
        return (
            f"{verdict}: L1 {self.train_l1:.3f} on training labels, {self.held_out_l1:.3f} on held-out ones, "
            f"{self.gap:.2f} times as much at one contrast; "
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
    truth = [training.images[seen], held_out.images[unseen]]
    seen_l1, unseen_l1 = (_l1_at_one_contrast(a, b) for a, b in zip(painted, truth, strict=True))
    known = _thumbnails(training.images)
    generated = nearest_distances(_thumbnails(painted[1]), known)
    real = nearest_distances(_thumbnails(held_out.images[unseen]), known)
    usual = float(np.median(real))
    return MemorisationFinding(
        grey_l1(painted[0], truth[0]),
        grey_l1(painted[1], truth[1]),
        unseen_l1 / max(seen_l1, 1e-9),
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
    return _at_one_contrast(functional.interpolate(images[:, None].float(), (THUMBNAIL, THUMBNAIL), mode="area")[:, 0])


def _at_one_contrast(images: torch.Tensor) -> torch.Tensor:
    """Return images [n, h, w], each with mean 0 and standard deviation 1."""
    images = images - images.mean((1, 2), keepdim=True)
    return images / images.std((1, 2), keepdim=True).clamp_min(1e-6)


def _l1_at_one_contrast(images: torch.Tensor, others: torch.Tensor) -> float:
    """Return the mean absolute difference of uint8 images [n, h, w], in standard deviations."""
    return float((_at_one_contrast(images.float()) - _at_one_contrast(others.float())).abs().mean())
