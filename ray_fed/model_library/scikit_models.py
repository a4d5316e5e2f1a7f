"""Forests, boosted trees and elastic nets with random hyperparameters, kept as arrays.

method              hyperparameters                                        in Yamada et al. 2019, Table 1
random_forest       20 to 100 trees, 20 % to all of the columns a split    RF setup: 100 to 800 trees, mTry 20-100
gradient_boosting   rate 0.02 to 1 (log), depth 3 to 10, 50 to 200 rounds  GB setup: eta 0.1 to 1, same depth, rounds
elastic_net         alpha 1e-4 to 1 (log), l1 ratio 0 to 1                 EN setup: random lambda, mixing 0 to 1
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ray_fed.learning.standardisation import ColumnMoments, Standardizer
from ray_fed.model_library import predictors
from ray_fed.model_library.tree_models import boosting_arrays, forest_arrays
from ray_fed.randomness import derived_seed, generator
from ray_fed.reporting.model_files import ModelCard

if TYPE_CHECKING:
    from ray_fed.model_library.building import SplitRows


def fit_scikit(
    method: str, count: int, rows: "SplitRows", blank: ModelCard, seed: int
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
    inputs = np.clip(scaler(features), -predictors.INPUT_CLIP, predictors.INPUT_CLIP).astype(np.float64)
    with warnings.catch_warnings():
        # A random regularisation may be too weak to converge in a hundred passes; its error is on the card.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model = ElasticNet(**chosen, max_iter=100, tol=1e-3, random_state=seed % 2**32).fit(inputs, targets)
    arrays = {"coefficients": model.coef_, "intercept": np.array([model.intercept_], np.float64),
              "scaler.mean": scaler.mean, "scaler.scale": scaler.scale}  # fmt: skip
    return arrays, {**chosen, "input_clip": predictors.INPUT_CLIP}, int(np.count_nonzero(model.coef_))


FITTERS = {
    predictors.FOREST: _forest,
    predictors.BOOSTING: _boosting,
    predictors.LINEAR: _elastic_net,
}


def _no_scaler(features: np.ndarray) -> dict[str, np.ndarray]:
    """Trees take raw numbers; the card's scaler is 0 and 1."""
    return {"scaler.mean": np.zeros(features.shape[1]), "scaler.scale": np.ones(features.shape[1])}
