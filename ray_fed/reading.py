"""Reads files that strangers may have written: bounded in bytes, depth and digits, and each bad one is one DataError.

A name may stand for a device without end, a pipe that nobody writes to, or a folder; JSON and YAML may nest until the
interpreter gives up, hold numbers of a million digits, or values that refer to one another until they fill the memory.
"""

import contextlib
import itertools
import json
import math
import os
import stat
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol

import yaml

from ray_fed.errors import DataError

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image as PillowImage

MAX_TEXT_BYTES = 1 << 26
MAX_YAML_BYTES = 1 << 20
"""PyYAML reads about a megabyte in a few seconds; what people write by hand is a thousandth of it."""
PART_BYTES = 1 << 22
MAX_ARRAY_BYTES = 1 << 31
MAX_PIXELS = 1 << 26
"""Of one picture, 8192 x 8192: a file of a megabyte can claim a thousand times as many; reading takes 24 bytes each."""
MAX_DEPTH = 60
MAX_YAML_VALUES = 200_000
MAX_BITS = 64
"""Of a whole number: what a seed has. `float(10**400)` raises, and no count here is longer."""


class ByteSource(Protocol):
    """An open file, packed or not."""

    def read(self, size: int, /) -> bytes: ...


def open_regular(path: Path) -> BinaryIO:
    """Open a file to be read; OSError, also for what is no regular file: a pipe would let us wait, a device not end."""
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(0, "it is no regular file", str(path))
    return os.fdopen(handle, "rb")


def read_bounded(path: Path, max_bytes: int = MAX_TEXT_BYTES) -> bytes:
    """Return the content of a regular file; OSError for one that cannot be read or is longer than `max_bytes`."""
    with open_regular(path) as file:
        try:
            if os.fstat(file.fileno()).st_size > max_bytes:
                raise ValueError(f"it is longer than {max_bytes:,} bytes")
            return read_at_most(file, max_bytes)
        except ValueError as error:
            raise OSError(0, str(error), str(path)) from error


def read_at_most(file: ByteSource, max_bytes: int) -> bytes:
    """Return what is left of a file; ValueError when that is longer than `max_bytes`. In parts: `read` sets aside all
    the memory that it is allowed."""
    content = bytearray()
    while part := file.read(min(PART_BYTES, max_bytes + 1 - len(content))):
        content += part
        if len(content) > max_bytes:
            raise ValueError(f"it is longer than {max_bytes:,} bytes")
    return bytes(content)


@contextlib.contextmanager
def open_picture(path: Path) -> Iterator["PillowImage"]:
    """Yield a picture before its pixels are read; ValueError where it claims too many, OSError where it is no file.

    Besides these, Pillow raises whatever its codecs raise.
    """
    from PIL import Image

    with warnings.catch_warnings(), open_regular(path) as file:
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the bound is the one of require_few_pixels
        with Image.open(file) as picture:
            require_few_pixels(picture.size)
            yield picture


def require_few_pixels(size: Sequence[int]) -> None:
    """ValueError for a picture that claims more pixels than are read."""
    if math.prod(size) > MAX_PIXELS:
        raise ValueError(f"it has {' x '.join(map(str, size))} pixels, more than {MAX_PIXELS:,}; cut it into parts")


def read_arrays(path: Path, max_bytes: int = MAX_ARRAY_BYTES) -> dict[str, "np.ndarray"]:
    """Return the arrays of an .npz file of numbers; ValueError says what is wrong with it, OSError why it cannot be
    read."""
    import numpy as np

    with open_regular(path) as file:
        try:
            unpacked = sum(entry.file_size for entry in zipfile.ZipFile(file).infolist())
            if unpacked > max_bytes:
                raise ValueError(f"unpacked it has {unpacked:,} bytes, more than {max_bytes:,}")
            file.seek(0)
            with np.load(file, allow_pickle=False) as arrays:
                return {name: arrays[name] for name in arrays.files}
        except OSError:
            raise
        except Exception as error:  # EOFError, BadZipFile, zlib.error, MemoryError for a shape that is not there, ...
            raise ValueError(_reason(error) or type(error).__name__) from error


def bounded_lines(path: Path, max_line: int, max_bytes: int) -> Iterator[bytes]:
    """Yield the lines of a regular file without their ends; of a longer line the first `max_line` + 1 bytes, and then
    nothing more, as after `max_bytes`."""
    read = 0
    with open_regular(path) as file:
        while read <= max_bytes and (line := file.readline(max_line + 1)):
            read += len(line)
            yield line.removesuffix(b"\n")
            if len(line) > max_line:
                return


