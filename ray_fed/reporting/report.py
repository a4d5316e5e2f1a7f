"""report.html: the whole run in one file that needs no network, no script and no other file.

Text of any origin is escaped where it becomes HTML, in `_escaped` and nowhere else.
"""

import base64
import html
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ray_fed.errors import DataError
from ray_fed.reporting.results import (
    Results,
    number,
)
from ray_fed.reporting.run_directory import RunDirectory
from ray_fed.reporting.writing import to_plain

STYLE = """
:root {
  --paper: #ffffff; --ink: #1d2125; --quiet: #5a6570; --line: #dfe3e7; --stripe: #f6f8fa;
  --accent: #b34700; --note: #fff6e5; --note-line: #e0a030; --code: #f3f5f7;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #15191d; --ink: #e3e7ea; --quiet: #98a3ad; --line: #323a42; --stripe: #1b2026;
    --accent: #ff9a5c; --note: #2c2415; --note-line: #b0802c; --code: #1f252b;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
}
main { max-width: 62rem; margin: 0 auto; padding: 2rem 1.25rem 4rem; }
h1 { font-size: 1.75rem; line-height: 1.25; margin: 0 0 .3rem; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 0 0 .7rem; }
header { border-bottom: 2px solid var(--line); padding-bottom: 1rem; }
.subtitle { color: var(--quiet); margin: 0 0 .6rem; overflow-wrap: anywhere; }
.facts { display: flex; flex-wrap: wrap; gap: .4rem 1.6rem; margin: .6rem 0 0; padding: 0; list-style: none; }
.facts li { font-weight: 600; font-variant-numeric: tabular-nums; }
.facts .what { color: var(--quiet); font-weight: 400; }
section { margin-top: 2.2rem; }
p { margin: 0 0 .8rem; overflow-wrap: anywhere; }
.wide { overflow-x: auto; margin-bottom: 1.3rem; }
table { border-collapse: collapse; font-size: .94rem; font-variant-numeric: tabular-nums; }
caption { caption-side: bottom; text-align: left; color: var(--quiet); font-size: .88rem; padding-top: .5rem; }
th, td { padding: .38rem .9rem; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line); }
td { overflow-wrap: break-word; max-width: 34rem; }
.short { white-space: nowrap; }
th { white-space: nowrap; color: var(--quiet); font-weight: 600; border-bottom: 2px solid var(--line); }
tbody tr:nth-child(even) { background: var(--stripe); }
.number { text-align: right; white-space: nowrap; }
tr.strong td { font-weight: 700; color: var(--accent); }
figure { margin: 0 0 1.6rem; }
img { display: block; max-width: 100%; height: auto; background: #ffffff; border: 1px solid var(--line);
  border-radius: 6px; padding: .5rem; }
figcaption { color: var(--quiet); font-size: .9rem; margin-top: .4rem; max-width: 48rem; }
pre { background: var(--code); border: 1px solid var(--line); border-radius: 6px; padding: .8rem 1rem; margin: 0;
  overflow-x: auto; white-space: pre-wrap; overflow-wrap: anywhere; }
code { font: .9rem/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; }
.note { background: var(--note); border-left: 4px solid var(--note-line); border-radius: 0 6px 6px 0;
  padding: .6rem .9rem; }
summary { cursor: pointer; }
summary h2 { display: inline-block; margin: 0 0 .5rem .2rem; }
footer { margin-top: 3rem; padding-top: 1rem; border-top: 1px solid var(--line); color: var(--quiet);
  font-size: .9rem; }
@media print {
  main { max-width: none; padding: 0; }
  figure, table, pre { break-inside: avoid; }
}
"""


POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
"""Content-Security-Policy: the browser itself refuses scripts and anything from outside."""

SHORT_TEXT = 30
"""Letters of a text that stays on one line: in a wide table its column would else become as narrow as one word."""
NUMERIC = frozenset("0123456789+-−.,e%± ")

LEADING = ("name", "silo", "part", "source", "rows", "columns")
"""Fields of a data fingerprint that come first in its table."""


@dataclass(frozen=True)
class Paragraph:
    """Running text."""

    text: str


@dataclass(frozen=True)
class Note:
    """A boxed remark a reader must not miss."""

    text: str


@dataclass(frozen=True)
class Code:
    """Text to copy, e.g. a command line."""

    text: str


@dataclass(frozen=True)
class Table:
    """Cells as text; columns of numbers are set to the right."""

    header: Sequence[str]
    rows: Sequence[Sequence[object]]
    caption: str = ""
    emphasised: frozenset[int] = frozenset()
    """Rows set in bold."""


@dataclass(frozen=True)
class Figure:
    """A PNG file, embedded."""

    path: Path
    caption: str
    """What is seen, with units; also the text for readers who cannot see it."""


Block = Paragraph | Note | Code | Table | Figure


