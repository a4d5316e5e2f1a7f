"""Arrays that are slow to make, kept on disk under the sha256 of what they were made from.

An entry is one .npz without pickle. It is written beside its place and moved there, so that a reader sees a whole entry
or none; one that cannot be read is made again. Nothing depends on the cache but time: where the folder cannot be
written, the arrays are computed and a line is logged.
"""

import contextlib
import hashlib
import io
import json
import logging
import os
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from ray_fed.reporting.writing import write_atomically

Arrays = dict[str, np.ndarray]

FOLDER_VARIABLE = "RAY_FED_CACHE"
"""Environment variable with the cache's folder; "off" switches the cache off."""

_log = logging.getLogger(__name__)


def cache_folder() -> Path | None:
    """Return `$RAY_FED_CACHE`, or ~/.cache/ray-fed where it is not set; None where it is "off"."""
    chosen = os.environ.get(FOLDER_VARIABLE, "")
    if chosen.lower() == "off":
        return None
    return Path(chosen).expanduser() if chosen else Path("~/.cache/ray-fed").expanduser()


def content_key(*parts: bytes | str | np.ndarray) -> str:
    """Return the sha256 (64 hex digits) of all parts, their kinds and their borders."""
    digest = hashlib.sha256()
    for part in parts:
        kind, content = _kind_and_content(part)
        digest.update(f"{kind}:{len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()


def _kind_and_content(part: bytes | str | np.ndarray) -> tuple[str, bytes]:
    if isinstance(part, bytes):
        return "bytes", part
    if isinstance(part, str):
        return "text", part.encode("utf-8", "surrogatepass")
    assert not part.dtype.hasobject, "an array of objects has no content of its own to hash"
    return f"{part.dtype.str}{part.shape}", np.ascontiguousarray(part).tobytes()


def cached(key: str, compute: Callable[[], Arrays], folder: Path | None) -> Arrays:
    """Return the arrays stored under `key`, or those of `compute`, which are then stored.

    key      64 hex digits from `content_key`
    compute  returns name -> array, none of them of objects
    folder   made readable by its owner only where it does not exist; None switches the cache off

    Processes that ask for the same key at once wait for the first instead of all computing.
    """
    assert re.fullmatch(r"[0-9a-f]{64}", key), f"{key!r} is no content key"
    if folder is None:
        return compute()
    path = folder / f"{key}.npz"
    found = _read(path)
    if found is not None:
        return found
    if not _made(folder):
        return compute()
    with one_at_a_time(folder / f".{key}.lock"):
        return _found_or_stored(path, compute)


def _found_or_stored(path: Path, compute: Callable[[], Arrays]) -> Arrays:
    found = _read(path)
    if found is not None:
        return found
    arrays = compute()
    content = io.BytesIO()
    assert not any(array.dtype.hasobject for array in arrays.values())
    np.savez_compressed(content, **arrays)  # pyright: ignore[reportArgumentType]
    try:
        write_atomically(path, content.getvalue())
    except OSError as error:
        _log.warning("cannot write %s (%s); going on without it", path, error)
    return arrays


def _read(path: Path) -> Arrays | None:
    """Return an entry's arrays; None where there is no entry or a broken one."""
    try:
        with path.open("rb") as file:
            stored = np.load(file, allow_pickle=False)
            if not isinstance(stored, np.lib.npyio.NpzFile):
                raise ValueError("not an archive of arrays")
            return {name: stored[name] for name in stored.files}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        _log.warning("%s is broken (%s); computing it again", path, error)
        return None


def _made(folder: Path) -> bool:
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        _log.warning("cannot make the cache folder %s (%s); computing without it", folder, error)
        return False
    return True


@contextlib.contextmanager
def one_at_a_time(lock: Path) -> Iterator[None]:
    """Hold an advisory lock; where the file system or the platform has none, go on without it."""
    with contextlib.ExitStack() as held:
        file = _locked(lock)
        if file is not None:
            held.enter_context(file)
            # Removed while held: whoever waits for the old file finds the entry when it gets the lock.
            held.callback(lock.unlink, missing_ok=True)
        yield


def _locked(lock: Path) -> io.BufferedWriter | None:
    try:
        import fcntl

        file = lock.open("ab")
        fcntl.flock(file, fcntl.LOCK_EX)
    except (ImportError, OSError) as error:
        _log.debug("no lock %s: %s", lock, error)
        return None
    return file


def pack_texts(texts: Sequence[str]) -> np.ndarray:
    """Return texts as one uint8 array, which needs no pickle and no padding."""
    return np.frombuffer(json.dumps(list(texts)).encode(), np.uint8)


def unpack_texts(packed: np.ndarray) -> list[str]:
    """Return what `pack_texts` packed."""
    return json.loads(packed.tobytes())
