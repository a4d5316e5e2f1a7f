"""The tutorials run as a user runs them: as scripts, from another folder."""

import os
import runpy
import sys
from pathlib import Path

import pytest

from tests.commands import REPOSITORY, finished, start, start_module

TUTORIALS = sorted((Path(__file__).parents[2] / "tutorials").glob("*.py"))


def started(script: Path, folder: Path):
    """Start a tutorial; one that starts neither Ray nor other programs in a copy of a process that has torch."""
    if 'cohort="local"' in script.read_text():
        return start_module("tests.integration.test_tutorials", str(script), str(folder), folder=REPOSITORY)
    return start(str(script), folder=folder)


@pytest.mark.parametrize("script", TUTORIALS, ids=lambda path: path.stem)
def test_a_tutorial_is_short_and_runs_from_anywhere(script, tmp_path):
    text = script.read_text()
    for package in ("flwr", "optuna"):
        if f"import {package}" in text or f"from {package}" in text:
            pytest.importorskip(package, reason=f"this tutorial needs the optional package {package}")
    assert len(text.splitlines()) < 60
    done = finished(started(script, tmp_path))
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stdout.strip().splitlines()) > 1  # a table, or what a picture shows


def test_the_own_model_on_actors_learns(ray_session):  # noqa: ARG001
    from pipelines import federate
    from tests.unit.test_torch_task import SILOS, TASK, TRAINING

    on_actors = federate(TASK, SILOS, TRAINING)
    local = federate(TASK, SILOS, TRAINING, cohort="local")
    assert on_actors.records == local.records
    assert on_actors.metrics["federated.accuracy"] > 0.85


if __name__ == "__main__":
    os.chdir(sys.argv[2])
    sys.argv[:] = sys.argv[1:2]
    runpy.run_path(sys.argv[0], run_name="__main__")
