"""Losses: where a forest starts, what a tree is fitted to, and how large a step its leaves take.

A tree is fitted to the negative gradient by least squares, and its leaves take one Newton step (Friedman 2001, LS_Boost
and L2_TreeBoost). Everything per row is made of sums, products and quotients, so it has the same bits everywhere.

    loss       residual of a row             curvature      outputs
    squared    y - f                         1              the targets
    log        y - sigmoid(f)                p (1 - p)      the logit of class 1
    softmax    [y = k] - softmax(f)_k        p (1 - p)      one score per class; Newton step times (K - 1) / K
    quantile   q if y > f else q - 1         -              one quantile each; a leaf moves to the quantile of y - f
"""

import math

import numpy as np

from ray_fed.trees.numbers import logarithm, sigmoid, softmax
from ray_fed.trees.settings import TreeSettings


def has_curvature(settings: TreeSettings) -> bool:
    """Whether leaves divide by a sum of second derivatives instead of by the number of rows."""
    return settings.loss in ("log", "softmax")


def of_classes(settings: TreeSettings) -> bool:
    return settings.loss in ("log", "softmax")


def target_table(targets: np.ndarray, settings: TreeSettings) -> np.ndarray:
    """Return what residuals are taken of, float64 [outputs, rows]; NaN where there is no label (-1 for classes)."""
    targets = np.asarray(targets, np.float64)
    if settings.loss == "softmax":
        column = targets.reshape(-1)
        table = (column[None, :] == np.arange(settings.outputs)[:, None]).astype(np.float64)
        return np.where(column < 0, np.nan, table)
    table = targets[None] if targets.ndim == 1 else targets.T
    table = np.repeat(table, settings.outputs, 0) if settings.loss == "quantile" and len(table) == 1 else table
    return np.where(table < 0, np.nan, table) if settings.loss == "log" else np.array(table)


def shares(scores: np.ndarray, settings: TreeSettings) -> np.ndarray:
    """Return class shares [outputs, rows] of scores [outputs, rows]."""
    return softmax(scores) if settings.loss == "softmax" else sigmoid(scores)


def residuals(table: np.ndarray, scores: np.ndarray, settings: TreeSettings) -> tuple[np.ndarray, np.ndarray | None]:
    """Return (residual, curvature), each [outputs, rows]; NaN where there is no label."""
    if settings.loss == "quantile":
        quantile = np.array(settings.quantiles)[:, None]
        return np.where(np.isnan(table), np.nan, np.where(table > scores, quantile, quantile - 1)), None
    if not of_classes(settings):
        return table - scores, None
    probable = shares(scores, settings)
    return table - probable, probable * (1 - probable)


def start_of(means: np.ndarray, settings: TreeSettings) -> np.ndarray:
    """Return the first prediction of each output from the mean of its targets, float32."""
    if not of_classes(settings):
        return means.astype(np.float32)
    safe = [min(max(float(mean), 1e-6), 1 - 1e-6) for mean in means]
    odds = [math.log(mean) if settings.loss == "softmax" else math.log(mean / (1 - mean)) for mean in safe]
    return np.array(odds, np.float32)


def row_losses(table: np.ndarray, scores: np.ndarray, settings: TreeSettings) -> np.ndarray:
    """Return the loss of each row, its outputs added up, float64 [rows]; 0 where there is no label."""
    if settings.loss == "squared":
        losses = (table - scores) ** 2
    elif settings.loss == "quantile":
        quantile, gap = np.array(settings.quantiles)[:, None], table - scores
        losses = np.where(gap > 0, quantile * gap, (quantile - 1) * gap)
    else:
        probable = shares(scores, settings)
        right = np.where(table > 0.5, probable, 1 - probable) if settings.loss == "log" else probable
        losses = np.where((table > 0.5) | (settings.loss == "log"), -logarithm(np.maximum(right, 1e-15)), 0.0)
        losses = np.where(np.isnan(table), np.nan, losses)
    total = np.zeros(table.shape[1])
    for part in losses:
        total = total + np.nan_to_num(part)
    return total


def newton_factor(settings: TreeSettings) -> float:
    """Return what the Newton step is multiplied by besides the learning rate."""
    return (settings.outputs - 1) / settings.outputs if settings.loss == "softmax" else 1.0
