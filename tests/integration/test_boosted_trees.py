"""Boosted trees on silo actors: the bytes of trees in one process, also where a silo dies or the run is broken off."""

import json
import signal
from pathlib import Path

from actors.federation import federation
from pipelines.cli import main
from ray_fed.federation.cohort import LocalCohort
from ray_fed.federation.coordinator import Coordinator
from ray_fed.federation.rounds.job import Job
from ray_fed.federation.strategies.boosting import BoostedTrees
from ray_fed.federation.task import SiloSpec
from ray_fed.learning.trainer import TrainingPlan
from ray_fed.privacy.compression import Compression
from tests.commands import finished, start_ray_fed, wait_until
from tests.synthetic import DrawnRows, SyntheticForest, silos

NAMES = ("silo-1", "silo-2", "silo-3")
TEST = SiloSpec("test", DrawnRows(50), possession=repr(DrawnRows(50)))
SPECS = silos(40, 60, 25, held_out=12)
TASK = SyntheticForest()
STRATEGY = BoostedTrees(TASK.trees, TASK.num_features)
OPTIONS = ["train", "--model", "boosted_trees", "--tree-options", "trees=40,depth=4,patience=8", "--features", "guo65"]
OPTIONS += ["--cohort", "local", "--rows", "400", "--silos", "60,120,180", "--baselines", "no", "--out"]


def job():
    rounds = STRATEGY.num_rounds
    plan = TrainingPlan(0, rounds, 1, rounds, compression=Compression())
    return Job("federated", NAMES, dict.fromkeys(NAMES, plan), 0, STRATEGY)


def test_a_forest_on_actors_is_that_of_one_process_although_a_silo_dies_three_times(tmp_path, ray_session):  # noqa: ARG001
    local = Coordinator(LocalCohort(SPECS, TASK, TEST), TASK, NAMES)
    local.agree()
    ours = list(local.run(job()))
    mortal = SyntheticForest(dies_in=(2, 7, 12), marker=str(tmp_path / "died"))
    with federation(SPECS, mortal, TEST, NAMES) as placed:
        placed.coordinator.agree()
        theirs = list(placed.coordinator.run(job()))
    assert len(list(tmp_path.glob("died-*"))) == 3
    assert ours[-1].models["federated"].tobytes() == theirs[-1].models["federated"].tobytes()
    assert [record.participants for record in theirs[1:]] == [NAMES] * (len(ours) - 1)


def test_a_forest_that_is_broken_off_and_gone_on_with_has_the_same_bytes(tmp_path):
    assert main([*OPTIONS, str(tmp_path / "whole")]) == 0
    process = start_ray_fed(*OPTIONS, "run", folder=tmp_path, start_new_session=True)
    history = tmp_path / "run" / "history.jsonl"
    wait_until(lambda: history.exists() and history.read_bytes().count(b"\n") > 40, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    done = finished(start_ray_fed("resume", "run", folder=tmp_path))
    assert done.returncode == 0, done.stderr
    models, histories = zip(*(written(tmp_path / name) for name in ("run", "whole")), strict=True)
    assert models[0] == models[1]
    assert histories[0] == histories[1]


def written(folder: Path) -> tuple[bytes, list[dict]]:
    """Return the model, and the history without bytes: silos that were started again are sent the forest so far."""
    lines = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    return (folder / "models/federated.safetensors").read_bytes(), [line | {"bytes_sent": 0} for line in lines]
