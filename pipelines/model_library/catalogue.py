"""`ray-fed library query | properties | sets | methods | summary | show | push | pull | verify | diff | ...`."""

import re
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pipelines.model_library.build import TOLD_EVERY_SECONDS, note
from pipelines.training.predict import by_transfer, check_place, model_path
from ray_fed.errors import DataError
from ray_fed.materials.databases.database import crystal_frame
from ray_fed.materials.databases.kinds import open_source
from ray_fed.materials.databases.readers import open_table
from ray_fed.materials.databases.source import Source
from ray_fed.materials.predictions import Trained, inputs_of
from ray_fed.materials.trained_model import is_on_graphs
from ray_fed.model_library.cards import SHOWN_WITH_FAILURES, pack
from ray_fed.model_library.crystal_graph import METHOD, predict_structures
from ray_fed.model_library.descriptors import check_fingerprint, make_descriptor
from ray_fed.model_library.index import field_name, parse_query
from ray_fed.model_library.places import Copied, Report, difference, query_place, verify_place
from ray_fed.model_library.places import pull as pull_models
from ray_fed.model_library.places import push as push_models
from ray_fed.model_library.predictors import predict, require_one_number
from ray_fed.model_library.property_tables import materials_of
from ray_fed.model_library.store import Fault, Library
from ray_fed.model_library.transfer import Model
from ray_fed.model_library.transfer_model import METHOD as TRANSFER
from ray_fed.reporting.model_files import load_model
from ray_fed.reporting.writing import to_json, write_atomically

MAX_ROWS = 40
"""Rows of an answer on the terminal; a CSV file has them all."""
WITH_UNIT = ("mae", "rmse", "mse", "max_abs_error", "baseline_mae")
"""Fields in the unit of their property."""


def query(options: Mapping[str, Any], _command_line: Sequence[str]) -> int:
    """Print the models that answer a query."""
    names: list[str] | None = options["columns"].split(",") if options["columns"] else None
    if options["failures"] and names is None:
        names = list(SHOWN_WITH_FAILURES)
    found = answer(options, names)
    if options["csv"]:
        path = write_atomically(Path(options["csv"]), found.to_csv(index=False).encode())
        print(f"{len(found):,} models in {path}")
        return 0
    shown = found.head(MAX_ROWS).assign(**({"id": found["id"].str[:12]} if "id" in found else {}))
    print(_as_text(shown) if len(found) else "none")
    if len(found) > MAX_ROWS:
        print(f"... {len(found):,} models in all; add a limit, or write them with --csv FILE")
    _warn_of_units(options["query"], found)
    return 0


def _as_text(table: pd.DataFrame) -> str:
    return table.to_string(index=False, na_rep="-", float_format=lambda value: f"{value:.4g}")


def answer(options: Mapping[str, Any], names: list[str] | None) -> pd.DataFrame:
    """Return the answer of a library, or of another place without pulling a model."""
    text, place = options["query"], options["library"]
    if not is_elsewhere(place):
        library = Library.open(place)
        hidden = len(library.query("deprecated", ["id"]))
        if hidden and "deprecated" not in parse_query(text).fields:
            note(f"{hidden:,} deprecated models are left out; ask for them with: deprecated = true")
        return library.query(text, names, options["failures"])
    told = query_place(place, text, names)
    if told.read_cards:
        note(f"{told.read_cards:,} cards were read, which the index of {place} lacks; a push renews it")
    _tell_faults(told.faults)
    return told.table


def _warn_of_units(text: str, found: pd.DataFrame) -> None:
    """Say so where numbers of several units stand in one order."""
    order = re.search(r"order\s+by\s+(\w+)", text, re.IGNORECASE)
    units = set(found["unit"]) if "unit" in found else set()
    if order and field_name(order[1]) in WITH_UNIT and len(units) > 1:
        note(f"the order mixes {len(units)} units; order by relative_error, or ask for one property")


def _tell_faults(faults: Sequence[Fault]) -> None:
    for fault in faults[:MAX_ROWS]:
        print(f"{fault.id[:12]}  {fault.what}", file=sys.stderr)
    if len(faults) > MAX_ROWS:
        note(f"... {len(faults):,} faults in all")


def is_elsewhere(place: str) -> bool:
    """Whether a place is a URL, or a folder that a library was pushed to: it has models and no index."""
    path = Path(place).expanduser()
    return "://" in place or ((path / "models").is_dir() and not (path / "library.json").exists())


GROUPED = {"properties": ["property", "unit"], "sets": ["modelset", "material"], "methods": ["method", "descriptor"]}
"""Command -> what its table has a row for."""


def grouped(options: Mapping[str, Any], _command_line: Sequence[str], what: str) -> int:
    """Print one row per property, data set or method: models, the best of them, what they were trained on."""
    names = ["property", "unit", "modelset", "material", "method", "descriptor", "n_train", "relative_error"]
    found = answer({**options, "query": "", "failures": False}, names)
    if found.empty:
        print("none")
        return 0
    by = found.groupby(GROUPED[what], dropna=False)
    table = by.agg(
        models=("method", "size"), sets=("modelset", "nunique"), properties=("property", "nunique"),
        rows=("n_train", "max"), best_relative_error=("relative_error", "min"),
    )  # fmt: skip
    own = {"properties": "properties", "sets": "sets"}.get(what)
    print(_as_text(table.drop(columns=[own] if own else []).reset_index()))
    return 0


