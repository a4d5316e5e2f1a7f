"""Values as JSON and YAML: strict (no NaN token), sorted, the same bytes for the same values. Files that are either as
they were or complete: written beside their place, then moved over it.
"""

import json
import math
import os
from collections.abc import Mapping, Set
from dataclasses import asdict, is_dataclass
from enum import Enum
from pathlib import Path, PurePath

import numpy as np


def write_atomically(path: Path, content: bytes, durable: bool = True) -> Path:
    """Write `content` to `path`, making its folder; an interrupted write leaves the old file and no draft.

    Not `durable`: without waiting for the disk, for thousands of files that can be checked by their hashes.
    OSError names the file, also where the system does not: a full disk says only that it is full.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        (_write_through if durable else Path.write_bytes)(draft, content)
        draft.replace(path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        if draft.exists():  # a disk that cannot be written refuses to remove even what is not there
            draft.unlink()
    return path


def _write_through(path: Path, content: bytes) -> None:
    """Write and wait for the disk: a rename may otherwise reach it before the bytes do."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


Plain = None | bool | int | float | str | list["Plain"] | dict[str, "Plain"]


def to_plain(value: object) -> Plain:
    """Return `value` in the types JSON and YAML know; TypeError for anything that would need pickling.

    NumPy scalars and arrays, tuples, sets (sorted), paths, enums and dataclass instances are understood.
    """
    if isinstance(value, Enum):
        return to_plain(value.value)
    if value is None or type(value) in (bool, int, float, str):
        return value  # type: ignore[return-value]
    if isinstance(value, np.ndarray | np.generic):
        return to_plain(value.tolist())
    if isinstance(value, str | PurePath):
        return str(value)
    if is_dataclass(value) and not isinstance(value, type):
        return to_plain(asdict(value))
    return _plain_collection(value)


def _plain_collection(value: object) -> Plain:
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(item) for item in value]
    if isinstance(value, Set):
        return sorted((to_plain(item) for item in value), key=repr)
    raise TypeError(f"{type(value).__name__} {value!r} has no JSON form; convert it before it is written")


def without_nan(value: Plain) -> Plain:
    """Return plain `value` with NaN and infinities replaced by None: JSON has no word for them."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, list):
        return [without_nan(item) for item in value]
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    return value


def to_json(value: object, indent: int | None = None) -> bytes:
    """Return strict JSON with sorted keys, UTF-8; NaN and infinities become null."""
    plain = without_nan(to_plain(value))
    text = json.dumps(plain, indent=indent, sort_keys=True, ensure_ascii=False, allow_nan=False)
    # A file name that is not valid UTF-8 arrives with lone surrogates; as \udcXX they are legal JSON again.
    return text.encode("utf-8", "backslashreplace")
