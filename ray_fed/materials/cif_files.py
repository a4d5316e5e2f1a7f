"""CIF to crystals, with every atom the file speaks of, or the words why not.

pymatgen splits the text, gives lattice and symmetry operations, and repairs known dialects; the sites are put together
here, because it leaves out hydrogens: of a site shared by O and H, and of sites typed OH.

    structure_blocks(text) -> the data blocks that list atoms, each a CIF of its own
    crystal_of_cif(text)   -> Crystal, of a text with one such block
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ray_fed.errors import DataError, quoted
from ray_fed.materials.crystal import (
    MAX_REASON,
    Crystal,
    crystal_of_pymatgen,
    number_on_site,
    numbered,
    reduced_formula,
    warnings_as_notes,
)
from ray_fed.materials.lattices import cell_problems

OCCUPANCY_TOLERANCE = 1.05
"""A site with up to this many atoms has one: three thirds are written .34 and .33."""
SITE_TOLERANCE = 1e-4
"""Fractions of the cell within which two sites are one, as in pymatgen."""
FORMULA_TOLERANCE = 0.02
"""Relative difference of amounts that counts as rounding between the sites and the file's own formula."""

_BLOCK = re.compile(r"^[ \t]*data_", re.IGNORECASE)
_LISTS_ATOMS = re.compile(r"^\s*_atom_site_(?:fract_x|Cartn_x)\b", re.IGNORECASE | re.MULTILINE)
_SPACE_GROUP = re.compile(
    r"^\s*_(?:symmetry_Int_Tables_number|space_group_IT_number)\s+['\"]?(\d+)", re.IGNORECASE | re.MULTILINE
)
_LENGTHS = tuple(f"_cell_length_{name}" for name in "abc")
_ANGLES = tuple(f"_cell_angle_{name}" for name in ("alpha", "beta", "gamma"))
_COORDINATES = tuple(f"_atom_site_fract_{name}" for name in "xyz")
_ELEMENT = re.compile(r"([A-Z][a-z]?)(?![a-z])(?:\d*\.?\d*[+-]?\d*)$")
"""A symbol with or without a charge or a number: "Fe", "Fe3+", "O-2", "Na1"."""
_CHARGE = re.compile(r"\d?[+-]\d?$")
_ISOTOPES = {"D": "H", "T": "H"}
_WORDS = {"Wat": "H2O", "wat": "H2O", "WAT": "H2O", "Ow": "O", "OW": "O", "Hw": "H", "HW": "H", "O-H": "OH"}
"""Site types that are no formulas, and what they stand for."""

ISOTOPE_NOTE = "D or T is counted as H"
GROUP_NOTE = "site typed as a group of atoms"
ATTACHED_NOTE = "hydrogens without sites are counted by _atom_site_attached_hydrogens"
FORMULA_NOTE = "hydrogens without sites are counted by the file's formula"
MISMATCH_NOTE = "sites give another formula than the file"
SCALED_NOTE = "occupancies a little above 1 are scaled back"


def structure_blocks(text: str) -> list[str]:
    """Return the blocks of a CIF that list atoms; journals put one before them that lists none (data_global)."""
    return [block for block in _blocks(text) if _LISTS_ATOMS.search(block)]


def _blocks(text: str) -> list[str]:
    """Split at lines that begin with data_, but for those in a text between semicolons: there they get a dot."""
    blocks: list[list[str]] = [[]]
    in_text = False
    for line in text.removeprefix("\ufeff").splitlines():
        if line.startswith(";"):
            in_text = not in_text
        elif _BLOCK.match(line):
            if in_text:
                line = "." + line
            else:
                blocks.append([])
        blocks[-1].append(line)
    return ["\n".join(lines) for lines in blocks if any(line.strip() for line in lines)]


def crystal_of_cif(text: str) -> Crystal:
    """Return the crystal of a CIF; DataError where it has none, several, or atoms that cannot be told."""
    blocks = structure_blocks(text)
    if not blocks:
        raise DataError("CIF lists no atoms with fractional coordinates")
    if len(blocks) > 1:
        raise DataError(f"file has '{len(blocks)}' structures; choose one by its number, or all")
    return _crystal(blocks[0] if _BLOCK.search(blocks[0].lstrip()) else f"data_\n{blocks[0]}")


