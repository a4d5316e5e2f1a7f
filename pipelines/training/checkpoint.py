"""Checkpoints of a run, and the way back: after any kill the run goes on from the last complete round.

    checkpoint/state-<job>-<round>.safetensors   the strategy's state after that round
    checkpoint/models-<job>.safetensors          final models of a finished job
    checkpoint/progress.json                     which of them count, and how many lines of history and timing do

`progress.json` is replaced last and atomically, so at any instant it names whole files. Lines of history that it does
not count belong to a round that was not complete; they are cut off before the run goes on.
"""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from safetensors.numpy import load_file, save

from pipelines.round_notes import POOLED_OVER, UNEVALUATED
from ray_fed.errors import DataError
from ray_fed.federation.messages import Vector
from ray_fed.federation.rounds.job import RoundRecord, state_bytes
from ray_fed.federation.silo_state import rounds_apart
from ray_fed.federation.strategies import State
from ray_fed.reporting.run_directory import RunDirectory

CHECKPOINT_SECONDS = 0.2
"""Writing through to the disk takes milliseconds; rounds may take less."""


class Checkpoint:
    """The checkpoint folder of a run."""

    def __init__(self, directory: RunDirectory):
        self.directory = directory
        self.folder = directory.path / "checkpoint"
        self._state: State | None = None
        self._heard, self._saved_at = 0, 0.0
        self.progress: dict[str, Any] = {"lines": 0, "finished": [], "job": None, "round": 0, "state": None}

    @property
    def silo_state(self) -> Path:
        """Where silos of a private cluster keep their optimiser state."""
        return self.folder / "silos"

    def save(self, record: RoundRecord) -> None:
        """Make `record`, already in the history, the point to go on from; of many short rounds, one in a while."""
        self._heard += 1
        if record.models is not None or self._is_due(record):
            self._settle(record)

    def settle(self, record: RoundRecord) -> None:
        """Make the last record that was saved the point to go on from, whether or not it was due."""
        if self._heard and record.state is not None:
            self._settle(record)

    def _settle(self, record: RoundRecord) -> None:
        previous = self.progress["state"]
        self.progress["lines"] += self._heard
        self._heard, self._saved_at = 0, time.monotonic()
        if record.models is not None:
            self._write(f"models-{record.job}.safetensors", record.models)
            self.progress |= {
                "finished": [*self.progress["finished"], record.job],
                "job": None,
                "round": 0,
                "state": None,
            }
        else:
            assert record.state is not None
            name = f"state-{record.job}-{record.server_round}.safetensors"
            self._write(name, record.state)
            self.progress |= {"job": record.job, "round": record.server_round, "state": name}
        self.directory.write_json("checkpoint/progress.json", self.progress)
        if previous:
            (self.folder / previous).unlink(missing_ok=True)

    def _is_due(self, record: RoundRecord) -> bool:
        if record.state is None:
            return False
        waited = time.monotonic() - self._saved_at
        return waited >= CHECKPOINT_SECONDS or self._heard >= rounds_apart(state_bytes(record))

    def load(self) -> bool:
        """Read the progress of an earlier process; False when it had not come to a first round."""
        path = self.folder / "progress.json"
        if not path.exists():
            self._cut(0)
            return False
        try:
            self.progress = json.loads(path.read_text())
        except ValueError as error:
            raise DataError(f"{path} is damaged ({error}); the run cannot be resumed") from error
        self._cut(self.progress["lines"])
        if self.progress["job"] is not None:
            self._state = load_file(self.folder / self.progress["state"])
        self.records()  # a damaged history is found now, not after training
        return True

    def start_of(self, job: str) -> tuple[int, State | None]:
        """Return (last complete round, state) from which a job goes on; (0, None) for a job that was not begun."""
        if self.progress["job"] != job:
            return 0, None
        return self.progress["round"], self._state

    def models_of(self, job: str) -> dict[str, Vector] | None:
        """Return the final models of a finished job, None of any other."""
        if job not in self.progress["finished"]:
            return None
        return load_file(self.folder / f"models-{job}.safetensors")

    def records(self) -> list[tuple[int, RoundRecord]]:
        """Return (seed, record) of every complete round, from history and timing."""
        return [
            (int(line["seed"]), self._record(line, timing))  # type: ignore[arg-type]
            for line, timing in zip(self.directory.read_history(), self.directory.read_timing(), strict=True)
        ]

    def _record(self, line: dict, timing: dict) -> RoundRecord:
        models = self.models_of(line["job"]) if line["round"] == line["num_rounds"] else None
        return RoundRecord(
            line["job"],
            kind_of(line),
            line["round"],
            line["num_rounds"],
            line["metrics"],
            tuple(line["participants"]),
            tuple(line["failures"].items()),
            line["bytes_sent"],
            {key: value for key, value in timing.items() if key not in ("job", "round", "restarts")},
            models,
            unevaluated=tuple(line.get(UNEVALUATED, {}).items()),
            pooled_over=tuple(line.get(POOLED_OVER, ())),
        )

    def _write(self, name: str, arrays: State) -> None:
        content = save({key: np.ascontiguousarray(value) for key, value in arrays.items()})
        self.directory.write_bytes(f"checkpoint/{name}", content)

    def _cut(self, lines: int) -> None:
        """Keep the first `lines` lines of history and timing; what follows was not complete."""
        for path in (self.directory.history_path, self.directory.timing_path):
            if path.exists():
                kept = path.read_bytes().split(b"\n")[:lines]
                self.directory.write_bytes(path.name, b"".join(line + b"\n" for line in kept))


def kind_of(line: Mapping[str, Any]) -> Literal["federated", "baseline"]:
    """Return the kind of job that a line of history belongs to: by its name in a run begun before histories said it."""
    by_name = "federated" if str(line.get("job", "")).startswith("federated") else "baseline"
    return line.get("kind", by_name)
