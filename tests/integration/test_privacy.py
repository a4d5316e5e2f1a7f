"""Noise, codes and masks through silo actors: the same bits as in this process."""

import tempfile
from dataclasses import replace

import pytest

from actors.federation import federation
from ray_fed.federation.cohort import LocalCohort
from ray_fed.federation.coordinator import Coordinator
from ray_fed.federation.rounds.job import Job
from ray_fed.federation.silo import Silo
from ray_fed.learning.private_steps import PrivateSteps
from ray_fed.learning.trainer import TrainingPlan
from ray_fed.privacy.compression import METHODS, Compression
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
    plans.append(replace(PLAN, private=PrivateSteps(1.0)))
    local = records(Coordinator(LocalCohort(SPECS, SyntheticTask()), SyntheticTask(), NAMES), plans)
    with federation(SPECS, SyntheticTask(), None, NAMES) as standing:
        far = records(standing.coordinator, plans)
    assert comparable(far) == comparable(local)
    assert [r.models["federated"].tobytes() for r in far if r.models] == [
        r.models["federated"].tobytes() for r in local if r.models
    ]


@pytest.mark.usefixtures("ray_session")
def test_masked_updates_of_silo_actors_sum_to_the_bits_of_plain_rounds_in_this_process():
    local = records(Coordinator(LocalCohort(SPECS, SyntheticTask()), SyntheticTask(), NAMES), [PLAN])
    job = Job("job-0", NAMES, dict.fromkeys(NAMES, PLAN), 0, secure_threshold=2)
    with federation(SPECS, SyntheticTask(), None, NAMES) as standing:
        standing.coordinator.agree()
        far = list(standing.coordinator.run(job))
    assert far[-1].models["federated"].tobytes() == local[-1].models["federated"].tobytes()
    assert far[-1].participants == NAMES


@pytest.mark.usefixtures("ray_session")
def test_a_silo_killed_in_a_secure_round_is_left_out_of_it_and_comes_back():
    class DiesOnce(SyntheticTask):
        def silo(self, spec, device="cpu"):
            import os
            from pathlib import Path

            silo = Silo(spec, self, device)
            fit, mark = silo.fit, Path(spec.state_folder) / "died" if spec.state_folder else None

            def fit_or_die(session, server_round, vector):
                if mark and server_round == 2 and not mark.exists():
                    mark.touch()
                    os._exit(1)
                return fit(session, server_round, vector)

            silo.fit = fit_or_die
            return silo

    with tempfile.TemporaryDirectory() as folder:
        specs = [SPECS[0], SPECS[1], replace(SPECS[2], state_folder=folder)]
        plan = replace(PLAN, num_rounds=3)
        job = Job("job-0", NAMES, dict.fromkeys(NAMES, plan), 0, secure_threshold=2)
        with federation(specs, DiesOnce(), None, NAMES) as standing:
            standing.coordinator.agree()
            found = list(standing.coordinator.run(job))
    assert [record.participants for record in found[1:]] == [NAMES, NAMES[:2], NAMES]
    assert "its part of secure aggregation failed" in dict(found[2].failures)[NAMES[2]]
