"""Networks under attack. Their weights come from a seed; many of one structure can be computed in one product.

So their convolutions are patches times a matrix: torch turns a convolution with per-problem weights into a grouped one,
whose double backward is slow on every device; a patch matrix and `matmul` are fast everywhere. Patches are gathered by
a linear map and its adjoint, which are each other's derivatives: the pair below has derivatives of every order.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from ray_fed.config import require, unknown_name
from ray_fed.randomness import derived_seed


class _Unfold(torch.autograd.Function):
    """[..., channels, height, width] -> [..., channels * k * k, positions]."""

    @staticmethod
    def forward(images: torch.Tensor, kernel: int, padding: int, stride: int) -> torch.Tensor:
        flat = images.reshape(-1, *images.shape[-3:])
        patches = functional.unfold(flat, kernel, padding=padding, stride=stride)
        return patches.reshape(*images.shape[:-3], *patches.shape[-2:])

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:  # noqa: ARG004
        images, ctx.kernel, ctx.padding, ctx.stride = inputs
        ctx.size = tuple(images.shape[-2:])

    @staticmethod
    def backward(ctx, gradient: torch.Tensor):  # type: ignore[override]
        return _Fold.apply(gradient, ctx.size, ctx.kernel, ctx.padding, ctx.stride), None, None, None

    @staticmethod
    def vmap(info, in_dims, images, kernel, padding, stride):  # noqa: ARG004
        return _Unfold.apply(images.movedim(in_dims[0], 0), kernel, padding, stride), 0


class _Fold(torch.autograd.Function):
    """The adjoint: adds patches [..., channels * k * k, positions] up to images of `size`."""

    @staticmethod
    def forward(patches: torch.Tensor, size: tuple[int, int], kernel: int, padding: int, stride: int) -> torch.Tensor:
        flat = patches.reshape(-1, *patches.shape[-2:])
        images = functional.fold(flat, size, kernel, padding=padding, stride=stride)
        return images.reshape(*patches.shape[:-2], *images.shape[-3:])

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:  # noqa: ARG004
        _, _, ctx.kernel, ctx.padding, ctx.stride = inputs

    @staticmethod
    def backward(ctx, gradient: torch.Tensor):  # type: ignore[override]
        return _Unfold.apply(gradient, ctx.kernel, ctx.padding, ctx.stride), None, None, None, None

    @staticmethod
    def vmap(info, in_dims, patches, size, kernel, padding, stride):  # noqa: ARG004
        return _Fold.apply(patches.movedim(in_dims[0], 0), size, kernel, padding, stride), 0


def image_patches(images: torch.Tensor, kernel: int, padding: int, stride: int) -> torch.Tensor:
    """Return the patches of images [..., channels, height, width] as columns [..., channels * k * k, positions]."""
    return _Unfold.apply(images, kernel, padding, stride)  # type: ignore[return-value]


class PatchConv2d(nn.Conv2d):
    """`nn.Conv2d` with a square kernel, one padding and one stride, computed from patches; same parameters."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        kernel, padding, stride = self.kernel_size[0], int(self.padding[0]), self.stride[0]
        columns = image_patches(input, kernel, padding, stride)
        out = self.weight.flatten(1) @ columns
        if self.bias is not None:
            out = out + self.bias[:, None]
        height, width = ((size + 2 * padding - kernel) // stride + 1 for size in input.shape[-2:])
        return out.reshape(*input.shape[:-3], self.out_channels, height, width)


def images_from_patches(
    patches: torch.Tensor, size: tuple[int, ...], kernel: int, padding: int, stride: int
) -> torch.Tensor:
    """Add patches [..., channels * k * k, positions] up to images of `size` (height, width): the adjoint of patches."""
    return _Fold.apply(patches, tuple(size), kernel, padding, stride)  # type: ignore[return-value]


Shape = tuple[int, ...]

WIDTH = 12
"""Channels of DLG's LeNet."""


def make_target(name: str, input_shape: Shape, num_classes: int, seed: int, bias: bool = True) -> nn.Module:
    """Return a network for inputs [batch, *input_shape] with weights that depend on `seed` alone.

    `lenet` and `lenet_relu` have weights U(-0.5, 0.5) as in the published DLG experiments; the others have torch's
    initial weights. `bias=False` leaves the output layer without its bias. ConfigError for an unknown name, or an input
    the network cannot take.
    """
    if name not in TARGETS:
        raise unknown_name("model", name, TARGETS)
    require(num_classes >= 1, f"num_classes={num_classes} must be positive")
    require(name == "mlp" or len(input_shape) == 3, f"model={name} takes images (channels, height, width)")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derived_seed(seed, "weights of a target"))
        network = TARGETS[name](input_shape, num_classes, bias)
        if name.startswith("lenet"):
            _spread_uniformly(network)
    return network.eval()


@torch.no_grad()
def _spread_uniformly(network: nn.Module) -> None:
    for parameter in network.parameters():
        parameter.uniform_(-0.5, 0.5)


