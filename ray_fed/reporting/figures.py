"""The figures of a run: parity plots (Guo et al. 2022, Fig. 3), bars (Fig. 4), learning curves, silos' shares.

Each function takes numbers and returns a matplotlib Figure; `save_figure` writes it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from ray_fed.config import unknown_name
from ray_fed.errors import ConfigError
from ray_fed.metrics import Metric
from ray_fed.reporting.figure_style import (
    FEDERATED,
    INK,
    LABEL_SIZE,
    POOLED,
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
from ray_fed.reporting.figure_style import save_figure as save_figure
from ray_fed.reporting.scales import SCALES, Scale, scaled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_PANELS = 6
BINS_ACROSS = 120
"""Cells of the density histogram across the plotted range."""


@dataclass(frozen=True)
class ParityPanel:
    """One model on the common test set."""

    title: str
    y_true: np.ndarray
    """[rows], in the figure's unit."""
    y_pred: np.ndarray
    """[rows]; pairs with NaN or infinity are left out and counted in the panel."""
    scores: Mapping[Metric, float] = field(default_factory=dict)
    """Written into the panel."""


# ---- parity


def parity_figure(
    panels: Sequence[ParityPanel],
    unit: str = "eV/atom",
    quantity: str = "formation energy",
    reference: str = "DFT",
    transform: str = "none",
) -> "Figure":
    """Draw predicted against reference values, coloured by point density: 1 to 6 panels on common axes.

    unit: "" for a pure number. reference: where the true values come from ("DFT", "model", "experiment"). transform:
    under which the target was learned; the axes are of that kind, their numbers in the unit. ConfigError for another
    number of panels, or a transform that is none.
    """
    if not 1 <= len(panels) <= MAX_PANELS:
        raise ConfigError(f"a parity figure takes 1 to {MAX_PANELS} models, got {len(panels)}; draw several figures")
    if transform not in SCALES:
        raise unknown_name("transform", transform, SCALES)
    rows, columns = _grid(len(panels))
    figure = new_figure(3.25 * columns + 0.9, 3.45 * rows + 0.45, square_axes=True)
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    scale = SCALES[transform]
    pairs = [_finite_pairs(panel, scale) for panel in panels]
    limits, cell = _limits(pairs)
    densities = [_density(x, y, limits, cell) for x, y in pairs]
    norm = _density_norm(densities)
    for index, (axes, panel) in enumerate(zip(grid.flat, panels, strict=False)):
        letter = f"({'abcdef'[index]}) " if len(panels) > 1 else ""
        _parity_panel(axes, panel, pairs[index], densities[index], limits, norm, letter, scale)
    _remove_unused(grid, len(panels))
    measured = f" ({as_label(unit)})" if unit else ""
    name = as_label(quantity[:1].upper() + quantity[1:], width=40)
    figure.supxlabel(f"{name}, {as_label(reference)}{measured}", fontsize=LABEL_SIZE, color=INK)
    figure.supylabel(f"{name}, predicted{measured}", fontsize=LABEL_SIZE, color=INK)
    cells = f"({cell:g} {as_label(unit)})²".replace(" )", ")") if scale.axes == "linear" else "the grid"
    _density_bar(figure, list(grid.flat[: len(panels)]), norm, cells)
    return figure


def _grid(count: int) -> tuple[int, int]:
    """Return (rows, columns)."""
    return {1: (1, 1), 2: (1, 2), 3: (1, 3), 4: (2, 2), 5: (2, 3), 6: (2, 3)}[count]


def _finite_pairs(panel: ParityPanel, scale: Scale) -> tuple[np.ndarray, np.ndarray]:
    """Return (true values, predictions), transformed, of the pairs that have a place on the axes."""
    x, y = np.asarray(panel.y_true, np.float64).ravel(), np.asarray(panel.y_pred, np.float64).ravel()
    if x.shape != y.shape:
        raise ConfigError(f"parity panel {panel.title!r}: {len(x)} true values, {len(y)} predicted; give pairs")
    with np.errstate(invalid="ignore", divide="ignore"):
        x, y = scale.forward(x), scale.forward(y)
    finite = np.isfinite(x) & np.isfinite(y)
    return x[finite], y[finite]


