"""What learns on frozen features of a small target: cross-validated and held-out predictions of many sources.

head               per source and fold
ridge              closed form, penalty by leave-one-out among PENALTIES; all sources and folds in stacked algebra
random_forest      TL setup 1: n/2 to n trees, N/2 to N columns a split
gradient_boosting  scikit-learn, 100 rounds of depth 3
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ray_fed.config import unknown_name

PENALTIES = np.array([1e-2, 1e-1, 1.0, 10.0, 100.0])
"""Ridge penalties per training row, on standardised features."""

CLIP = 5.0
"""Standardised features of new rows are cut at this many deviations of the rows learnt from."""

Head = Callable[[np.ndarray, np.ndarray, np.ndarray, int], np.ndarray]
"""(features [sources, n, p], targets [n], new features [sources, m, p], seed) -> predictions [sources, m]"""


@dataclass(frozen=True)
class RidgeFit:
    """Ridge regressions of S sources; each array has the sources first."""

    centre: np.ndarray
    """[S, 1, p]"""
    scale: np.ndarray
    """Deviations times `width`, [S, 1, p]; `width` where a column is constant."""
    width: np.ndarray
    """Root of the number of columns that vary, [S, 1, 1]."""
    coefficients: np.ndarray
    """[S, p, 1]"""
    mean: float
    """Of the targets."""

    def predict(self, new: np.ndarray) -> np.ndarray:
        """Return predictions [S, m] of rows [S, m, p]."""
        # A unit that slept on twenty rows may wake on a new one, thousands of deviations out.
        outside = np.clip((new - self.centre) / self.scale, -CLIP / self.width, CLIP / self.width)
        return self.mean + (outside @ self.coefficients)[:, :, 0]


def ridge(features: np.ndarray, targets: np.ndarray, new: np.ndarray, seed: int = 0) -> np.ndarray:  # noqa: ARG001
    """Return predictions [sources, m] of ridge regressions, each with the penalty of least leave-one-out error."""
    return fit_ridge(features, targets).predict(new)


def fit_ridge(features: np.ndarray, targets: np.ndarray) -> RidgeFit:
    """Fit one ridge regression a source, each with the penalty of least leave-one-out error.

    With X centred and X^T X = V diag(e) V^T, Z = X V, all penalties a cost one decomposition of the smaller side:
    fitted = Z diag(1 / (e + a)) Z^T y, and the residual of a row that is left out is r_i / (1 - H_ii) with
    H_ii = sum_k Z_ik^2 / (e_k + a) + 1/n  (Golub, Heath & Wahba 1979).
    """
    centre, scale = features.mean(1, keepdims=True), features.std(1, keepdims=True)
    alive = scale > 1e-12
    # Divided by the root of the columns, the mean of a kernel's diagonal is 1 whatever the width of the layer.
    width = np.sqrt(np.maximum(alive.sum(2, keepdims=True), 1))
    scale = np.where(alive, scale, 1.0) * width
    values, scores, back = _decomposed((features - centre) / scale)
    wanted = targets - targets.mean()
    projected = scores.transpose(0, 2, 1) @ wanted
    errors = np.stack([_left_out(values, scores, projected, wanted, penalty) for penalty in PENALTIES])
    chosen = PENALTIES[errors.argmin(0)][:, None]
    return RidgeFit(centre, scale, width, back @ (projected / (values + chosen))[:, :, None], float(targets.mean()))


def _decomposed(inside: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return e [sources, k], Z [sources, n, k] and V [sources, p, k], k the smaller of n and p."""
    transposed = inside.transpose(0, 2, 1)
    if inside.shape[2] <= inside.shape[1]:
        values, vectors = np.linalg.eigh(transposed @ inside)
        return np.maximum(values, 0), inside @ vectors, vectors
    values, vectors = np.linalg.eigh(inside @ transposed)
    roots = np.sqrt(np.maximum(values, 1e-12 * values.max(1, keepdims=True) + 1e-300))[:, None, :]
    return np.square(roots[:, 0]), vectors * roots, transposed @ (vectors / roots)


def _left_out(
    values: np.ndarray, scores: np.ndarray, projected: np.ndarray, wanted: np.ndarray, penalty: float
) -> np.ndarray:
    """Return the mean squared leave-one-out error of each source, [sources]."""
    shrink = 1 / (values + penalty)
    fitted = (scores @ (shrink * projected)[:, :, None])[:, :, 0]
    leverage = (np.square(scores) @ shrink[:, :, None])[:, :, 0]
    residuals = (wanted - fitted) / np.maximum(1 - leverage - 1 / len(wanted), 1e-6)
    return np.square(residuals).mean(1)


def random_forest(features: np.ndarray, targets: np.ndarray, new: np.ndarray, seed: int) -> np.ndarray:
    """Return predictions [sources, m] of forests with random hyperparameters from TL setup 1."""
    from sklearn.ensemble import RandomForestRegressor

    from ray_fed.randomness import derived_seed, generator

    predicted = np.empty((len(features), new.shape[1]))
    for source, (inside, outside) in enumerate(zip(features, new, strict=True)):
        draw = generator(seed, "forest head", source)
        rows, columns = inside.shape
        forest = RandomForestRegressor(
            n_estimators=int(draw.integers(max(10, rows // 2), max(11, rows + 1))),
            max_features=int(draw.integers(max(1, columns // 2), columns + 1)),
            random_state=derived_seed(seed, "forest head", source) % 2**32,
        )
        predicted[source] = forest.fit(inside, targets).predict(outside)
    return predicted


def gradient_boosting(features: np.ndarray, targets: np.ndarray, new: np.ndarray, seed: int) -> np.ndarray:
    """Return predictions [sources, m] of boosted trees."""
    from sklearn.ensemble import GradientBoostingRegressor

    model = GradientBoostingRegressor(random_state=seed % 2**32)
    return np.stack([model.fit(inside, targets).predict(out) for inside, out in zip(features, new, strict=True)])


HEADS: Mapping[str, Head] = {
    "ridge": ridge, "random_forest": random_forest, "gradient_boosting": gradient_boosting,
}  # fmt: skip


def find_head(name: str) -> Head:
    """Return a head by name; ConfigError for an unknown one."""
    if name not in HEADS:
        raise unknown_name("head", name, HEADS)
    return HEADS[name]


def cross_validated(
    head: Head, features: Sequence[np.ndarray], targets: np.ndarray, folds: Sequence[np.ndarray], seed: int
) -> np.ndarray:
    """Return out-of-fold predictions, float64 [sources, n].

    features  per group of sources of one width, [sources, n, p]
    folds     row numbers of each fold; together all rows, once
    """
    predicted = np.empty((sum(len(group) for group in features), len(targets)))
    for number, fold in enumerate(folds):
        rest = np.setdiff1d(np.arange(len(targets)), fold)
        predicted[:, fold] = fitted(
            head, [g[:, rest] for g in features], targets[rest], [g[:, fold] for g in features], seed + number
        )
    return predicted


def fitted(
    head: Head, features: Sequence[np.ndarray], targets: np.ndarray, new: Sequence[np.ndarray], seed: int
) -> np.ndarray:
    """Return predictions [sources, m] of heads fitted on all rows, groups of sources behind each other."""
    return np.concatenate(
        [head(group, targets, other, seed + at) for at, (group, other) in enumerate(zip(features, new, strict=True))]
    )
