"""What `import ray_fed` and `import pipelines` offer: names, their lines, what they cost and print as."""

import ast
import dataclasses
import importlib.metadata
import inspect
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import pipelines
import ray_fed
from ray_fed.config import field_documentation
from ray_fed.learning.standardisation import ColumnMoments, Standardizer
from ray_fed.reporting.model_files import ModelCard

ROOT = Path(__file__).resolve().parents[2]
NAMES = [
    "ConfigError", "CrystalRows", "DataError", "FedAvg", "FedError", "FitResult", "FlowerTask", "Layout", "LocalRows",
    "MeanScores", "Metric", "PropertyTask", "RegressionSums", "RoundRecord", "RoundRules", "Samples", "SessionSpec",
    "SiloSpec", "Source", "Strategy", "Task", "TorchTask", "Trainer", "TrainingPlan", "Update", "load_model",
    "load_vector", "make_featurizer", "make_strategy", "predict",
]  # fmt: skip
"""Whoever adds one takes one away, or argues for more than thirty."""
OURS = [
    "Callback", "EarlyStopping", "Federated", "FlowerRun", "StopTraining", "Training", "federate", "run_flower_app",
]  # fmt: skip
FACES = {ray_fed: NAMES, pipelines: OURS}
PUBLIC = [(face, name) for face, names in FACES.items() for name in names]
CLASSES = [(face, name) for face, name in PUBLIC if inspect.isclass(getattr(face, name))]
HEAVY = ("torch", "numpy", "pandas", "ray", "sklearn", "pymatgen")


def of_both(test):
    return pytest.mark.parametrize("face", FACES, ids=lambda face: face.__name__)(test)


# ---- the names


@of_both
def test_the_public_names_are_these(face):
    assert face.__all__ == FACES[face] == sorted(FACES[face])
    assert len(face.__all__) <= 30
    assert set(face.__all__) <= set(dir(face))


@of_both
def test_type_checkers_see_the_names_where_they_are(face):
    body = ast.parse(Path(str(face.__file__)).read_text(encoding="utf-8")).body
    block = next(part for part in body if isinstance(part, ast.If) and ast.unparse(part.test) == "TYPE_CHECKING")
    imports = [part for part in block.body if isinstance(part, ast.ImportFrom)]
    homes = {alias.name: part.module for part in imports for alias in part.names}
    assert sorted(homes) == face.__all__
    for name, home in homes.items():
        assert getattr(face, name) is getattr(importlib.import_module(str(home)), name)


@of_both
def test_the_docstring_has_a_line_for_each_name_and_for_no_other(face):
    lines = re.findall(r"^    (\w+) +(\S.*)$", str(face.__doc__), re.MULTILINE)
    assert sorted(name for name, _ in lines) == face.__all__
    assert all(1 < len(purpose.split()) < 14 for _, purpose in lines)


@of_both
def test_a_name_that_is_not_there_is_said_to_be_not_there(face):
    with pytest.raises(AttributeError, match=f"module '{face.__name__}' has no attribute 'gone'"):
        _ = face.gone
    with pytest.raises(ImportError, match="cannot import name 'gone'"):
        exec(f"from {face.__name__} import gone")


# ---- what they cost


@of_both
def test_nothing_heavy_is_imported_before_a_name_is_used(face):
    code = f"import sys, {face.__name__}; print(*sorted({set(HEAVY)!r} & set(sys.modules)))"
    assert output_of(code).split() == []


def test_ray_is_not_imported_with_the_names():
    assert (
        output_of("import sys; from ray_fed import *; from pipelines import *; print('ray' in sys.modules)") == "False"
    )


