"""What a property task learns: names, units, transforms and classes of its targets; from columns of a table to numbers
for a loss, and from outputs of a network back to what people read.

    column of a table --labels--> targets [rows, T], in the federation's unit, or numbers of classes; NaN where missing
    targets --forward, then the federation's scaler--> what the network learns
    outputs of the network [rows, O] --predicted_values--> [rows, W] values in the unit, chances of classes

T counts targets. A regression target and one of two classes have one output, one of K classes has K. A regression
target has one value, one of K classes K chances.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
import torch
from torch.nn import functional

from ray_fed.config import require, unknown_name
from ray_fed.errors import ConfigError, DataError, Trouble
from ray_fed.federation.reasons import OUTSIDE
from ray_fed.learning.standardisation import ColumnMoments, Standardizer
from ray_fed.materials.databases.columns import MISSING_TEXTS, require_numbers, to_numbers
from ray_fed.materials.databases.database import MAX_TARGET
from ray_fed.materials.units import UNKNOWN_UNIT, converted

Kind = Literal["regression", "classification"]
MAX_PREDICTION = 1e30
"""A network that diverges under a logarithm must not give infinity, of which no mean can be told."""
MOST_CLASSES = 64
MOST_TARGETS = 32
LONGEST_LABEL = 64
TWO_CLASSES = ("false", "true")
TRUTH = {"false": "false", "no": "false", "0": "false", "true": "true", "yes": "true", "1": "true"}


# ---- transforms


@dataclass(frozen=True)
class Transform:
    """What is done to a target before training, and undone in every number that is shown."""

    forward: Callable[[np.ndarray], np.ndarray]
    inverse: Callable[[np.ndarray], np.ndarray]
    above: float = -np.inf
    """Values must lie above it."""


def _same(values: np.ndarray) -> np.ndarray:
    return values


TRANSFORMS: dict[str, Transform] = {
    "none": Transform(_same, _same),
    "log10": Transform(np.log10, lambda values: 10.0 ** np.clip(values, -300, 30), 0.0),
    "log1p": Transform(np.log1p, lambda values: np.expm1(np.clip(values, -300, 69)), -1.0),
    "sqrt": Transform(np.sqrt, lambda values: np.square(np.clip(values, 0, 1e15)), -np.finfo(np.float64).tiny),
    "asinh": Transform(np.arcsinh, lambda values: np.sinh(np.clip(values, -69, 69))),
}
"""Name -> what it does; log10 for what spans orders of magnitude, log1p and sqrt with zeros, asinh with both signs."""


# ---- targets


@dataclass(frozen=True)
class Target:
    """One property to learn. ConfigError for what makes no sense."""

    name: str
    """What all silos call it."""
    unit: str = UNKNOWN_UNIT
    """Unit of every value that is shown; a silo with another one is converted."""
    transform: str = "none"
    """One of TRANSFORMS; undone in what is shown."""
    classes: tuple[str, ...] = ()
    """Labels, in the order of their numbers; empty for a number to learn."""

    def __post_init__(self) -> None:
        if self.transform not in TRANSFORMS:
            raise unknown_name("transform", self.transform, TRANSFORMS)
        require(not self.classes or self.transform == "none", f"{self.name}: classes have no transform")
        few = len(self.classes) != 1 and len(self.classes) <= MOST_CLASSES
        require(few, f"{self.name}: classes={self.classes} must be 2 to {MOST_CLASSES} labels")
        require(len(set(self.classes)) == len(self.classes), f"{self.name}: classes={self.classes} must differ")
        short = all(0 < len(label) <= LONGEST_LABEL for label in self.classes)
        require(short, f"{self.name}: labels of classes must have 1 to {LONGEST_LABEL} characters")

    @property
    def kind(self) -> Kind:
        return "classification" if self.classes else "regression"

    @property
    def num_outputs(self) -> int:
        """Outputs of the network."""
        return len(self.classes) if len(self.classes) > 2 else 1

    @property
    def num_values(self) -> int:
        """Numbers of a prediction."""
        return len(self.classes) or 1

    @property
    def key(self) -> str:
        """The name as part of a metric's name: letters, digits and what a metric may have."""
        plain = re.sub(r"[^A-Za-z0-9_-]", "_", self.name)[:40]
        return plain if plain[:1].isalpha() else f"t_{plain}"

    @property
    def words(self) -> str:
        """How people say it: "formation energy"."""
        return self.name.removesuffix("_per_atom").replace("_", " ")

    @property
    def shown_unit(self) -> str:
        """The unit as it stands in titles; "" for pure numbers and classes."""
        return "" if self.classes or self.unit == "dimensionless" else self.unit

    @property
    def heading(self) -> str:
        """How an axis or a column of it is called: "band gap (eV)"."""
        return f"{self.words} ({self.shown_unit})" if self.shown_unit else self.words

    def agreed_as(self, name: str) -> str:
        """Return the text by which silos compare what they hold: this target, under the name that the silo's has."""
        if self.classes:
            return f"{name} {{{', '.join(self.classes)}}}"
        return f"{name} [{self.unit}]" + (f" {self.transform}" if self.transform != "none" else "")


