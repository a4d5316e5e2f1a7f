"""From options to trials: which field takes which value, with which seed."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from math import exp, log
from typing import Any, get_type_hints

from pipelines.sweep.config import SweepConfig
from pipelines.training.config import TrainConfig
from ray_fed.config import coerce, require, unknown_name
from ray_fed.errors import ConfigError
from ray_fed.randomness import generator

FREQUENCIES = (0.01, 0.02, 0.04, 0.05, 0.1, 0.25, 0.5, 1.0)
"""Guo et al. 2022, Fig. 5."""
LEARNING_RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)

OF_THE_DATA = (
    "data", "target", "unit", "transform", "task", "classes", "standardise_target", "where", "rows", "features",
    "impute", "symmetry", "federation", "silos", "split", "test_rows", "partition", "alpha", "test_fraction", "hidden",
    "model", "tree_options",
)  # fmt: skip
OF_THE_RUN = ("seed", "repeats", "cohort", "num_gpus", "address", "out", "baselines")


@dataclass(frozen=True)
class Trial:
    """One training run of a sweep."""

    number: int
    point: tuple[tuple[str, Any], ...]
    """(field, value) of what is varied, sorted by field."""
    seed: int

    @property
    def name(self) -> str:
        return f"trial-{self.number}"

    def label(self) -> str:
        """What a person calls the point: "communication_frequency=0.25"."""
        return ", ".join(f"{field}={shown(value)}" for field, value in self.point) or "default"


def configured(base: TrainConfig, trial: Trial) -> TrainConfig:
    """Return the configuration of a trial, one of the repeats; ConfigError where its values make no sense together."""
    return replace(base, repeats=1, **dict(trial.point))


def trials_of(sweep: SweepConfig, base: TrainConfig) -> list[Trial]:
    """Return all trials in the order in which they are run: repeats of all points first, so that a sweep that is
    broken off has something of everything. ConfigError names the field, the value and what can be done."""
    points = _points(sweep, base)
    repeats = base.repeats
    found = []
    for repeat in range(repeats):
        for point in points:
            if dict(point).get("communication_frequency") == "batch" and repeat >= sweep.batch_repeats:
                continue
            found.append(Trial(len(found) + 1, point, base.seed + repeat))
    for trial in found:
        configured(base, trial)
    return found


def swept_fields(trials: Sequence[Trial]) -> list[str]:
    """Return the names of the fields that are varied."""
    return list(dict.fromkeys(field for trial in trials for field, _ in trial.point))


def _points(sweep: SweepConfig, base: TrainConfig) -> list[tuple[tuple[str, Any], ...]]:
    given = [_grid(text) for text in joined(sweep.grid)]
    ranges = [_range(text) for text in sweep.sample]
    names = [field for field, *_ in (*given, *ranges)]
    for name in names:
        require(names.count(name) == 1, f"{name} is given more than once in --grid and --sample; write all values once")
    grids = _preset(sweep.preset) | dict(given)
    combined = [dict(zip(grids, values, strict=True)) for values in itertools.product(*grids.values())]
    draws = range(sweep.samples) if ranges else range(1)
    points = [{**point, **drawn(ranges, base.seed, draw)} for point in combined for draw in draws]
    return [tuple(sorted(point.items())) for point in points]


def joined(texts: Sequence[str]) -> list[str]:
    """Return one text per field: a part without "=" is one more value of the field before it, so that
    "a=1,2,b=3:4", cut at its commas, says the same as "a=1:2" and "b=3:4"."""
    found: list[str] = []
    for text in texts:
        if found and "=" not in text:
            found[-1] += f":{text}"
        else:
            found.append(text)
    return found


def _preset(name: str) -> dict[str, tuple[Any, ...]]:
    if name == "fig5":
        return {"communication_frequency": (*FREQUENCIES, "batch")}
    if name == "fig5-heat":
        return {"communication_frequency": FREQUENCIES[::2], "learning_rate": LEARNING_RATES}
    return {}


def _grid(text: str) -> tuple[str, tuple[Any, ...]]:
    return parsed_grid(text, _sweepable)


def parsed_grid(text: str, sweepable: Callable[[str, str], Any]) -> tuple[str, tuple[Any, ...]]:
    """Return (field, values) of FIELD=VALUE:VALUE; sweepable as in `parsed_range`."""
    field, _, values = text.partition("=")
    annotation = sweepable(field, f"grid={text!r}")
    parts = [value for value in values.split(":") if value]
    require(bool(parts), f"grid={text!r} has no values; write FIELD=VALUE,VALUE, e.g. learning_rate=0.001,0.01")
    return field, tuple(dict.fromkeys(coerce(part, annotation, field) for part in parts))


def _range(text: str) -> tuple[str, str, float, float]:
    return parsed_range(text, _sweepable)


def parsed_range(text: str, sweepable: Callable[[str, str], Any]) -> tuple[str, str, float, float]:
    """Return (field, log or uniform, low, high) of FIELD=log:LOW:HIGH.

    sweepable: (field, where it is named) -> its type, or ConfigError."""
    field, _, described = text.partition("=")
    annotation = sweepable(field, f"sample={text!r}")
    kind, *bounds = described.split(":")
    fits = kind in ("log", "uniform") and len(bounds) == 2
    require(fits, f"sample={text!r} must be FIELD=log:LOW:HIGH or FIELD=uniform:LOW:HIGH")
    low, high = (float(coerce(bound, float, field)) for bound in bounds)
    require(
        low < high and (kind == "uniform" or low > 0), f"sample={text!r}: LOW must be below HIGH, and above 0 for log"
    )
    require(
        annotation is float or "float" in str(annotation), f"sample={text!r}: {field} takes no real number; use --grid"
    )
    return field, kind, low, high


def drawn(ranges: Sequence[tuple[str, str, float, float]], seed: int, draw: int) -> Mapping[str, float]:
    """Return field -> value of one draw from ranges."""
    random = generator(seed, "sweep", draw)
    found = {}
    for field, kind, low, high in ranges:
        share = float(random.random())
        value = exp(log(low) + share * (log(high) - log(low))) if kind == "log" else low + share * (high - low)
        found[field] = float(f"{value:.4g}")
    return found


def _sweepable(field: str, where: str) -> Any:
    hints = get_type_hints(TrainConfig)
    known = [each.name for each in fields(TrainConfig) if each.name not in (*OF_THE_DATA, *OF_THE_RUN)]
    if field in OF_THE_DATA:
        raise ConfigError(
            f"{where}: {field} cannot be swept, all trials share silos that opened their data once; run one sweep per "
            f"{field}"
        )
    if field == "seed":
        raise ConfigError(
            f"{where}: seeds are varied with --repeats N (seed, seed+1, ...), not as a field of the sweep"
        )
    if field in OF_THE_RUN:
        raise ConfigError(f"{where}: {field} is one for the whole sweep; give it as --{field.replace('_', '-')}")
    if field not in known:
        raise ConfigError(f"{where}: {unknown_name('field', field, known)}")
    return hints[field]


def shown(value: Any) -> str:
    """Return a value as people read it."""
    return f"{value:g}" if isinstance(value, float) else str(value)
