"""Everything that crosses a silo's boundary; no message has room for a row. And what makes an update fit to be
averaged."""

import math
import sys
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from ray_fed.config import require
from ray_fed.errors import UpdateRejected
from ray_fed.exact_sum import UPDATE_LIMIT, ExactWeightedSum
from ray_fed.federation.norms import distance
from ray_fed.learning.trainer import TrainingPlan
from ray_fed.metrics import Scores
from ray_fed.privacy.compression import rebuilt

Vector = np.ndarray
"""float32, contiguous, read-only for the receiver: parameters, and what else the training plan lets travel."""
NO_VALUES = np.empty(0, np.float32)


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
    """uint64 [len(vector) + 2, 2]: weight * vector, weight * loss and weight, in the ring."""
    num_steps: int
    seconds: float = field(default=0.0, compare=False)

    @property
    def num_bytes(self) -> int:
        return self.ring.nbytes

    def packed(self) -> "MaskedUpdate":
        """Return the update as it travels: random numbers have no shorter form."""
        return self

    def unpacked(self, received: Vector) -> "MaskedUpdate":  # noqa: ARG002
        return self


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
        for reason in self._objections(update, dispatched, server_round, session, seen):
            raise UpdateRejected(update.silo, server_round, reason)

    def _objections(
        self, update: Update, dispatched: Vector, server_round: int, session: str, seen: Collection[str]
    ) -> Iterator[str]:
        """Yield reasons, cheap ones first; later ones rely on the earlier ones not having been yielded."""
        yield from _wrong_round(update, server_round, session, seen)
        yield from _wrong_numbers(update)
        yield from _wrong_array(update.vector, len(dispatched))
        yield from _wrong_values(update)
        if self.max_norm is not None:
            norm = distance(update.vector, dispatched)
            if norm > self.max_norm:
                yield f"it moved by {norm:.6g}, more than max_norm={self.max_norm:.6g}"


def _wrong_round(update: Update, server_round: int, session: str, seen: Collection[str]) -> Iterator[str]:
    if update.session != session:
        yield f"it belongs to session {update.session!r}, this is {session!r}"
    theirs = update.server_round
    if not _is_whole(theirs):
        yield f"server_round={theirs!r} is not a whole number"
    if theirs != server_round:
        age = "stale" if theirs < server_round else "from the future"
        yield f"{age}: it answers round {theirs}, this is round {server_round}"
    if update.silo in seen:
        yield "duplicate: the silo has already answered in this round"


def _wrong_numbers(update: Update) -> Iterator[str]:
    if not _is_whole(update.num_examples) or not 0 < update.num_examples < MAX_EXAMPLES:
        yield f"num_examples={update.num_examples!r} must be a whole number from 1 to {MAX_EXAMPLES - 1}"
    if not _is_whole(update.num_steps) or update.num_steps < 0:
        yield f"num_steps={update.num_steps!r} must be a whole number, 0 or more"
    if not _is_finite(update.loss):
        yield f"loss={update.loss!r} is not a finite number"
    if not _is_finite(update.seconds) or update.seconds < 0:
        yield f"seconds={update.seconds!r} is not a finite number, 0 or more"


def _wrong_array(vector: object, length: int) -> Iterator[str]:
    if type(vector) is not np.ndarray:  # subclasses (masked, matrix) have arithmetic of their own
        yield f"the vector is a {type(vector).__name__}, not a plain array"
    assert isinstance(vector, np.ndarray)
    if vector.dtype != np.float32:
        yield f"dtype {vector.dtype.str} instead of float32"
    if vector.shape != (length,):
        yield f"shape {vector.shape} instead of ({length},)"
    if not vector.flags.c_contiguous:
        yield f"the vector is not contiguous (strides {vector.strides})"


def _wrong_values(update: Update) -> Iterator[str]:
    vector = update.vector
    peak = max(float(vector.max(initial=0)), -float(vector.min(initial=0)))
    if not math.isfinite(peak):
        bad = np.flatnonzero(~np.isfinite(vector))
        yield f"{len(bad)} values are not finite (first at {bad[0]})"
    if peak * update.num_examples >= UPDATE_LIMIT:
        yield f"largest |value| {peak:.3g} times num_examples={update.num_examples} is above {UPDATE_LIMIT:.3g}"


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_finite(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return abs(value) <= sys.float_info.max  # false for NaN; math.isfinite raises for a whole number of 400 digits
