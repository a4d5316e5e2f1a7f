"""Silos that stand while many runs come and go: who plays which silo now, and a fresh start for one that died."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import ray
from ray.exceptions import RayActorError

from actors import placement
from actors.cohort import RESTORE_SECONDS, value_of
from actors.federation import CONTROL_CPUS
from actors.silo import Handle, SiloActor
from actors.user_code import travelling
from ray_fed.errors import FedError
from ray_fed.federation.task import SiloSpec, Task
from ray_fed.learning.standardisation import Standardizer

ANSWER_SECONDS = 5.0
"""A silo that is busy with another run's round answers later; one that is dead is known at once."""


@ray.remote
class SiloBoard:
    """Says which actor stands for which silo. Runs in other processes read it when they begin."""

    def __init__(self, silos: Mapping[str, Handle]):
        self.silos = dict(silos)

    @ray.method
    def read(self) -> dict[str, Handle]:
        return self.silos

    @ray.method
    def write(self, silos: Mapping[str, Handle]) -> None:
        self.silos = dict(silos)


def read_board(board: Handle) -> dict[str, Handle]:
    """Return silo -> actor as of now."""
    return value_of(board.read.remote(), "coordinator", "looking for the silos")


@dataclass
class SharedSilos:
    """The driver's end of silos that have agreed and serve several sessions, one after another or side by side."""

    silos: dict[str, Handle]
    specs: Mapping[str, SiloSpec]
    """As they were placed."""
    task: Task
    standardizer: Standardizer | None
    board: Handle

    @classmethod
    def of(
        cls, silos: Mapping[str, Handle], specs: Sequence[SiloSpec], task: Task, standardizer: Standardizer | None
    ) -> "SharedSilos":
        """Put standing silos up on a board."""
        settled, _ = placement.settle(specs, placement.offers())
        board = SiloBoard.options(num_cpus=CONTROL_CPUS).remote(silos)
        return cls(dict(silos), {spec.name: spec for spec in settled}, task, standardizer, board)

    def end_lease(self, session: str) -> None:
        """Free what a session holds in every silo. Its run may have done so; one that was killed could not."""
        for silo in self.silos.values():
            silo.close_session.remote(session)

    def mend(self) -> dict[str, str]:
        """Start again every silo whose process is gone; return silo -> why not, for those that did not come back."""
        failed = {}
        for name in self._dead():
            spec, task = self.specs[name], travelling(self.task)
            actor = SiloActor.options(**placement.actor_options(spec)).remote(spec, task)
            try:
                value_of(actor.restore.remote(self.standardizer, []), name, "starting again", RESTORE_SECONDS)
            except FedError as error:
                failed[name] = str(error)
            self.silos[name] = actor
        value_of(self.board.write.remote(self.silos), "coordinator", "noting the silos")
        return failed

    def _dead(self) -> list[str]:
        refs = {silo.__ray_ready__.remote(): name for name, silo in self.silos.items()}
        answered, _ = ray.wait(list(refs), num_returns=len(refs), timeout=ANSWER_SECONDS)
        return [refs[ref] for ref in answered if not _is_alive(ref)]


def _is_alive(ref: "ray.ObjectRef") -> bool:
    try:
        ray.get(ref)
    except RayActorError:
        return False
    return True
