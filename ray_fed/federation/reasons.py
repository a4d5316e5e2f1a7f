"""Why rows of a silo cannot be used, in words that hold nothing of an owner: all that a description may say of it.

Readers of data write a reason for each row into the silo's own tables, values of the row in quotes. What leaves is a
count under the reason without its quotes, if it is one of these; under `OTHER` if not.
"""

import re
from collections import Counter
from collections.abc import Iterable

OTHER = "another reason"
OUTSIDE = "target is outside of"
"""Before the name of a transform that has no value for it."""
_NUMBERS = (
    "a", "b", "c", "alpha", "beta", "gamma", "volume", "num_atoms", "n_sites", "space group", "spacegroup_number",
    "target",
)  # fmt: skip
_LISTS = ("numbers", "frac_coords", "atomic numbers")
_BOUNDS = (
    "0.1 to 10000 Å", "0 to 180 degrees", "a volume", "positive and finite", "between 0 and 180",
    "a whole number from 1 to 230",
)  # fmt: skip

_FORMULAS = (
    "formula is missing", "formula is empty", "cannot read at", "cannot read: bracket is not closed",
    "cannot read: bracket closes nothing", "no atoms", "unknown element", "element is not in the element table",
    "unknown atomic number", "numbers is empty", "amount of must be a number, 0 or more",
)  # fmt: skip
_STRUCTURES = (
    "structure is missing", "structure is empty", "structure is neither text nor object", "unreadable structure",
    "structure has sites; 1 to 100,000 can be read", "structure has a lattice or coordinates of the wrong shape",
    "structure has a lattice vector or coordinate that is not finite",
    "structure has no lattice; molecules cannot be used",
    "structure is a dict with neither sites nor lattice_mat; it has:",
    "POSCAR names no elements (VASP 4 format); write the symbols above their counts",
    "POSCAR has lines and announces more atoms:", "frac_coords has values for sites; three for each are needed",
    "angles close no cell", "space group is not 1 to 230", "spglib finds no space group",
    "moyopy finds no space group",
)  # fmt: skip
_FILES = (
    "torn row", "torn row in id_prop.csv", "torn row in targets.csv", "entry is not a JSON object",
    "no structure file for id", "structure file cannot be read:", "structure file is larger than 50 MB",
)  # fmt: skip

UNREADABLE = frozenset((
    OTHER, "target is not finite", "target is beyond 1e+15", "label is none of the classes",
    *_FORMULAS, *_STRUCTURES, *_FILES,
    *(f"{OUTSIDE} {transform}" for transform in ("log10", "log1p", "sqrt")),
    *(f"{name} is missing" for name in (*_NUMBERS, *_LISTS)),
    *(f"{name} is not a number" for name in _NUMBERS),
    *(f"{name} {fault}" for name in _LISTS for fault in ("is not a list of numbers", "has a value that is not finite")),
    *(f"{name} is not {bound}" for name in _NUMBERS for bound in _BOUNDS),
    *(f"cell: {name} is missing" for name in _NUMBERS),
    *(f"cell: {name} is, must be {bound}" for name in _NUMBERS for bound in _BOUNDS),
))  # fmt: skip
"""Every reason that may leave."""


def kind_of(reason: str) -> str:
    """Return a row's reason without its quoted parts, which hold values; `OTHER` for one that is not known."""
    kind = re.sub(r"(?: in)?\s*'[^']*'", "", reason).strip()
    return kind if kind in UNREADABLE else OTHER


def counted_reasons(reasons: Iterable[str]) -> dict[str, int]:
    """Return kind of reason -> number of rows; rows without a reason do not count."""
    return dict(Counter(kind_of(reason) for reason in reasons if reason))
