"""What a silo trains on: any source of crystals or compositions, opened as one crystal frame: columns by their roles,
unusable rows with their reason.

    database = open_database(Source("../shared/datasets/mp_structures"), silo="mit")
    database.frame               one row per entry, unusable ones with a reason
    reason_counts(frame)         {"target is missing": 3}
    database.fingerprint         a hash and counts: what may be disclosed about the source

The crystal frame
    column                unit    meaning
    id, formula                   as the source has them, else "row-7" and the structure's reduced formula
    a, b, c               Å       cell as given; NaN where the source has no structure
    alpha, beta, gamma    degree
    volume                Å³      of the whole cell; from the lattice where not given
    spacegroup_number             1 to 230; the source's own number, else computed from the structure; NaN unknown
    num_atoms                     sites in the cell; NaN unknown
    target                        in `Database.target_unit`
    reason                        "" for a usable row, else why it cannot be used; values of the row are in '...'
    note                          "" or what is odd about the row, used or not, parted by "; "; of the same make
    sites                         where asked for: CrystalSites of the standardised primitive cell, None without
"""

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from ray_fed.errors import DataError, Trouble, quoted
from ray_fed.materials.chemical_groups import composition_keys
from ray_fed.materials.databases.columns import (
    LATTICE_ROLES,
    MISSING_TEXTS,
    canonical_target,
    counted_values,
    find_roles,
    matches,
    require_column,
    require_numbers,
    target_column,
    to_numbers,
    to_space_groups,
    unit_of_target,
)
from ray_fed.materials.databases.crystal_batches import (
    CrystalColumns,
    columns_of_lists,
    columns_of_structures,
    packed_sites,
)
from ray_fed.materials.databases.feature_cache import content_key
from ray_fed.materials.databases.kinds import open_source
from ray_fed.materials.databases.raw_table import RawTable
from ray_fed.materials.databases.source import EMBEDDED, EMBEDDED_TARGET, Source
from ray_fed.materials.features.composition import read_compositions
from ray_fed.materials.lattices import CELL_COLUMNS, cell_problems, vectors_of_cells, volumes_of_cells
from ray_fed.materials.structures import formula_of_lists
from ray_fed.materials.symmetry import SymmetrySearch

SITES = "sites"
FRAME_COLUMNS = ("id", "formula", *CELL_COLUMNS, "spacegroup_number", "num_atoms", "target", "reason", "note")
NO_SITES_NOTE = "cell as given: there are no sites to standardise it by"
MISSING_FORMULAS = frozenset(
    {"nan", "NAN", "NA", "N/A", "n/a", "#N/A", "<NA>", "None", "none", "NONE", "null", "Null", "NULL", "-", "--", "?"}
)
"""What programs write where there is nothing. "Na" is sodium, and "NO" nitrogen monoxide."""
FEW_NITRIDES = 2
FORMULA_NOTE = "formula is listed more than once with different targets"
NITRIDE_NOTE = "formula NaN is read as sodium nitride"
SHOWN_REASON = 200
"""Characters of a whole reason on the terminal."""
MAX_TARGET = 1e15
"""Squares of larger numbers come near the end of float32, and no property is that large in a sensible unit."""


@dataclass(frozen=True)
class Database:
    """An open source. The frame stays where it was opened; the fingerprint may be disclosed."""

    frame: pd.DataFrame
    """The crystal frame, see the module's head; RangeIndex."""
    target_name: str
    """One name for each quantity, whatever the source's column is called; "" without a target."""
    target_unit: str
    fingerprint: dict[str, object]
    """sha256, num_rows, num_usable, num_columns: of the rows read, under the names of their columns and target; of some
    databases also provider and licence."""
    notices: tuple[str, ...] = ()
    """What is odd about the source beside its rows: files that were left out. Of the same make as notes."""