@dataclass(frozen=True)
class Section:
    """A titled part of the report; `folded` ones open on a click."""

    title: str
    blocks: Sequence[Block]
    folded: bool = False


def write_report(
    run: RunDirectory,
    title: str,
    summary: Mapping[str, object],
    sections: Sequence[Section],
    *,
    subtitle: str = "",
    command: str = "",
    results: Results | None = None,
    unreadable: Mapping[str, Mapping[str, int]] | None = None,
    notes: Mapping[str, Mapping[str, int]] | None = None,
    warnings: Sequence[str] = (),
    provenance: str = "",
) -> Path:
    """Write `report.html`: results first, then `sections`, then what is needed to judge and to repeat the run.

    `results` are the models' (results_from_summary), where the run has models; `unreadable` is silo -> reason ->
    number of rows, `notes` silo -> what is odd -> number of rows; `command` is the line that repeats the run;
    `provenance` says where the data come from and what they are not. Configuration, data and versions are read from the
    run. DataError when a figure is missing or not PNG.
    """
    summary = {key: to_plain(value) for key, value in summary.items()}
    body = [
        _header(title, subtitle, summary),
        *(_section(section) for section in _result_sections(results or Results(), summary)),
        *(_section(section) for section in _warning_sections(unreadable or {}, notes or {}, warnings)),
        *(_section(section) for section in sections),
        *(_section(section) for section in _record_sections(run, summary, command)),
        f"<footer>{_paragraphs(provenance)}</footer>" if provenance else "",
    ]
    return run.write_bytes(run.report_path.name, _page(title, body).encode("utf-8", "backslashreplace"))


# ---- sections


def _result_sections(results: Results, summary: Mapping[str, object]) -> list[Section]:
    if not results.rows:
        return []
    header, *cells = results.table()
    bold = frozenset(i for i, row in enumerate(results.shown) if row.kind == "federated")
    table = Table(header, cells, _test_note(summary, results.has_spread), bold)
    said = results.comparison()
    return [Section("Results", [*([Paragraph(said)] if said else []), table])]


def _test_note(summary: Mapping[str, object], spread: bool) -> str:
    """Say on how many rows the models were measured, and what the spread is."""
    parts, test, repeats = [], summary.get("test.num_examples"), summary.get("repeats")
    if isinstance(test, int):
        parts.append(f"Measured on one common test set of {test:,} rows.")
    if spread:
        parts.append(f"Mean and standard deviation over {repeats or 'several'} seeds.")
    return " ".join(parts)


Counted = Mapping[str, Mapping[str, int]]
"""Silo -> kind -> number of rows."""


def _warning_sections(unreadable: Counted, notes: Counted, warnings: Sequence[str]) -> list[Section]:
    rows, noted = _counted_rows(unreadable), _counted_rows(notes)
    blocks: list[Block] = [Note(text) for text in warnings]
    if rows:
        total = sum(count for reasons in unreadable.values() for count in reasons.values())
        blocks.append(Note(f"{total:,} rows could not be used and were left out."))
        blocks.append(Table(["source", "reason", "rows"], rows))
    if noted:
        blocks.append(Note("Something is odd about these rows, which were used where nothing else was wrong."))
        blocks.append(Table(["source", "note", "rows"], noted))
    return [Section("Warnings", blocks)] if blocks else []


def _counted_rows(counted: Counted) -> list[tuple[str, str, str]]:
    return [
        (silo, kind, f"{count:,}")
        for silo, kinds in counted.items()
        for kind, count in sorted(kinds.items(), key=lambda item: (-item[1], item[0]))
        if count
    ]


def _record_sections(run: RunDirectory, summary: Mapping[str, object], command: str) -> list[Section]:
    sections = [Section("How to repeat this run", [Code(command)])] if command else []
    if run.config_path.is_file():
        rows = [(key, value) for key, value in _flat(run.read_config())]
        sections.append(Section("Configuration", [Table(["field", "value"], rows)], folded=True))
    if run.data_path.is_file():
        sections.append(Section("Data", _data_blocks(run.read_data())))
    if run.environment_path.is_file():
        rows = [(key, value) for key, value in _flat(run.read_environment())]
        sections.append(Section("Versions and machine", [Table(["what", "value"], rows)], folded=True))
    rows = [(key, _cell(summary[key])) for key in sorted(summary)]
    return [*sections, Section("Summary", [Table(["key", "value"], rows)], folded=True)]


def _data_blocks(fingerprints: Iterable[Mapping[str, object]]) -> list[Block]:
    """One row per source, one column per field that any source has."""
    sources = list(fingerprints)
    fields = list(dict.fromkeys(key for source in sources for key in source))
    header = [key for key in LEADING if key in fields] + [key for key in fields if key not in LEADING]
    rows = [[_shortened(_cell(source.get(key))) for key in header] for source in sources]
    said = Paragraph("Hashes (in full in data.json) and counts only: no row of any silo is in this directory.")
    return [said, Table(header, rows)] if sources else []


