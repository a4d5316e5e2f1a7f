"""A transfer that ends in a model: the stack of `members`, with the source models it reads, in one pair of files.

array                      what
member.NAME.*              fitted members
source.NUMBER.*            arrays of a source model, as it was in the library
calibration.errors         sorted |y - prediction| of rows that neither members nor weights had seen, [n]
domain.mean, .scale        of the widest descriptor of the rows learned from

Intervals are split-conformal over the folds: prediction ± the ceil((n + 1) L)-th of the errors. They cover a share L of
rows like those learned from, on average over draws of rows; fewer rows than 1 / (1 - L) give no interval.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from ray_fed.config import require
from ray_fed.errors import DataError
from ray_fed.materials.domain import distances
from ray_fed.materials.features.composition import read_compositions
from ray_fed.materials.features.elements import SYMBOLS
from ray_fed.model_library.cards import regression_metrics
from ray_fed.model_library.descriptors import check_fingerprint, make_descriptor
from ray_fed.model_library.members import (
    Effort,
    FewRows,
    MemberInputs,
    Stack,
    fit_stack,
    inside,
    member_predictions,
    weighed,
    widest,
)
from ray_fed.model_library.property_tables import FORMULA, TRANSFORMS, PropertyTable
from ray_fed.model_library.selection import member_inputs
from ray_fed.model_library.transfer import Model, Prepared, source_features, source_table
from ray_fed.reporting.model_files import ModelCard
from ray_fed.reporting.writing import Plain

METHOD = "transfer_stack"
LEVELS = (0.8, 0.9)
USUAL = 0.99
"""Share of the rows learned from that is near; farther rows get a flag."""
FEW = 30
"""Rows below which the card warns."""


@dataclass(frozen=True)
class TransferPredictions:
    """What a transfer model says of new rows; NaN where a row has a reason."""

    values: np.ndarray
    """[rows], in the card's unit"""
    bounds: Mapping[float, tuple[np.ndarray, np.ndarray]]
    """Level -> (lower, upper), [rows]; NaN where too few rows were learned from."""
    flags: list[str]
    """Why a row is unlike those learned from; "" where nothing was found, which is no promise."""
    reasons: list[str]

    def columns(self, card: ModelCard) -> dict[str, object]:
        """Return the columns of a table of predictions; for a logarithm also what it stands for."""
        back = TRANSFORMS[card.target_transform][1]
        told: dict[str, object] = {}
        names = {f"predicted_{card.property}": self.values}
        for level, (lower, upper) in self.bounds.items():
            names |= {f"lower_{level:.0%}": lower, f"upper_{level:.0%}": upper}
        for name, values in names.items():
            told[name] = values
            if card.target_transform != "identity":
                told[f"{name} (no {card.target_transform})"] = back(values)
        return {**told, "unit": card.unit, "flag": self.flags, "reason": self.reasons}


def fit_transfer_model(
    table: PropertyTable, prepared: Prepared, effort: Effort, layers: str
) -> tuple[Stack, dict[str, np.ndarray], ModelCard]:
    """Learn from all rows of a target; returns the stack, and arrays and card of the model."""
    inputs = member_inputs(prepared.target, prepared.sources)
    stack = fit_stack(FewRows(inputs, prepared.target.values, prepared.target.groups), effort)
    columns = widest(prepared.target.descriptors)
    scale = np.where(columns.std(0) > 1e-12, columns.std(0), 1.0)
    arrays: dict[str, np.ndarray] = {f"member.{name}": values for name, values in stack.arrays.items()}
    for number, (tensors, _) in enumerate(prepared.models):
        arrays |= {f"source.{number}.{name}": np.asarray(values) for name, values in tensors.items()}
    arrays["calibration.errors"] = np.sort(np.abs(stack.out_of_fold["stack"] - stack.targets))
    arrays |= {"domain.mean": columns.mean(0), "domain.scale": scale}
    arrays |= {"scaler.mean": np.zeros(0), "scaler.scale": np.ones(0)}
    return stack, arrays, _card(table, prepared, stack, effort, layers, distances((columns - columns.mean(0)) / scale))


