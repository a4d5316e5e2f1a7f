"""Losses of a small federation at full precision: a refactoring that changes any number fails here.

`python -m tests.unit.test_golden_losses` writes the golden file anew; do that only for a change that is meant.
"""

import json
from pathlib import Path

import pytest

from ray_fed.federation.cohort import LocalCohort
from ray_fed.federation.coordinator import Coordinator
from ray_fed.federation.rounds.job import Job
from ray_fed.federation.task import SiloSpec
from ray_fed.learning.trainer import TrainingPlan
from ray_fed.materials.databases.source import Source
from ray_fed.materials.property_task import CrystalRows, PropertyTask
from ray_fed.materials.study import StudyPart, StudyPlan

GOLDEN = Path(__file__).parents[1] / "golden" / "losses.json"
POLICIES = ("keep", "reset", "average")


def losses(policy: str) -> list[float]:
    """Return the training loss of each round, then the test MAE [eV/atom] of the last model."""
    plan = StudyPlan(silos=(100, 200), rows=400, seed=0)
    task = PropertyTask(hidden=(16,))
    silos = [SiloSpec(name, CrystalRows(Source(rows=400), StudyPart(plan, name))) for name in ("silo-1", "silo-2")]
    tested = CrystalRows(Source(rows=400), StudyPart(plan, "test"))
    test = SiloSpec("test", tested, possession=task.possession(tested))
    names = tuple(spec.name for spec in silos)
    coordinator = Coordinator(LocalCohort(silos, task, test), task, names)
    coordinator.agree()
    training = TrainingPlan(0, epochs=8, steps_per_epoch=5, num_rounds=4, optimizer_state=policy)
    records = list(coordinator.run(Job("federated", names, dict.fromkeys(names, training), model_seed=0)))
    return [*(record.metrics["train_loss"] for record in records[1:]), records[-1].metrics["federated.mae"]]


@pytest.mark.parametrize("policy", POLICIES)
def test_the_losses_are_the_recorded_ones(policy):
    # Another processor may round a matrix product differently; a change of the algorithm is far larger than this.
    assert losses(policy) == pytest.approx(json.loads(GOLDEN.read_text())[policy], rel=1e-5)


def test_the_policies_are_told_apart_by_the_golden_losses():
    golden = json.loads(GOLDEN.read_text())
    assert len({tuple(golden[policy]) for policy in POLICIES}) == len(POLICIES)


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps({policy: losses(policy) for policy in POLICIES}, indent=1) + "\n")