# ---- from columns to labels


def labels(
    columns: Sequence[pd.Series], targets: Sequence[Target], units: Sequence[str]
) -> tuple[np.ndarray, list[str]]:
    """Return (targets [rows, T], NaN where there is none; why a row has none at all, or "").

    columns: what the source has for each target. units: of these columns, "" for classes. DataError where a unit cannot
    be converted, or a column holds no such thing.
    """
    found = [_labels(*each) for each in zip(columns, targets, units, strict=True)]
    values = np.column_stack([each for each, _ in found])
    reasons = [""] * len(values)
    for row in np.flatnonzero(np.isnan(values).all(axis=1)).tolist():
        reasons[row] = next((why[row] for _, why in found if row in why), "target is missing")
    return values, reasons


def _labels(column: pd.Series, target: Target, unit: str) -> tuple[np.ndarray, dict[int, str]]:
    return _classes(column, target) if target.classes else _numbers(column, target, unit)


def _numbers(column: pd.Series, target: Target, unit: str) -> tuple[np.ndarray, dict[int, str]]:
    values, reasons = to_numbers(column, "target")
    require_numbers(column, values, reasons, target.name)
    values = in_unit(values, unit, target)
    transform = TRANSFORMS[target.transform]
    with np.errstate(invalid="ignore"):
        outside, huge = ~(values > transform.above) & ~np.isnan(values), ~(np.abs(values) <= MAX_TARGET)
    problems = dict.fromkeys(np.flatnonzero(outside).tolist(), f"{OUTSIDE} {target.transform}")
    problems |= dict.fromkeys(np.flatnonzero(np.isinf(values)).tolist(), "target is not finite")
    problems |= dict.fromkeys(np.flatnonzero(huge & np.isfinite(values)).tolist(), f"target is beyond {MAX_TARGET:g}")
    return np.where(outside | huge, np.nan, values), problems | reasons


def in_unit(values: np.ndarray, unit: str, target: Target) -> np.ndarray:
    """Return values [n] in the target's unit; DataError names both units where that cannot be done."""
    try:
        return converted(values, unit, target.unit)
    except ConfigError as error:
        remedy = "say the column's true unit, or convert it" if unit != UNKNOWN_UNIT else "say which unit it has"
        text = f"its target {target.name!r} is in '{unit}', the federation's in '{target.unit}': {error}; {remedy}"
        raise DataError(text, failure=Trouble.WRONG_UNIT) from error


def _classes(column: pd.Series, target: Target) -> tuple[np.ndarray, dict[int, str]]:
    codes = {label: float(code) for code, label in enumerate(target.classes)}
    texts = label_texts(column)
    if target.classes == TWO_CLASSES:
        texts = [TRUTH.get(text.casefold(), text) for text in texts]
    values = np.array([codes.get(text, np.nan) for text in texts])
    unknown = {row: "label is none of the classes" for row, text in enumerate(texts) if text and text not in codes}
    return values, unknown


def label_texts(column: pd.Series) -> list[str]:
    """Return the label of each row as text, whole numbers without a point; "" where it is missing."""
    return ["" if value is None or value is pd.NA or value != value else _label(value) for value in column.tolist()]


def _label(value: object) -> str:
    if isinstance(value, bool | np.bool_):
        return str(bool(value)).lower()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    text = str(value).strip()
    return "" if text.casefold() in MISSING_TEXTS else text


# ---- what the network learns


def transformed(values: np.ndarray, targets: Sequence[Target]) -> np.ndarray:
    """Return targets [rows, T] as the network learns them, before the scaler; NaN stays, and classes do."""
    columns = [TRANSFORMS[target.transform].forward(values[:, at]) for at, target in enumerate(targets)]
    return np.column_stack(columns)


def moment_columns(values: np.ndarray, targets: Sequence[Target]) -> np.ndarray:
    """Return columns [rows, 2 R] for the moments of R regression targets: each transformed, 0 where it is missing; then
    for each 1 where it is there. The sums of the second say how many numbers stand behind those of the first."""
    learned = transformed(values, targets)[:, [not target.classes for target in targets]]
    return np.hstack([np.nan_to_num(learned), ~np.isnan(learned)]).astype(np.float64)


