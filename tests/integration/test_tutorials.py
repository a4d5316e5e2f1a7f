"""The tutorials run as a user runs them: as scripts, from another folder, on Ray."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

TUTORIALS = sorted((Path(__file__).parents[2] / "tutorials").glob("*.py"))
ENVIRONMENT = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}


@pytest.mark.parametrize("script", TUTORIALS, ids=lambda path: path.stem)
def test_a_tutorial_is_short_and_runs_from_anywhere(script, tmp_path):
    if "import flwr" in script.read_text():
        pytest.importorskip("flwr", reason="this tutorial needs the optional package flwr")
    assert len(script.read_text().splitlines()) < 40
    done = subprocess.run(
        [sys.executable, str(script)], cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout.strip()


def test_the_own_model_on_actors_learns(ray_session):  # noqa: ARG001
    from pipelines.federate import federate
    from tests.unit.test_torch_task import SILOS, TASK, TRAINING

    on_actors = federate(TASK, SILOS, TRAINING)
    local = federate(TASK, SILOS, TRAINING, cohort="local")
    assert on_actors.records == local.records
    assert on_actors.metrics["federated.accuracy"] > 0.85
