"""What a coordinator may ask of a site: one class a verb of `SiloHost`, each with the kinds of answer it can have. How
they travel: wire.py."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
from msgspec import Struct

from ray_fed.errors import ConfigError
from ray_fed.federation.messages import (
    GradientObservation,
    MaskedUpdate,
    Metrics,
    SessionSpec,
    SiloDescription,
    Update,
    Vector,
)
from ray_fed.learning.standardisation import ColumnMoments, Standardizer
from ray_fed.sites.answers import LedgerCopy
from ray_fed.sites.wire import Count, Name, decode

SMALL_ANSWER_BYTES = 1 << 24
"""For answers whose size does not follow from what was asked."""
Option = bool | int | float | str | None | tuple[bool | int | float | str, ...]
"""What a task's option may be."""


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


MakeHost = Callable[[Invitation], SiloHost]


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
    most_examples: tuple[Count, ...]
    """Of each silo: the most rows that its update may claim to have seen."""
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

    def put_to(self, host: SiloHost) -> LedgerCopy | None:
        found = host.collect_ledger()
        return LedgerCopy(np.frombuffer(found[0], np.uint8), found[1], found[2]) if found else None

    def answer_limit(self) -> int:
        return 1 << 28


AnyRequest = (
    InviteRequest | OpenRequest | JoinRequest | MomentsRequest | PrepareRequest | OpenSessionRequest | RestoreRequest
    | CloseSessionRequest | FitRequest | FitSumRequest | EvaluateRequest | EvaluateManyRequest | QueryRequest
    | ObserveRequest | LedgerRequest | ReceiveModelRequest | EndRequest
)  # fmt: skip


def decode_request(body: bytes, payload: "memoryview | bytes" = b"") -> SiloRequest:
    """Return what a hub asks for. WireError says what is wrong."""
    return decode(AnyRequest, body, payload, "request")
