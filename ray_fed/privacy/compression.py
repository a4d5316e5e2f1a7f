"""Fewer bytes for an update: its move from what was received, in half precision, in 8 bits, or its largest values only.

What a code leaves out is not lost: the silo adds it to its next move (error feedback, Seide et al. 2014; Karimireddy et
al. 2019, Algorithm 2). Both ends turn a code into the same float32 vector, so the guard, the exact sum and the ledger
see ordinary updates.

    method   bytes per value   a code, after one byte for the method
    fp16     2                 float16 [n]
    bf16     2                 upper halves of float32 [n], rounded to nearest
    int8     1 + 4 / BLOCK     float32 [blocks] step of each block, int8 [n]
    top_k    8 share           uint32 [k] positions ascending, float32 [k] values

Sums of whole numbers (boosted trees) have a code of their own, which leaves nothing out:

    whole    about 0.5         zlib of: uint8 [n] the number, signs folded in, or 255; uint32 of those that are larger
"""

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from math import ceil
from typing import Literal

import numpy as np

from ray_fed.config import require

Method = Literal["fp16", "bf16", "int8", "top_k"]
METHODS: tuple[Method, ...] = ("fp16", "bf16", "int8", "top_k")
Vector = np.ndarray
"""float32, contiguous."""
BLOCK = 1024
"""Values that share one step in int8."""
LARGEST_HALF = 65504.0
WHOLE = len(METHODS)
"""Number of the code of whole numbers."""
ESCAPE = 255
MOST_BYTES = 5
"""Of a whole number, unpacked."""


@dataclass(frozen=True)
class Compression:
    """How the silos of a session code their moves."""

    method: Method = "int8"
    share: float = 0.01
    """Share of the values that top_k sends."""

    def __post_init__(self) -> None:
        require(self.method in METHODS, f"compression={self.method!r} must be one of {', '.join(METHODS)}")
        require(0 < self.share <= 1, f"top_k_share={self.share} must lie in (0, 1]")

    def encode(self, move: Vector) -> np.ndarray:
        """Return the code of a move, uint8; a value that is not finite makes an unusable code of the method fp16."""
        if not np.isfinite(move).all():
            return _joined(0, np.full(len(move), np.nan, np.float16))
        number = METHODS.index(self.method)
        return _joined(number, *_ENCODERS[number](move, self.share))


def decode(code: np.ndarray, length: int) -> Vector:
    """Return the move behind a code, float32 [length]. ValueError for bytes that are no code of such a move."""
    if code.dtype != np.uint8 or code.ndim != 1 or not len(code) or code[0] >= len(METHODS):
        raise ValueError("it is no code of a move")
    return _DECODERS[code[0]](code[1:].tobytes(), length)


def rebuilt(received: Vector, code: np.ndarray) -> Vector:
    """Return received + move, or the whole numbers themselves, float32: what the silo and the coordinator take for the
    update."""
    if code.dtype == np.uint8 and code.ndim == 1 and len(code) and code[0] == WHOLE:
        return decode_whole(code)
    return received + decode(code, len(received))


def _joined(number: int, *arrays: np.ndarray) -> np.ndarray:
    parts = [np.array([number], np.uint8), *(np.ascontiguousarray(part).view(np.uint8) for part in arrays)]
    return np.concatenate(parts)


def _read(data: bytes, dtype: str, length: int) -> np.ndarray:
    if len(data) != length * np.dtype(dtype).itemsize:
        raise ValueError(f"its code has {len(data)} bytes of {dtype} for {length} values")
    return np.frombuffer(data, dtype)


# ---- half precision


def _encode_fp16(move: Vector, share: float) -> tuple[np.ndarray, ...]:  # noqa: ARG001
    return (np.clip(move, -LARGEST_HALF, LARGEST_HALF).astype("<f2"),)


def _decode_fp16(data: bytes, length: int) -> Vector:
    return _read(data, "<f2", length).astype(np.float32)


def _encode_bf16(move: Vector, share: float) -> tuple[np.ndarray, ...]:  # noqa: ARG001
    bits = np.ascontiguousarray(move, np.float32).view(np.uint32)
    odd = (bits >> 16) & 1  # halfway cases go to the even neighbour
    rounded = ((bits + (0x7FFF + odd)) >> 16).astype("<u2")
    infinite = (rounded & 0x7FFF) == 0x7F80  # the very largest floats would round up to infinity
    return (np.where(infinite, rounded - 1, rounded).astype("<u2"),)


