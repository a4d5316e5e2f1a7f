"""A new metric is one entry: a task that tells one of its own, through a whole run and the gate, with no other edit."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from pipelines.cli import main
from ray_fed.federation.silo import Silo
from ray_fed.materials.property_task import PropertyTask
from ray_fed.metrics import MeanScores, Metric, regression_metrics
from ray_fed.perimeter.guarded_silo import GuardedSilo
from ray_fed.perimeter.policy import SITE_VARIABLE
from ray_fed.reporting.run_directory import RunDirectory
from ray_fed.reporting.tensorboard_log import global_tag, silo_tag
from ray_fed.sites import tasks

WITHIN = Metric("within_0.5", "%", higher_is_better=True, digits=1, label="Within half an eV")
OPTIONS = ["--rows", "300", "--test-rows", "80", "--silos", "60,90", "--epochs", "2", "--communication-frequency", "1",
           "--hidden", "8", "--features", "guo65", "--cohort", "local"]  # fmt: skip


@dataclass(frozen=True)
class OwnMetricTask(PropertyTask):
    """Predicts energies, and tells only how many of them it predicts well. Its silos stand behind their gates."""

    metrics = (WITHIN,)

    def score(self, targets, outputs):
        return MeanScores.of({WITHIN.name: 100.0 * (np.abs(outputs[:, 0] - targets) < 0.5)})

    def silo(self, spec, device="cpu"):
        return GuardedSilo(spec, lambda: Silo(spec, self, device))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made-up")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tasks, "property_task", OwnMetricTask)
        patch.setenv(SITE_VARIABLE, str(folder))
        assert main(["formation-energy", *OPTIONS, "--out", str(folder / "run")]) == 0
    return RunDirectory(folder / "run")


def test_it_is_in_history_summary_and_card(run):
    last = [line for line in run.read_history() if line["job"] == "federated-0"][-1]
    assert {f"federated.{WITHIN.name}", f"silo.silo-2.{WITHIN.name}", "train_loss"} <= set(last["metrics"])
    summary = run.read_summary()
    assert summary[f"federated.{WITHIN.name}"] == last["metrics"][f"federated.{WITHIN.name}"]
    assert f"silo.silo-1.{WITHIN.name}" in summary
    assert not [key for key in summary if key.endswith((".mae", ".r2"))]
    assert json.loads((run.models / "federated.card.json").read_text())["metrics"]["test"][WITHIN.name] <= 100


def test_it_is_what_report_and_figures_show(run):
    report = run.report_path.read_text(encoding="utf-8")
    assert "Federated Within half an eV is" in report
    assert "Within half an eV (%)" in report
    assert "Test Within half an eV during training" in report
    assert not re.search(r"\bMAE\b|R²", report)


def test_it_is_a_curve_in_tensorboard_and_a_chart_of_its_layout(run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run.tensorboard)).Reload()
    assert {global_tag(WITHIN.name), silo_tag("silo-1", WITHIN.name)} <= set(events.Tags()["scalars"])
    layout = events.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0]
    assert WITHIN.label.encode() in layout


def test_a_reader_without_the_task_shows_it_too(run, capsys):
    assert run.read_metrics() == (WITHIN,)
    assert main(["attach", str(run.path)]) == 0
    shown = capsys.readouterr()
    assert "Within half an eV (%)" in shown.out
    assert re.search(r"Within half an eV \d+ %", shown.err)


def test_a_run_made_before_metrics_were_written_down_is_read(tmp_path):
    old = RunDirectory.create(tmp_path / "old", "formation-energy")
    old.write_config({"target": "formation_energy_per_atom"})
    measured = {"federated.mae": 0.2, "silo.a.mae": 0.3}
    old.append_history({"job": "federated-0", "metrics": {"loss": 0.5, "silo.a.loss": 0.6, **measured}})
    old.append_history({"job": "federated-0", "metrics": measured})
    first, second = old.read_history()
    assert first["metrics"] == {"train_loss": 0.5, "silo.a.train_loss": 0.6, **measured}
    assert second["metrics"] == measured
    assert old.read_metrics() == ()


def test_a_run_that_was_broken_off_before_the_training_loss_had_its_key_is_resumed_to_the_same_end(
    tmp_path, monkeypatch
):
    whole, broken = RunDirectory(tmp_path / "whole"), RunDirectory(tmp_path / "broken")
    assert main(["formation-energy", *OPTIONS, "--out", str(whole.path)]) == 0
    append, told = RunDirectory.append_history, []

    def stops_in_the_last_round(directory, line):
        told.append(line)
        if len(told) == len(whole.read_history()):
            raise KeyboardInterrupt
        append(directory, line)

    with monkeypatch.context() as patch:
        patch.setattr(RunDirectory, "append_history", stops_in_the_last_round)
        assert main(["formation-energy", *OPTIONS, "--out", str(broken.path)]) == 130
    as_before(broken)
    assert main(["resume", str(broken.path)]) == 0
    assert broken.read_history() == whole.read_history()
    ours, theirs = broken.read_summary(), whole.read_summary()
    assert {key: value for key, value in ours.items() if not key.startswith("seconds")} == {
        key: value for key, value in theirs.items() if not key.startswith("seconds")
    }
    assert broken.read_metrics() == regression_metrics("eV/atom")


def as_before(run: RunDirectory) -> None:
    """Write a run's folder as it was before metrics belonged to the task."""
    run.metrics_path.unlink()
    text = run.history_path.read_text()
    assert "train_loss" in text
    run.history_path.write_text(text.replace("train_loss", "loss"))


def test_an_evaluations_loss_in_a_history_stays_what_it_is(tmp_path):
    run = RunDirectory.create(tmp_path / "run", "formation-energy")
    metrics = {"train_loss": 0.5, "silo.a.train_loss": 0.6, "silo.a.loss": 0.7, "federated.loss": 0.8}
    run.append_history({"job": "federated-0", "metrics": metrics})
    assert run.read_history()[0]["metrics"] == metrics


def test_metrics_are_written_down_and_read_again(tmp_path):
    run = RunDirectory(tmp_path)
    run.write_metrics([WITHIN, *regression_metrics("GPa")])
    assert run.read_metrics() == (WITHIN, *regression_metrics("GPa"))


def test_few_files_of_the_product_know_a_metric_of_regression_by_its_name():
    """Those of regression itself, and of the library's cards, whose vocabulary is a format of its own."""
    root = Path(__file__).parents[2]
    files = [path for part in ("ray_fed", "actors", "pipelines") for path in (root / part).rglob("*.py")]
    knowing = [path for path in files if re.search(r"\b(mae|r2)\b", path.read_text(encoding="utf-8"))]
    assert len(files) > 200
    assert len(knowing) <= 8
    others = [path for path in knowing if "model_library" not in path.parts]
    # The table of commands holds one as an example of a query; sweeps of library builds, the name of a summary's key.
    assert sorted(path.relative_to(root).as_posix() for path in others) == [
        "pipelines/commands.py",
        "pipelines/sweep/whole_runs.py",
        "ray_fed/metrics/scores.py",
    ]
