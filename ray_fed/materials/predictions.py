"""Predictions of one model for a crystal frame: values, bounds, how uncertain they are, and what speaks against them.

columns of a table, T for the name of a target
predicted_T                     in the target's unit, or the likeliest class
uncertainty_T                   half of the 90 % interval, in the unit
lower_50_T, upper_50_T, ..._90  bounds between which the true value is in 50 and 90 of 100 rows like the silos'
probability_T_LABEL             chance of a class, calibrated where the silos counted
flag                            whether the input is unlike the silos' training rows
why_flagged                     in what; "" where nothing was found, and what was not looked at for want of counts
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from torch import nn

from ray_fed.errors import DataError
from ray_fed.learning.intervals import spread_of
from ray_fed.materials.card_entries import Arrays
from ray_fed.materials.chemical_groups import anion_classes
from ray_fed.materials.databases.database import SITES
from ray_fed.materials.databases.feature_cache import cache_folder
from ray_fed.materials.databases.source import Source
from ray_fed.materials.domain import flags, spread_flags
from ray_fed.materials.features.feature_sets import FeatureSet, make_feature_set
from ray_fed.materials.graphs.graph_rows import GraphRows
from ray_fed.materials.graphs.graph_task import with_sites
from ray_fed.materials.limits import ModelLimits, limits_of
from ray_fed.materials.property_task import as_read
from ray_fed.materials.row_counts import output_columns
from ray_fed.materials.targets import Target, predicted_values, prediction_columns, values_by_target
from ray_fed.materials.trained_model import (
    graph_rows,
    is_forest,
    is_on_graphs,
    is_personal,
    predict,
    raw_outputs,
    scalers_of,
    targets_of,
)
from ray_fed.reporting.model_files import ModelCard

WIDEST = "0.9"
"""The interval whose half is told as the uncertainty."""
FLAG, WHY_FLAGGED = "flag", "why_flagged"


@dataclass(frozen=True)
class Trained:
    """A trained model."""

    arrays: Arrays
    card: ModelCard
    network: type[nn.Module] | None = None
    """The user's own network, of a model that is such a one."""

    @property
    def targets(self) -> tuple[Target, ...]:
        return targets_of(self.card)

    @property
    def limits(self) -> ModelLimits:
        return limits_of(self.card.limits)

    @property
    def feature_set(self) -> FeatureSet:
        """The features as they were in training; DataError where this version makes others."""
        options = self.card.descriptor["options"]
        assert isinstance(options, dict)
        found = make_feature_set(str(self.card.descriptor["name"]), **options)
        if found.fingerprint() != self.card.descriptor["table_hash"]:
            raise DataError(
                f"the model was trained on {self.card.descriptor['name']} features of another version "
                f"({str(self.card.descriptor['table_hash'])[:12]} instead of {found.fingerprint()[:12]}); "
                f"install ray-fed {self.card.software.get('ray-fed', 'of that time')}"
            )
        return found

    @property
    def is_on_graphs(self) -> bool:
        return is_on_graphs(self.card)

    def as_read(self, source: Source) -> Source:
        """Return a source as this model wants it read."""
        source = as_read(source, self.feature_set)
        return with_sites(source) if self.is_on_graphs else source

    def outputs(self, inputs: "Inputs") -> np.ndarray:
        """Return the outputs of its network or forest for the usable rows, [rows, O]; of a silo's personal model what
        it says, [rows, W]."""
        features = inputs.usable_graphs if self.is_on_graphs else inputs.usable_features
        if is_personal(self.card):
            return predict(features, self.arrays, self.card, inputs.usable_formulas, self.network)
        return raw_outputs(features, self.arrays, self.card, self.network)

    def values(self, outputs: np.ndarray) -> np.ndarray:
        """Return what outputs say, [rows, W]."""
        if is_personal(self.card):
            return outputs
        return predicted_values(outputs, self.targets, scalers_of(self.arrays, self.card)[1])


@dataclass(frozen=True)
class Inputs:
    """Rows to predict."""

    frame: pd.DataFrame
    features: np.ndarray
    """float64 [rows, num_features]; NaN where a row cannot be used."""
    reasons: list[str]
    """Why a row cannot be used, "" where it can."""
    graphs: GraphRows | None = None
    """Beside the features, where the model wants them."""

    @property
    def usable_features(self) -> np.ndarray:
        return self.features[self.usable]

    @property
    def usable_formulas(self) -> list[str]:
        return self.frame["formula"][self.usable].tolist()

    @property
    def usable_graphs(self) -> GraphRows:
        assert self.graphs is not None
        return self.graphs[self.usable]

    @property
    def usable(self) -> np.ndarray:
        return np.array([reason == "" for reason in self.reasons], bool)


def inputs_of(frame: pd.DataFrame, model: Trained) -> Inputs:
    """Return the rows of a crystal frame with what a model takes of them."""
    features, reasons = model.feature_set.transform_with_reasons(frame)
    told = [given or found for given, found in zip(frame["reason"], reasons, strict=True)]
    if not model.is_on_graphs:
        return Inputs(frame, features, told)
    graphs, told = graph_rows(features, told, frame[SITES].tolist(), model.card, cache_folder())
    return Inputs(frame, features, told, graphs)


