"""The figures of a sweep: Guo et al. 2022, Fig. 5 (R² per frequency) and Fig. 6 (time), heat map, Pareto front."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ray_fed.metrics import Metric
from ray_fed.reporting.figure_style import FEDERATED, INK, LABEL_SIZE, POOLED, QUIET, SILO, as_label, dress, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


MAX_NAMED = 12


def boxes_figure(values: Mapping[str, Sequence[float]], metric: Metric, x_label: str) -> "Figure":
    """Box plot of a metric over repeats, one box per value; every run is a dot: three runs must not look like ten."""
    figure = new_figure(max(6.0, 0.9 * len(values) + 1.5), 4.2)
    axes = figure.subplots()
    names = list(values)
    axes.boxplot(
        [list(values[name]) for name in names], widths=0.55, showfliers=False,
        medianprops={"color": FEDERATED, "linewidth": 1.6}, boxprops={"color": INK}, whiskerprops={"color": INK},
        capprops={"color": INK},
    )  # fmt: skip
    for place, name in enumerate(names, start=1):
        runs = np.asarray(values[name])
        shift = np.linspace(-0.15, 0.15, len(runs)) if len(runs) > 1 else np.zeros(1)
        axes.scatter(place + shift, runs, s=9, color=SILO, alpha=0.8, zorder=3, linewidths=0)
    axes.set_xticks(range(1, len(names) + 1), [_tick(name, len(values[name])) for name in names])
    axes.set_xlabel(x_label, fontsize=LABEL_SIZE)
    axes.set_ylabel(f"{as_label(metric.heading)} on the common test set", fontsize=LABEL_SIZE)
    dress(axes, "y")
    return figure


def times_figure(compute: Mapping[str, float], communicate: Mapping[str, float], x_label: str) -> "Figure":
    """Stacked bars: mean seconds of a run spent computing and communicating, the share of computing above each."""
    figure = new_figure(max(6.0, 0.9 * len(compute) + 1.5), 4.2)
    axes = figure.subplots()
    names = list(compute)
    lower, upper = np.array([compute[n] for n in names]), np.array([communicate[n] for n in names])
    places = range(len(names))
    axes.bar(places, lower, color=POOLED, label="computing", width=0.6)
    axes.bar(places, upper, bottom=lower, color=FEDERATED, label="communicating", width=0.6)
    for place, (below, above) in enumerate(zip(lower, upper, strict=True)):
        share = 100 * below / (below + above) if below + above > 0 else float("nan")
        axes.annotate(
            f"{share:.0f} %", (place, below + above), ha="center", va="bottom", fontsize=8, color=INK,
            xytext=(0, 2), textcoords="offset points",
        )  # fmt: skip
    axes.set_xlabel(x_label, fontsize=LABEL_SIZE)
    axes.set_ylabel("Seconds of a run; label: share of computing", fontsize=LABEL_SIZE)
    axes.set_xticks(places, [_tick(name) for name in names])
    axes.margins(y=0.12)
    axes.legend(frameon=False, fontsize=8)
    dress(axes, "y")
    return figure


def heat_figure(
    rows: Sequence[str], columns: Sequence[str], values: np.ndarray, labels: tuple[str, str, str]
) -> "Figure":
    """Heat map of values [rows, columns] (NaN stays white) with the number in each cell; labels: (x, y, value)."""
    figure = new_figure(1.1 * len(columns) + 2.6, 0.6 * len(rows) + 1.8)
    axes = figure.subplots()
    shown = np.ma.masked_invalid(values)
    image = axes.imshow(shown, cmap="viridis", aspect="auto")
    middle = (shown.min() + shown.max()) / 2 if shown.count() else 0.0
    for (row, column), value in np.ndenumerate(values):
        if np.isfinite(value):
            colour = "white" if value < middle else "black"
            axes.text(column, row, f"{value:.3f}", ha="center", va="center", fontsize=8, color=colour)
    axes.set_xticks(range(len(columns)), columns)
    axes.set_yticks(range(len(rows)), rows)
    axes.set_xlabel(labels[0], fontsize=LABEL_SIZE)
    axes.set_ylabel(labels[1], fontsize=LABEL_SIZE)
    figure.colorbar(image, ax=axes, label=labels[2])
    return figure


def pareto_figure(names: Sequence[str], megabytes: Sequence[float], means: Sequence[float], std: Sequence[float],
                  metric: Metric, front: Sequence[str]) -> "Figure":  # fmt: skip
    """A metric's means against bytes sent (log scale), spread as bars, the front as a line. Of many points, only those
    of the front are named."""
    figure = new_figure(7.2, 4.4)
    axes = figure.subplots()
    on_front = [name in front for name in names]
    axes.errorbar(megabytes, means, yerr=std, fmt="none", ecolor=QUIET, elinewidth=1, zorder=1)
    colours = [FEDERATED if on else SILO for on in on_front]
    axes.scatter(megabytes, means, c=colours, s=28, zorder=3)
    line = sorted((mb, value) for mb, value, on in zip(megabytes, means, on_front, strict=True) if on)
    axes.plot([mb for mb, _ in line], [value for _, value in line], color=FEDERATED, linewidth=1.2, zorder=2)
    is_crowded = len(names) > MAX_NAMED
    for name, mb, value, on in zip(names, megabytes, means, on_front, strict=True):
        if is_crowded and not on:
            continue
        axes.annotate(name, (mb, value), fontsize=7.5, color=INK, xytext=(4, -9), textcoords="offset points")
    axes.set_xscale("log")
    axes.margins(x=0.1)
    axes.set_xlabel("Parameters sent in a run (MB, both directions, all silos)", fontsize=LABEL_SIZE)
    axes.set_ylabel(f"{as_label(metric.heading)} on the common test set", fontsize=LABEL_SIZE)
    dress(axes, "y")
    return figure


def _tick(name: str, num_runs: int = 0) -> str:
    """Return a point's name with one value a line, and how often it was run."""
    runs = [f"{num_runs} run{'s' if num_runs > 1 else ''}"] if num_runs else []
    return "\n".join([*name.split(", "), *runs])
