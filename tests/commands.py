"""Commands in processes of their own, as a terminal starts them: none of the tests' Ray settings, deaf to no signal."""

import atexit
import contextlib
import functools
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.conftest import FOLDER

REPOSITORY = Path(__file__).resolve().parents[1]
ENVIRONMENT = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
# What killed commands could not remove goes with the tests' folder; only Ray's sockets need a shorter path.
ENVIRONMENT |= {
    "TMPDIR": str(FOLDER),
    "RAY_TMPDIR": tempfile.gettempdir(),
    "RAY_FED_CACHE": os.environ["RAY_FED_CACHE"],
}
OPEN_CLUSTER = ENVIRONMENT | {"RAY_AUTH_MODE": "disabled", "RAY_prestart_worker_first_driver": "0"}
"""For a cluster of several nodes on this machine, which has no token and starts no worker before it is needed."""


def start(*words: str, folder: Path, env: dict[str, str] = ENVIRONMENT, **options: Any) -> subprocess.Popen[str]:
    """Start Python with these words in `folder`; its output goes to pipes unless `options` say otherwise."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with _signals_heard():
        return subprocess.Popen([sys.executable, *words], cwd=folder, env=env, **(pipes | options))


def start_ray_fed(*arguments: str, folder: Path, env: dict[str, str] = ENVIRONMENT, **options: Any) -> Any:
    """Start the command `ray-fed`, forked from a process that has imported all but Ray where its environment allows."""
    return start_module("pipelines.cli", *arguments, folder=folder, env=env, **options)


def start_module(name: str, *arguments: str, folder: Path, env: dict[str, str] = ENVIRONMENT, **options: Any) -> Any:
    """Start `python -m NAME` without the seconds of its imports. A process of pytest itself is never forked: it may
    have threads of Ray and of gRPC, whose locks and memory a copy without the threads cannot use."""
    words = ("-m", name, *arguments)
    if sys.platform != "linux" or "preexec_fn" in options or _read_at_import(env) != _read_at_import(ENVIRONMENT):
        return start(*words, folder=folder, env=env, **options)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return ForkedCommand([sys.executable, *words], cwd=folder, env=env, **(pipes | options))


def _read_at_import(env: dict[str, str]) -> set[tuple[str, str]]:
    return {(key, value) for key, value in env.items() if key.startswith(("PYTHON", "OMP_", "OPENBLAS_", "MKL_"))}


def run_ray_fed(*arguments: str, folder: Path, **options: Any) -> subprocess.CompletedProcess[str]:
    return finished(start_ray_fed(*arguments, folder=folder, **options))


def finished(process: subprocess.Popen[str], timeout: float = 300.0) -> subprocess.CompletedProcess[str]:
    """Wait for the end of a command; TimeoutExpired, and the command is killed, when it does not come."""
    try:
        printed, said = process.communicate(timeout=timeout)
    finally:
        process.kill()
    return subprocess.CompletedProcess(process.args, process.returncode, printed, said)


class ForkedCommand(subprocess.Popen):
    """As `Popen` is used; its process is a child of tests/command_server.py, which says how it ended."""

    def _execute_child(self, args, executable, preexec_fn, close_fds, pass_fds, cwd, env, *rest) -> None:  # noqa: ARG002
        # Of the rest: the ends of the pipes, (stdin, stdout, stderr), and whether a session of its own is wished.
        (p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite), new_session = rest[3:9], rest[-2]
        asked = {"words": args[1:], "env": dict(env), "folder": str(cwd), "new_session": new_session}
        question = json.dumps(asked).encode()
        files = [given if given != -1 else number for number, given in enumerate((p2cread, c2pwrite, errwrite))]
        self._line = socket.socket(socket.AF_UNIX)
        self._line.connect(_command_server())
        socket.send_fds(self._line, [len(question).to_bytes(8, "little")], files)
        self._line.sendall(question)
        self.pid = int.from_bytes(self._line.recv(8, socket.MSG_WAITALL), "little")
        self._child_created = True
        self._close_pipe_fds(p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite)

    def _try_wait(self, wait_flags: int) -> tuple[int, int]:
        """Return (number, status), or (0, 0) where it has not ended and is not to be waited for."""
        self._line.settimeout(0 if wait_flags & os.WNOHANG else None)
        try:
            status = self._line.recv(8, socket.MSG_WAITALL)
        except BlockingIOError:
            return 0, 0
        self._line.close()
        assert status, "the process that commands are forked from has ended"
        return self.pid, int.from_bytes(status, "little")

    def _internal_poll(self, _deadstate: int | None = None, **_: Any) -> int | None:
        if self.returncode is None and _deadstate is None:  # it is given when Python throws this object away
            number, status = self._try_wait(os.WNOHANG)
            if number:
                self._handle_exitstatus(status)
        return self.returncode


@functools.cache
def _command_server() -> str:
    """Return the address of this process's command server, started by the first command."""
    address = str(Path(tempfile.mkdtemp(dir=FOLDER)) / "commands")
    server = start("-m", "tests.command_server", address, folder=REPOSITORY, stdin=subprocess.PIPE, stdout=None)
    atexit.register(server.kill)
    while not Path(address).exists():
        assert server.poll() is None, server.stderr.read()
        time.sleep(0.01)
    return address


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
