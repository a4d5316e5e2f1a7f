"""The tutorials run as a user runs them: as scripts, from another folder, on Ray."""

from pathlib import Path

import pytest

from tests.commands import finished, start

TUTORIALS = sorted((Path(__file__).parents[2] / "tutorials").glob("*.py"))


@pytest.mark.parametrize("script", TUTORIALS, ids=lambda path: path.stem)
def test_a_tutorial_is_short_and_runs_from_anywhere(script, tmp_path):
    if "from flwr" in script.read_text():
        pytest.importorskip("flwr", reason="this tutorial needs the optional package flwr")
    assert len(script.read_text().splitlines()) < 60
    done = finished(start(str(script), folder=tmp_path))
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout.strip()


def test_the_own_model_on_actors_learns(ray_session):  # noqa: ARG001
    from pipelines import federate
    from tests.unit.test_torch_task import SILOS, TASK, TRAINING

    on_actors = federate(TASK, SILOS, TRAINING)
    local = federate(TASK, SILOS, TRAINING, cohort="local")
    assert on_actors.records == local.records
    assert on_actors.metrics["federated.accuracy"] > 0.85
