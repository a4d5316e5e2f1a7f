"""Files and folders to raw tables: every column as the source has it.

parquet                    one table, columns decoded only when asked for
CSV, TSV, text (.gz)       a header, then rows, see `delimited`
xlsx                       the first sheet with rows
extended XYZ and others    what ASE reads, see `ase_files`: a row for each structure
JSON lines, JSON (.gz)     objects with a structure in them (JARVIS: atoms), bare `Structure.as_dict`, or columns as
                           pandas and matbench write them
.json.zip, ..., .zip       one such file, packed as JARVIS does
folder                     with id_prop.csv or targets.csv: structure files, see `structure_folders`
folder                     with one of the files above and no other data file: that file
"""

import gzip
import json
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from ray_fed.errors import DataError, Trouble, quoted
from ray_fed.materials.databases.ase_files import is_ase_file, open_ase_file
from ray_fed.materials.databases.columns import find_roles
from ray_fed.materials.databases.delimited import decoded, table_of_text
from ray_fed.materials.databases.raw_table import MAX_ROWS, RawTable, reading, table_of_columns
from ray_fed.materials.databases.spreadsheets import open_spreadsheet
from ray_fed.materials.databases.structure_folders import (
    PROPERTY_FILES,
    is_structure_file,
    one_structure,
    open_structure_folder,
    property_file,
    structure_files,
)
from ray_fed.reading import open_regular, parse_json, plain_within_bounds, read_at_most, read_bounded

MAX_TEXT_BYTES = 1 << 29
"""Of a table as text, unpacked; larger tables are kept as parquet."""
_ENCRYPTED = 1
"""Bit of a zip file's flags."""
MAX_ZIPPED_BYTES = 1 << 31
"""Of a file in an archive: all of JARVIS' three-dimensional crystals are more than half of it."""


def open_table(path: Path, target: str | None, structures: str = "") -> RawTable:
    """Return the table of a file or folder. DataError where there is none.

    `structures` says which of several structures in one file, as in `open_structure_folder`.
    `target` names the second column of an id_prop.csv, which has no header; None where no target is wanted.
    """
    with reading(path):
        if path.is_dir():
            return _open_folder(path, target, structures)
        if not path.is_file():
            raise DataError(
                f"{path}: {'neither a file nor a folder' if path.exists() else 'no such file or folder'}",
                failure=Trouble.FILE_MISSING,
            )
        if path.stat().st_size == 0:
            raise DataError(f"{path} is an empty file", failure=Trouble.FILE_EMPTY)
    if is_ase_file(path):
        return open_ase_file(path, structures or "all")
    if target is None and is_structure_file(path) and _reader(path) is not _open_json:
        return one_structure(path, structures)
    return _required_reader(path)(path)


def _open_folder(folder: Path, target: str | None, structures: str) -> RawTable:
    if property_file(folder):
        return open_structure_folder(folder, target, structures)
    files = sorted(path for path in folder.iterdir() if _reader(path) and path.is_file())
    in_folder = structure_files(folder)
    tables = [path for path in files if path not in in_folder]
    if len(tables) == 1:
        return open_table(tables[0], target)
    if len(tables) > 1:
        raise DataError(
            f"{folder} holds {len(tables)} data files ({_names(tables)}); give the path of one of them",
            failure=Trouble.FILE_UNKNOWN,
        )
    if len(in_folder) == 1 and (_reader(in_folder[0]) or is_ase_file(in_folder[0])):
        return open_table(in_folder[0], target, structures)
    if in_folder and target is None:
        return open_structure_folder(folder, target, structures)
    if in_folder:
        raise DataError(
            f"{folder} has {len(in_folder)} structure files but no {' or '.join(PROPERTY_FILES)}; write one line per "
            "structure, without a header: id,target",
            failure=Trouble.FILE_MISSING,
        )
    raise DataError(
        f"{folder} holds no data; it needs one of: {', '.join(READERS)}, or {PROPERTY_FILES[0]}",
        failure=Trouble.FILE_EMPTY,
    )


def _names(paths: Sequence[Path]) -> str:
    shown = ", ".join(path.name for path in paths[:10])
    return f"{shown} and {len(paths) - 10} more" if len(paths) > 10 else shown