def parse_json(
    text: str | bytes, where: object, remedy: str = "get it again from where it came", finite: bool = True
) -> Any:
    """Return the value of a JSON text; DataError says where it stands and what is wrong with it.

    Refused besides what is no JSON: more than 60 levels, whole numbers of more than 64 bits and, if `finite`, NaN and
    infinities, also as 1e999.
    """
    try:
        return plain_within_bounds(json.loads(text, parse_constant=_refuse_number if finite else None), finite)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where} is not the JSON it should be ({_reason(error)}); {remedy}") from error


def read_json(path: Path, remedy: str = "get it again from where it came", max_bytes: int = MAX_TEXT_BYTES) -> Any:
    """Return what a JSON file holds; DataError names the file."""
    return parse_json(readable(path, remedy, max_bytes), path, remedy)


def parse_yaml(text: str | bytes, where: object, remedy: str = "was it edited by hand?") -> Any:
    """Return the value of a YAML text; DataError says where it stands and what is wrong with it."""
    try:
        if len(text) > MAX_YAML_BYTES:
            raise ValueError(f"it is longer than {MAX_YAML_BYTES:,} bytes")
        return plain_within_bounds(_yaml_within_bounds(text), refuse_infinite=False)
    except (ValueError, TypeError, AttributeError, RecursionError, yaml.YAMLError) as error:
        raise DataError(f"{where} is not the YAML it should be ({_reason(error)}); {remedy}") from error


def read_yaml(path: Path, remedy: str = "was it edited by hand?") -> Any:
    """Return what a YAML file holds; DataError names the file."""
    return parse_yaml(readable(path, remedy, MAX_YAML_BYTES), path, remedy)


def readable(path: Path, remedy: str, max_bytes: int = MAX_TEXT_BYTES) -> bytes:
    """Return the content of a regular file; DataError names it, says why it cannot be read, and the remedy."""
    try:
        return read_bounded(path, max_bytes)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); {remedy}") from error


def plain_within_bounds(value: Any, refuse_infinite: bool = True) -> Any:
    """Return a value made of mappings, lists and scalars as it is; ValueError for one that nests deeper than 60 levels
    or has numbers that no field holds."""
    level = [value]
    for _ in range(MAX_DEPTH):
        for each in level:
            _check_number(each, refuse_infinite)
        nested = [each.values() if isinstance(each, dict) else each for each in level if isinstance(each, dict | list)]
        level = list(itertools.chain.from_iterable(nested))
        if not level:
            return value
    raise ValueError(f"it nests deeper than {MAX_DEPTH} levels")


class _ShallowLoader(yaml.SafeLoader):
    """Stops at the level that is too deep: PyYAML needs a time that grows with the square of the levels."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise ValueError(f"it nests deeper than {MAX_DEPTH} levels")
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1


def _yaml_within_bounds(text: str | bytes) -> Any:
    """Return the value of a YAML text; what its aliases and merges come to is counted before they are carried out."""
    loader = _ShallowLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        if _expanded_size(node, {}) > MAX_YAML_VALUES:
            raise ValueError(f"with all its aliases it holds more than {MAX_YAML_VALUES:,} values")
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _expanded_size(node: yaml.Node, known: dict[int, int]) -> int:
    """Return how many values a node stands for, aliases written out; one that holds itself counts as endless."""
    if id(node) not in known:
        known[id(node)] = MAX_YAML_VALUES + 1  # until it is counted: whoever meets it now stands inside it
        held = node.value if isinstance(node, yaml.CollectionNode) else ()
        parts = itertools.chain.from_iterable(held) if isinstance(node, yaml.MappingNode) else held
        known[id(node)] = 1 + sum(_expanded_size(part, known) for part in parts)
    return known[id(node)]


def _check_number(value: Any, refuse_infinite: bool) -> None:
    if type(value) is int and value.bit_length() > MAX_BITS:
        raise ValueError(f"it holds a whole number of {value.bit_length():,} bits")
    if refuse_infinite and type(value) is float and not math.isfinite(value):
        raise ValueError("it holds a number beyond all numbers")


def _refuse_number(name: str) -> float:
    raise ValueError(f"{name} is no number")


def _reason(error: Exception) -> str:
    return "it nests too deep" if isinstance(error, RecursionError) else " ".join(str(error).split())[:200]
