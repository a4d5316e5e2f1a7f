"""What a coordinator may ask of a site and what a site may answer: typed, bounded, and never unpickled.

A message is a *header* (who, which call), a *body* (names and numbers, msgpack) and a *payload* (the bytes of its
arrays, one after another). A body says of an array only [offset, dtype, *shape]; the dtypes are five.

    SiloRequest   hub -> site   one class a verb of `SiloHost`; `put_to` is the call
    ANSWERS       site -> hub   kind -> class of the message; each request names the kinds that answer it
    header        both ways     Hello, Welcome, Ask, Acknowledge, Answer

Whoever changes one of these, or a dataclass in them, counts PROTOCOL up: two versions do not talk to each other.
"""

import functools
import math
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Annotated, Any, ClassVar, Protocol

import msgspec
import numpy as np
from msgspec import Meta, Struct

from ray_fed.errors import ConfigError, DataError, FedError, PerimeterRefused, SiloFailed
from ray_fed.federation.messages import (
    Artifact,
    Counts,
    GradientObservation,
    MaskedUpdate,
    Metrics,
    SessionSpec,
    SiloDescription,
    Update,
    Vector,
)
from ray_fed.learning.standardisation import ColumnMoments, Standardizer
from ray_fed.metrics import ClassificationSums, MeanScores, RegressionSums, Scores, SeveralScores

PROTOCOL = 3
"""Version of everything in this file."""
DTYPES = ("<f4", "<f8", "<i8", "<u8", "|u1")
ALIGNMENT = 8
MOST_DIMENSIONS = 4
MAX_BODY_BYTES = 1 << 20
LONGEST_TEXT = 2000
LONGEST_NAME = 200
MOST_ENTRIES = 4096
MOST_CALLS = 4096
"""Calls of one site that are open at a time."""
DEEPEST = 8
SMALL_ANSWER_BYTES = 1 << 24
"""For answers whose size does not follow from what was asked."""

Name = Annotated[str, Meta(max_length=LONGEST_NAME)]
Text = Annotated[str, Meta(max_length=LONGEST_TEXT)]
Count = Annotated[int, Meta(ge=0, le=2**53)]
Option = bool | int | float | str | None | tuple[bool | int | float | str, ...]
"""What a task's option may be."""


class WireError(ValueError):
    """Bytes from the other side are no message: says in what, never which bytes."""


# ---- the silo's end


class SiloHost(Protocol):
    """A silo as its site hosts it: the verbs of `GuardedSilo`.

    Every error that it raises has been reduced by the owner's policy already. `HostLost` says that the process that
    held the silo is gone.
    """

    def open(self) -> SiloDescription: ...

    def moments(self) -> ColumnMoments: ...

    def prepare(self, standardizer: Standardizer | None) -> None: ...

    def open_session(self, spec: SessionSpec) -> str: ...

    def restore(self, standardizer: Standardizer | None, sessions: Sequence[SessionSpec]) -> None: ...

    def close_session(self, session: str) -> None: ...

    def fit(self, session: str, server_round: int, vector: Vector) -> Update | MaskedUpdate: ...

    def evaluate(self, session: str, models: Mapping[str, Vector]) -> dict[str, Metrics]: ...

    def query(self, query: str, *given: Any) -> Any: ...

    def observe(self, vector: Vector, num_examples: int) -> GradientObservation: ...

    def receive_model(self, weights: np.ndarray, card: np.ndarray) -> None: ...

    def collect_ledger(self) -> tuple[bytes, str, str] | None: ...


class HostLost(Exception):
    """The process that held a silo at its site died; a new host has to be made, and to be restored."""


@dataclass(frozen=True)
class Invitation:
    """All that a coordinator says about a silo: names and plain options, for the site to look up in its owner's file.

    ConfigError where a value is no plain option.
    """

    run: str
    """Name of the run."""
    silo: str
    """What the silo is called in it."""
    dataset: str
    """Name of a data set in the owner's file; never a path."""
    task: str
    """Name of a task that the site's installed code has."""
    options: Mapping[str, Option]
    """The task's plain options."""
    test_fraction: float = 0.0
    """Share of the rows that are held out."""
    split_seed: int = 0
    """Seed of the draw of those rows."""
    way: str = ""
    """Of a hub that is a site: which of its own sites is meant, NAME or, where that is a hub, too, NAME/NAME; empty at
    the site that has the silo."""

    def __post_init__(self) -> None:
        if not 0 <= self.test_fraction < 1:
            raise ConfigError(f"silo '{self.silo}': test_fraction={self.test_fraction} must lie in [0, 1)")


