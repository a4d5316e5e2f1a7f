"""The book of a site: what its silos have spent and told, of each data set, over all runs.

One JSON file in the folder that the owner names under `ledger` in site.yaml, mode 0600, shared by all silos of the
site; a line is on the disk before what it counts leaves. A data set is counted by its name in the owner's file; the
rows of a machine whose owner names none are one data set, whatever a coordinator calls its silos. Without a folder
that lasts, the book is in the memory of the silo's process and forgets when that ends.
"""

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ray_fed.errors import DataError
from ray_fed.privacy.accounting import Mechanism, composed_epsilon

FILE = "book.json"
MOST_SESSIONS = 4096
"""Sessions whose masks are remembered."""
MOST_RUNS = 256
"""Runs whose evaluations are counted each by itself; the oldest are forgotten, their sum is not."""


class Book:
    """Answers "" when it has written down what is asked for, or why that is too much."""

    def __init__(self, folder: Path | None):
        self.path = folder / FILE if folder else None
        self._memory: dict[str, Any] = {}

    @property
    def lasts(self) -> bool:
        """Whether it outlives the process."""
        return self.path is not None

    def take_evaluations(self, dataset: str, run: str, count: int, in_run: int, in_all: int) -> str:
        """Count models that are to be marked, of at most `in_run` in a run and `in_all` in all runs together."""
        with self.page(dataset) as page:
            runs, total = page.setdefault("evaluations", {}), page.get("num_evaluations", 0)
            before = runs.pop(run, 0)
            runs[run] = before  # the latest run is the last to be forgotten
            if before + count > in_run:
                return f"{count} models more than the {before} marked in this run; max_evaluations_per_run={in_run}"
            if total + count > in_all:
                return f"{count} models more than the {total} marked so far; max_evaluations_per_dataset={in_all}"
            runs[run], page["num_evaluations"] = before + count, total + count
            for name in list(runs)[:-MOST_RUNS]:
                del runs[name]
        return ""

    def take_bytes(self, dataset: str, count: int, most: int) -> str:
        """Count bytes that are to leave, of at most so many in all runs together."""
        with self.page(dataset) as page:
            total = page.get("num_bytes", 0)
            if total + count > most:
                return f"with it more bytes would leave than max_bytes_per_dataset={most}, over all runs"
            page["num_bytes"] = total + count
        return ""

    def had_masks(self, dataset: str, session: str, has_masks: bool) -> bool:
        """Tell whether a session, by its run and name, was opened with masks before; write down that it is now."""
        with self.page(dataset) as page:
            masked = page.setdefault("masked_sessions", [])
            known = session in masked
            if has_masks and not known:
                masked.append(session)
                del masked[:-MOST_SESSIONS]
        return known

    def take_split(self, dataset: str, test_fraction: float, split_seed: int, most: int) -> str:
        """Note a way to hold out rows, of at most so many different ones in all runs together."""
        with self.page(dataset) as page:
            splits, split = page.setdefault("splits", []), f"{test_fraction!r} {split_seed}"
            if split not in splits and len(splits) >= most:
                return f"its rows were held out in {most} other ways before; max_splits_per_dataset={most}"
            if split not in splits:
                splits.append(split)
        return ""

    def take_steps(self, dataset: str, mechanism: Mechanism, count: int, budget: float, delta: float) -> str:
        """Count noised steps that are to be taken, of all that together may cost epsilon = `budget`."""
        with self.page(dataset) as page:
            spent = {_mechanism(key): steps for key, steps in page.get("noised_steps", {}).items()}
            after = composed_epsilon(spent | {mechanism: spent.get(mechanism, 0) + count}, delta)
            if after > budget:
                before = composed_epsilon(spent, delta)
                left = f"{max(0.0, budget - before):.3g} of epsilon_budget={budget:g} are left"
                return f"{count} steps would bring epsilon from {before:.3g} to {after:.3g}; {left} (delta={delta:g})"
            page.setdefault("noised_steps", {})[f"{mechanism[0]!r} {mechanism[1]!r}"] = spent.get(mechanism, 0) + count
        return ""

    def epsilon(self, dataset: str, delta: float) -> float:
        """Return the epsilon of all noised steps so far."""
        with self.page(dataset) as page:
            spent = page.get("noised_steps", {})
        return composed_epsilon({_mechanism(key): steps for key, steps in spent.items()}, delta)

    @contextmanager
    def page(self, dataset: str) -> Iterator[dict[str, Any]]:
        """Lend what is written of a data set, to be changed; nobody else writes meanwhile."""
        with self._locked():
            content = self._read()
            before = json.dumps(content, sort_keys=True)
            yield content.setdefault(dataset, {})
            if json.dumps(content, sort_keys=True) != before:
                self._write(content)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        if self.path is None:
            yield
            return
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle = os.open(self.path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)

    def _read(self) -> dict[str, Any]:
        """Return data set -> its page. DataError for a book that cannot be trusted: nothing is counted in it."""
        if self.path is None:
            return self._memory
        if not self.path.exists():
            return {}
        remedy = "put back a copy, or remove it and with it all that it has counted"
        if self.path.stat().st_mode & 0o022:
            raise DataError(f"{self.path}: others can write into this book; chmod 600 it, or {remedy}")
        try:
            content = json.loads(self.path.read_bytes())
        except (ValueError, RecursionError) as error:
            raise DataError(f"{self.path} is damaged; {remedy}") from error
        if not isinstance(content, dict) or not all(isinstance(page, dict) for page in content.values()):
            raise DataError(f"{self.path} is no book; {remedy}")
        return content

    def _write(self, content: Mapping[str, Any]) -> None:
        """Replace the book by the next one, and wait for the disk."""
        if self.path is None:
            return
        draft = self.path.with_suffix(".part")
        handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
        with os.fdopen(handle, "wb") as file:
            file.write(json.dumps(content, indent=1).encode())
            file.flush()
            os.fsync(file.fileno())
        draft.replace(self.path)
        folder = os.open(self.path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _mechanism(key: str) -> Mechanism:
    noise, probability = key.split()
    return float(noise), float(probability)
