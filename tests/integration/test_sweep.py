"""Sweeps on real actors: the same bits as single runs, failures as rows, an end that can be taken up again."""

import csv
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from pipelines.cli import main

DATA = ["--rows", "500", "--silos", "60,120", "--epochs", "6", "--hidden", "16", "--batch-size", "60"]
GRID = ["--grid", "communication_frequency=0.5:1.0,learning_rate=0.001:0.01", "--repeats", "2"]
ENVIRONMENT = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}

pytestmark = pytest.mark.usefixtures("ray_session")


@pytest.fixture(scope="module")
def sweep(tmp_path_factory, ray_session):  # noqa: ARG001
    folder = tmp_path_factory.mktemp("sweep") / "run"
    assert main(["sweep", "formation-energy", *DATA, *GRID, "--concurrent", "2", "--out", str(folder)]) == 0
    return folder


def rows(folder):
    with (folder / "results.csv").open() as file:
        return list(csv.DictReader(file))


def test_every_trial_is_a_row_with_what_it_reached_and_what_it_cost(sweep):
    found = rows(sweep)
    assert len(found) == 8
    assert {row["status"] for row in found} == {"completed"}
    steps = {row["local_steps"] for row in found}
    assert len(steps) == 1  # the same work at every point
    sent = {row["label"]: int(row["bytes_sent"]) for row in found}
    assert (
        sent["communication_frequency=1, learning_rate=0.01"]
        == 2 * sent["communication_frequency=0.5, learning_rate=0.01"]
    )


def test_a_trial_has_the_bits_of_the_same_single_run(sweep, tmp_path):
    options = ["--communication-frequency", "0.5", "--learning-rate", "0.01", "--baselines", "no"]
    assert main(["formation-energy", *DATA, *options, "--cohort", "local", "--out", str(tmp_path / "run")]) == 0
    arrays = load_file(tmp_path / "run" / "models" / "federated.safetensors")
    order = ["0.weight", "0.bias", "2.weight", "2.bias"]
    vector = np.concatenate([arrays[name].ravel() for name in order]).astype(np.float32)
    label = "communication_frequency=0.5, learning_rate=0.01"
    [row] = [row for row in rows(sweep) if row["label"] == label and row["seed"] == "0"]
    assert row["digest"] == hashlib.sha256(vector.tobytes()).hexdigest()


def test_the_sweep_leaves_figures_a_report_and_events(sweep):
    assert {"boxes.png", "times.png", "pareto.png", "heat.png"} == {p.name for p in (sweep / "figures").iterdir()}
    assert "Recommendation: take" in (sweep / "report.html").read_text()
    assert len(list((sweep / "tensorboard").glob("trial-*"))) == 8
    assert json.loads((sweep / "summary.json").read_text())["trials.completed"] == 8
    assert not (sweep / "tune").exists()


def test_a_trial_that_fails_is_a_row_with_its_reason_and_the_others_go_on(tmp_path):
    grid = ["--grid", "max_update_norm=0.0000001:1000"]
    assert main(["sweep", "formation-energy", *DATA, *grid, "--out", str(tmp_path / "run")]) == 0
    failed, good = rows(tmp_path / "run")
    assert (failed["status"], good["status"]) == ("failed", "completed")
    assert "quorum lost" in failed["reason"]
    assert "max_norm=1e-07" in failed["reason"]
    assert main(["sweep", "formation-energy", *DATA, *grid[:1], "max_update_norm=0.0000001", "--out",
                 str(tmp_path / "bad")]) == 1  # fmt: skip


def test_a_scheduler_stops_the_worse_trials(tmp_path):
    grid = ["--grid", "learning_rate=0.01:0.003:0.00001:0.000001", "--epochs", "40", "--rounds", "20"]
    arguments = [*DATA, *grid, "--scheduler", "asha", "--concurrent", "4", "--out", str(tmp_path / "run")]
    assert main(["sweep", "formation-energy", *arguments]) == 0
    found = {row["label"]: row for row in rows(tmp_path / "run")}
    assert "stopped" in {row["status"] for row in found.values()}
    assert "completed" in {row["status"] for row in found.values()}


def test_a_killed_sweep_goes_on_and_keeps_what_was_done(tmp_path, sweep):
    command = [sys.executable, "-m", "pipelines.cli", "sweep", "formation-energy", *DATA, *GRID, "--out", "run"]
    process = subprocess.Popen(command, cwd=tmp_path, env=ENVIRONMENT, stderr=subprocess.PIPE, start_new_session=True)
    results = tmp_path / "run" / "results.jsonl"
    deadline = time.monotonic() + 120
    while not (results.exists() and results.read_bytes().count(b"\n") >= 2):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    done = results.read_bytes().splitlines()[:2]
    again = [sys.executable, "-m", "pipelines.cli", "sweep", "--resume", "run"]
    finished = subprocess.run(again, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, timeout=240)
    assert finished.returncode == 0, finished.stderr
    assert results.read_bytes().splitlines()[:2] == done
    ours, theirs = ({row["number"]: row["digest"] for row in rows(Path(each))} for each in (tmp_path / "run", sweep))
    assert ours == theirs
