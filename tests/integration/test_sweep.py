"""Sweeps on real actors: the same bits as single runs, failures as rows, an end that can be taken up again."""

import csv
import hashlib
import json
import os
import shutil
import signal
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import ray
from safetensors.numpy import load_file

from actors.cohort import RayCohort, value_of
from actors.federation import federation
from actors.shared_silos import SharedSilos, read_board
from actors.tuning import OBJECTIVE, run_trials
from pipelines.cli import main
from ray_fed.errors import SiloFailed
from ray_fed.federation.cohort import LocalCohort
from ray_fed.federation.coordinator import Coordinator
from ray_fed.federation.messages import SessionSpec
from ray_fed.federation.rounds.job import Job
from ray_fed.learning.layout import Layout
from ray_fed.learning.trainer import TrainingPlan
from ray_fed.perimeter.own_words import words_of
from ray_fed.privacy.accounting import PrivacyAccount
from tests.commands import PATIENCE, start_ray_fed, wait_until
from tests.events import shown
from tests.synthetic import SyntheticTask, silos

DATA = ["--rows", "500", "--silos", "60,120", "--epochs", "6", "--hidden", "16", "--batch-size", "60"]
GRID = ["--grid", "communication_frequency=0.5,1.0", "--grid", "learning_rate=0.001,0.01", "--repeats", "2"]

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
    assert "Take communication_frequency=" in (sweep / "report.html").read_text()
    assert len(list((sweep / "tensorboard").glob("trial-*"))) == 8
    found = shown(sweep / "tensorboard" / "trial-1")
    assert {"global/mae", "result/mae"} <= found.scalars
    assert set(found.hyperparameters) == {"pipeline", "communication_frequency", "learning_rate", "seed"}
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


def test_a_sweep_under_noise_says_what_all_its_trials_promise_together(tmp_path, capsys):
    options = ["--grid", "dp_noise_multiplier=2.0:4.0", "--repeats", "2", "--out", str(tmp_path / "run")]
    assert main(["sweep", "formation-energy", *DATA, *options]) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    total, printed = summary["privacy.epsilon_all_trials"], capsys.readouterr()
    steps = int(rows(tmp_path / "run")[0]["local_steps"])
    one = [PrivacyAccount("example", noise, 1 / (steps / 6)).epsilon(2 * steps) for noise in (2.0, 4.0)]
    assert max(one) < total < sum(one)
    for text in (printed.out, printed.err, (tmp_path / "run" / "report.html").read_text()):
        assert f"epsilon {total:.3g} at delta 1e-05 for all 4 trials with noise together" in " ".join(text.split())


def test_a_scheduler_stops_the_worse_trials(tmp_path):
    # One after another, the best first: of trials side by side ASHA stops none if they happen to report worst first.
    grid = ["--grid", "learning_rate=0.01:0.003:0.00001:0.000001", "--epochs", "40", "--rounds", "20"]
    arguments = [*DATA, *grid, "--scheduler", "asha", "--concurrent", "1", "--out", str(tmp_path / "run")]
    assert main(["sweep", "formation-energy", *arguments]) == 0
    found = {row["label"]: row for row in rows(tmp_path / "run")}
    assert "stopped" in {row["status"] for row in found.values()}
    assert "completed" in {row["status"] for row in found.values()}


def has_rows(results, number):
    return lambda: results.exists() and results.read_bytes().count(b"\n") >= number


