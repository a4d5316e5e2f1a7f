"""Whose records are those that were named in a sum over silos.

A sum hides it: coefficients of the records have the same factor in every silo. What is left are differences of what
silos hold: the attacker knows some records of each, as of a published part of a database, and gives a record to the
silo of the nearest known one. All other silos together need none of this: they take their own parts off.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ray_fed.leakage.listed_records import Named

KNOWN = 20
"""Records of each silo that the attacker knows."""


@dataclass(frozen=True)
class Attributed:
    """How many of the records rightly named in a sum were given to the silo that has them."""

    kind: str
    """Of message."""
    summed: int
    counted: Named
    """By chance: of giving all to the silo with the most of them."""


def given_to(rows: np.ndarray, known: Mapping[str, np.ndarray]) -> list[str]:
    """Return for each row [num_rows, num_features] the silo with the nearest known row [.., num_features]."""
    names = list(known)
    distances = [np.square(rows[:, None] - known[name][None]).sum(2).min(1) for name in names]
    return [names[number] for number in np.argmin(distances, 0)]


def attributed(kind: str, rows: np.ndarray, owners: list[str], known: Mapping[str, np.ndarray]) -> Attributed:
    """Return how well named rows [num_rows, num_features] with these owners are given to silos."""
    right = sum(guess == owner for guess, owner in zip(given_to(rows, known), owners, strict=True)) if owners else 0
    most = max((owners.count(name) for name in known), default=0)
    return Attributed(kind, len(known), Named(right, len(owners), float(most)))
