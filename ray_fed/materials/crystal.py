"""A crystal as all readers of structures hand it on, and what they share."""

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np

from ray_fed.errors import DataError, quoted

MAX_REASON = 2000
"""Characters of a foreign parser's words that a reason keeps."""


@dataclass(frozen=True)
class Crystal:
    """One crystal for n sites.

    formula      reduced, e.g. "SrTiO3"
    vectors      float64 [3, 3] in Å, one lattice vector per row
    positions    float64 [n, 3], fractions of the vectors
    kinds        int64   [n], equal for sites with equal occupation
    space_group  the number the file gives, else None
    amounts      {symbol: atoms in the cell}, with those that have no site; empty: as the formula says
    occupancies  float64 [n], atoms on each site; None: 1
    notes        what is odd about it, for its row
    numbers      int64   [n], atomic number of the one whole atom on each site; 0 where there is another thing
    """

    formula: str
    vectors: np.ndarray
    positions: np.ndarray
    kinds: np.ndarray
    space_group: int | None = None
    amounts: Mapping[str, float] = field(default_factory=dict)
    occupancies: np.ndarray | None = None
    notes: tuple[str, ...] = ()
    numbers: np.ndarray | None = None


@dataclass(frozen=True)
class CrystalSites:
    """Atoms in a cell.

    vectors    float64 [3, 3] in Å, one lattice vector per row
    positions  float64 [n, 3], fractions of the vectors
    numbers    int64   [n], atomic numbers; 0 where a site is no whole atom
    """

    vectors: np.ndarray
    positions: np.ndarray
    numbers: np.ndarray


FULL = 1e-3
"""A site with an atom less this is full."""


def number_on_site(atoms: Mapping[str, float]) -> int:
    """Return the atomic number of what is on a site, {symbol: atoms}; 0 unless that is one whole atom."""
    if len(atoms) != 1:
        return 0
    ((symbol, amount),) = atoms.items()
    return _atomic_number(symbol) if abs(amount - 1) <= FULL else 0


@lru_cache(maxsize=1000)
def _atomic_number(symbol: str) -> int:
    from pymatgen.core import Element

    return Element(symbol).Z if Element.is_valid_symbol(symbol) else 0


def crystal_of_pymatgen(structure: Any, space_group: int | None = None, notes: tuple[str, ...] = ()) -> Crystal:
    """Return the crystal of a pymatgen Structure."""
    amounts = structure.composition.get_el_amt_dict()
    return Crystal(
        reduced_formula(amounts), np.array(structure.lattice.matrix), np.array(structure.frac_coords),
        numbered([str(site.species) for site in structure]), space_group, amounts,
        np.array([site.species.num_atoms for site in structure]), notes,
        np.array([number_on_site(site.species.get_el_amt_dict()) for site in structure], np.int64),
    )  # fmt: skip


def numbered(labels: Sequence[str]) -> np.ndarray:
    """Return int64 [n], from 1 in the order of the alphabet, equal for equal labels."""
    return np.unique(np.array(labels, dtype=str), return_inverse=True)[1].reshape(-1).astype(np.int64) + 1


@contextmanager
def warnings_as_notes() -> Iterator[list[str]]:
    """Keep the warnings of a parser off the terminal, and give them as notes, filled at the end."""
    notes: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield notes
    said = (str(one.message) for one in caught if not issubclass(one.category, DeprecationWarning))
    notes += dict.fromkeys(f"pymatgen warns {quoted(message, MAX_REASON)}" for message in said)


def reduced_formula(amounts: Mapping[str, float]) -> str:
    """Return the reduced formula of {symbol: amount} in the usual order; DataError unless amounts are positive."""
    for symbol, amount in amounts.items():
        if not 0 <= amount < math.inf:
            raise DataError(f"amount {quoted(amount)} of {quoted(symbol)} must be a number, 0 or more")
    return _written(tuple(sorted(amounts.items())))


@lru_cache(maxsize=100_000)
def _written(amounts: tuple[tuple[str, float], ...]) -> str:
    from pymatgen.core import Composition

    try:
        with warnings.catch_warnings():
            # pymatgen warns that He, Ne and Ar have no electronegativity to sort them by.
            warnings.simplefilter("ignore")
            return Composition(dict(amounts)).reduced_formula
    except ValueError as error:
        symbols = " ".join(symbol for symbol, _ in amounts)
        raise DataError(f"unknown element in {quoted(symbols)}") from error
