"""Sweeps of pipelines whose trials share nothing: each trial is a run of the command, in a process and a folder of its
own, started by Ray Tune; what it found is read from its summary.

    ray-fed sweep fedtransfer --grid style_epochs=6,12 --grid seed=0,1 --objective 'transfer.global.map'
"""

import fnmatch
import itertools
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any, Literal, get_type_hints

from pipelines.commands import COMMANDS, named
from pipelines.sweep.points import Trial, drawn, joined, parsed_grid, parsed_range
from ray_fed.config import require, unknown_name
from ray_fed.errors import ConfigError, DataError
from ray_fed.reporting.report import Section, Table, write_report
from ray_fed.reporting.results import number
from ray_fed.reporting.run_directory import RunDirectory
from ray_fed.reporting.terminal import aligned, paths_table

WORDS_OF_AN_ERROR = 300
"""Last characters of what a trial printed before it failed."""
DIGITS = 4
ONE_FOR_ALL = ("out", "address", "num_gpus", "cohort", "preset", "library", "federation", "policy")
"""Fields that are not swept."""


@dataclass(frozen=True)
class Sweepable:
    """A command that is swept as whole runs."""

    command: str
    """Words after `ray-fed`."""
    objective: str
    """Keys of its summary by which trials are compared."""
    better: Literal["more", "less", "neither"]
    """neither: what it finds is shown side by side, and no point is called the best."""
    places: tuple[str, ...] = ()
    """What it is given without a --name, in this order; the same for all trials."""
    folder: str = "out"
    """Option that names the folder of a trial."""
    left_out: tuple[str, ...] = ()
    """Options that only make sense for a single run."""

    @property
    def config_classes(self) -> list[type]:
        """Return the configurations whose fields it takes."""
        return [named(each) for each in self._taken if isinstance(each, str)]

    @property
    def hints(self) -> dict[str, Any]:
        """Return field -> type, of all configurations."""
        return {name: hint for each in self.config_classes for name, hint in get_type_hints(each).items()}

    def check(self, options: Mapping[str, Any]) -> None:
        """ConfigError where values make no sense, or not together."""
        for each in self.config_classes:
            own = {field.name for field in fields(each)}
            each(**{name: value for name, value in options.items() if name in own})

    @property
    def _taken(self) -> Sequence[object]:
        return next(each.takes for each in COMMANDS if each.name == self.command)


PIPELINES: Mapping[str, Sweepable] = {
    "fedtransfer": Sweepable("fedtransfer", "transfer*.global.map", "more"),
    "leakage": Sweepable("leakage", "*.ours.below_1e-3", "more"),
    "audit": Sweepable("audit", "leak.*.largest_share", "less", ("target",), left_out=("max_leak", "exposed_records")),
    "transfer": Sweepable("library transfer", "ensemble.held_out_mae", "less"),
    "library-build": Sweepable("library build", "best.*.r2", "more", folder="library"),
    "study-value": Sweepable("study value", "member.*.gain_percent", "more"),
    "segment": Sweepable("segment", "mean.grains_in_field", "neither", ("run_directory", "images")),
}


@dataclass(frozen=True)
class WholeRunsConfig:
    """What is varied, and how trials are compared."""

    samples: int = 10
    """Draws per combination of the grid; counts with --sample only."""
    objective: str = ""
    """Keys of a run's summary.json, with * and ?, whose mean counts; if not given: transfer*.global.map of fedtransfer,
    *.ours.below_1e-3 of leakage, leak.*.largest_share of audit, ensemble.held_out_mae of transfer, best.*.r2 of
    library-build, member.*.gain_percent of study-value, mean.grains_in_field of segment."""
    better: Literal["", "more", "less"] = ""
    """Whether more of the objective is better; needed with an objective of your own."""
    concurrent: int = 1
    """Trials at a time."""
    grid: tuple[str, ...] = field(default=(), metadata={"repeatable": "FIELD=..."})
    """Values to combine, FIELD=VALUE,VALUE,..., e.g. batch_size=4,8 or seed=0,1,2; give it once per field."""
    sample: tuple[str, ...] = field(default=(), metadata={"repeatable": "FIELD=..."})
    """Ranges to draw from, FIELD=log:LOW:HIGH or FIELD=uniform:LOW:HIGH; give it once per field."""

    def __post_init__(self) -> None:
        for name in ("samples", "concurrent"):
            require(getattr(self, name) > 0, f"{name}={getattr(self, name)} must be positive")
        require(bool(self.grid or self.sample), "nothing to sweep: give --grid FIELD=VALUE,VALUE or --sample FIELD=...")
        both = bool(self.objective) == bool(self.better)
        require(both, "give --objective and --better more|less together, or neither")


