"""A run on actors that is broken off in every way, then `ray-fed resume`."""

import json
import os
import signal
import time

from tests.commands import finished
from tests.integration.broken_runs import (
    assert_same,
    family,
    is_coordinator,
    kill,
    lines,
    start,
    start_resuming,
    wait_for,
)


def test_a_run_on_actors_that_is_broken_off_in_every_way_ends_with_the_same_bytes(tmp_path, unbroken):
    """One run, resumed after each break: what went wrong at any of them would be in the bytes at the end."""
    process = start(tmp_path, "ray")
    for breaks in (stops_the_driver, sends_sigterm, presses_ctrl_c, kills_the_session, kills_the_coordinator):
        before = lines(tmp_path)
        wait_for(lambda before=before: lines(tmp_path) > before + 9, process)
        breaks(process, tmp_path / "run")
        process = start_resuming(tmp_path)
    done = finished(process)
    assert done.returncode == 0, done.stderr
    assert_same(tmp_path, unbroken)


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
    _, said = process.communicate(timeout=120)
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
    _, said = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "go on with: ray-fed resume" in said
    assert "Traceback" not in said
    assert json.loads((run / "summary.json").read_text())["status"] == "failed"
