"""What a Flower ServerApp calls its grid: the way to the ClientApps, here to silos.

Answers come back in the order in which the messages were given, whichever silo was first: sums of floating-point
numbers have the same bits in every run. An error in a silo is an error message, as in Flower.
"""

import hashlib
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from ray_fed.errors import ConfigError, FedError, SiloFailed
from ray_fed.federation.cohort import said_by
from ray_fed.federation.messages import Reply
from ray_fed.flower.app_task import ANSWER
from ray_fed.flower.kept_replies import KeptReplies, Outcome
from ray_fed.flower.package import flower
from ray_fed.flower.records import Letter, content_of, letter_of, record_dict
from ray_fed.randomness import derived_seed

RUN_ID = 1
MOST_UNCOLLECTED = 64
"""Answers of a silo that are held for a ServerApp that may still pull them."""
NODE_BITS = 53
"""Of a node's number: a float64 has it exactly, and so has JSON."""


class Messenger(Protocol):
    """Brings letters to silos."""

    @property
    def silos(self) -> Sequence[str]: ...

    def submit(self, silo: str, number: int, letter: Letter) -> Any:
        """Send a letter, the silo's `number`-th; return a ticket for its answer."""
        ...

    def is_ready(self, ticket: Any) -> bool: ...

    def answer(self, ticket: Any, timeout: float | None) -> Reply:
        """Return the answer; a FedError names the silo, TimeoutError says that it is not there yet."""
        ...


class LocalMessenger:
    """To silos in this process, one letter at a time."""

    def __init__(self, silos: Mapping[str, Any]):
        self.silos, self._by_name, self._lock = tuple(silos), dict(silos), threading.Lock()

    def submit(self, silo: str, number: int, letter: Letter) -> Any:
        with self._lock:  # global generators are seeded for one client at a time
            try:
                return self._by_name[silo].query(ANSWER, number, letter.metadata, letter.content)
            except FedError as error:
                return error
            except Exception as error:
                return SiloFailed(silo, "answering a message", said_by(error))

    def is_ready(self, ticket: Any) -> bool:  # noqa: ARG002
        return True

    def answer(self, ticket: Any, timeout: float | None) -> Reply:  # noqa: ARG002
        if isinstance(ticket, Exception):
            raise ticket
        return ticket


class AnswerListener(Protocol):
    """Told of every message that was answered, or was not."""

    def on_answer(self, silo: str, message: Any, outcome: Outcome, num_bytes: int, seconds: float) -> None: ...


@dataclass
class Sent:
    """A message on its way, or with its answer."""

    message: Any
    silo: str
    number: int
    digest: str
    num_bytes: int
    since: float
    ticket: Any = field(default=None, repr=False)
    outcome: Outcome | None = None
    is_told: bool = False


