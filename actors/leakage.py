"""Attacks as Ray tasks: many per task in one batched kernel, results in the order in which they come."""

from collections.abc import Iterator, Sequence
from typing import cast

import ray
from ray.exceptions import RayError

from actors import placement
from actors.silo import reserved_device
from actors.waiting import TaskWatch
from ray_fed.leakage.study import AttackJob, AttackResult, failed, run_job


@ray.remote(max_retries=1)
def _attack(job: AttackJob) -> AttackResult:
    import torch

    device = reserved_device("an attack")
    torch.set_num_threads(1)  # tasks share the machine; sums over several threads differ in the last bits
    return run_job(job, device)


def run_tasks(jobs: Sequence[AttackJob], num_cpus: float = 1.0, num_gpus: float = 0.0) -> Iterator[AttackResult]:
    """Run jobs as tasks on the connected cluster and yield each result as it comes.

    A task whose process died (it is tried twice) or that raised becomes rows with a reason; the others go on. With
    num_gpus > 0 a task reserves that share of a GPU and computes there; PlacementError where no node has one.
    """
    placement.check_tasks("an attack", num_cpus, num_gpus)
    watch = TaskWatch("an attack", num_cpus, num_gpus)
    task = _attack.options(num_cpus=num_cpus, num_gpus=num_gpus)
    under_way = {task.remote(job): job for job in jobs}
    try:
        while under_way:
            done, _ = watch.wait(list(under_way))
            yield _fetched(done[0], under_way.pop(done[0]))
    finally:
        for ref in under_way:
            ray.cancel(ref)  # not by force: Ray 2.60 can abort this process when a task ends while it is killed


def _fetched(ref: ray.ObjectRef, job: AttackJob) -> AttackResult:
    try:
        return cast(AttackResult, ray.get(ref))
    except RayError as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        return failed(job, f"{type(error).__name__}: {lines[-1]}")
