"""The directory of a run: what was asked, with what, on which data, what came out.

config.yaml        resolved configuration
environment.json   versions and devices
metrics.json       what models are measured by: names, units, directions, decimals, labels
data.json          fingerprints of the data: hashes and counts, no rows
history.jsonl      one line per round; equal for equal seeds and data
timing.jsonl       one line per round; seconds
summary.json       flat keys, sorted
report.html        everything in one page
models/ figures/ tensorboard/
"""

import contextlib
import csv
import fcntl
import io
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path

import numpy as np
import yaml

from ray_fed.errors import ConfigError, DataError
from ray_fed.metrics import TRAIN_LOSS, Metric
from ray_fed.reading import parse_json, read_yaml, readable
from ray_fed.reporting.environment import describe_environment
from ray_fed.reporting.writing import Plain, to_json, to_plain, write_atomically

DAMAGED = "run again or restore it from a copy"
MAX_LINES_BYTES = 1 << 32
"""A history has a kilobyte a round, and a run may have a million."""
Scalar = None | bool | int | float | str

CLOCK_WORDS = ("seconds", "time", "timestamp", "elapsed")
"""First words of keys that belong in timing.jsonl: a history with a clock in it could never be compared."""


class RunDirectory:
    """One run's folder. Every file but the two `.jsonl` appears complete or not at all."""

    def __init__(self, path: Path | str):
        self.path = Path(path)
        self.config_path, self.environment_path = self.path / "config.yaml", self.path / "environment.json"
        self.metrics_path, self.data_path = self.path / "metrics.json", self.path / "data.json"
        self.history_path, self.timing_path = self.path / "history.jsonl", self.path / "timing.jsonl"
        self.summary_path, self.report_path = self.path / "summary.json", self.path / "report.html"
        self.models, self.figures = self.path / "models", self.path / "figures"
        """Folders; made when the first file is saved."""
        self.tensorboard = self.path / "tensorboard"
        """Folder to give to `tensorboard --logdir`."""
        self._made: list[Path] = []

    def __repr__(self) -> str:
        return f"RunDirectory({str(self.path)!r})"

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Hold the folder for this process; ConfigError when another one works in it."""
        handle = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(handle)
            raise ConfigError(f"{self.path}: another process is working on this run; wait for it or stop it") from error
        try:
            yield
        finally:
            os.close(handle)

    @classmethod
    def create(cls, path: Path | str | None, pipeline: str, now: datetime | None = None) -> "RunDirectory":
        """Make the folder of a new run; `path=None` makes runs/<pipeline>-<YYYYmmdd-HHMMSS>[-n].

        ConfigError when `path` holds something already or cannot be made.
        """
        if path is not None:
            return _claim(Path(path))
        stamp = (now or datetime.now()).strftime("%Y%m%d-%H%M%S")
        for suffix in ("", *(f"-{number}" for number in range(2, 1000))):
            candidate = Path("runs") / f"{pipeline}-{stamp}{suffix}"
            if not candidate.exists():
                return _claim(candidate)
        raise ConfigError(f"out=runs/{pipeline}-{stamp}-* are all taken; give a folder with --out")

    @classmethod
    def open(cls, path: Path | str) -> "RunDirectory":
        """Return the folder of an earlier run; DataError when there is none."""
        run = cls(path)
        if not (run.config_path.is_file() or run.summary_path.is_file()):
            raise DataError(
                f"{run.path} is not a run directory: it has no config.yaml; give the folder that a run printed"
            )
        return run

    def discard_if_empty(self) -> bool:
        """Undo the creation when no file was written; return whether the folder was removed.

        Folders that were there before `create` stay.
        """
        if any(not path.is_dir() for path in self.path.rglob("*")):
            return False
        for folder in sorted(self.path.rglob("*"), reverse=True):
            folder.rmdir()
        return _remove_empty(self._made)

    # ---- writing

    def write_bytes(self, name: str, content: bytes) -> Path:
        """Write a file of the run, atomically; `name` may have folders, made on the way, and stays inside the run."""
        return write_atomically(self._inside(name), content)

    def write_json(self, name: str, value: object) -> Path:
        """Write strict, sorted JSON; NaN and infinities become null."""
        return self.write_bytes(name, to_json(value, indent=2) + b"\n")

    def write_yaml(self, name: str, value: object) -> Path:
        """Write YAML in the order given."""
        text = yaml.safe_dump(to_plain(value), sort_keys=False, allow_unicode=True, width=120)
        return self.write_bytes(name, text.encode("utf-8", "backslashreplace"))

    def write_csv(self, name: str, columns: Mapping[str, Sequence[object] | np.ndarray]) -> Path:
        """Write named columns of equal length; floats with all their digits, NaN and None as empty cells."""
        buffer = io.StringIO(newline="")
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerow(columns)
        cells = [[_cell(value) for value in np.asarray(values).tolist()] for values in columns.values()]
        writer.writerows(zip(*cells, strict=True))
        return self.write_bytes(name, buffer.getvalue().encode("utf-8", "backslashreplace"))

    def write_arrays(self, name: str, arrays: Mapping[str, np.ndarray]) -> Path:
        """Write numeric arrays as .npz; ConfigError for object arrays, which would need pickle."""
        for key, array in arrays.items():
            if np.asarray(array).dtype.hasobject:
                raise ConfigError(f"{name}: array {key!r} holds Python objects; give numbers or fixed-width strings")
        buffer = io.BytesIO()
        np.savez_compressed(buffer, allow_pickle=False, **arrays)
        return self.write_bytes(name, buffer.getvalue())

    def write_config(self, config: object) -> Path:
        """Write the resolved configuration: a mapping or a dataclass."""
        return self.write_yaml(self.config_path.name, config)

    def write_environment(self, devices: Mapping[str, str] | None = None) -> Path:
        """Write versions, platform and processors; `devices` says where each silo ran (silo -> device)."""
        return self.write_json(self.environment_path.name, describe_environment(devices or {}))

    def write_metrics(self, metrics: Iterable[Metric]) -> Path:
        """Write what the run's models are measured by, for readers that do not know its task."""
        return self.write_json(self.metrics_path.name, [asdict(metric) for metric in metrics])

    def write_data(self, fingerprints: Iterable[Mapping[str, object]]) -> Path:
        """Write the fingerprints of the data, one mapping per source: hashes and counts, never rows."""
        return self.write_json(self.data_path.name, list(fingerprints))

    def write_summary(self, summary: Mapping[str, Scalar | np.generic]) -> Path:
        """Write the results: flat keys, one scalar each; ConfigError names a key that holds more."""
        for key, value in summary.items():
            if not isinstance(value, Scalar | np.generic):
                raise ConfigError(f"summary key {key!r} holds a {type(value).__name__}; write one flat key per number")
        return self.write_json(self.summary_path.name, dict(summary))

    def append_history(self, record: Mapping[str, object]) -> None:
        """Add a round to history.jsonl; ConfigError for a time, which belongs to `append_timing`."""
        for key in record:
            if key.split(".")[0].split("_")[0] in CLOCK_WORDS:
                raise ConfigError(f"history key {key!r} is a time; write it with append_timing")
        self._append(self.history_path, record)

    def append_timing(self, record: Mapping[str, object]) -> None:
        """Add a round's seconds to timing.jsonl."""
        self._append(self.timing_path, record)

    # ---- reading

    def read_config(self) -> dict[str, Plain]:
        """Return the resolved configuration; DataError when missing or not YAML."""
        config = read_yaml(self.config_path)
        if not isinstance(config, dict):
            raise _damaged(self.config_path, ValueError("it is no mapping"))
        return config

    def read_environment(self) -> dict[str, Plain]:
        return self._read_json(self.environment_path)

    def read_metrics(self) -> tuple[Metric, ...]:
        """Return what the run's models are measured by; none of a run made by a version that did not write it down."""
        if not self.metrics_path.is_file():
            return ()
        try:
            return tuple(Metric(**values) for values in self._read_json(self.metrics_path))
        except (ConfigError, TypeError) as error:
            raise _damaged(self.metrics_path, error) from error

    def read_data(self) -> list[dict[str, Plain]]:
        return self._read_json(self.data_path)

    def read_summary(self) -> dict[str, Scalar]:
        """Return the results; DataError when the run has none (it did not end) or the file is damaged."""
        return self._read_json(self.summary_path)

    def read_history(self) -> list[dict[str, Plain]]:
        """Return the rounds written so far; a last line cut by a crash is left out."""
        return [_with_train_loss(line) for line in self._read_lines(self.history_path)]

    def read_timing(self) -> list[dict[str, Plain]]:
        return self._read_lines(self.timing_path)

    def _inside(self, name: str) -> Path:
        """Return the place of a file of this run; a silo's name must not lead out of it."""
        path = (self.path / name).resolve()
        if not path.is_relative_to(self.path.resolve()) or path == self.path.resolve():
            raise ConfigError(f"file name {name!r} leads out of the run directory {self.path}; give a name inside it")
        return path

    def _append(self, path: Path, record: Mapping[str, object]) -> None:
        line = to_json(record) + b"\n"
        try:
            with path.open("ab") as file:  # buffered: a single write may stop inside the line and not say so
                file.write(line)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(path)) from error

    def _read_json(self, path: Path):
        return parse_json(readable(path, "did the run end?"), path, DAMAGED)

    def _read_lines(self, path: Path) -> list[dict[str, Plain]]:
        if not path.exists():
            return []
        *complete, _cut = readable(path, "did the run end?", MAX_LINES_BYTES).split(b"\n")
        return [parse_json(line, path, DAMAGED) for line in complete]


