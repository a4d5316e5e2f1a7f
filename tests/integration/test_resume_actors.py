"""A run on actors that is broken off in every way at any instant, then `ray-fed resume`."""

import json
import os
import random
import signal
import time

import pytest

from tests.commands import PATIENCE, finished, wait_until
from tests.integration.broken_runs import (
    assert_same,
    family,
    is_coordinator,
    kill,
    lines,
    start,
    start_resuming,
)

SEEDS = range(int(os.environ.get("RAY_FED_KILL_SEEDS", "1")))
"""A seed takes half a minute: one for every day, more for a soak test."""


@pytest.mark.parametrize("seed", SEEDS)
def test_a_run_on_actors_that_is_broken_off_in_every_way_ends_with_the_same_bytes(tmp_path, unbroken, seed):
    """One run, resumed after each break: what went wrong at any of them would be in the bytes at the end."""
    chance, seen = random.Random(seed), []
    process = start(tmp_path, "ray")
    try:
        for breaks in (stops_the_driver, sends_sigterm, presses_ctrl_c, kills_the_session, kills_the_coordinator):
            wait_for_an_instant(chance, process, tmp_path, breaks)
            seen += family(process)
            breaks(process, tmp_path / "run")
            process = start_resuming(tmp_path)
        done = finished(process)
        assert done.returncode == 0, done.stderr
    finally:
        kill("session", [*family(process), *seen])
    assert_same(tmp_path, unbroken)


def wait_for_an_instant(chance, process, folder, breaks):
    """Some way into the run; who waits for no last words comes while it starts again, too."""
    if breaks is kills_the_session and chance.random() < 0.3:
        time.sleep(4.0 * chance.random())
        return
    target = lines(folder) + chance.randrange(8, 16)
    wait_until(lambda: lines(folder) >= target, process)
    time.sleep(0.05 * chance.random())


def stops_the_driver(process, _):
    """It must not let the coordinator run ahead of what is recorded."""
    process.send_signal(signal.SIGSTOP)
    time.sleep(1.0)
    process.kill()
    process.communicate()


def sends_sigterm(process, run):
    process.terminate()
    assert_ended_in_order(process, run)


def presses_ctrl_c(process, run):
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the whole foreground group
    assert_ended_in_order(process, run)


def assert_ended_in_order(process, run):
    _, said = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    assert "Traceback" not in said
    summary = json.loads((run / "summary.json").read_text())
    assert summary["status"] == "interrupted"
    assert summary["rounds"] > 10
    assert "interrupted" in (run / "report.html").read_text()


def kills_the_session(process, _):
    kill("session", family(process))
    process.communicate()


def kills_the_coordinator(process, run):
    [coordinator] = [member for member in family(process) if is_coordinator(member)]
    coordinator.kill()
    _, said = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert "go on with: ray-fed resume" in said
    assert "Traceback" not in said
    assert json.loads((run / "summary.json").read_text())["status"] == "failed"