@dataclass(frozen=True)
class RunsSweep:
    """A sweep of whole runs that is about to begin, or to go on."""

    pipeline: str
    config: WholeRunsConfig
    base: Mapping[str, Any]
    """Options of all trials."""
    directory: RunDirectory
    command: str
    home: str = "."
    """Folder in which the sweep was started: places that were given are understood from there."""

    @property
    def swept(self) -> Sweepable:
        return PIPELINES[self.pipeline]

    @property
    def objective(self) -> str:
        return self.config.objective or self.swept.objective

    @property
    def better(self) -> Literal["more", "less", "neither"]:
        return self.config.better or self.swept.better

    @property
    def trials(self) -> list[Trial]:
        """All trials; ConfigError for values that make no sense together."""
        found = [Trial(number, point, 0) for number, point in enumerate(self._points(), start=1)]
        for trial in found:
            self.swept.check({**self.base, **dict(trial.point)})
        return found

    def _points(self) -> list[tuple[tuple[str, Any], ...]]:
        grids = dict(parsed_grid(text, self._type_of) for text in joined(self.config.grid))
        ranges = [parsed_range(text, self._type_of) for text in joined(self.config.sample)]
        combined = [dict(zip(grids, values, strict=True)) for values in itertools.product(*grids.values())]
        seed, draws = int(self.base.get("seed", 0)), range(self.config.samples) if ranges else range(1)
        points = [{**point, **drawn(ranges, seed, draw)} for point in combined for draw in draws]
        return [tuple(sorted(point.items())) for point in points]

    def _type_of(self, name: str, where: str) -> Any:
        hints = self.swept.hints
        known = [each for each in hints if each not in (*ONE_FOR_ALL, *self.swept.left_out)]
        if name == self.swept.folder != "out":
            raise ConfigError(f"{where}: each trial has a {name} of its own, in the folder of the sweep (--out)")
        if name in ONE_FOR_ALL and name in hints:
            raise ConfigError(f"{where}: {name} is one for the whole sweep; give it as --{name.replace('_', '-')}")
        if name not in known:
            raise ConfigError(f"{where}: {unknown_name('field', name, known)}")
        return hints[name]

    def folder(self, trial: Trial) -> Path:
        return self.directory.path / trial.name

    def failure(self, trial: Trial) -> Path:
        """Where it stands why a trial failed."""
        return self.directory.path / f"{trial.name}.failed.json"

    def arguments(self, trial: Trial) -> list[str]:
        """Return the command line of a trial, after `ray-fed`."""
        places = [_words(self.base[name]) for name in self.swept.places]
        others = {name: value for name, value in self.base.items() if name not in self.swept.places}
        options = {**others, **dict(trial.point), self.swept.folder: str(self.folder(trial).resolve())}
        return [*self.swept.command.split(), *itertools.chain(*places), *as_arguments(options)]


# ---- the command


def run(pipeline: str, options: Mapping[str, Any], command_line: Sequence[str]) -> int:
    """Sweep a pipeline; returns 0 unless every trial failed."""
    names, swept = {each.name for each in fields(WholeRunsConfig)}, PIPELINES[pipeline]
    config = WholeRunsConfig(**{key: _plain(value) for key, value in options.items() if key in names})
    base = {key: value for key, value in options.items() if key not in (*names, "out")}
    single = [f"--{name.replace('_', '-')}" for name in (*swept.left_out, swept.folder) if name in base]
    require(not single, f"{', '.join(single)} is of a single run; leave it out of a sweep, whose folder is --out")
    if "cohort" in swept.hints:  # a Ray inside each trial would start anew
        base = {"cohort": "local", **base}
    planned = RunsSweep(pipeline, config, base, RunDirectory(Path()), shlex.join(command_line), str(Path.cwd()))
    _ = planned.trials  # what is wrong with them is said before a folder is made
    sweep = replace(planned, directory=RunDirectory.create(options.get("out"), "sweep"))
    sweep.directory.write_config(
        {"command": sweep.command, "pipeline": pipeline, "home": sweep.home, "sweep": _as_mapping(config),
         "base": dict(base)}
    )  # fmt: skip
    return _carry_out(sweep)


