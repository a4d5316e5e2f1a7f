"""Models of a library as arrays: how forests, boosted trees and elastic nets are fitted, and what every model predicts.

method              hyperparameters                                        in Yamada et al. 2019, Table 1
random_forest       20 to 100 trees, 20 % to all of the columns a split    RF setup: 100 to 800 trees, mTry 20-100
gradient_boosting   rate 0.02 to 1 (log), depth 3 to 10, 50 to 200 rounds  GB setup: eta 0.1 to 1, same depth, rounds
elastic_net         alpha 1e-4 to 1 (log), l1 ratio 0 to 1                 EN setup: random lambda, mixing 0 to 1
mlp                 see stacked_networks.py

Trees are arrays whose predictions equal scikit-learn's bit for bit:

array       shape              meaning
feature     int32 [nodes]      column that a node compares; -1 at a leaf
threshold   float64 [nodes]    go left where x <= threshold
left,right  int32 [nodes]      children, counted over all trees
value       float64 [nodes]    prediction at a leaf
roots       int32 [trees]      where each tree begins
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ray_fed.config import require
from ray_fed.errors import ConfigError, DataError
from ray_fed.learning.standardisation import ColumnMoments, Standardizer
from ray_fed.materials import trained_model
from ray_fed.model_library.property_tables import SplitRows
from ray_fed.randomness import derived_seed, generator
from ray_fed.reporting.model_files import ModelCard

KEYS = ("feature", "threshold", "left", "right", "value", "roots")


def forest_arrays(forest: Any) -> dict[str, np.ndarray]:
    """Return a fitted RandomForestRegressor with one output as arrays."""
    return _joined([_of_tree(estimator.tree_) for estimator in forest.estimators_])


def boosting_arrays(model: Any) -> dict[str, np.ndarray]:
    """Return a fitted HistGradientBoostingRegressor (numbers only, no categories) as arrays, with its `baseline`."""
    trees = [_of_boosted(predictors[0].nodes) for predictors in model._predictors]
    return {**_joined(trees), "baseline": np.array(model._baseline_prediction, np.float64).reshape(1)}


def predict_forest(arrays: Mapping[str, np.ndarray], features: np.ndarray) -> np.ndarray:
    """Return the mean over the trees, float64 [rows]; equal to scikit-learn's in every bit."""
    # scikit-learn compares float32 features with float64 thresholds, adds trees in order, and divides at the end.
    inputs = features.astype(np.float32)
    total = np.zeros(len(features))
    for root in arrays["roots"]:
        total += arrays["value"][leaves(arrays, inputs, int(root))]
    return total / len(arrays["roots"])


def predict_boosting(arrays: Mapping[str, np.ndarray], features: np.ndarray) -> np.ndarray:
    """Return baseline plus the sum over the trees, float64 [rows]; equal to scikit-learn's in every bit."""
    inputs = np.asarray(features, np.float64)
    total = np.zeros(len(inputs)) + arrays["baseline"][0]
    for root in arrays["roots"]:
        total += arrays["value"][leaves(arrays, inputs, int(root))]
    return total


def leaves(arrays: Mapping[str, np.ndarray], inputs: np.ndarray, root: int) -> np.ndarray:
    """Return the leaf of one tree that each row ends in, int [rows]."""
    feature, threshold, left, right = (arrays[name] for name in ("feature", "threshold", "left", "right"))
    nodes = np.full(len(inputs), root)
    rows = np.arange(len(inputs))
    while True:
        going = feature[nodes] >= 0
        if not going.any():
            return nodes
        # All rows go down together; those at a leaf stay.
        at, row = nodes[going], rows[going]
        goes_left = inputs[row, feature[at]] <= threshold[at]
        nodes[going] = np.where(goes_left, left[at], right[at])


def _of_tree(tree: Any) -> dict[str, np.ndarray]:
    is_leaf = tree.children_left < 0
    return {
        "feature": np.where(is_leaf, -1, tree.feature).astype(np.int32),
        "threshold": tree.threshold.astype(np.float64),
        "left": tree.children_left.astype(np.int32),
        "right": tree.children_right.astype(np.int32),
        "value": tree.value[:, 0, 0].astype(np.float64),
    }


def _of_boosted(nodes: np.ndarray) -> dict[str, np.ndarray]:
    assert not nodes["is_categorical"].any(), "trees over categories have no thresholds"
    is_leaf = nodes["is_leaf"].astype(bool)
    return {
        "feature": np.where(is_leaf, -1, nodes["feature_idx"]).astype(np.int32),
        "threshold": nodes["num_threshold"].astype(np.float64),
        "left": nodes["left"].astype(np.int32),
        "right": nodes["right"].astype(np.int32),
        "value": nodes["value"].astype(np.float64),
    }


