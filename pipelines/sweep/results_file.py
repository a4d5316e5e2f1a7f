"""results.jsonl: one line per trial that is over, in the order in which they ended; a later line of a trial counts."""

import math
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from pipelines.sweep.outcomes import TrialOutcome
from ray_fed.reading import parse_json
from ray_fed.reporting.writing import to_json


def append(path: Path, outcome: TrialOutcome) -> None:
    """Add a line in one write."""
    with path.open("ab", buffering=0) as file:
        file.write(to_json(outcome) + b"\n")


def read(path: Path) -> list[TrialOutcome]:
    """Return the last outcome of each trial; what a kill cut off is left out."""
    if not path.is_file():
        return []
    found = [_outcome(line) for line in _whole_lines(path.read_bytes())]
    return list({outcome.number: outcome for outcome in found}.values())


def mend(path: Path) -> None:
    """Cut off a line that a kill left unfinished, so that the next one starts on its own."""
    if path.is_file():
        content = path.read_bytes()
        whole = sum(len(line) + 1 for line in _whole_lines(content))
        if whole < len(content):
            with path.open("r+b") as file:
                file.truncate(whole)


def columns(outcomes: Sequence[TrialOutcome]) -> dict[str, list[Any]]:
    """Return column -> values in the order of the trials, for a CSV file: a column per metric, by its name."""
    rows = [asdict(outcome) for outcome in sorted(outcomes, key=lambda outcome: outcome.number)]
    measured = [row.pop("metrics") for row in rows]
    names = dict.fromkeys(name for values in measured for name in values)
    taken = rows[0] if rows else {}
    columns = {key: [row[key] for row in rows] for key in taken}
    for name in names:
        columns[f"metric {name}" if name in taken else name] = [values.get(name, math.nan) for values in measured]
    return columns


def _whole_lines(content: bytes) -> list[bytes]:
    return content.split(b"\n")[:-1]


def _outcome(line: bytes) -> TrialOutcome:
    values: dict[str, Any] = parse_json(line, "a line of results.jsonl", "start the sweep again in another folder")
    whole: dict[str, Any] = {key: math.nan if value is None else value for key, value in values.items()}
    whole["metrics"] = {key: math.nan if value is None else value for key, value in whole.get("metrics", {}).items()}
    if "loss" in whole:  # of a sweep that wrote its metrics beside the rest, and the training loss as `loss`
        whole["train_loss"] = whole.pop("loss")
        known = {field.name for field in fields(TrialOutcome)}
        whole["metrics"] = {key: whole.pop(key) for key in values if key in whole and key not in known}
    return TrialOutcome(**whole)
