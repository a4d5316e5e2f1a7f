"""Quick workers for a private cluster: forked from one process that has everything imported.

Each Ray worker is a new Python that imports Ray, torch and this package: a second and a half of one core, seven times
for four silos. Here Ray is given a small launcher in place of the Python it starts workers with. The launcher hands its
arguments, environment and open files to the *fork server*, which has imported all but Ray already and forks the
worker; it ends when the worker ends. Anything else that Ray starts, and any worker for which the fork server does not
answer, runs in the real Python, as without all this. Only on Linux; `RAY_FED_FORK=off` switches it off.

The fork server is a Python of its own, whose imports go on beside ours. Where this process has them all already and has
never had a second thread, it is a copy of this process instead, which costs nothing.

Forking is safe here because the fork server has never loaded Ray, touched a GPU, computed with torch or drawn a random
number that matters (every seed in this project is derived, see ray_fed/randomness.py).
"""

import atexit
import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from actors import fork_server

LAUNCHER = """#!{python} -IS
import json, os, signal, socket, sys
arguments = sys.argv[1:]
if any(os.path.basename(word) in {idle} for word in arguments[:2]):
    signal.pause()
try:
    if os.path.basename(arguments[0]) != "default_worker.py":
        raise OSError
    line = socket.socket(socket.AF_UNIX)
    line.settimeout({seconds})
    line.connect({address!r})
    question = json.dumps([arguments, dict(os.environ), os.getcwd()]).encode()
    socket.send_fds(line, [len(question).to_bytes(8, "little")], [0, 1, 2])
    line.sendall(question)
    if line.recv(1) != b"y":
        raise OSError
except (OSError, IndexError):
    os.execv({python!r}, [{python!r}, *arguments])
line.settimeout(None)
line.recv(1)
"""
IDLE = ("monitor.py", "log_monitor.py")
"""Ray's programs that a private cluster has no use for: one asks a cloud for more nodes, the other copies the workers'
output to a driver that asked for none. Each would take 0.4 s of a processor while the run starts; they wait instead."""
ANSWER_SECONDS = 60
"""The fork server answers once its imports are done, which takes long where much else runs."""

_fork_server: "ForkServer | None" = None


class ForkServer:
    """The process that workers are forked from, and the launcher that asks it."""

    def __init__(self, *prepared: str) -> None:
        self.folder = tempfile.TemporaryDirectory(prefix="ray-fed-fork-")
        address = str(Path(self.folder.name) / "fork-server")
        self.launcher = Path(self.folder.name) / "python"
        content = LAUNCHER.format(python=sys.executable, address=address, seconds=ANSWER_SECONDS, idle=IDLE)
        self.launcher.write_text(content)
        self.launcher.chmod(0o700)
        # It ends when its standard input does: with this process, however that ends.
        read_end, self._write_end = os.pipe()
        serve = _forked if _is_ready_to_fork() else _started
        self._wait = serve(read_end, self.folder.name, [address, *prepared])
        os.close(read_end)
        self._is_open = True

    def close(self) -> None:
        if self._is_open:
            self._is_open = False
            os.close(self._write_end)
            self._wait()
            self.folder.cleanup()


def _started(standard_input: int, folder: str, arguments: list[str]) -> Callable[[], object]:
    process = subprocess.Popen(
        [sys.executable, "-m", "actors.fork_server", *arguments],
        stdin=standard_input,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        cwd=folder,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(_own_path())},
    )
    return process.wait


def _forked(standard_input: int, folder: str, arguments: list[str]) -> Callable[[], object]:
    sys.stdout.flush()
    sys.stderr.flush()
    number = os.fork()
    if number == 0:
        fork_server.become(standard_input, folder, arguments)
    return lambda: os.waitpid(number, 0)


def _is_ready_to_fork() -> bool:
    """Whether a copy of this process lacks nothing: no import, and no thread, not one of a library's pool either.

    Of a copy the system shows the environment that this process began with, and by that its workers find their owner's
    file (owned.py).
    """
    if "ray" in sys.modules or not all(name in sys.modules for name in fork_server.IMPORTS):
        return False
    from ray_fed.perimeter.policy import SITE_VARIABLE

    is_shown = environment_of(os.getpid()).get(SITE_VARIABLE) == os.environ.get(SITE_VARIABLE)
    return is_shown and sum(1 for _ in Path("/proc/self/task").iterdir()) == 1


def environment_of(process: int) -> dict[str, str]:
    """Return what a process of this machine began with; OSError where the system does not show it."""
    lines = os.fsdecode(Path(f"/proc/{process}/environ").read_bytes()).split("\0")
    return dict(line.split("=", 1) for line in lines if "=" in line)


def start(*prepared: str) -> None:
    """Let the imports begin, as early as it is known that workers will be needed. A second call does nothing.

    prepared: functions without arguments, each as "module:name", whose cached result every worker will need.
    """
    global _fork_server
    if _fork_server is None and sys.platform == "linux" and os.environ.get("RAY_FED_FORK", "on") != "off":
        _fork_server = ForkServer(*prepared)
        atexit.register(_fork_server.close)


@contextlib.contextmanager
def workers_forked() -> Iterator[None]:
    """Within the block, Ray starts workers through the launcher; the fork server ends with it."""
    global _fork_server
    start()
    if _fork_server is None:
        yield
        return
    python = sys.executable
    try:
        yield
    finally:
        sys.executable = python
        _fork_server.close()
        _fork_server = None


@contextlib.contextmanager
def launcher_as_python() -> Iterator[None]:
    """Within the block, `sys.executable`, which Ray writes into its worker command, is the launcher."""
    python = sys.executable
    if _fork_server is not None:
        sys.executable = str(_fork_server.launcher)
    try:
        yield
    finally:
        sys.executable = python


def _own_path() -> list[str]:
    """Return where this package is imported from, first, and what PYTHONPATH says."""
    here = str(Path(__file__).resolve().parents[1])
    return [here, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
