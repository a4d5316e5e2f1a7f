"""The figure of a study of value: each member's error alone and joined against its rows."""

from collections.abc import Sequence
from statistics import mean
from typing import TYPE_CHECKING

from pipelines.value.findings import CurvePoint, ValueFindings
from ray_fed.reporting.figure_style import FEDERATED, LABEL_SIZE, LINE_COLOURS, TITLE_SIZE, as_label, dress, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ACROSS = 4
"""Panels in a row."""


def curves_figure(found: ValueFindings) -> "Figure | None":
    """Draw a panel for each member: mean over draws, every draw a dot; None without any curve."""
    curves = {silo: points for silo, points in found.curves.items() if points}
    if not curves:
        return None
    columns = min(ACROSS, len(curves))
    rows = -(-len(curves) // columns)
    figure = new_figure(2.9 * columns + 0.6, 2.9 * rows + 0.5)
    axes = figure.subplots(rows, columns, squeeze=False)
    for panel in axes.ravel()[len(curves) :]:
        panel.set_visible(False)
    for panel, (silo, points) in zip(axes.ravel(), curves.items(), strict=False):
        _panel(panel, points, silo)
    for panel in axes[:, 0]:
        panel.set_ylabel(f"{as_label(found.metric.heading)} on unseen rows", fontsize=LABEL_SIZE)
    axes[0, 0].legend(frameon=False, fontsize=8)
    return figure


def _panel(axes: "Axes", points: Sequence[CurvePoint], silo: str) -> None:
    for label, colour, kind in (("alone", LINE_COLOURS[0], "own"), ("joined", FEDERATED, "joined")):
        values = [getattr(point, kind) for point in points]
        rows = [point.num_rows for point in points]
        axes.plot(rows, [mean(each) for each in values], color=colour, marker="o", markersize=3, label=label)
        for number, each in zip(rows, values, strict=True):
            axes.scatter([number] * len(each), each, s=8, color=colour, alpha=0.5, linewidths=0)
    axes.set_xscale("log")
    ticks = [point.num_rows for point in points]
    axes.set_xticks(ticks, [f"{number:,}" for number in ticks], rotation=35, ha="right")
    axes.minorticks_off()
    axes.set_xlabel("rows of its own", fontsize=LABEL_SIZE)
    axes.set_title(as_label(silo), fontsize=TITLE_SIZE)
    dress(axes, "y")
