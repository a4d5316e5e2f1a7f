"""Searches in a model library at the gate: errors of known rules on a silo's rows, and which known model was chosen."""

import hashlib
import json
import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ray_fed.model_library.silo_search import SiloErrors
from ray_fed.perimeter.gate import FEW_NUMBERS, REBUILT, Gate, Request
from ray_fed.perimeter.message_digest import KNOWN, MessageDigest

RULES = ("direct forest", "direct ridge", "paper", "nested", "ensemble", "ranked", "median", "oracle")
"""Names that an error may have (ray_fed/model_library/selection.py)."""
MOST_DRAWS = 4096


@dataclass(frozen=True)
class SearchFindings:
    """What leaves a silo after a search: for each draw errors and the id of the chosen model, no row and no
    prediction."""

    silo: str
    num_examples: int
    """Fewest rows behind any of the errors."""
    draws: tuple[SiloErrors, ...] = field(repr=False)


def _findings(gate: Gate, message: Any, request: Request) -> SearchFindings:
    if type(message) is not SearchFindings or set(vars(message)) != {"silo", "num_examples", "draws"}:
        raise gate.refusal("search", "the answer must be SearchFindings and carry nothing more than its fields")
    if message.silo != gate.silo or type(message.draws) is not tuple or len(message.draws) > MOST_DRAWS:
        raise gate.refusal("search", f"it must hold at most {MOST_DRAWS} draws of this silo")
    least = gate.policy.min_examples
    if type(message.num_examples) is not int or message.num_examples < least:
        raise gate.refusal("search", f"{message.num_examples} rows stand behind an error, min_examples={least}")
    draws = tuple(_draw(gate, draw, request) for draw in message.draws)
    numbers = [number for draw in draws for number in _numbers(draw)]
    if gate.row_matcher.known_numbers(numbers) >= max(FEW_NUMBERS, len(numbers) // 100):
        raise gate.refusal("search", "it repeats values of the silo's rows")
    return SearchFindings(gate.silo, message.num_examples, draws)


def _draw(gate: Gate, draw: Any, request: Request) -> SiloErrors:
    fields = {"cv", "held_out", "permuted", "chosen", "source_cv", "source_held_out"}
    if type(draw) is not SiloErrors or set(vars(draw)) != fields:
        raise gate.refusal("search", "a draw must be SiloErrors and carry nothing more")
    if draw.chosen not in request.models:
        raise gate.refusal("search", "the chosen model is none of those that were sent")
    num_sources = len(request.models) if request.per_source else 0
    return SiloErrors(
        _by_rule(gate, draw.cv),
        _by_rule(gate, draw.held_out),
        tuple(_number(gate, value) for value in draw.permuted),
        str(draw.chosen),
        _of_sources(gate, draw.source_cv, num_sources),
        _of_sources(gate, draw.source_held_out, num_sources),
    )


def _by_rule(gate: Gate, errors: Any) -> dict[str, float]:
    if type(errors) is not dict or not set(errors) <= set(RULES):
        raise gate.refusal("search", f"errors must be named {', '.join(RULES)}")
    return {name: _number(gate, value) for name, value in errors.items()}


def _of_sources(gate: Gate, values: Any, num_sources: int) -> np.ndarray:
    plain = type(values) is np.ndarray and values.dtype == np.float64 and values.ndim == 1
    if not plain or values.dtype.metadata or len(values) not in (0, num_sources):
        raise gate.refusal("search", "the errors of single sources must be one float64 per source, or none")
    return np.where(np.isnan(values), np.nan, values)


def _number(gate: Gate, value: Any) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise gate.refusal("search", "an error is not a number")
    return math.nan if math.isnan(value) else float(value)


def _numbers(draw: SiloErrors) -> list[float]:
    return [*draw.cv.values(), *draw.held_out.values(), *draw.permuted, *draw.source_cv, *draw.source_held_out]


def _digest_of(kind: str, message: SearchFindings) -> MessageDigest:
    told = [[draw.chosen, [number.hex() for number in map(float, _numbers(draw))]] for draw in message.draws]
    text = json.dumps(told).encode()
    num_bytes = 8 * sum(len(_numbers(draw)) for draw in message.draws)
    return MessageDigest(kind, RULES, num_bytes, hashlib.sha256(text).hexdigest(), None, message.num_examples)


REBUILT["search"] = _findings
KNOWN["search"] = (SearchFindings, _digest_of)
