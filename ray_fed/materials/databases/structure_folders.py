"""A folder of structure files with a list of ids and targets, as CGCNN, ALIGNN and MatDeepLearn take it.

`id_prop.csv` (or `targets.csv`) has no header: id, target, and further columns if any. The id is a file's name with or
without its extension. A header is recognised by what cannot be a row: a first id without a file beside a target that is
no number. Semicolons or tabs may stand for the commas. Subfolders are not entered. Files that are not read, or that the
list does not name, are notices of the table.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray_fed.errors import DataError, Trouble, quoted
from ray_fed.materials.cif_files import structure_blocks
from ray_fed.materials.databases.ase_files import chosen_numbers, frames, is_ase_file, part_name
from ray_fed.materials.databases.delimited import rows_of_text
from ray_fed.materials.databases.raw_table import RawTable, reading, table_of_columns
from ray_fed.reading import read_bounded

PROPERTY_FILES = ("id_prop.csv", "targets.csv")
STRUCTURE_SUFFIXES = (".cif", ".mcif", ".vasp", ".poscar", ".json")
CIF_SUFFIXES = (".cif", ".mcif")
NO_STRUCTURES = ("atom_init.json",)
"""Files that CGCNN keeps among its structures."""
ANY_TARGET = ("target", "property", "prop", "value", "y")
"""Headers that name no quantity: the column is taken for the target asked for."""
MAX_FILE_BYTES = 50_000_000
UNNAMED = "column_{}"
NO_HEADER = "a list without a header: its second column is the target, further ones are not used"
SEVERAL = "one of several structures in its file"


@dataclass(frozen=True)
class StructurePart:
    """One of several structures in a file; `number` counts from 0, `content` is what `parse_structure` takes."""

    number: int
    content: Any


def property_file(folder: Path) -> Path | None:
    """Return the folder's list of targets, None where it has none."""
    return next((folder / name for name in PROPERTY_FILES if (folder / name).is_file()), None)


def structure_files(folder: Path) -> list[Path]:
    """Return the structure files of a folder, by name."""
    with reading(folder):
        return sorted(path for path in folder.iterdir() if is_structure_file(path))


def is_structure_file(path: Path) -> bool:
    """Return whether the name is one of a structure file (CIF, POSCAR, JSON, or what ASE reads), and it is a regular
    file."""
    named = path.suffix.lower() in STRUCTURE_SUFFIXES or path.name.upper().startswith(("POSCAR", "CONTCAR"))
    is_other = path.name.startswith(".") or path.name in NO_STRUCTURES
    return is_ase_file(path) or (named and not is_other and path.is_file())


def open_structure_folder(folder: Path, target: str | None, structures: str = "") -> RawTable:
    """Return the table id, target (under the name `target`), structure, and further columns of the list.

    structures  which of several structures in one file: "all", "first", or a number from 1; "": all of those that need
                no label, and none of a file that has one label for them

    Without a target every structure is a row. DataError where the list is missing or empty.
    """
    files = structure_files(folder)
    listed = property_file(folder)
    if target is None or listed is None:
        return _structures_only(folder, files, structures)
    by_id = _files_by_id(files)
    with reading(listed):
        given = rows_of_text(read_bounded(listed, MAX_FILE_BYTES).decode("utf-8-sig"))
    names, rows = _header_and_rows(_checked_rows(listed, given.rows), by_id, target)
    paths = [by_id.get(_id_as_named(row[0], by_id)) for row in rows]
    problems = {}
    for number, (row, path) in enumerate(zip(rows, paths, strict=True)):
        if path is None:
            problems[number] = f"no structure file for id {quoted(row[0])}"
        elif len(row) != len(names):
            problems[number] = f"torn row '{len(row)} of {len(names)} values' in {listed.name}"
    columns = {name: [row[at] if at < len(row) else None for row in rows] for at, name in enumerate(names)}
    unnamed = [NO_HEADER] if names[2:] and names[2] == UNNAMED.format(3) else []
    notices = (*given.notices, *unnamed, *_left_out(folder, files, {path for path in paths if path}))
    return _expanded(str(folder), columns, paths, problems, structures, notices)


def _left_out(folder: Path, files: Sequence[Path], used: set[Path]) -> list[str]:
    """Return a notice for each file that no row comes from."""
    known = {*PROPERTY_FILES, *NO_STRUCTURES}
    others = sorted(path.name for path in folder.iterdir() if path.is_file() and path not in files)
    unread = [name for name in others if name not in known and not name.startswith(".")]
    unnamed = [path.name for path in files if path not in used]
    return [
        *(f"structure file that the list does not name {quoted(name)}" for name in unnamed),
        *(f"file of a kind that is not read {quoted(name)}" for name in unread),
    ]


def _structures_only(folder: Path, files: Sequence[Path], structures: str) -> RawTable:
    if not files:
        raise DataError(
            f"{folder} has no structure files ({', '.join(STRUCTURE_SUFFIXES)} or POSCAR*)",
            failure=Trouble.FILE_EMPTY,
        )
    notices = tuple(_left_out(folder, files, set(files)))
    return _expanded(str(folder), {"id": [path.name for path in files]}, files, {}, structures or "all", notices)


