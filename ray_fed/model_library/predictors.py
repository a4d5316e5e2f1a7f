"""Predictions and hidden layers of stored models, from their arrays and their card alone."""

from collections.abc import Mapping

import numpy as np

from ray_fed.errors import ConfigError, DataError
from ray_fed.learning.standardisation import Standardizer
from ray_fed.model_library.tree_models import predict_boosting, predict_forest
from ray_fed.reporting.model_files import ModelCard

NETWORK, FOREST, BOOSTING, LINEAR = "mlp", "random_forest", "gradient_boosting", "elastic_net"
METHODS = (NETWORK, FOREST, BOOSTING, LINEAR)

INPUT_CLIP = 8.0
"""Standardised inputs are cut at +-8: a rare element would otherwise send a network thousands of deviations out."""

Arrays = Mapping[str, np.ndarray]


def predict(arrays: Arrays, card: ModelCard, features: np.ndarray) -> np.ndarray:
    """Return predictions [rows] in `card.unit` for raw features [rows, num_features]; DataError on another width."""
    check_width(card, features)
    method = str(card.architecture["type"])
    if method == NETWORK:
        return forward(arrays, standardised(arrays, card, features))[-1][:, 0]
    if method == FOREST:
        return predict_forest(arrays, features)
    if method == BOOSTING:
        return predict_boosting(arrays, features)
    if method == LINEAR:
        return standardised(arrays, card, features).astype(np.float64) @ arrays["coefficients"] + arrays["intercept"][0]
    raise ConfigError(f"model {card.id[:12]}: method {method!r} has no predictor here; known: {', '.join(METHODS)}")


def standardised(arrays: Arrays, card: ModelCard, features: np.ndarray) -> np.ndarray:
    """Return (x - mean) / scale with the model's own scaler, cut at its `input_clip`; float32 [rows, num_features]."""
    mean, scale = (arrays[name] for name in card.scaler_tensors)
    clip = float(str(card.hyperparameters.get("input_clip", np.inf)))
    return np.clip(Standardizer(mean, scale)(features), -clip, clip)


def forward(arrays: Arrays, inputs: np.ndarray) -> list[np.ndarray]:
    """Return the linear output of every layer [rows, width] before its activation, float32; the last is the answer."""
    layers: list[np.ndarray] = []
    below = inputs
    for layer in range(num_layers(arrays)):
        weight, bias = arrays[f"{2 * layer}.weight"], arrays[f"{2 * layer}.bias"]
        layers.append(below @ weight.T + bias)
        below = np.maximum(layers[-1], 0)
    return layers


def num_layers(arrays: Arrays) -> int:
    """Return the number of linear layers of a network, the output included."""
    return sum(name.endswith(".weight") for name in arrays)


def check_width(card: ModelCard, features: np.ndarray) -> None:
    """Raise DataError when features do not have the width the model was trained on."""
    wanted = len(card.feature_names)
    if np.ndim(features) != 2 or features.shape[1] != wanted:
        raise DataError(f"model {card.id[:12]} takes features [rows, {wanted}], not {np.shape(features)}")
