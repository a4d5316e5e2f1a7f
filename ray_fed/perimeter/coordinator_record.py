"""The coordinator's counterpart of the silos' ledgers: what it received, and every global model it made of it.

A `WitnessedCohort` notes each message by the same passage that its silo wrote down. The notes leave with the round's
record; who keeps the run writes them into a ledger of its own (ledger.py).
"""

from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

import numpy as np

from ray_fed.federation.cohort import Cohort
from ray_fed.federation.coordinator import Job, RoundRecord
from ray_fed.federation.messages import (
    Answer,
    Answered,
    Artifact,
    Back,
    Metrics,
    SessionSpec,
    SiloDescription,
    Vector,
)
from ray_fed.federation.strategies import Models
from ray_fed.learning.layout import Layout
from ray_fed.learning.scores import Scores
from ray_fed.learning.standardisation import ColumnMoments, Standardizer
from ray_fed.perimeter.handing_over import Note
from ray_fed.perimeter.message_digest import digest_of, tensors_digest, vector_digest


class WitnessedCohort:
    """A cohort that notes what comes back; see `Cohort`.

    Hashing needs no interpreter lock: one thread does it while the coordinator waits for the next answer.
    """

    def __init__(self, cohort: Cohort):
        self.cohort = cohort
        self._scribe = ThreadPoolExecutor(1, "notes")
        self._notes: list[Future[Note]] = []

    def take(self) -> tuple[Note, ...]:
        """Return the notes since the last call."""
        notes, self._notes = self._notes, []
        return tuple(note.result() for note in notes)

    def note(self, silo: str, message: object, session: str = "", server_round: int = 0) -> None:
        """Note a message that came from a silo."""
        self._notes.append(self._scribe.submit(_received, silo, message, session, server_round))

    def note_models(self, record: RoundRecord, job: Job, layout: Layout) -> None:
        """Note the digest of each model after a round."""
        models = job.strategy.models(record.state) if record.state is not None else record.models or {}
        self._notes.append(self._scribe.submit(_models, record, job, layout, models))

    # ---- what comes back

    def open(self) -> dict[str, SiloDescription]:
        return self._noted(self.cohort.open())

    def moments(self, silos: Iterable[str]) -> dict[str, ColumnMoments]:
        return self._noted(self.cohort.moments(silos))

    def next_event(self, timeout: float | None = None) -> Answer | None:
        answer = self.cohort.next_event(timeout)
        if isinstance(answer, Answered):
            self.note(answer.silo, answer.update, answer.update.session, answer.update.server_round)
        elif isinstance(answer, Back) and answer.description:
            self.note(answer.silo, answer.description)
        return answer

    def evaluate(
        self, session: str, silos: Iterable[str], models: Mapping[str, Vector]
    ) -> dict[str, dict[str, Metrics]]:
        return self._noted(self.cohort.evaluate(session, silos, models), session)

    def query(self, query: str, given: Mapping[str, tuple]) -> dict[str, Artifact]:
        return self._noted(self.cohort.query(query, given), query)

    def _noted(self, answers: dict, session: str = "") -> dict:
        for silo, message in answers.items():
            self.note(silo, message, session)
        return answers

    # ---- what goes out, and the evaluator, who is no silo

    def absent(self) -> dict[str, str]:
        return self.cohort.absent()

    def prepare(self, standardizer: Standardizer | None) -> None:
        self.cohort.prepare(standardizer)

    def open_session(self, specs: Mapping[str, SessionSpec]) -> None:
        self.cohort.open_session(specs)

    def close_session(self, session: str, silos: Iterable[str]) -> None:
        self.cohort.close_session(session, silos)

    def submit(self, session: str, server_round: int, vectors: Mapping[str, Vector]) -> None:
        self.cohort.submit(session, server_round, vectors)

    def restart(self, silo: str) -> None:
        self.cohort.restart(silo)

    def evaluate_test(self, models: Mapping[str, Vector]) -> dict[str, Scores] | None:
        return self.cohort.evaluate_test(models)

    def predict_test(self, models: Mapping[str, Vector]) -> tuple[np.ndarray, dict[str, np.ndarray]] | None:
        return self.cohort.predict_test(models)

    def test_fingerprint(self) -> dict[str, object] | None:
        return self.cohort.test_fingerprint()


def with_notes(
    records: Iterator[RoundRecord], job: Job, layout: Layout, cohort: WitnessedCohort
) -> Iterator[RoundRecord]:
    """Yield the records with the notes of their round: what was received, and the digest of each model made of it."""
    for record in records:
        cohort.note_models(record, job, layout)
        yield replace(record, notes=cohort.take())


def _received(silo: str, message: object, session: str, server_round: int) -> Note:
    facts = {**digest_of(message).facts(), "session": session, "round": server_round}
    return {"kind": "received", "silo": silo, "message": facts}


def _models(record: RoundRecord, job: Job, layout: Layout, models: Models) -> Note:
    note: dict[str, object] = {
        "kind": "model", "session": job.name, "round": record.server_round, "strategy": type(job.strategy).__name__,
        "participants": list(record.participants),
        "models": {name: vector_digest(vector) for name, vector in models.items()},
    }  # fmt: skip
    if record.server_round == job.num_rounds:
        tensors = {name: layout.unflatten(vector[: layout.size]) for name, vector in models.items()}
        note["tensors"] = {name: tensors_digest(arrays) for name, arrays in tensors.items()}
    return note