def output_of(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    return done.stdout.strip()


# ---- version and types


def test_the_version_is_that_of_the_distribution():
    assert ray_fed.__version__ == importlib.metadata.version("ray-fed")


def test_code_that_is_not_installed_claims_no_version(monkeypatch):
    def not_installed(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", not_installed)
    assert ray_fed._version() == "0+unknown"


@pytest.mark.parametrize("package", ["ray_fed", "actors", "pipelines"])
def test_the_wheel_says_that_it_has_types(package):
    data = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["package-data"]
    assert "py.typed" in data["*"]
    assert (ROOT / package / "py.typed").is_file()


# ---- every one of them is documented


@pytest.mark.parametrize(("face", "name"), PUBLIC, ids=lambda part: getattr(part, "__name__", part))
def test_a_public_name_is_documented(face, name):
    text = inspect.getdoc(getattr(face, name)) or ""
    assert text
    assert not text.startswith(f"{name}("), "a dataclass without a docstring shows its signature"


@pytest.mark.parametrize(("face", "name"), CLASSES, ids=lambda part: getattr(part, "__name__", part))
def test_public_methods_and_fields_of_a_public_class_are_documented(face, name):
    found = getattr(face, name)
    methods = {key: inspect.unwrap(getattr(value, "__func__", value)) for key, value in vars(found).items()}
    assert [key for key, value in methods.items() if key[0] != "_" and is_code(value) and not value.__doc__] == []
    if dataclasses.is_dataclass(found):
        assert set(inspect.get_annotations(found)) - set(field_documentation(found)) == set()


def is_code(value: object) -> bool:
    return inspect.isfunction(value) or hasattr(value, "fget") or hasattr(value, "func")


# ---- what they print as


def samples(source):
    x = np.random.default_rng(source).normal(size=(5000, 3))
    return x, x[:, 0], x[:100], x[:100, 0]


def training_run():
    task = ray_fed.TorchTask(lambda: nn.Linear(3, 1), functional.mse_loss, samples, standardises=True)
    silos = [ray_fed.SiloSpec(name, number) for number, name in enumerate(["north", "south"])]
    return pipelines.federate(task, silos, pipelines.Training(rounds=2, epochs=1), cohort="local")


@pytest.fixture(scope="module")
def result():
    return training_run()


def test_a_training_run_prints_silos_rounds_size_and_metrics(result):
    loss = result.metrics["federated.loss"]
    wanted = rf"Federated\(2 silos, 2 rounds, 4 parameters: federated.loss {loss:.4g}, train_loss [\d.e-]+\)"
    assert re.fullmatch(wanted, repr(result))


def test_a_round_prints_its_job_number_silos_and_metrics(result):
    first, *_, last = result.records
    assert repr(first).startswith("RoundRecord(federated, round 0 of 2, by no silo: federated.loss ")
    assert repr(last).startswith("RoundRecord(federated, round 2 of 2, by north, south: federated.loss ")
    many = dataclasses.replace(last, participants=tuple("abcde"), failures=(("f", "late"),))
    assert "by 5 silos, 1 failed: " in repr(many)


def test_an_agreement_prints_rows_and_sizes(result):
    wanted = "Agreement(2 silos, 10,000 training rows, standardised, 4 parameters and buffers, no common test set)"
    assert repr(result.agreement) == wanted


CARD = ModelCard("federated", "gap", "eV", {"name": "guo65"}, ("a",) * 65, {"type": "mlp"}, {}, 0, (), {}, {})
PRINTED = {
    "MeanScores(4 samples: loss 0.5, accuracy 0.75)": ray_fed.MeanScores(4, {"loss": 2.0, "accuracy": 3.0}),
    "MeanScores(0 samples: loss nan)": ray_fed.MeanScores(0, {"loss": 0.0}),
    "MeanScores(1 samples: a 1, b 1, c 1, d 1, e 1, f 1, 2 more)": ray_fed.MeanScores(1, dict.fromkeys("abcdefgh", 1)),
    "RegressionSums(2 rows: mae 0.5, r2 0.75, mse 0.25)": ray_fed.RegressionSums(2, 1.0, 0.5, 2.0, 2.0),
    "Layout(28 values in 4 tensors, 2 of them buffers)": ray_fed.Layout.of(nn.BatchNorm1d(7)),
    "Standardizer(73 columns)": Standardizer(np.zeros(73), np.ones(73)),
    "ColumnMoments(5 rows of 73 columns)": ColumnMoments.of(np.zeros((5, 73))),
    "ModelCard(federated: gap [eV], mlp on guo65, id not saved)": CARD,
}  # fmt: skip


@pytest.mark.parametrize("printed", PRINTED)
def test_a_value_prints_in_one_line_what_it_holds(printed):
    assert repr(PRINTED[printed]) == printed


def test_no_sample_is_printed():
    secret = 0.123456789
    rows = ray_fed.LocalRows(np.full((3, 2), secret), np.full(3, secret), [], [], {}, {}, {})
    assert repr(rows) == "LocalRows(3 samples, 0 held out)"
    made = ray_fed.Samples(rows, torch.full((3, 2), secret), torch.full((3, 1), secret), torch.zeros(0, 2))
    assert repr(made) == f"Samples(rows={rows!r})"


def test_rows_of_a_kind_of_ones_own_print_no_sample_either():
    @dataclasses.dataclass(frozen=True)
    class Graphs(ray_fed.LocalRows):
        cutoff: float = 5.0

    assert "0.125" not in repr(Graphs([0.125], [0.125], [0.125], [0.125], {}, {}, {}))


def test_arrays_that_a_flower_task_starts_from_are_not_printed():
    task = ray_fed.FlowerTask(lambda context: context, [np.full(3, 0.125)])
    assert "0.125" not in repr(task)
    assert "0.125" not in repr(ray_fed.Update("a", "s", 1, np.full(3, 0.125, np.float32), 1, 1, 0.5))
