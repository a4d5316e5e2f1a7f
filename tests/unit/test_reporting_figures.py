"""The figures, looked at by numbers: what is drawn, where, and that no name can spoil it."""

import math
import subprocess
import sys
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from ray_fed.errors import ConfigError
from ray_fed.metrics import regression_metrics
from ray_fed.randomness import generator
from ray_fed.reporting.figure_style import FEDERATED, as_label, png_bytes, save_figure
from ray_fed.reporting.figures import (
    ParityPanel,
    bars_figure,
    learning_curves_figure,
    parity_figure,
)

HOSTILE = ["<script>alert(1)</script>", "$\\frac{$", "_hidden", "[red]x[/red]", "\x1b[31mred\x1b[0m\r\n", "材料研", ""]
LONG = "National Institute for Materials Science, Tsukuba, database of room-temperature superconductors"


MAE, R2, _ = regression_metrics("GPa")


def panel_of(title, truth, predicted, mae, r2) -> ParityPanel:
    return ParityPanel(title, truth, predicted, {MAE: mae, R2: r2})


def noisy_panel(title: str, spread: float = 0.2, rows: int = 300) -> ParityPanel:
    draw = generator(0, "parity", title)
    truth = draw.normal(-1.5, 1.0, rows)
    return panel_of(title, truth, truth + draw.laplace(0, spread, rows), spread, 0.9)


def texts_of(axes) -> str:
    return "\n".join(text.get_text() for text in axes.texts)


def scattered(axes):
    return next(c for c in axes.collections if len(c.get_offsets()))


def drawn_texts(figure) -> list[tuple[str, Bbox]]:
    """Return every text that is really drawn, with its box in pixels."""
    drawn, original = [], Text.draw

    def recorded(text, renderer, *args, **kwargs):
        if text.get_text().strip() and text.get_visible():
            drawn.append((text.get_text(), text.get_window_extent(renderer)))
        return original(text, renderer, *args, **kwargs)

    png_bytes(figure)  # attaches the canvas and the fonts of the saved picture
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Text, "draw", recorded)
        figure.canvas.draw()
    return drawn


def assert_texts_are_apart(figure):
    drawn = drawn_texts(figure)
    assert len(drawn) >= 10
    for (one, a), (two, b) in combinations(drawn, 2):
        assert not a.shrunk(0.99, 0.9).overlaps(b.shrunk(0.99, 0.9)), f"{one!r} overlaps {two!r}"


def test_crowded_points_are_dense_and_a_lone_point_is_not():
    truth = np.array([0.0] * 50 + [5.0])
    figure = parity_figure([panel_of("m", truth, truth, 0.0, 1.0)])
    density = scattered(figure.axes[0]).get_array()
    # One cell of 50, blurred by (1, 2, 1)/4 both ways: a quarter stays. The densest are drawn last.
    assert density.tolist() == [0.25] + [12.5] * 50


def test_six_panels_share_limits_and_show_mae_with_its_unit_and_r2():
    figure = parity_figure([noisy_panel(f"model {i}") for i in range(6)], unit="GPa")
    panels = figure.axes[:6]
    assert {axes.get_xlim() for axes in panels} == {axes.get_ylim() for axes in panels}
    assert len({axes.get_xlim() for axes in panels}) == 1
    assert all("MAE = 0.200 GPa" in texts_of(axes) and "R² = 0.900" in texts_of(axes) for axes in panels)
    assert [axes.get_title(loc="left")[:3] for axes in panels] == ["(a)", "(b)", "(c)", "(d)", "(e)", "(f)"]
    assert "Formation energy, DFT (GPa)" in {text.get_text() for text in figure.texts}


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 6])
def test_no_text_overlaps_another_with_long_names(count):
    assert_texts_are_apart(parity_figure([noisy_panel(f"{i} {LONG}") for i in range(count)]))


def test_bars_and_curves_keep_long_names_apart():
    names = [f"{i} {LONG}" for i in range(5)] + ["federated"]
    values = [0.3, 0.25, 0.2, 0.19, 0.18, 0.17]
    assert_texts_are_apart(bars_figure(names, {MAE: (values, [0.01] * 6), R2: ([0.9] * 6, [0.001] * 6)}, repeats=3))
    curves = {name: ([0, 1], [1.0, value]) for name, value in zip(names, values, strict=True)}
    assert_texts_are_apart(learning_curves_figure(curves, MAE))


def test_the_overlap_check_notices_an_overlap():
    figure = bars_figure(["a", "b", "c"], {MAE: ([0.3, 0.2, 0.1], None), R2: ([0.9, 0.8, 0.7], None)})
    figure.axes[0].set_yticks([0, 0.1, 2], ["a", "b", "c"])
    with pytest.raises(AssertionError, match="'a' overlaps 'b'"):
        assert_texts_are_apart(figure)


