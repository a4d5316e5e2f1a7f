"""Groups of compositions: same reduced formula, same chemical system, same kind of anion.

composition_keys    "SrTiO3", "O6Sr2Ti2", "Sr0.5Ti0.5O1.5" -> "8:3,22:1,38:1"   atomic number:atoms, reduced
chemical_systems    "SrTiO3", "Sr2TiO4" -> "8-22-38"
anion_classes       "SrTiO3" -> "oxide", "NaCl" -> "halide", "Ni3Al" -> "other"
"""

from collections.abc import Callable, Sequence
from fractions import Fraction
from math import gcd, lcm

import numpy as np

from ray_fed.materials.features.composition import CompositionRows, read_compositions

ANION_CLASSES = {
    "halide": (9, 17, 35, 53),
    "oxide": (8,),
    "chalcogenide": (16, 34, 52),
    "pnictide": (7, 15, 33, 51),
}
"""Class -> atomic numbers of its anions; all else is "other": metals, carbides, hydrides, borides."""
ANIONS_BY_ELECTRONEGATIVITY = (9, 8, 17, 7, 35, 53, 16, 34, 15, 33, 52, 51)
"""F O Cl N Br I S Se P As Te Sb, Pauling's scale. The first one present names the class."""
MAX_DENOMINATOR = 10_000
"""Amounts are taken as fractions up to it: Sr0.333Ti0.667 stays what it says, noise of the 12th digit does not."""


def composition_keys(formulas: Sequence[str]) -> list[str]:
    """Return one text per formula, equal for equal reduced formulas however they are written.

    A formula that cannot be read is a group of its own: its key is its text after a question mark.
    """
    return _for_each_distinct(formulas, _keys)


def chemical_systems(formulas: Sequence[str]) -> list[str]:
    """Return the elements of each formula as one text, e.g. "8-22-38" for Sr, Ti and O."""
    return _for_each_distinct(formulas, _systems)


def anion_classes(formulas: Sequence[str]) -> list[str]:
    """Return the class of the most electronegative anion former in each formula, "other" where there is none."""
    return _for_each_distinct(formulas, _classes)


def _for_each_distinct(
    formulas: Sequence[str], labels_of: Callable[[Sequence[str], CompositionRows], list[str]]
) -> list[str]:
    distinct = list(dict.fromkeys(formulas))
    labels = dict(zip(distinct, labels_of(distinct, read_compositions(distinct)[0]), strict=True))
    return [labels[formula] for formula in formulas]


def _keys(formulas: Sequence[str], rows: CompositionRows) -> list[str]:
    whole = np.abs(rows.amounts - np.rint(rows.amounts)) < 1e-9
    amounts, numbers = np.rint(rows.amounts).astype(np.int64).tolist(), rows.atomic_numbers.tolist()
    keys = []
    for formula, start, stop in _spans(formulas, rows):
        counts = amounts[start:stop] if whole[start:stop].all() else _whole(rows.amounts[start:stop].tolist())
        divisor = gcd(*counts)
        pairs = zip(numbers[start:stop], counts, strict=True)
        keys.append(",".join(f"{z}:{n // divisor}" for z, n in pairs) if counts else f"?{formula}")
    return keys


def _whole(amounts: list[float]) -> list[int]:
    """Return the smallest whole numbers in the ratio of `amounts`."""
    fractions = [Fraction(amount).limit_denominator(MAX_DENOMINATOR) for amount in amounts]
    common = lcm(*(fraction.denominator for fraction in fractions))
    return [max(1, int(fraction * common)) for fraction in fractions]


def _systems(formulas: Sequence[str], rows: CompositionRows) -> list[str]:
    numbers = rows.atomic_numbers.tolist()
    spans = _spans(formulas, rows)
    return ["-".join(map(str, numbers[start:stop])) or f"?{formula}" for formula, start, stop in spans]


def _classes(formulas: Sequence[str], rows: CompositionRows) -> list[str]:
    numbers = rows.atomic_numbers.tolist()
    classes = {anion: name for name, anions in ANION_CLASSES.items() for anion in anions}
    found = []
    for _, start, stop in _spans(formulas, rows):
        present = set(numbers[start:stop])
        anion = next((number for number in ANIONS_BY_ELECTRONEGATIVITY if number in present), None)
        found.append(classes[anion] if anion else "other")
    return found


def _spans(formulas: Sequence[str], rows: CompositionRows) -> list[tuple[str, int, int]]:
    """Return (formula, first entry, end) of each row; the span of an unreadable formula is empty."""
    bounds = rows.indptr.tolist()
    return list(zip(formulas, bounds[:-1], bounds[1:], strict=True))