def _crystal(text: str) -> Crystal:
    from pymatgen.io.cif import CifParser

    with warnings_as_notes() as notes:
        parser: Any = CifParser.from_str(text)
        given = _SPACE_GROUP.search(text)
        # Number 1 says that every atom is listed, far more often than that the crystal has no symmetry.
        number = int(given.group(1)) if given and int(given.group(1)) > 1 else None
        if parser.feature_flags["magcif"]:
            crystal = crystal_of_pymatgen(parser.parse_structures(primitive=False, on_error="raise")[0], number)
        else:
            block = _Block(next(iter(parser._cif.data.values())).data)
            crystal = _assembled(block, _lattice(parser, block), _operations(parser), number)
    told = [f"pymatgen warns {quoted(warning, MAX_REASON)}" for warning in dict.fromkeys(parser.warnings)]
    found = (*crystal.notes, *map(_known_note, dict.fromkeys((*told, *notes))))
    return Crystal(**{**vars(crystal), "notes": tuple(dict.fromkeys(found))})


def _known_note(note: str) -> str:
    """Return a warning of pymatgen's in our words, where it is an everyday one."""
    if "rounded to ideal values" in note:
        return "coordinates near 1/3 and 2/3 are rounded to them"
    return "symmetry operations are those of the space group's name" if "type key found. Spacegroup" in note else note


@dataclass(frozen=True)
class _Block:
    """The items of a data block; a list of one may be a text."""

    items: Mapping[str, Any]

    def column(self, name: str) -> list[str] | None:
        value = self.items.get(name)
        return [value] if isinstance(value, str) else value

    def text(self, name: str) -> str:
        value = self.items.get(name, "")
        return value if isinstance(value, str) else ""


def _lattice(parser: Any, block: _Block) -> np.ndarray:
    """Return the lattice vectors [3, 3] in Å; DataError says what is missing or wrong."""
    cell = [_number(block.text(name)) for name in (*_LENGTHS, *_ANGLES)]
    if not any(np.isnan(cell)):
        problem = cell_problems(np.array([[*cell, np.nan]])).get(0)
        if problem:
            raise DataError(problem)
    lattice = parser.get_lattice(_PymatgenBlock(block.items))
    if lattice is None:
        at = int(np.argmax(np.isnan(cell)))
        raise DataError(f"CIF has no number for {(*_LENGTHS, *_ANGLES)[at]}")
    return np.array(lattice.matrix)


class _PymatgenBlock:
    """A block as pymatgen's methods take it."""

    def __init__(self, data: Mapping[str, Any]):
        self.data = data

    def __getitem__(self, key: str) -> Any:
        return self.data[key]