def reason_counts(frame: pd.DataFrame) -> dict[str, int]:
    """Return reason -> number of rows, the commonest first, without what is in quotes: values of single rows."""
    reasons = (re.sub(r"\s*'[^']*'", "", reason) for reason in frame["reason"] if reason)
    return dict(Counter(reasons).most_common())


def open_database(source: Source, silo: str = "") -> Database:
    """Read a source. DataError, in one line that begins with the silo's name, where nothing in it can be used.

    ConfigError where `source.symmetry` needs a package that is not installed.
    """
    try:
        return _open(source)
    except DataError as error:
        # Names of columns and files may hold line breaks; a message is one line.
        message = " ".join(str(error).split())
        raise DataError(f"silo '{silo}': {message}" if silo else message, failure=error.failure) from error


def _open(source: Source) -> Database:
    table = _embedded_table(source) if source.path == EMBEDDED else open_source(source)
    frame = crystal_frame(table, source)
    if all(frame["reason"]):
        counted = "; ".join(f"{count} x {reason}" for reason, count in list(reason_counts(frame).items())[:5])
        first = quoted(frame["reason"].iloc[0], SHOWN_REASON)
        raise DataError(
            f"{table.source} has no usable row of {len(frame)}: {counted}; the first: {first}",
            failure=Trouble.TOO_FEW_ROWS,
        )
    name = canonical_target(source.target) if source.target else ""
    unit = source.unit or (unit_of_target(name) if name else "")
    return Database(frame, name, unit, {**_fingerprint(frame, f"{name} [{unit}]"), **table.record}, table.notices)


def _embedded_table(source: Source) -> RawTable:
    from ray_fed.materials.model_crystals.crystals import make_model_crystals
    from ray_fed.materials.model_crystals.primitive_cells import with_primitive_cells

    for name in (*([source.target] if source.target is not None else []), *source.targets):
        if canonical_target(name) != EMBEDDED_TARGET:
            raise DataError(
                f"the embedded data have no {name!r}; their only target is {EMBEDDED_TARGET!r}",
                failure=Trouble.COLUMN_MISSING,
            )
    options = {} if source.rows is None else {"num_rows": source.rows}
    frame = make_model_crystals(**options, seed=source.seed)
    if source.cell == "standard":
        frame = with_primitive_cells(frame)
    columns = {EMBEDDED_TARGET if name == "target" else str(name): column for name, column in frame.items()}
    return RawTable(EMBEDDED, tuple(columns), len(frame), columns.__getitem__)


def _fingerprint(frame: pd.DataFrame, target: str) -> dict[str, object]:
    """Return what identifies the rows without telling one, nor a name of the owner's: a hash over all, counts."""
    read = frame.drop(columns=["note", SITES], errors="ignore")  # a better word for the same row makes no other row
    parts = [part for name, column in read.items() for part in (str(name), _content(column))]
    parts += list(packed_sites(frame[SITES].tolist()).values()) if SITES in frame else []
    return {
        "sha256": content_key(target, *parts),
        "num_rows": len(frame),
        "num_usable": sum(not reason for reason in frame["reason"]),
        "num_columns": len(read.columns),
    }


def hash_of_rows(source: Source) -> str:
    """Return a hash over a source's rows that no message holds; "" where they cannot be read here."""
    try:
        frame = open_database(source).frame
    except DataError:
        return ""
    return content_key("held by who asks", *(_content(column) for _, column in frame.items()))


def _content(column: pd.Series) -> np.ndarray | str:
    """Return a column as what can be hashed alike on every machine; all NaN have one bit pattern."""
    if column.dtype.kind != "f":
        return "\x1f".join(column.astype(str).tolist())
    values = column.to_numpy(np.dtype("<f8"), copy=True)
    values[np.isnan(values)] = math.nan
    return values


