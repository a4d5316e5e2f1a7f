"""How good a model is on rows it has not seen: XenonPy.MDL's regression metrics."""

import numpy as np


def regression_metrics(wanted: np.ndarray, predicted: np.ndarray, training_median: float) -> dict[str, float | int]:
    """Return mae, mse, rmse, r2, max_abs_error, pearson, spearman, p_value, baseline_mae and n.

    wanted, predicted  [rows] in one unit
    training_median    what a model that knows nothing would say

    Correlations of constant predictions are NaN; JSON writes them as null.
    """
    error = predicted - wanted
    spread = float(np.square(wanted - wanted.mean()).sum())
    r = correlation(wanted, predicted)
    return {
        "n": len(wanted),
        "mae": float(np.abs(error).mean()),
        "mse": float(np.square(error).mean()),
        "rmse": float(np.sqrt(np.square(error).mean())),
        "r2": 1 - float(np.square(error).sum()) / spread if spread > 0 else float("nan"),
        "max_abs_error": float(np.abs(error).max()),
        "pearson": r,
        "spearman": correlation(_ranks(wanted), _ranks(predicted)),
        "p_value": _p_value(r, len(wanted)),
        "baseline_mae": float(np.abs(wanted - training_median).mean()),
    }


def correlation(x: np.ndarray, y: np.ndarray) -> float:
    """Return Pearson's r; NaN when one side is constant."""
    x, y = x - x.mean(), y - y.mean()
    scale = float(np.sqrt(np.square(x).sum() * np.square(y).sum()))
    return float(np.clip((x * y).sum() / scale, -1, 1)) if scale > 0 else float("nan")


def _ranks(values: np.ndarray) -> np.ndarray:
    """Return average ranks [rows]; ties share theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[inverse]


def _p_value(r: float, n: int) -> float:
    """Return the two-sided p of Pearson's r over n rows (Student's t with n - 2 degrees of freedom)."""
    from scipy.special import betainc

    if n < 3 or not np.isfinite(r):
        return float("nan")
    return float(betainc(n / 2 - 1, 0.5, max(0.0, 1 - r * r)))
