"""TensorBoard files in a run directory that the run's own process did not write: a way out past the gate.

A task's code can open a file, and where its silo shares a disk with the run, that file may be a TensorBoard text with
rows in it. Nothing in one process prevents that; the names of event files tell which process wrote them. A file that
was given the name of another process on purpose is not found.
"""

import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path

from ray_fed.perimeter.chain import Chain

EVENTS = re.compile(r"events\.out\.tfevents\.\d+\.(?P<process>.+\.\d+)\.\d+")


def this_process() -> str:
    """Return this process as the names of event files have it."""
    return f"{socket.gethostname()}.{os.getpid()}"


def foreign_event_files(run: Path, coordinator: Chain) -> Iterator[str]:
    """Yield what is wrong with the event files of a run; nothing where its ledger does not say who wrote them."""
    begun = [line for line in coordinator.lines if line["kind"] in ("opening", "reopening")]
    own = {str(line["process"]) for line in begun if "process" in line}
    for path in sorted(run.rglob("*tfevents*")) if own else ():
        match = EVENTS.fullmatch(path.name)
        if match is None or match["process"] not in own:
            where = path.relative_to(run)
            yield f"{where}: not written by the run's own process; a task's code may have put rows there"
