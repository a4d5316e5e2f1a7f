"""Weights as bytes: fp32, fp16, and whole numbers of 8 or 4 bits with one scale per output channel.

Symmetric rounding, weights only (no calibration data needed, none of the silo's images touched):

    scale_c = max |w_c| / (2^(bits-1) - 1)      q = round(w / scale_c)      w' = q scale_c

Vectors (biases) and scales are half precision, being a thousandth of the whole. Two 4-bit numbers share a byte, the
first in the low half. The bytes follow the network's own order of parameters; nothing in them names a type or a shape.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from torch import nn

Bits = Literal[4, 8, 16, 32]
BITS: tuple[Bits, ...] = (32, 16, 8, 4)
CODECS: Mapping[str, Bits] = {"fp32": 32, "fp16": 16, "int8": 8, "int4": 4}
CODEC_OF_BITS = {bits: name for name, bits in CODECS.items()}

Shapes = Sequence[tuple[int, ...]]
HALF_LIMIT = float(np.finfo(np.float16).max)


def shapes_of(module: nn.Module) -> list[tuple[int, ...]]:
    """Return the shapes of the module's parameters, in order."""
    return [tuple(parameter.shape) for parameter in module.parameters()]


def encoded_size(shapes: Shapes, bits: Bits) -> int:
    """Return how many bytes arrays of these shapes take."""
    return sum(_size(shape, bits) for shape in shapes)


def encode(arrays: Sequence[np.ndarray], bits: Bits) -> np.ndarray:
    """Return float arrays as one uint8 buffer; ValueError for values a codec has no room for."""
    return np.concatenate([_encoded(np.asarray(array, np.float32), bits) for array in arrays])


def decode(buffer: np.ndarray, shapes: Shapes, bits: Bits) -> list[np.ndarray]:
    """Return the float32 arrays behind `buffer`; ValueError when its size is not theirs."""
    if len(buffer) != encoded_size(shapes, bits):
        raise ValueError(f"the buffer has {len(buffer):,} bytes, the network needs {encoded_size(shapes, bits):,}")
    found, start = [], 0
    for shape in shapes:
        size = _size(shape, bits)
        found.append(_decoded(buffer[start : start + size], shape, bits))
        start += size
    return found


def psnr(reference: np.ndarray, other: np.ndarray, value_range: float) -> float:
    """Return the peak signal-to-noise ratio, dB; infinite for equal arrays."""
    error = float(np.mean((np.asarray(reference, np.float64) - np.asarray(other, np.float64)) ** 2))
    return float(10 * np.log10(value_range**2 / error)) if error else float("inf")


def _is_quantised(shape: tuple[int, ...], bits: Bits) -> bool:
    return bits <= 8 and len(shape) > 1


def _size(shape: tuple[int, ...], bits: Bits) -> int:
    count = int(np.prod(shape))
    if _is_quantised(shape, bits):
        return 2 * shape[0] + (count * bits + 7) // 8
    return count * (4 if bits == 32 else 2)


def _encoded(array: np.ndarray, bits: Bits) -> np.ndarray:
    if not np.isfinite(array).all():
        raise ValueError("the weights are not finite")
    if not _is_quantised(array.shape, bits):
        return _bytes(array.ravel(), bits)
    rows = array.reshape(array.shape[0], -1)
    top = 2 ** (bits - 1) - 1
    scales = _half(np.abs(rows).max(1) / top)
    # What is divided by is the scale as the receiver will read it; a row of zeros has scale 0 and stays zero.
    whole = np.clip(np.rint(rows / np.where(scales > 0, scales, 1).astype(np.float32)[:, None]), -top, top)
    numbers = whole.astype(np.int8).ravel()
    return np.concatenate([scales.view(np.uint8), _packed(numbers) if bits == 4 else numbers.view(np.uint8)])


def _decoded(buffer: np.ndarray, shape: tuple[int, ...], bits: Bits) -> np.ndarray:
    if not _is_quantised(shape, bits):
        kind = np.dtype("<f4") if bits == 32 else np.dtype("<f2")
        return buffer.copy().view(kind).astype(np.float32).reshape(shape)
    scales = buffer[: 2 * shape[0]].copy().view("<f2").astype(np.float32)
    rest = buffer[2 * shape[0] :]
    numbers = _unpacked(rest, int(np.prod(shape))) if bits == 4 else rest.view(np.int8)
    return (numbers.reshape(shape[0], -1).astype(np.float32) * scales[:, None]).reshape(shape)


def _bytes(values: np.ndarray, bits: Bits) -> np.ndarray:
    return values.astype("<f4").view(np.uint8) if bits == 32 else _half(values).view(np.uint8)


def _half(values: np.ndarray) -> np.ndarray:
    if np.abs(values).max(initial=0) > HALF_LIMIT:
        raise ValueError(f"a weight of {np.abs(values).max():.3g} does not fit into half precision; send fp32")
    return values.astype("<f2")


def _packed(numbers: np.ndarray) -> np.ndarray:
    even = np.concatenate([numbers, np.zeros(len(numbers) % 2, np.int8)]).view(np.uint8) & 0x0F
    return even[0::2] | even[1::2] << 4


def _unpacked(packed: np.ndarray, count: int) -> np.ndarray:
    halves = np.stack([packed & 0x0F, packed >> 4], 1).ravel()[:count].astype(np.int8)
    return np.where(halves > 7, halves - 16, halves).astype(np.int8)