@dataclass
class Selection:
    """The chosen rows of a table: `positions` int64 [n] in the table, columns read on demand."""

    table: RawTable
    roles: Mapping[str, str]
    positions: np.ndarray

    def __len__(self) -> int:
        return len(self.positions)

    def column(self, name: str) -> pd.Series:
        """Return a column of the chosen rows, index 0 to n - 1."""
        return self.table.read(name).iloc[self.positions].reset_index(drop=True)

    def of_role(self, role: str) -> pd.Series | None:
        """Return the column that plays a role, None where there is none."""
        return self.column(self.roles[role]) if role in self.roles else None


class Reasons:
    """One reason per row: the first that was found."""

    def __init__(self, num_rows: int):
        self.texts = [""] * num_rows

    def add(self, found: Mapping[int, str]) -> None:
        """Give rows without a reason one; `found` maps row -> reason."""
        for row, reason in found.items():
            self.texts[row] = self.texts[row] or reason


def crystal_frame(table: RawTable, source: Source) -> pd.DataFrame:
    """Return the crystal frame of a table (see `databases`). DataError where a column is missing or no row is left."""
    roles = _roles(table, source.columns)
    wanted_target = target_column(table.columns, source.target, table.source) if source.target else None
    kept = {
        name: require_column(table.columns, name, table.source) for name in source.keep if name not in FRAME_COLUMNS
    }
    kept |= {f"target.{at}": target_column(table.columns, name, table.source) for at, name in enumerate(source.targets)}
    chosen = Selection(table, roles, chosen_positions(table, source))
    reasons = Reasons(len(chosen))
    reasons.add({row: table.problems[at] for row, at in enumerate(chosen.positions.tolist()) if at in table.problems})
    # Before the symmetry search, which is slow and leaves out rows that cannot be used anyway.
    target = _target(chosen, wanted_target, reasons)
    # The embedded crystals have no sites to search, and come with the cell that is asked for.
    cell = "given" if source.path == EMBEDDED else source.cell
    search = SymmetrySearch(source.symmetry, source.symprec, cell, keeps_sites=source.sites)
    crystals = _crystal_columns(chosen, search, reasons)
    for row, at in enumerate(chosen.positions.tolist()):
        crystals.notes[row] = "; ".join(filter(None, (table.notes.get(at), crystals.notes[row])))
    _check_missing(crystals, reasons)
    _check_formulas(crystals.formulas, reasons)
    told = _labels(chosen, target, kept)
    _note_repeated_ids(chosen, crystals, told)
    _note_repeated_formulas(crystals, told)
    frame = _frame(chosen, crystals, target, reasons, kept)
    return frame.assign(**{SITES: pd.Series(crystals.sites, dtype=object)}) if source.sites else frame


def _frame(
    chosen: Selection, crystals: CrystalColumns, target: np.ndarray, reasons: Reasons, kept: Mapping[str, str]
) -> pd.DataFrame:
    columns: dict[str, Any] = {"id": _ids(chosen), "formula": crystals.formulas}
    columns |= {name: crystals.cells[:, at] for at, name in enumerate(CELL_COLUMNS)}
    columns |= {"spacegroup_number": crystals.space_groups, "num_atoms": crystals.num_atoms}
    columns |= {"target": target, "reason": reasons.texts, "note": crystals.notes}
    frame = pd.DataFrame(columns).astype(dict.fromkeys(("id", "formula", "reason", "note"), "str"))
    for name, column in kept.items():
        frame[name] = _plain(chosen.column(column))
    return frame


def _plain(column: pd.Series) -> pd.Series:
    """Return a kept column as numbers or text: objects and categories have no hash that is the same everywhere."""
    return column if column.dtype.kind in "fiub" else column.astype(object).map(str).astype("str")


def _roles(table: RawTable, allowed: Sequence[str]) -> dict[str, str]:
    roles = find_roles([require_column(table.columns, name, table.source) for name in allowed] or table.columns)
    if not {"formula", "structure", "numbers"} & roles.keys():
        require_column(table.columns, "formula", f"{table.source} (formula, structure or atomic numbers are needed)")
    return roles


