"""`ray-fed predict`: a finished run's model on new structures or formulas."""

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ray_fed.errors import ConfigError, DataError
from ray_fed.federation.reasons import counted_notes
from ray_fed.materials.databases.addresses import check_address
from ray_fed.materials.databases.database import SHOWN_REASON, open_database
from ray_fed.materials.databases.kinds import whole_path
from ray_fed.materials.databases.source import Access, Source
from ray_fed.materials.features.featurizers import CrystalFeaturizer, make_featurizer
from ray_fed.materials.property_task import as_read
from ray_fed.materials.targets import prediction_columns
from ray_fed.materials.trained_model import predict, targets_of
from ray_fed.reporting.model_files import ModelCard, load_model
from ray_fed.reporting.run_directory import RunDirectory
from ray_fed.reporting.writing import write_atomically

MAX_REASONS = 10
"""Different reasons shown on the terminal; the file has them all."""


def run(options: Mapping[str, Any], _command_line: Sequence[str]) -> int:
    """Write predictions for every entry of `file`; returns 0, or 1 when no entry could be predicted."""
    file = options["file"]
    check_address(file, "file", only_ours=True)
    path = Path(options["out"] or f"{Path(file).name}.predictions.csv")
    check_place(path, Path(file))
    arrays, card = load_model(model_path(options["run_directory"], options["model"]))
    access = Access(options["query"], options["table"], options["query_timeout"])
    source = Source(path=whole_path(file, Path.cwd()), target=None, access=access)
    database = open_database(as_read(source, featurizer_of(card)))
    table = predict_table(database.frame, arrays, card)
    write_atomically(path, table.to_csv(index=False).encode())
    reasons = [reason for reason in table["reason"] if reason]
    failed = len(reasons)
    print(f"{len(table) - failed} predictions of {card.property} [{card.unit}] in {path}")
    shown = (reason if len(reason) <= SHOWN_REASON else f"{reason[: SHOWN_REASON - 3]}..." for reason in reasons)
    for reason, count in Counter(shown).most_common(MAX_REASONS):
        print(f"note: {count} x {reason}", file=sys.stderr)
    for note, count in counted_notes([*database.frame["note"], *database.notices]).items():
        print(f"note: {count} x {note}", file=sys.stderr)
    if bool(database.frame["volume"].isna().all()) and make_featurizer(str(card.descriptor["name"])).needs_structure:
        print(
            f"note: this model wants crystal structures ({card.descriptor['name']}), {file} has only formulas; "
            "train one with --features guo65 or rich",
            file=sys.stderr,
        )
    return 0 if failed < len(table) else 1


def check_place(path: Path, file: Path) -> None:
    """ConfigError where predictions would take the place of what they are made from, or cannot have their place."""
    if path.is_dir():
        raise ConfigError(f"out={path} is a folder; give the name of a CSV file")
    if path.exists() and file.exists() and path.samefile(file):
        raise ConfigError(f"out={path} is the file with the entries; give another name")


def predict_table(frame: pd.DataFrame, arrays: dict[str, np.ndarray], card: ModelCard) -> pd.DataFrame:
    """Return id, formula, prediction, unit and reason for each row of a crystal frame; unusable rows have NaN."""
    features, reasons = _features(frame, card)
    usable = np.array([reason == "" for reason in reasons])
    columns = prediction_columns(predict(features[usable], arrays, card), targets_of(card))
    spread = {name: _spread(values, usable) for name, values in columns.items()}
    return pd.DataFrame(
        {
            "id": frame["id"],
            "formula": frame["formula"],
            **spread,
            "unit": card.unit,
            "reason": reasons,
            "note": frame["note"],
        }
    )


def _spread(values: np.ndarray, usable: np.ndarray) -> np.ndarray:
    """Return values of usable rows among all rows [n], with NaN, or "" of labels, for the others."""
    found = np.full(len(usable), np.nan) if values.dtype.kind == "f" else np.full(len(usable), "", object)
    found[usable] = values
    return found


def featurizer_of(card: ModelCard) -> CrystalFeaturizer:
    """Return the featurizer that the model was trained with, its convention of cells included."""
    options = card.descriptor["options"]
    assert isinstance(options, dict)
    return make_featurizer(str(card.descriptor["name"]), **options)


def _features(frame: pd.DataFrame, card: ModelCard) -> tuple[np.ndarray, list[str]]:
    featurizer = featurizer_of(card)
    if featurizer.fingerprint() != card.descriptor["table_hash"]:
        raise DataError(
            f"the model was trained on {card.descriptor['name']} features of another version "
            f"({str(card.descriptor['table_hash'])[:12]} instead of {featurizer.fingerprint()[:12]}); "
            f"install ray-fed {card.software.get('ray-fed', 'of that time')}"
        )
    features, reasons = featurizer.transform_with_reasons(frame)
    return features, [given or found for given, found in zip(frame["reason"], reasons, strict=True)]


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