# ---- requests


class SiloRequest(Struct, frozen=True, forbid_unknown_fields=True, tag_field="verb"):
    """One call of a silo's host."""

    answers: ClassVar[tuple[str, ...]] = ("done",)
    """Kinds of message that answer it."""
    doing: ClassVar[str] = "answering"
    """For errors: the silo failed while ..."""

    def put_to(self, host: SiloHost) -> object:
        """Make the call; return its message."""
        raise NotImplementedError(type(self).__name__)  # never decoded: `AnyRequest` lists the kinds that have it

    def answer_limit(self) -> int:
        """Return the most bytes that the arrays of an answer may have."""
        return SMALL_ANSWER_BYTES


class InviteRequest(SiloRequest, frozen=True, tag="invite"):
    """Make a host for the silo; one that is there already is ended first."""

    doing = "accepting an invitation"
    invitation: Invitation


class OpenRequest(SiloRequest, frozen=True, tag="open"):
    answers = ("description",)
    doing = "opening its data"

    def put_to(self, host: SiloHost) -> SiloDescription:
        return host.open()


class JoinRequest(SiloRequest, frozen=True, tag="join"):
    """Open the data of a silo that was not there when the others agreed, and take their scaler."""

    answers = ("description",)
    doing = "joining"
    standardizer: Standardizer | None

    def put_to(self, host: SiloHost) -> SiloDescription:
        description = host.open()
        host.prepare(self.standardizer)
        return description


class MomentsRequest(SiloRequest, frozen=True, tag="moments"):
    answers = ("moments",)
    doing = "computing moments"

    def put_to(self, host: SiloHost) -> ColumnMoments:
        return host.moments()


class PrepareRequest(SiloRequest, frozen=True, tag="prepare"):
    doing = "standardising"
    standardizer: Standardizer | None

    def put_to(self, host: SiloHost) -> None:
        host.prepare(self.standardizer)


class OpenSessionRequest(SiloRequest, frozen=True, tag="open_session"):
    answers = ("digest",)
    doing = "opening a session"
    spec: SessionSpec

    def put_to(self, host: SiloHost) -> str:
        return host.open_session(self.spec)


class RestoreRequest(SiloRequest, frozen=True, tag="restore"):
    doing = "starting again"
    standardizer: Standardizer | None
    sessions: tuple[SessionSpec, ...]

    def put_to(self, host: SiloHost) -> None:
        host.restore(self.standardizer, self.sessions)


class CloseSessionRequest(SiloRequest, frozen=True, tag="close_session"):
    doing = "closing a session"
    session: Name

    def put_to(self, host: SiloHost) -> None:
        host.close_session(self.session)


class FitRequest(SiloRequest, frozen=True, tag="fit"):
    answers = ("update", "masked")
    doing = "training"
    session: Name
    server_round: Count
    vector: np.ndarray
    num_values: Count = 0
    """Values of the answer, where it is not as long as the vector (TrainingPlan.sums)."""

    def put_to(self, host: SiloHost) -> Update | MaskedUpdate:
        return host.fit(self.session, self.server_round, self.vector).packed()

    def answer_limit(self) -> int:
        values = max(len(self.vector), self.num_values)
        return 16 * values + 1024  # masked: 16 bytes for a value of 4, and two values more


class FitSumRequest(SiloRequest, frozen=True, tag="fit_sum"):
    """Of a hub that is a site: let its silos train from one vector, and add their updates up."""

    answers = ("sum",)
    doing = "training"
    session: Name
    server_round: Count
    silos: tuple[Name, ...]
    vector: np.ndarray
    patience: float | None = None
    """Seconds after which the answer is wanted, without the silos that are late; None: when all are there."""

    def put_to(self, host: SiloHost) -> object:  # noqa: ARG002
        raise ConfigError("this site is no hub of other sites")

    def answer_limit(self) -> int:
        return 4 * self.vector.nbytes + 1024


