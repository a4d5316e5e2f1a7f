"""Axes of a target that is learned under a transform: equal distances are equal differences of what is learned."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class Scale:
    """Axes on which equal distances are equal differences of a transformed value."""

    axes: str
    """Its name in matplotlib."""
    forward: Callable[[np.ndarray], np.ndarray]
    inverse: Callable[[np.ndarray], np.ndarray]


def _same(values: np.ndarray) -> np.ndarray:
    return values


def _root(values: np.ndarray) -> np.ndarray:
    return np.sqrt(np.clip(values, 0.0, None))


SCALES = {
    "none": Scale("linear", _same, _same),
    "log10": Scale("log", np.log10, lambda values: 10.0**values),
    "log1p": Scale("asinh", np.arcsinh, np.sinh),
    "sqrt": Scale("function", _root, np.square),
    "asinh": Scale("asinh", np.arcsinh, np.sinh),
}
"""Transform of a target -> axes for its values. asinh, like log1p, is even near 0 and logarithmic far from it."""


def scaled(axes: "Axes", scale: Scale, limits: tuple[float, float]) -> tuple[float, float]:
    """Give both axes the scale, and few plain numbers; return the limits as values."""
    first = max(limits[0], 0.0) if scale.axes == "function" else limits[0]
    low, high = (float(end) for end in scale.inverse(np.array([first, limits[1]])))
    for axis, set_scale in ((axes.xaxis, axes.set_xscale), (axes.yaxis, axes.set_yscale)):
        if scale.axes == "function":
            set_scale("function", functions=(scale.forward, scale.inverse))
        elif scale.axes != "linear":
            set_scale(scale.axes)
        _few_ticks(axis, scale, limits)
    return low, high


def _few_ticks(axis, scale: Scale, limits: tuple[float, float]) -> None:
    """Up to six ticks; on a logarithmic axis powers of ten, where it spans several."""
    from matplotlib.ticker import FixedLocator, MaxNLocator, NullFormatter, NullLocator

    if scale.axes not in ("log", "asinh"):
        axis.set_major_locator(MaxNLocator(6))
        return
    ticks = _round_values(scale, limits)
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_major_formatter(lambda value, _: _power(value))
    axis.set_minor_locator(NullLocator())
    axis.set_minor_formatter(NullFormatter())


def _round_values(scale: Scale, limits: tuple[float, float]) -> list[float]:
    """Return zero and powers of ten within the limits, where these are few also their multiples."""
    found: list[float] = []
    for digits in ((1,), (1, 2, 5), range(1, 10)):
        sizes = [digit * 10.0**power for power in range(-12, 31) for digit in digits]
        signed = [0.0, *sizes, *(-size for size in sizes)] if scale.axes == "asinh" else sizes
        places = {value: float(scale.forward(np.array(value))) for value in sorted(signed)}
        found = _apart([(value, at) for value, at in places.items() if limits[0] <= at <= limits[1]], limits)
        if len(found) >= 4:
            break
    return found


def _apart(places: Sequence[tuple[float, float]], limits: tuple[float, float]) -> list[float]:
    """Return the values whose places do not touch those before, going out from the one nearest to zero."""
    least, kept = 0.13 * (limits[1] - limits[0]), dict[float, float]()
    for value, at in sorted(places, key=lambda each: (abs(each[0]), each[0])):
        if all(abs(at - other) >= least for other in kept.values()):
            kept[value] = at
    return sorted(kept)


def _power(value: float) -> str:
    """Return a number of one digit as people write it: 200, 2·10⁵."""
    if value == 0 or 1e-3 <= abs(value) < 1e4:
        return f"{value:g}".replace("-", "−")
    digit, power = f"{value:.0e}".split("e")
    raised = str(int(power)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"{'' if digit == '1' else '−' if digit == '-1' else digit.replace('-', '−') + '·'}10{raised}"
