"""The process that the tests' `ray-fed` commands are forked from: it has imported already what takes most of a start.

`python -m tests.command_server ADDRESS` answers at the socket ADDRESS until its standard input ends. Asked with words,
environment, folder and three files it forks the command, says its number, and when it has ended its exit status.
"""

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
from typing import NoReturn

import numpy as np

from actors import fork_server
from ray_fed.materials.model_crystals.crystals import enumerate_model_crystals
from ray_fed.reporting.figure_style import new_figure, png_bytes

# Not Ray, which reads a command's own settings from the environment when it is imported.
IMPORTS = ("pipelines.training.pipeline", "pipelines.ledger.coordinator_ledger", "ray_fed.sites.hub")
IMPORTS += ("matplotlib.figure", "matplotlib.backends.backend_agg", "tensorboard.summary.writer.event_file_writer")


def serve(listener: socket.socket) -> None:
    for name in (*IMPORTS, *fork_server.IMPORTS):
        importlib.import_module(name)
    png_bytes(new_figure(1, 1))  # matplotlib reads its fonts with the first one
    enumerate_model_crystals()  # is kept, too
    gc.freeze()
    running: dict[int, tuple[int, socket.socket]] = {}  # the file that tells of a command's end -> number, who asked
    while True:
        ready, _, _ = select.select([listener, sys.stdin, *running], [], [])
        if sys.stdin in ready:
            return
        for ended in set(ready) & set(running):
            _say_end(ended, *running.pop(ended))
        if listener in ready:
            line, _ = listener.accept()
            number = _forked(line, listener)
            line.sendall(number.to_bytes(8, "little"))
            running[os.pidfd_open(number)] = number, line


def _say_end(ended: int, number: int, line: socket.socket) -> None:
    os.close(ended)
    _, status = os.waitpid(number, 0)
    with contextlib.suppress(BrokenPipeError, ConnectionResetError), line:  # who asked may have given it up
        line.sendall(status.to_bytes(8, "little"))


def _forked(line: socket.socket, listener: socket.socket) -> int:
    head, files, _, _ = socket.recv_fds(line, 8, 3)
    asked = line.recv(int.from_bytes(head, "little"), socket.MSG_WAITALL)
    number = os.fork()
    if number == 0:
        line.close()
        listener.close()
        _become(files, **json.loads(asked))
    for file in files:
        os.close(file)
    return number


def _become(files: list[int], words: list[str], env: dict[str, str], folder: str, new_session: bool) -> NoReturn:
    """Be what `python WORDS` would be in this environment and folder; end as it would."""
    if new_session:
        os.setsid()
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(folder)
    sys.path[0] = folder
    random.seed()
    np.random.seed()  # noqa: NPY002
    sys.stdin, sys.stdout, sys.stderr = (os.fdopen(number, mode) for number, mode in ((0, "r"), (1, "w"), (2, "w")))
    sys.argv = words[1:]
    sys.modules.pop(words[1], None)  # else Python warns that it is there twice
    runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    sys.exit()


if __name__ == "__main__":
    place = socket.socket(socket.AF_UNIX)
    place.bind(sys.argv[1])
    place.listen(128)
    serve(place)
