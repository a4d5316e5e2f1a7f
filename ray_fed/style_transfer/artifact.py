"""What leaves a silo instead of images: a generator's weights behind a typed header, in one array of bytes.

    8 bytes   "RAYFEDS1"
    4 bytes   length of the header, little-endian
    header    JSON with exactly the fields of `ArtifactHeader`
    the rest  the weights, see codecs.py

There is no pickle in it: a receiver builds the network from the header's few numbers and reads the weights as plain
arrays. Everything a sender could get wrong, or do on purpose, is an error that names the silo it came from.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ray_fed.errors import ConfigError, DataError
from ray_fed.style_transfer.codecs import BITS, CODEC_OF_BITS, Bits, decode, encode, encoded_size, shapes_of
from ray_fed.style_transfer.generators import GeneratorSpec, empty_generator
from ray_fed.style_transfer.grain_features import GrainStatistics

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
        raise DataError(f"generator received from silo '{sender}' refused: {error}") from error
    return artifact


def kept(path: Path) -> StyleArtifact:
    """Return the artifact in a file of the silo's own, checked like a message; DataError names the file."""
    data = np.frombuffer(path.read_bytes(), np.uint8)
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
    try:
        fields_found = json.loads(data[start : start + length].tobytes())
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError("its header is not JSON") from error
    return _read_header(fields_found), start + length


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
