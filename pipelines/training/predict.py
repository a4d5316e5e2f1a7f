"""`ray-fed predict`: the models of a finished run on new structures or formulas, with bounds, flags and errors."""

import io
import re
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ray_fed.config import require
from ray_fed.errors import ConfigError, DataError
from ray_fed.federation.reasons import counted_notes
from ray_fed.materials.databases.addresses import check_address
from ray_fed.materials.databases.columns import UNKNOWN_UNIT, canonical_target, unit_of_target
from ray_fed.materials.databases.database import SHOWN_REASON, crystal_frame
from ray_fed.materials.databases.kinds import open_source, whole_path
from ray_fed.materials.databases.packages import required_package
from ray_fed.materials.databases.raw_table import RawTable
from ray_fed.materials.databases.readers import open_table
from ray_fed.materials.databases.source import Access, Source
from ray_fed.materials.personal_file import FOLDER
from ray_fed.materials.predictions import FLAG, WHY_FLAGGED, Inputs, Trained, inputs_of, interval_columns, predictions
from ray_fed.materials.targets import Target, labels
from ray_fed.materials.trained_model import require_named
from ray_fed.metrics import (
    ClassificationSums,
    Metric,
    RegressionSums,
    Scores,
    classification_metrics,
    regression_metrics,
)
from ray_fed.model_library.property_tables import materials_of
from ray_fed.model_library.transfer import Model
from ray_fed.model_library.transfer_model import METHOD as TRANSFER
from ray_fed.model_library.transfer_model import predict_transfer
from ray_fed.reporting.model_files import load_model, model_paths, read_card, read_model_file
from ray_fed.reporting.run_directory import RunDirectory
from ray_fed.reporting.terminal import aligned
from ray_fed.reporting.writing import write_atomically

MAX_REASONS = 10
"""Different reasons shown on the terminal; the file has them all."""
ALL_MODELS = "all"


@dataclass(frozen=True)
class Models:
    """The models that predict, and those beside them that their intervals need."""

    shown: tuple[str, ...]
    by_name: Mapping[str, Trained]

    @property
    def first(self) -> Trained:
        return self.by_name[self.shown[0]]

    def own_of(self, model: str) -> dict[str, Trained]:
        """Return the silos' own models that a model's intervals need, as far as they are there."""
        return {name: self.by_name[name] for name in self.by_name[model].limits.own_models if name in self.by_name}

    def missing_of(self, model: str) -> list[str]:
        return [name for name in self.by_name[model].limits.own_models if name not in self.by_name]


def run(options: Mapping[str, Any], _command_line: Sequence[str]) -> int:
    """Write predictions for every entry of `file`; returns 0, or 1 when no entry could be predicted."""
    file = options["file"]
    check_address(file, "file", only_ours=True)
    path = Path(options["out"] or f"{Path(file).name}.predictions.csv")
    check_place(path, Path(file))
    if (model := transfer_model(options["run_directory"])) is not None:
        raw = open_table(Path(file), None)
        return by_transfer(load_model(model), materials_of(raw)[0], list(raw.columns), path)
    silo = options.get("silo")
    models = (
        read_personal(options["run_directory"], silo, options.get("network"))
        if silo
        else read_models(options["run_directory"], options["model"], options.get("network"))
    )
    access = Access(options["query"], options["table"], options["query_timeout"])
    structures, symmetry = str(options["structures"] or "all"), options["symmetry"]
    source = Source(whole_path(file, Path.cwd()), None, symmetry=symmetry, structures=structures, access=access)
    source = models.first.as_read(source)
    table = open_source(source)
    inputs = inputs_of(crystal_frame(table, source), models.first)
    given = given_columns(table)
    predicted = predicted_table(inputs, models, given)
    write_atomically(path, WRITERS[path.suffix.lower()](predicted))
    _say(inputs, models, predicted, path, file, table.notices)
    _say_errors(predicted, models, table)
    return 0 if inputs.usable.any() else 1


