"""The coordinator's counterpart of the silos' ledgers: what it received, and every global model it made of it.

A `CoordinatorRecord` observes the coordinator and notes each message by the same digest that its silo wrote down. The
notes leave with the round's record; who keeps the run writes them into a ledger of its own (ledger.py).
"""

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np

from ray_fed.errors import FedError, SiloFailed
from ray_fed.federation.messages import RelayedUpdate
from ray_fed.federation.rounds.best_round import without_choice
from ray_fed.federation.rounds.job import Job, Observer, RoundRecord
from ray_fed.federation.task import Task
from ray_fed.perimeter.chain import MAX_LEDGER_BYTES, SUMMED
from ray_fed.perimeter.checks import digest_of
from ray_fed.perimeter.ledger import tensors_digest, vector_digest
from ray_fed.perimeter.policy import PUBLIC_KEY

Note = Mapping[str, object]
"""One line to be, without number, time and chain."""


@dataclass(frozen=True)
class SiloLedger:
    """A silo's ledger as it was collected."""

    content: bytes = field(repr=False)
    head: str
    """SHA-256 of its last line."""
    public_key: str

    @classmethod
    def handed_over(cls, silo: str, said: object) -> "SiloLedger | None":
        """Return what a silo handed over, None where its owner keeps it; SiloFailed names a silo that says anything
        else. What stands in the ledger is looked at where it is verified."""
        if said is None:
            return None
        content, head, key = said if type(said) is tuple and len(said) == 3 else (None, None, None)
        is_ledger = type(content) is bytes and len(content) <= MAX_LEDGER_BYTES
        if not is_ledger or not all(type(text) is str and PUBLIC_KEY.fullmatch(text) for text in (head, key)):
            raise SiloFailed(silo, "handing over its ledger", "it handed over something else")
        return cls(content, head, key)  # type: ignore[arg-type]


@dataclass(frozen=True)
class CollectedLedgers:
    """What is collected at the end of a run: the silos' ledgers, and the coordinator's last notes."""

    silos: Mapping[str, SiloLedger] = field(default_factory=dict)
    notes: tuple[Note, ...] = ()
    missing: Mapping[str, str] = field(default_factory=dict)
    """Silo -> why its ledger did not come, though its owner has not said that it stays there."""


class Keeper(Protocol):
    """A cohort whose silos keep ledgers and may take models."""

    def collect_ledger(self, silo: str) -> tuple[bytes, str, str] | None: ...

    def receive_model(self, silo: str, weights: np.ndarray, card: np.ndarray) -> None: ...


def collected(keepers: Mapping[str, Keeper], record: "CoordinatorRecord | None") -> CollectedLedgers:
    """Fetch the silos' ledgers; one whose owner keeps it is left out."""
    found, missing = {}, {}
    for silo, keeper in keepers.items():
        try:
            ledger = SiloLedger.handed_over(silo, keeper.collect_ledger(silo))
        except FedError as error:
            missing[silo] = " ".join(str(error).split())
        else:
            found |= {silo: ledger} if ledger else {}
    return CollectedLedgers(found, record.take() if record else (), missing)


def handed_over(keepers: Mapping[str, Keeper], weights: np.ndarray, card: np.ndarray) -> dict[str, str]:
    """Hand the final model to every silo; return silo -> why it did not take it, "" where it did.

    weights, card: uint8 [n], the bytes of a .safetensors file and of its card.
    """
    reasons = {}
    for silo, keeper in keepers.items():
        try:
            keeper.receive_model(silo, weights, card)
            reasons[silo] = ""
        except FedError as error:
            reasons[silo] = " ".join(str(error).split())
    return reasons


class CoordinatorRecord(Observer):
    """Notes what comes back, and the digest of each model made of it.

    Hashing needs no interpreter lock: one thread does it while the coordinator waits for the next message.
    """

    def __init__(self, task: Task):
        self.task = task
        self._hashing = ThreadPoolExecutor(1, "notes")
        self._notes: list[Future[Note]] = []

    def take(self) -> tuple[Note, ...]:
        """Return the notes since the last call."""
        notes, self._notes = self._notes, []
        return tuple(note.result() for note in notes)

    def message_received(self, silo: str, message: object, session: str = "", server_round: int = 0) -> None:
        self._notes.append(self._hashing.submit(_received, silo, message, session, server_round))

    def round_ended(self, record: RoundRecord, job: Job) -> RoundRecord:
        """Return the record with the notes of its round."""
        self._notes.append(self._hashing.submit(_models, record, job, self.task))
        return replace(record, notes=self.take())


def _received(silo: str, message: object, session: str, server_round: int) -> Note:
    """Return the note of a message; of one that is none, that it came: the coordinator itself refuses it by name. What
    a hub has summed on the way has no digest here: its vector never came. With whose it was summed is noted."""
    if isinstance(message, RelayedUpdate):
        return {
            "kind": SUMMED, "silo": silo, "session": session, "round": server_round,
            "num_examples": message.num_examples, "summed_with": list(message.sum.silos),
        }  # fmt: skip
    try:
        digest = digest_of(message)
    except Exception:  # a foreign object may raise anything when it is looked at
        return {"kind": "malformed", "silo": silo, "session": session, "round": server_round}
    facts = {**digest.facts(), "session": session, "round": server_round}
    return {"kind": "received", "silo": silo, "message": facts}


def _models(record: RoundRecord, job: Job, task: Task) -> Note:
    models = record.models
    if models is None:
        models = job.strategy.models(without_choice(record.state)) if record.state is not None else {}
    note: dict[str, object] = {
        "kind": "model", "session": job.name, "round": record.server_round, "strategy": type(job.strategy).__name__,
        "num_rounds": record.num_rounds, "participants": list(record.participants),
        "models": {name: vector_digest(vector) for name, vector in models.items()},
    }  # fmt: skip
    if record.server_round == record.num_rounds:
        layout = task.layout(task.model(job.model_seed), job.any_plan.buffers)
        tensors = {name: layout.unflatten(vector[: layout.size]) for name, vector in models.items()}
        note["tensors"] = {name: tensors_digest(arrays) for name, arrays in tensors.items()}
    return note
