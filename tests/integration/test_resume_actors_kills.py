"""kill -9 of any process of a run on actors at any instant, then `ray-fed resume`."""

import os
import random
import subprocess
import time
from pathlib import Path

import pytest

from tests.commands import finished
from tests.integration.broken_runs import (
    assert_same,
    family,
    kill,
    lines,
    lines_at,
    start,
    start_resuming,
    wait_for,
)


def wait_for_an_instant(chance: random.Random, process: subprocess.Popen, folder: Path, unbroken: Path) -> None:
    """Some way into the run, or while it starts again."""
    if lines(folder) and chance.random() < 0.3:
        time.sleep(4.0 * chance.random())
        return
    target = lines_at(chance, folder, unbroken)
    wait_for(lambda: lines(folder) >= target, process)
    time.sleep(0.05 * chance.random())


SEEDS = range(int(os.environ.get("RAY_FED_KILL_SEEDS", "1")))
"""A seed takes half a minute: one for every day, more for a soak test."""


@pytest.mark.parametrize("seed", SEEDS)
def test_a_run_on_actors_killed_again_and_again_ends_with_the_same_bytes(tmp_path, unbroken, seed):
    """Driver, coordinator and session are killed at random instants, the second and third while the run is resumed."""
    chance = random.Random(seed)
    process, seen = start(tmp_path, "ray"), []
    try:
        for victim in chance.sample(["driver", "coordinator", "session"], 3):
            wait_for_an_instant(chance, process, tmp_path, unbroken)
            members = family(process)
            seen += members
            kill(victim, members)
            process.communicate(timeout=120)
            process = start_resuming(tmp_path)
        done = finished(process)
        assert done.returncode == 0, done.stderr
    finally:
        kill("session", [*family(process), *seen])
    assert_same(tmp_path, unbroken)
