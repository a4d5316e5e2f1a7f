"""Figures like Yamada et al. 2019, Figs. 2 to 6."""

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
    """Return predicted against true values of one draw: direct, chosen source, stack (Figs. 2a, 3a, 5b)."""
    figure = new_figure(11.0, 4.0, square_axes=True)
    panels = (
        ("no transfer", [("held out", draw.parity["direct held out"], DIRECT)]),
        ("best source by CV", [("held out", draw.parity["held out"], HELD_OUT), ("CV", draw.parity["cv"], CV)]),
        ("stack", [("held out", draw.parity["stack held out"], HELD_OUT)]),
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
        label_axes(axes, title, f"true {as_label(name)} [{unit}]", "predicted")
        axes.legend(fontsize=TICK_SIZE - 1, frameon=False, loc="upper left")
    return figure


def scatter_figure(draw: Draw | SiloErrors, name: str, unit: str) -> "Figure":
    """Return, for every source of one draw, what CV says against what is true (the choice's flaw, Fig. 2a right)."""
    figure = new_figure(5.2, 4.4)
    axes = figure.subplots()
    axes.scatter(draw.source_cv, draw.source_held_out, s=9, color=HELD_OUT, alpha=0.5, linewidths=0)
    best = int(draw.source_cv.argmin())
    axes.scatter(draw.source_cv[best], draw.source_held_out[best], s=60, color=CV, marker="*", label="chosen by CV")
    axes.axhline(draw.held_out["direct"], color=DIRECT, linewidth=1, label="no transfer, held out")
    axes.axvline(draw.cv["direct"], color=DIRECT, linewidth=1, linestyle=":", label="no transfer, CV")
    r = np.corrcoef(draw.source_cv, draw.source_held_out)[0, 1]
    label_axes(axes, f"{as_label(name)}: {len(draw.source_cv)} sources, r = {r:.2f}", f"MAE by CV [{unit}]",
           f"MAE on held-out rows [{unit}]")  # fmt: skip
    axes.legend(fontsize=TICK_SIZE - 1, frameon=False)
    return figure


def label_axes(axes: "Axes", title: str, x: str, y: str) -> None:
    """Give axes a title and the names of both directions."""
    axes.set_title(title, fontsize=TITLE_SIZE, color=INK)
    axes.set_xlabel(x, fontsize=LABEL_SIZE, color=QUIET)
    axes.set_ylabel(y, fontsize=LABEL_SIZE, color=QUIET)
    dress(axes)