def _card(
    table: PropertyTable, prepared: Prepared, stack: Stack, effort: Effort, layers: str, apart: np.ndarray
) -> ModelCard:
    count = len(stack.targets)
    elements = sorted(_elements(table.frame[FORMULA].tolist()) if FORMULA in table.frame else ())
    tables = sorted({source_table(card) for _, card in prepared.models})
    limits: dict[str, Plain] = {
        "intervals": f"conformal over {effort.folds} folds of {count} rows, levels {LEVELS}",
        "promise": "intervals cover rows like those learned from; of flagged rows they promise nothing",
        "secrecy": "the model holds features of the rows learned from, from which their formulas can be told",
    }
    if count < FEW:
        limits["warning"] = f"learned from {count} rows: errors by cross-validation are themselves uncertain by a third"
    return ModelCard(
        name=f"{table.property_name} by transfer from {len(prepared.models)} models",
        property=table.property_name,
        unit=table.unit,
        descriptor={"name": "+".join(prepared.target.descriptors), "table_hash": METHOD, "options": {}},
        feature_names=(),
        architecture={
            "type": METHOD, "weights": dict(stack.weights), "layers": layers, "elements": list(elements),
            "descriptors": {name: prepared.fingerprints[name] for name in prepared.target.descriptors},
            "farthest": float(np.quantile(apart, USUAL)), "source_tables": list(tables),
            "sources": [_source_record(card) for _, card in prepared.models],
        },
        hyperparameters={"folds": effort.folds, "best": effort.best, "num_trees": effort.num_trees},
        seed=effort.seed,
        data=(dict(table.fingerprint()),),  # type: ignore[arg-type]
        split={"how": "grouped cross-validation", "folds": effort.folds, "seed": effort.seed},
        metrics={
            "train": {"n": count},
            "test": regression_metrics(stack.targets, stack.out_of_fold["stack"], float(np.median(stack.targets))),
            "no transfer": {"mae": stack.error("direct"), "n": count},
        },
        target_transform=table.transform,
        limits=limits,
        licence=table.licence,
        citation=table.citation,
    )  # fmt: skip


def _source_record(card: ModelCard) -> dict[str, Plain]:
    """Return what a prediction needs of a source's card, and who it is."""
    return {
        "id": card.id, "property": card.property, "unit": card.unit, "licence": card.licence,
        "table": source_table(card),
        "descriptor": str(card.descriptor["name"]), "type": str(card.architecture["type"]),
        "num_features": len(card.feature_names), "scaler": list(card.scaler_tensors),
        "input_clip": card.hyperparameters.get("input_clip"), "targets": [dict(target) for target in card.targets],
        "target_tensors": list(card.target_tensors), "hidden": card.architecture.get("hidden"),
        "transform": card.target_transform,
    }  # fmt: skip


def _source_card(record: Mapping[str, Plain]) -> ModelCard:
    clip = record["input_clip"]
    table = str(record["table"]).rsplit("/", 1)[0]
    architecture: dict[str, Plain] = {"type": record["type"], "hidden": record["hidden"], "activation": "relu"}
    return ModelCard(
        name="", property=str(record["property"]), unit=str(record["unit"]), descriptor={"name": record["descriptor"]},
        feature_names=("",) * int(str(record["num_features"])), architecture=architecture,
        hyperparameters={} if clip is None else {"input_clip": clip}, seed=0, data=({"name": table},), split={},
        metrics={}, target_transform=str(record["transform"]), scaler_tensors=tuple(record["scaler"]),  # type: ignore
        targets=tuple(record["targets"]), target_tensors=tuple(record["target_tensors"]), software={},  # type: ignore
        id=str(record["id"]),
    )  # fmt: skip


