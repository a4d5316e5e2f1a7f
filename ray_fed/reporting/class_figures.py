"""The figures of a classifier: confusion matrix, ROC curve, reliability. Drawn from counts, so that they need no row.

Each function takes `ClassificationSums` and returns a matplotlib Figure; `save_figure` writes it.
"""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ray_fed.errors import ConfigError
from ray_fed.metrics.classification import ClassificationSums
from ray_fed.reporting.figure_style import (
    INK,
    LABEL_SIZE,
    QUIET,
    SILO,
    TICK_SIZE,
    TITLE_SIZE,
    as_label,
    dress,
    legend_outside,
    line_looks,
    new_figure,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_COUNTED = 12
"""Classes up to which each cell of a confusion matrix shows its count."""
MOST_CURVES = 10
"""Classes up to which each one has its own ROC curve."""


# ---- confusion matrix


def confusion_figure(sums: ClassificationSums, classes: Sequence[str], title: str = "") -> "Figure":
    """Draw the rows by true class (down) and predicted class (across): the shade is the share of the true class's rows,
    the number their count. ConfigError unless there is a name for each class."""
    k, matrix = sums.num_classes, sums.matrix
    if len(classes) != k:
        raise ConfigError(f"a confusion matrix of {k} classes needs {k} names, got {len(classes)}")
    side = float(np.clip(0.62 * k, 3.2, 8.5))
    figure = new_figure(side + 2.6, side + 1.4, square_axes=True)
    axes = figure.subplots()
    rows = matrix.sum(1, keepdims=True)
    share = np.divide(matrix, rows, out=np.zeros(matrix.shape), where=rows > 0)
    image = axes.imshow(share, cmap="Blues", vmin=0.0, vmax=1.0)
    dress(axes)
    _name_classes(axes, classes, side / k)
    axes.set_xlabel("Predicted", fontsize=LABEL_SIZE, color=INK)
    axes.set_ylabel("True", fontsize=LABEL_SIZE, color=INK)
    axes.set_title(as_label(title, width=int(10.5 * side)), fontsize=TITLE_SIZE, color=INK, loc="left")
    if k <= MOST_COUNTED:
        _write_counts(axes, matrix, share)
    bar = figure.colorbar(image, ax=axes, pad=0.03, aspect=28)
    bar.set_label("Share of the true class's rows", fontsize=LABEL_SIZE - 1, color=INK)
    bar.ax.tick_params(labelsize=TICK_SIZE, width=0.8)
    return figure


def _name_classes(axes: "Axes", classes: Sequence[str], cell: float) -> None:
    """`cell`: width of a column in inches; names that are wider stand upright."""
    names = [as_label(name, width=18) for name in classes]
    size = TICK_SIZE if len(names) <= MOST_COUNTED else max(4.5, TICK_SIZE * MOST_COUNTED / len(names))
    is_long = max(len(part) for name in names for part in name.split("\n")) * size * 0.0085 > cell
    axes.set_xticks(range(len(names)), names, rotation=90 if is_long else 0, fontsize=size)
    axes.set_yticks(range(len(names)), names, fontsize=size)


def _write_counts(axes: "Axes", matrix: np.ndarray, share: np.ndarray) -> None:
    size = TICK_SIZE if len(matrix) <= 5 else TICK_SIZE - 2
    for (row, column), count in np.ndenumerate(matrix):
        colour = "white" if share[row, column] > 0.55 else INK
        text = f"{count:,}\n{share[row, column]:.0%}" if len(matrix) <= 5 and matrix[row].sum() else f"{count:,}"
        axes.text(column, row, text, ha="center", va="center", fontsize=size, color=colour)


# ---- ROC curves


def roc_figure(models: Mapping[str, ClassificationSums], classes: Sequence[str]) -> "Figure":
    """Draw the ROC curve of each model, of more than two classes the mean over the classes, each against the rest;
    below it the curves of the first model's classes, where they are few. A model without rows of two classes has no
    curve, and says so."""
    first = next(iter(models.values()))
    by_class = 2 < first.num_classes <= MOST_CURVES
    figure = new_figure(7.4, 9.2 if by_class else 4.6, square_axes=True)
    panels = figure.subplots(2 if by_class else 1, 1, squeeze=False)[:, 0]
    lines = {name: (_mean_curve(sums), sums.roc_auc) for name, sums in models.items()}
    what = "" if first.num_classes == 2 else ", mean over the classes"
    _roc_panel(panels[0], lines, f"ROC curve{what}")
    if by_class:
        areas = first.class_aucs.tolist()
        lines = {name: (first.roc_curve(at), area) for at, (name, area) in enumerate(zip(classes, areas, strict=True))}
        _roc_panel(panels[1], lines, f"{next(iter(models))}: each class against the rest")
    return figure


def _mean_curve(sums: ClassificationSums) -> tuple[np.ndarray, np.ndarray]:
    curves = [sums.roc_curve(table) for table in range(len(sums.scores))]
    curves = [curve for curve in curves if not np.isnan(curve).any()]
    if len(curves) <= 1:
        return curves[0] if curves else (np.empty(0), np.empty(0))
    grid = np.linspace(0, 1, 201)
    mean = np.mean([np.interp(grid, *_one_value_each(*curve)) for curve in curves], axis=0)
    return np.append(0.0, grid), np.append(0.0, mean)


def _one_value_each(false: np.ndarray, true: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return a curve without its steps upwards but for their ends: `interp` wants x that grows."""
    last = np.append(np.diff(false) > 0, True)
    return false[last], true[last]


def _roc_panel(axes: "Axes", lines: Mapping[str, tuple[tuple[np.ndarray, np.ndarray], float]], title: str) -> None:
    looks = line_looks(list(lines))
    axes.plot([0, 1], [0, 1], color=QUIET, linewidth=0.9, linestyle=(0, (2, 3)))
    drawn = [axes.plot(*curve, **{"linewidth": 1.7, **looks[name]})[0] for name, (curve, _) in lines.items()]  # type: ignore[arg-type]
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    axes.set_aspect("equal", adjustable="box")
    dress(axes, grid="both")
    axes.set_xlabel("False positive rate", fontsize=LABEL_SIZE, color=INK)
    axes.set_ylabel("True positive rate", fontsize=LABEL_SIZE, color=INK)
    axes.set_title(as_label(title, width=46), fontsize=TITLE_SIZE, color=INK, loc="left")
    legend_outside(axes, drawn, [_with_area(name, area) for name, (_, area) in lines.items()])


def _with_area(name: str, area: float) -> str:
    short = name if len(name) <= 40 else f"{name[:39]}…"
    return f"{short}: area {area:.3f}" if math.isfinite(area) else f"{short}: no rows of two classes"


# ---- reliability


def reliability_figure(models: Mapping[str, ClassificationSums], num_groups: int = 10) -> "Figure":
    """Draw the observed share against the predicted probability, on the diagonal where it is right, and how the first
    model's predictions are spread. Of more than two classes all together, each against the rest."""
    first = next(iter(models.values()))
    figure = new_figure(7.4, 5.6)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3.2, 1])
    looks, drawn = line_looks(list(models)), []
    upper.plot([0, 1], [0, 1], color=QUIET, linewidth=0.9, linestyle=(0, (2, 3)))
    for name, sums in models.items():
        predicted, observed, _ = sums.reliability(num_groups)
        drawn += upper.plot(predicted, observed, **{"linewidth": 1.5, "marker": "o", "markersize": 4, **looks[name]})  # type: ignore[arg-type]
    upper.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    dress(upper, grid="both")
    upper.set_ylabel("Observed share", fontsize=LABEL_SIZE, color=INK)
    _spread(lower, first, num_groups, next(iter(models)))
    what = "Predicted probability" + ("" if first.num_classes == 2 else " of each class")
    lower.set_xlabel(what, fontsize=LABEL_SIZE, color=INK)
    legend_outside(upper, drawn, list(models))
    return figure


def _spread(axes: "Axes", sums: ClassificationSums, num_groups: int, name: str) -> None:
    predicted, _, rows = sums.reliability(num_groups)
    group = np.minimum((predicted * num_groups).astype(int), num_groups - 1)
    axes.bar((group + 0.5) / num_groups, rows, width=0.92 / num_groups, color=SILO)
    dress(axes, grid="y")
    axes.locator_params(axis="y", nbins=4)
    axes.yaxis.set_major_formatter("{x:,.0f}")
    counted = "Rows" if sums.num_classes == 2 else "Rows × classes"
    axes.set_ylabel(counted, fontsize=LABEL_SIZE, color=INK)
    axes.set_title(as_label(name, width=60), fontsize=TICK_SIZE, color=QUIET, loc="left")