def by_transfer(
    model: Model, frame: pd.DataFrame, given: list[str], out: Path, element_table: str | None = None
) -> int:
    """Write what a transfer model predicts of a table, beside its `given` columns; returns 1 when none could be."""
    arrays, card = model
    predicted = predict_transfer(arrays, card, frame, element_table)
    table = frame[[name for name in frame if name in given]].assign(**predicted.columns(card))
    write_atomically(out, WRITERS[out.suffix.lower()](pd.DataFrame(table)))
    usable = np.isfinite(predicted.values)
    flagged = sum(bool(flag) for flag in predicted.flags)
    print(f"{usable.sum():,} of {len(frame):,} predictions of {card.property} [{card.unit}] in {out}; "
          f"{flagged:,} are unlike the rows learned from")  # fmt: skip
    return 0 if usable.any() else 1


def transfer_model(named: str) -> Path | None:
    """Return the file of a model that `ray-fed library transfer --save` wrote, None for any other."""
    weights, card = model_paths(named)
    if not card.is_file() or Path(named).is_dir():
        return None
    return weights if read_card(read_model_file(card), card).architecture.get("type") == TRANSFER else None


def check_place(path: Path, file: Path) -> None:
    """ConfigError where predictions would take the place of what they are made from, or cannot have their place."""
    if path.is_dir():
        raise ConfigError(f"out={path} is a folder; give the name of a file")
    if path.suffix.lower() not in WRITERS:
        raise ConfigError(f"out={path} has an ending that is not written; give one of {', '.join(WRITERS)}")
    if path.suffix.lower() == ".xlsx":
        required_package("openpyxl", "excel", str(path))
    if path.exists() and file.exists() and path.samefile(file):
        raise ConfigError(f"out={path} is the file with the entries; give another name")


# ---- the table


def _sheet(table: pd.DataFrame) -> bytes:
    written = io.BytesIO()
    table.to_excel(written, index=False)
    return written.getvalue()


WRITERS: Mapping[str, Callable[[pd.DataFrame], bytes]] = {
    ".csv": lambda table: table.to_csv(index=False).encode(),
    ".tsv": lambda table: table.to_csv(index=False, sep="\t").encode(),
    ".xlsx": _sheet,
}
"""Ending of the file -> its content."""


def given_columns(table: RawTable) -> pd.DataFrame:
    """Return the user's own columns, row by row as they are; those that hold structures or lists are left out."""
    columns = {name: table.read(name).reset_index(drop=True) for name in table.columns}
    return pd.DataFrame({name: column for name, column in columns.items() if _is_flat(column)})


def _is_flat(column: pd.Series) -> bool:
    if column.dtype.kind in "biufM":
        return True
    return all(value is None or (pd.api.types.is_scalar(value) and not _is_long(value)) for value in column.tolist())


def _is_long(value: object) -> bool:
    """Whether a value is a structure as text: it would fill the table, and its place is the user's file."""
    return isinstance(value, str) and "\n" in value


def predicted_table(inputs: Inputs, models: Models, given: pd.DataFrame) -> pd.DataFrame:
    """Return the user's columns, then id and formula where he has none, predictions, units, flags and reasons; with
    several models their names before their columns. A column of the user's that has one of these names is then called
    `given_NAME`, which is said."""
    frame = inputs.frame
    found: dict[str, Any] = {name: frame[name] for name in ("id", "formula") if name not in given}
    for name in models.shown:
        own = None if models.missing_of(name) else models.own_of(name)
        columns = predictions(inputs, models.by_name[name], own)
        found |= {f"{name}.{key}" if len(models.shown) > 1 else key: column for key, column in columns.items()}
    found |= {"unit": models.first.card.unit, "note": frame["note"], "reason": inputs.reasons}
    renamed = {name: f"given_{name}" for name in given if name in found}
    for name, other in renamed.items():
        _note(f"the file's column {name!r} is called {other!r} beside the predictions")
    return pd.concat([given.rename(columns=renamed), pd.DataFrame(found, index=given.index)], axis=1)


# ---- what is said


