"""JoinedCohort: silos of several kinds as one cohort."""

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ray_fed.federation.cohort import Cohort
from ray_fed.federation.messages import (
    Artifact,
    Counts,
    Evaluations,
    Raised,
    SessionSpec,
    SiloDescription,
    SiloEvent,
    Vector,
)
from ray_fed.learning.standardisation import ColumnMoments, Standardizer
from ray_fed.metrics import Scores

POLL_SECONDS = 0.001


class JoinedCohort:
    """Several cohorts as one, each with its own silos; at most one has the common test set."""

    def __init__(self, cohorts: Sequence[Cohort]):
        self.cohorts = tuple(cohorts)
        self._of: dict[str, Cohort] = {}
        for cohort in cohorts:
            self._of |= dict.fromkeys(cohort.silos, cohort)  # type: ignore[attr-defined]

    def open(self) -> dict[str, SiloDescription]:
        return _united(cohort.open() for cohort in self.cohorts)

    def absent(self) -> dict[str, str]:
        return _united(cohort.absent() for cohort in self.cohorts)

    def moments(self, silos: Iterable[str]) -> dict[str, ColumnMoments]:
        return _united(cohort.moments(names) for cohort, names in self._shares(dict.fromkeys(silos)))

    def prepare(self, standardizer: Standardizer | None) -> None:
        for cohort in self.cohorts:
            cohort.prepare(standardizer)

    def open_session(self, specs: Mapping[str, SessionSpec]) -> None:
        for cohort, share in self._shares(specs):
            cohort.open_session(share)

    def close_session(self, session: str, silos: Iterable[str]) -> None:
        for cohort, share in self._shares(dict.fromkeys(silos)):
            cohort.close_session(session, share)

    def submit(self, session: str, server_round: int, vectors: Mapping[str, Vector]) -> None:
        for cohort, share in self._shares(vectors):
            cohort.submit(session, server_round, share)

    def next_event(self, timeout: float | None = None) -> SiloEvent | None:
        limit = None if timeout is None else time.monotonic() + timeout
        while waiting := [cohort for cohort in self.cohorts if cohort.is_waiting()]:
            if len(waiting) == 1:
                return waiting[0].next_event(_left(limit))
            for cohort in waiting:
                event = cohort.next_event(POLL_SECONDS)
                if event is not None:
                    return event
            if limit is not None and time.monotonic() >= limit:
                return None
        return None

    def sums_updates(self) -> bool:
        return any(cohort.sums_updates() for cohort in self.cohorts)

    def is_waiting(self) -> bool:
        return any(cohort.is_waiting() for cohort in self.cohorts)

    def restart(self, silo: str) -> None:
        self._of[silo].restart(silo)

    def evaluate(self, session: str, silos: Iterable[str], models: Mapping[str, Vector]) -> Evaluations:
        shares = self._shares(dict.fromkeys(silos))
        return _united(cohort.evaluate(session, share, models) for cohort, share in shares)

    def query(self, query: str, given: Mapping[str, tuple]) -> "dict[str, Artifact | Raised]":
        return _united(cohort.query(query, share) for cohort, share in self._shares(given))

    def count(self, question: str, given: Mapping[str, tuple]) -> "dict[str, Counts | Raised]":
        return _united(cohort.count(question, share) for cohort, share in self._shares(given))

    def count_test(self, question: str, given: tuple) -> Counts | None:
        return _first(cohort.count_test(question, given) for cohort in self.cohorts)

    def evaluate_test(self, models: Mapping[str, Vector]) -> dict[str, Scores] | None:
        return _first(cohort.evaluate_test(models) for cohort in self.cohorts)

    def predict_test(self, models: Mapping[str, Vector]) -> tuple[np.ndarray, dict[str, np.ndarray]] | None:
        return _first(cohort.predict_test(models) for cohort in self.cohorts)

    def test_fingerprint(self) -> dict[str, object] | None:
        return _first(cohort.test_fingerprint() for cohort in self.cohorts)

    def _shares(self, by_silo: Mapping[str, Any]) -> list[tuple[Cohort, dict[str, Any]]]:
        """Return each cohort's part of something by silo; cohorts without any are left out."""
        parts = (
            (cohort, {name: by_silo[name] for name in by_silo if self._of[name] is cohort}) for cohort in self.cohorts
        )
        return [(cohort, part) for cohort, part in parts if part]


def _united(parts: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    return {name: value for part in parts for name, value in part.items()}


def _first(found: Iterable[Any]) -> Any:
    return next((each for each in found if each is not None), None)


def _left(limit: float | None) -> float | None:
    return None if limit is None else max(0.0, limit - time.monotonic())
