"""From a library and a target table to frozen features of many sources.

`FrozenFeaturizer` takes the hidden layers of a trained network, before their activation (Yamada et al. 2019, Fig. 1: "a
subnetwork other than the output layer is used as a feature extractor").
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin

from ray_fed.errors import ConfigError, DataError
from ray_fed.model_library import predictors
from ray_fed.model_library.cards import relative_error
from ray_fed.model_library.descriptors import Descriptor, check_fingerprint, make_descriptor
from ray_fed.model_library.property_tables import PropertyTable
from ray_fed.model_library.selection import SourceFeatures, TransferTarget
from ray_fed.reporting.model_files import ModelCard


class FrozenFeaturizer(TransformerMixin, BaseEstimator):
    """Raw features of the model's descriptor in, linear outputs of its hidden layers (before ReLU, as in XenonPy) out;
    nothing is learned.

    model       (arrays, card) as `Library.load` returns them; method mlp
    layers      hidden layers counted from the output as XenonPy does: -1 is the last hidden layer, "all" takes all

    >>> FrozenFeaturizer(library.load("ab12"), layers=(-1, -2)).fit_transform(features)
    """

    def __init__(self, model: tuple[Mapping[str, np.ndarray], ModelCard], layers: Sequence[int] | str = (-1,)):
        self.model = model
        self.layers = layers

    def fit(self, X: object = None, y: object = None) -> "FrozenFeaturizer":  # noqa: ARG002
        """Check the options; nothing is learned from X."""
        self._positions()
        return self

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.requires_fit = False
        return tags

    def transform(self, X: np.ndarray) -> np.ndarray:
        """Return the chosen layers side by side, float32 [rows, units]; X is [rows, features of the descriptor]."""
        arrays, card = self.model
        predictors.check_width(card, X)
        inputs = predictors.standardised(arrays, card, np.asarray(X))
        hidden = predictors.forward(arrays, inputs)[:-1]
        return np.hstack([hidden[position] for position in self._positions()])

    def get_feature_names_out(self, input_features: object = None) -> np.ndarray:  # noqa: ARG002
        """Return names such as "L(-1)_3": layer counted from the output, unit from 1; object array [units]."""
        widths = self._widths()
        depth = len(widths)
        names = [f"L({at - depth})_{unit}" for at in self._positions() for unit in range(1, widths[at] + 1)]
        return np.array(names, dtype=object)

    def _widths(self) -> list[int]:
        arrays, card = self.model
        if card.architecture.get("type") != predictors.NETWORK:
            raise ConfigError(f"model {card.id[:12]} is a {card.architecture.get('type')}; only networks have layers")
        return [len(arrays[f"{2 * layer}.bias"]) for layer in range(predictors.num_layers(arrays) - 1)]

    def _positions(self) -> list[int]:
        """Return the chosen layers counted from the input, in the order asked for."""
        depth = len(self._widths())
        if self.layers == "all":
            return list(range(depth))
        wrong = [layer for layer in self.layers if not (isinstance(layer, int) and -depth <= layer <= -1)]
        if isinstance(self.layers, str) or wrong or not self.layers:
            raise ConfigError(f"layers={self.layers!r}: this network has hidden layers -{depth} to -1, or 'all'")
        return [depth + int(layer) for layer in self.layers]


Model = tuple[Mapping[str, np.ndarray], ModelCard]
FEWEST_ROWS = 15
OF_EVERY_USER = "rich"
"""Descriptor that the models without transfer have in any case: whoever has formulas has it."""


@dataclass(frozen=True)
class Prepared:
    """A target with what a library's models make of its rows."""

    target: TransferTarget
    sources: SourceFeatures
    skipped: Mapping[str, int]
    """Why models could not be used -> how many."""
    models: Sequence[Model]
    """Those that are used, in order."""
    fingerprints: Mapping[str, str]
    """Descriptor -> hash of all its numbers depend on."""
    rows: np.ndarray
    """Rows of the table that every descriptor could read."""


