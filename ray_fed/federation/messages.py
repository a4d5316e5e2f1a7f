"""Everything that crosses a silo's boundary; no message has room for a row. And what makes an update fit to be
averaged."""

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ray_fed.config import require
from ray_fed.errors import UpdateRejected
from ray_fed.exact_sum import UPDATE_LIMIT, ExactWeightedSum
from ray_fed.federation.norms import distance
from ray_fed.learning.trainer import TrainingPlan
from ray_fed.metrics import ClassificationSums, MeanScores, RegressionSums, Scores, SeveralScores
from ray_fed.privacy.compression import rebuilt
from ray_fed.privacy.secure_sum.packed import PackedForm, form_of
from ray_fed.privacy.secure_sum.ring import WORDS

Vector = np.ndarray
"""float32, contiguous, read-only for the receiver: parameters, and what else the training plan lets travel."""
NO_VALUES = np.empty(0, np.float32)
NUM_BESIDE = 3
"""Numbers beside the vector under masks: loss, steps and weight."""


@dataclass(frozen=True)
class SiloDescription:
    """What a silo says about itself before training."""

    silo: str
    num_examples: int
    """Usable training rows."""
    num_held_out: int
    """Usable rows kept for evaluation."""
    unreadable: Mapping[str, int]
    """Kind of reason -> number of rows that cannot be used. Kinds carry no value of any row."""
    agreement: Mapping[str, str]
    """What all silos must have in common: features, tables, target and unit."""
    fingerprint: Mapping[str, object]
    """Hash, rows and columns of the source."""
    device: str
    node: str = ""
    metrics: tuple[str, ...] = ()
    """Names that its evaluations may tell; none where its owner keeps them: it is then not asked for any."""
    notes: Mapping[str, int] = field(default_factory=dict)
    """Kind of note -> number of rows of which something is odd. Kinds carry no value of any row."""


@dataclass(frozen=True)
class SessionSpec:
    """One training run inside the silos; a silo can hold several sessions side by side."""

    session: str
    """Its name; that of the job."""
    plan: TrainingPlan
    """What this silo does in it."""
    model_seed: int
    """Seed of the initial weights, equal in all silos."""
    layout_digest: str
    """Digest of the coordinator's layout; a silo with another one refuses the session."""
    kept_states: int = 6
    """After how many rounds the silo keeps its local state, the oldest making room (federation/silo_state.py)."""
    secure_threshold: int = 0
    """Silos without whose updates no sum is shown; 0 sends updates without masks."""


@dataclass(frozen=True)
class Update:
    """A silo's answer to one round."""

    silo: str
    """Name of the silo."""
    session: str
    """Name of the session it belongs to."""
    server_round: int
    """The round it answers, from 1."""
    vector: Vector = field(repr=False)
    """float32 [layout.size, and optimiser state where the plan lets it travel]: the parameters after training."""
    num_examples: int
    """Rows seen in this round: whole epochs give n_c each, so alpha_c = n_c / n as in Guo et al. 2022, Eq. (1)."""
    num_steps: int
    """Optimiser steps taken."""
    loss: float
    """Mean training loss over the round's steps, square of the target's unit."""
    seconds: float = field(default=0.0, compare=False)
    """Time spent computing, measured inside the silo."""
    code: np.ndarray | None = field(default=None, repr=False, compare=False)
    """uint8: the vector's move in fewer bytes, where the session compresses; it travels in the vector's place."""

    @property
    def num_bytes(self) -> int:
        """Bytes that cross the silo's boundary."""
        return self.vector.nbytes if self.code is None else self.code.nbytes

    def packed(self) -> "Update":
        """Return the update as it travels: without its vector, where it has a code."""
        return self if self.code is None else replace(self, vector=NO_VALUES)

    def unpacked(self, received: Vector) -> "Update":
        """Return the update with its vector again; `received` is what was sent. ValueError for a wrong code."""
        return self if self.code is None else replace(self, vector=rebuilt(received, self.code))


@dataclass(frozen=True)
class MaskedUpdate:
    """An update under masks that cancel in the sum of all (privacy/secure_sum)."""

    silo: str
    session: str
    server_round: int
    ring: np.ndarray = field(repr=False)
    """uint64 [len(vector) + 3, 2]: weight * vector, weight * loss, weight * steps and weight, in the ring. Of an
    answer of sums uint8: the sums packed (secure_sum/packed.py), and the other three as bytes."""
    seconds: float = field(default=0.0, compare=False)

    @property
    def num_bytes(self) -> int:
        return self.ring.nbytes

    def packed(self) -> "MaskedUpdate":
        """Return the update as it travels: random numbers have no shorter form."""
        return self

    def unpacked(self, received: Vector) -> "MaskedUpdate":  # noqa: ARG002
        return self


