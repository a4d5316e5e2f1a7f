"""Library builds and transfer searches as Ray tasks."""

import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import ray
from ray.exceptions import RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors.egress_block import ClosedEgress, lifted
from actors.owned import owned, owners_site_file
from actors.placement import check_tasks, cpus_of
from actors.waiting import TaskWatch
from ray_fed.errors import FedError
from ray_fed.model_library.building import BuildJob, BuildResult, run_job
from ray_fed.model_library.cards import PackedModel
from ray_fed.model_library.descriptors import make_descriptor
from ray_fed.model_library.guarded_search import GuardedSearch
from ray_fed.model_library.heads import find_head
from ray_fed.model_library.predictors import predict
from ray_fed.model_library.property_tables import PropertyTable
from ray_fed.model_library.selection import Draw, Protocol, SourceFeatures, TransferTarget, one_draw
from ray_fed.model_library.silo_search import SiloErrors, SiloTarget, search
from ray_fed.model_library.store import Library

TASKS_PER_CPU = 2
"""Tasks under way per core: the next one waits when one ends, and no more results than this wait for the driver."""


def _got(refs: Any) -> Any:
    """Return the values; our own errors arrive as themselves, without Ray's traceback around them."""
    try:
        return ray.get(refs)
    except RayTaskError as error:
        cause = getattr(error, "cause", None)
        while isinstance(cause, RayTaskError):
            cause = cause.cause
        if isinstance(cause, FedError):
            raise cause from None
        raise


@ray.remote(num_cpus=1)
def _build(job: BuildJob, table: PropertyTable) -> BuildResult:
    import torch

    torch.set_num_threads(1)
    return run_job(job, table)


def build(jobs: Sequence[BuildJob], tables: Mapping[str, PropertyTable]) -> Iterator[BuildResult]:
    """Yield the results of the jobs as they end. A table goes into the object store once; memory is bounded by the
    tasks under way, not by the number of jobs."""
    check_tasks("a library build", num_cpus=1, num_gpus=0)
    watch = TaskWatch("a library build", num_cpus=1, num_gpus=0)
    stored = {key: ray.put(tables[key]) for key in {job.table for job in jobs}}
    room = max(1, int(ray.cluster_resources().get("CPU", 1))) * TASKS_PER_CPU
    waiting, running = list(reversed(jobs)), []
    while waiting or running:
        while waiting and len(running) < room:
            job = waiting.pop()
            running.append(_build.remote(job, stored[job.table]))
        done, running = watch.wait(running)
        yield from _got(done)


@ray.remote(num_cpus=1)
def _draw(target: TransferTarget, sources: SourceFeatures, head: str, protocol: Protocol, number: int) -> Draw:
    return one_draw(target, sources, find_head(head), protocol, number)


def draws(target: TransferTarget, sources: SourceFeatures, head: str, protocol: Protocol, count: int) -> list[Draw]:
    """Return `count` draws of a transfer study, one task each; target and sources are stored once."""
    check_tasks("a draw of a transfer", num_cpus=1, num_gpus=0)
    watch = TaskWatch("a draw of a transfer", num_cpus=1, num_gpus=0)
    stored = ray.put(target), ray.put(sources)
    return _got(watch.until_first([_draw.remote(*stored, head, protocol, number) for number in range(count)]))


@ray.remote(num_cpus=0)
@owned
class LibrarySilo:
    """`SearchingSilo` behind its boundary. The table is opened here; models come in, errors go out."""

    def __init__(self, name: str, target: SiloTarget):
        block = ClosedEgress(name)
        self.silo = GuardedSearch(name, target, block, redirects_output=True, site_file=owners_site_file())

    @ray.method
    def take(self, models: list[PackedModel], layers: str) -> int:
        return self.silo.take(models, layers)

    @ray.method
    def search(self, head: str, protocol: Protocol, count: int) -> list[SiloErrors]:
        return self.silo.search(protocol, functools.partial(_searched_here, head, protocol, count))


def _searched_here(
    head: str, protocol: Protocol, count: int, prepared: tuple[TransferTarget, SourceFeatures], per_source: bool
) -> list[SiloErrors | FedError]:
    """Search in tasks pinned to this node: the features of the silo's rows never leave its object store."""
    node = ray.get_runtime_context().get_node_id()
    here = NodeAffinitySchedulingStrategy(node, soft=False)
    with lifted():
        if cpus_of(node) < 1:  # such a node would never run a task
            return [_searched(prepared, head, protocol, number, per_source) for number in range(count)]
        stored, task = ray.put(prepared), _search.options(scheduling_strategy=here)
        return ray.get([task.remote(stored, head, protocol, number, per_source) for number in range(count)])


def _searched(
    prepared: tuple[TransferTarget, SourceFeatures], head: str, protocol: Protocol, number: int, per_source: bool
) -> SiloErrors | FedError:
    """An error of ours is an answer, too: what of it may be told is up to the silo's boundary."""
    try:
        return search(prepared, head, protocol, number, per_source)
    except FedError as error:
        return error


_search: Any = ray.remote(num_cpus=1)(_searched)


def search_at(
    silo: Any, models: Sequence[PackedModel], protocol: Protocol, head: str, count: int, layers: str = "last"
) -> list[SiloErrors]:
    """Send models to a silo and return what its search found."""
    _got(silo.take.remote(list(models), layers))
    return _got(silo.search.remote(head, protocol, count))


@ray.remote(num_cpus=0)
class _Predictor:
    def predict(self, library: str, model_id: str, frame: pd.DataFrame) -> np.ndarray:
        arrays, card = Library.open(library).load(model_id)
        features, _ = make_descriptor(str(card.descriptor["name"])).transform(frame)
        return predict(arrays, card, features)


def predict_with(library: str, model_id: str, frame: pd.DataFrame) -> np.ndarray:
    """Return the predictions that an actor of its own makes with a model of a library."""
    actor: Any = _Predictor.remote()
    return _got(actor.predict.remote(str(Path(library).absolute()), model_id, frame))
