"""Figures like Yamada et al. 2019, Figs. 2 to 6."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ray_fed.model_library.selection import Draw
from ray_fed.model_library.silo_search import SiloErrors
from ray_fed.reporting.figure_style import INK, LABEL_SIZE, QUIET, TICK_SIZE, TITLE_SIZE, as_label, dress, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CV, HELD_OUT, DIRECT = "#d55e00", "#0072b2", "#7f7f7f"


def parity_figure(draw: Draw, name: str, unit: str) -> "Figure":
    """Return predicted against true values of one draw: direct, chosen source, ensemble (Figs. 2a, 3a, 5b)."""
    figure = new_figure(11.0, 4.0, square_axes=True)
    panels = (
        ("no transfer (forest)", [("held out", draw.parity["direct held out"], DIRECT)]),
        ("best source by CV", [("held out", draw.parity["held out"], HELD_OUT), ("CV", draw.parity["cv"], CV)]),
        ("mean of the best", [("held out", draw.parity["ensemble held out"], HELD_OUT)]),
    )
    values = np.concatenate([np.concatenate(pair) for _, series in panels for _, pair, _ in series])
    low, high = np.quantile(values, [0.002, 0.998])
    for axes, (title, series) in zip(figure.subplots(1, 3), panels, strict=True):
        for label, (wanted, predicted), colour in series:
            size = 22 if label == "CV" else 7
            error = np.abs(wanted - predicted).mean()
            axes.scatter(wanted, predicted, s=size, color=colour, alpha=0.85 if label == "CV" else 0.4, linewidths=0,
                         label=f"{label}, MAE {error:.3g}")  # fmt: skip
        axes.plot([low, high], [low, high], color=INK, linewidth=0.8)
        axes.set(xlim=(low, high), ylim=(low, high), aspect="equal")
        _label(axes, title, f"true {as_label(name)} [{unit}]", "predicted")
        axes.legend(fontsize=TICK_SIZE - 1, frameon=False, loc="upper left")
    return figure


def scatter_figure(draw: Draw | SiloErrors, name: str, unit: str) -> "Figure":
    """Return, for every source of one draw, what CV says against what is true (the choice's flaw, Fig. 2a right)."""
    figure = new_figure(5.2, 4.4)
    axes = figure.subplots()
    axes.scatter(draw.source_cv, draw.source_held_out, s=9, color=HELD_OUT, alpha=0.5, linewidths=0)
    best = int(draw.source_cv.argmin())
    axes.scatter(draw.source_cv[best], draw.source_held_out[best], s=60, color=CV, marker="*", label="chosen by CV")
    axes.axhline(draw.held_out["direct forest"], color=DIRECT, linewidth=1, label="no transfer, held out")
    axes.axvline(draw.cv["direct forest"], color=DIRECT, linewidth=1, linestyle=":", label="no transfer, CV")
    r = np.corrcoef(draw.source_cv, draw.source_held_out)[0, 1]
    _label(axes, f"{as_label(name)}: {len(draw.source_cv)} sources, r = {r:.2f}", f"MAE by CV [{unit}]",
           f"MAE on held-out rows [{unit}]")  # fmt: skip
    axes.legend(fontsize=TICK_SIZE - 1, frameon=False)
    return figure


def neurons_figure(layers: Sequence[np.ndarray], name: str) -> "Figure":
    """Return heat maps of hidden layers, rows sorted by the property by the caller (Fig. 2c)."""
    figure = new_figure(2.3 * len(layers), 3.4)
    for number, (axes, layer) in enumerate(zip(np.atleast_1d(figure.subplots(1, len(layers))), layers, strict=True), 1):
        spread = layer.std(0)
        scaled = (layer - layer.mean(0)) / np.where(spread > 0, spread, 1)
        order = np.argsort([np.corrcoef(column, np.arange(len(layer)))[0, 1] if column.std() else 0
                            for column in scaled.T])  # fmt: skip
        axes.imshow(scaled[:, order], aspect="auto", cmap="coolwarm", vmin=-2.5, vmax=2.5, interpolation="nearest")
        axes.set_yticks([])
        _label(axes, f"layer {number}", f"{layer.shape[1]} neurons", f"rows by rising {as_label(name)}"
               if number == 1 else "")  # fmt: skip
    return figure


def map_figure(points: np.ndarray, names: Sequence[str], title: str) -> "Figure":
    """Return a two-dimensional map of descriptors coloured by data set (Fig. 6b)."""
    figure = new_figure(5.2, 4.4)
    axes = figure.subplots()
    for name, colour in zip(dict.fromkeys(names), (HELD_OUT, CV, DIRECT, "#009e73"), strict=False):
        chosen = np.array([other == name for other in names])
        axes.scatter(*points[chosen].T, s=6, color=colour, alpha=0.6, linewidths=0, label=as_label(name))
    _label(axes, title, "t-SNE 1", "t-SNE 2")
    axes.legend(fontsize=TICK_SIZE, frameon=False, markerscale=2)
    return figure


def matrix_figure(values: np.ndarray, sources: Sequence[str], targets: Sequence[str]) -> "Figure":
    """Return the transferability matrix: held-out MAE over that of the direct model; blue helps, red hurts."""
    figure = new_figure(2.6 + 0.34 * len(sources), 2.4 + 0.3 * len(targets))
    axes = figure.subplots()
    change = 100 * (values - 1)
    image = axes.imshow(change, cmap="RdBu_r", vmin=-40, vmax=40, aspect="auto")
    axes.set_xticks(range(len(sources)), [as_label(name, 40, 1) for name in sources], rotation=90, fontsize=7)
    axes.set_yticks(range(len(targets)), [as_label(name, 40, 1) for name in targets], fontsize=7)
    axes.set_xlabel("source property", fontsize=LABEL_SIZE)
    axes.set_ylabel("target property", fontsize=LABEL_SIZE)
    bar = figure.colorbar(image, ax=axes, shrink=0.8)
    bar.set_label("held-out MAE against no transfer, %", fontsize=TICK_SIZE)
    return figure


def histogram_figure(values: Mapping[str, np.ndarray], label: str) -> "Figure":
    """Return overlaid histograms (Fig. 5c)."""
    figure = new_figure(5.2, 3.6)
    axes = figure.subplots()
    edges = np.histogram_bin_edges(np.concatenate(list(values.values())), 18).tolist()
    for (name, series), colour in zip(values.items(), (HELD_OUT, CV, DIRECT), strict=False):
        axes.hist(series, edges, color=colour, alpha=0.6, label=as_label(name))
    _label(axes, "", label, "materials")
    axes.legend(fontsize=TICK_SIZE, frameon=False)
    return figure


def _label(axes: "Axes", title: str, x: str, y: str) -> None:
    axes.set_title(title, fontsize=TITLE_SIZE, color=INK)
    axes.set_xlabel(x, fontsize=LABEL_SIZE, color=QUIET)
    axes.set_ylabel(y, fontsize=LABEL_SIZE, color=QUIET)
    dress(axes)
