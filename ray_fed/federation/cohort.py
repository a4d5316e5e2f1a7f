"""Cohort: the one seam between the maths of a federation and the machines it runs on."""

import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch

from ray_fed.errors import FedError, SiloRefused
from ray_fed.federation.messages import (
    Arrived,
    Artifact,
    Counts,
    Evaluations,
    JoinRefused,
    Metrics,
    Raised,
    Restarted,
    SessionSpec,
    SiloDescription,
    SiloEvent,
    Vector,
)
from ray_fed.federation.silo import Evaluator, make_silo
from ray_fed.federation.task import SiloSpec, Task
from ray_fed.learning.standardisation import ColumnMoments, Standardizer
from ray_fed.metrics import Scores

RESTORE_SECONDS = 120.0
"""A new process imports torch and reads the silo's data before it can answer."""


class Cohort(Protocol):
    """The silos of a federation and the evaluator, wherever they are.

    Law: for the same specs, seed and calls, every cohort returns bit-equal values; only the order in which `fit`
    yields, and the seconds, may differ.
    """

    def open(self) -> dict[str, SiloDescription]:
        """Let the silos that are there open their data."""
        ...

    def absent(self) -> dict[str, str]:
        """Return silo -> why, of those that were not there when the others opened their data, and have not come since.

        They are invited when the others are prepared; later comes a `Restarted` with a description, or a `JoinRefused`.
        """
        ...

    def moments(self, silos: Iterable[str]) -> dict[str, ColumnMoments]: ...

    def prepare(self, standardizer: Standardizer | None) -> None: ...

    def open_session(self, specs: Mapping[str, SessionSpec]) -> None: ...

    def close_session(self, session: str, silos: Iterable[str]) -> None: ...

    def submit(self, session: str, server_round: int, vectors: Mapping[str, Vector]) -> None:
        """Send each named silo its vector to train from; returns at once."""
        ...

    def next_event(self, timeout: float | None = None) -> SiloEvent | None:
        """Wait for the next answer of any silo; None when none came within `timeout` seconds."""
        ...

    def sums_updates(self) -> bool:
        """Whether updates of several silos come as one sum, from hubs on their way (messages.RelayedUpdate)."""
        ...

    def is_waiting(self) -> bool:
        """Whether an event is still to come: without one, `next_event` returns at once."""
        ...

    def restart(self, silo: str) -> None:
        """Start a silo again from its specification; a `Restarted` or `Died` answer follows."""
        ...

    def evaluate(self, session: str, silos: Iterable[str], models: Mapping[str, Vector]) -> Evaluations:
        """Return silo -> model -> metrics, or what it raised instead, of those silos that answered."""
        ...

    def query(self, query: str, given: Mapping[str, tuple]) -> "dict[str, Artifact | Raised]":
        """Put one of the further questions to several silos at once; return the answers, or what a silo raised."""
        ...

    def count(self, question: str, given: Mapping[str, tuple]) -> "dict[str, Counts | Raised]":
        """Put a question for counts of rows to several silos at once; return the counts, or what a silo raised."""
        ...

    def count_test(self, question: str, given: tuple) -> Counts | None:
        """Put it to who holds the common test set; None when there is none. PerimeterRefused where its owner forbids
        it."""
        ...

    def evaluate_test(self, models: Mapping[str, Vector]) -> dict[str, Scores] | None:
        """Return model -> errors on the common test set, None when there is none."""
        ...

    def predict_test(self, models: Mapping[str, Vector]) -> tuple[np.ndarray, dict[str, np.ndarray]] | None: ...

    def test_fingerprint(self) -> dict[str, object] | None: ...


class Attendance:
    """Which silos of a cohort are there, where they come and go on their own: what cohorts of other machines have in
    common."""

    silos: dict[str, Any]
    task: Task | None

    def __init__(self, absent: Mapping[str, str]):
        self._absent = dict(absent)
        """Silo -> why it is not there."""
        self._fingerprint: dict[str, object] | None = None
        """Of the common test set."""

    def absent(self) -> dict[str, str]:
        return dict(self._absent)

    def test_fingerprint(self) -> dict[str, object] | None:
        return self._fingerprint

    def _present(self) -> list[str]:
        return [name for name in self.silos if name not in self._absent]

    def _joined(self, description: SiloDescription) -> Restarted | JoinRefused:
        """Take in a silo that was absent when the others agreed, if it fits what they agreed on."""
        assert self.task is not None
        try:
            check_agreement(description.silo, description.agreement, self.task.agreement())
        except SiloRefused as error:
            return self._refuse_join(description.silo, str(error))
        del self._absent[description.silo]
        return Restarted(description.silo, description)

    def _refuse_join(self, name: str, reason: str) -> JoinRefused:
        self._absent[name] = f"it cannot join: {reason}"
        self._dismiss(name)
        return JoinRefused(name, self._absent[name])

    def _dismiss(self, name: str) -> None:
        """End a silo that cannot join."""
        raise NotImplementedError(type(self).__name__)  # abstract: each kind of cohort ends its own silos