def test_nan_and_wild_predictions_are_counted_and_do_not_squeeze_the_axes():
    panel = noisy_panel("m")
    wild = panel.y_pred.copy()
    wild[:3], wild[3], wild[4], wild[5] = np.nan, 1e9, -np.inf, -1e9
    [axes, *_] = parity_figure([panel_of("m", panel.y_true, wild, math.nan, -3e7)]).axes
    assert "n = 296" in texts_of(axes)
    assert "4 without a number" in texts_of(axes)
    assert "2 outside the axes" in texts_of(axes)
    assert "MAE = –\nR² = −3e+07" in texts_of(axes)
    assert -10 < axes.get_xlim()[0] < axes.get_xlim()[1] < 10


def test_a_parity_figure_refuses_seven_models_and_unequal_lengths():
    with pytest.raises(ConfigError, match="got 7"):
        parity_figure([noisy_panel("m")] * 7)
    with pytest.raises(ConfigError, match="3 true values, 2 predicted"):
        parity_figure([panel_of("m", np.zeros(3), np.zeros(2), 0.0, 0.0)])


@pytest.mark.parametrize("truth", [np.empty(0), np.zeros(4), np.full(3, np.nan)])
def test_degenerate_data_still_give_a_picture(truth):
    assert png_bytes(parity_figure([panel_of("m", truth, truth, math.nan, math.nan)])).startswith(b"\x89PNG")


def test_any_name_is_drawn_as_it_is_written(tmp_path):
    figures = [
        parity_figure([noisy_panel(name, rows=20) for name in HOSTILE[:6]]),
        bars_figure(HOSTILE, {MAE: ([0.2] * 7, None), R2: ([math.nan] * 7, None)}),
        learning_curves_figure({name: ([0, 1, 2], [1.0, math.nan, 0.5]) for name in HOSTILE}, MAE),
    ]
    for index, figure in enumerate(figures):
        assert save_figure(figure, tmp_path / f"{index}.png").read_bytes().startswith(b"\x89PNG")
    [legend] = [axes.get_legend() for axes in figures[2].axes]
    assert [text.get_text() for text in legend.get_texts()] == [as_label(name) for name in HOSTILE]


@given(st.text(alphabet="$\\{}^_ab 材\n\x1b"))
def test_a_label_never_starts_a_formula_and_keeps_its_lines(name):
    label = as_label(name, width=10, lines=2)
    assert "$" not in label.replace("\\$", "")
    assert len(label.splitlines()) <= 2
    assert all(len(line.replace("\\$", "$")) <= 10 for line in label.splitlines())


def test_bars_show_values_with_spread_and_highlight_the_federated_model():
    names, mae, mae_std = ["a", "pooled", "federated"], [0.3, 0.2, 0.17], [0.01, 0.02, 0.0004]
    figure = bars_figure(names, {MAE: (mae, mae_std), R2: ([0.8, -0.4, 0.95], [0, 0, 0])})
    left, right = figure.axes
    assert texts_of(left).splitlines() == ["0.300 ± 0.010", "0.200 ± 0.020", "0.170 ± 0.0004"]
    assert texts_of(right).splitlines()[1].startswith("−0.400")
    assert max(right.get_xticks()) <= 1.0
    from matplotlib.colors import to_hex

    assert [to_hex(bar.get_facecolor()) == FEDERATED for bar in left.patches] == [False, False, True]


def test_learning_curves_are_logarithmic_only_where_that_is_possible():
    scales = [
        learning_curves_figure({"federated": ([0, 1], values)}, metric).axes[0].get_yscale()
        for values, metric in [
            ([1.0, 0.2], MAE),
            ([math.nan, -1.0], MAE),
            ([0.2, 0.9], R2),
        ]
    ]
    assert scales == ["log", "linear", "linear"]


def test_a_figure_is_the_same_bytes_twice():
    assert png_bytes(parity_figure([noisy_panel("m")])) == png_bytes(parity_figure([noisy_panel("m")]))


def test_importing_reporting_is_cheap_and_drawing_leaves_pyplot_alone():
    code = (
        "import sys, numpy as np\n"
        "from ray_fed.reporting import figures, report, run_directory, model_files, tensorboard_log, terminal\n"
        "heavy = {'ray', 'torch', 'pandas', 'pymatgen', 'matplotlib', 'tensorboard', 'sklearn', 'PIL'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
        "run_directory.describe_environment({})\n"
        "assert not (heavy & set(sys.modules))\n"
        "from ray_fed.reporting.figure_style import png_bytes\n"
        "png_bytes(figures.parity_figure([figures.ParityPanel('m', np.arange(3.), np.arange(3.))]))\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)
