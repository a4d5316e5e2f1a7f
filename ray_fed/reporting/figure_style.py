"""How every figure looks: fonts, colours, names as labels. No pyplot and no global settings of matplotlib."""

import io
import textwrap
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from ray_fed.reporting.writing import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 150
TITLE_SIZE, LABEL_SIZE, TICK_SIZE = 11, 10.5, 9.5

INK, QUIET, GRID = "#1a1a1a", "#5c5c5c", "#dddddd"
FEDERATED, POOLED, SILO = "#d55e00", "#4d4d4d", "#7fb2d6"
"""Federated stands out by hue and by lightness, for those who do not see the hue."""

LINE_COLOURS = ("#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Okabe & Ito 2008, tellable with any colour vision, less vermilion, which is FEDERATED."""
LINE_STYLES = ("-", "-.", ":", (0, (7, 2, 1, 2, 1, 2)))

FALLBACK_FONTS = ("DejaVu Sans", "Noto Sans CJK SC", "Noto Sans CJK JP", "WenQuanYi Zen Hei", "Microsoft YaHei",
                  "PingFang SC", "Hiragino Sans", "IPAexGothic")  # fmt: skip
"""Fonts searched, in order, for a letter of a silo's name."""

MISSING_LETTER = "\u25a1"


def new_figure(width: float, height: float, square_axes: bool = False) -> "Figure":
    """Return an empty white figure, inches; `square_axes` for axes of fixed shape, which leave gaps otherwise."""
    from matplotlib.figure import Figure

    layout = "compressed" if square_axes else "constrained"
    return Figure(figsize=(width, height), dpi=DPI, layout=layout, facecolor="white")


def png_bytes(figure: "Figure") -> bytes:
    """Return the figure as PNG, 150 dpi; the same bytes for the same figure."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.text import Text

    FigureCanvasAgg(figure)
    for text in figure.findobj(Text):
        text.set_family(font_family())  # type: ignore[attr-defined]
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, bbox_inches="tight", pad_inches=0.06, metadata={"Software": None})
    return buffer.getvalue()


def save_figure(figure: "Figure", path: Path | str) -> Path:
    """Write the figure as PNG, 150 dpi, atomically."""
    return write_atomically(Path(path), png_bytes(figure))


def dress(axes: "Axes", grid: str = "") -> None:
    """Give axes the common look; `grid` is "x", "y", "both" or empty."""
    axes.tick_params(labelsize=TICK_SIZE, colors=INK, width=0.8)
    for side in axes.spines.values():
        side.set_linewidth(0.8)
        side.set_color(QUIET)
    if grid:
        axes.grid(axis=grid, color=GRID, linewidth=0.7)  # type: ignore[arg-type]
        axes.set_axisbelow(True)


def as_label(name: object, width: int = 28, lines: int = 2) -> str:
    """Return a name that matplotlib draws as it is written, wrapped to `lines` lines of `width`, then cut with "...".

    Dollar signs start no formula; letters without a glyph become boxes instead of warnings.
    """
    printable = "".join(letter if letter.isprintable() else " " for letter in str(name))
    wrapped = textwrap.wrap(" ".join(printable.split()), width)
    if len(wrapped) > lines:
        wrapped = [*wrapped[: lines - 1], wrapped[lines - 1][: width - 1].rstrip(" ,;") + "…"]
    drawn = "".join(letter if letter == "\n" or _has_glyph(letter) else MISSING_LETTER for letter in "\n".join(wrapped))
    return drawn.replace("$", r"\$")


def legend_outside(axes: "Axes", handles: Sequence[object], names: Sequence[str], away: float = 1.02) -> None:
    """Add a legend on the right, `away` widths of the axes from their left edge. Its entries may start with "_", which
    matplotlib takes for "hide this"."""
    style = {"fontsize": TICK_SIZE, "frameon": False, "loc": "center left", "bbox_to_anchor": (away, 0.5)}
    legend = axes.legend(handles, ["-"] * len(names), **style)  # type: ignore[arg-type]
    for text, name in zip(legend.get_texts(), names, strict=True):
        text.set_text(as_label(name))


def line_looks(names: Sequence[str]) -> dict[str, dict[str, object]]:
    """Return name -> line properties: federated and pooled as in the bars, the others told by hue and dashes."""
    others = [name for name in names if name not in ("federated", "pooled")]
    looks: dict[str, dict[str, object]] = {
        name: {"color": LINE_COLOURS[i % len(LINE_COLOURS)], "linestyle": LINE_STYLES[i % len(LINE_STYLES)]}
        for i, name in enumerate(others)
    }
    return looks | {
        "federated": {"color": FEDERATED, "linestyle": "-", "linewidth": 2.6, "zorder": 3},
        "pooled": {"color": POOLED, "linestyle": "--", "linewidth": 2.2, "zorder": 4},
    }


def font_family() -> list[str]:
    """Return the installed ones of FALLBACK_FONTS; matplotlib looks a letter up in each in turn."""
    return [name for name, _ in _fonts()]


@cache
def _fonts() -> tuple[tuple[str, frozenset[int]], ...]:
    """Return (family, code points it can draw) of the installed fonts."""
    from matplotlib.font_manager import fontManager, get_font

    paths = {entry.name: entry.fname for entry in reversed(fontManager.ttflist)}
    wanted = [name for name in FALLBACK_FONTS if name in paths]
    return tuple((name, frozenset(get_font(paths[name]).get_charmap())) for name in wanted)


@cache
def _has_glyph(letter: str) -> bool:
    return any(ord(letter) in letters for _, letters in _fonts())
