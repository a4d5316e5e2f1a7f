"""What spglib and moyopy say of an odd crystal, as notes of its row instead of lines on the terminal.

spglib tells it from C, straight to file descriptor 2 of the process; moyopy by the logger "moyo"; both, in some
versions, by Python's warnings. While symmetry is searched descriptor 2 is therefore a file of ours: lines that are not
spglib's (another thread's, say) are written to the terminal afterwards, none is lost.
"""

import logging
import os
import re
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO

from ray_fed.errors import quoted

_SPGLIB_PRINTS = "SPGLIB_WARNING"
_BY_SPGLIB = re.compile(rb"^\s*spglib: *", re.IGNORECASE)
_MOST_LETTERS = 200
_STDERR = 2
_ONE_AT_A_TIME = threading.RLock()
"""Descriptor 2 and the environment belong to the whole process."""


class FinderWords:
    """What the finders said since the last question."""

    def __init__(self, printed: FileIO):
        self.logged: list[str] = []
        self.caught: list[warnings.WarningMessage] = []
        self.foreign = b""
        """Lines on the standard error that are not spglib's."""
        self._printed, self._read = printed, 0

    def taken(self, finder: str) -> list[str]:
        """Return the notes of one crystal, each once, and forget them."""
        # That one of a finder's own functions is old says nothing of a crystal.
        warned = [str(one.message) for one in self.caught if not issubclass(one.category, DeprecationWarning)]
        said = [*warned, *self.logged, *self._lines()]
        self.logged.clear()
        self.caught.clear()
        return [f"{finder} warns {quoted(text, _MOST_LETTERS)}" for text in dict.fromkeys(said)]

    def _lines(self) -> list[str]:
        size = os.fstat(self._printed.fileno()).st_size
        if size == self._read:
            return []
        lines = os.pread(self._printed.fileno(), size - self._read, self._read).splitlines(keepends=True)
        self._read = size
        self.foreign += b"".join(line for line in lines if not _BY_SPGLIB.match(line))
        return [_BY_SPGLIB.sub(b"", line).decode(errors="replace").strip() for line in lines if _BY_SPGLIB.match(line)]


class _Kept(logging.Handler):
    """Keeps the texts of records in a list."""

    def __init__(self, texts: list[str]):
        super().__init__(logging.WARNING)
        self._texts = texts

    def emit(self, record: logging.LogRecord) -> None:
        self._texts.append(record.getMessage())


@contextmanager
def quiet_finders() -> Iterator[FinderWords]:
    """Keep what finders say of each odd crystal off the terminal: ask the words for it after each."""
    with _ONE_AT_A_TIME, tempfile.TemporaryFile(buffering=0) as printed, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        words = FinderWords(printed)
        words.caught = caught
        with _logger_kept(words.logged), _printing():
            try:
                with _standard_error_in(printed.fileno()):
                    yield words
            finally:
                words.taken("")
                _write_all(words.foreign)


@contextmanager
def _standard_error_in(descriptor: int) -> Iterator[None]:
    """Let file descriptor 2 be another one; where a process has none, none is made."""
    try:
        before = os.dup(_STDERR)
    except OSError:
        yield
        return
    _flush()
    os.dup2(descriptor, _STDERR)
    try:
        yield
    finally:
        _flush()
        os.dup2(before, _STDERR)
        os.close(before)


def _flush() -> None:
    if sys.stderr is not None:  # as in a process without a console
        sys.stderr.flush()


def _write_all(text: bytes) -> None:
    while text:
        text = text[os.write(_STDERR, text) :]


@contextmanager
def _logger_kept(texts: list[str]) -> Iterator[None]:
    logger, handler = logging.getLogger("moyo"), _Kept(texts)
    level, propagates = logger.level, logger.propagate
    logger.setLevel(logging.WARNING)
    logger.propagate = False
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagates


@contextmanager
def _printing() -> Iterator[None]:
    """Ask spglib for its warnings, whatever the environment says."""
    before = os.environ.get(_SPGLIB_PRINTS)
    os.environ[_SPGLIB_PRINTS] = "ON"
    try:
        yield
    finally:
        os.environ.pop(_SPGLIB_PRINTS)
        if before is not None:
            os.environ[_SPGLIB_PRINTS] = before
