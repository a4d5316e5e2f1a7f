"""Files that are either as they were or complete: written beside their place, then moved over it."""

import os
from pathlib import Path


def write_atomically(path: Path, content: bytes) -> Path:
    """Write `content` to `path`, making its folder; an interrupted write leaves the old file and no litter.

    OSError names the file, also where the system does not: a full disk says only that it is full.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        _write_through(draft, content)
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