def resume(directory: RunDirectory) -> int:
    """Go on with the trials that have no result yet."""
    told: Any = directory.read_config()
    try:
        config = WholeRunsConfig(**{key: _plain(value) for key, value in told["sweep"].items()})
        base = {key: _plain(value) for key, value in told["base"].items()}
        home = str(told.get("home", Path.cwd()))
        sweep = RunsSweep(str(told["pipeline"]), config, base, directory, str(told["command"]), home)
        _ = sweep.trials
    except (KeyError, TypeError, AttributeError) as error:
        said = f"{type(error).__name__}: {error}"
        raise DataError(f"{directory.path} is not a sweep that can go on ({said}); give the folder of one") from error
    return _carry_out(sweep)


def _carry_out(sweep: RunsSweep) -> int:
    from actors.session import session

    started, left = time.perf_counter(), [trial for trial in sweep.trials if found(sweep, trial) is None]
    print(f"{len(left)} of {len(sweep.trials)} trials to run, each as a run of its own", file=sys.stderr)
    if left:
        with session(str(sweep.base.get("address", "local")), sweep.config.concurrent + 1):
            from actors.tuning import run_trials

            listener = Saying(sweep)
            tune_folder = sweep.directory.path / "tune"
            tasks = [
                {"number": trial.number, "arguments": sweep.arguments(trial), "home": sweep.home} for trial in left
            ]
            mode = "min" if sweep.better == "less" else "max"
            try:
                run_trials(
                    work, tasks, sweep.objective, listener, folder=tune_folder, concurrent=sweep.config.concurrent,
                    mode=mode,
                )  # fmt: skip
            finally:
                shutil.rmtree(tune_folder, ignore_errors=True)
    return _conclude(sweep, time.perf_counter() - started)