def properties(options: Mapping[str, Any], command_line: Sequence[str]) -> int:
    return grouped(options, command_line, "properties")


def sets(options: Mapping[str, Any], command_line: Sequence[str]) -> int:
    return grouped(options, command_line, "sets")


def methods(options: Mapping[str, Any], command_line: Sequence[str]) -> int:
    return grouped(options, command_line, "methods")


def summary(options: Mapping[str, Any], _command_line: Sequence[str]) -> int:
    """Print in a few lines what a library holds."""
    names = ["property", "modelset", "descriptor", "method", "federated", "transferred", "licence"]
    found = answer({**options, "query": "", "failures": False}, names)
    print(f"{options['library']}: {len(found):,} models of {found['property'].nunique()} properties "
          f"from {found['modelset'].nunique()} data sets")  # fmt: skip
    for name in ("method", "descriptor", "licence"):
        counts = found[name].value_counts()
        print(f"{name}: {', '.join(f'{count:,} {value}' for value, count in counts.items())}")
    print(f"federated: {np.count_nonzero(found['federated']):,}; learned from other models: "
          f"{np.count_nonzero(found['transferred']):,}")  # fmt: skip
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
    ids = ours.query(options["query"] or EVERYTHING, ["id"])["id"].tolist()
    return _told_copies(push_models(ours, options["to"], ids, progress()), options["to"])


EVERYTHING = "deprecated or not deprecated"
"""Deprecated models travel with their marks where all models are asked for."""


def progress() -> Report:
    """Return what says every few seconds how far a copy has come."""
    last = time.monotonic()

    def report(done: int, total: int) -> None:
        nonlocal last
        if time.monotonic() - last > TOLD_EVERY_SECONDS:
            last = time.monotonic()
            note(f"{done:,} of {total:,} models")

    return report


def _told_copies(copied: Copied, place: str) -> int:
    _tell_faults(copied.faults)
    print(f"{len(copied.ids):,} models copied to {place}")
    if copied.faults:
        print(f"{len(copied.faults):,} could not be copied; the same command tries them again")
    return 1 if copied.faults else 0


def pull(options: Mapping[str, Any], _command_line: Sequence[str]) -> int:
    """Copy models from elsewhere."""
    copied = pull_models(Library.create(options["library"]), options["origin"], options["ids"], progress())
    return _told_copies(copied, options["library"])


def verify(options: Mapping[str, Any], _command_line: Sequence[str]) -> int:
    """Check every file; returns 1 when something is wrong."""
    place = options["library"]
    if is_elsewhere(place):
        count, faults = verify_place(place, progress())
        _tell_faults(faults)
        print(f"{count:,} models, {len(faults)} faults" + ("; push them again to repair them" if faults else ""))
        return 1 if faults else 0
    ours = Library.open(place)
    faults = ours.verify()
    _tell_faults(faults)
    print(f"{len(ours):,} models, {len(faults)} faults")
    if faults and options["set_aside"]:
        print(f"{ours.set_aside(faults)} files are in {ours.path / 'damaged'}; pull the models again")
    elif faults:
        print("ray-fed library verify --set-aside moves damaged models out of the way")
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
    library = Library.open(options["library"])
    faults = library.reindex()
    _tell_faults(faults)
    print(f"{len(library):,} models in the index of {options['library']}")
    if faults:
        print(f"{len(faults)} damaged records are set aside in {library.path / 'damaged'}; pull the models again")
    return 1 if faults else 0


def deprecate(options: Mapping[str, Any], _command_line: Sequence[str]) -> int:
    """Mark a model as superseded."""
    ours = Library.open(options["library"])
    ours.deprecate(options["id"])
    print(f"{ours.resolve(options['id'])[:12]} is marked as deprecated: queries leave it out, push and pull tell it")
    return 0


def predict_file(options: Mapping[str, Any], _command_line: Sequence[str]) -> int:
    """Write predictions for a table; rows that cannot be read have a reason. Returns 1 when none could be."""
    file = Path(options["file"])
    path = Path(options["out"] or f"{file.name}.predictions.csv")
    check_place(path, file)
    model = Library.open(options["library"]).load(options["id"])
    card = model[1]
    raw = open_table(file, None)
    frame, _ = materials_of(raw, options["material_column"])
    if card.architecture.get("type") == TRANSFER:
        return by_transfer(model, frame, list(raw.columns), path, options["element_table"])
    if is_on_graphs(card):
        predicted, reasons = _predicted_on_graphs(Trained(*model), file)
    else:
        predicted, reasons = _predicted(model, frame, options["element_table"])
    usable = np.isfinite(predicted)
    told = {f"predicted_{card.property}": predicted, "unit": card.unit, "reason": reasons}
    table = frame[[name for name in frame if name in raw.columns]].assign(**told)
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
    if card.architecture.get("type") != TRANSFER:
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