def lenet(shape: Shape, num_classes: int, bias: bool, activation: Callable[[], nn.Module] = nn.Sigmoid) -> nn.Module:
    """DLG's LeNet (Zhu et al. 2019): three 5x5 convolutions of 12 channels, strides 2, 2, 1, and one linear layer."""
    channels, height, width = shape
    require(min(height, width) >= 5, f"model=lenet needs images of at least 5x5 pixels, not {height}x{width}")
    flat = WIDTH * -(-height // 4) * -(-width // 4)
    return nn.Sequential(
        PatchConv2d(channels, WIDTH, 5, stride=2, padding=2), activation(),
        PatchConv2d(WIDTH, WIDTH, 5, stride=2, padding=2), activation(),
        PatchConv2d(WIDTH, WIDTH, 5, stride=1, padding=2), activation(),
        nn.Flatten(), nn.Linear(flat, num_classes, bias=bias),
    )  # fmt: skip


def lenet_relu(shape: Shape, num_classes: int, bias: bool) -> nn.Module:
    """The same LeNet with ReLU."""
    return lenet(shape, num_classes, bias, nn.ReLU)


def mlp_classifier(shape: Shape, num_classes: int, bias: bool) -> nn.Module:
    """Two hidden layers of 64 units."""
    size = int(torch.Size(shape).numel())
    hidden = (nn.Linear(size, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU())
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(64, num_classes, bias=bias))


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut; no normalisation, whose statistics would mix the samples of a batch."""

    def __init__(self, inside: int, outside: int, stride: int):
        super().__init__()
        self.first = PatchConv2d(inside, outside, 3, stride=stride, padding=1)
        self.second = PatchConv2d(outside, outside, 3, padding=1)
        self.shortcut = PatchConv2d(inside, outside, 1, stride=stride, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inner = self.second(torch.nn.functional.silu(self.first(x)))
        return torch.nn.functional.silu(inner + self.shortcut(x))


def resnet(shape: Shape, num_classes: int, bias: bool) -> nn.Module:
    """Three residual blocks (8, 16, 16 channels; strides 1, 2, 2), SiLU, one linear layer."""
    channels, height, width = shape
    flat = 16 * -(-height // 4) * -(-width // 4)
    blocks = (ResidualBlock(channels, 8, 1), ResidualBlock(8, 16, 2), ResidualBlock(16, 16, 2))
    return nn.Sequential(*blocks, nn.Flatten(), nn.Linear(flat, num_classes, bias=bias))


class SmallUNet(nn.Module):
    """A segmentation network of one level: down, up, and a connection past the bottleneck; output per pixel."""

    def __init__(self, channels: int, num_classes: int, bias: bool):
        super().__init__()
        self.down = PatchConv2d(channels, 8, 3, padding=1)
        self.bottom = PatchConv2d(8, 16, 3, stride=2, padding=1)
        self.up = nn.Upsample(scale_factor=2, mode="nearest")
        self.merge = PatchConv2d(24, 8, 3, padding=1)
        self.head = PatchConv2d(8, num_classes, 1, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[batch, channels, height, width] -> logits [batch, num_classes, height, width]; even height and width."""
        high = torch.nn.functional.silu(self.down(x))
        low = torch.nn.functional.silu(self.bottom(high))
        return self.head(torch.nn.functional.silu(self.merge(torch.cat([high, self.up(low)], dim=-3))))


def unet(shape: Shape, num_classes: int, bias: bool) -> nn.Module:
    """`SmallUNet` for images of this shape; ConfigError for odd height or width."""
    require(shape[1] % 2 == 0 and shape[2] % 2 == 0, f"model=unet needs even height and width, not {shape[1:]}")
    return SmallUNet(shape[0], num_classes, bias)


TARGETS: dict[str, Callable[[Shape, int, bool], nn.Module]] = {
    "lenet": lenet,
    "lenet_relu": lenet_relu,
    "mlp": mlp_classifier,
    "resnet": resnet,
    "unet": unet,
}


@contextmanager
def plain_attention() -> Iterator[None]:
    """Let transformers compute step by step: their fused forms have no second derivative."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def trainable(network: nn.Module) -> list[str]:
    """Return the names of the parameters that are trained, the ones a message has; ConfigError when there is none."""
    names = [name for name, parameter in network.named_parameters() if parameter.requires_grad]
    require(bool(names), "the network has no parameter that is trained, so no message to attack")
    return names


class _Normalised(nn.Module):
    """What BatchNorm does, written out: torch's own operation has no second derivative for given statistics, and would
    change its running ones in the middle of an attack."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        layer: Any = self
        shape = (1, -1, *[1 for _ in x.shape[2:]])
        if self.training or layer.running_mean is None:
            over = (0, *range(2, x.dim()))
            mean, variance = x.mean(over), x.var(over, correction=0)
        else:
            mean, variance = layer.running_mean, layer.running_var
        out = (x - mean.reshape(shape)) / (variance + layer.eps).sqrt().reshape(shape)
        return out if layer.weight is None else out * layer.weight.reshape(shape) + layer.bias.reshape(shape)


def attackable(network: nn.Module) -> nn.Module:
    """Return a copy of a network in a form that can be differentiated twice for many parameters at once: convolutions
    as patches, BatchNorm written out. ConfigError for layers that draw random numbers.

    The copy has the same parameters by the same names; a network that already has the form is returned itself.
    """
    if getattr(network, "_is_attackable", False):
        return network
    for name, layer in network.named_modules():
        random = isinstance(layer, nn.modules.dropout._DropoutNd) and layer.training and layer.p > 0
        require(not random, f"layer '{name}' drops values at random, and the attacker does not know which: attack the "
                "network in eval mode, or with p=0")  # fmt: skip
    copy = deepcopy(network)
    for layer in copy.modules():
        if type(layer) is nn.Conv2d and _has_patches(layer):
            layer.__class__ = PatchConv2d
        elif isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.__class__ = _Normalised
    copy._is_attackable = True  # type: ignore[assignment]
    return copy


def _has_patches(layer: nn.Conv2d) -> bool:
    """Whether `PatchConv2d` computes the same as this layer."""
    square = len(set(layer.kernel_size)) == len(set(layer.stride)) == 1
    padded = not isinstance(layer.padding, str) and len(set(layer.padding)) == 1 and layer.padding_mode == "zeros"
    return square and padded and layer.groups == 1 and set(layer.dilation) == {1}