def _say(
    inputs: Inputs, models: Models, predicted: pd.DataFrame, path: Path, file: str, notices: Sequence[str]
) -> None:
    """Print how many entries were predicted, and notes of those that were not, or are unlike the training rows."""
    card, usable = models.first.card, inputs.usable
    print(f"{usable.sum()} predictions of {card.property} [{card.unit}] in {path}")
    for reason, count in Counter(reason for reason in inputs.reasons if reason).most_common(MAX_REASONS):
        _note(f"{count} x {reason}")
    for note, count in counted_notes([*inputs.frame["note"], *notices]).items():
        _note(f"{count} x {note}")
    for name in models.shown:
        said = f"{name}: " if len(models.shown) > 1 else ""
        limits, missing = models.by_name[name].limits, models.missing_of(name)
        if limits.why_none or missing:
            why = limits.why_none or f"they need the models {', '.join(missing)}, which are not beside this one"
            _note(f"{said}no intervals: {why}")
        for what, why in limits.domain.unknown.items():
            _note(f"{said}{what} of the training rows are not known: {why}")
        flagged = predicted[f"{name}.{WHY_FLAGGED}" if said else WHY_FLAGGED]
        num_flagged = sum(str(why) != "" for why in flagged)
        if num_flagged:
            _note(f"{said}{num_flagged} inputs are unlike the training rows; see the column {WHY_FLAGGED}")
    for why, count in _kinds_of_flags(predicted, models).most_common(MAX_REASONS):
        _note(f"{count} x {why}")
    if bool(inputs.frame["volume"].isna().all()) and models.first.feature_set.needs_structure:
        _note(
            f"this model wants crystal structures ({card.descriptor['name']}), {file} has only formulas; "
            "train one with --features guo65 or rich"
        )


def _kinds_of_flags(predicted: pd.DataFrame, models: Models) -> Counter[str]:
    """Return how often each kind of flag is there, by its words before what is said of the single row."""
    name = f"{models.shown[0]}.{WHY_FLAGGED}" if len(models.shown) > 1 else WHY_FLAGGED
    texts = [part for text in predicted[name] for part in str(text).split("; ") if part]
    return Counter(re.split(r":| \(|(?<= differ) by", text)[0].lstrip("0123456789 ") for text in texts)


def _note(text: str) -> None:
    print(f"note: {text if len(text) <= SHOWN_REASON else f'{text[: SHOWN_REASON - 3]}...'}", file=sys.stderr)


def _say_errors(predicted: pd.DataFrame, models: Models, table: RawTable) -> None:
    """Print the errors of each model for each target whose true values the file has."""
    for target in models.first.targets:
        column = _true_column(table, target)
        if column is None:
            continue
        try:
            true = labels([table.read(column)], [target], [_unit_of(column, target)])[0][:, 0]
        except DataError as error:
            _note(f"no errors are told: {error}")
            continue
        rows = [row for name in models.shown if (row := _errors(predicted, models, name, target, true))]
        if rows:
            print(aligned([_heading(target), *rows], right=range(1, len(rows[0])), rule=True))


def _true_column(table: RawTable, target: Target) -> str | None:
    """Return the column with a target's true values, by its name or another known name of it."""
    return next((name for name in table.columns if canonical_target(name) == target.name), None)


def _unit_of(column: str, target: Target) -> str:
    known = unit_of_target(column)
    return "" if target.classes else target.unit if known == UNKNOWN_UNIT else known


def _metrics(target: Target) -> tuple[Metric, ...]:
    return classification_metrics(len(target.classes)) if target.classes else regression_metrics(target.shown_unit)


def _heading(target: Target) -> list[str]:
    metrics = _metrics(target)
    found = [f"errors of {target.words}", "rows", *(metric.heading for metric in metrics)]
    return found if target.classes else [*found, "in 50 %", "in 90 %", "flagged", f"their {metrics[0].heading}"]


def _errors(predicted: pd.DataFrame, models: Models, name: str, target: Target, true: np.ndarray) -> list[str]:
    """Return a model's row of the table of errors; empty where no row has both a true value and a prediction."""
    prefix = f"{name}." if len(models.shown) > 1 else ""
    columns = [f"probability_{target.name}_{label}" for label in target.classes] or [f"predicted_{target.name}"]
    values = np.column_stack([predicted[f"{prefix}{column}"].to_numpy(np.float64) for column in columns])
    there = np.isfinite(true) & np.isfinite(values).all(axis=1)
    if not there.any():
        return []
    told = [name, f"{there.sum():,}", *_shown(_scores(target, true[there], values[there]), target)]
    if target.classes:
        return told
    covered = [_covered(predicted, prefix, columns, true, there) for columns in interval_columns(target.name).values()]
    flagged = there & predicted[f"{prefix}{FLAG}"].to_numpy(bool)
    of_flagged = _shown(_scores(target, true[flagged], values[flagged]), target)[0] if flagged.any() else ""
    return [*told, *covered, f"{flagged.sum():,}", of_flagged]


