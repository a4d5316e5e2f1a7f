"""`ray-fed library query | show | push | pull | verify | diff | reindex | deprecate | predict`."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pipelines.training.predict import check_place, model_path
from ray_fed.errors import DataError
from ray_fed.materials.databases.database import crystal_frame
from ray_fed.materials.databases.kinds import open_source
from ray_fed.materials.databases.source import Source
from ray_fed.materials.predictions import Trained, inputs_of
from ray_fed.materials.trained_model import is_on_graphs
from ray_fed.model_library.cards import SHOWN_WITH_FAILURES, pack
from ray_fed.model_library.crystal_graph import METHOD, predict_structures
from ray_fed.model_library.descriptors import check_fingerprint, make_descriptor
from ray_fed.model_library.predictors import predict, require_one_number
from ray_fed.model_library.property_tables import read_table
from ray_fed.model_library.store import Library, difference
from ray_fed.model_library.store import pull as pull_models
from ray_fed.model_library.store import push as push_models
from ray_fed.model_library.transfer import Model
from ray_fed.reporting.model_files import load_model
from ray_fed.reporting.writing import to_json, write_atomically

MAX_ROWS = 40
"""Rows of an answer on the terminal; a CSV file has them all."""


def query(options: Mapping[str, Any], _command_line: Sequence[str]) -> int:
    """Print the models that answer a query."""
    names = options["columns"].split(",") if options["columns"] else None
    if options["failures"] and names is None:
        names = list(SHOWN_WITH_FAILURES)
    found = Library.open(options["library"]).query(options["query"], names, options["failures"])
    if options["csv"]:
        path = write_atomically(Path(options["csv"]), found.to_csv(index=False).encode())
        print(f"{len(found):,} models in {path}")
        return 0
    shown = found.head(MAX_ROWS).assign(**({"id": found["id"].str[:12]} if "id" in found else {}))
    print(shown.to_string(index=False, na_rep="-", float_format=lambda value: f"{value:.4g}") if len(found) else "none")
    if len(found) > MAX_ROWS:
        print(f"... {len(found):,} models in all; add a limit, or write them with --csv FILE")
    return 0


def show(options: Mapping[str, Any], _command_line: Sequence[str]) -> int:
    """Print a card as JSON."""
    card = Library.open(options["library"]).card(options["id"]).to_mapping()
    names = card["feature_names"]
    assert isinstance(names, list)
    if len(names) > 6:
        card["feature_names"] = [*names[:3], f"... {len(names)} in all"]
    print(to_json(card, indent=2).decode())
    return 0


def push(options: Mapping[str, Any], _command_line: Sequence[str]) -> int:
    """Copy models elsewhere."""
    ours = Library.open(options["library"])
    copied = push_models(ours, options["to"], ours.query(options["query"], ["id"])["id"].tolist())
    print(f"{len(copied):,} models copied to {options['to']}")
    return 0


def pull(options: Mapping[str, Any], _command_line: Sequence[str]) -> int:
    """Copy models from elsewhere."""
    copied = pull_models(Library.create(options["library"]), options["origin"], options["ids"])
    print(f"{len(copied):,} models copied to {options['library']}")
    return 0


def verify(options: Mapping[str, Any], _command_line: Sequence[str]) -> int:
    """Check every file; returns 1 when something is wrong."""
    ours = Library.open(options["library"])
    faults = ours.verify()
    for fault in faults[:MAX_ROWS]:
        print(f"{fault.id[:12]}  {fault.what}", file=sys.stderr)
    print(f"{len(ours):,} models, {len(faults)} faults")
    return 1 if faults else 0


def diff(options: Mapping[str, Any], _command_line: Sequence[str]) -> int:
    """List what only one side has; returns 1 when they differ."""
    library, other = options["library"], options["other"]
    found = difference(Library.open(library), other)
    for sign, ids in (("<", found.only_here), (">", found.only_there)):
        for model_id in ids[:MAX_ROWS]:
            print(f"{sign} {model_id}")
    print(f"{len(found.only_here):,} only in {library}, {len(found.only_there):,} only in {other}")
    return 1 if found.only_here or found.only_there else 0


def reindex(options: Mapping[str, Any], _command_line: Sequence[str]) -> int:
    """Make the index again."""
    print(f"{Library.open(options['library']).reindex():,} rows in the index of {options['library']}")
    return 0


def deprecate(options: Mapping[str, Any], _command_line: Sequence[str]) -> int:
    """Mark a model as superseded."""
    ours = Library.open(options["library"])
    ours.deprecate(options["id"])
    print(f"{ours.resolve(options['id'])[:12]} is marked as deprecated")
    return 0


def predict_file(options: Mapping[str, Any], _command_line: Sequence[str]) -> int:
    """Write predictions for a table; rows that cannot be read have a reason. Returns 1 when none could be."""
    file = Path(options["file"])
    path = Path(options["out"] or f"{file.name}.predictions.csv")
    check_place(path, file)
    model = Library.open(options["library"]).load(options["id"])
    card = model[1]
    frame = read_table(file).rename(columns={"SMILES": "smiles", "composition": "formula"})
    if is_on_graphs(card):
        predicted, reasons = _predicted_on_graphs(Trained(*model), file)
    else:
        predicted, reasons = _predicted(model, frame, options["element_table"])
    usable = np.isfinite(predicted)
    table = frame.assign(**{f"predicted_{card.property}": predicted, "unit": card.unit, "reason": reasons})
    write_atomically(path, pd.DataFrame(table).to_csv(index=False).encode())
    print(f"{usable.sum():,} of {len(frame):,} predictions of {card.property} [{card.unit}] in {path}")
    return 0 if usable.any() else 1


def _predicted_on_graphs(model: Trained, file: Path) -> tuple[np.ndarray, list[str]]:
    """Return predictions of a network of `ray-fed train` on graphs, NaN with a reason where a row has none."""
    source = model.as_read(Source(str(file.resolve()), target=None))
    inputs = inputs_of(crystal_frame(open_source(source), source), model)
    predicted = np.full(len(inputs.reasons), np.nan)
    predicted[inputs.usable] = model.values(model.outputs(inputs))[:, 0]
    return predicted, inputs.reasons


def add(options: Mapping[str, Any], _command_line: Sequence[str]) -> int:
    """Put a model of a run, e.g. a federated one with its federation record, into the library."""
    arrays, card = load_model(model_path(options["model"], "federated"))
    require_one_number(card)
    packed = pack(arrays, card)
    Library.create(options["library"]).add([packed])
    print(f"{packed.id[:12]} {card.name}: {card.property} [{card.unit}] is in {options['library']}")
    return 0


def _predicted(model: Model, frame: pd.DataFrame, element_table: str | None) -> tuple[np.ndarray, list[str]]:
    """Return predictions, NaN with a reason where a row cannot be read."""
    arrays, card = model
    if card.architecture["type"] == METHOD:
        return predict_structures(arrays, card, frame)
    descriptor = make_descriptor(str(card.descriptor["name"]), element_table)
    check_fingerprint(descriptor, card.descriptor, card.id)
    if not descriptor.reads(frame):
        raise DataError(f"the model reads {descriptor.column!r}; the table has: {', '.join(map(str, frame.columns))}")
    features, reasons = descriptor.transform(frame)
    usable = np.isfinite(features).all(axis=1)
    predicted = np.full(len(frame), np.nan)
    predicted[usable] = predict(arrays, card, features[usable])
    return predicted, reasons