def _open_parquet(path: Path) -> RawTable:
    from pyarrow import parquet

    with reading(path):
        file = parquet.ParquetFile(path)
        if file.metadata.num_rows > MAX_ROWS:
            raise ValueError(f"it claims {file.metadata.num_rows:,} rows, more than {MAX_ROWS:,}")

    def read(name: str) -> pd.Series:
        with reading(path):
            return file.read(columns=[name]).column(name).to_pandas()

    return RawTable(str(path), tuple(file.schema_arrow.names), file.metadata.num_rows, read)


def _text(path: Path) -> str:
    with reading(path):
        if path.suffix.lower() != ".gz":
            return decoded(read_bounded(path, MAX_TEXT_BYTES))
        with open_regular(path) as packed, gzip.open(packed) as file:
            return decoded(read_at_most(file, MAX_TEXT_BYTES))


def _open_delimited(path: Path) -> RawTable:
    return _table_of_csv(path, _text(path))


def _table_of_csv(path: Path, text: str) -> RawTable:
    with reading(path):
        return table_of_text(str(path), text)


def _open_json_lines(path: Path) -> RawTable:
    return _table_of_json_lines(path, _text(path))


def _table_of_json_lines(path: Path, text: str) -> RawTable:
    lines = [line for line in text.split("\n") if line.strip()]
    return _table_of_entries(path, [_entry_or_none(line) for line in lines])


def _entry_or_none(line: str) -> Any:
    """Return the line's object; a line that is none becomes None, which is counted as an unreadable row."""
    try:
        return parse_json(line, "the line", finite=False)
    except DataError:
        return None


def _open_json(path: Path) -> RawTable:
    return _table_of_json(path, _text(path))


def _table_of_json(path: Path, text: str) -> RawTable:
    with reading(path):
        content = plain_within_bounds(json.loads(text), refuse_infinite=False)
    if isinstance(content, list):
        return _table_of_entries(path, content)
    if not isinstance(content, dict):
        raise DataError(
            f"{path} holds a JSON {type(content).__name__}; it must be a list of entries, or columns",
            failure=Trouble.FILE_UNKNOWN,
        )
    if _is_structure(content) or _is_structure(content.get("structure")):
        return _table_of_entries(path, [content])
    return _table_of_json_columns(path, content)


def _table_of_entries(path: Path, entries: Sequence[Any]) -> RawTable:
    """Return the table of a list of objects; an object that is itself a structure becomes one with its properties."""
    objects = [_entry(entry) for entry in entries]
    problems = {number: "entry is not a JSON object" for number, entry in enumerate(objects) if entry is None}
    names = list(dict.fromkeys(name for entry in objects if entry for name in entry))
    columns = {name: [entry.get(name) if entry else None for entry in objects] for name in names}
    return table_of_columns(str(path), columns, len(entries), problems)


def _entry(entry: Any) -> Mapping[str, Any] | None:
    if not isinstance(entry, dict):
        return None
    if not _is_structure(entry):
        return entry
    properties = entry.get("properties")
    return {**(properties if isinstance(properties, dict) else {}), "structure": entry}


def _is_structure(value: Any) -> bool:
    return isinstance(value, dict) and ("sites" in value or "lattice_mat" in value)


def _table_of_json_columns(path: Path, content: dict[str, Any]) -> RawTable:
    """Return the table of {"columns": [...], "data": [[...]]} or of {column: {row: value}} or {column: [value]}."""
    if isinstance(content.get("columns"), list) and isinstance(content.get("data"), list):
        return _table_of_split(path, content)
    values = {name: column for name, column in content.items() if isinstance(column, dict | list)}
    if not content or len(values) < len(content):
        keys = quoted(", ".join(content))
        raise DataError(
            f"{path} is JSON but neither a list of entries nor columns of a table; its keys: {keys}",
            failure=Trouble.FILE_UNKNOWN,
        )
    rows = list(dict.fromkeys(row for column in values.values() for row in _keys(column)))
    columns = {name: [_at(column, row) for row in rows] for name, column in values.items()}
    return table_of_columns(str(path), columns, len(rows))


