"""The gate in front of the average: is this update an honest answer to what was asked in this round?"""

import math
import sys
from collections.abc import Collection, Iterator
from dataclasses import dataclass

import numpy as np

from ray_fed.config import require
from ray_fed.errors import UpdateRejected
from ray_fed.exact_sum import UPDATE_LIMIT
from ray_fed.federation.messages import Update, Vector
from ray_fed.federation.norms import distance

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
