"""What FedTransfer asks of silos besides training; here of silos in this process, for Ray see actors/federation.py.

Law: both give equal results for equal specs, seeds and calls. Who passes messages on does not look at them.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from ray_fed.federation.cohort import LocalCohort
from ray_fed.federation.coordinator import Agreement, Coordinator
from ray_fed.federation.messages import Artifact
from ray_fed.federation.rounds.job import Job, RoundRecord
from ray_fed.federation.strategies import State
from ray_fed.federation.task import SiloSpec
from ray_fed.style_transfer.task import FedTransferTask


class MethodCoordinator(Protocol):
    """What an experiment asks of the coordinator of one method."""

    def agree(self) -> Agreement: ...

    def run(self, job: Job, after_round: int = 0, state: State | None = None) -> Iterator[RoundRecord]: ...


class StyleFederation(Protocol):
    """Silos whose data are open, for the duration of a run."""

    notices: list[str]

    def query(self, silos: Sequence[str], query: str, *given: Any) -> dict[str, Artifact]:
        """Put one query to several silos at once."""
        ...

    def exchange(self, silos: Sequence[str], out: str, back: str, *given: Any) -> dict[tuple[str, str], int]:
        """Let every silo answer `out` and take all others' answers with `back`: (sender, receiver) -> bytes."""
        ...

    def coordinator(
        self, task: FedTransferTask, every_state: bool = False
    ) -> contextlib.AbstractContextManager[MethodCoordinator]:
        """Return a coordinator of one method, `FedTransferTask.of(method)`. every_state: its records all carry the
        strategy's state."""
        ...


class LocalStyleFederation:
    """All silos in this process, one after another."""

    def __init__(self, specs: Sequence[SiloSpec], task: FedTransferTask):
        self.cohort, self.notices = LocalCohort(specs, task), []
        self.cohort.open()

    def query(self, silos: Sequence[str], query: str, *given: Any) -> dict[str, Artifact]:
        return {name: self.cohort.silos[name].query(query, *given) for name in silos}

    def exchange(self, silos: Sequence[str], out: str, back: str, *given: Any) -> dict[tuple[str, str], int]:
        made = self.query(silos, out, *given)
        return {
            (sender, receiver): int(self.cohort.silos[receiver].query(back, *given, made[sender]).facts["bytes"])
            for sender in silos
            for receiver in silos
            if sender != receiver
        }

    @contextlib.contextmanager
    def coordinator(self, task: FedTransferTask, every_state: bool = False) -> Iterator[MethodCoordinator]:  # noqa: ARG002
        yield Coordinator(self.cohort, task, tuple(self.cohort.silos))


def total_bytes(exchanged: Mapping[tuple[str, str], int]) -> int:
    """Return the bytes of an exchange, each message counted once up and once down."""
    up = {sender: size for (sender, _), size in exchanged.items()}
    return sum(exchanged.values()) + sum(up.values())
