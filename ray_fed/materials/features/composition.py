"""Compositions of many materials as three flat arrays, from whatever a user has at hand.

Anything that cannot be read leaves an empty row and a reason that names it: never an exception, never a silent NaN.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from ray_fed.errors import DataError, quoted
from ray_fed.materials.features.formulas import amount_of, atomic_number, flat_formulas, read_formula

KEY_STRIDE = 256
"""Atomic numbers fit below it: row * KEY_STRIDE + Z orders entries by row, then by element."""

MAX_WHOLE = 1e15
"""Whole numbers below it are exact."""

_ENTRY = r"""\s*(?:'|")([^'":]{1,12})(?:'|")\s*:\s*([-+.\deE]{1,24})\s*"""
_WRITTEN_ENTRY = re.compile(_ENTRY)
_WRITTEN_MAPPING = re.compile(rf"\s*\{{{_ENTRY}(?:,{_ENTRY})*\}}\s*")
"""A mapping of symbols to amounts as text."""
_SPECIES = re.compile(r"([A-Z][a-z]?)(?:\d*\.?\d*[+-])?", re.ASCII)
"""A symbol with or without an oxidation state: "Fe", "Fe3+", "O2-"."""


@dataclass(frozen=True)
class CompositionRows:
    """Compositions in compressed-sparse-row form; within a row elements are unique and in order of atomic number.

    indptr          int64   [num_rows + 1]   row i owns entries indptr[i]:indptr[i + 1]; an unreadable row owns none
    atomic_numbers  int64   [num_entries]    1 to 118
    amounts         float64 [num_entries]    atoms per formula as written, positive
    """

    indptr: np.ndarray
    atomic_numbers: np.ndarray
    amounts: np.ndarray

    def __len__(self) -> int:
        return len(self.indptr) - 1

    @property
    def num_elements(self) -> np.ndarray:
        """Number of different elements per row, int64 [num_rows]."""
        return np.diff(self.indptr)

    def is_like(self, other: "CompositionRows", row: int, tolerance: float = 1e-3) -> bool:
        """Whether the row's composition is that of the same row of `other`, whatever the size of its formula."""
        own, others = (slice(rows.indptr[row], rows.indptr[row + 1]) for rows in (self, other))
        if not np.array_equal(self.atomic_numbers[own], other.atomic_numbers[others]):
            return False
        shares = [
            rows.amounts[entries] / rows.amounts[entries].sum() for rows, entries in ((self, own), (other, others))
        ]
        return bool(np.abs(shares[0] - shares[1]).max(initial=0.0) < tolerance)

    def reduced(self) -> "CompositionRows":
        """Return the rows whose amounts are all whole numbers divided by what these have in common: Na4Cl4 is NaCl."""
        if not len(self.amounts):
            return self
        whole = (self.amounts == np.floor(self.amounts)) & (self.amounts < MAX_WHOLE)
        # A row with a fraction has the divisor 1: one of its entries is then 1 here.
        entries = np.where(whole, self.amounts, 1.0).astype(np.int64)
        filled = np.flatnonzero(self.num_elements)
        divisors = np.gcd.reduceat(entries, self.indptr[filled])
        return replace(self, amounts=self.amounts / np.repeat(divisors, self.num_elements[filled]))

    @classmethod
    def from_entries(
        cls, rows: np.ndarray, atomic_numbers: np.ndarray, amounts: np.ndarray, num_rows: int
    ) -> "CompositionRows":
        """Sort entries by row and element and add up entries of the same element.

        With one order per composition no statistic depends, to the last bit, on how a formula is written.
        """
        keys = rows * KEY_STRIDE + atomic_numbers
        if (np.diff(keys) <= 0).any():
            # Stable, and bincount adds one by one: amounts of an element add up in the order of the formula.
            order = np.argsort(keys, kind="stable")
            new = np.diff(keys[order], prepend=-1) > 0
            amounts = np.bincount(np.cumsum(new) - 1, weights=amounts[order])
            keys = keys[order][new]
        per_row = np.bincount(keys // KEY_STRIDE, minlength=num_rows)
        return cls(np.concatenate(([0], np.cumsum(per_row))), keys % KEY_STRIDE, amounts)

    @classmethod
    def from_amounts(cls, compositions: Sequence[Mapping[int, float]]) -> "CompositionRows":
        """Return the rows of {atomic number: amount} mappings."""
        rows = np.repeat(np.arange(len(compositions)), [len(composition) for composition in compositions])
        numbers = [number for composition in compositions for number in composition]
        amounts = [amount for composition in compositions for amount in composition.values()]
        return cls.from_entries(rows, np.array(numbers, np.int64), np.array(amounts, np.float64), len(compositions))

    def with_rows(self, others: "CompositionRows", positions: np.ndarray) -> "CompositionRows":
        """Return these rows with the rows of `others` added at `positions`."""
        rows = np.concatenate((
            np.repeat(np.arange(len(self)), self.num_elements), np.repeat(positions, others.num_elements)
        ))  # fmt: skip
        numbers = np.concatenate((self.atomic_numbers, others.atomic_numbers))
        return self.from_entries(rows, numbers, np.concatenate((self.amounts, others.amounts)), len(self))


def read_compositions(items: Sequence[Any]) -> tuple[CompositionRows, list[str]]:
    """Read formulas, {symbol: amount} mappings, pymatgen Compositions or Structures, in any mixture.

    Returns the rows and one reason per row, "" where it was read. The text "NaN" is sodium nitride; a missing value
    (None, NaN, pandas.NA) and empty text are reasons. Oxidation states are dropped.
    """
    flat = flat_formulas([item if isinstance(item, str) else "" for item in items])
    rows = CompositionRows.from_entries(flat.rows, flat.atomic_numbers, flat.amounts, len(items))
    reasons = [""] * len(items)
    others = np.flatnonzero(~flat.readable)
    if not len(others):
        return rows, reasons
    compositions: list[Mapping[int, float]] = []
    for position in others.tolist():
        amounts, reasons[position] = _amounts_or_reason(items[position])
        compositions.append(amounts)
    return rows.with_rows(CompositionRows.from_amounts(compositions), others), reasons


def _amounts_or_reason(item: Any) -> tuple[dict[int, float], str]:
    try:
        return _amounts(item), ""
    except DataError as error:
        return {}, str(error)


def _amounts(item: Any) -> dict[int, float]:
    """Return {atomic number: positive amount} of one item; DataError says why it cannot be read."""
    if isinstance(item, str):
        amounts = _read_written_mapping(item) if _WRITTEN_MAPPING.fullmatch(item) else read_formula(item)
    elif isinstance(item, Mapping):
        amounts = _read_mapping(item)
    elif hasattr(item, "composition"):
        amounts = _read_mapping(item.composition)
    elif is_missing(item):
        raise DataError("formula is missing")
    else:
        kind = type(item).__name__
        raise DataError(f"{quoted(item)} is of type {kind}: give a formula, a dict, a Composition or a Structure")
    present = {number: amount for number, amount in amounts.items() if amount > 0}
    if not present:
        raise DataError("formula is empty" if not str(item).strip() else f"no atoms in {quoted(item)}")
    return present


def is_missing(item: Any) -> bool:
    """Return whether a cell of a table is empty: None, NaN, NaT or pandas.NA."""
    return item is None or bool(pd.api.types.is_scalar(item) and pd.isna(item))


def _read_written_mapping(text: str) -> dict[int, float]:
    """Read {"Na": 1, "Cl": 1} as JSON or Python write it."""
    entries = _WRITTEN_ENTRY.findall(text)
    amounts: dict[int, float] = {}
    for symbol, amount in entries:
        for number, read in _read_mapping({symbol: amount}).items():
            amounts[number] = amounts.get(number, 0.0) + read
    return amounts


def _read_mapping(composition: Mapping) -> dict[int, float]:
    """Add up amounts by element; keys are symbols, elements or species."""
    amounts: dict[int, float] = {}
    for key, amount in composition.items():
        text = key if isinstance(key, str) else str(getattr(key, "symbol", key))
        species = _SPECIES.fullmatch(text)
        number = atomic_number(species.group(1) if species else text, composition)
        amounts[number] = amounts.get(number, 0.0) + amount_of(amount, text, composition)
    return amounts
