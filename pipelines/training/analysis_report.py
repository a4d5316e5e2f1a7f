"""The analysis of a model as tables and a figure of the report."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pipelines.training.analysis import Analysis
from ray_fed.reporting.figure_style import FEDERATED, INK, LABEL_SIZE, POOLED, as_label, dress, new_figure
from ray_fed.reporting.report import Block, Section, Table
from ray_fed.reporting.results import number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_ELEMENTS, MOST_PROPERTIES = 20, 12
"""Shown in the report; analysis.json has all of them."""


def sections(analysis: Analysis, figures: Sequence[Block]) -> list[Section]:
    """Return the part of a report on an analysis."""
    metric = analysis.metric
    anions, elements = _parted(analysis)
    shown = [[name, f"{count:,}", number(value, metric.digits)] for name, count, value in (*anions, *elements)]
    blocks: list[Block] = [*figures]
    if shown:
        caption = f"The federated model on {analysis.where}; of elements the {MOST_ELEMENTS} worst."
        blocks.append(Table(["group", "rows", metric.heading], shown, caption))
    if analysis.by_silo:
        rows = [
            [silo, *(f"{name} {number(lost, metric.digits)}" for name, lost in found[:3])]
            for silo, found in analysis.by_silo.items()
        ]
        blocks.append(Table(["silo", "most important", "second", "third"], rows, "By each silo's own rows."))
    if analysis.worst:
        rows = [[row.name, number(row.true), number(row.predicted), number(row.badness)] for row in analysis.worst]
        blocks.append(Table(["farthest off", "true", "predicted", "off by"], rows))
    return [Section("Where the model errs", blocks, folded=True)] if blocks else []


def _parted(analysis: Analysis) -> tuple[list[tuple[str, int, float]], list[tuple[str, int, float]]]:
    """Return the anion classes and the worst elements, without the first part of their names."""
    named = [(name.partition("."), count, value) for name, count, value in analysis.groups]
    anions = [(name[2], count, value) for name, count, value in named if name[0] == "anion"]
    elements = [(name[2], count, value) for name, count, value in named if name[0] == "element"]
    return anions, elements[:MOST_ELEMENTS]


def figure_of(analysis: Analysis) -> "Figure":
    """Bars: the metric by anion class and of the worst elements; the properties whose shuffling costs most."""
    anions, elements = _parted(analysis)
    figure = new_figure(9.0, 5.6)
    left, right = figure.subplots(1, 2)
    values = [(name, value) for name, _, value in (*anions, *elements)]
    _bars(left, values, as_label(analysis.metric.heading), len(anions))
    lost = f"{analysis.metric.title} {'lost' if analysis.metric.higher_is_better else 'added'} when shuffled"
    unit = f" ({analysis.metric.unit})" if analysis.metric.unit else ""
    _bars(right, analysis.importances[:MOST_PROPERTIES], as_label(lost + unit), 0)
    return figure


def _bars(axes: "Axes", values: Sequence[tuple[str, float]], label: str, num_first: int) -> None:
    """Draw bars from the top down; the first ones in another colour."""
    places = range(len(values))
    colours = [FEDERATED if place < num_first else POOLED for place in places]
    axes.barh(places, [value for _, value in values], color=colours, height=0.7)
    axes.set_yticks(places, [as_label(name) for name, _ in values], fontsize=8, color=INK)
    axes.invert_yaxis()
    axes.set_xlabel(label, fontsize=LABEL_SIZE)
    dress(axes, "x")