class EvaluateRequest(SiloRequest, frozen=True, tag="evaluate"):
    answers = ("metrics",)
    doing = "evaluating"
    session: Name
    names: tuple[Name, ...]
    vectors: tuple[np.ndarray, ...]

    def put_to(self, host: SiloHost) -> dict[str, Metrics]:
        return host.evaluate(self.session, dict(zip(self.names, self.vectors, strict=True)))


class EvaluateManyRequest(SiloRequest, frozen=True, tag="evaluate_many"):
    """Of a hub that is a site: let its silos evaluate the same models."""

    answers = ("metrics_of_many",)
    doing = "evaluating"
    session: Name
    silos: tuple[Name, ...]
    names: tuple[Name, ...]
    vectors: tuple[np.ndarray, ...]
    patience: float | None = None
    """As in `FitSumRequest`."""

    def put_to(self, host: SiloHost) -> object:  # noqa: ARG002
        raise ConfigError("this site is no hub of other sites")


class Given(Struct, frozen=True, forbid_unknown_fields=True):
    """One thing that is given with a query: a plain value or an array."""

    value: bool | int | float | str | None = None
    array: np.ndarray | None = None

    @classmethod
    def of(cls, thing: Any) -> "Given":
        return cls(array=thing) if isinstance(thing, np.ndarray) else cls(value=thing)

    @property
    def thing(self) -> Any:
        return self.value if self.array is None else self.array


class QueryRequest(SiloRequest, frozen=True, tag="query"):
    answers = ("artifact", "counts", "metrics")
    doing = "answering a query"
    query: Name
    given: tuple[Given, ...]

    def put_to(self, host: SiloHost) -> Any:
        return host.query(self.query, *(each.thing for each in self.given))

    def answer_limit(self) -> int:
        arrays = (each.array.nbytes for each in self.given if each.array is not None)
        return 4 * SMALL_ANSWER_BYTES + 4 * sum(arrays)


class ObserveRequest(SiloRequest, frozen=True, tag="observe"):
    answers = ("observation",)
    doing = "showing a gradient"
    vector: np.ndarray
    num_examples: Count

    def put_to(self, host: SiloHost) -> GradientObservation:
        return host.observe(self.vector, self.num_examples)

    def answer_limit(self) -> int:
        return self.vector.nbytes + 1024


class ReceiveModelRequest(SiloRequest, frozen=True, tag="receive_model"):
    """Keep the final model of the run; the site chooses where."""

    doing = "taking the final model"
    weights: np.ndarray
    """uint8: the bytes of a .safetensors file."""
    card: np.ndarray
    """uint8: those of its card."""

    def put_to(self, host: SiloHost) -> None:
        host.receive_model(self.weights, self.card)


class EndRequest(SiloRequest, frozen=True, tag="end"):
    """End the silo's host: what it holds, such as a GPU, is free again."""

    doing = "ending"


class LedgerRequest(SiloRequest, frozen=True, tag="ledger"):
    answers = ("ledger", "done")
    doing = "handing over its ledger"

    def put_to(self, host: SiloHost) -> "LedgerCopy | None":
        found = host.collect_ledger()
        return LedgerCopy(np.frombuffer(found[0], np.uint8), found[1], found[2]) if found else None

    def answer_limit(self) -> int:
        return 1 << 28


AnyRequest = (
    InviteRequest | OpenRequest | JoinRequest | MomentsRequest | PrepareRequest | OpenSessionRequest | RestoreRequest
    | CloseSessionRequest | FitRequest | FitSumRequest | EvaluateRequest | EvaluateManyRequest | QueryRequest
    | ObserveRequest | LedgerRequest | ReceiveModelRequest | EndRequest
)  # fmt: skip


# ---- answers


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


def printable(words: str, longest: int = LONGEST_TEXT) -> str:
    """Return words on one line, without control characters."""
    return "".join(letter if letter.isprintable() else " " for letter in words[:longest])


# ---- headers


class Header(Struct, frozen=True, forbid_unknown_fields=True, tag_field="header", kw_only=True):
    """First part of each message; `num_bytes` of payload follow."""

    body: bytes = b""
    num_bytes: Count = 0


