"""What leaves a silo instead of images: a generator's weights behind a typed header, in one array of bytes.

    8 bytes   "RAYFEDS1"
    4 bytes   length of the header, little-endian
    header    JSON with exactly the fields of `ArtifactHeader`
    the rest  the weights, in the network's own order of parameters, under one of four codecs

There is no pickle in it: a receiver builds the network from the header's few numbers and reads the weights as plain
arrays. Everything a sender could get wrong, or do on purpose, is an error that names the silo it came from.

The codecs are fp32, fp16, and whole numbers of 8 or 4 bits with one scale per output channel. Symmetric rounding,
weights only (no calibration data needed, none of the silo's images touched):

    scale_c = max |w_c| / (2^(bits-1) - 1)      q = round(w / scale_c)      w' = q scale_c

Vectors (biases) and scales are half precision; they are a thousandth of the whole. Two 4-bit numbers share a byte, the
first in the low half.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from ray_fed.errors import ConfigError, DataError, Trouble
from ray_fed.reading import parse_json, readable
from ray_fed.style_transfer.image_features import GrainStatistics
from ray_fed.style_transfer.networks import GeneratorSpec, empty_generator

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
    return np.concatenate([scales.view(np.uint8), _pairs_in_bytes(numbers) if bits == 4 else numbers.view(np.uint8)])


def _decoded(buffer: np.ndarray, shape: tuple[int, ...], bits: Bits) -> np.ndarray:
    if not _is_quantised(shape, bits):
        kind = np.dtype("<f4") if bits == 32 else np.dtype("<f2")
        return buffer.copy().view(kind).astype(np.float32).reshape(shape)
    scales = buffer[: 2 * shape[0]].copy().view("<f2").astype(np.float32)
    rest = buffer[2 * shape[0] :]
    numbers = _four_bit_numbers(rest, int(np.prod(shape))) if bits == 4 else rest.view(np.int8)
    return (numbers.reshape(shape[0], -1).astype(np.float32) * scales[:, None]).reshape(shape)


def _bytes(values: np.ndarray, bits: Bits) -> np.ndarray:
    return values.astype("<f4").view(np.uint8) if bits == 32 else _half(values).view(np.uint8)


def _half(values: np.ndarray) -> np.ndarray:
    if np.abs(values).max(initial=0) > HALF_LIMIT:
        raise ValueError(f"a weight of {np.abs(values).max():.3g} does not fit into half precision; send fp32")
    return values.astype("<f2")


def _pairs_in_bytes(numbers: np.ndarray) -> np.ndarray:
    even = np.concatenate([numbers, np.zeros(len(numbers) % 2, np.int8)]).view(np.uint8) & 0x0F
    return even[0::2] | even[1::2] << 4


def _four_bit_numbers(packed: np.ndarray, count: int) -> np.ndarray:
    halves = np.stack([packed & 0x0F, packed >> 4], 1).ravel()[:count].astype(np.int8)
    return np.where(halves > 7, halves - 16, halves).astype(np.int8)


MAGIC = b"RAYFEDS1"
LONGEST_HEADER = 4096
DEFAULT_LIMIT = 1 << 30
"""Bytes of an artifact that a receiver accepts, unless it says otherwise."""


@dataclass(frozen=True)
class ArtifactHeader:
    """What a receiver is told about a generator before it touches its weights."""

    silo: str
    """Who trained it."""
    generator: GeneratorSpec
    bits: Bits
    sha256: str
    """Of the weights' bytes, hexadecimal."""
    num_images: int
    """Labelled images it was trained on."""
    validation_l1: float
    """Mean |G(label) - image| on images it was not trained on; grey values in [0, 1]."""
    line_width_px: float
    """Width of the boundaries in the sender's labels, pixels."""
    grains: GrainStatistics
    """How the sender's grains vary: what their levels and bands are drawn from."""


@dataclass(frozen=True)
class StyleArtifact:
    """A header and the weights as bytes, uint8 [n]."""

    header: ArtifactHeader
    buffer: np.ndarray

    @property
    def num_bytes(self) -> int:
        return len(self.buffer)

    def generator(self) -> nn.Module:
        """Return the network with these weights, in evaluation mode; DataError when they are not finite."""
        module = empty_generator(self.header.generator)
        arrays = decode(self.buffer, shapes_of(module), self.header.bits)
        if not all(np.isfinite(array).all() for array in arrays):
            raise DataError(f"generator of silo '{self.header.silo}': its weights are not finite; train it again")
        with torch.no_grad():
            for parameter, array in zip(module.parameters(), arrays, strict=True):
                parameter.copy_(torch.from_numpy(array))
        return module.eval().requires_grad_(False)


def make_artifact(
    silo: str,
    module: nn.Module,
    spec: GeneratorSpec,
    bits: Bits,
    *,
    num_images: int,
    validation_l1: float,
    line_width_px: float,
    grains: GrainStatistics,
) -> StyleArtifact:
    """Return the generator as an artifact; DataError when its weights cannot be written."""
    arrays = [parameter.detach().cpu().float().numpy() for parameter in module.parameters()]
    try:
        buffer = encode(arrays, bits)
    except ValueError as error:
        raise DataError(f"generator of silo '{silo}' as {CODEC_OF_BITS[bits]}: {error}") from error
    digest = hashlib.sha256(buffer.tobytes()).hexdigest()
    return StyleArtifact(
        ArtifactHeader(silo, spec, bits, digest, num_images, validation_l1, line_width_px, grains), buffer
    )


