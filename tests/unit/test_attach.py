"""The progress of somebody else's run, from its folder."""

import fcntl
import io
import os

import pytest

from pipelines.cli import main
from pipelines.cluster.attach import RunClock, Screen, follow, has_worker
from ray_fed.metrics import regression_metrics
from ray_fed.reporting.run_directory import RunDirectory
from ray_fed.reporting.terminal import RoundProgress


def record(number, **fields):
    return {"job": "federated-0", "round": number, "num_rounds": 4, "bytes_sent": 10**6, "failures": {}, **fields}


@pytest.fixture
def run(tmp_path):
    directory = RunDirectory.create(tmp_path / "run", "formation-energy")
    directory.write_config({"target": "formation_energy_per_atom"})
    return directory


@pytest.fixture
def worker(run):
    """Somebody who works on the run, as the pipeline does: by a lock on its folder."""
    handle = os.open(run.path, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    yield handle
    os.close(handle)


def test_rounds_come_as_they_are_written_until_nobody_works_on_the_run(run, worker):
    run.append_history(record(1))
    steps = iter([lambda: run.append_history(record(2)), lambda: fcntl.flock(worker, fcntl.LOCK_UN)])
    seen = [line["round"] for line, _ in follow(run, lambda: next(steps)())]
    assert seen == [1, 2]


def test_what_is_written_just_before_the_end_is_seen(run, worker):
    def end():
        run.append_history(record(1))
        fcntl.flock(worker, fcntl.LOCK_UN)

    run.append_timing({"job": "federated-0", "round": 1, "total": 2.5})
    assert [(line["round"], seconds) for line, seconds in follow(run, end)] == [(1, 2.5)]


def test_looking_on_does_not_hinder_a_run(run):
    assert not has_worker(run.path)
    handle = os.open(run.path, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert has_worker(run.path)
    os.close(handle)


def test_the_screen_shows_figures_and_each_change_of_failures_once():
    stream = io.StringIO()
    clock = RunClock()
    screen = Screen(RoundProgress(regression_metrics("eV/atom"), stream, clock), clock)
    lost = {"north": "it died"}
    for line in (
        record(0),
        record(1, metrics={"train_loss": 0.5, "federated.mae": 0.25, "federated.r2": 0.5}),
        record(2, failures=lost),
        record(3, failures=lost),
        record(4),
    ):
        screen.show(line, 10.0 if line["round"] else 0.0)
    assert stream.getvalue().splitlines() == [
        "federated-0: round 1/4  loss 0.5  MAE 0.250 eV/atom  R² 0.500  1.0 MB  10 s  30 s left",
        "round 2/4: silo 'north' does not take part: it died",
        "federated-0: round 2/4  loss 0.5  MAE 0.250 eV/atom  R² 0.500  2.0 MB  20 s  20 s left",
        "federated-0: round 3/4  loss 0.5  MAE 0.250 eV/atom  R² 0.500  3.0 MB  30 s  10 s left",
        "round 4/4: all silos take part again",
        "federated-0: round 4/4  loss 0.5  MAE 0.250 eV/atom  R² 0.500  4.0 MB  40 s  0 s left",
    ]


def test_how_a_run_ended_is_said(run, capsys):
    run.write_summary({"status": "completed", "federated.mae": 0.25, "federated.r2": 0.5})
    assert main(["attach", str(run.path)]) == 0
    assert "report.html" in capsys.readouterr().out
    run.write_summary({"status": "failed", "reason": "round 2: quorum lost"})
    assert main(["attach", str(run.path)]) == 1
    assert "failed: round 2: quorum lost; go on with: ray-fed resume" in capsys.readouterr().err
    run.write_summary({"status": "running"})
    assert main(["attach", str(run.path)]) == 1
    assert "no process on this machine works on it" in capsys.readouterr().err


def test_a_folder_that_is_no_run_is_refused(tmp_path, capsys):
    assert main(["attach", str(tmp_path)]) == 2
    assert "is not a run directory" in capsys.readouterr().err