def target_and_sources(
    table: PropertyTable, models: Iterable[Model], layers: str = "last", element_table: str | None = None
) -> Prepared:
    """Return the target's rows that every descriptor can read, the sources' features of them, and what was skipped.

    Rows stay here: only models come in. DataError when no network can read the table.
    """
    readable, inputs, skipped = _readable(table, list(models), element_table)
    if not any(_is_network(card) for _, card in readable):
        said = "; ".join(f"{count} x {reason}" for reason, count in skipped.items()) or "none of method mlp was given"
        raise DataError(f"no networks among the sources can be used: {said}; choose others with --sources")
    usable = np.all([np.isfinite(values).all(axis=1) for values in inputs.values()], axis=0)
    if usable.sum() < FEWEST_ROWS:
        raise DataError(f"{table.key}: {usable.sum()} rows can be read by all descriptors of the sources; "
                        f"need {FEWEST_ROWS}")  # fmt: skip
    inputs = {name: inputs[name][usable] for name in sorted(inputs)}
    target = TransferTarget(inputs, table.frame["value"].to_numpy(float)[usable], table.groups[usable])
    fingerprints = {name: make_descriptor(name, element_table).fingerprint() for name in inputs}
    sources = source_features(readable, inputs, layers)
    return Prepared(target, sources, skipped, readable, fingerprints, np.flatnonzero(usable))


def source_features(models: Sequence[Model], inputs: Mapping[str, np.ndarray], layers: str) -> SourceFeatures:
    by_width: dict[int, list[tuple[np.ndarray, ModelCard]]] = defaultdict(list)
    by_table: dict[str, list[np.ndarray]] = defaultdict(list)
    for arrays, card in models:
        values = inputs[str(card.descriptor["name"])]
        by_table[source_table(card)].append(np.asarray(predictors.predict(arrays, card, values), np.float64))
        if _is_network(card):
            frozen = FrozenFeaturizer((arrays, card), "all" if layers == "all" else (-1,)).transform(values)
            by_width[frozen.shape[1]].append((frozen, card))
    groups = [by_width[width] for width in sorted(by_width)]
    cards = [card for group in groups for _, card in group]
    tables = tuple(sorted(by_table))
    return SourceFeatures(
        tuple(np.stack([frozen for frozen, _ in group]) for group in groups),
        tuple(card.id for card in cards),
        np.array([relative_error(card) for card in cards], float),
        np.stack([np.mean(by_table[name], 0) for name in tables], axis=1),
        tables,
    )


def source_table(card: ModelCard) -> str:
    """Return the data sets and the property that a model learned, as "DATASET/PROPERTY"; runs of silos have several."""
    names = sorted({str(source.get("name") or source.get("silo") or "") for source in card.data}) or [""]
    return f"{'+'.join(names)}/{card.property}"


def _is_network(card: ModelCard) -> bool:
    return card.architecture.get("type") == predictors.NETWORK


def _readable(
    table: PropertyTable, models: Sequence[Model], element_table: str | None
) -> tuple[list[Model], dict[str, np.ndarray], dict[str, int]]:
    """Return the models whose descriptor reads the table, raw features [rows, d] by descriptor, and reason -> count of
    the others. What no source needs, but a user without a library has, is among the features."""
    inputs: dict[str, np.ndarray] = {}
    descriptors: dict[str, Descriptor | str] = {}
    readable, reasons = [], Counter()
    for model in models:
        name = str(model[1].descriptor.get("name"))
        if name not in descriptors:
            descriptors[name] = _descriptor_for(table, name, element_table)
        reason = _why_not(descriptors[name], model[1])
        if reason:
            reasons[reason] += 1
        else:
            readable.append(model)
    for name in {str(card.descriptor["name"]) for _, card in readable} | {OF_EVERY_USER}:
        descriptor = descriptors.get(name) or _descriptor_for(table, name, element_table)
        if isinstance(descriptor, Descriptor):
            inputs[name] = descriptor.transform(table.frame)[0]
    return readable, inputs, dict(reasons)


def _descriptor_for(table: PropertyTable, name: str, element_table: str | None) -> Descriptor | str:
    """Return a descriptor, or why it does not read the table."""
    try:
        descriptor = make_descriptor(name, element_table)
    except ConfigError as error:
        return str(error)
    if descriptor.reads(table.frame):
        return descriptor
    return f"{name} reads {descriptor.column!r}, which {table.key} does not have"


def _why_not(descriptor: Descriptor | str, card: ModelCard) -> str:
    """Return why a model cannot be a source, "" for one that can."""
    method = str(card.architecture.get("type"))
    if isinstance(descriptor, str):
        return descriptor
    if method not in predictors.METHODS:
        return f"a {method} has no predictor on columns"
    try:
        check_fingerprint(descriptor, card.descriptor, card.id)
    except DataError:
        return f"{descriptor.name} has another table here than on its card"
    return ""
