"""A command that is forked from the command server is to a test what a started one is."""

import signal
import subprocess

import pytest

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