def _scores(target: Target, true: np.ndarray, values: np.ndarray) -> Scores:
    if target.classes:
        return ClassificationSums.of(true.astype(np.int64), values)
    return RegressionSums.of(true, values[:, 0])


def _shown(scores: Scores, target: Target) -> list[str]:
    """Return the values of a target's metrics, in order, as text."""
    found = scores.values()
    return [f"{found[metric.name]:.{metric.digits}f}" for metric in _metrics(target)]


def _covered(
    predicted: pd.DataFrame, prefix: str, columns: tuple[str, str], true: np.ndarray, there: np.ndarray
) -> str:
    """Return the share of true values between bounds; "" where there are none."""
    names = [f"{prefix}{column}" for column in columns]
    if any(name not in predicted for name in names):
        return ""
    lower, upper = (predicted[name].to_numpy(np.float64) for name in names)
    return f"{100 * ((lower <= true) & (true <= upper))[there].mean():.1f} %"


# ---- the models


def read_models(run_directory: str, model: str, network: str | None = None) -> Models:
    """Return the models that a user asks for by the run's folder and their name, or by one file; ConfigError lists what
    is there. network: the user's own, MODULE:CLASS, where the models are of such a one."""
    folder = (
        Path(run_directory).parent
        if run_directory.endswith(".safetensors")
        else RunDirectory.open(run_directory).models
    )
    there = sorted(path.stem for path in folder.glob("*.safetensors"))
    if run_directory.endswith(".safetensors"):
        shown = (Path(run_directory).stem,)
    else:
        shown = tuple(_in_order(there)) if model == ALL_MODELS and there else (model,)
    by_name = {name: _read(folder / f"{name}.safetensors", there, network) for name in shown}
    needed = {name for trained in by_name.values() for name in trained.limits.own_models} - by_name.keys()
    beside = {name: _read(folder / f"{name}.safetensors", there, network) for name in sorted(needed & set(there))}
    return Models(shown, {**by_name, **beside})


def read_personal(run_directory: str, silo: str, network: str | None = None) -> Models:
    """Return the personal model of one silo of a run; ConfigError lists those that are there."""
    require(
        not run_directory.endswith(".safetensors"), f"silo={silo}: give the folder of a run, or a personal model alone"
    )
    folder = RunDirectory.open(run_directory).path / FOLDER
    there = sorted(path.stem for path in folder.glob("*.safetensors"))
    if silo not in there:
        where = "each is with its silo where sites have folders of their own, and its log names the file"
        known = ", ".join(there) or f"none: {where}; or the run was made with --personal none"
        raise ConfigError(f"silo={silo!r} has no personal model in {folder}; there is: {known}")
    return Models((silo,), {silo: _read(folder / f"{silo}.safetensors", there, network)})


def _read(path: Path, there: Sequence[str], network: str | None) -> Trained:
    if path.stem not in there and not path.exists():
        raise ConfigError(f"model={path.stem!r} is not in {path.parent}; there is: {', '.join(there) or 'none'}")
    arrays, card = load_model(path)
    return Trained(arrays, card, require_named(card, network))


def _in_order(names: Sequence[str]) -> list[str]:
    """Return names of models: the federated one, the pooled one, then those of silos."""
    return sorted(names, key=lambda name: (name != "federated", name != "pooled", name))


def model_path(run_directory: str, model: str) -> Path:
    """Return the file of a run's model, given the run's folder or the file itself; ConfigError lists what is there."""
    if run_directory.endswith(".safetensors"):
        return Path(run_directory)
    folder = RunDirectory.open(run_directory).models
    path = folder / f"{model}.safetensors"
    if not path.exists():
        there = sorted(found.stem for found in folder.glob("*.safetensors"))
        raise ConfigError(f"model={model!r} is not in {folder}; there is: {', '.join(there) or 'none'}")
    return path
