"""A file that decides what leaves must be its owner's own: nobody else may write it, or put another in its place."""

import os
import stat
from collections.abc import Hashable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from ray_fed.config import require
from ray_fed.errors import ConfigError

MOST_BYTES = 1 << 20
MOST_LINKS = 16
ROOT = 0


def read_owned(path: Path, is_secret: bool) -> Mapping[str, Any]:
    """Return the mapping of a YAML file that belongs to this account (or to root, unless `is_secret`).

    ConfigError, with the remedy, where another account can change the file, a folder above it or a link to it; where it
    is secret and others can read it; and where it is no mapping of different keys.
    """
    content = _parsed(_bytes_of(path, is_secret), path)
    require(content is None or isinstance(content, Mapping), f"{path}: must be a mapping of keys to values")
    return content or {}


def check_own_folder(path: Path) -> None:
    """ConfigError where another account can write a folder, or replace it."""
    for folder, facts in _way(path / "any"):
        _check_step(folder, facts, is_nearest=folder == path)


def _bytes_of(path: Path, is_secret: bool) -> bytes:
    try:
        for step, facts in _way(path):
            _check_step(step, facts, is_nearest=False)
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}; nothing leaves until it can") from error
    with os.fdopen(handle, "rb") as file:
        _check_file(path, os.fstat(handle), is_secret)
        content = file.read(MOST_BYTES + 1)
    require(len(content) <= MOST_BYTES, f"{path}: is larger than {MOST_BYTES} bytes, which no site file is")
    return content


def _check_file(path: Path, facts: os.stat_result, is_secret: bool) -> None:
    require(stat.S_ISREG(facts.st_mode), f"{path}: is no plain file")
    owners = {os.geteuid()} if is_secret else {os.geteuid(), ROOT}
    mine = f"{path}: belongs to another account (user {facts.st_uid})"
    require(facts.st_uid in owners, f"{mine}; the account that runs the silo must own it: chown it")
    open_to, forbidden, mode = ("read or write", 0o077, 600) if is_secret else ("write", 0o022, 644)
    too_open = f"{path}: others can {open_to} it (mode {facts.st_mode & 0o777:o})"
    require(not facts.st_mode & forbidden, f"{too_open}; chmod {mode} {path}")
    folder = path.resolve().parent
    _check_step(folder, folder.stat(), is_nearest=True)


def _way(path: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """Yield every folder and link that is passed on the way to a file, links followed one by one."""
    here, parts, num_links = Path("/"), list(reversed(path.absolute().parts[1:])), 0
    while parts:
        name = parts.pop()
        if name == "..":
            here = here.parent
            continue
        step = here / name
        facts = os.lstat(step) if parts or step.is_symlink() else None
        if facts is None:
            return
        yield step, facts
        if not stat.S_ISLNK(facts.st_mode):
            here = step
            continue
        num_links += 1
        require(num_links <= MOST_LINKS, f"{path}: leads through more than {MOST_LINKS} links")
        target = step.readlink()
        here = Path("/") if target.is_absolute() else here
        parts += reversed(target.parts[1:] if target.is_absolute() else target.parts)


def _check_step(step: Path, facts: os.stat_result, is_nearest: bool) -> None:
    """A folder with the sticky bit (/tmp) may be on the way: nobody removes there what is not theirs."""
    what = "link" if stat.S_ISLNK(facts.st_mode) else "folder"
    foreign = f"{step}: this {what} on the way to the site file belongs to another account (user {facts.st_uid})"
    require(facts.st_uid in (os.geteuid(), ROOT), f"{foreign}; put the file elsewhere")
    is_shared = bool(facts.st_mode & 0o022) and (is_nearest or not facts.st_mode & stat.S_ISVTX)
    others = f"{step}: others can write this folder, and put another file in the place of yours"
    require(what == "link" or not is_shared, f"{others}; chmod go-w {step}")


class _DifferentKeys(yaml.SafeLoader):
    """A key that stands twice would silently count once."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        twice = sorted({name for name in names if names.count(name) > 1})
        require(not twice, f"key {twice[0] if twice else ''!r} stands twice")
        return super().construct_mapping(node, deep)


def _parsed(content: bytes, path: Path) -> Any:
    try:
        return yaml.load(content.decode(), _DifferentKeys)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}; nothing leaves until it does once") from None
    except (ValueError, TypeError, yaml.YAMLError, RecursionError) as error:
        said = " ".join(str(error).split())
        raise ConfigError(f"{path}: cannot be read: {said}; nothing leaves until it can") from error