def predictions(inputs: Inputs, model: Trained, own: Mapping[str, Trained] | None) -> dict[str, np.ndarray]:
    """Return the columns of predictions, [rows] each, in the order of the frame; empty where a row cannot be used.

    own: the silos' own models by name that the model's intervals need (`ModelLimits.own_models`); None where one of
    them is not at hand: then there are no intervals.
    """
    usable, limits = inputs.usable, model.limits
    outputs = model.outputs(inputs)
    others = [own[name].outputs(inputs) for name in limits.own_models] if own is not None else []
    spreads = _spreads(model, outputs, others) if own is not None else {}
    columns = prediction_columns(_with_sureness(model.values(outputs), model), model.targets)
    columns |= _bounds(model, outputs, spreads, inputs.usable_formulas)
    said = _flags(inputs, model, spreads)
    columns |= {FLAG: np.array([bool(why) for why in said]), WHY_FLAGGED: np.array(said, object)}
    return {name: _among_all(values, usable) for name, values in columns.items()}


def interval_columns(target: str) -> dict[str, tuple[str, str]]:
    """Return level -> names of the columns of its bounds."""
    levels = {"0.5": "50", WIDEST: "90"}
    return {level: (f"lower_{shown}_{target}", f"upper_{shown}_{target}") for level, shown in levels.items()}


def _spreads(model: Trained, outputs: np.ndarray, own: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """Return target -> how far the silos' own models are from the model, [rows]."""
    numbers = [target.name for target in model.targets if not target.classes]
    return {
        name: spread_of(np.array([one[:, column] for one in own]), outputs[:, column])
        for name, column in zip(numbers, output_columns(model.targets), strict=True)
    }


def _with_sureness(values: np.ndarray, model: Trained) -> np.ndarray:
    """Return predicted values [rows, W] with calibrated chances."""
    parts, found = values_by_target(values, model.targets), model.limits.sureness
    pairs = zip(parts, model.targets, strict=True)
    return np.hstack([found[target.name].applied(part) if target.name in found else part for part, target in pairs])


def _bounds(
    model: Trained, outputs: np.ndarray, spreads: Mapping[str, np.ndarray], formulas: Sequence[str]
) -> dict[str, np.ndarray]:
    """Return the columns of bounds and uncertainties, in the targets' units."""
    columns: dict[str, np.ndarray] = {}
    chemistries, intervals = anion_classes(formulas), model.limits.intervals
    names = [target.name for target in model.targets if not target.classes]
    for name, column in zip(names, output_columns(model.targets), strict=True):
        if model.limits.why_none or name not in intervals or name not in spreads:
            continue
        found = intervals[name].bounds(np.asarray(outputs[:, column], np.float64), spreads[name], chemistries)
        shown = {level: _shown(model, outputs, column, name, both) for level, both in found.items()}
        columns[f"uncertainty_{name}"] = (shown[WIDEST][1] - shown[WIDEST][0]) / 2
        for level, (lower, upper) in interval_columns(name).items():
            columns |= {lower: shown[level][0], upper: shown[level][1]}
    return columns


def _shown(model: Trained, outputs: np.ndarray, column: int, target: str, both: np.ndarray) -> np.ndarray:
    """Return bounds [2, rows] of one output as values of its target; the transforms never decrease."""
    place = [one.name for one in model.targets].index(target)
    values = []
    for bound in both:
        changed = np.array(outputs, np.float64)
        changed[:, column] = bound
        values.append(values_by_target(model.values(changed), model.targets)[place][:, 0])
    return np.where(np.isfinite(both), np.stack(values), both)


def _flags(inputs: Inputs, model: Trained, spreads: Mapping[str, np.ndarray]) -> list[str]:
    """Return what speaks against each usable row, "" where nothing was found."""
    usable, domain = inputs.usable, model.limits.domain
    frame = inputs.frame.loc[usable].reset_index(drop=True)
    formulas, feature_set = frame["formula"].tolist(), model.feature_set
    scaler, of_targets = scalers_of(model.arrays, model.card)
    found = flags(
        frame, inputs.usable_features, feature_set.feature_labels(), domain,
        None if is_forest(model.card) or is_personal(model.card) else scaler, feature_set.num_imputed(formulas),
    )  # fmt: skip
    numbers = [target for target in model.targets if not target.classes]
    for place, target in enumerate(numbers):
        spread, bound = spreads.get(target.name), domain.largest_spread.get(target.name)
        if spread is None or bound is None:
            continue
        unit = target.shown_unit if target.transform == "none" else f"{target.transform} of {target.shown_unit}"
        size = 1.0 if of_targets is None else of_targets.scale[place]
        for row, reason in spread_flags(spread, bound, size, unit).items():
            found[row].append(reason)
    return ["; ".join(reasons) for reasons in found]


def _among_all(values: np.ndarray, usable: np.ndarray) -> np.ndarray:
    """Return values of usable rows among all rows [n]; the others have NaN, no flag, or "" of texts."""
    kinds = {"f": np.full(len(usable), np.nan), "b": np.zeros(len(usable), bool)}
    found = kinds.get(values.dtype.kind, np.full(len(usable), "", object)).copy()
    found[usable] = values
    return found