def _table_of_split(path: Path, content: dict[str, Any]) -> RawTable:
    """Return the table of {"index": [...], "columns": [...], "data": [[...]]}; an index of text is the ids, as in
    matbench, if no column is."""
    names, rows = [str(name) for name in content["columns"]], content["data"]
    entries, index = [_zipped(names, row) for row in rows], content.get("index")
    named = isinstance(index, list) and len(index) == len(rows) and all(isinstance(each, str) for each in index)
    if isinstance(index, list) and named and "id" not in find_roles(names):
        entries = [entry and {"id": each, **entry} for each, entry in zip(index, entries, strict=True)]
    return _table_of_entries(path, entries)


def _zipped(names: Sequence[str], row: Any) -> dict[str, Any] | None:
    return dict(zip(names, row, strict=True)) if isinstance(row, list) and len(row) == len(names) else None


def _keys(column: dict[str, Any] | list[Any]) -> Iterator[str]:
    return iter(column) if isinstance(column, dict) else map(str, range(len(column)))


def _at(column: dict[str, Any] | list[Any], row: str) -> Any:
    if isinstance(column, dict):
        return column.get(row)
    return column[int(row)] if row.isdigit() and int(row) < len(column) else None


def _open_zip(path: Path) -> RawTable:
    """Return the table of the one file in an archive; other members, of a Mac's for one, are none that can be read."""
    with reading(path), open_regular(path) as packed, zipfile.ZipFile(packed) as archive:
        if any(member.flag_bits & _ENCRYPTED for member in archive.infolist()):
            raise DataError(f"{path} is packed with a password; unpack it and give its path",
                            failure=Trouble.FILE_UNREADABLE)  # fmt: skip
        names = [name for name in archive.namelist() if _reader_of_text(Path(name))]
        if len(names) != 1:
            raise DataError(
                f"{path} holds {len(names)} files that can be read; it must hold one, or unpack it and give its path",
                failure=Trouble.FILE_UNKNOWN,
            )
        with archive.open(names[0]) as member:
            text = decoded(read_at_most(member, MAX_ZIPPED_BYTES))
    of_text = _reader_of_text(Path(names[0]))
    assert of_text is not None
    return of_text(path, text)


READERS: dict[str, Callable[[Path], RawTable]] = {
    ".parquet": _open_parquet,
    ".pq": _open_parquet,
    ".csv": _open_delimited,
    ".csv.gz": _open_delimited,
    ".tsv": _open_delimited,
    ".tsv.gz": _open_delimited,
    ".txt": _open_delimited,
    ".xlsx": open_spreadsheet,
    ".jsonl": _open_json_lines,
    ".jsonl.gz": _open_json_lines,
    ".json": _open_json,
    ".json.gz": _open_json,
    ".zip": _open_zip,
}
"""File ending -> reader."""
TEXT_READERS: dict[str, Callable[[Path, str], RawTable]] = {
    ".csv": _table_of_csv,
    ".jsonl": _table_of_json_lines,
    ".json": _table_of_json,
}
"""File ending -> reader of text that was taken from an archive."""


def _reader_of_text(path: Path) -> Callable[[Path, str], RawTable] | None:
    hidden = path.name.startswith(".") or "__MACOSX" in path.parts
    return None if hidden else TEXT_READERS.get(path.suffix.lower())


def _reader(path: Path) -> Callable[[Path], RawTable] | None:
    if path.name.startswith("."):
        return None
    return next((reader for ending, reader in READERS.items() if path.name.lower().endswith(ending)), None)


def _required_reader(path: Path) -> Callable[[Path], RawTable]:
    reader = _reader(path)
    if reader is not None:
        return reader
    if is_structure_file(path):
        raise DataError(
            f"{path} is one structure; give the folder that holds it with {PROPERTY_FILES[0]} (id,target)",
            failure=Trouble.FILE_UNKNOWN,
        )
    raise DataError(
        f"{path}: cannot tell what kind of file it is; its name must end in {', '.join(READERS)}",
        failure=Trouble.FILE_UNKNOWN,
    )