def packed(artifact: StyleArtifact) -> np.ndarray:
    """Return the artifact as one uint8 array: what travels, and what a file holds."""
    header = json.dumps(asdict(artifact.header), sort_keys=True).encode()
    length = len(header).to_bytes(4, "little")
    return np.concatenate([np.frombuffer(MAGIC + length + header, np.uint8), artifact.buffer])


def unpacked(message: object, sender: str, limit: int = DEFAULT_LIMIT) -> StyleArtifact:
    """Return the artifact behind a message of the silo `sender`, checked in every respect but its looks.

    DataError names the sender and says what is wrong: kind, size, header, architecture, checksum, values. The weights
    stay in the received memory, which may be shared and must not be written to.
    """
    try:
        data = _plain_bytes(message, limit)
        header, start = _header(data)
        if header.silo != sender:
            raise ValueError(f"its header says it is of silo {header.silo!r}")
        artifact = StyleArtifact(header, data[start:])
        _check_weights(artifact)
    except (ValueError, ConfigError) as error:
        raise DataError(
            f"generator received from silo '{sender}' refused: {error}", failure=Trouble.MESSAGE_DAMAGED
        ) from error
    return artifact


def kept(path: Path) -> StyleArtifact:
    """Return the artifact in a file of the silo's own, checked like a message; DataError names the file."""
    data = np.frombuffer(readable(path, "remove the file", DEFAULT_LIMIT), np.uint8)
    try:
        header, start = _header(data)
        artifact = StyleArtifact(header, data[start:])
        _check_weights(artifact)
    except (ValueError, ConfigError) as error:
        raise DataError(f"{path}: {error}; remove the file, and the generator is made or sent again") from error
    return artifact


def _plain_bytes(message: object, limit: int) -> np.ndarray:
    if type(message) is not np.ndarray or message.dtype != np.uint8 or message.ndim != 1:
        raise ValueError(f"it is {_kind(message)}, not a row of bytes")
    if len(message) > limit:
        raise ValueError(f"it has {len(message):,} bytes, more than the {limit:,} allowed (artifact_limit)")
    return message


def _kind(message: object) -> str:
    if isinstance(message, np.ndarray):
        return f"an array {message.dtype} {list(message.shape)}"
    return f"a {type(message).__name__}"


def _header(data: np.ndarray) -> tuple[ArtifactHeader, int]:
    """Return the header and where the weights begin."""
    start = len(MAGIC) + 4
    if data[: len(MAGIC)].tobytes() != MAGIC:
        raise ValueError("it does not begin as a generator does; was it cut or overwritten?")
    length = int.from_bytes(data[len(MAGIC) : start].tobytes(), "little")
    if length > LONGEST_HEADER or start + length > len(data):
        raise ValueError(f"its header claims {length:,} bytes")
    text = data[start : start + length].tobytes()
    return _read_header(parse_json(text, "its header", "send it again")), start + length


def _read_header(found: Any) -> ArtifactHeader:
    _check_names(found, ArtifactHeader, "header")
    _check_names(found["generator"], GeneratorSpec, "header's generator")
    _check_names(found["grains"], GrainStatistics, "header's grains")
    spec = found["generator"]
    if not isinstance(spec["inputs"], list) or not all(isinstance(name, str) for name in spec["inputs"]):
        raise ValueError("its generator's inputs are not a list of names")
    if found["bits"] not in BITS or isinstance(found["bits"], bool):
        raise ValueError(f"its bits={found['bits']!r} must be one of {', '.join(map(str, BITS))}")
    if not isinstance(found["silo"], str) or not isinstance(found["sha256"], str):
        raise ValueError("its silo and sha256 must be text")
    if type(found["num_images"]) is not int or found["num_images"] < 1:
        raise ValueError(f"its num_images={found['num_images']!r} must be a whole number from 1 on")
    for name in ("validation_l1", "line_width_px"):
        value = found[name]
        if isinstance(value, bool) or not isinstance(value, int | float) or not np.isfinite(value) or value < 0:
            raise ValueError(f"its {name}={value!r} must be a number, 0 or more")
    generator = GeneratorSpec(**{**spec, "inputs": tuple(spec["inputs"])})
    return ArtifactHeader(**{**found, "generator": generator, "grains": GrainStatistics(**found["grains"])})


def _check_names(found: Any, cls: type, what: str) -> None:
    wanted = {field.name for field in fields(cls)}
    if not isinstance(found, Mapping) or set(found) != wanted:
        there = sorted(found) if isinstance(found, Mapping) else type(found).__name__
        raise ValueError(f"its {what} has {there}, not {sorted(wanted)}")


def _check_weights(artifact: StyleArtifact) -> None:
    """Check size before content: the network of a hostile header is built only when its weights are all there."""
    header = artifact.header
    with torch.device("meta"):
        shapes = shapes_of(empty_generator(header.generator))
    needed = encoded_size(shapes, header.bits)
    if artifact.num_bytes != needed:
        name = f"{header.generator.architecture} generator of width {header.generator.width}"
        codec = CODEC_OF_BITS[header.bits]
        raise ValueError(f"a {name} has {needed:,} bytes of weights as {codec}, these are {artifact.num_bytes:,}")
    digest = hashlib.sha256(artifact.buffer.tobytes()).hexdigest()
    if digest != header.sha256:
        raise ValueError(f"its checksum is {digest[:12]}..., the header says {header.sha256[:12]}...; send it again")
    if not all(np.isfinite(array).all() for array in decode(artifact.buffer, shapes, header.bits)):
        raise ValueError("its weights are not finite")
