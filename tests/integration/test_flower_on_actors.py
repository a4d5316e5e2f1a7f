"""Flower apps on actors: the bytes of one process, a silo that is killed, a program that is. Needs Flower itself."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipelines import run_flower_app

pytest.importorskip("flwr.serverapp", reason="flwr is not installed: constraints-flower.txt says how")
pytestmark = [pytest.mark.usefixtures("ray_session"), pytest.mark.filterwarnings("default")]

FOLDER = Path(__file__).parents[1] / "flower_apps" / "torch_folder"
ROOT = FOLDER.parents[2]
PROGRAM = """
import sys
sys.path.insert(0, sys.argv[1])
from pipelines import run_flower_app
run_flower_app(sys.argv[2], cohort="local", out=sys.argv[3], resume=True, run_config={"num-server-rounds": 40})
"""


def same_bytes(one, other):
    return {name: array.tobytes() for name, array in one.arrays.items()} == {
        name: array.tobytes() for name, array in other.arrays.items()
    }


def test_an_app_on_actors_has_the_bytes_of_one_process_and_each_answer_is_a_line_in_a_ledger(tmp_path):
    local = run_flower_app(FOLDER, cohort="local")
    there = run_flower_app(FOLDER, cohort="ray", out=tmp_path / "run")
    assert same_bytes(local, there)
    assert [record.metrics for record in there.records] == [record.metrics for record in local.records]
    [ledger] = (tmp_path / "run" / "ledger" / "silos" / "silo-1").glob("*.jsonl")
    assert ledger.read_text().count('"kind":"reply"') == 1 + 3 + 3


def test_a_silo_that_dies_is_started_again_with_the_state_of_its_client(tmp_path):
    from flwr.clientapp import ClientApp
    from lines import client_app as theirs
    from lines import server_app as server

    mark, inner = tmp_path / "died", theirs.app

    class Dying(ClientApp):
        def __call__(self, message, context):
            is_here = context.node_config["partition-id"] == 1 and message.metadata.message_type == "train"
            if is_here and context.state and not mark.exists():
                mark.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return inner(message, context)

    config = {"num-server-rounds": 3, "optimizer.lr": 0.5, "local-epochs": 2}
    done = run_flower_app(server_app=server.app, client_app=Dying(), silos=3, cohort="ray", run_config=config)
    assert mark.exists()
    assert same_bytes(done, run_flower_app(FOLDER, cohort="local"))
    assert done.metrics["silo.silo-1.train.rounds_seen"] == 3


def test_a_program_that_is_killed_goes_on_to_the_same_bytes(tmp_path):
    command = [sys.executable, "-c", PROGRAM, str(ROOT), str(FOLDER), str(tmp_path / "run")]
    with (tmp_path / "log").open("wb") as log:
        program = subprocess.Popen(command, cwd=tmp_path, stdout=log, stderr=log)
        replies = tmp_path / "run" / "unfinished" / "replies" / "silo-2"
        while program.poll() is None and len(list(replies.glob("*.reply"))) < 9:
            time.sleep(0.01)
        program.kill()
        program.wait()
    assert replies.is_dir(), (tmp_path / "log").read_text()
    config = {"num-server-rounds": 40}
    resumed = run_flower_app(FOLDER, cohort="local", out=tmp_path / "run", resume=True, run_config=config)
    whole = run_flower_app(FOLDER, cohort="local", run_config=config)
    assert same_bytes(resumed, whole)
    assert resumed.history().equals(whole.history())
