"""The pictures of a run: reconstructions (the paper's Figs. 2-3), curves (Fig. 4), step sizes (Fig. 5)."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ray_fed.reporting.figure_style import (
    FEDERATED,
    LABEL_SIZE,
    LINE_COLOURS,
    QUIET,
    TICK_SIZE,
    TITLE_SIZE,
    as_label,
    dress,
    legend_outside,
    new_figure,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Arrays = Mapping[str, np.ndarray]
FLOOR = 1e-12
LABELS = {"mse": "mean squared error", "loss": "objective / objective at the start"}
COLOURS = {"ours": FEDERATED}
NAMES = {
    "dlg": "DLG", "idlg": "iDLG", "wdlg": "WDLG, literal", "wdlg_anchored": "WDLG, anchored", "cosine": "cosine + TV",
    "sorted": "sorted, 1-D", "l2_grey": "L2, grey start", "ours": "ours", "analytic": "dW/db", "rgap": "R-GAP",
    "layers": "ours, algebra", "idlg_adam": "iDLG, Adam", "idlg_descent": "iDLG, descent",
    "wdlg_descent": "WDLG, descent", "wdlg_normalised": "WDLG, normalised", "wdlg_debiased": "WDLG, debiased",
    "wdlg_filters": "WDLG, per filter",
}  # fmt: skip


def grid_figure(data: str, steps: Sequence[int], methods: Mapping[str, Arrays], image: int = 0) -> "Figure":
    """Show one image's reconstruction by each method (rows) after `steps` evaluations (columns), original first."""
    columns = ["original", *(f"{step} ev." for step in steps)]
    figure = new_figure(0.85 * len(columns) + 1.4, 0.9 * len(methods) + 0.4, square_axes=True)
    axes = figure.subplots(len(methods), len(columns), squeeze=False)
    for number, (row, (name, arrays)) in enumerate(zip(axes, methods.items(), strict=True)):
        pictures = [arrays["truth"][image, 0], *(arrays["snapshots"][image, :, 0])]
        for place, (axis, picture) in enumerate(zip(row, pictures, strict=True)):
            _show(axis, picture)
            if number == 0:
                axis.set_title(columns[place], fontsize=TICK_SIZE)
        row[0].set_ylabel(as_label(_name(name), 12), fontsize=TICK_SIZE, rotation=0, ha="right", va="center")
    figure.suptitle(as_label(f"Reconstruction over gradient evaluations: {data}", 60), fontsize=TITLE_SIZE)
    return figure


def final_figure(data: str, methods: Mapping[str, Arrays]) -> "Figure":
    """Show several images (rows): original, then what each method ended with."""
    first = next(iter(methods.values()))
    figure = new_figure(1.0 * (len(methods) + 1) + 0.3, 1.0 * len(first["truth"]) + 0.5, square_axes=True)
    axes = figure.subplots(len(first["truth"]), len(methods) + 1, squeeze=False)
    for image, row in enumerate(axes):
        pictures = [first["truth"][image, 0], *(arrays["found"][image, 0] for arrays in methods.values())]
        for axis, picture, name in zip(row, pictures, ["original", *methods], strict=True):
            _show(axis, picture)
            if image == 0:
                axis.set_title(as_label(_name(name), 10), fontsize=TICK_SIZE)
    figure.suptitle(as_label(f"After the whole budget: {data}", 60), fontsize=TITLE_SIZE)
    return figure


def curves_figure(curves: Mapping[str, Mapping[str, np.ndarray]], quantity: str) -> "Figure":
    """Draw the median over images of `mse` or of the relative objective, per data set (panels) and method (lines).

    curves: data -> method -> [images, evaluations].
    """
    figure = new_figure(4.0 * len(curves) + 1.6, 3.6)
    panels = figure.subplots(1, len(curves), squeeze=False)[0]
    drawn: dict[str, object] = {}
    for axis, (data, methods) in zip(panels, curves.items(), strict=True):
        for name, values in methods.items():
            drawn[name] = _draw_median(axis, values, _colour(name), quantity)
        axis.set_title(as_label(data, 30), fontsize=TITLE_SIZE)
        axis.set_xlabel("gradient evaluations", fontsize=LABEL_SIZE)
        dress(axis, "both")
    panels[0].set_ylabel(LABELS[quantity], fontsize=LABEL_SIZE)
    legend_outside(panels[-1], list(drawn.values()), [_name(name) for name in drawn])
    return figure


