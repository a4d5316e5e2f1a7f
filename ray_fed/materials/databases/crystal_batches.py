"""Many structures to table columns, a thousand at a time, each batch cached under the hash of its content.

Reading CIF takes 4 ms a structure and a symmetry search 3 ms, so that a large folder takes minutes the first time, and
an interrupted reading goes on where it stopped.
"""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ray_fed.errors import DataError
from ray_fed.materials.crystal import Crystal, CrystalSites
from ray_fed.materials.databases.feature_cache import (
    Arrays,
    cache_folder,
    cached,
    content_key,
    pack_texts,
    unpack_texts,
)
from ray_fed.materials.databases.structure_folders import StructurePart, structure_content
from ray_fed.materials.finder_words import quiet_finders
from ray_fed.materials.lattices import cell_problems, cells_of_vectors
from ray_fed.materials.standard_cells import standard_cell
from ray_fed.materials.structures import crystal_of_lists, parse_structure
from ray_fed.materials.symmetry import SymmetrySearch, finder_version, space_groups

BATCH_ROWS = 1000
_ARRAYS = ("cells", "space_groups", "num_atoms")

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CrystalColumns:
    """What n structures say.

    formulas      list of str, "" where unreadable
    cells         float64 [n, 7], see `lattices`; NaN where unreadable
    space_groups  float64 [n], NaN where unknown
    num_atoms     float64 [n], sites in the cell, NaN where unreadable
    reasons       list of str, "" where all is well
    notes         list of str, what is odd about a usable one, parted by "; "
    sites         list of CrystalSites, None where there are none or they are not kept
    """

    formulas: list[str]
    cells: np.ndarray
    space_groups: np.ndarray
    num_atoms: np.ndarray
    reasons: list[str]
    notes: list[str]
    sites: list[CrystalSites | None]

    @classmethod
    def empty(cls, num_rows: int) -> "CrystalColumns":
        unknown = np.full((num_rows, 9), np.nan)
        texts = ([""] * num_rows for _ in range(3))
        none: list[CrystalSites | None] = [None] * num_rows
        return cls(next(texts), unknown[:, :7], unknown[:, 7], unknown[:, 8], next(texts), next(texts), none)


def columns_of_structures(values: Sequence[Any], known: np.ndarray, search: SymmetrySearch) -> CrystalColumns:
    """Read n structures: CIF, POSCAR or JSON text, dicts, or paths of files that hold one.

    known  float64 [n], space-group numbers from a column beside the structures, NaN where there is none
    """

    return _in_batches(lambda rows: [_loaded(values[row]) for row in rows], parse_structure, known, search)


def _loaded(value: Any) -> Any:
    """Return a structure's content; for a file that cannot be read its DataError, the row's reason."""
    if not isinstance(value, Path | StructurePart):
        return value
    try:
        return structure_content(value)
    except DataError as error:
        return error


def columns_of_lists(
    vectors: np.ndarray, numbers: Sequence[Any], coordinates: Sequence[Any], known: np.ndarray, search: SymmetrySearch
) -> CrystalColumns:
    """Read structures given as lattice vectors [n, 3, 3] and lists per row."""

    return _in_batches(
        lambda rows: [(vectors[row], numbers[row], coordinates[row]) for row in rows],
        lambda value: crystal_of_lists(*value),
        known,
        search,
    )


def _in_batches(
    load: Callable[[Sequence[int]], list[Any]],
    parse: Callable[[Any], Crystal],
    known: np.ndarray,
    search: SymmetrySearch,
) -> CrystalColumns:
    result, folder, identity = CrystalColumns.empty(len(known)), cache_folder(), search.identity
    for start in range(0, len(known), BATCH_ROWS):
        rows = range(start, min(start + BATCH_ROWS, len(known)))
        values, given = load(rows), known[rows.start : rows.stop]
        key = content_key(identity, given, *(_content(value) for value in values))
        arrays = cached(key, partial(_computed, values, parse, given, search), folder)
        result.formulas[start : rows.stop] = unpack_texts(arrays["formulas"])
        result.reasons[start : rows.stop] = unpack_texts(arrays["reasons"])
        result.notes[start : rows.stop] = unpack_texts(arrays["notes"])
        for name in _ARRAYS:
            getattr(result, name)[start : rows.stop] = arrays[name]
        result.sites[start : rows.stop] = unpacked_sites(arrays, len(rows))
        _log.info("%d of %d structures read", rows.stop, len(known))
    return result


def _content(value: Any) -> str:
    """Return all of a structure value as text, whatever it is."""
    return value if isinstance(value, str) else json.dumps(value, default=_plain, sort_keys=isinstance(value, Mapping))


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else repr(value)


