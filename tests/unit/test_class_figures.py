"""The figures of a classifier, and parity plots of any unit and transform, looked at by numbers."""

import math

import numpy as np
import pytest

from ray_fed.errors import ConfigError
from ray_fed.metrics import ClassificationSums, regression_metrics
from ray_fed.randomness import generator
from ray_fed.reporting.class_figures import confusion_figure, reliability_figure, roc_figure
from ray_fed.reporting.figure_style import png_bytes
from ray_fed.reporting.figures import ParityPanel, parity_figure
from ray_fed.reporting.scales import SCALES
from tests.unit.test_reporting_figures import HOSTILE, LONG, assert_texts_are_apart, texts_of

CLASSES = [LONG, "metal", "cubic", "a semiconductor with a gap", "hexagonal", "orthorhombic", "monoclinic"]


def sums_of(num_classes, num_rows=600, seed=0):
    draw = generator(seed, "figure", "classes")
    labels = draw.integers(num_classes, size=num_rows)
    odds = np.exp(draw.normal(size=(num_rows, num_classes)) + 2 * np.eye(num_classes)[labels])
    return ClassificationSums.of(labels, odds / odds.sum(1, keepdims=True))


ONE_CLASS = ClassificationSums.of(np.ones(9, int), np.linspace(0.1, 0.9, 9))


@pytest.mark.parametrize("num_classes", [2, 5, 7])
def test_names_of_any_length_stay_apart_in_the_figures_of_a_classifier(num_classes):
    sums, names = sums_of(num_classes), CLASSES[:num_classes]
    assert_texts_are_apart(confusion_figure(sums, names, f"federated, {LONG}"))
    models = {"federated": sums, f"0 {LONG}": sums_of(num_classes, seed=1), f"1 {LONG}": ONE_CLASS}
    models = models if num_classes == 2 else dict(list(models.items())[:2])
    assert_texts_are_apart(roc_figure(models, names))
    assert_texts_are_apart(reliability_figure(models))


def test_cells_of_a_confusion_matrix_hold_its_counts():
    sums = sums_of(3)
    axes = confusion_figure(sums, ["a", "b", "c"]).axes[0]
    shown = [int(text.get_text().split("\n")[0]) for text in axes.texts]
    assert shown == sums.matrix.ravel().tolist()
    assert axes.images[0].get_array().sum() == pytest.approx(3)  # shares of each true class
    assert not confusion_figure(sums_of(20), [f"c{k}" for k in range(20)]).axes[0].texts
    with pytest.raises(ConfigError, match="3 classes needs 3 names, got 2"):
        confusion_figure(sums, ["a", "b"])


def test_a_roc_curve_has_the_area_that_its_legend_says():
    sums = sums_of(2)
    axes = roc_figure({"federated": sums, "north": ONE_CLASS}, ["no", "yes"]).axes[0]
    _, curve, none = axes.lines
    assert np.trapezoid(curve.get_ydata(), curve.get_xdata()) == pytest.approx(sums.roc_auc)
    assert len(none.get_xdata()) == 0
    said = [text.get_text() for text in axes.get_legend().get_texts()]
    assert [" ".join(text.split()) for text in said] == [
        f"federated: area {sums.roc_auc:.3f}",
        "north: no rows of two classes",
    ]


def test_of_several_classes_the_mean_curve_and_each_class_are_drawn():
    sums = sums_of(4)
    mean, each = roc_figure({"federated": sums}, list("abcd")).axes
    curve = mean.lines[1]
    assert np.trapezoid(curve.get_ydata(), curve.get_xdata()) == pytest.approx(sums.roc_auc, abs=2e-3)
    assert len(each.lines) == 5
    assert len(roc_figure({"federated": sums_of(12)}, list("abcdefghijkl")).axes) == 1


