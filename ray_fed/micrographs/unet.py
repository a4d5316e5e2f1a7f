"""The U-Net that separates boundaries from grains (Ronneberger et al. 2015), sized by its widths.

Differences from the original, all usual today: padded convolutions, a norm after each, and nearest-neighbour upsampling
with a convolution instead of a transposed convolution, which leaves a checkerboard.

It computes in bfloat16 where the machine has units for it: GPUs, and CPUs with matrix tiles (2.6x faster there).
"""

import contextlib
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from torch.nn import functional

from ray_fed.config import require
from ray_fed.randomness import derived_seed


def bfloat16_pays(device: torch.device) -> bool:
    """Whether `device` multiplies bfloat16 matrices in hardware; without the units it is slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return bool(torch.cpu.get_capabilities().get("amx_bf16"))


def autocast(device: torch.device, wanted: bool = True) -> contextlib.AbstractContextManager:
    """Return a block that computes in bfloat16 where wanted and faster; float32 otherwise.

    Weights are cast anew in every block: a cache would outlive the captured CUDA graph of a training step.
    """
    if wanted and bfloat16_pays(device):
        return torch.autocast(device.type, torch.bfloat16, cache_enabled=False)
    return contextlib.nullcontext()


EVALUATION_PIXELS = 1 << 20
"""Pixels that go through the network at once outside of training; more only leave the processor's cache."""

Norm = Literal["batch", "group"]
Greys = Literal["fixed", "image"]


@dataclass(frozen=True)
class UNetDesign:
    """Everything that decides the network besides its weights."""

    widths: tuple[int, ...] = (16, 32, 64, 128)
    """Channels at full resolution, half, a quarter, ...; (64, 128, 256, 512, 1024) is the original's size."""
    norm: Norm = "batch"
    """batch: BatchNorm, whose running statistics differ between silos; group: GroupNorm, which has none."""
    groups: int = 8
    """Groups of GroupNorm; every width must be a multiple."""
    greys: Greys = "fixed"
    """fixed: (grey - 127.5) / 63.75 for every image; image: mean 0 and standard deviation 1 within each image."""
    low_precision: bool = True
    """Compute in bfloat16 where the device is faster that way."""

    def __post_init__(self) -> None:
        require(
            len(self.widths) >= 2 and min(self.widths) > 0, f"widths={self.widths} needs two or more positive sizes"
        )
        require(self.norm in ("batch", "group"), f"norm={self.norm!r} must be batch or group")
        require(self.greys in ("fixed", "image"), f"greys={self.greys!r} must be fixed or image")
        uneven = [width for width in self.widths if self.norm == "group" and width % self.groups]
        require(not uneven, f"widths={self.widths} must be multiples of groups={self.groups} for norm=group")


class UNet(nn.Module):
    """Grey images uint8 or float [n, H, W] with levels 0..255 -> logits float32 [n, H, W]; above 0 is boundary.

    Any H and W: the image is continued by reflection to a multiple of 2 ** (len(widths) - 1).
    """

    def __init__(self, design: UNetDesign):
        super().__init__()
        self.design = design
        widths = design.widths
        self.down = nn.ModuleList(_double(before, after, design) for before, after in zip((1, *widths), widths))  # noqa: B905
        pairs = list(zip(widths[1:], widths, strict=False))[::-1]
        self.narrow = nn.ModuleList(nn.Conv2d(deep, wide, 3, padding=1) for deep, wide in pairs)
        self.up = nn.ModuleList(_double(2 * wide, wide, design) for _, wide in pairs)
        self.last = nn.Conv2d(widths[0], 1, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if self.training or images.numel() <= EVALUATION_PIXELS:
            return self._logits(images)
        portion = max(1, EVALUATION_PIXELS // images[0].numel())
        return torch.cat([self._logits(part) for part in images.split(portion)])

    def _logits(self, images: torch.Tensor) -> torch.Tensor:
        height, width = images.shape[1:]
        with autocast(images.device, self.design.low_precision):
            x = _padded(self._normalised(images)[:, None], 2 ** (len(self.design.widths) - 1))
            return self._network(x)[:, 0, :height, :width].float()

    def _normalised(self, images: torch.Tensor) -> torch.Tensor:
        x = images.float()
        if self.design.greys == "fixed":
            return (x - 127.5) / 63.75
        spread, mean = torch.std_mean(x, dim=(1, 2), keepdim=True)
        return (x - mean) / (spread + 1)

    def _network(self, x: torch.Tensor) -> torch.Tensor:
        kept = []
        for level, block in enumerate(self.down):
            x = functional.max_pool2d(x, 2) if level else x
            x = block[0](x)  # type: ignore[index]
            if level == 0 and self.design.norm == "batch":
                # One channel has either memory format; its successors keep the one set here. GroupNorm is slow in it:
                # 0.28 instead of 0.19 s a step of 8 tiles of 128 pixels, where BatchNorm takes 0.15 instead of 0.19 s.
                x = x.contiguous(memory_format=torch.channels_last)
            x = block[1:](x)  # type: ignore[index]
            kept.append(x)
        for narrow, block, across in zip(self.narrow, self.up, kept[-2::-1], strict=True):
            x = narrow(functional.interpolate(x, scale_factor=2.0, mode="nearest"))
            x = block(torch.cat([across, x], 1))
        return self.last(x)


def seeded_unet(design: UNetDesign, seed: int) -> UNet:
    """Return a U-Net whose initial weights depend on `seed` alone; the global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derived_seed(seed, "initial weights"))
        return UNet(design)


def _double(before: int, after: int, design: UNetDesign) -> nn.Sequential:
    layers: list[nn.Module] = []
    for channels in (before, after):
        norm = nn.BatchNorm2d(after) if design.norm == "batch" else nn.GroupNorm(design.groups, after)
        layers += [nn.Conv2d(channels, after, 3, padding=1, bias=False), norm, nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


def _padded(x: torch.Tensor, multiple: int) -> torch.Tensor:
    bottom, right = -x.shape[2] % multiple, -x.shape[3] % multiple
    return functional.pad(x, (0, right, 0, bottom), mode="reflect") if bottom or right else x