def _with_train_loss(line: dict[str, Plain]) -> dict[str, Plain]:
    """Runs used to write a round's training loss as `loss` and `silo.<name>.loss`, with no model before it."""
    metrics = line.get("metrics")
    if not isinstance(metrics, dict) or "loss" not in metrics:
        return line
    ours = {key: re.sub(r"^(silo\..+\.)?loss$", rf"\1{TRAIN_LOSS}", key) for key in metrics}
    return {**line, "metrics": {ours[key]: value for key, value in metrics.items()}}


def _claim(path: Path) -> RunDirectory:
    """Make `path` and remember which folders are new."""
    run = RunDirectory(path)
    try:
        run._made = [folder for folder in (path, *path.parents) if not folder.exists()]
        if path.is_dir() and any(path.iterdir()):
            raise ConfigError(f"out={path} is not empty; give another --out or remove it first")
        path.mkdir(parents=True, exist_ok=path.is_dir())
    except OSError as error:
        _remove_empty(run._made)
        raise ConfigError(f"out={path} cannot be made ({error.strerror}); give another --out") from error
    return run


def _remove_empty(folders: Iterable[Path]) -> bool:
    """Remove folders, innermost first, up to the first that is in use; return whether any went."""
    removed = False
    for folder in folders:
        if not folder.is_dir():
            continue
        if any(folder.iterdir()):
            break
        folder.rmdir()
        removed = True
    return removed


def _cell(value: object) -> object:
    return "" if value is None or value != value else value


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _damaged(path: Path, error: Exception) -> DataError:
    return DataError(f"{path} is damaged ({_one_line(error)}); {DAMAGED}")
