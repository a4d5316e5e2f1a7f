"""A common test set behind the boundary of whoever owns it: the same calls as `Evaluator`, through the same gate.

What leaves are a fingerprint and scores over all rows. Single predictions beside true values are the rows themselves;
they leave where the owner says `test_set: public`, or where who asks has shown that it has the same files
(`Task.possession`): in a study one and the same person plays all parts.
"""

import contextlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ray_fed.errors import DataError, Trouble
from ray_fed.federation.messages import MAX_SUM, Counts, Vector
from ray_fed.federation.silo import Evaluator
from ray_fed.federation.task import SiloSpec
from ray_fed.learning.standardisation import Standardizer
from ray_fed.metrics import Scores
from ray_fed.perimeter.boundary import EgressBlock, EgressBoundary
from ray_fed.perimeter.checks import (
    SCORES,
    check_counts,
    checked_fingerprint,
    checked_scores,
    digest_counts,
    largest,
    num_models,
)
from ray_fed.perimeter.gate import Gate, MessageKind, Request
from ray_fed.perimeter.insistence import FEWER
from ray_fed.perimeter.ledger import MessageDigest, message_digest
from ray_fed.perimeter.policy import DECLARED

MOST_VALUES = 2048
"""Of one row: numbers and chances of classes."""


def check_test_fingerprint(gate: Gate, fingerprint: Any, request: Request) -> dict[str, object]:  # noqa: ARG001
    return checked_fingerprint(gate, fingerprint)


def check_test_scores(gate: Gate, by_model: Any, request: Request) -> dict[str, Scores]:
    fits = type(by_model) is dict and tuple(by_model) == request.models
    gate.require(fits, "metrics", "they must be those of the models asked for")
    return {model: checked_scores(gate, scores, request) for model, scores in by_model.items()}


def check_predictions(gate: Gate, shown: Any, request: Request) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """True values and predictions of single rows, of a public test set only."""
    remedy = f"only scores leave this test set; its owner may say 'silos: {{{gate.silo}: {{test_set: public}}}}'"
    gate.require(request.is_known, "predictions", remedy)
    is_pair = type(shown) is tuple and len(shown) == 2 and type(shown[1]) is dict
    gate.require(is_pair and tuple(shown[1]) == request.models, "predictions", "they must be those asked for")
    true, predicted = shown
    for values in (true, *predicted.values()):
        is_table = type(values) is np.ndarray and values.dtype.kind in "fiu" and 1 <= values.ndim <= 2
        gate.require(is_table and len(values) == len(true), "predictions", "they must be arrays of numbers by row")
        is_small = np.prod(values.shape[1:]) <= MOST_VALUES
        gate.require(bool(is_small), "predictions", f"they have more than {MOST_VALUES} values for each row")
        is_missing = np.isnan(values) if values is true else np.zeros(values.shape, bool)  # a row without that target
        is_finite = bool((is_missing | (np.abs(values) <= MAX_SUM)).all())
        gate.require(is_finite, "predictions", "they have values that are not finite")
    return true, predicted


def _digest(kind: str, message: Any) -> MessageDigest:
    return message_digest(kind, message, (kind,))


KINDS = {
    "description": MessageKind(dict, check_test_fingerprint, _digest),
    "metrics": MessageKind(dict, check_test_scores, _digest, parts=SCORES),
    "counts": MessageKind(Counts, check_counts, digest_counts),
    "predictions": MessageKind(tuple, check_predictions, _digest),
}


class GuardedEvaluator(EgressBoundary):
    """See `Evaluator` for what the calls mean."""

    evaluator: Evaluator

    def __init__(
        self,
        spec: SiloSpec,
        make: Callable[[], Evaluator],
        block: EgressBlock = contextlib.nullcontext,
        redirects_output: bool = False,
        site_file: Path | None = None,
    ):
        super().__init__(spec, KINDS, block, redirects_output, site_file)
        self._num_marked = 0
        self._build(lambda: self._install(make()))

    def _install(self, evaluator: Evaluator) -> None:
        evaluator.resolution = self.site.policy.resolution
        evaluator.is_public = self.site.policy.test_set == "public"
        self.evaluator = evaluator

    def open(self) -> dict[str, object]:
        doing = "opening the test set"
        names = self._run(doing, lambda: [metric.name for metric in self.evaluator.task.metrics])
        if DECLARED in self.site.policy.metrics:
            self.gate.metrics |= frozenset(name for name in names if type(name) is str)
        found = self._run(doing, lambda: self.evaluator.open())
        self._require_enough_rows(doing, found)
        return self._release(doing, found, Request("description"))

    def prepare(self, standardizer: Standardizer | None) -> None:
        self._run("standardising", lambda: self.evaluator.prepare(standardizer))

    def evaluate(self, models: Mapping[str, Vector]) -> dict[str, Scores]:
        is_known = self._run("evaluating", lambda: self.evaluator.is_known) is True
        request = Request("metrics", models=tuple(models), is_known=is_known)
        self._check("evaluating", lambda: self._count_evaluation(request, len(models)), request)
        return self._run_and_release("evaluating", lambda: self.evaluator.evaluate(models), request)

    def predict(self, models: Mapping[str, Vector]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        doing = "predicting"
        is_known = self._run(doing, lambda: self.evaluator.is_known) is True
        request = Request("predictions", models=tuple(models), is_known=is_known)
        return self._run_and_release(doing, lambda: self.evaluator.predict(models), request)

    def count(self, question: str, *given: Any) -> Counts:
        doing = f"answering '{question}'"
        is_known = self._run(doing, lambda: self.evaluator.is_known) is True
        request = Request("counts", question, vector=largest(given), is_known=is_known)
        self._check(doing, lambda: self._count_evaluation(request, num_models(given)), request)
        return self._run_and_release(doing, lambda: self.evaluator.count(question, *given), request)

    def _count_evaluation(self, request: Request, num_models: int) -> None:
        """Refuse more models than may be marked on rows that who asks does not have."""
        self._num_marked += 0 if request.is_known else num_models
        most = self.site.policy.max_evaluations_per_run
        reason = f"{self._num_marked} models in one run; max_evaluations_per_run={most}; {FEWER}"
        self.gate.require(self._num_marked <= most, "metrics", reason)

    def _require_enough_rows(self, doing: str, found: Any) -> None:
        """Of a test set with too few rows, as of one with none, nothing is told."""
        count = found.get("num_examples") if type(found) is dict else None
        if type(count) is int and count < self.site.policy.min_examples:
            error = DataError(f"{count} rows", failure=Trouble.TOO_FEW_ROWS)
            raise self._error_for_coordinator(doing, error)