def _shortened(text: str) -> str:
    """Return a hash by its first 16 digits."""
    is_hash = len(text) >= 40 and all(letter in "0123456789abcdef" for letter in text)
    return f"{text[:16]}…" if is_hash else text


def _flat(value: object, prefix: str = "") -> Iterable[tuple[str, str]]:
    """Yield (dotted key, text) of nested mappings."""
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from _flat(item, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, _cell(value)


def _cell(value: object) -> str:
    if value is None or value == []:
        return "–"
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(isinstance(item, str | int | float) for item in value):
        return ", ".join(str(item) for item in value)
    return json.dumps(value, ensure_ascii=False)


# ---- HTML


def _page(title: str, body: Iterable[str]) -> str:
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{_escaped(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(part for part in body if part)
        + "\n</main>\n</body>\n</html>\n"
    )


def _header(title: str, subtitle: str, summary: Mapping[str, object]) -> str:
    facts = [("status", summary.get("status")), ("rounds", summary.get("rounds"))]
    facts += [("sent", _megabytes(summary.get("bytes_sent"))), ("took", _seconds(summary.get("seconds.total")))]
    chips = "".join(
        f'<li><span class="what">{_escaped(name)}</span> {_escaped(value)}</li>'
        for name, value in facts
        if value is not None
    )
    below = f'<p class="subtitle">{_escaped(subtitle)}</p>' if subtitle else ""
    return f'<header><h1>{_escaped(title)}</h1>{below}<ul class="facts">{chips}</ul></header>'


def _megabytes(value: object) -> str | None:
    return f"{value / 1e6:,.1f} MB" if isinstance(value, int | float) else None


def _seconds(value: object) -> str | None:
    return f"{number(value, 1)} s" if isinstance(value, int | float) else None


def _section(section: Section) -> str:
    inner = "\n".join(_block(block) for block in section.blocks)
    title = _escaped(section.title)
    if section.folded:
        return f"<section><details><summary><h2>{title}</h2></summary>\n{inner}\n</details></section>"
    return f"<section><h2>{title}</h2>\n{inner}\n</section>"


def _block(block: Block) -> str:
    match block:
        case Paragraph(text):
            return _paragraphs(text)
        case Note(text):
            return f'<p class="note">{_escaped(text)}</p>'
        case Code(text):
            return f"<pre><code>{_escaped(text)}</code></pre>"
        case Table():
            return _table(block)
        case Figure():
            return _figure(block)


def _paragraphs(text: str) -> str:
    return "".join(f"<p>{_escaped(part)}</p>" for part in text.split("\n\n") if part.strip())


def _table(table: Table) -> str:
    right = _numeric_columns(table)
    rows = [_row(row, "td", right, index in table.emphasised) for index, row in enumerate(table.rows)]
    caption = f"<caption>{_escaped(table.caption)}</caption>" if table.caption else ""
    head = _row(table.header, "th", right)
    inner = "\n".join(rows)
    return f'<div class="wide"><table>{caption}<thead>{head}</thead>\n<tbody>{inner}</tbody></table></div>'


def _row(cells: Sequence[object], tag: str, right: frozenset[int], bold: bool = False) -> str:
    looks = [
        "number" if index in right else "short" if tag == "td" and len(str(cell)) <= SHORT_TEXT else ""
        for index, cell in enumerate(cells)
    ]
    opened = [f'<{tag} class="{look}">' if look else f"<{tag}>" for look in looks]
    inner = "".join(f"{start}{_escaped(cell)}</{tag}>" for start, cell in zip(opened, cells, strict=True))
    return f'<tr class="strong">{inner}</tr>' if bold else f"<tr>{inner}</tr>"


def _numeric_columns(table: Table) -> frozenset[int]:
    """Columns whose cells all look like numbers; a column of dashes counts as one of numbers."""
    columns = zip(*table.rows, strict=True)
    return frozenset(i for i, cells in enumerate(columns) if all(set(str(cell)) <= NUMERIC | {"–"} for cell in cells))


def _figure(figure: Figure) -> str:
    said = _escaped(figure.caption)
    image = f'<img alt="{said}" src="data:image/png;base64,{_embedded(figure.path)}">'
    return f"<figure>{image}<figcaption>{said}</figcaption></figure>"


def _embedded(path: Path) -> str:
    try:
        png = Path(path).read_bytes()
    except OSError as error:
        raise DataError(f"figure {path} cannot be read ({error.strerror}); save it before the report") from error
    if not png.startswith(b"\x89PNG\r\n\x1a\n"):
        raise DataError(f"figure {path} is not a PNG file; save figures with save_figure")
    return base64.b64encode(png).decode("ascii")


def _escaped(text: object) -> str:
    """Return text as HTML shows it: no tag, no attribute, and no control character can come out of it."""
    visible = "".join(letter if letter.isprintable() or letter in "\n\t" else "\ufffd" for letter in str(text))
    return html.escape(visible, quote=True)