def _limits(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[tuple[float, float], float]:
    """Return (common limits, width of a density cell).

    The true values decide; predictions may widen the axes by a quarter, so that one wild prediction cannot squeeze
    everything else into a point. What lies outside is counted in the panel.
    """
    truth = np.concatenate([x for x, _ in pairs])
    predicted = np.concatenate([y for _, y in pairs])
    if not len(truth):
        return (0.0, 1.0), 0.01
    low, high = truth.min(), truth.max()
    slack = 0.25 * (high - low) or 1.0
    low, high = min(low, max(predicted.min(), low - slack)), max(high, min(predicted.max(), high + slack))
    if high == low:
        low, high = low - 0.5, high + 0.5
    margin = 0.04 * (high - low)
    return (float(low - margin), float(high + margin)), _round_up((high - low) / BINS_ACROSS)


def _round_up(width: float) -> float:
    """Return the next of 1, 2, 5 times a power of ten."""
    power = 10.0 ** np.floor(np.log10(width))
    return float(next(step * power for step in (1, 2, 5, 10) if step * power >= width * (1 - 1e-9)))


def _density(x: np.ndarray, y: np.ndarray, limits: tuple[float, float], cell: float) -> np.ndarray:
    """Return for each point how many points share its cell, smoothed over the neighbouring cells; [rows]."""
    from scipy.ndimage import correlate1d

    edges = np.arange(limits[0] - 2 * cell, limits[1] + 3 * cell, cell)
    counts, _, _ = np.histogram2d(x, y, bins=(edges, edges))
    kernel = np.array([1, 2, 1]) / 4
    smooth = correlate1d(correlate1d(counts, kernel, 0, mode="constant"), kernel, 1, mode="constant")
    column = np.clip(np.searchsorted(edges, x, side="right") - 1, 0, len(edges) - 2)
    row = np.clip(np.searchsorted(edges, y, side="right") - 1, 0, len(edges) - 2)
    return smooth[column, row]


def _density_norm(densities: Sequence[np.ndarray]):
    """One logarithmic colour scale for all panels, from a lone point up."""
    from matplotlib.colors import LogNorm

    highest = max((float(d.max()) for d in densities if len(d)), default=1.0)
    return LogNorm(vmin=1.0, vmax=max(2.0, highest), clip=True)


def _density_colours():
    """Blue where points are sparse, orange where they crowd: the paper's reading on a perceptually even map.

    Its last tenth, a yellow too pale for white paper, is left out.
    """
    import matplotlib
    from matplotlib.colors import ListedColormap

    return ListedColormap(matplotlib.colormaps["plasma"](np.linspace(0, 0.9, 256)))


def _parity_panel(
    axes: "Axes", panel: ParityPanel, pairs, density, limits, norm, letter: str, scale: Scale
) -> None:  # fmt: skip
    (x, y), ends = pairs, scaled(axes, scale, limits)
    order = np.argsort(density, kind="stable")  # the densest last, on top
    size = float(np.clip(12_000 / max(1, len(x)), 1.5, 14))
    axes.plot(ends, ends, color=QUIET, linewidth=0.9, linestyle="--", zorder=3)
    shown = scale.inverse(np.array([x[order], y[order]]))
    axes.scatter(*shown, c=density[order], cmap=_density_colours(), norm=norm, s=size, linewidths=0, rasterized=True,
                 zorder=2)  # fmt: skip
    axes.set(xlim=ends, ylim=ends)
    axes.set_box_aspect(1)
    dress(axes)
    axes.set_title(as_label(letter + panel.title, width=30), fontsize=TITLE_SIZE, color=INK, loc="left")
    outside = int(((y < limits[0]) | (y > limits[1])).sum())
    scores = "\n".join(_score(metric, value) for metric, value in panel.scores.items())
    axes.text(0.045, 0.955, scores, transform=axes.transAxes, ha="left", va="top", fontsize=10, color=INK,
              linespacing=1.35, zorder=4)  # fmt: skip
    _note(axes, len(x), len(np.ravel(panel.y_true)) - len(x), outside)


def _score(metric: Metric, value: float) -> str:
    measured = f" {as_label(metric.unit)}" if metric.unit and np.isfinite(value) else ""
    return f"{as_label(metric.title)} = {_number(value, metric.few_digits)}{measured}"


def _number(value: float, digits: int) -> str:
    """So many decimals; more digits for small numbers, powers of ten for large ones, a dash for none."""
    if not np.isfinite(value):
        return "–"
    is_small, fixed = 0 < abs(value) < 0.5 * 10.0**-digits, f"{value:.{digits}f}"
    text = f"{value:.1g}" if is_small else fixed if abs(value) < 1e4 else f"{value:.3g}"
    return text.replace("-", "−")


def _note(axes: "Axes", rows: int, invalid: int, outside: int) -> None:
    """Say in the lower right how many points are drawn, and how many are not."""
    lines = [f"n = {rows:,}"]
    lines += [f"{invalid:,} without a number"] if invalid else []
    lines += [f"{outside:,} outside the axes"] if outside else []
    axes.text(0.955, 0.045, "\n".join(lines), transform=axes.transAxes, ha="right", va="bottom", fontsize=9,
              color=QUIET, linespacing=1.3, zorder=4)  # fmt: skip


def _remove_unused(grid: np.ndarray, used: int) -> None:
    """Take empty panels out; the one above a gap shows its own tick labels."""
    for axes in grid.flat[used:]:
        axes.remove()
    rows, columns = grid.shape
    for index in range(used):
        if index + columns >= used and index // columns < rows - 1:
            grid.flat[index].tick_params(labelbottom=True)


def _density_bar(figure: "Figure", beside: "list[Axes]", norm, cell: str) -> None:
    from matplotlib.cm import ScalarMappable
    from matplotlib.ticker import LogFormatterSciNotation, LogLocator, NullFormatter

    bar = figure.colorbar(ScalarMappable(norm, _density_colours()), ax=beside, pad=0.02, aspect=32)
    bar.set_label(f"Points per cell of {cell}", fontsize=LABEL_SIZE - 1, color=INK)
    bar.ax.tick_params(labelsize=TICK_SIZE, width=0.8)
    bar.outline.set_linewidth(0.8)  # type: ignore[operator]
    bar.ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if norm.vmax < 300 else (1,)))
    bar.ax.yaxis.set_major_formatter(LogFormatterSciNotation() if norm.vmax > 9999 else "{x:g}")
    bar.ax.yaxis.set_minor_formatter(NullFormatter())


