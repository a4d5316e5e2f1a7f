"""Tasks of matbench train from one command each, with the unit their users know (benchmarks/many_properties.py)."""

import runpy
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
DATASETS = ROOT.parent / "shared/datasets"
SCRIPT: dict[str, Any] = runpy.run_path(str(ROOT / "benchmarks/many_properties.py"))
FEW = ["--epochs", "12", "--hidden", "32", "--baselines", "no"]
needs_tables = pytest.mark.skipif(
    not (DATASETS / SCRIPT["FORMULAS"]).is_file() or not (DATASETS / SCRIPT["STRUCTURES"]).is_file(),
    reason="needs composition_properties and mp_structures in ../shared/datasets",
)


def test_there_are_ten_numbers_and_three_pairs_of_classes():
    kinds = [bool(prop.label) for prop in SCRIPT["PROPERTIES"]]
    assert (kinds.count(False), kinds.count(True)) == (10, 3)


@needs_tables
@pytest.mark.parametrize(
    ("name", "metric", "least", "heading"),
    [
        ("last phdos peak", "r2", 0.4, "MAE (1/cm)"),
        ("gap pbe", "r2", 0.1, "MAE (eV)"),
        ("is_metal", "roc_auc", 0.7, "ROC AUC"),
    ],
)
def test_a_task_trains_from_one_command_with_its_unit(tmp_path, name, metric, least, heading):
    prop = next(each for each in SCRIPT["PROPERTIES"] if each.name == name)
    summary = SCRIPT["trained"](prop, DATASETS, tmp_path, 400, 0, *FEW)
    assert summary[f"federated.{metric}"] > least
    assert summary["unit"] == (prop.unit or "1")
    assert heading in summary["said"]
    assert "eV/atom" not in summary["said"]