class LocalCohort:
    """All silos in this process, one after another: the oracle of every test and the limit in every benchmark."""

    def __init__(self, specs: Sequence[SiloSpec], task: Task, test: SiloSpec | None = None):
        torch.set_num_threads(1)  # sums over several threads differ in the last bits; silo actors have one, too
        self.silos = {spec.name: make_silo(spec, task) for spec in specs}
        self.evaluator = Evaluator(test, task) if test else None
        self._fingerprint: dict[str, object] | None = None
        self._specs, self._task = {spec.name: spec for spec in specs}, task
        self._asked: deque[tuple[str, int, str, Vector]] = deque()
        self._back: deque[str] = deque()
        self._sessions: dict[str, Mapping[str, SessionSpec]] = {}

    def open(self) -> dict[str, SiloDescription]:
        descriptions = {name: silo.open() for name, silo in self.silos.items()}
        self._fingerprint = self.evaluator.open() if self.evaluator else None
        return descriptions

    def absent(self) -> dict[str, str]:
        return {}

    def test_fingerprint(self) -> dict[str, object] | None:
        return self._fingerprint

    def moments(self, silos: Iterable[str]) -> dict[str, ColumnMoments]:
        return {name: self.silos[name].moments() for name in silos}

    def prepare(self, standardizer: Standardizer | None) -> None:
        self._standardizer = standardizer
        for member in [*self.silos.values(), *([self.evaluator] if self.evaluator else [])]:
            member.prepare(standardizer)

    def open_session(self, specs: Mapping[str, SessionSpec]) -> None:
        for name, spec in specs.items():
            self._sessions[spec.session] = specs
            self.silos[name].open_session(spec)

    def close_session(self, session: str, silos: Iterable[str]) -> None:
        self._sessions.pop(session, None)
        for name in silos:
            self.silos[name].close_session(session)

    def submit(self, session: str, server_round: int, vectors: Mapping[str, Vector]) -> None:
        self._asked.extend((session, server_round, name, vector) for name, vector in vectors.items())

    def next_event(self, timeout: float | None = None) -> SiloEvent | None:  # noqa: ARG002
        if self._back:
            return Restarted(self._back.popleft())
        if not self._asked:
            return None
        session, server_round, name, vector = self._asked.popleft()
        try:
            silo = self.silos[name]
            return Arrived(name, server_round, silo.leaving(silo.fit(session, server_round, vector), vector))
        except Exception as error:
            return Raised(name, server_round, said_by(error))

    def sums_updates(self) -> bool:
        return False

    def is_waiting(self) -> bool:
        return bool(self._asked or self._back)

    def restart(self, silo: str) -> None:
        self.silos[silo] = make_silo(self._specs[silo], self._task)
        specs = [silos[silo] for silos in self._sessions.values() if silo in silos]
        self.silos[silo].restore(self._standardizer, specs)
        self._back.append(silo)

    def evaluate(self, session: str, silos: Iterable[str], models: Mapping[str, Vector]) -> Evaluations:
        return {name: self._evaluated(session, name, models) for name in silos}

    def _evaluated(self, session: str, name: str, models: Mapping[str, Vector]) -> Mapping[str, Metrics] | Raised:
        try:
            return self.silos[name].evaluate(session, models)
        except Exception as error:
            return Raised(name, 0, said_by(error))

    def query(self, query: str, given: Mapping[str, tuple]) -> dict[str, Artifact | Raised]:
        return {name: self._answered(query, name, parts) for name, parts in given.items()}

    def count(self, question: str, given: Mapping[str, tuple]) -> dict[str, Counts | Raised]:
        return {name: self._answered(question, name, parts) for name, parts in given.items()}

    def _answered(self, question: str, name: str, parts: tuple) -> Any:
        try:
            return self.silos[name].query(question, *parts)
        except Exception as error:
            return Raised(name, 0, said_by(error))

    def count_test(self, question: str, given: tuple) -> Counts | None:
        return self.evaluator.count(question, *given) if self.evaluator else None

    def evaluate_test(self, models: Mapping[str, Vector]) -> dict[str, Scores] | None:
        return self.evaluator.evaluate(models) if self.evaluator else None

    def predict_test(self, models: Mapping[str, Vector]) -> tuple[np.ndarray, dict[str, np.ndarray]] | None:
        return self.evaluator.predict(models) if self.evaluator else None


def check_agreement(silo: str, theirs: Mapping[str, str], ours: Mapping[str, str]) -> None:
    """Raise SiloRefused at the first field in which a silo differs from the federation."""
    for key, value in ours.items():
        if theirs.get(key) != value:
            raise SiloRefused(silo, key, repr(theirs.get(key)), repr(value))


def said_by(error: Exception) -> str:
    """Return an error in one line: our own as they are, others with their kind."""
    text = " ".join(str(error).split())
    return text if isinstance(error, FedError) else f"{type(error).__name__}: {text}"


def busy_seconds(start: float, arrivals: Sequence[tuple[float, float]]) -> float:
    """Return how long at least one silo was computing since `start`.

    `arrivals` holds (arrival time on the coordinator's clock, seconds computed). Each silo is taken to have computed
    right before its answer came, so no two clocks are compared.
    """
    busy, end = 0.0, start
    for begin, arrival in sorted((max(start, at - seconds), at) for at, seconds in arrivals):
        busy += max(0.0, arrival - max(begin, end))
        end = max(end, arrival)
    return busy


def now() -> float:
    return time.perf_counter()
