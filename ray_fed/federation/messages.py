"""Everything that crosses a silo's boundary; no message has room for a row."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from ray_fed.exact_sum import ExactWeightedSum
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
    """uint64 [len(vector) + 3, 2]: weight * vector, weight * loss, weight * steps and weight, in the ring."""
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


Evaluations = Mapping[str, "Mapping[str, Metrics] | Raised"]
"""Silo -> model -> metrics, or what it raised instead."""