def chosen_positions(table: RawTable, source: Source) -> np.ndarray:
    """Return the rows that meet every condition of `source.where`, at most `source.rows`."""
    chosen = np.ones(table.num_rows, bool)
    for name, value in source.where:
        column = table.read(require_column(table.columns, name, table.source))
        found = matches(column, value)
        if not found.any():
            there = counted_values(column)
            raise DataError(
                f"{table.source}: where {name}={value!r} matches no row; the column holds: {there}",
                failure=Trouble.TOO_FEW_ROWS,
            )
        chosen &= found
    if not chosen.any():
        conditions = " and ".join(f"{name}={value!r}" for name, value in source.where)
        raise DataError(f"{table.source}: no row meets all of where {conditions}", failure=Trouble.TOO_FEW_ROWS)
    return np.flatnonzero(chosen)[: source.rows]


def _ids(chosen: Selection) -> list[str]:
    """Return the source's ids; rows without one are called by their place in the source, counted from 1."""
    given = chosen.of_role("id")
    texts = [""] * len(chosen) if given is None else ["" if pd.isna(one) else str(one) for one in given.tolist()]
    return [text or f"row-{at + 1}" for text, at in zip(texts, chosen.positions.tolist(), strict=True)]


def _crystal_columns(chosen: Selection, search: SymmetrySearch, reasons: Reasons) -> CrystalColumns:
    """Return formulas, cells, space groups and numbers of atoms, from structures where the source has them."""
    known = _given_space_groups(chosen, reasons)
    complete = {"a", "formula"} <= chosen.roles.keys() and not search.searches_all and not np.isnan(known).any()
    if "structure" in chosen.roles and not complete:
        found = columns_of_structures(chosen.column(chosen.roles["structure"]).tolist(), known, search)
        reasons.add({row: reason for row, reason in enumerate(found.reasons) if reason})
        return replace(found, formulas=_formulas(chosen, found, reasons, search))
    cells = _given_cells(chosen, reasons)
    given = CrystalColumns.empty(len(chosen))
    given.cells[:], given.space_groups[:], given.num_atoms[:] = cells, known, _given_num_atoms(chosen)
    from_lists = _completed_by_lists(chosen, given, search, reasons)
    return replace(given, formulas=_formulas(chosen, from_lists, reasons, search))


def _given_num_atoms(chosen: Selection) -> np.ndarray:
    """Return the number of atoms in each cell [n] by its column or the lists; NaN where neither has it."""
    column = chosen.of_role("num_atoms")
    if column is not None:
        counts = to_numbers(column, "num_atoms")[0]
        return np.where(counts > 0, counts, np.nan)
    lists = chosen.of_role("numbers")
    if lists is None:
        return np.full(len(chosen), np.nan)
    return np.array([len(one) if isinstance(one, np.ndarray | list) and len(one) else np.nan for one in lists], float)


def _given_space_groups(chosen: Selection, reasons: Reasons) -> np.ndarray:
    given = chosen.of_role("spacegroup_number")
    if given is None:
        return np.full(len(chosen), np.nan)
    numbers, problems = to_space_groups(given)
    reasons.add(problems)
    return numbers


def _given_cells(chosen: Selection, reasons: Reasons) -> np.ndarray:
    """Return cells [n, 7] of the lattice columns, NaN without them; volumes are computed where not given."""
    cells = np.full((len(chosen), 7), np.nan)
    for at, role in enumerate((*LATTICE_ROLES, "volume")):
        column = chosen.of_role(role)
        if column is not None:
            cells[:, at], problems = to_numbers(column, role)
            reasons.add(problems)
    reasons.add(cell_problems(cells))
    cells[:, 6] = np.where(np.isnan(cells[:, 6]), volumes_of_cells(cells), cells[:, 6])
    return cells