def test_reliability_lies_on_the_diagonal_of_a_calibrated_model():
    draw = generator(0, "calibrated")
    p = draw.uniform(size=20_000)
    upper, lower = reliability_figure({"m": ClassificationSums.of((draw.uniform(size=p.size) < p).astype(int), p)}).axes
    assert upper.lines[1].get_ydata() == pytest.approx(upper.lines[1].get_xdata(), abs=0.05)
    assert sum(bar.get_height() for bar in lower.patches) == p.size


@pytest.mark.parametrize("sums", [ONE_CLASS, ClassificationSums.none(2), ONE_CLASS.unmarked()])
def test_figures_of_few_rows_are_still_pictures(sums):
    for figure in (
        confusion_figure(sums, HOSTILE[:2], HOSTILE[0]),
        roc_figure({HOSTILE[1]: sums, HOSTILE[5]: sums}, HOSTILE[:2]),
        reliability_figure({HOSTILE[2]: sums, HOSTILE[6]: sums}),
    ):
        assert png_bytes(figure).startswith(b"\x89PNG")


# ---- parity plots


def panel(transform, unit="W/m/K"):
    scale, draw = SCALES[transform], generator(0, "parity", transform)
    hidden = np.abs(draw.normal(size=200)) + 0.1
    mae, r2, _ = regression_metrics(unit)
    return ParityPanel("m", scale.inverse(2 * hidden), scale.inverse(2 * hidden + 0.1), {mae: 1.5, r2: 0.9})


@pytest.mark.parametrize("transform", SCALES)
def test_axes_of_a_transformed_target_are_in_its_unit_and_evenly_filled(transform):
    shown = panel(transform)
    figure = parity_figure([shown, shown], "W/m/K", "thermal conductivity", "reference", transform)
    axes = figure.axes[0]
    assert axes.get_xscale() == SCALES[transform].axes
    assert axes.get_xlim() == axes.get_ylim()
    assert axes.get_xlim()[0] <= shown.y_true.min() < shown.y_true.max() <= axes.get_xlim()[1]
    ticks = [tick for tick in axes.get_xticks() if axes.get_xlim()[0] <= tick <= axes.get_xlim()[1]]
    assert 3 <= len(ticks) <= 8
    assert "MAE = 1.500 W/m/K" in texts_of(axes)
    assert "Thermal conductivity, predicted (W/m/K)" in {text.get_text() for text in figure.texts}
    assert_texts_are_apart(figure)


def test_wide_and_narrow_logarithmic_axes_have_few_round_ticks():
    for low, high in ((1e-9, 1e9), (1.0, 1e4), (3.0, 9.0), (2.0, 2.5)):
        values = np.geomspace(low, high, 50)
        figure = parity_figure([ParityPanel("m", values, values)], "", "n", "reference", "log10")
        ticks = [tick for tick in figure.axes[0].get_xticks() if low * 0.5 <= tick <= high * 2]
        assert len(ticks) <= 8
        assert all(float(f"{tick:.0e}") == pytest.approx(tick) for tick in ticks)
        assert "N, predicted" in {text.get_text() for text in figure.texts}
        png_bytes(figure)


def test_what_has_no_logarithm_is_counted_and_not_drawn():
    values = np.array([1.0, 10.0, 100.0, 1000.0])
    axes = parity_figure([ParityPanel("m", values, np.array([1.0, -3.0, 0.0, math.nan]))], transform="log10").axes[0]
    assert "n = 1" in texts_of(axes)
    assert "3 without a number" in texts_of(axes)


def test_an_unknown_transform_is_refused():
    with pytest.raises(ConfigError, match="unknown transform 'log'; did you mean 'log1"):
        parity_figure([panel("none")], transform="log")


def test_a_pure_number_has_no_unit_in_a_parity_plot():
    figure = parity_figure([panel("none", "")], "", "refractive index", "reference")
    assert "Refractive index, reference" in {text.get_text() for text in figure.texts}
    bar = figure.axes[1].get_ylabel()
    assert bar == "Points per cell of (0.1)²"
