"""Training over folds: a run for each, and means over them."""

import json
import shutil
from pathlib import Path

import pytest

from pipelines.cli import main
from pipelines.training.folds import together

WORDS = ["train", "--cohort", "local", "--rows", "120", "--silos", "30,40", "--epochs", "2", "--rounds", "2"]
WORDS += ["--hidden", "4", "--features", "guo65", "--batch-size", "40", "--alone", "network", "--analysis", "no"]


def summary_of(folder: Path) -> dict:
    return json.loads((folder / "summary.json").read_text())


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("folds") / "run"
    assert main([*WORDS, "--folds", "2", "--group", "chemical_system", "--out", str(out)]) == 0
    return out


def test_each_fold_is_a_run_and_their_mean_and_spread_are_told(run):
    summary, folds = summary_of(run), [summary_of(run / f"fold-{fold}") for fold in (1, 2)]
    assert sum(fold["test.num_examples"] for fold in folds) == 120
    values = [fold["federated.mae"] for fold in folds]
    assert len(set(values)) == 2
    assert summary["federated.mae"] == pytest.approx(sum(values) / 2)
    assert summary["federated.mae_std"] > 0
    assert [summary[f"fold.{fold}.federated.mae"] for fold in (1, 2)] == values
    assert "over 2 folds (grouped by chemical system)" in (run / "report.html").read_text()


def test_folds_that_were_broken_off_are_gone_on_with(run, tmp_path, capsys):
    whole, broken = summary_of(run), tmp_path / "broken"
    shutil.copytree(run, broken)
    (broken / "summary.json").unlink()
    shutil.rmtree(broken / "fold-2")
    assert main(["resume", str(broken)]) == 0
    assert "fold 2 of 2" in capsys.readouterr().err
    assert summary_of(broken)["federated.mae"] == whole["federated.mae"]
    assert main(["resume", str(broken)]) == 0
    assert "nothing to resume" in capsys.readouterr().out


def test_one_fold_alone_is_that_fold_of_the_run(run, tmp_path):
    out = tmp_path / "one"
    words = [*WORDS, "--folds", "2", "--fold", "2", "--group", "chemical_system", "--out", str(out)]
    assert main(words) == 0
    assert summary_of(out)["federated.mae"] == summary_of(run / "fold-2")["federated.mae"]


@pytest.mark.parametrize(("words", "message"), [
    (["--folds", "1"], "must be matbench, or 2 or more"),
    (["--folds", "5", "--fold", "6"], "must lie between 1 and 5"),
    (["--fold", "2"], "needs --folds"),
    (["--folds", "matbench"], "leave --rows out"),
    (["--folds", "3", "--test-rows", "9"], "the fold is the test set"),
    (["--folds", "3", "--federation", "x.yaml"], "hold out rows of their own"),
])  # fmt: skip
def test_folds_that_make_no_sense_are_refused_before_a_folder_is_made(words, message, tmp_path, capsys):
    assert main([*WORDS, *words, "--out", str(tmp_path / "run")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_learners_that_folds_disagree_on_are_all_named():
    folds = [{"best.a.learner": "network", "best.a.mae": 0.2}, {"best.a.learner": "random_forest", "best.a.mae": 0.4}]
    found = together(folds)
    assert found["best.a.learner"] == "network or random_forest"
    assert (found["best.a.mae"], found["best.a.mae_std"]) == pytest.approx((0.3, 0.1414), abs=1e-4)
