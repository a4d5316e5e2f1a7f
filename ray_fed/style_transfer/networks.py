"""Generators (label -> image) and the discriminators they are trained against.

Generators: a U-Net (pix2pix) and a residual network (pix2pixHD), both with resize-convolutions. A transposed
convolution with stride 2 writes a checkerboard into every image; nearest-neighbour enlargement followed by a
convolution does not.

Discriminators: PatchGANs (Isola et al. 2017, Sec. 3.2.2), alone or at two scales (pix2pixHD). They never leave a silo:
they are the part that has looked at real images closest.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import nn

from ray_fed.config import require
from ray_fed.randomness import derived_seed

Architecture = Literal["unet", "residual"]
INPUT_CHANNELS = {"label": 1, "level": 1, "band": 3, "light": 1, "line": 1, "noise": 1}
"""What a generator may see, and how many channels it takes; see conditioning.py."""


@dataclass(frozen=True)
class GeneratorSpec:
    """Everything needed to build a generator besides its weights: it travels in the artifact's header."""

    architecture: Architecture = "unet"
    """unet: encoder and decoder with skips (paper's Methods, pix2pix) | residual: blocks between (pix2pixHD)."""
    width: int = 16
    """Channels of the first layer; each halving of the image doubles them."""
    depth: int = 3
    """Halvings of the image."""
    blocks: int = 4
    """Residual blocks at the coarsest scale; a U-Net has none."""
    inputs: tuple[str, ...] = ("label", "level", "band", "light", "line", "noise")
    """Channels of the input, in order: label (boundary 1, grain -1), level, band, light, line, noise."""

    def __post_init__(self) -> None:
        known = ("unet", "residual")
        require(self.architecture in known, f"architecture={self.architecture!r} must be one of {', '.join(known)}")
        for name, most in (("width", 256), ("depth", 6), ("blocks", 32)):
            value = getattr(self, name)
            require(
                type(value) is int and 1 <= value <= most, f"generator {name}={value!r} must lie between 1 and {most}"
            )
        unknown = sorted(set(self.inputs) - set(INPUT_CHANNELS))
        require(not unknown, f"generator inputs={unknown} are unknown; there are: {', '.join(INPUT_CHANNELS)}")
        require("label" in self.inputs, "a generator needs the input 'label'")
        require(len(set(self.inputs)) == len(self.inputs), f"generator inputs={self.inputs} name one twice")

    @property
    def num_channels(self) -> int:
        return sum(INPUT_CHANNELS[name] for name in self.inputs)

    def check_size(self, height: int, width: int) -> None:
        """Raise ConfigError for images whose sides the network cannot halve `depth` times."""
        step = 2**self.depth
        fits = height % step == 0 and width % step == 0 and min(height, width) >= 2 * step
        require(fits, f"images of {height}x{width} must have sides that are multiples of {step}, at least {2 * step}")


class UnetGenerator(nn.Module):
    """[n, channels, h, w] -> image [n, 1, h, w] in (-1, 1)."""

    def __init__(self, spec: GeneratorSpec):
        super().__init__()
        widths = [spec.width * min(2**level, 8) for level in range(spec.depth + 1)]
        self.stem = _convolution(spec.num_channels, widths[0], normalised=False)
        self.downs = nn.ModuleList(_convolution(a, b, stride=2) for a, b in pairwise(widths))
        ups = zip(widths[:0:-1], widths[-2::-1], strict=True)
        self.ups = nn.ModuleList(_convolution(deep + shallow, shallow) for deep, shallow in ups)
        self.head = nn.Conv2d(widths[0], 1, 3, padding=1, padding_mode="reflect")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        skips = [self.stem(x)]
        for down in self.downs:
            skips.append(down(skips[-1]))
        x = skips.pop()
        for up in self.ups:
            x = up(torch.cat([_doubled(x), skips.pop()], 1))
        return torch.tanh(self.head(x))


