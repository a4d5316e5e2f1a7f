"""The process that workers of a private cluster are forked from; started, or forked, by forking.py."""

import contextlib
import gc
import importlib
import json
import os
import random
import runpy
import select
import signal
import socket
import sys
import traceback
from typing import NoReturn

# Not Ray: it reads each worker's own settings from the environment at import. What Ray requires is most of its import.
IMPORTS = (
    "torch",
    "pandas",
    "requests",
    "jsonschema",
    "google.protobuf.json_format",
    "google.protobuf.struct_pb2",
    "google.protobuf.timestamp_pb2",
    "msgpack",
    "yaml",
    "filelock",
    "packaging.version",
    "pdb",
    "ray_fed.federation.coordinator",
    "ray_fed.perimeter.guarded_silo",
    "ray_fed.perimeter.coordinator_record",
    "ray_fed.materials.property_task",
    "ray_fed.materials.model_crystals.crystals",
)


def main(address: str, prepared: list[str]) -> None:
    """Import and prepare, then answer launchers until standard input ends."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen(128)
    for name in IMPORTS:
        importlib.import_module(name)
    for call in prepared:
        module, _, name = call.partition(":")
        getattr(importlib.import_module(module), name)()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the launcher sees its worker end by the line that closes
    gc.freeze()  # what is imported stays shared with the children
    while True:
        ready, _, _ = select.select([listener, sys.stdin], [], [])
        if sys.stdin in ready:
            return
        line, _ = listener.accept()
        _answer(line, listener)
        line.close()


def become(standard_input: int, folder: str, arguments: list[str]) -> NoReturn:
    """Be a fork server in place of a copy of the process that needs one, with nothing of its files and signals."""
    try:
        os.setsid()
        _take_files([standard_input, *(os.open(os.devnull, os.O_WRONLY) for _ in range(2))])
        os.closerange(3, os.sysconf("SC_OPEN_MAX"))
        _hear_signals()
        os.chdir(folder)
        sys.path[0] = folder
        main(arguments[0], arguments[1:])
    finally:
        os._exit(0)


def _take_files(files: list[int]) -> None:
    """Make these the standard input, output and error."""
    modes = ((0, "r"), (1, "w"), (2, "w"))
    # First the objects: those that they replace may close their files, 0 to 2, when they go.
    sys.stdin, sys.stdout, sys.stderr = (os.fdopen(number, mode, closefd=False) for number, mode in modes)
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)


def _hear_signals() -> None:
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD):
        signal.signal(signum, signal.SIG_DFL)


def _answer(line: socket.socket, listener: socket.socket) -> None:
    """Fork the worker that a launcher asks for; a launcher that breaks off starts the worker itself."""
    line.settimeout(5)
    with contextlib.suppress(OSError, ValueError):
        head, files, _, _ = socket.recv_fds(line, 8, 3)
        question = _received(line, int.from_bytes(head, "little"))
        arguments, environment, folder = json.loads(question)
        if len(files) != 3:
            return
        if (worker := os.fork()) == 0:
            listener.close()
            _become_worker(arguments, environment, folder, files)
        try:
            line.sendall(b"y")  # not before: where nothing can be forked, the launcher starts the worker itself
        except OSError:  # so does one that has given up waiting
            os.kill(worker, signal.SIGKILL)
        for file in files:
            os.close(file)


def _received(line: socket.socket, length: int) -> bytes:
    parts = b""
    while len(parts) < length:
        part = line.recv(length - len(parts))
        if not part:
            raise OSError("the launcher broke off")
        parts += part
    return parts


def _become_worker(command: list[str], environment: dict[str, str], folder: str, files: list[int]) -> NoReturn:
    """Take over everything that makes a process, then run Ray's own worker script. It never returns: a copy of the
    fork server that goes on would answer for it."""
    code = 1
    try:
        os.setsid()
        _take_files(files)
        _hear_signals()
        os.environ.clear()
        os.environ.update(environment)
        os.chdir(folder)
        random.seed()
        sys.argv = command
        runpy.run_path(command[0], run_name="__main__")
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:  # as Python does with what nobody handles: to the worker's log, and an exit that says so
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