# ---- bars


def bars_figure(
    names: Sequence[str],
    panels: Mapping[Metric, tuple[Sequence[float], Sequence[float] | None]],
    repeats: int | None = None,
) -> "Figure":
    """Draw the metrics of each model side by side, error bars over seeds, values at the bars' ends.

    panels: metric -> (means, standard deviations), each [models]; None for them means one seed, NaN a model without a
    value. The bars lie down: names of any length keep their line.
    """
    colours = [{"federated": FEDERATED, "pooled": POOLED}.get(name, SILO) for name in names]
    figure = new_figure(max(6.0, 4.7 * len(panels)), 1.35 + 0.46 * len(names))
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    spread = f", mean ± std of {repeats} seeds" if repeats and repeats > 1 else ""
    for panel, (metric, (means, stds)) in zip(axes, panels.items(), strict=True):
        _bars(panel, metric, means, stds, colours)
        panel.set_xlabel(f"{as_label(metric.heading)}{spread}", fontsize=LABEL_SIZE, color=INK)
    left = axes[0]
    left.set_yticks(range(len(names)), [as_label(name, width=30) for name in names])
    left.invert_yaxis()
    for label, name in zip(left.get_yticklabels(), names, strict=True):
        label.set_fontweight("bold" if name == "federated" else "normal")
    return figure


def _bars(axes: "Axes", metric: Metric, means, stds, colours) -> None:
    means = np.asarray(means, np.float64)
    places = range(len(means))
    spreads = np.zeros(len(means)) if stds is None else np.nan_to_num(np.asarray(stds, np.float64))
    shown = np.nan_to_num(means, posinf=0.0, neginf=0.0)
    axes.barh(places, shown, color=colours, height=0.66)
    if stds is not None:
        axes.errorbar(shown, places, xerr=spreads, fmt="none", ecolor=INK, elinewidth=1, capsize=3)
    dress(axes, grid="x")
    axes.tick_params(axis="y", length=0)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    low, high = min(0.0, float((shown - spreads).min())), max(0.0, float((shown + spreads).max())) or 1.0
    axes.set_xlim(low - (0.05 * (high - low) if low < 0 else 0), high + 0.36 * (high - low))
    if metric.higher_is_better and not metric.unit and high <= 1:  # R², an accuracy, an overlap: there is none above 1
        axes.set_xticks([tick for tick in axes.get_xticks() if tick <= 1.0])
    for place, (mean, spread) in enumerate(zip(means, spreads, strict=True)):
        has_spread = stds is not None and np.isfinite(mean)
        text = _number(mean, metric.few_digits) + (f" ± {_number(spread, metric.few_digits)}" if has_spread else "")
        axes.annotate(text, (max(0.0, shown[place] + spread), place), xytext=(6, 0), textcoords="offset points",
                      va="center", fontsize=TICK_SIZE, color=INK)  # fmt: skip


# ---- curves


def learning_curves_figure(
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    metric: Metric,
    x_label: str = "Communication round",
) -> "Figure":
    """Draw one line per model: name -> (rounds or epochs, values of the metric); NaN leaves a gap. The axis is
    logarithmic for errors only, where they are above 0."""
    figure = new_figure(7.6, 4.2)
    axes = figure.subplots()
    looks = line_looks(list(curves))
    lines = [_curve(axes, looks[name], x, y) for name, (x, y) in curves.items()]
    if not metric.higher_is_better and any(np.any(np.asarray(y, np.float64) > 0) for _, y in curves.values()):
        _log_scale(axes)
    dress(axes, grid="both")
    axes.set_xlabel(x_label, fontsize=LABEL_SIZE, color=INK)
    axes.set_ylabel(f"Test {as_label(metric.heading)}", fontsize=LABEL_SIZE, color=INK)
    legend_outside(axes, lines, list(curves), away=1.01)
    return figure


def _curve(axes: "Axes", look: Mapping[str, object], x: Sequence[float], y: Sequence[float]):
    marker = "o" if np.isfinite(np.asarray(y, np.float64)).sum() == 1 else ""  # one point makes no line
    return axes.plot(x, y, **{"linewidth": 1.7, "marker": marker, **look})[0]  # type: ignore[arg-type]


def _log_scale(axes: "Axes") -> None:
    """Logarithmic y axis with plain numbers, also between the powers of ten, and evenly spaced ones where the curves
    span less than a factor of four."""
    from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

    axes.set_yscale("log", nonpositive="mask")
    low, high = axes.get_ylim()
    axes.yaxis.set_major_locator(MaxNLocator(6) if high < 4 * low else LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())