def _formulas(chosen: Selection, found: CrystalColumns | None, reasons: Reasons, search: SymmetrySearch) -> list[str]:
    """Return the formulas as given; those of the structures or of the atomic numbers where there is none."""
    column = chosen.of_role("formula")
    if column is not None:
        given = ["" if value is None or value != value else str(value).strip() for value in column.tolist()]
        if found is None:
            return given
        compared = given if search.cell == "given" else _of_primitive_cells(given, found)
        return [one or other for one, other in zip(compared, found.formulas, strict=True)]
    if found is not None and "structure" in chosen.roles:
        return list(found.formulas)
    formulas, problems = [""] * len(chosen), {}
    for row, numbers in enumerate(chosen.column(chosen.roles["numbers"]).tolist()):
        try:
            formulas[row] = formula_of_lists(numbers)
        except DataError as error:
            problems[row] = str(error)
    reasons.add(problems)
    return formulas


def _of_primitive_cells(given: Sequence[str], found: CrystalColumns) -> list[str]:
    """Return the structures' formulas where they have the given composition, else the given ones, with a note."""
    formulas = list(given)
    of_given, of_found = read_compositions(given)[0], read_compositions(found.formulas)[0]
    for row, (one, other) in enumerate(zip(given, found.formulas, strict=True)):
        if not one or not other or one == other:
            continue
        if of_given.is_like(of_found, row):
            formulas[row] = other
        else:
            note = f"formula given is not that of the structure {quoted(f'{one}, structure {other}')}"
            found.notes[row] = "; ".join(filter(None, (found.notes[row], note)))
    return formulas


def _completed_by_lists(
    chosen: Selection, given: CrystalColumns, search: SymmetrySearch, reasons: Reasons
) -> CrystalColumns | None:
    """Write into `given` what the lists of atoms say: the space group where no number is given or `search` asks for it,
    and the standard cell. Return it, None where the lists are not asked for.

    Only then are the lists decoded, and only for rows that are usable so far.
    """
    has_lists = {"a", "numbers", "frac_coords"} <= chosen.roles.keys()
    if search.cell == "standard" and not has_lists and "a" in chosen.roles:
        given.notes[:] = [NO_SITES_NOTE if cell else "" for cell in ~np.isnan(given.cells[:, 0])]
    if not has_lists:
        return None
    wanted = np.ones(len(chosen), bool) if search.searches_all else np.isnan(given.space_groups)
    usable = np.array([not reason for reason in reasons.texts]) & ~np.isnan(given.cells).any(axis=1)
    rows = np.flatnonzero(wanted & usable)
    if not len(rows):
        return None
    part = Selection(chosen.table, chosen.roles, chosen.positions[rows])
    numbers, coordinates = part.column(chosen.roles["numbers"]), part.column(chosen.roles["frac_coords"])
    vectors, known = vectors_of_cells(given.cells[rows]), given.space_groups[rows]
    found = columns_of_lists(vectors, numbers.tolist(), coordinates.tolist(), known, search)
    reasons.add({int(rows[at]): reason for at, reason in enumerate(found.reasons) if reason})
    given.space_groups[rows] = found.space_groups
    if search.cell == "standard":
        given.cells[rows], given.num_atoms[rows] = found.cells, found.num_atoms
    for at, row in enumerate(rows.tolist()):
        given.sites[row] = found.sites[at]
    for at, row in enumerate(rows.tolist()):
        given.formulas[row], given.notes[row] = found.formulas[at], found.notes[at]
    return given


