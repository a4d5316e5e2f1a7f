"""`ray-fed ledger verify RUN`: do the ledgers of coordinator and silos hold, and do they agree?"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipelines.ledger.coordinator_ledger import coordinator_path, silos_folder
from pipelines.ledger.foreign_files import foreign_event_files
from ray_fed.errors import DataError
from ray_fed.perimeter.verification import Chain, LedgerComparison, compare, read_chain
from ray_fed.reporting.run_directory import RunDirectory
from ray_fed.reporting.terminal import aligned

MOST_PROBLEMS = 20
"""Shown of each run; one changed line can break thousands of comparisons."""


def run(options: Mapping[str, Any], _command_line: Sequence[str]) -> int:
    """Print a table and the result; returns 0 when everything agrees, 1 when not."""
    directory = RunDirectory.open(options["run_directory"])
    coordinator, silos = read_ledgers(directory, options["silo_ledgers"])
    comparison = compare(coordinator, silos)
    comparison = replace(comparison, problems=(*comparison.problems, *foreign_event_files(directory.path, coordinator)))
    print(aligned(_table(coordinator, silos, comparison), right=range(1, 7), rule=True))
    for note in _notes(directory, coordinator, silos):
        print(f"note: {note}", file=sys.stderr)
    for problem in comparison.problems[:MOST_PROBLEMS]:
        print(f"problem: {problem}")
    if len(comparison.problems) > MOST_PROBLEMS:
        print(f"and {len(comparison.problems) - MOST_PROBLEMS} more")
    print(_words(comparison, coordinator))
    return 1 if comparison.problems else 0


def read_ledgers(directory: RunDirectory, silo_ledgers: str | None = None) -> tuple[Chain, list[Chain]]:
    """Return the coordinator's ledger and the silos'; DataError where the run has none."""
    path = coordinator_path(directory)
    if not path.is_file():
        raise DataError(
            f"{directory.path} has no ledger; silos that are actors keep one (cohort=ray), silos in one process do not"
        )
    coordinator = read_chain(path)
    folder = Path(silo_ledgers) if silo_ledgers else silos_folder(directory)
    if silo_ledgers and not folder.is_dir():
        raise DataError(f"--silo-ledgers {silo_ledgers}: no such folder")
    found = [read_chain(each) for each in sorted(folder.rglob("*.jsonl"))]
    return coordinator, [chain for chain in found if silo_ledgers or chain.run == coordinator.run or not chain.lines]


def _table(coordinator: Chain, silos: list[Chain], comparison: LedgerComparison) -> list[list[str]]:
    header = ["ledger", "lines", "signatures", "unsigned", "messages", "agree", "not received"]
    rows = [header, _row("coordinator", coordinator, len(coordinator.of_kind("received")), "", "")]
    for chain in silos:
        name = chain.writer
        agree, not_received = comparison.compared.get(name), comparison.not_received.get(name)
        shown = ["" if value is None else f"{value:,}" for value in (agree, not_received)]
        rows.append(_row(name, chain, len(chain.messages()), *shown))
    return rows


def _row(name: str, chain: Chain, messages: int, agree: str, not_received: str) -> list[str]:
    counts = len(chain.lines), len(chain.of_kind("signature")), chain.unsigned, messages
    return [name, *(f"{count:,}" for count in counts), agree, not_received]


def _notes(directory: RunDirectory, coordinator: Chain, silos: list[Chain]) -> list[str]:
    """Say what is no problem by itself, but should be known."""
    handed = {line["silo"] for line in coordinator.of_kind("handed over")}
    notes = [
        f"silo '{chain.writer}': its ledger was not handed over at the end of the run; only its own signature speaks "
        "for its last lines"
        for chain in silos
        if chain.writer not in handed
    ]
    for chain in silos:
        for kind in ("refused", "error"):
            if lines := chain.of_kind(kind):
                notes.append(f"silo '{chain.writer}': {len(lines)} x {kind}, first while {lines[0].get('while')}")
    if not directory.summary_path.is_file():
        notes.append("the run did not end; its ledgers may go on")
    return notes


def _words(comparison: LedgerComparison, coordinator: Chain) -> str:
    count, silos = sum(comparison.compared.values()), len(comparison.compared)
    if comparison.problems:
        return f"NOT verified: {len(comparison.problems)} problems"
    models = sum(len(line["models"]) for line in coordinator.of_kind("model"))
    same = f"{count:,} messages of {silos} silos are the same on both sides"
    return f"verified: {same}; {models:,} model digests are signed"
