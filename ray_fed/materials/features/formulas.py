"""Chemical formulas to numbers: many flat ones at once by array operations, or any single one.

    flat_formulas   "Fe2O3", "La0.7Sr0.3MnO3": elements and decimal amounts, nothing else; millions per second
    read_formula    also brackets, hydrates, subscripts, spaces and exponents; thousands per second

Both give the amount the same bits: a decimal of up to 15 digits is the quotient of two exact integers.
"""

import math
import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ray_fed.errors import DataError, quoted
from ray_fed.materials.features.elements import ATOMIC_NUMBERS

HYDRATE_DOT = re.compile(r"[·•∙⋅*]")
SUBSCRIPTS = str.maketrans("₀₁₂₃₄₅₆₇₈₉", "0123456789")
SOLVATES = r"(?:\(?H2O\)?|D2O|NH3|CH3OH|C2H5OH|N2H4|H2O2)"
_HYDRATE_STOP = re.compile(
    rf"(?<![0-9.])(?P<before>(?:[1-9]\d*)?)\.(?P<coefficient>\d+(?:\.\d+)?)?(?={SOLVATES}(?:[)\]}}]|\.|$))"
)
"""A full stop before what crystallises with a salt: "CuSO4.5H2O", "CaSO4.0.5H2O", "LiOH.H2O"; not "Ca0.5H2O"."""
_UNCLEAR_STOP = re.compile(r"([A-Z][a-z]?)(?:[1-9]\d*)?\.\d+(?=[A-Z])")
"""A full stop after an element and before further ones, where both a decimal point and a dot are possible."""
_NUMBER = r"(?P<number>\d+\.?\d*(?:e[-+]?\d+)?|\.\d+(?:e[-+]?\d+)?)"
_TOKEN = re.compile(rf"\s*(?:(?P<symbol>[A-Z][a-z]*)|(?P<opening>[(\[{{])|(?P<closing>[)\]}}]))\s*{_NUMBER}?", re.ASCII)
_COEFFICIENT = re.compile(rf"\s*{_NUMBER}?", re.ASCII)
_CLOSING = {"(": ")", "[": "]", "{": "}"}

UPPER, NEWLINE, LOWER, DIGIT, DOT, OTHER = range(6)
MAX_DIGITS = 15
"""Digits (and a point) of an amount that the fast reader takes: all integers below 1e15 are exact in float64."""
_POWERS_OF_TEN = 10.0 ** np.arange(MAX_DIGITS + 1)


def _kinds_of_characters() -> np.ndarray:
    """Return the kind of each byte, uint8 [256]."""
    kinds = np.full(256, OTHER, np.uint8)
    for characters, kind in (("AZ", UPPER), ("az", LOWER), ("09", DIGIT), ("..", DOT), ("\n\n", NEWLINE)):
        kinds[ord(characters[0]) : ord(characters[1]) + 1] = kind
    return kinds


def _allowed_pairs() -> np.ndarray:
    """Return bool [64], index 8 * kind + kind of the next character: the grammar of a flat formula."""
    follows = {
        NEWLINE: (UPPER,),
        UPPER: (UPPER, LOWER, DIGIT, NEWLINE),
        LOWER: (UPPER, DIGIT, NEWLINE),
        DIGIT: (UPPER, DIGIT, DOT, NEWLINE),
        DOT: (DIGIT,),
    }
    allowed = np.zeros(64, bool)
    allowed[[8 * kind + following for kind, choices in follows.items() for following in choices]] = True
    return allowed


def _numbers_of_symbols() -> np.ndarray:
    """Return the atomic number by 27 * first letter + second letter (0: none), int64; 0 where no element."""
    numbers = np.zeros(26 * 27, np.int64)
    for symbol, number in ATOMIC_NUMBERS.items():
        numbers[27 * (ord(symbol[0]) - 65) + (ord(symbol[1]) - 96 if len(symbol) > 1 else 0)] = number
    return numbers


_KINDS, _ALLOWED, _SYMBOLS = _kinds_of_characters(), _allowed_pairs(), _numbers_of_symbols()