def _joined(trees: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Put the trees behind each other; children count over all nodes."""
    roots = np.cumsum([0, *(len(tree["feature"]) for tree in trees)])
    shifted = [
        {**tree, "left": tree["left"] + root, "right": tree["right"] + root}
        for tree, root in zip(trees, roots, strict=False)
    ]
    joined = {name: np.concatenate([tree[name] for tree in shifted]) for name in KEYS[:-1]}
    return {**joined, "left": joined["left"].astype(np.int32), "right": joined["right"].astype(np.int32),
            "roots": roots[:-1].astype(np.int32)}  # fmt: skip


NETWORK, FOREST, BOOSTING, LINEAR = "mlp", "random_forest", "gradient_boosting", "elastic_net"
METHODS = (NETWORK, FOREST, BOOSTING, LINEAR)

INPUT_CLIP = 8.0
"""Standardised inputs are cut at +-8: a rare element would otherwise send a network thousands of deviations out."""

Arrays = Mapping[str, np.ndarray]


def predict(arrays: Arrays, card: ModelCard, features: np.ndarray) -> np.ndarray:
    """Return predictions [rows] in `card.unit` for raw features [rows, num_features]; DataError on another width."""
    check_width(card, features)
    method = str(card.architecture["type"])
    if card.targets:
        on_columns = card.architecture["type"] == NETWORK
        require(on_columns, f"model {card.id[:12]}: a {card.architecture['type']} predicts files (library predict)")
        return one_number(arrays, card, features)
    if method == NETWORK:
        return forward(arrays, standardised(arrays, card, features))[-1][:, 0]
    if method == FOREST:
        return predict_forest(arrays, features)
    if method == BOOSTING:
        return predict_boosting(arrays, features)
    if method == LINEAR:
        return standardised(arrays, card, features).astype(np.float64) @ arrays["coefficients"] + arrays["intercept"][0]
    raise ConfigError(f"model {card.id[:12]}: method {method!r} has no predictor here; known: {', '.join(METHODS)}")


def one_number(arrays: Arrays, card: ModelCard, features: np.ndarray) -> np.ndarray:
    """Return predictions [rows] of a network of `ray-fed train`, in `card.unit`; ConfigError for one of classes or of
    several targets, which no model of a library has."""
    require_one_number(card)
    return trained_model.predict(features, arrays, card)[:, 0]


def require_one_number(card: ModelCard) -> None:
    """ConfigError for a model of classes, or of several targets: a library's models predict one number each."""
    targets, named = trained_model.targets_of(card), f"model '{card.name}' predicts {card.property}"
    require(len(targets) == 1 and not targets[0].classes, f"{named}; a library's models predict one number each")


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


def fit_scikit(
    method: str, count: int, rows: SplitRows, blank: ModelCard, seed: int
) -> Iterator[tuple[dict[str, np.ndarray], ModelCard, str]]:
    """Yield (arrays, card, reason) of `count` fitted models. They learn from training and validation rows together:
    nothing is stopped by the latter."""
    learning = np.sort(np.concatenate((rows.parts["train"], rows.parts["validation"])))
    features, targets = rows.features[learning], rows.targets[learning]
    for number in range(count):
        own = derived_seed(seed, method, blank.property, number)
        draw = generator(own, "hyperparameters")
        arrays, chosen, size = FITTERS[method](features, targets, draw, own)
        card = replace(
            blank,
            name=f"{blank.property} {method}",
            architecture={"type": method, "num_parameters": size},
            hyperparameters=chosen,
            seed=own,
        )
        yield arrays, card, ""


def _forest(features: np.ndarray, targets: np.ndarray, draw: np.random.Generator, seed: int) -> tuple:
    from sklearn.ensemble import RandomForestRegressor

    chosen: dict[str, Any] = {
        "n_estimators": int(draw.integers(20, 61)),
        "max_features": round(float(draw.uniform(0.2, 1.0)), 3),
        "min_samples_leaf": int(draw.integers(2, 6)),
    }
    model = RandomForestRegressor(**chosen, random_state=seed % 2**32).fit(features, targets)
    arrays = forest_arrays(model)
    return {**arrays, **_no_scaler(features)}, chosen, len(arrays["feature"])


def _boosting(features: np.ndarray, targets: np.ndarray, draw: np.random.Generator, seed: int) -> tuple:
    from sklearn.ensemble import HistGradientBoostingRegressor

    chosen: dict[str, Any] = {
        "learning_rate": float(f"{np.exp(draw.uniform(np.log(0.02), 0)):.3g}"),
        "max_depth": int(draw.integers(3, 11)),
        "max_iter": int(draw.integers(50, 201)),
        "early_stopping": False,
    }
    model = HistGradientBoostingRegressor(**chosen, random_state=seed % 2**32)
    arrays = boosting_arrays(model.fit(features, targets))
    return {**arrays, **_no_scaler(features)}, chosen, len(arrays["feature"])


def _elastic_net(features: np.ndarray, targets: np.ndarray, draw: np.random.Generator, seed: int) -> tuple:
    import warnings

    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import ElasticNet

    spread = targets.std() or 1.0
    chosen: dict[str, Any] = {
        "alpha": float(f"{np.exp(draw.uniform(np.log(1e-4), 0)) * spread:.3g}"),
        "l1_ratio": round(float(draw.uniform(0.01, 1)), 3),
    }
    scaler = Standardizer.from_moments(ColumnMoments.of(features))
    inputs = np.clip(scaler(features), -INPUT_CLIP, INPUT_CLIP).astype(np.float64)
    with warnings.catch_warnings():
        # A random regularisation may be too weak to converge in a hundred passes; its error is on the card.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model = ElasticNet(**chosen, max_iter=100, tol=1e-3, random_state=seed % 2**32).fit(inputs, targets)
    arrays = {"coefficients": model.coef_, "intercept": np.array([model.intercept_], np.float64),
              "scaler.mean": scaler.mean, "scaler.scale": scaler.scale}  # fmt: skip
    return arrays, {**chosen, "input_clip": INPUT_CLIP}, int(np.count_nonzero(model.coef_))


FITTERS = {
    FOREST: _forest,
    BOOSTING: _boosting,
    LINEAR: _elastic_net,
}


def _no_scaler(features: np.ndarray) -> dict[str, np.ndarray]:
    """Trees take raw numbers; the card's scaler is 0 and 1."""
    return {"scaler.mean": np.zeros(features.shape[1]), "scaler.scale": np.ones(features.shape[1])}
