"""From a library and a target table to frozen features of many sources.

`FrozenFeaturizer` takes the hidden layers of a trained network, before their activation (Yamada et al. 2019, Fig. 1: "a
subnetwork other than the output layer is used as a feature extractor").
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin

from ray_fed.errors import ConfigError, DataError
from ray_fed.model_library import predictors
from ray_fed.model_library.cards import BASELINE_ERROR, HELD_OUT_ERROR
from ray_fed.model_library.descriptors import check_fingerprint, make_descriptor
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


def target_and_sources(
    table: PropertyTable, models: Iterable[Model], layers: str = "last", element_table: str | None = None
) -> tuple[TransferTarget, SourceFeatures]:
    """Return the target's rows that every descriptor can read, and the sources' features of them.

    Rows stay here: only models come in. DataError when a model was trained on other features than ours.
    """
    models = [model for model in models if model[1].architecture.get("type") == predictors.NETWORK]
    if not models:
        raise DataError("no networks among the sources; frozen features need models of method mlp")
    inputs, usable = _inputs(table, models, element_table)
    by_width: dict[int, list[tuple[np.ndarray, ModelCard]]] = defaultdict(list)
    for arrays, card in models:
        values = inputs[str(card.descriptor["name"])][usable]
        frozen = FrozenFeaturizer((arrays, card), "all" if layers == "all" else (-1,)).transform(values)
        by_width[frozen.shape[1]].append((frozen, card))
    groups = [by_width[width] for width in sorted(by_width)]
    cards = [card for group in groups for _, card in group]
    sources = SourceFeatures(
        tuple(np.stack([frozen for frozen, _ in group]) for group in groups),
        tuple(card.id for card in cards),
        np.array([relative_error(card) for card in cards]),
    )
    first = next(iter(inputs.values()))[usable]
    values = table.frame["value"].to_numpy(float)[usable]
    return TransferTarget(first, values, table.groups[usable]), sources


def relative_error(card: ModelCard) -> float:
    """Return a source's held-out MAE over that of the training median; NaN where the card does not say."""
    test = card.metrics.get("test", {})
    error, baseline = test.get(HELD_OUT_ERROR), test.get(BASELINE_ERROR)
    return float(error) / float(baseline) if isinstance(error, float) and isinstance(baseline, float) else float("nan")


def without_target_materials(models: Iterable[Model], modelsets: Iterable[str]) -> list[Model]:
    """Return the models that were not trained on these data sets: a source must not know the target's answers."""
    barred = set(modelsets)
    return [model for model in models if not barred & {str(source.get("name")) for source in model[1].data}]


def _inputs(
    table: PropertyTable, models: list[Model], element_table: str | None
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Return raw features by descriptor name, and which rows all of them could read."""
    inputs: dict[str, np.ndarray] = {}
    for _, card in models:
        name = str(card.descriptor["name"])
        if name not in inputs:
            descriptor = make_descriptor(name, element_table)
            if not descriptor.reads(table.frame):
                raise DataError(f"sources on {name!r} read {descriptor.column!r}, {table.key} has no such column; "
                                f"choose others, e.g. --sources \"descriptor = guo65\"")  # fmt: skip
            check_fingerprint(descriptor, card.descriptor, card.id)
            inputs[name] = descriptor.transform(table.frame)[0]
    usable = np.all([np.isfinite(values).all(axis=1) for values in inputs.values()], axis=0)
    if usable.sum() < 20:
        raise DataError(f"{table.key}: {usable.sum()} rows can be read by all descriptors of the sources; need 20")
    return inputs, usable
