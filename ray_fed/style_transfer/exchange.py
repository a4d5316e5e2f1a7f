"""Who asks silos for styles and brokers them: in this process here, on Ray in actors/style_exchange.py.

Law: both give equal results for equal specs, seeds and calls. The broker hands messages on; it does not look at them.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch

from ray_fed.federation.cohort import LocalCohort
from ray_fed.federation.coordinator import Agreement, Coordinator
from ray_fed.federation.job import Job, RoundRecord
from ray_fed.federation.messages import Artifact
from ray_fed.federation.silo import make_silo
from ray_fed.federation.strategies import State
from ray_fed.federation.task import SiloSpec
from ray_fed.style_transfer.task import FedTransferTask


class MethodCoordinator(Protocol):
    """What an experiment asks of the coordinator of one method; every record carries the strategy's state."""

    def agree(self) -> Agreement: ...

    def run(self, job: Job, after_round: int = 0, state: State | None = None) -> Iterator[RoundRecord]: ...


class StyleFederation(Protocol):
    """Silos that stand for the duration of a run."""

    notices: list[str]

    def query(self, silos: Sequence[str], query: str, *given: Any) -> dict[str, Artifact]:
        """Put one query to several silos at once."""
        ...

    def exchange(self, silos: Sequence[str], out: str, back: str, *given: Any) -> dict[tuple[str, str], int]:
        """Let every silo answer `out` and take all others' answers with `back`: (sender, receiver) -> bytes."""
        ...

    def coordinator(self, task: FedTransferTask) -> contextlib.AbstractContextManager[MethodCoordinator]: ...


class LocalStyleFederation:
    """All silos in this process, one after another."""

    def __init__(self, specs: Sequence[SiloSpec], task: FedTransferTask):
        torch.set_num_threads(1)  # as in silo actors: sums over several threads differ in the last bits
        self.task, self.notices = task, []
        self._specs = {spec.name: spec for spec in specs}
        self.silos = {spec.name: make_silo(spec, task) for spec in specs}
        for silo in self.silos.values():
            silo.open()

    def query(self, silos: Sequence[str], query: str, *given: Any) -> dict[str, Artifact]:
        return {name: self.silos[name].query(query, *given) for name in silos}

    def exchange(self, silos: Sequence[str], out: str, back: str, *given: Any) -> dict[tuple[str, str], int]:
        made = self.query(silos, out, *given)
        return {
            (sender, receiver): int(self.silos[receiver].query(back, *given, made[sender]).facts["bytes"])
            for sender, receiver in pairs_of(silos)
        }

    @contextlib.contextmanager
    def coordinator(self, task: FedTransferTask) -> Iterator[MethodCoordinator]:
        cohort = LocalCohort([], task)
        cohort.silos.update(self.silos)
        cohort._specs, cohort._task = self._specs, self.task
        yield Coordinator(cohort, task, tuple(self.silos))


def pairs_of(silos: Sequence[str]) -> list[tuple[str, str]]:
    """Return (sender, receiver) of every pair of different silos."""
    return [(sender, receiver) for sender in silos for receiver in silos if sender != receiver]


def total_bytes(exchanged: Mapping[tuple[str, str], int]) -> int:
    """Return the bytes of an exchange, each message counted once up and once down."""
    up = {sender: size for (sender, _), size in exchanged.items()}
    return sum(exchanged.values()) + sum(up.values())
