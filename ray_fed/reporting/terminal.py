"""What a run says on the terminal: progress on stderr, results on stdout, both readable when piped."""

import os
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from ray_fed.metrics import TRAIN_LOSS, Metric, reported
from ray_fed.reporting.results import Results, number

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

ASCII_SPELLINGS = {"±": "+/-", "²": "2", "Å": "A", "³": "3", "–": "-", "…": "...", "·": "*"}
"""For terminals whose encoding has no such letter."""

SHOWN_METRICS = 2
"""Metrics for which the progress line has room."""
WIDE = 110
"""Columns from which the progress line has room for a bar and long names; all figures fit into 80."""


class RoundProgress:
    """A line per job that follows its rounds.

    On a terminal it redraws in place. Elsewhere (a pipe, a log file, a batch job) it writes a plain line about every
    tenth of the rounds and no control characters. step: what one of them is called, where it is no round.
    """

    def __init__(
        self, metrics: Sequence[Metric] = (), stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic, step: str = "round",
    ):  # fmt: skip
        self.step = step
        self.metrics, self.stream, self.clock = reported(metrics)[:SHOWN_METRICS], stream or sys.stderr, clock
        self._live = self._open_live() if _redraws(self.stream) else None
        self._task: TaskID | None = None
        self._total = self._done = self._told = self._bytes = 0
        self._description, self._started, self._shown = "", 0.0, {}

    def __enter__(self) -> "RoundProgress":
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def start(self, total: int, description: str) -> None:
        """Begin a job of `total` rounds; the line of the job before it stays."""
        self._description, self._total, self._started = one_line(description), total, self.clock()
        self._done = self._told = self._bytes = 0
        self._shown = {}
        if self._live:
            shown = clipped(self._description, 32 if self._live.console.width >= WIDE else 12)
            self._task = self._live.add_task(shown, total=total, figures="", rounds=f"0/{total}")

    def advance(self, record: Mapping[str, float | int | None]) -> None:
        """Show a finished round. Known keys: server_round (else one more), bytes_sent (this round), train_loss and the
        names of the metrics.

        A key that is missing or None keeps its last value: not every round is evaluated.
        """
        self._done = int(record.get("server_round") or self._done + 1)
        self._bytes += int(record.get("bytes_sent") or 0)
        shown = (TRAIN_LOSS, *(metric.name for metric in self.metrics))
        self._shown |= {key: record[key] for key in shown if record.get(key) is not None}
        if self._live and self._task is not None:
            rounds = f"{self._done}/{self._total}"
            self._live.update(self._task, completed=self._done, figures=self._figures(" "), rounds=rounds)
        # another tenth of the rounds is done
        elif not self._live and (self._done >= self._total or 10 * (self._done - self._told) >= self._total):
            self._tell()

    def note(self, text: str) -> None:
        """Say something that stays, above the line that is redrawn."""
        if self._live:
            self._live.console.print(one_line(text), markup=False, highlight=False)
        else:
            _write(self.stream, f"{one_line(text)}\n")

    def close(self) -> None:
        """Leave the terminal as it was found; safe to call twice and after Ctrl-C."""
        if self._live:
            self._live.stop()
        self._task = None

    def _open_live(self) -> "Progress":
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        console = Console(file=self.stream)
        # markup=False: a silo called "[red]" is a name. redirect_stdout=False: results belong to stdout, always.
        progress = Progress(
            TextColumn("{task.description}", markup=False, style="bold"),
            *([BarColumn(bar_width=18)] if console.width >= WIDE else []),
            TextColumn("{task.fields[rounds]}", markup=False),
            TextColumn("{task.fields[figures]}", markup=False),
            TimeElapsedColumn(),
            *([TextColumn("left", style="dim")] if console.width >= WIDE else []),
            TimeRemainingColumn(compact=True),
            console=console,
            redirect_stdout=False,
            refresh_per_second=8,
        )
        progress.start()
        return progress

    def _tell(self) -> None:
        self._told = self._done
        elapsed = self.clock() - self._started
        left = elapsed / self._done * max(0, self._total - self._done) if self._done else 0.0
        times = [f"{elapsed:.0f} s", f"{left:.0f} s left"]
        said = [f"{self._description}: {self.step} {self._done}/{self._total}", self._figures("  "), *times]
        _write(self.stream, "  ".join(filter(None, said)) + "\n")

    def _figures(self, between: str) -> str:
        shown = self._shown
        parts = [f"loss {shown[TRAIN_LOSS]:.3g}"] if TRAIN_LOSS in shown else []
        for metric in self.metrics:
            if metric.name in shown:
                value = number(shown[metric.name], metric.few_digits)
                parts.append(" ".join(filter(None, [metric.title, value, metric.unit])))
        parts += [f"{self._bytes / 1e6:.1f} MB"] if self._bytes else []
        return _encodable(between.join(parts), _encoding(self.stream))