def one_structure(path: Path, structures: str = "") -> RawTable:
    """Return the table of a single file of structures."""
    return _expanded(str(path), {"id": [path.name]}, [path], {}, structures or "all", ())


def _expanded(
    source: str, columns: dict[str, list], paths: Sequence[Path | None], problems: dict[int, str], structures: str,
    notices: tuple[str, ...],
) -> RawTable:  # fmt: skip
    """Return the table with a row for each structure that is wanted of each file."""
    origins, values, found, notes = [], [], {}, {}
    for number, path in enumerate(paths):
        if number in problems or path is None:
            parts, problem = [path], problems.get(number, "")
        else:
            parts, problem = _parts(path, structures)
        for part in parts:
            if problem:
                found[len(values)] = problem
            elif isinstance(part, StructurePart):
                notes[len(values)] = SEVERAL
            origins.append(number)
            values.append(part)
    table = {name: [column[number] for number in origins] for name, column in columns.items()}
    table["id"] = [_name_of(name, part) for name, part in zip(table["id"], values, strict=True)]
    _note_repeated(table, notes)
    return RawTable(
        source, (*table, "structure"), len(values), _reader_of({**table, "structure": values}), found, notes=notes,
        notices=notices,
    )  # fmt: skip


def _reader_of(columns: dict[str, list]) -> Callable[[str], Any]:
    return table_of_columns("", columns, 1).read


def _parts(path: Path, structures: str) -> tuple[list[Path | StructurePart], str]:
    """Return what to read of a file, and why it cannot be read."""
    try:
        contents = _contents(path)
        if len(contents) <= 1:
            return [path], ""
        if not structures:
            return [path], f"file has '{len(contents)}' structures; choose one by its number, or all"
        return [StructurePart(number, contents[number]) for number in chosen_numbers(len(contents), structures)], ""
    except DataError as error:
        return [path], str(error)


def _contents(path: Path) -> list[Any]:
    """Return the structures of a file of a kind that may hold several; of the others, nothing."""
    if is_ase_file(path):
        return [frame["structure"] for frame in frames(path)]
    return structure_blocks(structure_text(path)) if path.suffix.lower() in CIF_SUFFIXES else []


def _name_of(name: str, part: Path | StructurePart | None) -> str:
    return part_name(name, part.number + 1, 2) if isinstance(part, StructurePart) else name


def _note_repeated(table: dict[str, list], notes: dict[int, str]) -> None:
    """Note the rows whose id the list has more than once, and whether they disagree."""
    rows: dict[str, list[int]] = {}
    for row, name in enumerate(table["id"]):
        rows.setdefault(name, []).append(row)
    others = [name for name in table if name != "id"]
    for repeated in (of_id for of_id in rows.values() if len(of_id) > 1):
        labels = {tuple(str(table[name][row]) for name in others) for row in repeated}
        note = "id is listed more than once" + (" with different targets" if len(labels) > 1 else "")
        for row in repeated:
            notes[row] = f"{notes[row]}; {note}" if row in notes else note


def _checked_rows(listed: Path, rows: list[list[str]]) -> list[list[str]]:
    if not rows:
        raise DataError(f"{listed} is empty; it needs one line per structure: id,target", failure=Trouble.FILE_EMPTY)
    if max(len(row) for row in rows) < 2:
        raise DataError(
            f"{listed} has one column; it needs two, without a header: id,target", failure=Trouble.COLUMN_MISSING
        )
    return rows


def _id_as_named(name: str, by_id: dict[str, Path]) -> str:
    """Return an id as the files have it: a spreadsheet makes 1.0 of 1."""
    whole = re.fullmatch(r"(\d+)\.0", name)
    return whole.group(1) if name not in by_id and whole else name


def _files_by_id(files: Sequence[Path]) -> dict[str, Path]:
    """Return id -> file, by name and by name without extension; the name itself counts first."""
    by_stem = {path.stem: path for path in reversed(files)}
    return by_stem | {path.name: path for path in files}


def _header_and_rows(rows: list[list[str]], by_id: dict[str, Path], target: str) -> tuple[list[str], list[list[str]]]:
    first = rows[0]
    if len(rows) > 1 and first[0] not in by_id and not _is_number(first[1:2]):
        second = target if first[1].casefold() in ANY_TARGET else first[1]
        return ["id", second, *first[2:]], rows[1:]
    return ["id", target, *(UNNAMED.format(number) for number in range(3, len(first) + 1))], rows


def _is_number(cells: Sequence[str]) -> bool:
    try:
        float(cells[0])
    except (ValueError, IndexError):
        return False
    return True


def structure_text(path: Path) -> str:
    """Return the text of a structure file; DataError, without the folder's name, where it cannot be read."""
    try:
        return read_bounded(path, MAX_FILE_BYTES).decode("utf-8", "replace")
    except OSError as error:
        raise DataError(
            f"structure file {quoted(path.name)} cannot be read: {quoted(error.strerror)}",
            failure=Trouble.FILE_UNREADABLE,
        ) from error


def structure_content(value: Path | StructurePart) -> Any:
    """Return what `parse_structure` takes of a file or a part of one. DataError where it cannot be read."""
    if isinstance(value, StructurePart):
        return value.content
    return frames(value)[0]["structure"] if is_ase_file(value) else structure_text(value)