def test_a_sweep_that_is_killed_and_then_interrupted_goes_on_and_keeps_what_was_done(tmp_path, sweep):
    """Ctrl-C leaves a report of what is known and the way on."""
    results, alone = tmp_path / "run" / "results.jsonl", {"folder": tmp_path, "start_new_session": True}
    process = start_ray_fed("sweep", "formation-energy", *DATA, *GRID, "--out", "run", **alone)
    wait_until(has_rows(results, 2), process)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    done = results.read_bytes()
    results.write_bytes(done + b'{"number": 7, "la')  # as a kill in the middle of a write would leave it

    process = start_ray_fed("sweep", "--resume", "run", **alone)
    wait_until(has_rows(results, done.count(b"\n") + 1), process)
    os.kill(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    assert "interrupted; go on with: ray-fed sweep --resume run" in err
    assert "Traceback" not in err
    assert results.read_bytes().startswith(done)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["status"] == "interrupted"
    assert summary["trials.completed"] == results.read_bytes().count(b"\n") == len(rows(tmp_path / "run"))

    done = results.read_bytes()
    assert main(["sweep", "--resume", str(tmp_path / "run")]) == 0
    assert results.read_bytes().startswith(done)
    ours, theirs = ({row["number"]: row["digest"] for row in rows(Path(each))} for each in (tmp_path / "run", sweep))
    assert ours == theirs
    table = (tmp_path / "run" / "results.csv").read_bytes()
    assert main(["sweep", "--resume", str(tmp_path / "run")]) == 0
    assert (tmp_path / "run" / "results.csv").read_bytes() == table


def test_a_resumed_sweep_refuses_rows_that_have_changed(tmp_path, sweep, capsys):
    copy = tmp_path / "run"
    shutil.copytree(sweep, copy)
    (copy / "results.jsonl").write_bytes(b"".join((sweep / "results.jsonl").read_bytes().splitlines(True)[:3]))
    data = json.loads((copy / "data.json").read_text())
    data[0]["rows_of_silo"] += 1
    (copy / "data.json").write_text(json.dumps(data))
    assert main(["sweep", "--resume", str(copy)]) == 2
    assert "silo 'silo-1': its data changed since the sweep began" in capsys.readouterr().err


# leases -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Dying:
    """Work for `run_trials`: opens a session in every silo, then ends as its number says, sessions still open."""

    def __call__(self, config, board):
        silos = read_board(board)
        plan = TrainingPlan(0, 1, 2, 1, 0.01, "sgd")
        digest = Layout.of(SyntheticTask().model(0)).digest
        spec = SessionSpec(f"trial-{config['number']}", plan, 0, digest)
        for silo in silos.values():
            value_of(silo.open_session.remote(spec), "silo", "opening")
        yield {"number": config["number"], "epochs": 1, OBJECTIVE: 0.5}
        if config["number"] == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        if config["number"] == 2:
            ray.kill(silos["silo-1"])
            raise SiloFailed("silo-1", "training", "its process died")


class Notes:
    def __init__(self, shared):
        self.shared, self.ended = shared, {}

    def on_trial_start(self, number): ...

    def on_trial_report(self, number, report): ...

    def on_trial_end(self, number, reason):
        self.shared.end_lease(f"trial-{number}")
        self.ended[number] = reason
        if reason:
            assert self.shared.mend() == {}


@pytest.fixture(scope="module")
def after_deaths(tmp_path_factory, ray_session):  # noqa: ARG001
    """Three trials on the same silos: the first one's process is killed, the second one kills a silo."""
    logs, task = str(tmp_path_factory.mktemp("logs")), SyntheticTask()
    specs = [replace(spec, log_folder=logs) for spec in silos(40, 30)]
    with federation(specs, task, None, ["silo-1", "silo-2"]) as standing:
        agreement = standing.coordinator.agree()
        shared = SharedSilos.of(standing.silos, specs, task, agreement.standardizer)
        notes = Notes(shared)
        configs, dying = [{"number": number} for number in (1, 2, 3)], Dying()
        run_trials(dying, configs, shared.board, notes, folder=tmp_path_factory.mktemp("tune"), longest=1)
        yield standing, shared, notes, specs


def test_a_trial_that_takes_its_process_or_a_silo_with_it_costs_no_other_trial(after_deaths):
    standing, shared, notes, _ = after_deaths
    assert "process died" in notes.ended[1]
    assert "silo 'silo-1' failed while training" in notes.ended[2]
    assert notes.ended[3] == ""
    assert shared.silos["silo-1"] is not standing.silos["silo-1"]
    assert shared.silos["silo-2"] is standing.silos["silo-2"]


def test_no_session_of_a_dead_trial_stays_in_a_silo(after_deaths):
    _, shared, _, specs = after_deaths
    for silo in shared.silos.values():
        with pytest.raises(SiloFailed, match="it has no session of that name") as raised:
            value_of(silo.fit.remote("trial-9", 1, np.zeros(3, np.float32)), "silo", "training")
        assert "no session 'trial-9'; open: []" in words_of(str(raised.value), specs)[0]


def test_a_silo_that_was_started_again_trains_to_the_same_bits(after_deaths):
    _, shared, _, _ = after_deaths
    job = Job(
        "after", ("silo-1", "silo-2"), dict.fromkeys(("silo-1", "silo-2"), TrainingPlan(0, 4, 2, 2, 0.01, "adam")), 0
    )
    task = SyntheticTask()
    local = LocalCohort(silos(40, 30), task)
    coordinator = Coordinator(local, task, job.silos)
    coordinator.agree()
    *_, ours = Coordinator(RayCohort(read_board(shared.board)), task, job.silos).run(job)
    *_, oracle = coordinator.run(job)
    assert ours.models["federated"].tobytes() == oracle.models["federated"].tobytes()
