"""One job on a coordinator: from where a run's folder stands, with every record written down before the next counts."""

from collections.abc import Generator
from contextlib import closing
from typing import Protocol

from pipelines.launching import CoordinatorLike
from pipelines.training.checkpoint import Checkpoint
from ray_fed.federation.rounds.job import Job, RoundRecord


class TrainingListener(Protocol):
    """Told about each job and each record while a run goes on."""

    def on_job_start(self, job: Job, seed: int) -> None: ...

    def on_round_end(self, record: RoundRecord, seed: int) -> None: ...


def recorded(
    coordinator: CoordinatorLike, job: Job, seed: int, checkpoint: Checkpoint, listener: TrainingListener
) -> Generator[RoundRecord, None, None]:
    """Yield the records of a job from its last complete round on: each when the listener has heard of it, and it is
    the point to go on from."""
    listener.on_job_start(job, seed)
    with closing(coordinator.run(job, *checkpoint.start_of(job.name))) as records:
        for record in records:
            listener.on_round_end(record, seed)
            checkpoint.save(record)
            yield record
