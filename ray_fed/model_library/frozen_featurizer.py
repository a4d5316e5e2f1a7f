"""A trained network as a feature extractor: its hidden layers, before or after their activation.

Yamada et al. 2019, Fig. 1: "a subnetwork other than the output layer is used as a feature extractor".
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin

from ray_fed.errors import ConfigError
from ray_fed.model_library import predictors
from ray_fed.reporting.model_files import ModelCard


class FrozenFeaturizer(TransformerMixin, BaseEstimator):
    """Raw features of the model's descriptor in, activations of its hidden layers out; nothing is learned.

    model       (arrays, card) as `Library.load` returns them; method mlp
    layers      hidden layers counted from the output as XenonPy does: -1 is the last hidden layer, "all" takes all
    activated   after ReLU; False (XenonPy's way): the linear output before it

    >>> FrozenFeaturizer(library.load("ab12"), layers=(-1, -2)).fit_transform(features)
    """

    def __init__(
        self,
        model: tuple[Mapping[str, np.ndarray], ModelCard],
        layers: Sequence[int] | str = (-1,),
        activated: bool = False,
    ):
        self.model = model
        self.layers = layers
        self.activated = activated

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
        chosen = [hidden[position] for position in self._positions()]
        return np.hstack([np.maximum(layer, 0) for layer in chosen] if self.activated else chosen)

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