def results_table(results: Results, stream: TextIO | None = None) -> None:
    """Print one aligned line per model, and how federated training compares."""
    out, cells = stream or sys.stdout, results.table()
    _print_aligned(out, cells, right=range(1, len(cells[0])), rule=True)
    if said := results.comparison():
        _write(out, f"{said}\n")


def paths_table(paths: Mapping[str, Path | str], stream: TextIO | None = None) -> None:
    """Print what was written where: label -> path."""
    _print_aligned(stream or sys.stdout, [[label, str(path)] for label, path in paths.items()])


def aligned(rows: Sequence[Sequence[str]], right: Sequence[int] = (), rule: bool = False) -> str:
    """Return rows as text with aligned columns, two spaces apart; `right` are right-aligned, `rule` underlines row 0.

    Widths are counted in terminal cells, in which a Chinese letter takes two.
    """
    from rich.cells import cell_len

    clean = [[one_line(cell) for cell in row] for row in rows]
    widths = [max(map(cell_len, column)) for column in zip(*clean, strict=True)]
    lines = []
    for row in clean:
        gaps = [" " * (width - cell_len(cell)) for cell, width in zip(row, widths, strict=True)]
        padded = [gap + cell if i in right else cell + gap for i, (cell, gap) in enumerate(zip(row, gaps, strict=True))]
        lines.append("  ".join(padded).rstrip())
    if rule:
        lines.insert(1, "  ".join("-" * width for width in widths))
    return "".join(f"{line}\n" for line in lines)


def one_line(text: object) -> str:
    """Return text without control characters: a name must not move the cursor or colour the terminal."""
    without_escapes = re.sub(r"\x1b\[[0-?]*[ -/]*[@-~]", "", str(text))
    return "".join(letter if letter.isprintable() else " " for letter in without_escapes)


def clipped(text: str, width: int) -> str:
    """Return text cut to `width` terminal cells, the last of them "…" where something is missing."""
    from rich.cells import cell_len

    if cell_len(text) <= width:
        return text
    while cell_len(text) > width - 1:
        text = text[:-1]
    return text + "…"


def _redraws(stream: TextIO) -> bool:
    """Whether lines can be redrawn in place. Asks the stream only: FORCE_COLOR must not fill a log with escapes."""
    return stream.isatty() and os.environ.get("TERM") not in ("dumb", "unknown")


def _print_aligned(
    stream: TextIO, rows: Sequence[Sequence[str]], right: Sequence[int] = (), rule: bool = False
) -> None:
    # Spelled for the stream before the widths are counted: "+/-" is longer than "±".
    spelled = [[_encodable(cell, _encoding(stream)) for cell in row] for row in rows]
    _write(stream, aligned(spelled, right, rule))


def _encoding(stream: TextIO) -> str:
    return getattr(stream, "encoding", None) or "utf-8"


def _write(stream: TextIO, text: str) -> None:
    stream.write(_encodable(text, _encoding(stream)))
    stream.flush()


def _encodable(text: str, encoding: str) -> str:
    """Return text with letters the stream cannot write spelled differently, or as "?"."""
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        for letter, spelling in ASCII_SPELLINGS.items():
            text = text.replace(letter, spelling)
        return text.encode(encoding, "replace").decode(encoding)
    return text
