"""Ray's own scheduler, on GPUs that are not there: every silo that is accepted stands, and who waits is told why."""

import json
import subprocess
import sys

import pytest

from actors.leakage import run_tasks
from ray_fed.errors import PlacementError


@pytest.fixture(scope="module")
def came():
    done = subprocess.run(
        [sys.executable, "-m", "tests.integration.pretend_gpus"], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_six_silos_stand_on_four_gpus(came):
    assert came["placed"] == 6


def test_a_silo_without_a_place_is_told_what_it_waits_for_what_is_there_and_what_would_help(came):
    (line,) = came["told"]
    assert line.startswith("silo 'late' waits since 0 s: it asks for 1 GPU and 0 CPU; there is: ")
    assert "4 GPU, 8 CPU" in line
    assert "free now" in line
    assert "1.6 GPU" in line
    assert "or a node is added" in line


def test_a_reserved_gpu_that_torch_cannot_use_is_refused_by_name_and_not_replaced_in_silence(came):
    assert came["unusable"].startswith("silo 'silo-1': Ray reserved GPU ")
    assert came["unusable"].endswith("or let it compute on the CPU: num_gpus=0")


def test_tasks_that_no_node_can_hold_are_refused(came):
    assert came["task"].startswith("an attack asks for 0 GPU and 99 CPU on one node; there is: ")


@pytest.mark.usefixtures("ray_session")
def test_attacks_on_a_gpu_are_refused_where_there_is_none():
    with pytest.raises(PlacementError, match=r"an attack asks for 1 GPU and 1 CPU.*--num-gpus 0 computes on CPU"):
        list(run_tasks([], num_gpus=1.0))