def work(config: Mapping[str, Any], shared: str) -> Generator[dict[str, Any], None, None]:
    """Run one trial as a process; report its objective. RuntimeError with its last words where it failed."""
    from actors.tuning import OBJECTIVE

    outside = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "TUNE_"))}
    command = [sys.executable, "-m", "pipelines.cli", *config["arguments"]]
    place = Path(config["arguments"][-1])
    shutil.rmtree(place, ignore_errors=True)  # what a try that was broken off has left
    done = subprocess.run(command, env=outside, cwd=config["home"], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(" ".join(done.stderr.split())[-WORDS_OF_AN_ERROR:] or f"exit code {done.returncode}")
    yield {"epochs": 1, OBJECTIVE: value_of(json.loads((place / "summary.json").read_text()), shared)}


def value_of(summary: Mapping[str, Any], keys: str) -> float:
    """Return the mean of the numbers of a summary whose keys fit; ConfigError where none does."""
    numbers = [
        float(value)
        for key, value in summary.items()
        if fnmatch.fnmatchcase(key, keys) and isinstance(value, int | float) and not isinstance(value, bool)
    ]
    if not numbers:
        known = ", ".join(key for key, value in summary.items() if isinstance(value, float))
        raise ConfigError(f"objective={keys!r} fits no number of the summary; it has: {known}")
    return mean(numbers)


class Saying:
    """Tells a person what happens, one line a trial, and keeps why trials failed."""

    def __init__(self, sweep: RunsSweep):
        self.trials, self.sweep = {trial.number: trial for trial in sweep.trials}, sweep
        self.reports: dict[int, float] = {}

    def on_trial_start(self, number: int) -> None:
        """Nothing to say yet."""

    def on_trial_report(self, number: int, report: Mapping[str, Any]) -> None:
        from actors.tuning import OBJECTIVE

        self.reports[number] = float(report[OBJECTIVE])

    def on_trial_end(self, number: int, reason: str) -> None:
        trial = self.trials[number]
        self.sweep.failure(trial).unlink(missing_ok=True)
        if reason:
            self.sweep.directory.write_json(self.sweep.failure(trial).name, {"reason": reason})
        said = f"failed: {reason}" if reason else f"{self.sweep.objective} {number_of(self.reports.get(number))}"
        print(f"trial {number}/{len(self.trials)}  {trial.label()}  {said}", file=sys.stderr)


# ---- results


def found(sweep: RunsSweep, trial: Trial) -> float | None:
    """Return the objective of a trial that came to its end, None of others."""
    path = sweep.folder(trial) / "summary.json"
    if not path.is_file():
        return None
    summary = json.loads(path.read_text())
    return value_of(summary, sweep.objective) if summary.get("status", "completed") == "completed" else None


def why_failed(sweep: RunsSweep, trial: Trial) -> str:
    path = sweep.failure(trial)
    return str(json.loads(path.read_text())["reason"]) if path.is_file() else ""


def by_point(sweep: RunsSweep) -> list[tuple[str, list[float]]]:
    """Return (point without its seed, objective of each of its trials), the best mean first; in the order of the trials
    where neither more nor less is better."""
    points: dict[str, list[float]] = {}
    for trial in sweep.trials:
        value = found(sweep, trial)
        named = Trial(0, tuple(pair for pair in trial.point if pair[0] != "seed"), 0).label()
        points.setdefault(named, []).extend([] if value is None else [value])
    there = [(name, values) for name, values in points.items() if values]
    sign = {"more": -1, "less": 1, "neither": 0}[sweep.better]
    return sorted(there, key=lambda one: sign * mean(one[1]))


def table(sweep: RunsSweep) -> list[list[str]]:
    """Return header and one row per point, the best first."""
    rows = [
        [name, str(len(values)), number(mean(values), DIGITS), number(stdev(values), DIGITS) if values[1:] else "-"]
        for name, values in by_point(sweep)
    ]
    return [["point", "runs", sweep.objective, "± std"], *rows]


def _conclude(sweep: RunsSweep, seconds: float) -> int:
    values = {trial.number: found(sweep, trial) for trial in sweep.trials}
    num_failed = sum(value is None for value in values.values())
    directory, cells = sweep.directory, table(sweep)
    columns = {
        "trial": list(values),
        "point": [trial.label() for trial in sweep.trials],
        sweep.objective: [*values.values()],
    }
    directory.write_csv("results.csv", columns)
    best = cells[1][0] if cells[1:] and sweep.better != "neither" else ""
    summary = {"status": "completed" if not num_failed else "failed", "trials": len(values), "failed": num_failed,
               "best": best, "objective": sweep.objective, "seconds.total": seconds}  # fmt: skip
    write_report(
        directory, f"Sweep of {sweep.pipeline}", summary, [Section("Points", [Table(cells[0], cells[1:])])],
        command=sweep.command,
    )  # fmt: skip
    directory.write_summary(summary)
    print(aligned(cells, right=range(1, 4), rule=True))
    print(f"{_said_of_best(sweep, best)}\n")
    if num_failed:
        again = f"ray-fed sweep --resume {directory.path}"
        print(f"{num_failed} of {len(values)} trials failed; try them again: {again}\n")
    paths_table({"report": directory.report_path, "results": directory.path / "results.csv"})
    return int(num_failed == len(values))


def _said_of_best(sweep: RunsSweep, best: str) -> str:
    if best:
        return f"Best of all: {best}."
    if sweep.better == "neither" and by_point(sweep):
        return f"Whether more or less {sweep.objective} is better is yours to say: --objective and --better."
    return "No trial ran to its end."


def number_of(value: float | None) -> str:
    return "-" if value is None else number(value, DIGITS)


# ---- options as words


def as_arguments(options: Mapping[str, Any]) -> list[str]:
    """Return options as a command line has them; what is not given is left out."""
    given = {name: value for name, value in options.items() if value is not None}
    return [word for name, value in given.items() for word in (f"--{name.replace('_', '-')}", as_text(value))]


def as_text(value: Any) -> str:
    """Return a value as it is written in an option."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ",".join(map(as_text, value)) if isinstance(value, tuple | list) else str(value)


def _words(value: Any) -> list[str]:
    return list(map(str, value)) if isinstance(value, tuple | list) else [str(value)]


def _as_mapping(config: WholeRunsConfig) -> dict[str, Any]:
    return {each.name: getattr(config, each.name) for each in fields(config)}


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
