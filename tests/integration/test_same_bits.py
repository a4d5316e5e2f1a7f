"""One seed, the same bytes: in one process or on Ray, on one core or on two."""

import json
import os
from pathlib import Path

import pytest

from pipelines.cli import main
from tests import commands

# Batches and layers so large that torch would use both cores if it were let, and get other last bits.
OPTIONS = ["--rows", "900", "--silos", "100,200,400", "--epochs", "4", "--communication-frequency", "0.5"]
OPTIONS += ["--hidden", "200,200", "--batch-size", "200", "--calibration-fraction", "0.2"]
ENVIRONMENT = {key: value for key, value in commands.ENVIRONMENT.items() if not key.startswith(("OMP_", "MKL_"))}
CORES = sorted(os.sched_getaffinity(0))

needs_two_cores = pytest.mark.skipif(len(CORES) < 2, reason="this process may use one core only")


def run(folder: Path, cohort: str, cores: list[int]) -> dict[str, bytes]:
    """Run the command on these cores; return what must not depend on them, by file name."""
    command = ["formation-energy", "--cohort", cohort, "--out", "run", *OPTIONS, "--seed", "3"]
    bound = {"preexec_fn": lambda: os.sched_setaffinity(0, cores)}
    done = commands.run_ray_fed(*command, folder=folder, env=ENVIRONMENT, **bound)
    assert done.returncode == 0, done.stderr
    return written(folder)


def written(folder: Path) -> dict[str, bytes]:
    models = sorted((folder / "run" / "models").glob("*.safetensors"))
    assert models
    cards = {path.name: json.loads(path.read_text()) for path in (folder / "run" / "models").glob("*.card.json")}
    assert all(card["limits"]["why_none"] == "" for card in cards.values())
    limits = {name: json.dumps(card["limits"], sort_keys=True).encode() for name, card in cards.items()}
    return {**limits, **{path.name: path.read_bytes() for path in [folder / "run" / "history.jsonl", *models]}}


@pytest.fixture(scope="module")
def local_on_one_core(tmp_path_factory):
    return run(tmp_path_factory.mktemp("one"), "local", CORES[:1])


def test_a_run_in_one_process_and_a_run_on_ray_are_the_same_bytes(tmp_path, local_on_one_core):
    assert run(tmp_path, "ray", CORES[:1]) == local_on_one_core


@needs_two_cores
@pytest.mark.parametrize("cohort", ["local", "ray"])
def test_one_core_and_two_give_the_same_bytes(tmp_path, local_on_one_core, cohort):
    assert run(tmp_path, cohort, CORES[:2]) == local_on_one_core


def test_another_seed_gives_other_bytes(tmp_path, local_on_one_core):
    command = ["formation-energy", "--cohort", "local", "--out", str(tmp_path / "run"), *OPTIONS, "--seed", "4"]
    assert main(command) == 0
    other = written(tmp_path)
    assert other.keys() == local_on_one_core.keys()
    assert all(other[name] != content for name, content in local_on_one_core.items())
