"""Cards of a library: `ModelCard` of ray_fed.reporting, packed with its weights, and as one row of the index.

field          type     from the card
FIELDS below: what a query may ask for. ALIASES: XenonPy.MDL's names for the same things. The metrics on a card are
those of XenonPy.MDL: how good a model is on rows it has not seen.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np

from ray_fed.errors import ConfigError, DataError, Trouble
from ray_fed.reporting.environment import software_versions
from ray_fed.reporting.model_files import ModelCard, read_card, serialised, tensors_of
from ray_fed.reporting.writing import Plain, to_json

HELD_OUT_ERROR = "mae"
"""What models are compared by, relative to `BASELINE_ERROR`."""
BASELINE_ERROR = "baseline_mae"
"""Of predicting the training median."""
SHOWN = (
    "id", "property", "unit", HELD_OUT_ERROR, "relative_error", "r2", "descriptor", "method", "n_train", "n_test",
    "modelset",
)  # fmt: skip
"""Columns of an answer if none are asked for."""
SHOWN_WITH_FAILURES = (
    "id", "succeed", "property", "descriptor", "method", "modelset", HELD_OUT_ERROR, "unit", "reason",
)  # fmt: skip
SEARCHED = ("property", "descriptor", "method", "modelset", HELD_OUT_ERROR, "relative_error", "r2", "succeed")
"""Columns with an index of their own."""


@dataclass(frozen=True)
class PackedModel:
    """A model as it is stored in a library: bytes that any process may copy to any store."""

    id: str
    """sha256 over weights and card; also the name of its files."""
    weights: bytes
    """safetensors"""
    card: bytes
    """JSON"""
    row: Mapping[str, Any]
    """The card as a row of the index."""


@dataclass(frozen=True)
class Failure:
    """A model that could not be trained: what was tried and why it failed."""

    property: str
    unit: str
    descriptor: str
    method: str
    modelset: str
    seed: int
    reason: str

    def digest(self) -> str:
        """Return the id of this record."""
        return hashlib.sha256(to_json(vars(self))).hexdigest()

    def row(self) -> dict[str, Any]:
        """Return the failure as a row of the index."""
        empty = dict.fromkeys(FIELDS)
        return {**empty, **vars(self), "id": self.digest(), "succeed": 0, "deprecated": 0, "regression": 1}


@dataclass(frozen=True)
class IndexField:
    """A column of the index."""

    kind: str
    """TEXT | REAL | INTEGER | BOOL"""
    meaning: str
    read: Callable[[ModelCard], Any]


def _metric(name: str) -> Callable[[ModelCard], Any]:
    return lambda card: card.metrics.get("test", {}).get(name)


def relative_error(card: ModelCard) -> float | None:
    """Return a model's held-out MAE over that of predicting the training median: it has no unit. None where its card
    does not say."""
    test = card.metrics.get("test", {})
    error, baseline = test.get(HELD_OUT_ERROR), test.get(BASELINE_ERROR)
    if not isinstance(error, float) or not isinstance(baseline, float) or baseline <= 0:
        return None
    return error / baseline


def _number(mapping: Mapping[str, Plain], key: str) -> Any:
    value = mapping.get(key)
    return value if isinstance(value, int | float) else None


def _is_transferred(card: ModelCard) -> int:
    return int(bool(card.parent or card.architecture.get("sources")))


FIELDS: Mapping[str, IndexField] = {
    "id": IndexField("TEXT", "hash of weights and card", lambda card: card.id),
    "name": IndexField("TEXT", "short name", lambda card: card.name),
    "property": IndexField("TEXT", "what is predicted", lambda card: card.property),
    "unit": IndexField("TEXT", "of prediction and errors", lambda card: card.unit),
    "transform": IndexField("TEXT", "of the target before training", lambda card: card.target_transform),
    "descriptor": IndexField("TEXT", "name of the input features", lambda card: card.descriptor.get("name")),
    "table_hash": IndexField("TEXT", "fingerprint of the features", lambda card: card.descriptor.get("table_hash")),
    "method": IndexField("TEXT", "mlp, random_forest, ...", lambda card: card.architecture.get("type")),
    "num_parameters": IndexField(
        "INTEGER", "weights and biases, or nodes", lambda card: _number(card.architecture, "num_parameters")
    ),
    "depth": IndexField("INTEGER", "hidden layers", lambda card: _number(card.architecture, "depth")),
    "modelset": IndexField(
        "TEXT", "data set it was trained on", lambda card: card.data[0].get("name") if card.data else None
    ),
    "material": IndexField(
        "TEXT", "inorganic, polymer, molecule", lambda card: card.data[0].get("material") if card.data else None
    ),
    "n_train": IndexField("INTEGER", "training rows", lambda card: card.metrics.get("train", {}).get("n")),
    "n_test": IndexField("INTEGER", "held-out rows", lambda card: card.metrics.get("test", {}).get("n")),
    "mae": IndexField("REAL", "mean absolute error, held out, in unit", _metric("mae")),
    "rmse": IndexField("REAL", "root mean square error, held out, in unit", _metric("rmse")),
    "mse": IndexField("REAL", "mean square error, held out, in unit squared", _metric("mse")),
    "r2": IndexField("REAL", "coefficient of determination, held out", _metric("r2")),
    "max_abs_error": IndexField("REAL", "largest error, held out, in unit", _metric("max_abs_error")),
    "pearson": IndexField("REAL", "Pearson correlation, held out", _metric("pearson")),
    "spearman": IndexField("REAL", "Spearman correlation, held out", _metric("spearman")),
    "p_value": IndexField("REAL", "of the Pearson correlation", _metric("p_value")),
    "baseline_mae": IndexField("REAL", "of predicting the training median", _metric("baseline_mae")),
    "relative_error": IndexField("REAL", "mae over baseline_mae: comparable between units", relative_error),
    "seed": IndexField("INTEGER", "of initial weights", lambda card: card.seed),
    "parent": IndexField("TEXT", "id of the model it was trained from", lambda card: card.parent or None),
    "transferred": IndexField("BOOL", "learned from other models", _is_transferred),
    "federated": IndexField("BOOL", "trained over silos", lambda card: int("strategy" in card.federation)),
    "succeed": IndexField("BOOL", "false: a row with a reason and no model", lambda _: 1),
    "reason": IndexField("TEXT", "why it failed", lambda _: None),
    "deprecated": IndexField("BOOL", "superseded (library deprecate)", lambda _: 0),
    "regression": IndexField("BOOL", "all models are", lambda _: 1),
    "language": IndexField("TEXT", "always python", lambda _: "python"),
    "licence": IndexField("TEXT", "of the weights", lambda card: card.licence),
    "created": IndexField("TEXT", "ISO 8601, UTC", lambda card: card.created),
}
"""Name -> column of the index."""

ALIASES: Mapping[str, str] = {
    "meanAbsError": "mae", "maxAbsError": "max_abs_error", "meanSquareError": "mse", "rootMeanSquareError": "rmse",
    "pValue": "p_value", "spearmanCorr": "spearman", "pearsonCorr": "pearson", "isRegression": "regression",
    "lang": "language", "license": "licence", "model_type": "method", "target_transform": "transform",
}  # fmt: skip
"""XenonPy.MDL's field names and other spellings -> ours."""


