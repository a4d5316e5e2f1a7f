"""Convolution as patches times a matrix, so that many networks with different weights run as one batched product.

torch turns a convolution with per-problem weights into a grouped one, whose double backward is slow on every device; a
patch matrix and `matmul` are fast everywhere. Patches are gathered by a linear map and its adjoint, which
are each other's derivatives: the pair below has derivatives of every order.
"""

import torch
from torch import nn
from torch.nn import functional


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
