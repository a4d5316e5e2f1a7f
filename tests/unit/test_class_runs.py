"""`ray-fed train` for classes: what its report, figures and TensorBoard show, and that little of it is a run of
TensorBoard's own."""

import json

import numpy as np
import pandas as pd
import pytest
from tensorboard.backend.event_processing.event_multiplexer import EventMultiplexer

from pipelines.cli import main
from pipelines.training.class_pages import class_sections
from ray_fed.materials.model_crystals.crystals import make_model_crystals
from ray_fed.materials.targets import Target
from ray_fed.metrics import ClassificationSums, RegressionSums, SeveralScores
from ray_fed.reporting.figure_style import save_figure
from ray_fed.reporting.report import Figure, Paragraph, Table
from tests.events import shown

OPTIONS = ["--silos", "60,80", "--test-rows", "60", "--epochs", "4", "--hidden", "8", "--features", "guo65"]
LAST = ["--cohort", "local", "--communication-frequency", "0.5", "--alone", "network", "--early-stopping", "no"]


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """A table with a class of two, one of three with long names, and a number under a logarithm."""
    crystals = make_model_crystals(320)
    values = crystals["target"].astype(float).fillna(0)
    kinds = np.array(["cubic", "a very long name of a crystal system", "hexagonal"])
    frame = pd.DataFrame({"formula": crystals["formula"], "is_metal": values > values.median()})
    frame["system"] = kinds[np.digitize(values, values.quantile([0.3, 0.7]))]
    frame["conductivity"] = 10.0**values
    path = tmp_path_factory.mktemp("classes") / "crystals.csv"
    frame.to_csv(path, index=False)
    return path


@pytest.fixture(scope="module")
def both(table, tmp_path_factory):
    """A run with a class of three and a number at once, of two seeds."""
    run = tmp_path_factory.mktemp("run") / "both"
    targets = ["--target", "system,conductivity", "--unit", "dimensionless,S/m", "--transform", "none,log10"]
    assert main(["train", "--data", str(table), *targets, *OPTIONS, *LAST, "--repeats", "2", "--out", str(run)]) == 0
    return run


def test_a_run_is_one_run_of_tensorboard_with_one_more_for_each_further_seed(both):
    runs = EventMultiplexer().AddRunsFromDirectory(str(both.parent)).Reload().Runs()
    assert sorted(runs) == ["both/tensorboard", "both/tensorboard/seed-1"]


def test_tensorboard_shows_curves_pictures_results_and_hyperparameters(both):
    found = shown(both / "tensorboard")
    assert {"global/train_loss", "global/system.roc_auc", "silo/silo-1/conductivity.mae"} <= found.scalars
    assert {"model/pooled/system.roc_auc", "model/silo-2 alone/train_loss"} <= found.scalars
    assert {"result/system.roc_auc", "result/conductivity.mae"} <= found.scalars
    assert found.pictures == {
        "picture/confusion-system", "picture/reliability-system", "picture/roc-system", "picture/parity-conductivity",
        "picture/bars", "picture/learning_curves", "picture/analysis",
    }  # fmt: skip
    assert found.name == "both"
    assert found.hyperparameters["pipeline"] == "train"
    assert found.hyperparameters["hidden"] == "8"
    assert found.hyperparameters["epochs"] == 4
    assert "out" not in found.hyperparameters


def test_the_report_has_the_table_of_classes_and_the_figures(both):
    report = (both / "report.html").read_text()
    assert "Classes of system" in report
    assert "a very long name of a crystal system" in report
    assert report.count("data:image/png;base64,") == 7
    summary = json.loads((both / "summary.json").read_text())
    assert 0 <= summary["federated.system.roc_auc"] <= 1


def test_counts_of_hidden_rows_are_shown_in_their_groups(table, tmp_path):
    run = tmp_path / "hidden"
    federation = tmp_path / "federation.yaml"
    federation.write_text(f"silos:\n  - {{name: north, data: {table}}}\n  - {{name: south, data: {table}}}\n")
    target = ["--target", "is_metal", "--classes", "false|true"]
    command = ["train", "--federation", str(federation), *target, *OPTIONS[4:], *LAST]
    assert main([*command, "--out", str(run)]) == 0
    report = (run / "report.html").read_text()
    assert "Counts left the silos in groups of rows" in report
    assert "on all silos&#x27; held-out rows together" in report
    assert {"picture/confusion", "picture/reliability", "picture/roc"} <= shown(run / "tensorboard").pictures


# ---- the section


TARGET = Target("metal", classes=("no", "yes"))


def sections(tmp_path, scores, **others):
    def save(name, figure, caption):
        return Figure(save_figure(figure, tmp_path / f"{name}.png"), caption)

    return class_sections([TARGET], scores, others.get("are_groups", False), "on the test set", save)


def test_what_is_not_defined_is_said_with_its_reason(tmp_path):
    one = ClassificationSums.of(np.ones(4, int), np.array([0.1, 0.6, 0.7, 0.8]))
    [section] = sections(tmp_path, {"federated": one})
    [said, table, *figures] = section.blocks
    assert said == Paragraph("roc_auc of federated is not defined: all its rows with a label are of one class.")
    assert isinstance(table, Table)
    assert table.rows == [
        ["no", "0", "1", "0.000", "–", "0.000", "–"],
        ["yes", "4", "3", "1.000", "0.750", "0.857", "–"],
    ]
    assert [figure.path.stem for figure in figures] == ["confusion", "reliability", "roc"]


def test_there_is_no_section_of_a_number_and_none_without_scores(tmp_path):
    number = RegressionSums.of(np.arange(3.0), np.arange(3.0))
    assert sections(tmp_path, {}) == []
    assert sections(tmp_path, {"federated": number}) == []
    assert sections(tmp_path, {"federated": SeveralScores(3, {"gap": number})}) == []