class ResidualGenerator(nn.Module):
    """pix2pixHD's global generator (Wang et al. 2018, Sec. 3.1) with resize-convolutions; in and out as above."""

    def __init__(self, spec: GeneratorSpec):
        super().__init__()
        widths = [spec.width * 2**level for level in range(spec.depth + 1)]
        self.stem = _convolution(spec.num_channels, widths[0], kernel=7)
        self.downs = nn.ModuleList(_convolution(a, b, stride=2) for a, b in pairwise(widths))
        self.blocks = nn.ModuleList(_ResidualBlock(widths[-1]) for _ in range(spec.blocks))
        self.ups = nn.ModuleList(_convolution(a, b) for a, b in zip(widths[:0:-1], widths[-2::-1], strict=True))
        self.head = nn.Conv2d(widths[0], 1, 7, padding=3, padding_mode="reflect")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for layer in (*self.downs, *self.blocks):
            x = layer(x)
        for up in self.ups:
            x = up(_doubled(x))
        return torch.tanh(self.head(x))


class _ResidualBlock(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.first = _convolution(width, width)
        self.second = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, padding_mode="reflect"), nn.InstanceNorm2d(width)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.second(self.first(x))


def _convolution(inner: int, outer: int, kernel: int = 3, stride: int = 1, normalised: bool = True) -> nn.Sequential:
    """Convolution, instance normalisation, leaky ReLU."""
    convolution = nn.Conv2d(inner, outer, kernel, stride, kernel // 2, padding_mode="reflect")
    norm = nn.InstanceNorm2d(outer) if normalised else nn.Identity()
    return nn.Sequential(convolution, norm, nn.LeakyReLU(0.1))


def _doubled(x: torch.Tensor) -> torch.Tensor:
    return nn.functional.interpolate(x, scale_factor=2.0, mode="nearest")


def empty_generator(spec: GeneratorSpec) -> nn.Module:
    """Return the network of a spec, its weights to be set by the caller."""
    return {"unet": UnetGenerator, "residual": ResidualGenerator}[spec.architecture](spec)


def new_generator(spec: GeneratorSpec, seed: int) -> nn.Module:
    """Return the network with initial weights N(0, 0.02) that depend on `seed` alone."""
    return initialised(lambda: empty_generator(spec), derived_seed(seed, "generator weights"))


def initialised(make, seed: int) -> nn.Module:
    """Return `make()` with convolution weights drawn from N(0, 0.02) and zero biases (pix2pix, Sec. 6.2)."""
    # Layers draw weights from the global generator while they are built; those are overwritten here.
    with torch.random.fork_rng(devices=[]):
        module = make()
    draws = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
            else:
                parameter.copy_(torch.randn(parameter.shape, generator=draws) * 0.02)
    return module


Features = Sequence[torch.Tensor]
"""Outputs of a discriminator's layers; the last one holds a logit per patch."""


class PatchDiscriminator(nn.Module):
    """(label, image) [n, 2, h, w] -> outputs of all layers, the last a logit per overlapping patch."""

    def __init__(self, width: int, layers: int):
        super().__init__()
        widths = [min(width * 2**level, 8 * width) for level in range(layers + 1)]
        stages = [nn.Sequential(nn.Conv2d(2, widths[0], 4, 2, 1), nn.LeakyReLU(0.2))]
        for level in range(1, layers + 1):
            stride = 2 if level < layers else 1
            convolution = nn.Conv2d(widths[level - 1], widths[level], 4, stride, 1)
            stages.append(nn.Sequential(convolution, nn.InstanceNorm2d(widths[level]), nn.LeakyReLU(0.2)))
        self.stages = nn.ModuleList([*stages, nn.Conv2d(widths[-1], 1, 4, 1, 1)])

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        features = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return features


class MultiScaleDiscriminator(nn.Module):
    """Several patch discriminators, each seeing the pair at half the size of the one before (pix2pixHD, Sec. 3.2)."""

    def __init__(self, width: int, layers: int, scales: int):
        super().__init__()
        self.scales = nn.ModuleList(PatchDiscriminator(width, layers) for _ in range(scales))
        self.halve = nn.AvgPool2d(3, 2, 1, count_include_pad=False)

    def forward(self, label: torch.Tensor, image: torch.Tensor) -> list[Features]:
        """label, image: [n, 1, h, w]. Returns each scale's features."""
        x, found = torch.cat([label, image], 1), []
        for number, scale in enumerate(self.scales):
            x = self.halve(x) if number else x
            found.append(scale(x))
        return found


def new_discriminator(width: int, layers: int, scales: int, seed: int) -> MultiScaleDiscriminator:
    """Return the discriminator with initial weights that depend on `seed` alone."""
    made = initialised(
        lambda: MultiScaleDiscriminator(width, layers, scales), derived_seed(seed, "discriminator weights")
    )
    assert isinstance(made, MultiScaleDiscriminator)
    return made