class Hello(Header, frozen=True, tag="hello", kw_only=True):
    """A site begins: who it is, which process, how far it got with which hub."""

    protocol: int
    site: Name
    incarnation: Name
    """Of the site's process."""
    hub: Name = ""
    """The hub's process that it last spoke with."""
    received: Count = 0
    """Number of the last call that came from that one."""
    nonce: Name = ""
    """What the hub has to sign together with the site's key."""


class Welcome(Header, frozen=True, tag="welcome", kw_only=True):
    """The hub knows the site."""

    protocol: int
    incarnation: Name
    """Of the hub's process."""
    wanted: Annotated[tuple[Count, ...], Meta(max_length=MOST_CALLS)] = ()
    """Calls whose answers are waited for; answers to others can be thrown away."""
    certificate: Annotated[bytes, Meta(max_length=1 << 15)] = b""
    """The hub's, PEM."""
    proof: Annotated[bytes, Meta(max_length=1 << 12)] = b""
    """Signature by the key of that certificate."""


class Ask(Header, frozen=True, tag="ask", kw_only=True):
    """One call; the body is a `SiloRequest`."""

    call: Count
    silo: Name
    done: Annotated[tuple[Count, ...], Meta(max_length=MOST_CALLS)] = ()
    """Calls whose answers have arrived."""


class Acknowledge(Header, frozen=True, tag="acknowledge", kw_only=True):
    done: Annotated[tuple[Count, ...], Meta(max_length=MOST_CALLS)]


class Answer(Header, frozen=True, tag="answer", kw_only=True):
    """What a call came to; the body is of the class that `ANSWERS` has for the kind."""

    call: Count
    kind: Name


AnyHeader = Hello | Welcome | Ask | Acknowledge | Answer


# ---- the codec


@dataclass(frozen=True)
class Encoded:
    """A message ready to be sent, to one or to many: its arrays are not copied, only pointed at."""

    body: bytes
    pieces: tuple[memoryview, ...] = ()
    num_bytes: int = 0


class _Arrays:
    """Collects the arrays of a message while its body is written."""

    def __init__(self) -> None:
        self.pieces: list[memoryview] = []
        self.num_bytes = 0
        self._offsets: dict[int, int] = {}

    def reference(self, thing: Any) -> Any:
        if isinstance(thing, np.generic):
            return thing.item()
        if not isinstance(thing, np.ndarray) or thing.dtype.str not in DTYPES:
            raise WireError(f"{_called(thing)} does not travel")
        if id(thing) not in self._offsets:
            self._offsets[id(thing)] = self.num_bytes
            self._add(np.ascontiguousarray(thing))
        return [self._offsets[id(thing)], thing.dtype.str, *thing.shape]

    def _add(self, array: np.ndarray) -> None:
        rest = -array.nbytes % ALIGNMENT
        if array.nbytes:
            self.pieces.append(array.data.cast("B"))
        if rest:
            self.pieces.append(memoryview(bytes(rest)))
        self.num_bytes += array.nbytes + rest


def _called(thing: object) -> str:
    return f"an array of {thing.dtype.str}" if isinstance(thing, np.ndarray) else f"a {type(thing).__name__}"


def encode(message: object) -> Encoded:
    """Return a message's body and arrays. WireError for what has no place on the wire."""
    arrays = _Arrays()
    try:
        body = msgspec.msgpack.encode(message, enc_hook=arrays.reference)
    except (TypeError, OverflowError, RecursionError) as error:
        raise WireError(f"{type(message).__name__} cannot be sent: {error}") from None
    if len(body) > MAX_BODY_BYTES:
        raise WireError(f"{type(message).__name__} has {len(body)} bytes besides its arrays, {MAX_BODY_BYTES} may")
    return Encoded(body, tuple(arrays.pieces), arrays.num_bytes)


_received = threading.local()