def _computed(
    values: Sequence[Any], parse: Callable[[Any], Crystal], known: np.ndarray, search: SymmetrySearch
) -> Arrays:
    """Return the arrays of one batch, as they are cached."""
    crystals: dict[int, Crystal] = {}
    result = CrystalColumns.empty(len(values))
    result.space_groups[:] = known
    for row, value in enumerate(values):
        try:
            if isinstance(value, DataError):
                raise value
            crystals[row] = parse(value)
        except DataError as error:
            result.reasons[row] = str(error)
    if crystals:
        _fill(result, crystals, search)
    texts = {name: pack_texts(getattr(result, name)) for name in ("formulas", "reasons", "notes")}
    sites = packed_sites(result.sites) if search.keeps_sites else {}
    return {**{name: getattr(result, name) for name in _ARRAYS}, **texts, **sites}


def packed_sites(sites: Sequence[CrystalSites | None]) -> Arrays:
    """Return sites of n crystals as arrays."""
    there = [one for one in sites if one is not None]
    return {
        "sites.counts": np.array([0 if one is None else len(one.numbers) for one in sites], np.int64),
        "sites.vectors": np.array([one.vectors for one in there]).reshape(-1, 3, 3),
        "sites.positions": np.concatenate([np.empty((0, 3)), *(one.positions for one in there)]),
        "sites.numbers": np.concatenate([np.empty(0, np.int64), *(one.numbers for one in there)]),
    }


def unpacked_sites(arrays: Arrays, num_rows: int) -> list[CrystalSites | None]:
    """Return what `packed_sites` packed; None of all where nothing was."""
    if "sites.counts" not in arrays:
        return [None] * num_rows
    found: list[CrystalSites | None] = []
    atom, crystal = 0, 0
    for count in arrays["sites.counts"].tolist():
        atoms = slice(atom, atom + count)
        sites = CrystalSites(
            arrays["sites.vectors"][crystal], arrays["sites.positions"][atoms], arrays["sites.numbers"][atoms]
        ) if count else None  # fmt: skip
        found.append(sites)
        atom, crystal = atoms.stop, crystal + (count > 0)
    return found


def _fill(result: CrystalColumns, crystals: dict[int, Crystal], search: SymmetrySearch) -> None:
    rows = list(crystals)
    result.cells[rows] = cells_of_vectors(np.stack([crystals[row].vectors for row in rows]))
    problems = cell_problems(result.cells)
    notes = {row: list(crystal.notes) for row, crystal in crystals.items()}
    for row, crystal in crystals.items():
        result.formulas[row], result.num_atoms[row] = crystal.formula, len(crystal.kinds)
        result.reasons[row] = problems.get(row, "")
        if crystal.space_group and np.isnan(result.space_groups[row]):
            result.space_groups[row] = crystal.space_group
    wanted = [
        row for row in rows if not result.reasons[row] and (search.searches_all or np.isnan(result.space_groups[row]))
    ]
    if search.cell == "standard":
        _standardise(result, {row: crystals[row] for row in wanted}, search, notes)
    else:
        _find_groups(result, {row: crystals[row] for row in wanted}, search, notes)
    for row, texts in notes.items():
        result.notes[row] = "; ".join(dict.fromkeys(texts))


def _find_groups(
    result: CrystalColumns, crystals: dict[int, Crystal], search: SymmetrySearch, notes: dict[int, list[str]]
) -> None:
    said = [notes[row] for row in crystals]
    numbers, reasons = space_groups(list(crystals.values()), search.finder, search.symprec, said)
    for row, number, reason in zip(crystals, numbers, reasons, strict=True):
        given = result.space_groups[row]
        notes[row] += _difference(given, number, search)
        if not search.takes_given or np.isnan(given):
            result.space_groups[row], result.reasons[row] = number, reason
        elif reason:
            notes[row].append(reason)


def _difference(given: float, found: float, search: SymmetrySearch) -> list[str]:
    """Return the note that a given number is not the one found, where both are there and the search compares them."""
    compares = search.symmetry == "check" or search.cell == "standard"
    if not compares or np.isnan(given) or np.isnan(found) or given == found:
        return []
    return [f"space group given is not the one found '{given:.0f}, {search.finder} finds {found:.0f}'"]


def _standardise(
    result: CrystalColumns, crystals: dict[int, Crystal], search: SymmetrySearch, notes: dict[int, list[str]]
) -> None:
    """Replace formulas, cells, space groups and numbers of atoms by those of the standardised primitive cells."""
    finder_version(search.finder)
    with quiet_finders() as words:
        for row, crystal in crystals.items():
            try:
                standard = standard_cell(crystal, search.finder, search.symprec)
            except DataError as error:
                result.reasons[row] = str(error)
                continue
            finally:
                notes[row] += words.taken(search.finder)
            notes[row] += _difference(result.space_groups[row], standard.space_group, search)
            result.formulas[row], result.num_atoms[row] = standard.formula, standard.num_atoms
            result.cells[row], result.space_groups[row] = standard.cell, standard.space_group
            result.sites[row] = standard.sites if search.keeps_sites else None