class FlatEntries(NamedTuple):
    """Elements of many formulas, in the order they are written.

    rows            int64   [num_entries]   which formula
    atomic_numbers  int64   [num_entries]
    amounts         float64 [num_entries]   positive
    readable        bool    [num_formulas]  False: not flat, or wrong; no entries, `read_formula` has the last word
    """

    rows: np.ndarray
    atomic_numbers: np.ndarray
    amounts: np.ndarray
    readable: np.ndarray


def flat_formulas(formulas: Sequence[str]) -> FlatEntries:
    """Read all flat formulas of a list at once."""
    codes = _one_line_each(formulas)
    kinds = _KINDS[codes]
    # Capitals and line ends are where a symbol with its amount ends.
    boundaries = np.flatnonzero(kinds <= NEWLINE)
    capital = kinds[boundaries] == UPPER
    entries = np.flatnonzero(capital)
    starts, ends = boundaries[entries], boundaries[entries + 1]
    rows = np.cumsum(~capital)[entries]
    two_letters = kinds[starts + 1] == LOWER
    second = np.where(two_letters, codes[starts + 1] - np.uint8(96), 0)
    numbers = _SYMBOLS[27 * (codes[starts].astype(np.int64) - 65) + np.minimum(second, 26)]
    amounts, exact = _decimals(codes, starts + 1 + two_letters, ends)
    readable = _grammatical(kinds, boundaries[~capital], len(formulas))
    readable[rows[(numbers == 0) | ~exact]] = False
    with_stops = [at for at, formula in enumerate(formulas) if "." in formula]
    readable[[at for at in with_stops if readable[at] and may_have_dots(formulas[at])]] = False
    keep = readable[rows]
    return FlatEntries(rows[keep], numbers[keep], amounts[keep], readable)


def _one_line_each(formulas: Sequence[str]) -> np.ndarray:
    """Return the formulas as bytes, uint8, each ended by a line feed."""
    text = "\n".join(formulas)
    if text.count("\n") >= len(formulas):
        text = "\n".join(formula.replace("\n", "?") for formula in formulas)
    return np.frombuffer((text + "\n" if formulas else "").encode("ascii", "replace"), np.uint8)


def _grammatical(kinds: np.ndarray, line_ends: np.ndarray, num_formulas: int) -> np.ndarray:
    """Return bool [num_formulas]: every character may follow the one before it."""
    before = np.concatenate((np.array([NEWLINE], np.uint8), kinds[:-1]))
    wrong = np.flatnonzero(~_ALLOWED[8 * before[: len(kinds)] + kinds])
    readable = np.ones(num_formulas, bool)
    readable[np.searchsorted(line_ends, wrong)] = False
    return readable