def predict_transfer(
    arrays: Mapping[str, np.ndarray], card: ModelCard, frame: pd.DataFrame, element_table: str | None = None
) -> TransferPredictions:
    """Return predictions with intervals and flags for a table with a column `formula` or `smiles`.

    DataError where a descriptor cannot read the table, or has other element properties than the model was made with.
    """
    require(card.architecture.get("type") == METHOD, f"model {card.id[:12]} is no transfer model")
    columns, reasons = _columns(card, frame, element_table)
    usable = np.flatnonzero([not reason for reason in reasons])
    values, flags = np.full(len(frame), np.nan), [""] * len(frame)
    if len(usable):
        columns = {name: table[usable] for name, table in columns.items()}
        models: list[Model] = [
            (inside(arrays, f"source.{number}."), _source_card(record))
            for number, record in enumerate(_list(card.architecture["sources"]))
        ]
        sources = source_features(models, columns, str(card.architecture["layers"]))
        inputs = MemberInputs(columns, sources.predictions, sources.groups)
        weights = {name: float(str(value)) for name, value in _mapping(card.architecture["weights"]).items()}
        values[usable] = weighed(member_predictions(inside(arrays, "member."), inputs), weights)
        for row, flag in zip(usable.tolist(), _flags(arrays, card, frame.iloc[usable], columns), strict=True):
            flags[row] = flag
    errors = arrays["calibration.errors"]
    halves = {level: conformal_half(errors, level) for level in LEVELS}
    bounds = {level: (values - half, values + half) for level, half in halves.items()}
    return TransferPredictions(values, bounds, flags, reasons)


def conformal_half(errors: np.ndarray, level: float) -> float:
    """Return half the width of an interval of a level from sorted errors [n]; NaN where n is too small for it."""
    rank = math.ceil((len(errors) + 1) * level)
    return float(errors[rank - 1]) if rank <= len(errors) else float("nan")


def _columns(
    card: ModelCard, frame: pd.DataFrame, element_table: str | None
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Return raw features by descriptor, and why rows cannot be read."""
    columns, reasons = {}, [""] * len(frame)
    for name, fingerprint in _mapping(card.architecture["descriptors"]).items():
        descriptor = make_descriptor(name, element_table)
        check_fingerprint(descriptor, {"table_hash": fingerprint}, card.id)
        if not descriptor.reads(frame):
            there = ", ".join(map(str, frame.columns))
            raise DataError(f"the model reads {descriptor.column!r}; the table has: {there}")
        columns[name], told = descriptor.transform(frame)
        bad = ~np.isfinite(columns[name]).all(axis=1)
        reasons = [
            reason or why or ("features are not finite" if wrong else "")
            for reason, why, wrong in zip(reasons, told, bad.tolist(), strict=True)
        ]
    return columns, reasons


def _flags(
    arrays: Mapping[str, np.ndarray], card: ModelCard, frame: pd.DataFrame, columns: Mapping[str, np.ndarray]
) -> list[str]:
    known, farthest = set(_list(card.architecture["elements"])), float(str(card.architecture["farthest"]))
    apart = distances((widest(columns) - arrays["domain.mean"]) / arrays["domain.scale"])
    formulas = frame[FORMULA].tolist() if FORMULA in frame and known else [None] * len(frame)
    flags = []
    for formula, distance in zip(formulas, apart.tolist(), strict=True):
        new = sorted(_elements([formula]) - known) if formula is not None else []
        told = [f"{', '.join(new)} in no row learned from"] if new else []
        if distance > farthest:
            told.append(f"{distance:.1f} deviations from the rows learned from, usual {farthest:.1f}")
        flags.append("; ".join(told))
    return flags


def _elements(formulas: Sequence[str]) -> set[str]:
    rows, _ = read_compositions(formulas)
    return {SYMBOLS[number - 1] for number in np.unique(rows.atomic_numbers).tolist()}


def _list(value: Plain) -> list:
    assert isinstance(value, list | tuple)
    return list(value)


def _mapping(value: Plain) -> dict:
    assert isinstance(value, Mapping)
    return dict(value)
