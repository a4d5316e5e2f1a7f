"""What a site may answer: the kinds of message that travel from it, errors among them, and the forms of those that are
not sent as they are. How they travel: wire.py."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import msgspec
import numpy as np
from msgspec import Struct

from ray_fed.errors import ConfigError, DataError, FedError, PerimeterRefused, SiloFailed
from ray_fed.federation.messages import (
    Artifact,
    Counts,
    GradientObservation,
    MaskedUpdate,
    Metrics,
    SiloDescription,
    Update,
)
from ray_fed.learning.standardisation import ColumnMoments
from ray_fed.metrics import ClassificationSums, MeanScores, RegressionSums, Scores, SeveralScores
from ray_fed.sites.wire import LONGEST_NAME, LONGEST_TEXT, Count, Name, Text, WireError, decode, printable


class LedgerCopy(Struct, frozen=True, forbid_unknown_fields=True):
    """A silo's ledger as its site hands it over."""

    lines: np.ndarray
    """uint8: the file."""
    head: Name
    public_key: Name


class ScoresForm(Struct, frozen=True, forbid_unknown_fields=True):
    """Sums of an evaluation: the name of their class, and its fields."""

    kind: Name
    sums: dict[Name, int | float | dict[Name, float]]
    counts: np.ndarray | None = None
    """int64 [confusion, then histograms] of a classification."""
    parts: dict[Name, "ScoresForm"] = {}
    """Target -> its scores, of a model with several."""


class MetricsForm(Struct, frozen=True, forbid_unknown_fields=True):
    """What a silo's evaluation of some models tells: model -> scores on training and on held-out rows."""

    silo: Name
    by_model: dict[Name, tuple[ScoresForm, ScoresForm]]


class FailureForm(Struct, frozen=True, forbid_unknown_fields=True):
    """An error of a silo or its site, in the words that its owner lets out."""

    error: Name
    """Class: one of `FAILURES`, or LOST."""
    args: tuple[Text | int, ...]


class NumbersForm(Struct, frozen=True, forbid_unknown_fields=True):
    """A silo's update without its vector."""

    num_examples: Count
    num_steps: Count
    loss: float
    seconds: float
    num_bytes: Count


class SumForm(Struct, frozen=True, forbid_unknown_fields=True):
    """What a round came to behind a hub: the exact sum of its silos' updates, and of each silo what it sent besides."""

    high: np.ndarray
    """int64 [len(vector)], with `low` the parts of an ExactWeightedSum; empty without an update."""
    low: np.ndarray
    numbers: dict[Name, NumbersForm]
    failures: dict[Name, Text]
    """Silo -> why it has no part in the sum."""
    lost: tuple[Name, ...] = ()
    """Silos whose process is gone."""


class MetricsOfManyForm(Struct, frozen=True, forbid_unknown_fields=True):
    metrics: dict[Name, MetricsForm]
    failures: dict[Name, Text]
    lost: tuple[Name, ...] = ()


class DigestForm(Struct, frozen=True, forbid_unknown_fields=True):
    digest: Name


LOST = "lost"
FAILED = "failed"
FAILURES: dict[str, type[FedError]] = {
    "SiloFailed": SiloFailed,
    "PerimeterRefused": PerimeterRefused,
    "DataError": DataError,
    "ConfigError": ConfigError,
}
SCORES: dict[str, type] = {"regression": RegressionSums, "means": MeanScores}
CLASSES, SEVERAL = "classes", "several"
"""Kinds of scores with counts, and of those that are made of the scores of each target."""
COUNTED = ("num_examples", "num_classes", "log_loss_steps")
"""Numbers of a classification beside its counts."""
ANSWERS: dict[str, type] = {
    "done": type(None),
    "description": SiloDescription,
    "moments": ColumnMoments,
    "digest": DigestForm,
    "update": Update,
    "masked": MaskedUpdate,
    "metrics": MetricsForm,
    "sum": SumForm,
    "metrics_of_many": MetricsOfManyForm,
    "artifact": Artifact,
    "counts": Counts,
    "observation": GradientObservation,
    "ledger": LedgerCopy,
    FAILED: FailureForm,
}
MAY_BE_NOT_FINITE = (Update, MaskedUpdate, NumbersForm, ScoresForm, Artifact)
"""Their numbers are judged elsewhere, with a word for the reason: by the guard of a round, by who reads metrics."""


def decode_answer(kind: str, body: bytes, payload: "memoryview | bytes" = b"") -> Any:
    """Return what travelled of an answer. WireError says what is wrong."""
    return decode(ANSWERS[kind], body, payload, lenient=MAY_BE_NOT_FINITE)


