"""A silo that searches a model library for its small target, behind its boundary.

What leaves is one kind of message: errors of known rules on the silo's rows, and which known model was chosen.
"""

import contextlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ray_fed.errors import FedError
from ray_fed.federation.messages import MAX_SUM
from ray_fed.federation.task import SiloSpec
from ray_fed.model_library.cards import PackedModel
from ray_fed.model_library.selection import Protocol, SourceFeatures, TransferTarget
from ray_fed.model_library.silo_search import SearchingSilo, SiloErrors, SiloTarget
from ray_fed.perimeter.boundary import EgressBlock, EgressBoundary
from ray_fed.perimeter.checks import (
    FEW_NUMBERS,
    REPEATS_ROWS,
    is_plain_array,
    plain_number,
    require_rows,
)
from ray_fed.perimeter.gate import Gate, MessageKind, Request
from ray_fed.perimeter.ledger import MessageDigest, message_digest

Search = Callable[[tuple[TransferTarget, SourceFeatures], bool], Sequence[SiloErrors | FedError]]
"""Carries out the draws: (target and sources, whether to give the errors of single sources) -> one outcome a draw."""
LEAST_HELD_OUT = 5
"""Rows that a draw by clusters holds out at least."""
RULES = ("direct", "stack", "paper", "nested", "ensemble", "ranked", "median", "oracle")
"""Names that an error may have (ray_fed/model_library/selection.py)."""
MAX_DRAWS = 4096


# ---- the message


@dataclass(frozen=True)
class SearchFindings:
    """What leaves a silo after a search: for each draw errors and the id of the chosen model, no row and no
    prediction."""

    silo: str
    num_examples: int
    """Fewest rows behind any of the errors."""
    draws: tuple[SiloErrors, ...] = field(repr=False)


def check_findings(gate: Gate, message: Any, request: Request) -> SearchFindings:
    reason = "the answer must be of class SearchFindings and hold nothing but its fields"
    gate.require(type(message) is SearchFindings, "search", reason)
    fits = message.silo == gate.silo and type(message.draws) is tuple and len(message.draws) <= MAX_DRAWS
    gate.require(fits, "search", f"it must hold at most {MAX_DRAWS} draws of this silo")
    require_rows(gate, "search", message.num_examples, behind="an error")
    draws = tuple(_checked_draw(gate, draw, request) for draw in message.draws)
    numbers = [number for draw in draws for number in _numbers(draw)]
    is_chance = gate.row_matcher.known_numbers(numbers) < max(FEW_NUMBERS, len(numbers) // 100)
    gate.require(is_chance, "search", REPEATS_ROWS)
    return SearchFindings(gate.silo, message.num_examples, draws)


def _checked_draw(gate: Gate, draw: Any, request: Request) -> SiloErrors:
    gate.require(type(draw) is SiloErrors, "search", "a draw must be of class SiloErrors")
    is_known = draw.chosen in request.models
    gate.require(is_known, "search", "the chosen model is none of those that were sent")
    num_sources = len(request.models) if request.per_source else 0
    return SiloErrors(
        _checked_errors(gate, draw.cv),
        _checked_errors(gate, draw.held_out),
        tuple(_error(gate, value) for value in _some(draw.permuted)),
        draw.chosen,
        _checked_source_errors(gate, draw.source_cv, num_sources),
        _checked_source_errors(gate, draw.source_held_out, num_sources),
    )


def _checked_errors(gate: Gate, errors: Any) -> dict[str, float]:
    are_known = type(errors) is dict and set(errors) <= set(RULES)
    gate.require(are_known, "search", f"errors must be named {', '.join(RULES)}")
    return {name: _error(gate, value) for name, value in errors.items()}


def _checked_source_errors(gate: Gate, values: Any, num_sources: int) -> np.ndarray:
    fits = is_plain_array(values, np.float64) and len(values) in (0, num_sources)
    gate.require(fits, "search", "the errors of single sources must be one float64 per source, or none")
    is_bounded = bool((np.isnan(values) | (np.abs(values) <= MAX_SUM)).all())
    gate.require(is_bounded, "search", "the errors of single sources must be finite, or NaN")
    return np.where(np.isnan(values), np.nan, values)


def _error(gate: Gate, value: Any) -> float:
    """Return an error, or NaN where a rule gave none; every NaN becomes the same NaN, because its other bits could
    carry something."""
    is_none = type(value) is float and math.isnan(value)
    return math.nan if is_none else plain_number(gate, "search", value, "an error")


def _some(values: Any) -> tuple:
    return values if type(values) is tuple else ()


def _numbers(draw: SiloErrors) -> list[float]:
    return [*draw.cv.values(), *draw.held_out.values(), *draw.permuted, *draw.source_cv, *draw.source_held_out]


def digest_findings(kind: str, message: SearchFindings) -> MessageDigest:
    return message_digest(kind, message, RULES, message.num_examples)


KINDS = {"search": MessageKind(SearchFindings, check_findings, digest_findings, parts=(SiloErrors,))}


# ---- the silo


class GuardedSearch(EgressBoundary):
    """See `SearchingSilo` for what the calls mean."""

    silo: SearchingSilo

    def __init__(
        self,
        name: str,
        target: SiloTarget,
        block: EgressBlock = contextlib.nullcontext,
        redirects_output: bool = False,
        site_file: Path | None = None,
    ):
        super().__init__(SiloSpec(name, target), KINDS, block, redirects_output, site_file)
        self._target, self._models = target, ()
        self._build(lambda: setattr(self, "silo", SearchingSilo(name, target)))

    def take(self, models: Sequence[PackedModel], layers: str = "last") -> int:
        """Keep source models; returns how many were sent."""
        self._run("taking models", lambda: self._take(models, layers))
        self._models = tuple(str(model.id) for model in models)
        return len(models)

    def _take(self, models: Sequence[PackedModel], layers: str) -> None:
        self.silo.take(models, layers)
        target, _ = self.silo.prepared
        self.gate.row_matcher.add("values", np.asarray(target.values, np.float64))
        for values in target.descriptors.values():
            self.gate.row_matcher.add("descriptor", np.asarray(values, np.float64))

    def search(self, protocol: Protocol, run: Search) -> list[SiloErrors]:
        """Return the errors of each draw. `run` is the runtime's own code, not blocked: it starts tasks."""
        findings = self._run("searching", lambda: self._findings(protocol, run), is_blocked=False)
        request = Request("search", models=self._models, per_source=self._gives_source_errors())
        return list(self._release("searching", findings, request).draws)

    def _findings(self, protocol: Protocol, run: Search) -> SearchFindings:
        prepared, draws = self.silo.prepared, []
        for outcome in run(prepared, self._gives_source_errors()):
            if isinstance(outcome, FedError):
                raise outcome
            draws.append(outcome)
        return SearchFindings(self.spec.name, _rows_behind(prepared[0], protocol), tuple(draws))

    def _gives_source_errors(self) -> bool:
        """Whoever asks may want the errors of single sources; for rows of its own the owner must allow it."""
        is_public = self._target.source == "embedded"
        return self.silo.shares_source_errors and (is_public or self.site.policy.source_errors)


def _rows_behind(target: TransferTarget, protocol: Protocol) -> int:
    """Return the fewest rows that any error of a draw can be a mean over."""
    held_out = LEAST_HELD_OUT if protocol.clusters else len(np.unique(target.groups)) - protocol.rows
    return int(min(protocol.rows, max(held_out, LEAST_HELD_OUT), protocol.max_held_out))
