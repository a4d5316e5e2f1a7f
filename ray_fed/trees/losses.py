"""Losses: where a forest starts, what a tree is fitted to, and how large a step its leaves take.

A tree is fitted to the negative gradient by least squares; its leaves take one Newton step (Friedman 2001, LS_Boost and
L2_TreeBoost), those of a quantile go to it. What is done per row is made of sums, products and quotients, so it has the
same bits on every machine.

    loss       residual of a row             weight in a leaf     outputs
    squared    y - f                         1                    the number
    log        y - sigmoid(f)                p (1 - p)            the logit of class 1
    softmax    [y = k] - softmax(f)_k        p (1 - p)            one score per class; its step times (K - 1) / K
    quantile   q if y > f else q - 1         1                    the quantile
"""

import math

import numpy as np

from ray_fed.trees.numbers import logarithm, sigmoid, softmax
from ray_fed.trees.settings import Group, TreeSettings


def target_table(targets: np.ndarray, settings: TreeSettings) -> np.ndarray:
    """Return what residuals are taken of, float64 [outputs, rows]; NaN where there is no label, which is NaN or, of a
    class, negative. targets: [rows], or [rows, losses]."""
    columns = np.asarray(targets, np.float64)
    columns = np.repeat(columns[:, None], len(settings.losses), 1) if columns.ndim == 1 else columns
    return np.concatenate([_table(columns[:, at], group) for at, group in enumerate(settings.groups)])


def _table(column: np.ndarray, group: Group) -> np.ndarray:
    if not group.of_classes:
        return column[None].copy()
    there = column >= 0
    wanted = np.arange(group.size) if group.kind == "softmax" else np.array([1])
    return np.where(there, column == wanted[:, None], np.nan)


def _shares(scores: np.ndarray, group: Group) -> np.ndarray:
    return softmax(scores) if group.kind == "softmax" else sigmoid(scores)


def residuals(table: np.ndarray, scores: np.ndarray, settings: TreeSettings) -> tuple[np.ndarray, np.ndarray]:
    """Return (residual, weight in a leaf), each [outputs, rows]; NaN where there is no label."""
    found, weights = np.empty_like(table), np.ones_like(table)
    for group in settings.groups:
        here, place = table[group.place], group.place
        if group.kind == "squared":
            found[place] = here - scores[place]
        elif group.kind == "quantile":
            above = np.where(here > scores[place], group.quantile, group.quantile - 1)
            found[place] = np.where(np.isnan(here), np.nan, above)
        else:
            probable = _shares(scores[place], group)
            found[place], weights[place] = here - probable, probable * (1 - probable)
    return found, weights


def sized(table: np.ndarray, scores: np.ndarray, found: np.ndarray, settings: TreeSettings) -> np.ndarray:
    """Return what the scales of the outputs are taken from: the residuals; of a quantile, whose residuals have
    one size, the distances y - f."""
    is_quantile = np.array([each is not None for each in quantile_of(settings)])
    return np.where(is_quantile[:, None], table - scores, found)


def start_of(means: np.ndarray, settings: TreeSettings) -> np.ndarray:
    """Return the first prediction of each output from the mean of its targets, float32."""
    start = means.astype(np.float64)
    for group in settings.groups:
        if group.of_classes:
            safe = [min(max(float(mean), 1e-6), 1 - 1e-6) for mean in means[group.place]]
            odds = [mean if group.kind == "softmax" else mean / (1 - mean) for mean in safe]
            start[group.place] = [math.log(each) for each in odds]
    return start.astype(np.float32)


def row_losses(table: np.ndarray, scores: np.ndarray, settings: TreeSettings) -> np.ndarray:
    """Return the loss of each row, all its outputs added up, float64 [rows]; 0 where there is no label."""
    total = np.zeros(table.shape[1])
    for group in settings.groups:
        for part in _losses(table[group.place], scores[group.place], group):
            total = total + np.nan_to_num(part)
    return total


def _losses(table: np.ndarray, scores: np.ndarray, group: Group) -> np.ndarray:
    gap = table - scores
    if group.kind == "squared":
        return gap * gap
    if group.kind == "quantile":
        return np.where(gap > 0, group.quantile * gap, (group.quantile - 1) * gap)
    probable = _shares(scores, group)
    right = np.where(table > 0.5, probable, 1 - probable)
    counts = ~np.isnan(table) & ((table > 0.5) | (group.kind == "log"))
    return np.where(counts, -logarithm(np.maximum(right, 1e-15)), 0.0)


def step_factors(settings: TreeSettings) -> np.ndarray:
    """Return what the Newton step of each output is multiplied by besides the learning rate."""
    return np.concatenate([
        np.full(group.size, (group.size - 1) / group.size if group.kind == "softmax" else 1.0)
        for group in settings.groups
    ])  # fmt: skip


def of_classes(settings: TreeSettings) -> np.ndarray:
    """Return which outputs are of classes, bool [outputs]."""
    return np.concatenate([np.full(group.size, group.of_classes) for group in settings.groups])


def quantile_of(settings: TreeSettings) -> list[float | None]:
    """Return the quantile of each output; None of one that is no quantile."""
    return [
        group.quantile if group.kind == "quantile" else None for group in settings.groups for _ in range(group.size)
    ]
