"""`ray-fed library query | show | push | pull | verify | diff | reindex | deprecate | predict`."""

import sys
from pathlib import Path

import numpy as np
import pandas as pd

from pipelines.predict import check_place, model_path
from ray_fed.errors import DataError
from ray_fed.model_library.cards import SHOWN_WITH_FAILURES, pack
from ray_fed.model_library.crystal_graph_models import METHOD, predict_structures
from ray_fed.model_library.descriptors import check_fingerprint, make_descriptor
from ray_fed.model_library.moving import difference
from ray_fed.model_library.moving import pull as pull_models
from ray_fed.model_library.moving import push as push_models
from ray_fed.model_library.predictors import predict
from ray_fed.model_library.property_tables import read_table
from ray_fed.model_library.store import Library
from ray_fed.model_library.transfer import Model
from ray_fed.reporting.atomic_write import write_atomically
from ray_fed.reporting.model_files import load_model
from ray_fed.reporting.plain_values import to_json

MAX_ROWS = 40
"""Rows of an answer on the terminal; a CSV file has them all."""


def query(library: str, text: str, columns: str | None, csv: str | None, failures: bool) -> int:
    """Print the models that answer a query."""
    names = columns.split(",") if columns else None
    if failures and names is None:
        names = list(SHOWN_WITH_FAILURES)
    found = Library.open(library).query(text, names, failures)
    if csv:
        path = write_atomically(Path(csv), found.to_csv(index=False).encode())
        print(f"{len(found):,} models in {path}")
        return 0
    shown = found.head(MAX_ROWS).assign(**({"id": found["id"].str[:12]} if "id" in found else {}))
    print(shown.to_string(index=False, na_rep="-", float_format=lambda value: f"{value:.4g}") if len(found) else "none")
    if len(found) > MAX_ROWS:
        print(f"... {len(found):,} models in all; add a limit, or write them with --csv FILE")
    return 0


def show(library: str, model_id: str) -> int:
    """Print a card as JSON."""
    card = Library.open(library).card(model_id).to_mapping()
    names = card["feature_names"]
    assert isinstance(names, list)
    if len(names) > 6:
        card["feature_names"] = [*names[:3], f"... {len(names)} in all"]
    print(to_json(card, indent=2).decode())
    return 0


def push(library: str, to: str, text: str) -> int:
    """Copy models elsewhere."""
    ours = Library.open(library)
    copied = push_models(ours, to, ours.query(text, ["id"])["id"].tolist())
    print(f"{len(copied):,} models copied to {to}")
    return 0


def pull(library: str, origin: str, ids: list[str]) -> int:
    """Copy models from elsewhere."""
    copied = pull_models(Library.create(library), origin, ids)
    print(f"{len(copied):,} models copied to {library}")
    return 0


def verify(library: str) -> int:
    """Check every file; returns 1 when something is wrong."""
    ours = Library.open(library)
    faults = ours.verify()
    for fault in faults[:MAX_ROWS]:
        print(f"{fault.id[:12]}  {fault.what}", file=sys.stderr)
    print(f"{len(ours):,} models, {len(faults)} faults")
    return 1 if faults else 0


def diff(library: str, other: str) -> int:
    """List what only one side has; returns 1 when they differ."""
    found = difference(Library.open(library), other)
    for sign, ids in (("<", found.only_here), (">", found.only_there)):
        for model_id in ids[:MAX_ROWS]:
            print(f"{sign} {model_id}")
    print(f"{len(found.only_here):,} only in {library}, {len(found.only_there):,} only in {other}")
    return 1 if found.only_here or found.only_there else 0


def reindex(library: str) -> int:
    """Make the index again."""
    print(f"{Library.open(library).reindex():,} rows in the index of {library}")
    return 0


def deprecate(library: str, model_id: str) -> int:
    """Mark a model as superseded."""
    ours = Library.open(library)
    ours.deprecate(model_id)
    print(f"{ours.resolve(model_id)[:12]} is marked as deprecated")
    return 0


def predict_file(library: str, model_id: str, file: Path, out: str | None, element_table: str | None) -> int:
    """Write predictions for a table; rows that cannot be read have a reason. Returns 1 when none could be."""
    path = Path(out) if out else Path(f"{file.name}.predictions.csv")
    check_place(path, file)
    model = Library.open(library).load(model_id)
    card = model[1]
    frame = read_table(file).rename(columns={"SMILES": "smiles", "composition": "formula"})
    predicted, reasons = _predicted(model, frame, element_table)
    usable = np.isfinite(predicted)
    table = frame.assign(**{f"predicted_{card.property}": predicted, "unit": card.unit, "reason": reasons})
    write_atomically(path, pd.DataFrame(table).to_csv(index=False).encode())
    print(f"{usable.sum():,} of {len(frame):,} predictions of {card.property} [{card.unit}] in {path}")
    return 0 if usable.any() else 1


def add(library: str, model: str) -> int:
    """Put a model of a run, e.g. a federated one with its federation record, into the library."""
    arrays, card = load_model(model_path(model, "federated"))
    packed = pack(arrays, card)
    Library.create(library).add([packed])
    print(f"{packed.id[:12]} {card.name}: {card.property} [{card.unit}] is in {library}")
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
