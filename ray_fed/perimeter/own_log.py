"""A silo's own log: where its output and the words of its errors stay. On the silo's disk, readable by its owner."""

import getpass
import os
import sys
import tempfile
import time
import traceback
from pathlib import Path

MAX_BYTES = 1 << 24
"""A longer log is set aside when the silo starts again, and the one set aside before is removed."""


class OwnLog:
    """One text file per silo."""

    def __init__(self, folder: Path):
        self.path = folder / "silo.log"
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if self.path.exists() and self.path.stat().st_size > MAX_BYTES:
            self.path.replace(self.path.with_suffix(".log.1"))
        self._handle = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def note(self, doing: str, error: BaseException) -> None:
        """Write down an error in full."""
        stamp = time.strftime("%Y-%m-%d %H:%M:%S")
        text = f"{stamp} while {doing}\n{''.join(traceback.format_exception(error))}\n"
        os.write(self._handle, text.encode("utf-8", "backslashreplace"))

    def take_output(self) -> None:
        """Let this process's standard output and error go here from now on, whoever writes to them."""
        sys.stdout.flush()
        sys.stderr.flush()
        for number in (1, 2):
            os.dup2(self._handle, number)

    def close(self) -> None:
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1


def passing_folder(silo: str) -> Path:
    """Return where the log of a silo stands that has no folder: among the machine's temporary files."""
    return Path(tempfile.gettempdir()) / f"ray-fed-{getpass.getuser()}" / silo