def _decimals(codes: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Read the decimal numbers codes[start:end], 1 where empty; also say which are exact and positive."""
    lengths = ends - starts
    mantissas, decimals, points = np.zeros(len(starts)), np.zeros(len(starts), np.int64), np.zeros(len(starts), bool)
    exact = lengths <= MAX_DIGITS
    reading = np.flatnonzero(exact & (lengths > 0))
    place = 0
    while len(reading):
        characters = codes[starts[reading] + place]
        point = characters == ord(".")
        exact[reading[point & points[reading]]] = False
        digits = reading[~point]
        mantissas[digits] = 10.0 * mantissas[digits] + (characters[~point] - 48.0)
        decimals[digits] += points[digits]
        points[reading[point]] = True
        place += 1
        reading = reading[lengths[reading] > place]
    amounts = np.where(lengths > 0, mantissas / _POWERS_OF_TEN[decimals], 1.0)
    return amounts, exact & (amounts > 0)


def atomic_number(symbol: str, whole: object) -> int:
    """Return the atomic number of a symbol found in `whole`; DataError names both when it is no element."""
    if symbol not in ATOMIC_NUMBERS:
        raise DataError(f"unknown element {quoted(symbol)} in {quoted(whole)}")
    return ATOMIC_NUMBERS[symbol]


def amount_of(value: Any, of: str, whole: object) -> float:
    """Return an amount as a float; DataError unless it is a number, finite, and not negative."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not 0 <= number < math.inf:
        raise DataError(f"amount {quoted(value)} of {quoted(of)} in {quoted(whole)} must be a number, 0 or more")
    return number


def read_formula(formula: str) -> dict[int, float]:
    """Return {atomic number: amount} of one formula; DataError says where it stops making sense.

    Brackets () [] {} nest; "CuSO4·5H2O", "CuSO4*5H2O" and "CuSO4.5H2O" are hydrates. Else a full stop is a decimal
    point, and refused where it may be either: "Al2O3.2SiO2" has oxygen on both sides of it, which no formula would
    write of one compound.
    """
    first, *others = HYDRATE_DOT.split(_with_dots(formula.translate(SUBSCRIPTS), formula))
    amounts = _read_part(first, formula)
    for part in others:
        coefficient = _COEFFICIENT.match(part)
        assert coefficient is not None  # every part of the pattern is optional
        factor = amount_of(coefficient["number"] or 1, "the part after the dot", formula)
        _add(amounts, _read_part(part[coefficient.end() :], formula), factor)
    return amounts


def _with_dots(text: str, whole: str) -> str:
    """Return the formula with a dot for each full stop that is one. DataError where that is unclear."""
    if "." not in text:
        return text
    found = _HYDRATE_STOP.sub(lambda stop: f"{stop['before']}·{stop['coefficient'] or ''}", text)
    for part in HYDRATE_DOT.split(found):
        for stop in _UNCLEAR_STOP.finditer(part):
            again = re.search(rf"{stop.group(1)}(?![a-z])", part[stop.end() :].partition("(")[0])
            if again or found != text:  # beside the dot of a hydrate no other full stop is sure to be a point
                raise DataError(
                    f"full stop may be a decimal point or the dot of a hydrate in {quoted(whole)}; write · for the "
                    "dot, or leave it out"
                )
    return found


def may_have_dots(text: str) -> bool:
    """Whether a full stop of a flat formula may be no decimal point: `read_formula` then has the last word."""
    return _HYDRATE_STOP.search(text) is not None or _UNCLEAR_STOP.search(text) is not None


def _read_part(text: str, whole: str) -> dict[int, float]:
    """Read elements and nested brackets; the content of each open bracket waits on a stack."""
    text, position = text.rstrip(), 0
    stack: list[tuple[str, dict[int, float]]] = [("", {})]
    while position < len(text):
        token = _TOKEN.match(text, position)
        if token is None or (token["opening"] and token["number"]):
            raise DataError(f"cannot read {quoted(whole)} at {quoted(text[position:])}{_strange(text[position])}")
        _read_token(token, stack, whole)
        position = token.end()
    if len(stack) > 1:
        raise DataError(f"cannot read {quoted(whole)}: bracket '{stack[-1][0]}' is not closed")
    return stack[0][1]


def _strange(character: str) -> str:
    """Say which character it is, of one that looks like another, or like none at all."""
    if character.isascii() and character.isprintable():
        return ""
    return f": it begins with {quoted(f'U+{ord(character):04X} ' + unicodedata.name(character, 'control character'))}"


def _read_token(token: re.Match[str], stack: list[tuple[str, dict[int, float]]], whole: str) -> None:
    """Add an element or a closed bracket to what encloses it, or open a bracket."""
    factor = amount_of(token["number"] or 1, token["symbol"] or "a bracket", whole)
    if token["symbol"]:
        _add(stack[-1][1], {atomic_number(token["symbol"], whole): 1.0}, factor)
    elif token["opening"]:
        stack.append((token["opening"], {}))
    elif _CLOSING.get(stack[-1][0]) != token["closing"]:
        raise DataError(f"cannot read {quoted(whole)}: bracket '{token['closing']}' closes nothing")
    else:
        _, group = stack.pop()
        _add(stack[-1][1], group, factor)


def _add(amounts: dict[int, float], group: Mapping[int, float], factor: float) -> None:
    for number, amount in group.items():
        amounts[number] = amounts.get(number, 0.0) + factor * amount