def _decode_bf16(data: bytes, length: int) -> Vector:
    return (_read(data, "<u2", length).astype(np.uint32) << 16).view(np.float32)


# ---- eight bits


def _encode_int8(move: Vector, share: float) -> tuple[np.ndarray, ...]:  # noqa: ARG001
    padded = np.zeros(ceil(len(move) / BLOCK) * BLOCK, np.float32)
    padded[: len(move)] = move
    blocks = padded.reshape(-1, BLOCK)
    steps = (np.abs(blocks).max(axis=1, initial=0) / 127).astype("<f4")
    scale = np.where(steps > 0, steps, 1)[:, None]
    values = np.clip(np.rint(blocks / scale), -127, 127).astype(np.int8)
    return steps, values.reshape(-1)[: len(move)]


def _decode_int8(data: bytes, length: int) -> Vector:
    num_blocks = ceil(length / BLOCK)
    steps = _read(data[: 4 * num_blocks], "<f4", num_blocks)
    values = _read(data[4 * num_blocks :], "i1", length)
    return values.astype(np.float32) * np.repeat(steps, BLOCK)[:length]


# ---- the largest values


def _encode_top_k(move: Vector, share: float) -> tuple[np.ndarray, ...]:
    count = ceil(share * len(move))
    # A stable sort: which of two equal values goes must not depend on the machine.
    positions = np.sort(np.argsort(-np.abs(move), kind="stable")[:count])
    return positions.astype("<u4"), move[positions].astype("<f4")


def _decode_top_k(data: bytes, length: int) -> Vector:
    if len(data) % 8:
        raise ValueError("its code breaks off within a value")
    count = len(data) // 8
    positions, values = _read(data[: 4 * count], "<u4", count), _read(data[4 * count :], "<f4", count)
    if count and (positions[-1] >= length or (np.diff(positions.astype(np.int64)) <= 0).any()):
        raise ValueError("the positions in its code do not rise within the vector")
    move = np.zeros(length, np.float32)
    move[positions] = values
    return move


_ENCODERS: tuple[Callable[[Vector, float], tuple[np.ndarray, ...]], ...] = (
    _encode_fp16, _encode_bf16, _encode_int8, _encode_top_k,
)  # fmt: skip
_DECODERS: tuple[Callable[[bytes, int], Vector], ...] = (_decode_fp16, _decode_bf16, _decode_int8, _decode_top_k)


# ---- sums of whole numbers


def encode_whole(numbers: Vector) -> np.ndarray:
    """Return the code of whole numbers below 2^24, uint8."""
    signed = numbers.astype(np.int64)
    folded = (signed << 1) ^ (signed >> 63)  # 0, -1, 1, -2, ... as 0, 1, 2, 3, ...
    large = folded >= ESCAPE
    plane = np.where(large, ESCAPE, folded).astype(np.uint8)
    packed = zlib.compress(plane.tobytes() + folded[large].astype("<u4").tobytes(), 1)
    return _joined(WHOLE, np.array([len(numbers)], "<u4"), np.frombuffer(packed, np.uint8))


def decode_whole(code: np.ndarray) -> Vector:
    """Return the whole numbers of a code, float32. ValueError for bytes that are no such code."""
    length = int(_read(code[1:5].tobytes(), "<u4", 1)[0])
    unpacker = zlib.decompressobj()
    try:
        content = unpacker.decompress(code[5:].tobytes(), MOST_BYTES * length + 1)
    except zlib.error as error:
        raise ValueError("its code cannot be unpacked") from error
    plane = np.frombuffer(content[:length], np.uint8).astype(np.int64)
    large = np.flatnonzero(plane == ESCAPE)
    if len(plane) != length or not unpacker.eof or unpacker.unused_data:
        raise ValueError(f"its code has not the {length} numbers that it says")
    plane[large] = _read(content[length:], "<u4", len(large))
    return ((plane >> 1) ^ -(plane & 1)).astype(np.float32)
