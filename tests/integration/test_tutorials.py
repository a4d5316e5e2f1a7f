"""The tutorials run as a user runs them: as scripts, from another folder."""

import os
import runpy
import sys
from pathlib import Path

import pytest

from tests.commands import finished, start

TUTORIALS = sorted((Path(__file__).parents[2] / "tutorials").glob("*.py"))


def is_in_one_process(script: Path) -> bool:
    """Whether a script neither starts Ray nor other programs: it then runs in a copy of this process, which has done
    its imports."""
    return sys.platform == "linux" and 'cohort="local"' in script.read_text() and "import ray" not in sys.modules


def run_in_a_copy(script: Path, folder: Path) -> tuple[int, str, str]:
    """Return exit status, output and errors."""
    child = os.fork()
    if not child:
        status = 1
        try:
            for number, name in ((1, "out"), (2, "err")):
                os.dup2(os.open(folder / name, os.O_CREAT | os.O_WRONLY), number)
            os.chdir(folder)
            sys.argv, sys.stdout, sys.stderr = [str(script)], open(1, "w"), open(2, "w")  # noqa: SIM115
            runpy.run_path(str(script), run_name="__main__")
            sys.stdout.flush()
            status = 0
        finally:
            if status:
                import traceback

                (folder / "err").write_text(traceback.format_exc())
            os._exit(status)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), (folder / "out").read_text(), (folder / "err").read_text()


@pytest.mark.parametrize("script", TUTORIALS, ids=lambda path: path.stem)
def test_a_tutorial_is_short_and_runs_from_anywhere(script, tmp_path):
    text = script.read_text()
    for package in ("flwr", "optuna"):
        if f"import {package}" in text or f"from {package}" in text:
            pytest.importorskip(package, reason=f"this tutorial needs the optional package {package}")
    assert len(text.splitlines()) < 60
    if is_in_one_process(script):
        status, printed, said = run_in_a_copy(script, tmp_path)
    else:
        done = finished(start(str(script), folder=tmp_path))
        status, printed, said = done.returncode, done.stdout, done.stderr
    assert status == 0, said
    assert "Traceback" not in said
    assert len(printed.strip().splitlines()) > 1  # a table, or what a picture shows


def test_the_own_model_on_actors_learns(ray_session):  # noqa: ARG001
    from pipelines import federate
    from tests.unit.test_torch_task import SILOS, TASK, TRAINING

    on_actors = federate(TASK, SILOS, TRAINING)
    local = federate(TASK, SILOS, TRAINING, cohort="local")
    assert on_actors.records == local.records
    assert on_actors.metrics["federated.accuracy"] > 0.85
