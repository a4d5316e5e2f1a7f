"""Commands in processes of their own, as a terminal starts them: none of the tests' Ray settings, deaf to no signal."""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.conftest import FOLDER

ENVIRONMENT = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
# What killed commands could not remove goes with the tests' folder; only Ray's sockets need a shorter path.
ENVIRONMENT |= {
    "TMPDIR": str(FOLDER),
    "RAY_TMPDIR": tempfile.gettempdir(),
    "RAY_FED_CACHE": os.environ["RAY_FED_CACHE"],
}
OPEN_CLUSTER = ENVIRONMENT | {"RAY_AUTH_MODE": "disabled"}
"""For a cluster of several nodes on this machine, which has no token."""


def start(*words: str, folder: Path, env: dict[str, str] = ENVIRONMENT, **options: Any) -> subprocess.Popen[str]:
    """Start Python with these words in `folder`; its output goes to pipes unless `options` say otherwise."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with _signals_heard():
        return subprocess.Popen([sys.executable, *words], cwd=folder, env=env, **(pipes | options))


def start_ray_fed(*arguments: str, folder: Path, **options: Any) -> subprocess.Popen[str]:
    return start("-m", "pipelines.cli", *arguments, folder=folder, **options)


def run_ray_fed(*arguments: str, folder: Path, **options: Any) -> subprocess.CompletedProcess[str]:
    return finished(start_ray_fed(*arguments, folder=folder, **options))


def finished(process: subprocess.Popen[str], timeout: float = 300.0) -> subprocess.CompletedProcess[str]:
    """Wait for the end of a command; TimeoutExpired, and the command is killed, when it does not come."""
    try:
        printed, said = process.communicate(timeout=timeout)
    finally:
        process.kill()
    return subprocess.CompletedProcess(process.args, process.returncode, printed, said)


@contextlib.contextmanager
def _signals_heard() -> Iterator[None]:
    """A child inherits which signals are ignored, as Ctrl-C is after `nohup`, by cron and for `make test &`; a signal
    with a handler it gets as by default."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        for number in before:
            signal.signal(number, signal.default_int_handler)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
