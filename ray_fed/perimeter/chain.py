"""Reads one ledger: checks the form of each line, chain, signatures and closing lines; says which line is wrong.

It needs nothing but the file: anybody can read it, and anybody may have written it.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray_fed.errors import DataError
from ray_fed.perimeter.ledger import CLOSING, FORMAT_NAME, FORMAT_VERSION, GENESIS, LedgerCounts, line_digest, to_line
from ray_fed.privacy.signing import is_signed
from ray_fed.reading import bounded_lines, parse_json

Line = Mapping[str, Any]
SUMMED = "summed on the way"
"""Kind of the coordinator's line of an update that a hub between has added to others."""
OTHER_LINES = (
    "opening", "reopening", "signature", CLOSING, "refused", "error", "session", "handed over", "received", "malformed",
    SUMMED, "model",
)  # fmt: skip
"""Kinds of line that are no message that left."""
MAX_LINE_BYTES = 1 << 22
MAX_LEDGER_BYTES = 1 << 30


# ---- what a line may hold

Check = Callable[[Any], bool]


def _is_text(value: Any) -> bool:
    return type(value) is str


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_text, value))


def _map_of(check: Check) -> Check:
    return lambda value: isinstance(value, dict) and all(map(check, value.values()))


def _or_none(check: Check) -> Check:
    return lambda value: value is None or check(value)


MESSAGE: Mapping[str, Check] = {
    "kind": _is_text, "session": _is_text, "round": _is_count, "sha256": _is_text, "bytes": _is_count,
    "num_examples": _or_none(_is_count), "norm": _or_none(_is_number),
}  # fmt: skip
FRAME: Mapping[str, Check] = {"number": _is_count, "previous": _is_text, "kind": _is_text}
OPENING: Mapping[str, Check] = {"format": _is_text, "public_key": _is_text, "writer": _is_text, "run": _is_text}
REQUIRED: Mapping[str, Mapping[str, Check]] = {
    "opening": OPENING,
    "reopening": OPENING,
    "signature": {"signature": _is_text},
    "received": {"silo": _is_text, "message": lambda value: isinstance(value, dict) and not _misfits(value, MESSAGE)},
    SUMMED: {
        "silo": _is_text, "session": _is_text, "round": _is_count, "num_examples": _is_count, "summed_with": _are_texts,
    },
    "model": {
        "session": _is_text, "round": _is_count, "strategy": _is_text, "participants": _are_texts,
        "models": _map_of(_is_text),
    },
    "handed over": {"silo": _is_text, "head": _is_text, "silo_key": _is_text},
    CLOSING: {"lines": _is_count, "messages": _map_of(_is_count), "rounds": _map_of(_is_count)},
}  # fmt: skip
"""Kind of line -> what a reader relies on."""
OPTIONAL: Mapping[str, Check] = {
    **{name: check for name, check in MESSAGE.items() if name != "kind"},
    "tensors": _map_of(_is_text), "files": _map_of(_is_text), "num_rounds": _is_count, "public_key": _is_text,
    "process": _is_text, "while": _is_text,
}  # fmt: skip
"""In any line that has them."""


def _misfits(values: Line, checks: Mapping[str, Check]) -> list[str]:
    return [name for name, check in checks.items() if name not in values or not check(values[name])]


# ---- a ledger


@dataclass(frozen=True)
class Chain:
    """One ledger as it was read, and what is wrong with it."""

    path: Path
    lines: tuple[Line, ...]
    heads: tuple[str, ...]
    """SHA-256 of each line."""
    problems: tuple[str, ...]
    """Each with its line."""
    unsigned: int
    """Last lines that no signature covers: a writer that was killed leaves some."""

    @property
    def writer(self) -> str:
        return str(self.lines[0].get("writer", "")) if self.lines else ""

    @property
    def public_key(self) -> str:
        return str(self.lines[0].get("public_key", "")) if self.lines else ""

    @property
    def run(self) -> str:
        return str(self.lines[0].get("run", "")) if self.lines else ""

    @property
    def version(self) -> int:
        """Newest version that wrote into it; 0 where it does not say."""
        begun = [line for line in self.lines if line["kind"] in ("opening", "reopening")]
        return max((version_of(line["format"]) for line in begun), default=0)

    @property
    def closing(self) -> Line | None:
        """The closing line at its end; None where it goes on, or was cut."""
        last = next((line for line in reversed(self.lines) if line["kind"] != "signature"), None)
        return last if last is not None and last["kind"] == CLOSING and not self.unsigned else None

    def of_kind(self, kind: str) -> list[Line]:
        return [line for line in self.lines if line["kind"] == kind]

    def messages(self) -> list[Line]:
        """Return the lines of messages that left."""
        return [line for line in self.lines if line["kind"] not in OTHER_LINES]