def phase_figure(curves: Mapping[str, Mapping[str, Arrays]]) -> "Figure":
    """Draw the error against the relative objective, medians over images, from the start (right) to the end (left), per
    data set (panels) and method (lines); curves: data -> method -> mse and loss [images, evaluations]."""
    figure = new_figure(4.0 * len(curves) + 1.6, 3.6)
    panels = figure.subplots(1, len(curves), squeeze=False)[0]
    drawn: dict[str, object] = {}
    for axis, (data, methods) in zip(panels, curves.items(), strict=True):
        for name, arrays in methods.items():
            loss, error = _median(arrays["loss"], "loss"), _median(arrays["mse"], "mse")
            (drawn[name],) = axis.plot(loss, error, color=_colour(name), linewidth=1.6)
            axis.plot(loss[-1:], error[-1:], color=_colour(name), marker="o", markersize=4)
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.invert_xaxis()
        axis.set_title(as_label(data, 30), fontsize=TITLE_SIZE)
        axis.set_xlabel(LABELS["loss"], fontsize=LABEL_SIZE)
        dress(axis, "both")
    panels[0].set_ylabel(LABELS["mse"], fontsize=LABEL_SIZE)
    legend_outside(panels[-1], list(drawn.values()), [_name(name) for name in drawn])
    return figure


def rates_figure(curves: Mapping[tuple[str, float], Arrays]) -> "Figure":
    """Draw the median objective and error (rows) of each method (columns) at each step size (lines); curves: (method,
    step size) -> mse and loss [images, evaluations]."""
    methods = list(dict.fromkeys(name for name, _ in curves))
    rates = sorted({rate for _, rate in curves})
    figure = new_figure(3.6 * len(methods) + 1.2, 5.6)
    panels = figure.subplots(2, len(methods), squeeze=False, sharey="row", sharex=True)
    lines: dict[float, object] = {}
    for row, quantity in zip(panels, ("loss", "mse"), strict=True):
        for axis, name in zip(row, methods, strict=True):
            for number, rate in enumerate(rates):
                colour = _PALETTE[number % len(_PALETTE)]
                if (name, rate) in curves:  # plain descent has step sizes of its own
                    lines[rate] = _draw_median(axis, curves[name, rate][quantity], colour, quantity)
            dress(axis, "both")
        row[0].set_ylabel(as_label(LABELS[quantity], 22), fontsize=LABEL_SIZE)
    for axis, name in zip(panels[0], methods, strict=True):
        axis.set_title(as_label(_name(name)), fontsize=TITLE_SIZE)
    for axis in panels[1]:
        axis.set_xlabel("gradient evaluations", fontsize=LABEL_SIZE)
    legend_outside(panels[0][-1], list(lines.values()), [f"step size {rate:g}" for rate in rates])
    return figure


def _draw_median(axis: "Axes", values: np.ndarray, colour: str, quantity: str) -> object:
    middle = _median(values, quantity)
    (line,) = axis.plot(np.arange(1, len(middle) + 1), middle, color=colour, linewidth=1.6)
    axis.set_yscale("log")
    axis.set_xscale("log")
    return line


def _median(values: np.ndarray, quantity: str) -> np.ndarray:
    """Return medians over images [evaluations]; NaN before most attacks had a point."""
    if quantity != "mse":
        values = values / np.maximum(_first_finite(values), FLOOR)
    worst = 1e3  # what is not finite is worse than anything drawn
    middle = np.clip(np.median(np.nan_to_num(values, nan=worst, posinf=worst), axis=0), FLOOR, worst)
    middle[: int((middle < worst).argmax())] = np.nan
    return middle


def _first_finite(values: np.ndarray) -> np.ndarray:
    """Return each row's first finite value [rows, 1]; NaN without one."""
    first = np.isfinite(values).argmax(1)
    return values[np.arange(len(values)), first][:, None]


def _show(axis: "Axes", picture: np.ndarray) -> None:
    """Draw [channels, height, width]; what never existed stays blank."""
    axis.set_xticks([])
    axis.set_yticks([])
    for side in axis.spines.values():
        side.set_color(QUIET)
        side.set_linewidth(0.6)
    if np.isfinite(picture).all():
        shown = np.clip(picture, 0, 1).transpose(1, 2, 0)
        axis.imshow(shown.squeeze(2) if shown.shape[2] == 1 else shown, cmap="gray", vmin=0, vmax=1)
    else:
        axis.set_aspect("equal")
        axis.text(0.5, 0.5, "not finite", ha="center", va="center", fontsize=6, transform=axis.transAxes)


def _name(method: str) -> str:
    return NAMES.get(method, method)


def _colour(name: str) -> str:
    """Return the colour of a method: the same in every panel and every run."""
    place = list(NAMES).index(name) if name in NAMES else len(NAMES)
    return COLOURS.get(name) or _PALETTE[place % len(_PALETTE)]


_PALETTE = (*LINE_COLOURS, "#4d4d4d", "#882255")