def _check_missing(crystals: CrystalColumns, reasons: Reasons) -> None:
    """Give a reason to formulas that mean "missing". NaN may be sodium nitride: where it comes with a cell, or once in
    a table without other such words; then it gets a note."""
    formulas = crystals.formulas
    missing = [row for row, formula in enumerate(formulas) if formula in MISSING_FORMULAS]
    nitrides = [row for row, formula in enumerate(formulas) if formula == "NaN"]
    has_cell = ~np.isnan(crystals.cells[:, 0])
    for row in nitrides:
        few = len(nitrides) <= max(FEW_NITRIDES, len(formulas) // 100)
        if few and (has_cell[row] or (len(nitrides) == 1 and not missing)):
            _note(crystals, [row], NITRIDE_NOTE)
        else:
            missing.append(row)
    reasons.add({row: f"formula is missing {quoted(formulas[row])}" for row in missing})


def _labels(chosen: Selection, target: np.ndarray, kept: Mapping[str, str]) -> list[tuple[str, ...]]:
    """Return what each row says of all targets, as text."""
    columns = [chosen.column(kept[name]) for name in kept if name.startswith("target.")]
    return [tuple(map(str, row)) for row in zip(target, *columns, strict=True)]


def _differ(labels: Sequence[tuple[str, ...]]) -> bool:
    """Whether rows have different values of some target; a missing one is no value."""
    return any(len(set(column) - {text for text in column if text.casefold() in MISSING_TEXTS}) > 1
               for column in zip(*labels, strict=True))  # fmt: skip


def _note(crystals: CrystalColumns, rows: Sequence[int], note: str) -> None:
    for row in rows:
        crystals.notes[row] = "; ".join(filter(None, (crystals.notes[row], note)))


def _note_repeated_ids(chosen: Selection, crystals: CrystalColumns, labels: Sequence[tuple[str, ...]]) -> None:
    """Note the rows of a table whose id it has more than once, and whether they disagree about a target; what is read
    from a folder has such notes already."""
    ids = chosen.of_role("id")
    if ids is None or not ids.duplicated().any():
        return
    for _, rows in pd.Series(range(len(ids))).groupby(ids.astype(str)):
        of_id = rows.tolist()
        if len(of_id) < 2 or "id is listed" in crystals.notes[of_id[0]]:
            continue
        differ = _differ([labels[row] for row in of_id])
        _note(crystals, of_id, "id is listed more than once" + (" with different targets" if differ else ""))


def _note_repeated_formulas(crystals: CrystalColumns, labels: Sequence[tuple[str, ...]]) -> None:
    """Note the rows of formulas alone that the table has more than once, and disagrees about: a model of formulas can
    learn their mean only. Rows with a cell may be polymorphs."""
    alone = np.flatnonzero(np.isnan(crystals.cells[:, 0]))
    keys = composition_keys([crystals.formulas[row] for row in alone.tolist()])
    rows: dict[str, list[int]] = {}
    for row, key in zip(alone.tolist(), keys, strict=True):
        if not key.startswith("?"):
            rows.setdefault(key, []).append(row)
    for repeated in rows.values():
        if _differ([labels[row] for row in repeated]):
            _note(crystals, repeated, FORMULA_NOTE)


def _check_formulas(formulas: list[str], reasons: Reasons) -> None:
    """Give a reason to each row whose formula is missing, cannot be read, or names an unknown element."""
    distinct = list(dict.fromkeys(formulas))
    problems = dict(zip(distinct, read_compositions(distinct)[1], strict=True))
    if any(problems.values()):
        reasons.add({row: problems[formula] for row, formula in enumerate(formulas) if problems[formula]})


def _target(chosen: Selection, name: str | None, reasons: Reasons) -> np.ndarray:
    """Return the target [n], NaN and a reason where it is missing or no finite number; all NaN without a name."""
    if name is None:
        return np.full(len(chosen), np.nan)
    column = chosen.column(name)
    values, problems = to_numbers(column, "target")
    require_numbers(column, values, problems, name)
    reasons.add(problems)
    wrong = ~(np.abs(values) <= MAX_TARGET)
    reasons.add({row: _target_problem(values[row]) for row in np.flatnonzero(wrong).tolist()})
    return np.where(wrong, np.nan, values)


def _target_problem(value: float) -> str:
    if np.isnan(value):
        return "target is missing"
    return f"target {quoted(value)} " + ("is not finite" if np.isinf(value) else f"is beyond {MAX_TARGET:g}")