def target_scaler(moments: ColumnMoments, targets: Sequence[Target]) -> Standardizer:
    """Return mean and standard deviation of the R regression targets from moments of their `moment_columns`; DataError
    names one that does not vary."""
    num_targets = len(moments.digits) // 2
    counts = np.rint(moments.mean[num_targets:] * moments.num_examples).astype(int).tolist()
    parts = [ColumnMoments(count, moments.digits[at : at + 1]) for at, count in enumerate(counts)]
    for target, part in zip((target for target in targets if not target.classes), parts, strict=True):
        if part.num_examples > 1 and part.is_constant[0]:
            # "in all but a few": of columns in which fewer rows differ than an owner tells of, nothing is told.
            said = "has one value in all, or all but a few, of the silos' rows: nothing to learn; is the column right?"
            raise DataError(f"target {target.name!r} {said}", failure=Trouble.VALUE_UNUSABLE)
    scalers = [Standardizer.from_moments(part) for part in parts]
    return Standardizer(*(np.array([getattr(one, name)[0] for one in scalers]) for name in ("mean", "scale")))


def learned_values(values: np.ndarray, targets: Sequence[Target], scaler: Standardizer | None) -> np.ndarray:
    """Return targets [rows, T] as the loss compares them with outputs."""
    learned = transformed(values, targets)
    if scaler is not None:
        numbers = [at for at, target in enumerate(targets) if not target.classes]
        learned[:, numbers] = (learned[:, numbers] - scaler.mean) / scaler.scale
    return learned


def predicted_values(outputs: np.ndarray, targets: Sequence[Target], scaler: Standardizer | None) -> np.ndarray:
    """Return what outputs of the network [rows, O] say, [rows, W]: numbers in the targets' units, chances of classes.

    The one way from a network to people: scores, predictions, figures and intervals all go through it.
    """
    if scaler is None and all(target.transform == "none" and not target.classes for target in targets):
        return outputs
    parts, start, number = [], 0, 0
    for target in targets:
        part = np.asarray(outputs[:, start : start + target.num_outputs], np.float64)
        start += target.num_outputs
        if target.classes:
            parts.append(_chances(part))
            continue
        if scaler is not None:
            part = part * scaler.scale[number] + scaler.mean[number]
        number += 1
        inverse = TRANSFORMS[target.transform].inverse
        parts.append(np.clip(inverse(part), -MAX_PREDICTION, MAX_PREDICTION))
    return np.hstack(parts)


def _chances(logits: np.ndarray) -> np.ndarray:
    """Return the chance of each class [rows, K] for one logit (of the second of two) or K."""
    if logits.shape[1] == 1:
        logits = np.hstack([np.zeros_like(logits), logits])
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True)


def values_by_target(predicted: np.ndarray, targets: Sequence[Target]) -> list[np.ndarray]:
    """Return the columns of `predicted_values` [rows, W] of each target."""
    return np.split(predicted, np.cumsum([target.num_values for target in targets])[:-1], axis=1)


def prediction_columns(predicted: np.ndarray, targets: Sequence[Target]) -> dict[str, np.ndarray]:
    """Return the columns of a table of predictions [rows, W]: "predicted_band_gap", a number or the likeliest label;
    and the chance of each class."""
    columns: dict[str, np.ndarray] = {}
    for target, values in zip(targets, values_by_target(predicted, targets), strict=True):
        if not target.classes:
            columns[f"predicted_{target.name}"] = values[:, 0]
            continue
        columns[f"predicted_{target.name}"] = np.array(target.classes, object)[values.argmax(axis=1)]
        columns |= {f"probability_{target.name}_{label}": values[:, at] for at, label in enumerate(target.classes)}
    return columns


# ---- the loss


@dataclass(frozen=True)
class MaskedLoss:
    """Mean over targets of their mean losses over the labels that are there: squared error, or cross-entropy."""

    classes: tuple[int, ...]
    """Of each target; 0 for a number."""

    def __call__(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return a 0-d tensor; outputs [rows, O], targets [rows, T] with NaN where there is no label."""
        widths = [count if count > 2 else 1 for count in self.classes]
        parts = outputs.split(widths, dim=1)
        losses = [_masked(part, targets[:, at], self.classes[at]) for at, part in enumerate(parts)]
        return torch.stack(losses).mean()


def _masked(outputs: torch.Tensor, targets: torch.Tensor, num_classes: int) -> torch.Tensor:
    """Return the mean loss over the rows with a label; 0 without any. No branch depends on a value, so that a step can
    be captured and mapped."""
    there = ~torch.isnan(targets)
    known = torch.where(there, targets, torch.zeros_like(targets))
    if num_classes > 2:
        losses = functional.cross_entropy(outputs, known.long(), reduction="none")
    elif num_classes:
        losses = functional.binary_cross_entropy_with_logits(outputs[:, 0], known, reduction="none")
    else:
        losses = torch.square(outputs[:, 0] - known)
    weights = there.to(losses.dtype)
    return (losses * weights).sum() / weights.sum().clamp(min=1.0)
