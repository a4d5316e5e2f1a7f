"""Why rows of a silo cannot be used, and what is odd about those that can, in words that hold nothing of an owner: all
that a description may say of it.

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
    "formula is missing", "formula is empty", "cannot read at", "cannot read at: it begins with",
    "cannot read: bracket is not closed",
    "cannot read: bracket closes nothing", "no atoms", "unknown element", "element is not in the element table",
    "unknown atomic number", "numbers is empty", "amount of must be a number, 0 or more",
    "full stop may be a decimal point or the dot of a hydrate; write · for the dot, or leave it out",
)  # fmt: skip
_STRUCTURES = (
    "structure is missing", "structure is empty", "structure is a web page or XML",
    "structure is neither text nor object", "unreadable structure",
    "structure has sites; 1 to 100,000 can be read", "structure has a lattice or coordinates of the wrong shape",
    "structure has a lattice vector or coordinate that is not finite",
    "structure has no lattice; molecules cannot be used",
    "structure is a dict with neither sites nor lattice_mat; it has:",
    "structure has a lattice without a reduced cell",
    "structure has translations that do not map its atoms onto each other",
    "atoms are too close; under 0.4 Å none can be", "spglib finds no primitive cell", "moyopy finds no primitive cell",
    "CIF lists no atoms with fractional coordinates", "file has structures; choose one by its number, or all",
    "file has structures, number is asked for",
    "CIF has no site with an atom on it", "CIF has a coordinate that is not a number",
    "CIF has an occupancy that is not a number, 0 or more", "site type is no element", "site label is of no element",
    "site label may be of several elements; give _atom_site_type_symbol",
    "occupancies sum to more than 1; above 1.05 it is no rounding",
    *(f"CIF has no number for _cell_{name}"
      for name in ("length_a", "length_b", "length_c", "angle_alpha", "angle_beta", "angle_gamma")),
    "POSCAR names no elements (VASP 4 format); write the symbols above their counts",
    "POSCAR has lines and announces more atoms:", "frac_coords has values for sites; three for each are needed",
    "angles close no cell", "space group is not 1 to 230", "spglib finds no space group",
    "moyopy finds no space group",
)  # fmt: skip
_FILES = (
    "torn row", "torn row; a quotation mark is not closed",
    "torn row in id_prop.csv", "torn row in targets.csv", "entry is not a JSON object",
    "no structure file for id", "structure file cannot be read:", "structure file is larger than 50 MB",
)  # fmt: skip

UNREADABLE = frozenset((
    OTHER, "target is not finite", "target is beyond 1e+15", "label is none of the classes",
    *_FORMULAS, *_STRUCTURES, *_FILES,
    *(f"{OUTSIDE} {transform}" for transform in ("log10", "log1p", "sqrt")),
    *(f"{name} is missing" for name in (*_NUMBERS, *_LISTS)),
    *(f"{name} {fault}" for name in _NUMBERS
      for fault in ("is not a number", "is not a number; write a decimal point", "is a unit, not a number")),
    *(f"{name} {fault}" for name in _LISTS for fault in ("is not a list of numbers", "has a value that is not finite")),
    *(f"{name} is not {bound}" for name in _NUMBERS for bound in _BOUNDS),
    *(f"cell: {name} is missing" for name in _NUMBERS),
    *(f"cell: {name} is, must be {bound}" for name in _NUMBERS for bound in _BOUNDS),
))  # fmt: skip
"""Every reason that may leave."""


NOTES = frozenset((
    OTHER, "D or T is counted as H", "site typed as a group of atoms",
    "hydrogens without sites are counted by _atom_site_attached_hydrogens",
    "hydrogens without sites are counted by the file's formula", "sites give another formula than the file",
    "occupancies a little above 1 are scaled back", "coordinates near 1/3 and 2/3 are rounded to them",
    "symmetry operations are those of the space group's name", "pymatgen warns", "spglib warns", "moyopy warns",
    "formula given is not that of the structure", "space group given is not the one found",
    "cell as given: there are no sites to standardise it by", "one of several structures in its file",
    "id is listed more than once", "id is listed more than once with different targets",
    "formula is listed more than once with different targets",
    "a list without a header: its second column is the target, further ones are not used",
    "formula NaN is read as sodium nitride", "spglib finds no space group", "moyopy finds no space group",
    "structure file that the list does not name", "file of a kind that is not read",
    "line before the header is left out", "decimal commas are read as points", "sheet beside the first is left out",
))  # fmt: skip
"""Every note that may leave."""


def kind_of(reason: str, known: frozenset[str] = UNREADABLE) -> str:
    """Return a row's reason without its quoted parts, which hold values; `OTHER` for one that is not known."""
    kind = re.sub(r"(?: in)?\s*'[^']*'", "", reason).strip()
    return kind if kind in known else OTHER


def counted_reasons(reasons: Iterable[str]) -> dict[str, int]:
    """Return kind of reason -> number of rows; rows without a reason do not count."""
    return dict(Counter(kind_of(reason) for reason in reasons if reason))


def counted_notes(notes: Iterable[str]) -> dict[str, int]:
    """Return kind of note -> number of rows; a row may have several, parted by "; "."""
    bare = (re.sub(r"\s*'[^']*'", "", note).split("; ") for note in notes if note)
    return dict(Counter(kind_of(one, NOTES) for several in bare for one in dict.fromkeys(several)))
