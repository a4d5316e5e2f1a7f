"""A command that is forked from the command server is to a test what a started one is."""

import json
import os
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

from actors.forking import ForkServer
from tests.commands import PATIENCE, ForkedCommand, finished, start, start_ray_fed

WORDS = ("-m", "pipelines.cli", "resume", "nowhere")


def test_a_forked_command_says_and_returns_what_a_started_one_does(tmp_path):
    forked = start_ray_fed("resume", "nowhere", folder=tmp_path)
    assert isinstance(forked, ForkedCommand)
    ours, theirs = finished(forked), finished(start(*WORDS, folder=tmp_path))
    assert (ours.returncode, ours.stdout, ours.stderr) == (theirs.returncode, theirs.stdout, theirs.stderr)
    assert ours.returncode == 2


def test_a_forked_command_is_waited_for_stopped_and_killed_by_its_own_number(tmp_path):
    options = "--cohort local --rows 400 --silos 60,120 --epochs 4000 --hidden 8 --out run"
    process = start_ray_fed("formation-energy", *options.split(), folder=tmp_path)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.05)
    assert process.poll() is None
    process.send_signal(signal.SIGSTOP)
    process.kill()
    process.communicate(timeout=PATIENCE)
    assert process.returncode == -signal.SIGKILL


def test_a_worker_that_fails_says_why_and_the_fork_server_goes_on(tmp_path):
    """A worker's own fault, and a folder that is gone before it starts."""
    script = tmp_path / "default_worker.py"
    script.write_text("raise ValueError('a reason')")
    server = ForkServer()
    address = Path(server.folder.name) / "fork-server"
    try:
        end = time.monotonic() + PATIENCE
        while not address.exists():
            assert time.monotonic() < end
            time.sleep(0.01)
        for folder, reason in ((tmp_path, "ValueError: a reason"), (tmp_path / "gone", "FileNotFoundError")):
            log = tmp_path / "log"
            with log.open("wb") as file, socket.socket(socket.AF_UNIX) as line:
                line.connect(str(address))
                question = json.dumps([[str(script)], dict(os.environ), str(folder)]).encode()
                socket.send_fds(line, [len(question).to_bytes(8, "little")], [0, file.fileno(), file.fileno()])
                line.sendall(question)
                line.settimeout(PATIENCE)
                assert line.recv(1) == b"y"
                assert line.recv(1) == b""  # the worker has ended
            assert reason in log.read_text()
    finally:
        server.close()