@dataclass(frozen=True)
class RelayedSum:
    """The exact sum of several silos' updates to one vector, made by a hub between them and the coordinator."""

    silos: tuple[str, ...]
    """Whose updates are in it."""
    total: ExactWeightedSum = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class RelayedUpdate(Update):
    """A silo's part of a sum: its numbers without its vector, which the sum alone has."""

    sum: RelayedSum = field(repr=False, compare=False)
    sent_bytes: int
    """Bytes that crossed the silo's boundary."""

    @property
    def num_bytes(self) -> int:
        return self.sent_bytes

    def numbers(self) -> Update:
        """Return the silo's numbers alone."""
        return Update(
            self.silo, self.session, self.server_round, NO_VALUES, self.num_examples, self.num_steps, self.loss,
            self.seconds,
        )  # fmt: skip

    def summed(self) -> "SummedUpdate":
        """Return the sum, for a strategy."""
        total, steps = self.sum.total, self.num_steps
        count = total.total_weight
        return SummedUpdate(
            "all", self.session, self.server_round, NO_VALUES, count, steps, self.loss, total=total
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ToldUpdate(Update):
    """An update with what its silo tells of its training, taken from behind the vector."""

    metrics: Mapping[str, float]
    """By the names that the strategy reads."""
    num_beside: int
    """Numbers that came behind the vector."""

    @property
    def num_bytes(self) -> int:
        return super().num_bytes + self.num_beside * NO_VALUES.itemsize

    @classmethod
    def of(cls, update: Update, plan: TrainingPlan) -> "ToldUpdate":
        """Return an update of a plan with numbers beside its parameters as its strategy reads it."""
        size = len(update.vector) - plan.num_beside
        told = update.vector[len(update.vector) - len(plan.told) :].tolist()
        return cls(
            update.silo, update.session, update.server_round, update.vector[:size], update.num_examples,
            update.num_steps, update.loss, update.seconds,
            metrics=dict(zip(plan.told, told, strict=True)), num_beside=plan.num_beside,
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class SummedUpdate(Update):
    """The sum of a round's updates, unmasked; its vector is their weighted mean."""

    total: ExactWeightedSum = field(repr=False)


# ---- what comes from a silo, as events of the round rules (rounds/machine.py)


@dataclass(frozen=True)
class Arrived:
    """A silo's update to what was submitted; `server_round` is that of the submission, whatever the update says."""

    silo: str
    server_round: int
    update: "Update | MaskedUpdate | None" = field(default=None, repr=False, compare=False)


@dataclass(frozen=True)
class Raised:
    """The silo raised an error; its process lives."""

    silo: str
    server_round: int
    reason: str


@dataclass(frozen=True)
class Died:
    """The silo's process is gone, or could not be started again."""

    silo: str
    reason: str


@dataclass(frozen=True)
class Restarted:
    """The silo was started again, has opened its data and its sessions."""

    silo: str
    description: SiloDescription | None = None
    """Of a silo that was absent when the others agreed, and has now agreed, too."""


@dataclass(frozen=True)
class JoinRefused:
    """A silo that was absent is there, and does not fit what the others agreed on, or cannot open its data."""

    silo: str
    reason: str


SiloEvent = Arrived | Raised | Died | Restarted | JoinRefused


@dataclass(frozen=True)
class Metrics:
    """A silo's evaluation of one model: sums only."""

    silo: str
    train: Scores
    held_out: Scores


@dataclass(frozen=True)
class Artifact:
    """What a silo made from its rows and hands on as bytes: a generator, spectra, or only the facts about them."""

    silo: str
    what: str
    """The question it answers."""
    num_examples: int
    """Rows it was made from."""
    facts: Mapping[str, float]
    """Numbers about it, by name; none about a single row."""
    data: np.ndarray = field(repr=False)
    """uint8 [n], read-only for the receiver; empty where only the facts are told."""


Records = Mapping[str, Mapping[str, Mapping[str, Any]]]
"""Name -> {"arrays", "metrics" or "config": {name: value}}. A value is an array of numbers, a number, a text, bytes as
uint8 [n], a list of these, or, of an array that is not stored as numbers, {"dtype", "shape", "stype", "data"}."""
RECORD_KINDS = ("arrays", "metrics", "config")
NUMBER_KINDS = "biuf"
"""Kinds of dtype that arrays of numbers have."""
MOST_RECORDS = 256
MOST_VALUES = 1 << 14
"""In one record: arrays of a large network, numbers of a histogram each in a list of its own."""


@dataclass(frozen=True)
class Reply:
    """A silo's answer to an application's own message (a Flower ClientApp's): named records of arrays and values. The
    application alone knows what they mean, and how many rows stand behind them."""

    silo: str
    what: str
    """The question it answers."""
    records: Records = field(repr=False)


def reply_problem(records: object) -> str:
    """Return why records cannot leave a silo, in a fixed phrase; "" where they can."""
    if type(records) is not dict or len(records) > MOST_RECORDS:
        return f"a reply must be at most {MOST_RECORDS} named records"
    for name, record in records.items():
        if type(name) is not str or type(record) is not dict or len(record) != 1:
            return "a record must have a name and be of one kind"
        [(kind, values)] = record.items()
        if kind not in RECORD_KINDS or type(values) is not dict or len(values) > MOST_VALUES:
            return f"a record must be one of {', '.join(RECORD_KINDS)} with at most {MOST_VALUES} values"
        if not all(type(key) is str for key in values):
            return "a value must have a name"
        problems = (_array_problem(value) if kind == "arrays" else _value_problem(value) for value in values.values())
        if problem := next(filter(None, problems), ""):
            return problem
    return ""


def _array_problem(value: object) -> str:
    if type(value) is np.ndarray:
        if value.dtype.kind not in NUMBER_KINDS or value.dtype.metadata:
            return "an array must hold numbers"
        is_finite = value.dtype.kind != "f" or bool(np.isfinite(value).all())
        return "" if is_finite else "an array has values that are not finite; did the training diverge?"
    said = value if type(value) is dict else {}
    is_stored = set(said) == {"dtype", "shape", "stype", "data"} and _is_bytes(said["data"])
    is_said = is_stored and all(type(said[key]) is str for key in ("dtype", "stype")) and type(said["shape"]) is list
    return (
        "" if is_said and all(map(is_count, said["shape"])) else "an array must hold numbers, or bytes and their form"
    )


def _value_problem(value: object) -> str:
    if type(value) is list:
        return next(filter(None, map(_value_problem, value)), "")
    is_plain = type(value) in (bool, int, float, str) or _is_bytes(value)
    return "" if is_plain else "a value must be a number, text or bytes"


def _is_bytes(value: object) -> bool:
    return type(value) is np.ndarray and value.dtype == np.uint8 and value.ndim == 1


COUNT = "count_"
"""What the names of questions begin with that are answered with counts."""


@dataclass(frozen=True)
class Counts:
    """How many of a silo's rows fall where: in bins of their errors, of their distance from others, among elements."""

    silo: str
    what: str
    """The question it answers."""
    num_examples: int
    """Rows that were counted; 0 where they are fewer than a statistic needs: then nothing is told."""
    counts: np.ndarray = field(repr=False)
    """int64 [n], read-only for the receiver: each 0, or at least as large as a statistic needs rows."""


@dataclass(frozen=True)
class GradientObservation:
    """One gradient, shown to be attacked: how much it gives away is what an audit asks."""

    silo: str
    num_examples: int
    """Rows behind it."""
    vector: Vector = field(repr=False)
    """float32 [num_parameters]: of the mean loss."""


# ---- is this update an honest answer to what was sent in this round?

MAX_EXAMPLES = 2**29
"""Weights below it keep the exact sum exact."""
MAX_STEPS = 2**31
"""More steps than any round has; a whole number without a bound has room for rows."""
MAX_LOSS = float(np.finfo(np.float32).max)
"""Sums of such losses, weighted with rows, are finite, and under masks a loss is a float32."""
MAX_SECONDS = 1e9
MAX_COUNT = 2**24
"""Whole numbers below it are float32 values."""


def _as_it_says(_: str) -> int:
    return MAX_EXAMPLES - 1


Objection = tuple[str, str]
"""What is wrong with an update: for its receiver, with what was found; and as a fixed phrase."""


def answer_size(received: Vector, sums: int) -> int:
    """Return how many values the answer to a vector has; `sums` as in the session's TrainingPlan. 0, which no answer
    has, where more are asked for than the plan allows."""
    if not sums:
        return len(received)
    asked = float(received[0]) if len(received) else 0.0
    return int(asked) if 1 <= asked <= sums else 0


def answer_form(received: Vector, sums: int) -> PackedForm | None:
    """Return what the sums in the answer to a vector are made of; None where it asks for parameters, or for more than
    the plan allows."""
    if not sums or not answer_size(received, sums):
        return None
    try:
        return form_of(received)
    except ValueError:
        return None


def answer_bytes(received: Vector, sums: int) -> int:
    """Return the bytes of an answer in clear, or under masks where that is more: some sums need more than a float."""
    clear, form = received.itemsize * answer_size(received, sums), answer_form(received, sums)
    return clear if form is None else max(clear, form.num_bytes)


def masked_shape(received: Vector, sums: int) -> tuple[type, tuple[int, ...]]:
    """Return dtype and shape of `MaskedUpdate.ring` in the answer to a vector."""
    if not sums:
        return np.uint64, (len(received) + NUM_BESIDE, WORDS)
    form = answer_form(received, sums)
    return np.uint8, (form.num_bytes + NUM_BESIDE * 8 * WORDS if form else 0,)


@dataclass(frozen=True)
class Guard:
    """Checks one update at a time and remembers nothing; who has answered in the round is passed in as `seen`.

    In a round:

        guard, seen = Guard(), set()
        guard.check(update, vectors[update.silo], server_round, session, seen)
        seen.add(update.silo)
    """

    max_norm: float | None = None
    """Longest move |update - dispatched| that is accepted, in the unit of the parameters; None accepts any."""
    least_steps: int = 0
    """Fewest optimiser steps: some strategies divide by them."""
    most_examples: Callable[[str], int] = _as_it_says
    """Silo -> most rows that it can have seen in a round, by what it told when opening its data; `Task.most_examples`.
    An update weighs as much as its rows, so a silo must not make them up."""
    sums: int = 0
    """`TrainingPlan.sums` of the session: its answers are whole numbers, each counted once."""

    def __post_init__(self) -> None:
        bound = self.max_norm
        require(bound is None or 0 < bound < math.inf, f"max_norm={bound!r} must be positive and finite, or None")

    def check(
        self, update: Update, dispatched: Vector, server_round: int, session: str, seen: Collection[str] = ()
    ) -> None:
        """Raise UpdateRejected with the first reason why the update must not be averaged.

        dispatched: what the silo started the round from, float32; the answer has its shape. seen: silos whose update
        of this round was accepted. Nothing given is changed.
        """
        for reason, _ in self.objections(update, dispatched, server_round, session, seen):
            raise UpdateRejected(update.silo, server_round, reason)

    def objections(
        self, update: Update, dispatched: Vector, server_round: int, session: str, seen: Collection[str] = ()
    ) -> Iterator[Objection]:
        """Yield what is wrong, cheap checks first; later ones rely on the earlier ones not having been yielded."""
        yield from _wrong_round(update, server_round, session, seen)
        yield from _wrong_numbers(update, self.least_steps)
        yield from self._too_many_examples(update)
        if isinstance(update, RelayedUpdate):  # its hub has looked at the rest, where the vector was
            return
        yield from _wrong_array(update.vector, answer_size(dispatched, self.sums))
        yield from _wrong_values(update, 1 if self.sums else update.num_examples)
        if self.sums:
            yield from _no_sums(update.vector)
        if self.max_norm is not None:
            norm, bound = distance(update.vector, dispatched), f"more than max_norm={self.max_norm:.6g}"
            if norm > self.max_norm:
                yield f"it moved by {norm:.6g}, {bound}", f"it moved by {bound}"

    def _too_many_examples(self, update: Update) -> Iterator[Objection]:
        """Of those that a hub has summed, all are held against all they may have: none can be taken out."""
        silos = update.sum.silos if isinstance(update, RelayedUpdate) else (update.silo,)
        count = update.sum.total.total_weight if isinstance(update, RelayedUpdate) else update.num_examples
        most, who = sum(map(self.most_examples, silos)), "its hub's silos" if len(silos) > 1 else "it"
        if count > most:
            told = f"more than the {most} that a round can have with the rows that {who} told when opening the data"
            yield f"num_examples={_shown(count)} is {told}", f"num_examples is {told}"


def _wrong_round(update: Update, server_round: int, session: str, seen: Collection[str]) -> Iterator[Objection]:
    if type(update.session) is not str or update.session != session:
        yield f"it belongs to another session than {session!r}", "it belongs to another session"
    theirs = update.server_round
    if not _is_whole(theirs):
        yield f"server_round={_shown(theirs)} is not a whole number", "server_round is not a whole number"
    if theirs != server_round:
        age = "stale" if theirs < server_round else "from the future"
        said = f"{age}: it answers round {_shown(theirs)}, this is round {server_round}"
        yield said, "it answers another round"
    if update.silo in seen:
        duplicate = "duplicate: the silo has already answered in this round"
        yield duplicate, duplicate


def _wrong_numbers(update: Update, least_steps: int) -> Iterator[Objection]:
    examples, steps = update.num_examples, update.num_steps
    if not _is_whole(examples) or not 0 < examples < MAX_EXAMPLES:
        yield _refused("num_examples", examples, f"must be a whole number from 1 to {MAX_EXAMPLES - 1}")
    if not _is_whole(steps) or not least_steps <= steps < MAX_STEPS:
        yield _refused("num_steps", steps, f"must be a whole number, {least_steps} or more, below {MAX_STEPS}")
    if not _is_within(update.loss, MAX_LOSS):
        yield _refused("loss", update.loss, "is not a finite number, as a float32")
    if not _is_within(update.seconds, MAX_SECONDS) or update.seconds < 0:
        yield _refused("seconds", update.seconds, f"is not a finite number, 0 or more, up to {MAX_SECONDS:g}")


def _refused(name: str, value: object, requirement: str) -> Objection:
    return f"{name}={_shown(value)} {requirement}", f"{name} {requirement}"


def _shown(value: object) -> str:
    """Return a number for a message; not in all its digits, and nothing of what is no plain number: where no gate
    stands before, that would be a silo's own text."""
    if type(value) not in (bool, int, float):
        return "(no plain number)"
    return "(a number of many digits)" if isinstance(value, int) and abs(value) >= 2**63 else repr(value)


def _wrong_array(vector: object, length: int) -> Iterator[Objection]:
    if type(vector) is not np.ndarray:  # subclasses (masked, matrix) have arithmetic of their own
        yield "the vector is not a plain array", "the vector is not a plain array"
    assert isinstance(vector, np.ndarray)
    if vector.dtype != np.float32:
        yield f"dtype {vector.dtype.str} instead of float32", "another dtype instead of float32"
    if vector.shape != (length,):
        yield f"shape {vector.shape} instead of ({length},)", f"another shape instead of ({length},)"
    if not vector.flags.c_contiguous:
        yield f"the vector is not contiguous (strides {vector.strides})", "the vector is not contiguous"


def _wrong_values(update: Update, weight: int) -> Iterator[Objection]:
    vector = update.vector
    peak = max(float(vector.max(initial=0)), -float(vector.min(initial=0)))
    if not math.isfinite(peak):
        bad = np.flatnonzero(~np.isfinite(vector))
        yield f"{len(bad)} values are not finite (first at {bad[0]})", "it has values that are not finite"
    if peak * weight >= UPDATE_LIMIT:
        said = f"largest |value| {peak:.3g} times num_examples={update.num_examples} is above {UPDATE_LIMIT:.3g}"
        yield said, f"its largest |value| times num_examples is above {UPDATE_LIMIT:.3g}"


def _no_sums(vector: Vector) -> Iterator[Objection]:
    if not (np.array_equal(vector, np.rint(vector)) and bool((np.abs(vector) < MAX_COUNT).all())):
        no_sums = f"its values are no whole numbers below {MAX_COUNT}, which are added up exactly"
        yield no_sums, no_sums


def is_count(value: object, limit: int = 2**53) -> bool:
    """Whether a value is a whole number from 0 to `limit`, limit excluded."""
    return _is_whole(value) and 0 <= value < limit  # type: ignore[operator]


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_within(value: object, limit: float) -> bool:
    """Whether a value is a number of at most this size; false for NaN."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return abs(value) <= limit  # math.isfinite raises for a whole number of 400 digits


# ---- and an evaluation?

MAX_SUM = 1e100
"""Sums over samples beyond it are no metric of anything, and two of them may have no finite sum."""


Evaluations = Mapping[str, "Mapping[str, Metrics] | Raised"]
"""Silo -> model -> metrics, or what it raised instead."""


def sound_metrics(
    by_silo: Evaluations, models: Collection[str], names: Collection[str]
) -> tuple[dict[str, Mapping[str, Metrics]], dict[str, str]]:
    """Return (silo -> metrics) that can be added up, and silo -> why of those that cannot.

    models: those that were sent. names: metrics that the task declares. What a silo tells must have the form that most
    silos' have.
    """
    failures = {silo: found.reason for silo, found in by_silo.items() if isinstance(found, Raised)}
    told = {silo: found for silo, found in by_silo.items() if not isinstance(found, Raised)}
    failures |= {silo: problem for silo, found in told.items() if (problem := _metrics_problem(found, models, names))}
    forms = {silo: _form(found) for silo, found in told.items() if silo not in failures}
    usual = max(forms.values(), key=lambda form: (list(forms.values()).count(form), sorted(form)), default=None)
    failures |= {silo: "its metrics are others than most silos tell" for silo, form in forms.items() if form != usual}
    return {silo: found for silo, found in told.items() if silo not in failures}, failures


def _form(by_model: Mapping[str, Metrics]) -> frozenset[str]:
    parts = [scores for metrics in by_model.values() for scores in (metrics.train, metrics.held_out)]
    return frozenset(name for scores in parts for name in _form_of(scores))


def _form_of(scores: Scores) -> list[str]:
    if isinstance(scores, ClassificationSums):
        return [f"{scores.num_classes} classes"]
    if isinstance(scores, SeveralScores):
        return [f"{target}.{name}" for target, part in scores.parts.items() for name in _form_of(part)]
    return [type(scores).__name__, *scores_numbers(scores)]


def _metrics_problem(by_model: object, models: Collection[str], names: Collection[str]) -> str:
    """Return what is wrong with a silo's evaluation, in a fixed phrase; "" where nothing is."""
    if not isinstance(by_model, Mapping) or set(by_model) != set(models):
        return "its metrics are not those of the models asked for"
    for metrics in by_model.values():
        if not isinstance(metrics, Metrics):
            return "its metrics are no Metrics"
        for scores in (metrics.train, metrics.held_out):
            if problem := _scores_problem(scores, names):
                return problem
    return ""


def _scores_problem(scores: Scores, names: Collection[str]) -> str:
    if not is_count(scores.num_examples):
        return "its metrics are over no whole number of rows"
    if isinstance(scores, SeveralScores):
        return next(filter(None, (_scores_problem(part, names) for part in scores.parts.values())), "")
    if isinstance(scores, ClassificationSums):
        return scores.objection()
    numbers = scores_numbers(scores)
    if not is_unmarked(scores) and not all(_is_within(number, MAX_SUM) for number in numbers.values()):
        return "its metrics have sums that are not finite, or huge"
    unknown = isinstance(scores, MeanScores) and not set(numbers) <= set(names)
    return "its metrics have names that the task does not declare" if unknown else ""


def is_unmarked(scores: Scores) -> bool:
    """Tell whether an evaluation has no number at all, as of a model that a silo does not mark (`Silo.evaluate`)."""
    if isinstance(scores, ClassificationSums):
        return not scores.is_marked
    if isinstance(scores, SeveralScores):
        return all(is_unmarked(part) for part in scores.parts.values())
    numbers = scores_numbers(scores).values()
    return bool(numbers) and all(type(number) is float and math.isnan(number) for number in numbers)


def unmarked(scores: Scores) -> Scores:
    """Return the scores of the same rows without a number among them; those of no rows as they are."""
    if scores.num_examples == 0:
        return scores
    if isinstance(scores, ClassificationSums):
        return scores.unmarked()
    if isinstance(scores, SeveralScores):
        return SeveralScores(scores.num_examples, {target: unmarked(part) for target, part in scores.parts.items()})  # type: ignore[misc]
    if isinstance(scores, MeanScores):
        return MeanScores(scores.num_examples, dict.fromkeys(scores.sums, math.nan))
    return RegressionSums(scores.num_examples, *[math.nan] * 4) if isinstance(scores, RegressionSums) else scores


def scores_numbers(scores: Scores) -> dict[str, float]:
    """Return the sums of means, or of a regression, by name."""
    if isinstance(scores, MeanScores):
        return dict(scores.sums)
    return {name: value for name, value in vars(scores).items() if name != "num_examples"}
