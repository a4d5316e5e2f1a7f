"""A silo and an evaluator with a mailbox around them: one actor each, on the node that holds the data."""

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import ray

from actors.egress_block import ClosedEgress
from actors.owned import owned, owners_site_file
from actors.same_package import check_this_process
from ray_fed.errors import PlacementError
from ray_fed.federation.messages import (
    Artifact,
    Counts,
    GradientObservation,
    MaskedUpdate,
    Metrics,
    SessionSpec,
    SiloDescription,
    Update,
    Vector,
)
from ray_fed.federation.silo import Evaluator, make_silo
from ray_fed.federation.task import SiloSpec, Task
from ray_fed.learning.standardisation import ColumnMoments, Standardizer
from ray_fed.metrics import Scores
from ray_fed.perimeter.guarded_evaluator import GuardedEvaluator
from ray_fed.perimeter.guarded_silo import GuardedSilo
from ray_fed.sites.requests import Invitation
from ray_fed.sites.site_file import read_site_file
from ray_fed.sites.tasks import accepted

Handle: TypeAlias = Any
"""A handle of one of the actors; Ray's stubs cannot name the proxy of a decorated class."""


@ray.remote
@owned
class SiloActor:
    """`Silo` behind its boundary. The device is read here, inside the actor, after Ray has reserved it.

    Nothing the silo's code returns, raises or prints leaves this process but through `GuardedSilo`.
    """

    def __init__(self, spec: SiloSpec, task: Task | Invitation):
        """task: or, at a site that its owner runs, an invitation: what it asks for is looked up in the owner's file."""
        self.name = spec.name
        _one_thread()
        check_this_process(f"silo '{spec.name}'")
        stand_at_site(spec)
        device, block, site_file = reserved_device(f"silo '{spec.name}'"), ClosedEgress(spec.name), owners_site_file()
        if isinstance(task, Invitation):
            invited = accepted(read_site_file(site_file), task)
            self.silo = GuardedSilo(
                invited.spec, lambda: make_silo(invited.spec, invited.make_task(), device), block,
                redirects_output=True, site=invited.site,
            )  # fmt: skip
            return
        make = functools.partial(make_silo, spec, task, device)
        self.silo = GuardedSilo(spec, make, block, redirects_output=True, site_file=site_file)

    def __repr__(self) -> str:
        return f"Silo({self.name})"

    @ray.method
    def open(self) -> SiloDescription:
        return self.silo.open()

    @ray.method
    def join(self, standardizer: Standardizer | None) -> SiloDescription:
        """Open the data of a silo that was not there when the others agreed, and take their scaler."""
        description = self.silo.open()
        self.silo.prepare(standardizer)
        return description

    @ray.method
    def moments(self) -> ColumnMoments:
        return self.silo.moments()

    @ray.method
    def prepare(self, standardizer: Standardizer | None) -> None:
        self.silo.prepare(standardizer)

    @ray.method
    def open_session(self, spec: SessionSpec) -> str:
        return self.silo.open_session(spec)

    @ray.method
    def restore(self, standardizer: Standardizer | None, sessions: list[SessionSpec]) -> None:
        self.silo.restore(standardizer, sessions)

    @ray.method
    def close_session(self, session: str) -> None:
        self.silo.close_session(session)

    @ray.method
    def fit(self, session: str, server_round: int, vector: Vector) -> Update | MaskedUpdate:
        return self.silo.fit(session, server_round, vector).packed()

    @ray.method
    def evaluate(self, session: str, names: tuple[str, ...], *vectors: Vector) -> dict[str, Metrics]:
        return self.silo.evaluate(session, dict(zip(names, vectors, strict=True)))

    @ray.method
    def observe(self, vector: Vector, num_examples: int) -> GradientObservation:
        return self.silo.observe(vector, num_examples)

    @ray.method
    def query(self, query: str, *given: Any) -> Artifact | Counts:
        """What is given may be refs of other silos' artifacts: Ray brings them here, past everybody else."""
        return self.silo.query(query, *given)

    @ray.method
    def receive_model(self, weights: np.ndarray, card: np.ndarray) -> None:
        self.silo.receive_model(weights, card)

    @ray.method
    def collect_ledger(self) -> tuple[bytes, str, str] | None:
        return self.silo.collect_ledger()


@ray.remote
@owned
class EvaluatorActor:
    """`Evaluator` behind its owner's boundary, like a silo's."""

    def __init__(self, spec: SiloSpec, task: Task):
        _one_thread()
        check_this_process(f"silo '{spec.name}'")
        stand_at_site(spec)
        block = ClosedEgress(spec.name)
        make = functools.partial(Evaluator, spec, task)
        self.silo = GuardedEvaluator(spec, make, block, redirects_output=True, site_file=owners_site_file())

    @ray.method
    def open(self) -> dict[str, object]:
        return self.silo.open()

    @ray.method
    def prepare(self, standardizer: Standardizer | None) -> None:
        self.silo.prepare(standardizer)

    @ray.method
    def evaluate(self, models: Mapping[str, Vector]) -> dict[str, Scores]:
        return self.silo.evaluate(models)

    @ray.method
    def count(self, question: str, *given: Any) -> Counts:
        return self.silo.count(question, *given)

    @ray.method
    def predict(self, models: Mapping[str, Vector]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        return self.silo.predict(models)


def reserved_device(whose: str) -> str:
    """Return "cuda:0" where Ray has reserved a GPU for this process, else "cpu".

    Ray narrows CUDA_VISIBLE_DEVICES to the reserved GPU, so it is number 0 here: PlacementError where that has not
    happened, or where torch cannot use it. Without a reservation no GPU is touched, even where one can be seen.
    """
    reserved = ray.get_runtime_context().get_accelerator_ids().get("GPU", [])
    return device_of(whose, reserved, os.environ.get("CUDA_VISIBLE_DEVICES"), cuda_trouble)


def device_of(whose: str, reserved: Sequence[str], visible: str | None, trouble: Callable[[], str]) -> str:
    """See `reserved_device`. trouble: why torch cannot use a GPU here, "" where it can."""
    if not reserved:
        return "cpu"
    if visible is None or visible.split(",") != list(reserved):
        raise PlacementError(
            f"{whose}: Ray reserved GPU {','.join(reserved)} for it, and CUDA_VISIBLE_DEVICES={visible} here: it might "
            "compute on another's; unset RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES where the node is started"
        )
    if why := trouble():
        raise PlacementError(
            f"{whose}: Ray reserved GPU {reserved[0]} for it, which torch cannot use: {why}; install a CUDA build of "
            "torch that fits the driver, or let it compute on the CPU: num_gpus=0"
        )
    return "cuda:0"


def cuda_trouble() -> str:
    """Return why torch cannot use a GPU in this process; "" where it can."""
    import torch

    if torch.version.cuda is None and torch.version.hip is None:
        return f"torch {torch.__version__} is built for the CPU"
    return "" if torch.cuda.is_available() else f"torch {torch.__version__} finds no usable driver (see nvidia-smi)"


def stand_at_site(spec: SiloSpec) -> None:
    """Raise PlacementError when the actor does not stand on a node labelled with the silo's site."""
    here = ray.get_runtime_context().get_node_labels().get("site", "")
    if spec.site and here != spec.site:
        raise PlacementError(f"silo '{spec.name}' belongs to site '{spec.site}' but was started at site '{here}'")


def _one_thread() -> None:
    """Sums over several threads differ in the last bits; one thread makes every cohort bit-equal."""
    import torch

    torch.set_num_threads(1)
