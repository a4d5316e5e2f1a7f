"""Tables as text: commas, semicolons, tabs or bars between columns, as programs and spreadsheets write them."""

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from ray_fed.materials.databases.raw_table import RawTable

_SEPARATORS = ",;\t|"
_DECIMAL_COMMA = re.compile(r"[+-]?\d*,\d+(?:[eE][+-]?\d+)?")
OPEN_QUOTE = "; a quotation mark is not closed"
_UTF16 = (b"\xff\xfe", b"\xfe\xff")


@dataclass(frozen=True)
class TextRows:
    """rows: each a list of cells without spaces around them; notices: what was left out or changed before"""

    rows: list[list[str]]
    notices: tuple[str, ...]


def decoded(content: bytes) -> str:
    """Return a text without its byte-order mark; UnicodeDecodeError where it is neither UTF-8 nor marked UTF-16."""
    return content.decode("utf-16" if content.startswith(_UTF16) else "utf-8-sig")


def rows_of_text(text: str) -> TextRows:
    """Return the rows of a table that are not empty, whatever separates their cells; csv.Error where a cell is too
    long. Lines of comment (#) before the header, and a title that has one cell where the rows have more, are left
    out."""
    separator = _separator(text)
    lines = _split(text, separator)
    notices = []
    while len(lines) > 1 and (lines[0][0].startswith("#") or len(lines[0]) == 1 < len(lines[1])):
        notices.append(f"line before the header is left out '{lines[0][0][:60]}'".replace("\n", " "))
        lines = lines[1:]
    has_commas = any(_DECIMAL_COMMA.fullmatch(cell) for row in lines[1:] for cell in row)
    if separator != "," and has_commas and not _has_points(lines[1:]):  # where commas part columns, "1,234" is 1234
        notices.append("decimal commas are read as points")
        lines = [[_with_point(cell) for cell in row] for row in lines]
    return TextRows(lines, tuple(notices))


def _separator(text: str) -> str:
    """Return what separates the cells: a comma, unless the header is one cell for it and several for another mark.

    The header is the last of the first lines that has such a mark: a title or a comment before it may have none.
    """
    whole = [line for line in text[:10_000].splitlines()[:20] if line.strip()]
    for mark in ";\t":  # "x;-2,1" has two cells, in whichever line
        if whole and len({line.count(mark) for line in whole}) == 1 and mark in whole[0]:
            return mark
    lines = [row for row in _split(text[:100_000], ",") if not row[0].startswith("#")]
    header = next((row for row in lines[:2] if len(row) > 1 or any(mark in row[0] for mark in _SEPARATORS)), [""])
    return max(_SEPARATORS, key=header[0].count) if len(header) == 1 else ","


def _split(text: str, separator: str) -> list[list[str]]:
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
    return [[cell.strip() for cell in row] for row in rows if any(cell.strip() for cell in row)]


def _has_points(rows: Sequence[Sequence[str]]) -> bool:
    """Whether some number has a decimal point: commas may then part thousands."""
    return any(re.fullmatch(r"[+-]?\d*\.\d+(?:[eE][+-]?\d+)?|.*,.*\..*", cell) for row in rows for cell in row)


def _goes_on(row: Sequence[str], text: str) -> bool:
    """Whether a quotation mark that nothing closes made one cell of many lines."""
    return text.count('"') % 2 == 1 and any("\n" in cell or "\r" in cell for cell in row)


def _with_point(cell: str) -> str:
    return cell.replace(",", ".") if _DECIMAL_COMMA.fullmatch(cell) else cell


def table_of_text(source: str, text: str) -> RawTable:
    """Return the table of a text with a header; rows of another length than it are torn."""
    read = rows_of_text(text)
    header, rows = (read.rows[0], read.rows[1:]) if read.rows else ([], [])
    problems = {
        number: f"torn row '{len(row)} of {len(header)} values'" + (OPEN_QUOTE if _goes_on(row, text) else "")
        for number, row in enumerate(rows)
        if len(row) != len(header)
    }
    whole = [[""] * len(header) if number in problems else row for number, row in enumerate(rows)]
    columns = dict(zip(header, zip(*whole, strict=True), strict=True)) if whole else {}

    def read_column(name: str) -> pd.Series:
        return pd.Series(list(columns[name]), dtype=object)

    # A name that occurs twice is lost in the mapping; the table refuses it by its list of names.
    return RawTable(source, tuple(header), len(rows), read_column, problems, notices=read.notices)