def version_of(text: str) -> int:
    """Return the version in "ray-fed ledger 2"; 0 of any other text."""
    match = re.fullmatch(rf"{FORMAT_NAME} (\d{{1,3}})", text)
    return int(match[1]) if match else 0


def read_chain(path: Path) -> Chain:
    """Read a ledger, and check its chain, and its signatures by the key that its first line names.

    DataError when the file cannot be read at all; anything else that is wrong is in `problems`, with its line.
    """
    lines, heads, problems = [], [], []
    counts, previous, signed = LedgerCounts(), GENESIS, 0
    try:
        for number, text in enumerate(bounded_lines(path, MAX_LINE_BYTES, MAX_LEDGER_BYTES), start=1):
            line = _parsed(text)
            if isinstance(line, str):
                problems.append(f"line {number} {line}")
                break
            key = lines[0].get("public_key", "") if lines else line.get("public_key", "")
            problems += [f"line {number}: {problem}" for problem in _line_problems(line, number, previous, key, counts)]
            if to_line(line) != text:
                problems.append(f"line {number} is not written as a ledger writes it")
            previous = line_digest(text)
            counts.add(line)
            lines.append(line)
            heads.append(previous)
            signed = number if line["kind"] == "signature" else signed
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); was the ledger handed over?") from error
    if not lines and not problems:
        problems.append("line 1 is missing: the file is empty")
    return Chain(path, tuple(lines), tuple(heads), tuple(problems), len(lines) - signed)


def _parsed(text: bytes) -> dict[str, Any] | str:
    """Return a line, or what is wrong with its form."""
    if len(text) > MAX_LINE_BYTES:
        return f"is longer than {MAX_LINE_BYTES:,} bytes"
    try:
        line = parse_json(text, "it")
    except DataError:
        return "is not a line of a ledger"
    if not isinstance(line, dict) or _misfits(line, FRAME):
        return "is not a line of a ledger"
    wrong = _misfits(line, REQUIRED.get(line["kind"], {}))
    wrong += [name for name, check in OPTIONAL.items() if name in line and not check(line[name])]
    return f"is not the line of a ledger that it says: its {', '.join(map(repr, wrong))} cannot be" if wrong else line


def _line_problems(line: Line, number: int, previous: str, key: str, above: LedgerCounts) -> Iterator[str]:
    """Yield what is wrong with a line of good form; `above` counts the lines before it."""
    if line["number"] != number:
        yield f"it has the number {line['number']}: lines were dropped, added or moved"
    if line["previous"] != previous:
        yield "it does not follow from the line before: one of the two was changed, or lines were dropped or moved"
    if line.get("public_key", key) != key:
        yield "it was written with another key than the first line"
    if (line["kind"] == "opening") != (number == 1):
        yield "a ledger has one opening, its first line"
    if line["kind"] in ("opening", "reopening") and not 1 <= version_of(line["format"]) <= FORMAT_VERSION:
        yield f"its format is not {FORMAT_NAME} 1 to {FORMAT_VERSION}; install a newer ray-fed to read it"
    if line["kind"] == CLOSING and any(line[name] != counted for name, counted in above.facts().items()):
        yield "it counts other lines, messages or rounds than stand above it"
    if line["kind"] == "signature":
        signed = to_line({name: value for name, value in line.items() if name != "signature"})
        if not is_signed(signed, line["signature"], key):
            yield f"its signature is not by the key {key[:16]}..."
