"""Letters of a Flower ServerApp to silos that are actors."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError

from actors.cohort import DEATH, value_of
from actors.federation import SiloActors
from ray_fed.errors import FedError, SiloFailed
from ray_fed.federation.messages import Reply
from ray_fed.flower.app_task import ANSWER
from ray_fed.flower.records import Letter

MOST_RESTARTS = 3
"""Of one silo in a run."""


@dataclass
class Ticket:
    """A letter on its way."""

    silo: str
    number: int
    letter: Letter
    ref: Any


class RayMessenger:
    """See `ray_fed.flower.grid.Messenger`. A silo that dies is started again and gets its letter once more."""

    def __init__(self, actors: SiloActors):
        self.actors, self.silos = actors, tuple(actors.handles)
        self.restarts = dict.fromkeys(self.silos, 0)
        self._stored: dict[int, tuple[Any, Any]] = {}

    def submit(self, silo: str, number: int, letter: Letter) -> Ticket:
        return Ticket(silo, number, letter, self._send(silo, number, letter))

    def _send(self, silo: str, number: int, letter: Letter) -> Any:
        content = self._put_once(letter.content)
        return self.actors.handles[silo].query.remote(ANSWER, number, letter.metadata, content)

    def _put_once(self, content: Any) -> Any:
        """Put what many letters share into the object store once; what was shared before is let go."""
        if id(content) not in self._stored:
            self._stored = {id(content): (content, ray.put(content))}
        return self._stored[id(content)][1]

    def is_ready(self, ticket: Ticket) -> bool:
        return bool(ray.wait([ticket.ref], timeout=0)[0])

    def answer(self, ticket: Ticket, timeout: float | None) -> Reply:
        try:
            ready, _ = ray.wait([ticket.ref], timeout=timeout)
            if not ready:
                raise TimeoutError(ticket.silo)
            return value_of(ticket.ref, ticket.silo, "answering a message")
        except GetTimeoutError as error:
            raise TimeoutError(ticket.silo) from error
        except FedError as error:
            if not isinstance(error.__cause__, RayActorError) or self.restarts[ticket.silo] >= MOST_RESTARTS:
                raise
        return self._again(ticket, timeout)

    def _again(self, ticket: Ticket, timeout: float | None) -> Reply:
        """Start a silo again that died; its client's state stands on its disk."""
        silo = ticket.silo
        self.restarts[silo] += 1
        spec = next(spec for spec in self.actors.specs if spec.name == silo)
        ray.kill(self.actors.handles[silo])
        self.actors.start(spec)
        ticket.ref = self._send(silo, ticket.number, ticket.letter)
        try:
            return self.answer(ticket, timeout)
        except SiloFailed as error:
            raise SiloFailed(silo, "answering a message", f"{DEATH}, and again when it was started again") from error


def restarted(messenger: RayMessenger) -> Mapping[str, int]:
    """Return silo -> how often it was started again, of those that were."""
    return {silo: count for silo, count in messenger.restarts.items() if count}
