"""`ray-fed ledger verify RUN`: do the ledgers of coordinator and silos hold, are they whole, and do they agree?"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipelines.ledger.coordinator_ledger import coordinator_path, model_file_digests, silos_folder
from pipelines.ledger.foreign_files import foreign_event_files
from pipelines.ledger.known_keys import known_keys
from ray_fed.errors import DataError
from ray_fed.perimeter.chain import Chain, read_chain
from ray_fed.perimeter.policy import COORDINATOR
from ray_fed.perimeter.verification import LedgerComparison, compare, file_problems
from ray_fed.reporting.run_directory import RunDirectory
from ray_fed.reporting.terminal import aligned

MOST_PROBLEMS = 20
"""Shown of each run; one changed line can break thousands of comparisons."""
VERIFIED, CONTRADICTED, NOT_KNOWN = 0, 1, 3
"""Exit codes: all is well; something contradicts; nothing does, but a forger could have written these files. 2 is an
option or a file that cannot be read, as everywhere."""


def run(options: Mapping[str, Any], _command_line: Sequence[str]) -> int:
    """Print a table and the result; returns 0 when everything agrees and nothing is open, 1 when something contradicts,
    3 when something cannot be known."""
    directory = RunDirectory.open(options["run_directory"])
    coordinator, silos = read_ledgers(directory, options["silo_ledgers"])
    comparison = examined(directory, coordinator, silos, options["key"])
    _print(aligned(_table(coordinator, silos, comparison), right=range(1, 7), rule=True))
    for note in _notes(coordinator, silos):
        _print(f"note: {note}", sys.stderr)
    for label, lines in (("problem", comparison.problems), ("unknown", comparison.unknown)):
        for line in lines[:MOST_PROBLEMS]:
            _print(f"{label}: {line}")
        if len(lines) > MOST_PROBLEMS:
            _print(f"and {len(lines) - MOST_PROBLEMS} more")
    _print(_words(comparison, coordinator))
    return exit_code(comparison)


def examined(
    directory: RunDirectory, coordinator: Chain, silos: Sequence[Chain], given: Sequence[str] = ()
) -> LedgerComparison:
    """Return all that is wrong with a run's ledgers and model files, and all that they leave open.

    given: keys as --key has them.
    """
    keys = known_keys(given, [COORDINATOR, *dict.fromkeys(chain.writer for chain in silos)])
    comparison = compare(coordinator, silos, keys, run_completed=_is_completed(directory))
    files = file_problems(coordinator, model_file_digests(directory))
    events = foreign_event_files(directory.path, coordinator)
    return replace(comparison, problems=(*comparison.problems, *files, *events))


def exit_code(comparison: LedgerComparison) -> int:
    if comparison.problems:
        return CONTRADICTED
    return NOT_KNOWN if comparison.unknown else VERIFIED


def _is_completed(directory: RunDirectory) -> bool:
    """Whether the run says so itself: a summary that is not there, or damaged, says nothing."""
    if not directory.summary_path.is_file():
        return False
    summary = directory.read_summary()
    return isinstance(summary, dict) and summary.get("status") == "completed"


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
    return coordinator, [chain for chain in found if silo_ledgers or chain.run == coordinator.run or chain.problems]


def _print(text: str, where: Any = None) -> None:
    """Print what strangers may have written: no terminal's commands, and nothing that its encoding lacks."""
    shown = "".join(each if each.isprintable() or each == "\n" else repr(each)[1:-1] for each in text)
    print(shown.encode("utf-8", "backslashreplace").decode(), file=where or sys.stdout)


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


def _notes(coordinator: Chain, silos: list[Chain]) -> list[str]:
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
    return notes


def _words(comparison: LedgerComparison, coordinator: Chain) -> str:
    count, silos = sum(comparison.compared.values()), len(comparison.compared)
    if comparison.problems:
        return f"NOT verified: {len(comparison.problems)} problems"
    models = sum(len(line["models"]) for line in coordinator.of_kind("model"))
    same = f"{count:,} messages of {silos} silos are the same on both sides; {models:,} model digests are signed"
    if comparison.unknown:
        return f"NOT verified: nothing contradicts ({same}), but {len(comparison.unknown)} things cannot be known"
    return f"verified: {same}; the run is complete and every key is known"
