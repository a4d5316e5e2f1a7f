"""Four learners for tables of 15 to a few hundred rows, as arrays: what a user has without any library.

name               what
random_forest      a third of the columns a split
extra_trees        the same with random thresholds
ridge              `heads.fit_ridge`: penalty by leave-one-out
gaussian_process   Matern 5/2 on standardised columns; length and noise by marginal likelihood on a grid

With x standardised columns [n, p], d their distances, l a length and s the noise over the signal:

    k(d) = (1 + a + a²/3) exp(-a),  a = sqrt(5) d / l                     Rasmussen & Williams 2006, Eq. (4.17)
    log p = -n/2 log(y^T (K + sI)^-1 y / n) - 1/2 log |K + sI| + const    (2.30), the signal's size maximised out
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ray_fed.model_library.heads import CLIP, RidgeFit, fit_ridge
from ray_fed.model_library.predictors import forest_arrays, predict_forest

NUM_TREES = 100
"""Of each forest, unless asked otherwise."""
LENGTHS = (0.5, 1.0, 2.0, 4.0, 8.0)
"""Lengths that are tried, in medians of the distances."""
NOISES = np.array([1e-3, 1e-2, 0.03, 0.1, 0.3, 1.0, 3.0])
"""Noise over signal that is tried."""

Arrays = Mapping[str, np.ndarray]


def _forest(x: np.ndarray, y: np.ndarray, seed: int, num_trees: int) -> dict[str, np.ndarray]:
    from sklearn.ensemble import RandomForestRegressor

    model = RandomForestRegressor(num_trees, max_features=1 / 3, random_state=seed % 2**32)
    return forest_arrays(model.fit(x, y))


def _extra_trees(x: np.ndarray, y: np.ndarray, seed: int, num_trees: int) -> dict[str, np.ndarray]:
    from sklearn.ensemble import ExtraTreesRegressor

    model = ExtraTreesRegressor(num_trees, max_features=1 / 3, random_state=seed % 2**32)
    return forest_arrays(model.fit(x, y))


def _ridge(x: np.ndarray, y: np.ndarray, *_: int) -> dict[str, np.ndarray]:
    fit = fit_ridge(x[None], y)
    return {
        "centre": fit.centre[0, 0], "scale": fit.scale[0, 0], "width": fit.width[0, 0],
        "coefficients": fit.coefficients[0, :, 0], "mean": np.array([fit.mean]),
    }  # fmt: skip


def _predict_ridge(arrays: Arrays, x: np.ndarray) -> np.ndarray:
    one = arrays["centre"][None, None], arrays["scale"][None, None], arrays["width"][None, None]
    return RidgeFit(*one, arrays["coefficients"][None, :, None], float(arrays["mean"][0])).predict(x[None])[0]


def _process(x: np.ndarray, y: np.ndarray, *_: int) -> dict[str, np.ndarray]:
    centre, scale = x.mean(0), x.std(0)
    scale = np.where(scale > 1e-12, scale, 1.0)
    inside = (x - centre) / scale
    apart = _distances(inside, inside)
    usual = float(np.median(apart[np.triu_indices(len(x), 1)])) or 1.0
    wanted = y - y.mean()
    best, weights, length = -np.inf, np.zeros(len(y)), usual
    for factor in LENGTHS:
        values, vectors = np.linalg.eigh(_matern(apart, factor * usual))
        projected, values = vectors.T @ wanted, np.maximum(values, 0)
        spectrum = values[:, None] + NOISES
        likelihoods = -len(y) / 2 * np.log(np.mean(projected[:, None] ** 2 / spectrum, 0) + 1e-300)
        likelihoods -= np.log(spectrum).sum(0) / 2
        at = int(likelihoods.argmax())
        if likelihoods[at] > best:
            best, length = likelihoods[at], factor * usual
            weights = vectors @ (projected / spectrum[:, at])
    return {"centre": centre, "scale": scale, "inside": inside.astype(np.float32), "weights": weights,
            "length": np.array([length]), "mean": np.array([y.mean()])}  # fmt: skip


def _predict_process(arrays: Arrays, x: np.ndarray) -> np.ndarray:
    new = np.clip((x - arrays["centre"]) / arrays["scale"], -CLIP, CLIP)
    kernel = _matern(_distances(new, arrays["inside"].astype(np.float64)), float(arrays["length"][0]))
    return arrays["mean"][0] + kernel @ arrays["weights"]


def _distances(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    squares = np.square(first).sum(1)[:, None] + np.square(second).sum(1) - 2 * first @ second.T
    return np.sqrt(np.maximum(squares, 0))


def _matern(apart: np.ndarray, length: float) -> np.ndarray:
    a = np.sqrt(5) * apart / length
    return (1 + a + a**2 / 3) * np.exp(-a)


FITTERS: Mapping[str, Callable[[np.ndarray, np.ndarray, int, int], dict[str, np.ndarray]]] = {
    "random_forest": _forest, "extra_trees": _extra_trees, "ridge": _ridge, "gaussian_process": _process,
}  # fmt: skip
"""Name -> (columns [n, p], targets [n], seed, number of trees) -> arrays."""
PREDICTORS: Mapping[str, Callable[[Any, np.ndarray], np.ndarray]] = {
    "random_forest": predict_forest, "extra_trees": predict_forest, "ridge": _predict_ridge,
    "gaussian_process": _predict_process,
}  # fmt: skip
"""Name -> (arrays, columns [m, p]) -> predictions [m]."""