class SiloGrid:
    """See `flwr.serverapp.Grid`; `as_grid` makes it one of that class."""

    def __init__(
        self,
        messenger: Messenger,
        watcher: AnswerListener,
        kept: KeptReplies | None = None,
        timeout: float | None = None,
    ):
        """kept: answers of the same run before it was broken off. timeout: most seconds for an answer, whatever the
        ServerApp allows."""
        self.messenger, self.watcher, self.kept, self.timeout = messenger, watcher, kept, timeout
        self.node_ids = {silo: node_id_of(silo) for silo in messenger.silos}
        self._silos = {number: silo for silo, number in self.node_ids.items()}
        self._numbers = dict.fromkeys(messenger.silos, 0)
        self._sent: dict[str, Sent] = {}
        self._lock = threading.RLock()
        self._run = flower("supercore.run").Run.create_empty(RUN_ID)

    def set_run(self, run: Any) -> None:
        self._run = run

    @property
    def run(self) -> Any:
        return self._run

    def create_message(
        self, content: Any, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Any:
        return flower("app").Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> list[int]:
        return list(self._silos)

    def push_messages(self, messages: Iterable[Any]) -> list[str]:
        """Send messages; return their ids. ConfigError for one to a node that is not there."""
        contents: dict[int, np.ndarray] = {}
        listed = list(messages)
        for message in listed:
            key = id(message.content)
            if key not in contents:
                contents[key] = content_of(message.content)
        with self._lock:
            return [self._push(message, contents[id(message.content)]) for message in listed]

    def pull_messages(self, message_ids: Iterable[str]) -> list[Any]:
        """Return the answers that are there."""
        ready = [one for one in message_ids if one in self._sent and self._is_ready(self._sent[one])]
        return [answer for one in ready if (answer := self._collect(one, None)) is not None]

    def send_and_receive(self, messages: Iterable[Any], *, timeout: float | None = None) -> list[Any]:
        """Return the answers, in the order of the messages; without those that are not there in time."""
        limits = [limit for limit in (timeout, self.timeout) if limit is not None]
        deadline = time.monotonic() + min(limits) if limits else None
        answers = [self._collect(one, deadline) for one in self.push_messages(messages)]
        return [answer for answer in answers if answer is not None]

    def settle(self) -> None:
        """Wait for the answers of all messages that nobody asked for."""
        for one in list(self._sent):
            self._collect(one, None)

    # ---- one message

    def _push(self, message: Any, content: np.ndarray) -> str:
        metadata = message.metadata
        silo = self._silos.get(metadata.dst_node_id)
        if silo is None:
            raise ConfigError(f"a message goes to node {metadata.dst_node_id}, and there are only {self.node_ids}")
        self._settle_before(silo)
        number = self._numbers[silo] = self._numbers[silo] + 1
        metadata.__dict__["_message_id"] = f"{silo}-{number}"
        head = f"{metadata.message_type}|{metadata.group_id}|".encode()
        digest = hashlib.sha256(head + content.tobytes()).hexdigest()
        sent = Sent(message, silo, number, digest, content.nbytes, time.monotonic())
        sent.outcome = self.kept.find(silo, number, digest) if self.kept else None
        if sent.outcome is None:
            sent.ticket = self.messenger.submit(silo, number, letter_of(message, content))
        self._sent[metadata.message_id] = sent
        return metadata.message_id

    def _settle_before(self, silo: str) -> None:
        """Write down what a silo answered to messages that nobody has collected, before it is sent another one; what
        is old by then, nobody will."""
        for message_id, sent in list(self._sent.items()):
            if sent.silo == silo and sent.outcome is None:
                self._wait(sent, None)
            if sent.silo == silo and sent.number <= self._numbers[silo] - MOST_UNCOLLECTED:
                del self._sent[message_id]

    def _is_ready(self, sent: Sent) -> bool:
        return sent.outcome is not None or self.messenger.is_ready(sent.ticket)

    def _collect(self, message_id: str, deadline: float | None) -> Any:
        """Return the answer as a Flower message, None where it is not there in time."""
        sent = self._sent.pop(message_id)
        outcome = self._wait(sent, deadline)
        return None if outcome.is_late else self._as_message(sent, outcome)

    def _wait(self, sent: Sent, deadline: float | None) -> Outcome:
        """Return what became of a message; the watcher hears of it once."""
        if sent.is_told and sent.outcome:
            return sent.outcome
        outcome = sent.outcome or self._asked(sent, deadline)
        sent.is_told = True
        self.watcher.on_answer(sent.silo, sent.message, outcome, sent.num_bytes, time.monotonic() - sent.since)
        return outcome

    def _asked(self, sent: Sent, deadline: float | None) -> Outcome:
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        try:
            sent.outcome = Outcome(records=self.messenger.answer(sent.ticket, left).records)
        except TimeoutError:
            seconds = time.monotonic() - sent.since
            return Outcome(error=f"no answer within {seconds:.0f} s; it may answer later, to nobody", is_late=True)
        except FedError as error:
            notes = "; ".join(getattr(error, "__notes__", ()))
            sent.outcome = Outcome(error=f"{error}; {notes}" if notes else str(error))
        if self.kept:
            self.kept.keep(sent.silo, sent.number, sent.digest, sent.outcome)
        return sent.outcome

    @staticmethod
    def _as_message(sent: Sent, outcome: Outcome) -> Any:
        app = flower("app")
        if outcome.error:
            code = flower("common.constant").ErrorCode.CLIENT_APP_RAISED_EXCEPTION
            answer = app.Message(app.Error(code, outcome.error), reply_to=sent.message)
        else:
            answer = app.Message(record_dict(outcome.records), reply_to=sent.message)
        answer.metadata.__dict__["_message_id"] = f"{sent.silo}-{sent.number}-reply"
        return answer


def node_id_of(silo: str) -> int:
    """Return the number by which Flower knows a silo: it depends on the name alone."""
    return derived_seed(0, "flower node", silo) >> (63 - NODE_BITS)


def as_grid(grid: SiloGrid) -> Any:
    """Return the grid as one of Flower's class, for apps that ask what it is."""
    made = object.__new__(type("SiloGrid", (SiloGrid, flower("serverapp").Grid), {}))
    made.__dict__ = grid.__dict__
    return made