def index_row(card: ModelCard) -> dict[str, Any]:
    """Return a card as a row of the index."""
    return {name: field.read(card) for name, field in FIELDS.items()}


@cache
def versions() -> Mapping[str, str]:
    """Return the software versions, read once: thousands of cards hold the same."""
    return software_versions()


def pack(arrays: Mapping[str, np.ndarray], card: ModelCard) -> PackedModel:
    """Return a model as bytes with its hashes filled in; the same pair of files that `save_model` writes.

    ConfigError when the arrays of the scaler are missing or do not fit.
    """
    for name in card.scaler_tensors:
        if name not in arrays or arrays[name].shape != (len(card.feature_names),):
            raise ConfigError(f"model '{card.name}': array {name!r} must have {len(card.feature_names)} numbers")
    weights = serialised(arrays)
    card = replace(card, weights_sha256=hashlib.sha256(weights).hexdigest(), id="")
    card = replace(card, id=card.digest())
    return PackedModel(card.id, weights, to_json(card.to_mapping(), indent=1) + b"\n", index_row(card))


def unpack(weights: bytes, card_bytes: bytes, where: str, expected_id: str = "") -> tuple[dict, ModelCard]:
    """Return arrays and card after checking every hash; DataError names `where` and what does not fit."""
    card = read_filed_card(card_bytes, where, expected_id)
    found = hashlib.sha256(weights).hexdigest()
    if found != card.weights_sha256:
        raise DataError(
            f"{where}: weights have sha256 {found[:12]}..., the card says {card.weights_sha256[:12]}...; "
            "they were changed or cut: pull the model again",
            failure=Trouble.FILE_DAMAGED,
        )
    return tensors_of(weights, where), card


def read_filed_card(content: bytes, where: str, expected_id: str = "") -> ModelCard:
    """Return a card whose hash is right, and is the one it is filed under; DataError otherwise."""
    card = read_card(content, where)
    if expected_id not in ("", card.id):
        raise DataError(f"{where}: the card does not have the hash it is filed under; pull the model again")
    return card


def regression_metrics(wanted: np.ndarray, predicted: np.ndarray, training_median: float) -> dict[str, float | int]:
    """Return mae, mse, rmse, r2, max_abs_error, pearson, spearman, p_value, baseline_mae and n.

    wanted, predicted  [rows] in one unit
    training_median    prediction of a model without features

    Correlations of constant predictions are NaN; JSON writes them as null.
    """
    from scipy.stats import rankdata

    error = predicted - wanted
    spread = float(np.square(wanted - wanted.mean()).sum())
    r = correlation(wanted, predicted)
    return {
        "n": len(wanted),
        "mae": float(np.abs(error).mean()),
        "mse": float(np.square(error).mean()),
        "rmse": float(np.sqrt(np.square(error).mean())),
        "r2": 1 - float(np.square(error).sum()) / spread if spread > 0 else float("nan"),
        "max_abs_error": float(np.abs(error).max()),
        "pearson": r,
        "spearman": correlation(rankdata(wanted), rankdata(predicted)),
        "p_value": _p_value(r, len(wanted)),
        "baseline_mae": float(np.abs(wanted - training_median).mean()),
    }


def correlation(x: np.ndarray, y: np.ndarray) -> float:
    """Return Pearson's r; NaN when one side is constant."""
    x, y = x - x.mean(), y - y.mean()
    scale = float(np.sqrt(np.square(x).sum() * np.square(y).sum()))
    return float(np.clip((x * y).sum() / scale, -1, 1)) if scale > 0 else float("nan")


def _p_value(r: float, n: int) -> float:
    """Return the two-sided p of Pearson's r over n rows (Student's t with n - 2 degrees of freedom)."""
    from scipy.special import betainc

    if n < 3 or not np.isfinite(r):
        return float("nan")
    return float(betainc(n / 2 - 1, 0.5, max(0.0, 1 - r * r)))
