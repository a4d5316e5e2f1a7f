"""Sweeps of pipelines whose trials are runs of their own."""

import json
from pathlib import Path
from typing import Any

import pytest

from pipelines.cli import main
from pipelines.commands import COMMANDS, Command, ConfigChoice, named
from pipelines.sweep.whole_runs import (
    PIPELINES,
    RunsSweep,
    Saying,
    WholeRunsConfig,
    _conclude,
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


SWEPT_IN_ONE = {"train", "formation-energy"}
"""Their trials share silos."""
NO_EXPERIMENTS = {
    "flower": "its settings are its app's",
    "bench": "measures this machine",
    "doctor": "looks at a cluster",
}
FIELDS = {
    "fedtransfer": "learning_rate=0.001:0.01", "leakage": "budget=10:20", "transfer": "rows=20:40",
    "audit": "list_length=200:400", "library-build": "networks=1:2", "study-value": "draws=1:2",
    "segment": "overlap=4:8",
}  # fmt: skip


def has_configuration(command: Command) -> bool:
    return any(isinstance(each, str) and each.endswith("Config") for each in command.takes)


def test_every_command_with_a_configuration_is_swept_or_is_no_experiment():
    there = {command.name for command in COMMANDS if has_configuration(command)}
    whole = {swept.command for swept in PIPELINES.values()}
    assert there == whole | SWEPT_IN_ONE | NO_EXPERIMENTS.keys()
    [choice] = [each for command in COMMANDS for each in command.takes if isinstance(each, ConfigChoice)]
    assert set(choice.takes) == set(PIPELINES) | SWEPT_IN_ONE
    for name, swept in PIPELINES.items():
        offered = [named(each) for each in choice.takes[name] if isinstance(each, str)]
        assert offered[1:] == swept.config_classes, name


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_a_trial_is_a_command_with_what_was_given_and_a_folder_of_its_own(pipeline, tmp_path):
    swept = PIPELINES[pipeline]
    base = {name: ["a.png", "b.png"] if name == "images" else "given" for name in swept.places}
    sweep = sweep_in(tmp_path, pipeline, base, grid=(FIELDS[pipeline],))
    assert len(sweep.trials) == 2
    field, _, values = FIELDS[pipeline].partition("=")
    places = {"segment": ["given", "a.png", "b.png"], "audit": ["given"]}.get(pipeline, [])
    assert sweep.arguments(sweep.trials[0]) == [
        *swept.command.split(), *places, f"--{field.replace('_', '-')}", values.split(":")[0],
        f"--{swept.folder}", str((tmp_path / "trial-1").resolve()),
    ]  # fmt: skip


def test_points_are_compared_by_the_mean_over_their_seeds(tmp_path):
    sweep = sweep_in(tmp_path, grid=("budget=10:20", "seed=0:1"))
    for number, value in enumerate((0.5, 0.7, 0.9, 0.8), start=1):
        finish(sweep, number, status="completed", **{"digits.ours.below_1e-3": value})
    assert [name for name, _ in by_point(sweep)] == ["budget=20", "budget=10"]
    assert table(sweep)[1][:3] == ["budget=20", "2", "0.8500"]
    less = sweep_in(tmp_path, grid=("budget=10:20", "seed=0:1"), objective="*.below_1e-3", better="less")
    assert [name for name, _ in by_point(less)] == ["budget=10", "budget=20"]


def test_where_neither_more_nor_less_is_better_points_stay_in_their_order_and_none_is_the_best(tmp_path, capsys):
    sweep = sweep_in(tmp_path, "segment", {"run_directory": "run", "images": ["a.png"]}, grid=("overlap=4:8:2",))
    for number, value in enumerate((5, 9, 7), start=1):
        finish(sweep, number, status="completed", **{"mean.grains_in_field": value})
    assert [name for name, _ in by_point(sweep)] == ["overlap=4", "overlap=8", "overlap=2"]
    sweep.directory.write_config({})
    assert _conclude(sweep, 1.0) == 0
    assert "is yours to say" in capsys.readouterr().out
    assert sweep.directory.read_summary()["best"] == ""


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
    (["audit", "run", "--grid", "rounds=1,2", "--max-leak", "0.1"], "--max-leak is of a single run"),
    (["audit", "run", "--grid", "max_leak=0.1"], "unknown field 'max_leak'"),
    (["library-build", "--grid", "networks=1,2", "--library", "here"], "--library is of a single run"),
    (["library-build", "--grid", "library=here"], "each trial has a library of its own"),
    (["study-value", "--grid", "draws=99"], "draws=99 must be from 1 to 20"),
    (["study-value", "--grid", "batch_size=0"], "batch_size=0"),
    (["segment", "run", "image.png", "--grid", "overlap=-1"], "overlap=-1"),
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
    task = {"arguments": sweep.arguments(sweep.trials[0]), "home": str(tmp_path)}
    reports = list(work(task, sweep.objective))
    assert reports == [{"epochs": 1, "objective": 2.0}]
    assert found(sweep, sweep.trials[0]) == 2.0
    wrong = [*sweep.arguments(sweep.trials[0])[:-2], "--images", "none", "--out", str(tmp_path / "wrong")]
    with pytest.raises(RuntimeError, match="images"):
        next(work({"arguments": wrong, "home": str(tmp_path)}, sweep.objective))
