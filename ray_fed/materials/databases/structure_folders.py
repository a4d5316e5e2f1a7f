"""A folder of structure files with a list of ids and targets, as CGCNN, ALIGNN and MatDeepLearn take it.

`id_prop.csv` (or `targets.csv`) has no header: id, target, and further columns if any. The id is a file's name with or
without its extension. A header is recognised by what cannot be a row: a first id without a file beside a target that is
no number. Subfolders are not entered.
"""

import csv
from collections.abc import Sequence
from pathlib import Path

from ray_fed.errors import DataError, Trouble, quoted
from ray_fed.materials.databases.raw_table import RawTable, reading, table_of_columns
from ray_fed.reading import read_bounded

PROPERTY_FILES = ("id_prop.csv", "targets.csv")
STRUCTURE_SUFFIXES = (".cif", ".vasp", ".poscar", ".json")
ANY_TARGET = ("target", "property", "prop", "value", "y")
"""Headers that name no quantity: the column is taken for the target asked for."""
MAX_FILE_BYTES = 50_000_000


def property_file(folder: Path) -> Path | None:
    """Return the folder's list of targets, None where it has none."""
    return next((folder / name for name in PROPERTY_FILES if (folder / name).is_file()), None)


def structure_files(folder: Path) -> list[Path]:
    """Return the structure files of a folder, by name."""
    with reading(folder):
        return sorted(path for path in folder.iterdir() if is_structure_file(path))


def is_structure_file(path: Path) -> bool:
    """Return whether the name is one of a CIF, POSCAR or JSON structure file, and it is a regular file."""
    named = path.suffix.lower() in STRUCTURE_SUFFIXES or path.name.upper().startswith(("POSCAR", "CONTCAR"))
    return named and not path.name.startswith(".") and path.is_file()


def open_structure_folder(folder: Path, target: str | None) -> RawTable:
    """Return the table id, target (under the name `target`), structure, and further columns of the list.

    Without a target every structure file is a row. DataError where the list is missing or empty.
    """
    files = structure_files(folder)
    listed = property_file(folder)
    if target is None or listed is None:
        return _structures_only(folder, files)
    rows = _rows(listed)
    by_id = _files_by_id(files)
    names, rows = _header_and_rows(rows, by_id, target)
    problems = {}
    for number, row in enumerate(rows):
        if row[0] not in by_id:
            problems[number] = f"no structure file for id {quoted(row[0])}"
        elif len(row) != len(names):
            problems[number] = f"torn row '{len(row)} of {len(names)} values' in {listed.name}"
    columns = {name: [row[at] if at < len(row) else None for row in rows] for at, name in enumerate(names)}
    return _table(str(folder), columns, [by_id.get(row[0]) for row in rows], problems)


def _structures_only(folder: Path, files: Sequence[Path]) -> RawTable:
    if not files:
        raise DataError(
            f"{folder} has no structure files ({', '.join(STRUCTURE_SUFFIXES)} or POSCAR*)",
            failure=Trouble.FILE_EMPTY,
        )
    return _table(str(folder), {"id": [path.name for path in files]}, files, {})


def one_structure(path: Path) -> RawTable:
    """Return the table of a single structure file."""
    return _table(str(path), {"id": [path.name]}, [path], {})


def _rows(listed: Path) -> list[list[str]]:
    with reading(listed), listed.open(encoding="utf-8-sig", newline="") as file:
        rows = [[cell.strip() for cell in row] for row in csv.reader(file) if any(cell.strip() for cell in row)]
    if not rows:
        raise DataError(f"{listed} is empty; it needs one line per structure: id,target", failure=Trouble.FILE_EMPTY)
    if max(len(row) for row in rows) < 2:
        raise DataError(
            f"{listed} has one column; it needs two, without a header: id,target", failure=Trouble.COLUMN_MISSING
        )
    return rows


def _files_by_id(files: Sequence[Path]) -> dict[str, Path]:
    """Return id -> file, by name and by name without extension; the name itself counts first."""
    by_stem = {path.stem: path for path in reversed(files)}
    return by_stem | {path.name: path for path in files}


def _header_and_rows(rows: list[list[str]], by_id: dict[str, Path], target: str) -> tuple[list[str], list[list[str]]]:
    first = rows[0]
    if len(rows) > 1 and first[0] not in by_id and not _is_number(first[1:2]):
        second = target if first[1].casefold() in ANY_TARGET else first[1]
        return ["id", second, *first[2:]], rows[1:]
    return ["id", target, *(f"column_{number}" for number in range(3, len(first) + 1))], rows


def _is_number(cells: Sequence[str]) -> bool:
    try:
        float(cells[0])
    except (ValueError, IndexError):
        return False
    return True


def _table(source: str, columns: dict[str, list], paths: Sequence[Path | None], problems: dict[int, str]) -> RawTable:
    return table_of_columns(source, {**columns, "structure": paths}, len(paths), problems)


def structure_text(path: Path) -> str:
    """Return the text of a structure file; DataError, without the folder's name, where it cannot be read."""
    try:
        return read_bounded(path, MAX_FILE_BYTES).decode("utf-8", "replace")
    except OSError as error:
        raise DataError(
            f"structure file {quoted(path.name)} cannot be read: {quoted(error.strerror)}",
            failure=Trouble.FILE_UNREADABLE,
        ) from error
