"""Spreadsheets (.xlsx): the first sheet with rows, its first row the header; values as they were last computed."""

import zipfile
from pathlib import Path
from typing import Any

import pandas as pd

from ray_fed.errors import DataError, Trouble, quoted
from ray_fed.materials.databases.packages import required_package
from ray_fed.materials.databases.raw_table import RawTable, reading
from ray_fed.reading import open_regular

MAX_UNPACKED_BYTES = 1 << 30
"""A spreadsheet is a packed folder: a kilobyte may unpack to a gigabyte."""


def open_spreadsheet(path: Path) -> RawTable:
    """Return the table of a spreadsheet. DataError where it is damaged, or openpyxl is not installed."""
    required_package("openpyxl", "excel", str(path))
    from openpyxl import load_workbook

    with reading(path), open_regular(path) as file:
        try:
            with zipfile.ZipFile(file) as packed:
                size = sum(part.file_size for part in packed.infolist())
            if size > MAX_UNPACKED_BYTES:
                raise ValueError(f"it unpacks to more than {MAX_UNPACKED_BYTES:,} bytes")
            book = load_workbook(file, read_only=True, data_only=True)
            sheets = [(sheet.title, _rows(sheet)) for sheet in book.worksheets]
        except (zipfile.BadZipFile, AttributeError, SyntaxError) as error:
            raise ValueError(f"{type(error).__name__}: {error}") from error
    full = [(title, rows) for title, rows in sheets if rows]
    if not full:
        raise DataError(f"{path} is empty: none of its sheets has rows", failure=Trouble.FILE_EMPTY)
    return _table(str(path), full[0][1], [title for title, _ in full[1:]])


def _rows(sheet: Any) -> list[list[Any]]:
    """Return the rows of a sheet that are not empty."""
    rows = [
        [cell.strip() if isinstance(cell, str) else cell for cell in row] for row in sheet.iter_rows(values_only=True)
    ]
    return [row for row in rows if any(cell not in (None, "") for cell in row)]


def _bare(cell: Any) -> Any:
    return cell.strip() if isinstance(cell, str) else cell


def _table(source: str, rows: list[list[Any]], others: list[str]) -> RawTable:
    width = max((at for at, cell in enumerate(rows[0], start=1) if cell not in (None, "")), default=0)
    header = ["" if cell is None else str(cell) for cell in rows[0][:width]]
    body = [[*row[:width], *[None] * (width - len(row))] for row in rows[1:]]
    columns = {name: [row[at] for row in body] for at, name in enumerate(header)}
    notices = tuple(f"sheet beside the first is left out {quoted(title)}" for title in others)

    def read(name: str) -> pd.Series:
        return pd.Series(columns[name], dtype=object)

    return RawTable(source, tuple(header), len(body), read, notices=notices)