def answer_form(message: object, silo: str) -> tuple[str, object]:
    """Return (kind, what travels) of a message of a host. WireError for one that has no form."""
    if isinstance(message, str):
        return "digest", DigestForm(message)
    if isinstance(message, dict):
        return "metrics", metrics_form(message, silo)
    for kind, cls in ANSWERS.items():
        if type(message) is cls:
            return kind, message
    raise WireError(f"a {type(message).__name__} has no form on the wire")


def message_of(form: object) -> object:
    """Return the message that a host gave, from what travelled; WireError where a site made it up."""
    if isinstance(form, DigestForm):
        return form.digest
    if isinstance(form, MetricsForm):
        return {name: Metrics(form.silo, *map(_scores_of, both)) for name, both in form.by_model.items()}
    return form


def metrics_form(by_model: Mapping[str, Metrics], silo: str) -> MetricsForm:
    return MetricsForm(silo, {name: _scores_forms(metrics) for name, metrics in by_model.items()})


def _scores_forms(metrics: Metrics) -> tuple[ScoresForm, ScoresForm]:
    return _scores_form(metrics.train), _scores_form(metrics.held_out)


def _scores_form(scores: Scores) -> ScoresForm:
    if type(scores) is SeveralScores:
        parts = {target: _scores_form(part) for target, part in scores.parts.items()}
        return ScoresForm(SEVERAL, {"num_examples": scores.num_examples}, None, parts)
    if type(scores) is ClassificationSums:
        counts = np.array((*scores.confusion, *scores.histograms), np.int64)
        return ScoresForm(CLASSES, {name: getattr(scores, name) for name in COUNTED}, counts)
    for kind, cls in SCORES.items():
        if type(scores) is cls:
            return ScoresForm(kind, {each.name: getattr(scores, each.name) for each in fields(cls)})
    known = sorted([*SCORES, CLASSES, SEVERAL])
    raise WireError(f"scores of the class {type(scores).__name__} have no form on the wire; known: {known}")


def _scores_of(form: ScoresForm) -> Scores:
    try:
        if form.kind == SEVERAL:
            return _several_of(form)
        if form.kind == CLASSES:
            return _classes_of(form)
        return msgspec.convert(form.sums, SCORES[form.kind])
    except (ValueError, TypeError, KeyError):
        raise WireError("scores of an unknown class, or with other numbers than theirs") from None


def _several_of(form: ScoresForm) -> SeveralScores:
    """ValueError for scores that are none; parts of parts are none of a target."""
    if set(form.sums) != {"num_examples"} or any(part.kind == SEVERAL for part in form.parts.values()):
        raise ValueError
    rows = msgspec.convert(form.sums["num_examples"], Count)
    return SeveralScores(rows, {target: _scores_of(part) for target, part in form.parts.items()})  # type: ignore[misc]


def _classes_of(form: ScoresForm) -> ClassificationSums:
    """ValueError for counts that are none; whether they agree is judged by who reads metrics."""
    if set(form.sums) != set(COUNTED) or form.counts is None or form.counts.dtype != np.int64 or form.counts.ndim != 1:
        raise ValueError
    rows, classes, loss = (msgspec.convert(form.sums[name], Count) for name in COUNTED)
    counts = tuple(form.counts.tolist())
    return ClassificationSums(rows, classes, counts[: classes**2], counts[classes**2 :], loss)


class HostLost(Exception):
    """The process that held a silo at its site died; a new host has to be made, and to be restored."""


def failure_form(error: BaseException, silo: str, doing: str) -> FailureForm:
    """Return what travels of an error: one of ours as it was reduced, of any other its class alone."""
    if isinstance(error, HostLost):
        return FailureForm(LOST, ())
    name = type(error).__name__
    if isinstance(error, FedError) and FAILURES.get(name) is type(error):
        return FailureForm(name, tuple(arg if type(arg) is int else str(arg)[:LONGEST_TEXT] for arg in error.args))
    reason = f"{name[:LONGEST_NAME]} at its site; what it says stays in the site's own log"
    return FailureForm("SiloFailed", (silo, doing, reason))


def error_of(form: FailureForm, silo: str, doing: str) -> FedError:
    """Return the error again, in bounded printable words, of the silo that was asked, whatever it says of others."""
    args = [arg if type(arg) is int else printable(str(arg)) for arg in form.args]
    if form.error in ("SiloFailed", "PerimeterRefused") and len(args) == 3:
        return FAILURES[form.error](silo, str(args[1]), str(args[2]))
    if form.error in ("DataError", "ConfigError") and len(args) == 1:
        words = str(args[0])
        return FAILURES[form.error](words if f"'{silo}'" in words else f"silo '{silo}': {words}")
    return SiloFailed(silo, doing, "its site answered with an error of no known form; both need the same ray-fed")
