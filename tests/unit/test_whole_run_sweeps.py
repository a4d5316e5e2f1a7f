"""Sweeps of pipelines whose trials are runs of their own."""

import json
from pathlib import Path
from typing import Any

import pytest

from pipelines.cli import main
from pipelines.sweep.whole_runs import (
    PIPELINES,
    RunsSweep,
    Saying,
    WholeRunsConfig,
    as_arguments,
    by_point,
    found,
    table,
    value_of,
    why_failed,
    work,
)
from ray_fed.errors import ConfigError
from ray_fed.reporting.run_directory import RunDirectory


def sweep_in(folder: Path, pipeline: str = "leakage", base: Any = None, **options: Any) -> RunsSweep:
    return RunsSweep(pipeline, WholeRunsConfig(**options), base or {}, RunDirectory(folder), "ray-fed sweep")


def finish(sweep: RunsSweep, number: int, **summary: Any) -> None:
    folder = sweep.folder(sweep.trials[number - 1])
    folder.mkdir(parents=True)
    (folder / "summary.json").write_text(json.dumps(summary))


def test_every_pipeline_with_a_configuration_can_be_swept_over_its_fields(tmp_path):
    fields = {"fedtransfer": "learning_rate=0.001:0.01", "leakage": "budget=10:20", "transfer": "rows=20:40"}
    assert set(fields) == set(PIPELINES)
    for pipeline, grid in fields.items():
        sweep = sweep_in(tmp_path, pipeline, grid=(grid, "seed=0:1:2"))
        assert len(sweep.trials) == 6
        words = sweep.arguments(sweep.trials[0])
        assert tuple(words[: len(PIPELINES[pipeline].command)]) == PIPELINES[pipeline].command
        assert words[-2:] == ["--out", str((tmp_path / "trial-1").resolve())]


def test_points_are_compared_by_the_mean_over_their_seeds(tmp_path):
    sweep = sweep_in(tmp_path, grid=("budget=10:20", "seed=0:1"))
    for number, value in enumerate((0.5, 0.7, 0.9, 0.8), start=1):
        finish(sweep, number, status="completed", **{"digits.ours.below_1e-3": value})
    assert [name for name, _ in by_point(sweep)] == ["budget=20", "budget=10"]
    assert table(sweep)[1][:3] == ["budget=20", "2", "0.8500"]
    less = sweep_in(tmp_path, grid=("budget=10:20", "seed=0:1"), objective="*.below_1e-3", better="less")
    assert [name for name, _ in by_point(less)] == ["budget=10", "budget=20"]


def test_a_trial_that_was_broken_off_or_failed_has_no_result_and_says_why(tmp_path):
    sweep = sweep_in(tmp_path, grid=("budget=10:20",))
    finish(sweep, 1, status="interrupted", **{"digits.ours.below_1e-3": 0.5})
    assert [found(sweep, trial) for trial in sweep.trials] == [None, None]
    Saying(sweep).on_trial_end(2, "its process died")
    assert [why_failed(sweep, trial) for trial in sweep.trials] == ["", "its process died"]
    Saying(sweep).on_trial_end(2, "")
    assert why_failed(sweep, sweep.trials[1]) == ""


def test_an_objective_that_no_summary_has_names_those_it_has():
    with pytest.raises(ConfigError, match="fits no number of the summary; it has: a"):
        value_of({"a.mae": 0.5, "status": "completed", "rounds": 3}, "b.*")
    assert value_of({"a.mae": 0.5, "b.mae": 1.5, "ok": True}, "?.mae") == 1.0


def test_options_are_written_as_the_command_line_reads_them():
    options = {"batch_sizes": (1, 2), "output_bias": False, "epsilon": 0.1, "out": None}
    assert as_arguments(options) == ["--batch-sizes", "1,2", "--output-bias", "no", "--epsilon", "0.1"]


@pytest.mark.parametrize(("words", "message"), [
    (["leakage"], "nothing to sweep"),
    (["leakage", "--grid", "budgets=1"], "did you mean 'budget'"),
    (["leakage", "--grid", "out=a"], "out is one for the whole sweep"),
    (["leakage", "--grid", "budget=-3"], "budget"),
    (["transfer", "--grid", "rows=20", "--objective", "x"], "--objective and --better"),
    (["fedtransfer", "--sample", "style=log:1:2"], "style takes no real number"),
])  # fmt: skip
def test_a_sweep_that_makes_no_sense_is_refused_before_a_folder_is_made(words, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["sweep", *words]) != 0
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_trial_is_the_run_that_its_command_makes(tmp_path):
    base = {"data": ("digits",), "images": 2, "attacks": ("idlg",), "studies": ("compare",), "budget": 3}
    base |= {"cohort": "local"}
    sweep = sweep_in(tmp_path, base=base, grid=("seed=3",), objective="digits.idlg.samples", better="more")
    reports = list(work({"arguments": sweep.arguments(sweep.trials[0])}, sweep.objective))
    assert reports == [{"epochs": 1, "objective": 2.0}]
    assert found(sweep, sweep.trials[0]) == 2.0
    wrong = [*sweep.arguments(sweep.trials[0])[:-2], "--images", "none", "--out", str(tmp_path / "wrong")]
    with pytest.raises(RuntimeError, match="images"):
        next(work({"arguments": wrong}, sweep.objective))
