"""The pictures of a run: bars with spread (the paper's Fig. 6), validation losses, generator losses."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pipelines.fedtransfer.results import GLOBAL, METRICS, ModelResult, epoch_curve
from ray_fed.reporting.figure_style import (
    FEDERATED,
    LABEL_SIZE,
    LINE_COLOURS,
    LINE_STYLES,
    POOLED,
    SILO,
    TICK_SIZE,
    TITLE_SIZE,
    as_label,
    dress,
    legend_outside,
    new_figure,
)
from ray_fed.style_transfer.methods import METHODS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

OTHER = "#b8b8b8"


def bars_figure(results: Sequence[ModelResult], silos: Sequence[str]) -> "Figure":
    """Draw every metric (rows) on every test set (columns); whiskers are standard deviations over seeds and folds."""
    places = [*silos, GLOBAL]
    figure = new_figure(3.1 * len(places) + 1.8, (0.24 * len(results) + 0.75) * len(METRICS))
    axes = figure.subplots(len(METRICS), len(places), squeeze=False, sharey=True)
    rows = list(reversed(results))
    for line, metric in zip(axes, METRICS, strict=True):
        for axis, place in zip(line, places, strict=True):
            cells = [row.cells[place, metric.name] for row in rows]
            axis.barh(
                range(len(rows)), [cell.mean for cell in cells],
                xerr=[cell.spread for cell in cells] if len(cells[0].values) > 1 else None,
                color=[_colour(row.method) for row in rows], ecolor="#1a1a1a", height=0.72,
                error_kw={"linewidth": 0.9, "capsize": 2},
            )  # fmt: skip
            if metric.unit and all(cell.mean > 0 for cell in cells):
                _bits_axis(axis, min(cell.mean for cell in cells))
            else:
                axis.set_xlim(0, max(axis.get_xlim()[1], 0) or 1)  # bars may all be 0, or no numbers
            better = f"{'higher' if metric.higher_is_better else 'lower'} is better"
            scale = f"{metric.unit}, by factors; " if metric.unit else ""
            axis.set_xlabel(f"{metric.title} ({scale}{better})", fontsize=TICK_SIZE)
            dress(axis, "x")
    for axis, place in zip(axes[0], places, strict=True):
        title = f"{place} test set" if place != GLOBAL else "global (mean of both)" if len(places) == 3 else "global"
        axis.set_title(as_label(title, 28), fontsize=TITLE_SIZE)
    for line in axes:
        line[0].set_yticks(range(len(rows)), [as_label(row.title, 30) for row in rows], fontsize=TICK_SIZE)
    return figure


def _bits_axis(axis: "Axes", least: float) -> None:
    """Scale MVI by factors: a silo alone is off by one of thirty, and on a linear axis all others look alike."""
    axis.set_xscale("log")
    axis.set_xlim(left=least / 2)
    axis.xaxis.set_major_locator(_logarithmic((1, 2, 5)))
    axis.xaxis.set_minor_locator(_logarithmic((1, 2, 3, 5, 7)))
    axis.xaxis.set_major_formatter("{x:g}")
    axis.xaxis.set_minor_formatter("")


def _logarithmic(parts: tuple[int, ...]):
    from matplotlib.ticker import LogLocator

    return LogLocator(subs=parts)


def losses_figure(lines: Sequence[Mapping[str, Any]], silos: Sequence[str]) -> "Figure":
    """Draw each method's validation loss over the rounds, a panel per silo, first seed and fold."""
    first: dict[str, Mapping[str, Any]] = {}
    for line in lines:
        if "losses" in line and set(line["losses"]) & set(silos):
            first.setdefault(line["method"], line)
    figure = new_figure(3.9 * len(silos) + 2.2, 3.4)
    axes = figure.subplots(1, len(silos), squeeze=False, sharey=True)[0]
    handles: dict[str, Any] = {}
    for axis, silo in zip(axes, silos, strict=True):
        for number, (name, line) in enumerate(first.items()):
            if silo in line["losses"]:
                style = {"color": _line_colour(name, number), "linestyle": LINE_STYLES[number // 6 % len(LINE_STYLES)]}
                (handles[name],) = axis.plot(line["losses"][silo], linewidth=1.5, **style)
        axis.set_title(as_label(f"validation tiles of {silo}", 34), fontsize=TITLE_SIZE)
        axis.set_xlabel("round", fontsize=LABEL_SIZE)
        axis.set_yscale("log")
        axis.yaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_minor_formatter("{x:.1g}")
        dress(axis, "both")
    axes[0].set_ylabel("weighted cross-entropy", fontsize=LABEL_SIZE)
    legend_outside(axes[-1], list(handles.values()), [METHODS[name].title for name in handles])
    return figure


def generators_figure(facts: Mapping[str, Mapping[str, float]]) -> "Figure":
    """Draw the losses of every silo's generator over its epochs. facts: silo -> what `learn_style` told."""
    names = {"l1": "L1 (grey values in [-1, 1])", "discriminator": "discriminator", "generator": "generator"}
    figure = new_figure(3.6 * len(names), 3.0)
    axes = figure.subplots(1, len(names), squeeze=False)[0]
    for axis, (name, title) in zip(axes, names.items(), strict=True):
        for number, (silo, told) in enumerate(facts.items()):
            values = epoch_curve(told, name)
            axis.plot(range(1, len(values) + 1), values, color=LINE_COLOURS[number % 5], label=as_label(silo))
        axis.set_title(title, fontsize=TITLE_SIZE)
        axis.set_xlabel("epoch", fontsize=LABEL_SIZE)
        dress(axis, "both")
    axes[-1].legend(fontsize=TICK_SIZE, frameon=False)
    return figure


def _colour(method: str) -> str:
    kind = METHODS[method]
    if kind.pool == "transfer":
        return FEDERATED
    return {"alone": SILO, "pooled": POOLED}.get(kind.cooperation, OTHER)


def _line_colour(method: str, number: int) -> str:
    colours = (*LINE_COLOURS, "#4d4d4d")
    return FEDERATED if method in ("transfer_int8",) else colours[number % len(colours)]
