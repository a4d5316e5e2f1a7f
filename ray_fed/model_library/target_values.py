"""Numbers as people write them into tables: read, or refused with a reason that can be counted.

written                                  read as
12.1   −3   1.2e-3   true                the number
12.1±0.3   12.1 +/- 0.3   12.1(3)        12.1; the uncertainty is left out, and counted as such
12.1 GPa                                 12.1, where that is the unit of the column
3,4      in a column of decimal commas   3.4; 1,234 alone could be either and is refused
<5   >= 100   ~3   3-5                   refused: a bound, about, a range
"""

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ray_fed.materials.databases.columns import MINUS, MISSING_TEXTS

_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_PLAIN = re.compile(_NUMBER)
_UNCERTAIN = re.compile(rf"({_NUMBER})\s*(?:(?:±|\+/-|\+-)\s*{_NUMBER}|\(\d+\))")
_RANGE = re.compile(rf"{_NUMBER}\s*(?:-|–|—|to|\.\.)\s*{_NUMBER}")
_COMMAS = re.compile(r"[-+]?\d{1,3}(?:,\d{3})+(?:\.\d*)?")
_ONE_COMMA = re.compile(r"([-+]?\d*),(\d+)((?:[eE][-+]?\d+)?)")

EMPTY, BOUND, ABOUT, RANGE = "no value", "a bound such as '<5'", "about, such as '~3'", "a range such as '3-5'"
COMMA, TEXT, INFINITE = "a comma that may part thousands or decimals", "no number", "not finite"
UNCERTAIN, DECIMAL_COMMA = "read without its uncertainty", "read with a decimal comma"


@dataclass(frozen=True)
class TargetValues:
    """A column of targets, and what became of what was written."""

    values: np.ndarray
    """float64 [rows], NaN where refused."""
    reasons: tuple[str, ...]
    """[rows], "" where a number was read."""
    notes: Mapping[str, int]
    """How numbers were read that are not plain -> rows."""


def read_targets(column: Sequence[Any], unit: str = "") -> TargetValues:
    """Return the numbers of a column; nothing that was written is dropped without a reason."""
    if all(type(value) in (int, float) for value in column):
        return _plain(np.array(column, float))
    texts = [_text(value) for value in column]
    has_decimal_commas = any(_is_decimal_comma(text) for text in texts) and not any("." in text for text in texts)
    found = [_read(text, unit, has_decimal_commas) for text in texts]
    notes = Counter(note for _, reason, note in found if note and not reason)
    values = np.array([value for value, _, _ in found], float)
    return TargetValues(values, tuple(reason for _, reason, _ in found), dict(notes))


def _plain(values: np.ndarray) -> TargetValues:
    reasons = np.where(np.isnan(values), EMPTY, np.where(np.isfinite(values), "", INFINITE))
    return TargetValues(np.where(np.isfinite(values), values, np.nan), tuple(reasons.tolist()), {})


def _text(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    text = " ".join(str(value).replace(MINUS, "-").split())
    return "" if text.casefold() in MISSING_TEXTS | {"<na>", "nat"} else text


def _is_decimal_comma(text: str) -> bool:
    """Whether a comma cannot part thousands: "3,4", "0,123", "3,4567"."""
    match = _ONE_COMMA.fullmatch(text)
    return match is not None and (len(match[2]) != 3 or match[1].lstrip("+-") in ("", "0"))


def _read(text: str, unit: str, has_decimal_commas: bool) -> tuple[float, str, str]:
    """Return (number, reason why there is none, how it was read)."""
    nothing = math.nan
    if not text:
        return nothing, EMPTY, ""
    if text[0] in "<>≤≥":
        return nothing, BOUND, ""
    if text[0] in "~≈" or text.casefold().startswith(("ca.", "about ")):
        return nothing, ABOUT, ""
    if unit and text.endswith(unit) and text != unit:
        text = text[: -len(unit)].rstrip()
    if text.casefold() in ("true", "false"):
        return float(text.casefold() == "true"), "", ""
    if _PLAIN.fullmatch(text):
        return _finite(text)
    if uncertain := _UNCERTAIN.fullmatch(text):
        return (*_finite(uncertain[1])[:2], UNCERTAIN)
    if _RANGE.fullmatch(text):
        return nothing, RANGE, ""
    if "," in text:
        return _with_comma(text, has_decimal_commas)
    return nothing, INFINITE if text.casefold().lstrip("+-") in ("inf", "infinity") else TEXT, ""


def _with_comma(text: str, has_decimal_commas: bool) -> tuple[float, str, str]:
    one = _ONE_COMMA.fullmatch(text)
    if one is not None and (has_decimal_commas or _is_decimal_comma(text)):
        return (*_finite(f"{one[1] or '0'}.{one[2]}{one[3]}")[:2], DECIMAL_COMMA)
    if _COMMAS.fullmatch(text) and (text.count(",") > 1 or "." in text):
        return _finite(text.replace(",", ""))
    return math.nan, COMMA if one is not None else TEXT, ""


def _finite(text: str) -> tuple[float, str, str]:
    number = float(text)
    return (number, "", "") if math.isfinite(number) else (math.nan, INFINITE, "")
