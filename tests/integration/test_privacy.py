"""Noise, codes and masks through silo actors: the same bits as in this process."""

from dataclasses import replace

import pytest

from actors.federation import federation
from ray_fed.federation.cohort import LocalCohort
from ray_fed.federation.coordinator import Coordinator, Job
from ray_fed.learning.trainer import TrainingPlan
from ray_fed.privacy.compression import METHODS, Compression
from ray_fed.privacy.dp.private_steps import PrivateSteps
from tests.synthetic import SyntheticTask, silos

PLAN = TrainingPlan(seed=0, epochs=2, steps_per_epoch=4, num_rounds=2, learning_rate=0.01)
SPECS = silos(40, 60, 50)
NAMES = tuple(spec.name for spec in SPECS)


def records(coordinator, plans):
    coordinator.agree()
    jobs = [Job(f"job-{number}", NAMES, dict.fromkeys(NAMES, plan), 0) for number, plan in enumerate(plans)]
    return [record for job in jobs for record in coordinator.run(job)]


def comparable(found):
    return [(record.metrics, record.bytes_sent, record.participants, record.failures) for record in found]


@pytest.mark.usefixtures("ray_session")
def test_codes_and_noise_leave_silo_actors_as_they_leave_silos_in_this_process():
    plans = [replace(PLAN, compression=Compression(method, 0.1)) for method in METHODS]
    plans.append(replace(PLAN, private=PrivateSteps(1.0, test_seed=3)))
    local = records(Coordinator(LocalCohort(SPECS, SyntheticTask()), SyntheticTask(), NAMES), plans)
    with federation(SPECS, SyntheticTask(), None, NAMES) as standing:
        far = records(standing.coordinator, plans)
    assert comparable(far) == comparable(local)
    assert [r.models["federated"].tobytes() for r in far if r.models] == [
        r.models["federated"].tobytes() for r in local if r.models
    ]
