"""Forests and boosted trees of scikit-learn as plain arrays, and a predictor that gives scikit-learn's very bits.

array       shape              meaning
feature     int32 [nodes]      column a node asks; -1 at a leaf
threshold   float64 [nodes]    go left where x <= threshold
left,right  int32 [nodes]      children, counted over all trees
value       float64 [nodes]    prediction at a leaf
roots       int32 [trees]      where each tree begins
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

Arrays = dict[str, np.ndarray]
KEYS = ("feature", "threshold", "left", "right", "value", "roots")


def forest_arrays(forest: Any) -> Arrays:
    """Return a fitted RandomForestRegressor with one output as arrays."""
    return _joined([_of_tree(estimator.tree_) for estimator in forest.estimators_])


def boosting_arrays(model: Any) -> Arrays:
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


def _of_tree(tree: Any) -> Arrays:
    is_leaf = tree.children_left < 0
    return {
        "feature": np.where(is_leaf, -1, tree.feature).astype(np.int32),
        "threshold": tree.threshold.astype(np.float64),
        "left": tree.children_left.astype(np.int32),
        "right": tree.children_right.astype(np.int32),
        "value": tree.value[:, 0, 0].astype(np.float64),
    }


def _of_boosted(nodes: np.ndarray) -> Arrays:
    assert not nodes["is_categorical"].any(), "trees over categories have no thresholds"
    is_leaf = nodes["is_leaf"].astype(bool)
    return {
        "feature": np.where(is_leaf, -1, nodes["feature_idx"]).astype(np.int32),
        "threshold": nodes["num_threshold"].astype(np.float64),
        "left": nodes["left"].astype(np.int32),
        "right": nodes["right"].astype(np.int32),
        "value": nodes["value"].astype(np.float64),
    }


def _joined(trees: Sequence[Arrays]) -> Arrays:
    """Put the trees behind each other; children count over all nodes."""
    roots = np.cumsum([0, *(len(tree["feature"]) for tree in trees)])
    shifted = [
        {**tree, "left": tree["left"] + root, "right": tree["right"] + root}
        for tree, root in zip(trees, roots, strict=False)
    ]
    joined = {name: np.concatenate([tree[name] for tree in shifted]) for name in KEYS[:-1]}
    return {**joined, "left": joined["left"].astype(np.int32), "right": joined["right"].astype(np.int32),
            "roots": roots[:-1].astype(np.int32)}  # fmt: skip