def _operations(parser: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return rotations [k, 3, 3] and translations [k, 3] in fractions of the cell."""
    operations = parser.get_symops(next(iter(parser._cif.data.values())))
    matrices = np.array([operation.affine_matrix for operation in operations])
    return matrices[:, :3, :3], matrices[:, :3, 3]


def _number(text: str) -> float:
    """Return a number of a CIF, "4.800(2)" without what is in brackets; NaN for "?", "." and what is none."""
    try:
        return float(re.sub(r"\(.*\)", "", text))
    except ValueError:
        return np.nan


@dataclass
class _AtomSite:
    """One place of the asymmetric unit.

    position    float64 [3]
    atoms       {symbol: atoms on it}, hydrogens of groups too
    places      how much of it is taken, 1 where it is full
    """

    position: np.ndarray
    atoms: dict[str, float]
    places: float


def _assembled(
    block: _Block, vectors: np.ndarray, operations: tuple[np.ndarray, np.ndarray], space_group: int | None
) -> Crystal:
    notes: list[str] = []
    sites = _merged(_sites(block, notes), operations)
    positions, labels, occupancies, numbers, amounts = [], [], [], [], dict[str, float]()
    for site in sites:
        _scale_back(site, notes)
        orbit = _orbit(site.position, operations)
        positions.append(orbit)
        labels += [",".join(f"{symbol}:{amount:.6g}" for symbol, amount in sorted(site.atoms.items()))] * len(orbit)
        occupancies += [site.places] * len(orbit)
        numbers += [number_on_site(site.atoms)] * len(orbit)
        for symbol, amount in site.atoms.items():
            amounts[symbol] = amounts.get(symbol, 0.0) + amount * len(orbit)
    amounts = _completed(amounts, block, notes)
    return Crystal(
        reduced_formula(amounts), vectors, np.concatenate(positions), numbered(labels), space_group, amounts,
        np.array(occupancies), tuple(dict.fromkeys(notes)), np.array(numbers, np.int64),
    )  # fmt: skip


def _scale_back(site: _AtomSite, notes: list[str]) -> None:
    if site.places > OCCUPANCY_TOLERANCE:
        raise DataError(
            f"occupancies sum to more than 1 '{site.places:.4g} of {', '.join(site.atoms)}'; above "
            f"{OCCUPANCY_TOLERANCE:g} it is no rounding"
        )
    if site.places > 1 + 1e-9:
        notes.append(f"{SCALED_NOTE} '{site.places:.4g}'")
        site.atoms = {symbol: amount / site.places for symbol, amount in site.atoms.items()}
        site.places = 1.0


def _sites(block: _Block, notes: list[str]) -> Iterator[_AtomSite]:
    """Return the sites as they are listed, but for those with no atom on them."""
    coordinates = [block.column(name) for name in _COORDINATES]
    if not all(coordinates):
        raise DataError("CIF lists no atoms with fractional coordinates")
    names = block.column("_atom_site_type_symbol")
    labels = block.column("_atom_site_label") or names or []
    occupancies, attached = block.column("_atom_site_occupancy"), block.column("_atom_site_attached_hydrogens")
    flags = block.column("_atom_site_calc_flag") or []
    declared = _declared(block)
    for at, (x, y, z) in enumerate(zip(*coordinates, strict=True)):  # pyright: ignore[reportArgumentType]
        if at < len(flags) and flags[at].casefold() == "dum":
            continue
        label = labels[at] if at < len(labels) else ""
        position = np.array([_number(x), _number(y), _number(z)])
        if np.isnan(position).any():
            raise DataError(f"CIF has a coordinate that is not a number '{label}: {x} {y} {z}'")
        occupancy = _occupancy(occupancies[at], label) if occupancies else 1.0
        if occupancy == 0:
            continue
        atoms = _atoms_of_type(names[at], declared, notes) if names else _atoms_of_label(label, declared, notes)
        hydrogens = _number(attached[at]) if attached else np.nan
        if hydrogens > 0:
            notes.append(ATTACHED_NOTE)
            atoms = {**atoms, "H": atoms.get("H", 0.0) + hydrogens}
        yield _AtomSite(position % 1.0, {symbol: amount * occupancy for symbol, amount in atoms.items()}, occupancy)


def _occupancy(text: str, label: str) -> float:
    """Return a site's occupancy; one that is not given is 1, by the definition of the item."""
    value = 1.0 if text in ("?", ".") else _number(text)
    if not 0 <= value < np.inf:
        raise DataError(f"CIF has an occupancy that is not a number, 0 or more '{label}: {text}'")
    return value


def _atoms_of_type(name: str, declared: Mapping[str, float], notes: list[str]) -> dict[str, float]:
    """Return {symbol: atoms} of a site's type: an element, an isotope of hydrogen, or a group such as OH."""
    element = _ELEMENT.match(name)
    if element and element.group(1) in _ISOTOPES:
        notes.append(ISOTOPE_NOTE)
        return {_ISOTOPES[element.group(1)]: 1.0}
    if element and _is_element(element.group(1)):
        return {element.group(1): 1.0}
    formula = _WORDS.get(name, _CHARGE.sub("", name))
    capital = re.match(r"([A-Z]{2})(?![A-Za-z])\d*$", formula)
    if capital and _is_meant(capital.group(1).title(), formula, declared):
        return {capital.group(1).title(): 1.0}
    try:
        amounts = _by_symbol(formula)
    except ValueError as error:
        raise DataError(f"site type is no element '{name}'") from error
    if len(amounts) > 1 or set(amounts.values()) != {1.0}:
        notes.append(f"{GROUP_NOTE} '{name}'")
    return amounts


def _is_meant(symbol: str, formula: str, declared: Mapping[str, float]) -> bool:
    """Whether two capitals are an element: "CA" is calcium, and "CO" cobalt unless the file's formula has C and O."""
    if not _is_element(symbol) or formula.startswith("NH"):
        return False
    return symbol in declared or not set(formula[:2]) <= declared.keys()


def _atoms_of_label(label: str, declared: Mapping[str, float], notes: list[str]) -> dict[str, float]:
    """Return {symbol: atoms} of a label such as "Ca1" or "OW2", in a file without types."""
    letters = (re.match(r"[A-Za-z]+", label) or [""])[0]
    if letters in _WORDS:
        return _atoms_of_type(letters, declared, notes)
    candidates = [letters[:2].title(), letters[:1].upper()]
    found = [symbol for symbol in dict.fromkeys(candidates) if _is_element(symbol)]
    if declared:
        found = [symbol for symbol in found if _ISOTOPES.get(symbol, symbol) in declared] or found
    elif letters[:2] not in found[:1] and len(letters) > 1 and (len(found) > 1 or letters.startswith("OH")):
        raise DataError(f"site label may be of several elements '{label}'; give _atom_site_type_symbol")
    if not found:
        raise DataError(f"site label is of no element '{label}'")
    return _atoms_of_type(found[0], declared, notes)


def _is_element(symbol: str) -> bool:
    from pymatgen.core import Element

    return Element.is_valid_symbol(symbol)


def _by_symbol(formula: str) -> dict[str, float]:
    """Return {symbol: amount} of a formula; ValueError where it is none."""
    from pymatgen.core import Composition

    return dict(Composition(formula, strict=True).get_el_amt_dict())


def _declared(block: _Block) -> dict[str, float]:
    """Return {symbol: amount} of the formula the file gives, D and T as H; empty where it gives none to read."""
    text = re.sub(r"(?<![A-Za-z])[DT](?![a-z])", "H", block.text("_chemical_formula_sum"))
    try:
        return _by_symbol(text) if text.strip(" ?.") else {}
    except ValueError:  # it is no formula: there is nothing to compare with
        return {}


def _completed(amounts: dict[str, float], block: _Block, notes: list[str]) -> dict[str, float]:
    """Return the amounts with hydrogens that only the file's formula has; a note where the two differ otherwise."""
    declared = _declared(block)
    if not declared:
        return amounts
    shared = [symbol for symbol in declared if symbol in amounts]
    scales = np.array([amounts[symbol] / declared[symbol] for symbol in shared if declared[symbol] > 0])
    agrees = len(scales) > 0 and scales.max() <= scales.min() * (1 + FORMULA_TOLERANCE)
    missing = declared.keys() - amounts.keys()
    if agrees and not missing and amounts.keys() <= declared.keys():
        return amounts
    if agrees and missing == {"H"} and amounts.keys() <= declared.keys():
        notes.append(FORMULA_NOTE)
        return {**amounts, "H": declared["H"] * float(scales.mean())}
    said = f"{reduced_formula(amounts)}, not {' '.join(block.text('_chemical_formula_sum').split())}"
    notes.append(f"{MISMATCH_NOTE} {quoted(said, MAX_REASON)}")
    return amounts


def _merged(sites: Iterator[_AtomSite], operations: tuple[np.ndarray, np.ndarray]) -> list[_AtomSite]:
    """Return the sites with those at one place, or at equivalent ones, as one."""
    listed = list(sites)
    if not listed:
        raise DataError("CIF has no site with an atom on it")
    merged, places = [], np.empty((len(listed), 3))
    for site in listed:
        same = _same_place(site.position, places[: len(merged)], operations)
        if same is None:
            places[len(merged)] = site.position
            merged.append(site)
            continue
        merged[same].places += site.places
        for symbol, amount in site.atoms.items():
            merged[same].atoms[symbol] = merged[same].atoms.get(symbol, 0.0) + amount
    return merged


def _same_place(position: np.ndarray, others: np.ndarray, operations: tuple[np.ndarray, np.ndarray]) -> int | None:
    """Return which of the places [n, 3] is an image of a position, None where none is."""
    apart = _images(position, operations)[:, None] - others[None]
    near = (np.abs(apart - np.rint(apart)) < SITE_TOLERANCE).all(2).any(0)
    return int(np.argmax(near)) if near.any() else None


def _images(position: np.ndarray, operations: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    rotations, translations = operations
    return (rotations @ position + translations) % 1.0


def _orbit(position: np.ndarray, operations: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """Return the different images of a site in the cell, float64 [m, 3]."""
    images = _images(position, operations)
    apart = images[:, None] - images[None]
    same = (np.abs(apart - np.rint(apart)) < SITE_TOLERANCE).all(2)
    return images[np.argmax(same, axis=1) == np.arange(len(images))]