def decode(cls: Any, body: bytes, payload: "memoryview | bytes" = b"") -> Any:
    """Return the message of class `cls` in a body; its arrays are read-only views of the payload. WireError says what
    is wrong."""
    if len(body) > MAX_BODY_BYTES:
        raise WireError(f"a body of {len(body)} bytes, {MAX_BODY_BYTES} are the most")
    _received.payload = payload
    try:
        message = _decoder(cls).decode(body)
        _require_bounded(message)
        return message
    except RecursionError:
        raise WireError("it is nested too deeply") from None
    except (msgspec.MsgspecError, ValueError, TypeError, OverflowError, MemoryError) as error:
        raise WireError(f"no {_name_of(cls)} ({_without_values(error)})") from None
    finally:
        del _received.payload


def encode_header(header: Header) -> bytes:
    return msgspec.msgpack.encode(header)


def decode_header(raw: "bytes | memoryview") -> AnyHeader:
    """Return a message's header. WireError says what is wrong."""
    if len(raw) > 2 * MAX_BODY_BYTES:
        raise WireError(f"a header of {len(raw)} bytes")
    try:
        return _decoder(AnyHeader).decode(raw)
    except (msgspec.MsgspecError, ValueError, TypeError, OverflowError, RecursionError, MemoryError) as error:
        raise WireError(f"no header ({_without_values(error)})") from None


@functools.cache
def _decoder(cls: Any) -> "msgspec.msgpack.Decoder[Any]":
    return msgspec.msgpack.Decoder(cls, dec_hook=_array)


def _name_of(cls: Any) -> str:
    return "request" if cls is AnyRequest else getattr(cls, "__name__", "message")


def _without_values(error: Exception) -> str:
    """What msgspec and our own checks say names fields and types; words that came from outside are cut short."""
    return printable(str(error), 160)


def _array(cls: type, said: Any) -> Any:
    """Return the array that a body points at; a plain value where any may stand."""
    if cls is object:
        return said
    if cls is not np.ndarray or not isinstance(said, list) or not 2 <= len(said) <= 2 + MOST_DIMENSIONS:
        raise WireError("an array must be [offset, dtype, *shape]")
    offset, dtype, *shape = said
    if dtype not in DTYPES or not all(type(number) is int and 0 <= number < 2**40 for number in (offset, *shape)):
        raise WireError("an array of an unknown dtype or of no shape")
    payload, size = _received.payload, math.prod(shape)
    num_bytes = size * np.dtype(dtype).itemsize
    if offset % ALIGNMENT or offset + num_bytes > len(payload):
        raise WireError("an array that is not within its message")
    array = np.frombuffer(payload, dtype, size, offset) if size else np.empty(0, dtype)
    if not array.flags.aligned:
        array = array.copy()
    array.flags.writeable = False
    return array.reshape(shape)


def _require_bounded(value: Any, depth: int = 0, may_be_not_finite: bool = False) -> None:
    """Refuse long texts, many entries, deep nesting, odd types and, mostly, numbers that are not finite."""
    if depth > DEEPEST:
        raise WireError("it is nested too deeply")
    if isinstance(value, str):
        _require(len(value) <= LONGEST_TEXT, f"a text of {len(value)} characters")
    elif isinstance(value, float):
        _require(may_be_not_finite or math.isfinite(value), "a number that is not finite")
    elif isinstance(value, np.ndarray):
        checked = value.dtype.kind != "f" or value.dtype.itemsize == 4 or may_be_not_finite
        _require(checked or bool(np.isfinite(value).all()), "an array of numbers that are not finite")
    elif not isinstance(value, bool | int | None):
        for part in _parts(value):
            _require_bounded(part, depth + 1, may_be_not_finite or isinstance(value, MAY_BE_NOT_FINITE))


def _parts(value: Any) -> Iterable[Any]:
    if isinstance(value, Mapping):
        _require(len(value) <= MOST_ENTRIES, f"{len(value)} entries")
        _require(all(isinstance(key, str) and len(key) <= LONGEST_NAME for key in value), "a key that is no short name")
        return value.values()
    if isinstance(value, list | tuple):
        _require(len(value) <= MOST_ENTRIES, f"{len(value)} entries")
        return value
    if isinstance(value, Struct):
        return [getattr(value, name) for name in value.__struct_fields__]
    _require(is_dataclass(value), "a value of an unknown type")
    return [getattr(value, each.name) for each in fields(value)]


def _require(holds: bool, what: str) -> None:
    if not holds:
        raise WireError(what)


MakeHost = Callable[[Invitation], SiloHost]
