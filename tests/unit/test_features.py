"""The 73 features and the rich set: matminer, exact arithmetic, values made by hand, and laws."""

import csv
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_fed.errors import ConfigError
from ray_fed.materials.features.composition import CompositionRows, read_compositions
from ray_fed.materials.features.element_columns import GUO_PROPERTIES, GUO_STATISTICS
from ray_fed.materials.features.element_stats import STATISTICS, element_stats
from ray_fed.materials.features.elements import SYMBOLS, load_table
from ray_fed.materials.features.featurizers import make_featurizer

GOLDEN = Path(__file__).parents[1] / "golden"

amounts = st.one_of(
    st.integers(1, 40).map(float), st.floats(1e-6, 50.0), st.decimals("0.001", "9.999", places=3).map(float)
)
compositions = st.dictionaries(st.sampled_from(SYMBOLS), amounts, min_size=1, max_size=8)


def value_of(featurizer, item, name):
    features = featurizer.transform([item])
    return features[0, featurizer.feature_labels().index(name)]


# matminer as the reference


@pytest.fixture(scope="module")
def matminer_formulas():
    with (GOLDEN / "matminer_formulas.csv").open(newline="", encoding="utf-8") as file:
        return [row["formula"] for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def matminer_values():
    with np.load(GOLDEN / "matminer_reference.npz") as stored:
        return {name: stored[name] for name in ("imputed", "raw")}


@pytest.mark.parametrize(("impute", "reference"), [("matminer", "imputed"), ("none", "raw")])
def test_all_65_columns_equal_matminers_to_rounding(matminer_formulas, matminer_values, impute, reference):
    features, reasons = make_featurizer("guo65", impute=impute).transform_with_reasons(matminer_formulas)
    expected = matminer_values[reference]
    assert reasons == [""] * len(matminer_formulas)
    assert features.shape == expected.shape == (len(matminer_formulas), 65)
    np.testing.assert_array_equal(np.isnan(features), np.isnan(expected))
    # Measured against the size of the property in that row: matminer's own rounding of a spread of 1e13 is not zero.
    blocks, errors = expected.reshape(-1, 13, 5), np.abs(features - expected).reshape(-1, 13, 5)
    size = np.abs(blocks[:, :, :2]).max(axis=2, keepdims=True)
    worst = np.nanmax(errors / size, axis=(0, 1))
    assert (worst[:3] == 0).all()  # minimum, maximum and range are the same numbers, not only close ones
    assert worst.max() < 1e-12


def test_the_reference_holds_rows_that_would_show_a_wrong_kernel(matminer_formulas, matminer_values):
    assert len(matminer_formulas) > 200
    nan_share = np.isnan(matminer_values["raw"]).any(axis=1).mean()
    assert 0.5 < nan_share < 1.0
    assert np.isfinite(matminer_values["imputed"]).all()


def test_imputed_values_are_counted_per_property(matminer_formulas, matminer_values):
    featurizer = make_featurizer("guo65", impute="matminer", missing_count=True)
    expected = np.isnan(matminer_values["raw"].reshape(-1, 13, 5)[:, :, 3]).sum(axis=1)
    assert featurizer.feature_labels()[-1] == "num_missing"
    np.testing.assert_array_equal(featurizer.transform(matminer_formulas)[:, -1], expected)
    assert expected.max() > 5


# values made by hand


def test_statistics_of_haematite_are_those_on_paper():
    # X: Fe 1.83, O 3.44; weights 2 and 3: W = 5, sum of squares 13, unbiased factor 5 / (25 - 13).
    mean = (2 * 1.83 + 3 * 3.44) / 5
    variance = 5 / 12 * (2 * (1.83 - mean) ** 2 + 3 * (3.44 - mean) ** 2)
    expected = [1.83, 3.44, 1.61, mean, variance**0.5]
    np.testing.assert_allclose(make_featurizer("guo65").transform(["Fe2O3"])[0, :5], expected, rtol=1e-15)
    spread = value_of(make_featurizer("guo65", spread="variance"), "Fe2O3", "variance X")
    assert spread == pytest.approx(variance, rel=1e-15)


def test_names_and_order_are_those_of_the_preset():
    names = make_featurizer("guo73", impute="matminer").feature_labels()
    assert names[:65] == [f"{statistic} {name}" for name in GUO_PROPERTIES for statistic in GUO_STATISTICS]
    assert names[65:] == ["a", "b", "c", "alpha", "beta", "gamma", "volume", "spacegroup_number"]


def test_median_mode_takes_logarithms_before_it_fills_gaps():
    featurizer = make_featurizer("guo65")
    name = "mean log10_electrical_resistivity"
    assert value_of(featurizer, "Cu", name) == pytest.approx(np.log10(1.678e-8), rel=1e-15)
    _, resistivity = load_table("guo").column("electrical_resistivity")
    assert value_of(featurizer, "O2", name) == pytest.approx(np.nanmedian(np.log10(resistivity)), rel=1e-15)
    assert featurizer.feature_units()[name] == "log10(Ω·m)"
    assert value_of(make_featurizer("guo65", impute="matminer"), "O2", "mean electrical_resistivity") > 1e13


def test_the_five_properties_that_span_decades_and_no_other_are_logarithms():
    names = [name.removeprefix("mean ") for name in make_featurizer("guo65").feature_labels()[3::5]]
    marked = [name.removeprefix("log10_") for name in names if name.startswith("log10_")]
    assert marked == [
        "electrical_resistivity", "thermal_conductivity", "melting_point", "bulk_modulus",
        "coefficient_of_linear_thermal_expansion",
    ]  # fmt: skip


def test_helium_and_neon_take_their_radius_from_mendeleev_before_the_median():
    _, values = load_table("guo").imputed(["atomic_radius"], "median")
    assert (values[2, 0], values[10, 0]) == (1.2, 1.6)
    _, raw = load_table("guo").imputed(["atomic_radius"], "none")
    assert np.isnan(raw[[2, 10], 0]).all()
    assert value_of(make_featurizer("guo65", missing_count=True), "Og", "num_missing") == 9


@pytest.mark.parametrize(
    ("symbol", "matminer", "ordinal"),
    [("He", 2, 1), ("La", 3, 3), ("Ac", 3, 3), ("Ce", 3, 4), ("Fe", 3, 3), ("K", 1, 1)],
)
def test_blocks_are_numbered_as_matminer_does_or_in_order(symbol, matminer, ordinal):
    assert value_of(make_featurizer("guo65"), symbol, "mean block") == matminer
    assert value_of(make_featurizer("guo65", block="ordinal"), symbol, "mean block_ordinal") == ordinal


def test_youngs_modulus_takes_the_place_of_the_bulk_modulus():
    bulk, youngs = make_featurizer("guo65", impute="none"), make_featurizer("guo65", impute="none", modulus="youngs")
    place = bulk.feature_labels().index("mean bulk_modulus")
    assert youngs.feature_labels()[place] == "mean youngs_modulus"
    assert (value_of(bulk, "Fe", "mean bulk_modulus"), value_of(youngs, "Fe", "mean youngs_modulus")) == (170, 211)


def test_xenonpys_five_statistics_of_quartz_are_those_on_paper():
    featurizer = make_featurizer("rich")
    expected = {"ave": 10.0, "sum": 30.0, "var": 8.0, "max": 14.0, "min": 8.0}  # atomic numbers 14, 8, 8
    found = {prefix: value_of(featurizer, "SiO2", f"{prefix}:atomic_number") for prefix in expected}
    assert found == pytest.approx(expected, rel=1e-15)
    names = featurizer.feature_labels()
    assert [name.split(":")[0] for name in names[::48]] == list(expected)
    assert len(names) == 240
    assert featurizer.feature_units()["var:density"] == "(g/cm³)²"


def test_the_rich_set_also_takes_the_five_statistics_of_the_preset():
    names = make_featurizer("rich", statistics="guo").feature_labels()
    assert names[:5] == [f"{statistic} atomic_number" for statistic in GUO_STATISTICS]


def test_valence_electrons_follow_the_ground_state_configuration():
    table = load_table("rich")
    expected = {"num_s_valence": 2, "num_d_valence": 1, "num_f_valence": 3, "num_unfilled": 20, "num_valance": 6}
    assert {name: table.column(name)[1][92] for name in expected} == expected  # U: 5f3 6d1 7s2


def test_rich_values_are_complete_and_finite_for_every_element():
    assert np.isfinite(make_featurizer("rich").transform(list(SYMBOLS))).all()
    assert np.isfinite(make_featurizer("guo65").transform(list(SYMBOLS))).all()


# the kernel


def reference_statistics(weights, values):
    """One row by numpy's own functions and by exact fractions: an independent implementation."""
    exact = [Fraction(weight) for weight in weights]
    numbers = [Fraction(value) for value in values]
    total = sum(exact)
    mean = sum(w * x for w, x in zip(exact, numbers, strict=True)) / total
    scatter = sum(w * (x - mean) ** 2 for w, x in zip(exact, numbers, strict=True))
    pairs = total**2 - sum(w * w for w in exact)
    variance = float(scatter * total / pairs) if len(values) > 1 else 0.0
    return {
        "minimum": min(values), "maximum": max(values), "range": max(values) - min(values), "mean": float(mean),
        "std_dev": variance**0.5, "variance": variance, "sum": float(mean * total),
        "population_variance": float(scatter / total),
    }  # fmt: skip


@given(st.lists(compositions, min_size=1, max_size=12), st.integers(0, 2**32 - 1))
@settings(max_examples=60)
def test_the_kernel_equals_exact_arithmetic(materials, seed):
    table = np.random.default_rng(seed).normal(size=(119, 2)) * [1.0, 1e6]
    rows, _ = read_compositions(materials)
    found = element_stats(rows, table, tuple(STATISTICS))
    for i in range(len(rows)):
        entries = slice(*rows.indptr[i : i + 2])
        weights, values = rows.amounts[entries], table[rows.atomic_numbers[entries]]
        for p in range(2):
            expected = reference_statistics(weights.tolist(), values[:, p].tolist())
            size = np.abs(values[:, p]).max()
            scale = np.array(
                [{"variance": size, "population_variance": size, "sum": weights.sum()}.get(n, 1) for n in expected]
            )
            np.testing.assert_allclose(found[i, p], list(expected.values()), rtol=1e-9, atol=1e-13 * size * scale.max())


def test_a_dopant_of_one_in_ten_billion_keeps_its_digits():
    # W² - sum of w² loses six digits here; the sum over pairs loses none.
    weights, values = [1.0, 1e-10], [1.9, 3.44]
    expected = reference_statistics(weights, values)["std_dev"]
    table = np.full((119, 1), np.nan)
    table[[14, 8], 0] = values
    rows, _ = read_compositions([{"Si": 1.0, "O": 1e-10}])
    assert element_stats(rows, table, ["std_dev"])[0, 0, 0] == pytest.approx(expected, rel=1e-14)


def test_equal_values_have_a_spread_of_exactly_zero_whatever_their_size():
    # Both values are matminer's imputed mean, 2.4e13; matminer's own result is 0.008.
    featurizer = make_featurizer("guo65", impute="matminer")
    assert value_of(featurizer, "Xe6O", "minimum electrical_resistivity") > 1e13
    assert value_of(featurizer, "Xe6O", "std_dev electrical_resistivity") == 0
    assert value_of(featurizer, "Xe0.1O0.7N0.3", "range electrical_resistivity") == 0


def test_blocks_of_rows_do_not_change_a_bit():
    rng = np.random.default_rng(7)
    names = [dict.fromkeys(rng.choice(SYMBOLS, rng.integers(1, 9), replace=False), 1.5) for _ in range(3000)]
    featurizer = make_featurizer("guo65")
    at_once = featurizer.transform(names)
    one_by_one = np.concatenate([featurizer.transform(names[start : start + 1]) for start in range(0, 3000, 100)])
    np.testing.assert_array_equal(at_once[::100], one_by_one)


def test_rounding_never_carries_a_mean_past_the_largest_value():
    low, high = 2.39, 7.87
    assert low + (high - low) > high  # which is what an update of the mean by a weight of one does
    table = np.zeros((119, 1))
    table[[1, 2], 0] = low, high
    rows, _ = read_compositions([{"H": 1e-20, "He": 1.0}])
    assert element_stats(rows, table, ["mean"])[0, 0, 0] == high


def test_rows_without_elements_are_nan_between_rows_that_have_some():
    rows, _ = read_compositions(["", "O2", "Xx", "Fe", ""])
    found = element_stats(rows, np.arange(119.0)[:, None], ["mean", "sum"])[:, 0]
    np.testing.assert_array_equal(found, [[np.nan] * 2, [8, 16], [np.nan] * 2, [26, 26], [np.nan] * 2])


def test_unknown_statistics_are_refused():
    rows = CompositionRows.from_amounts([{8: 1.0}])
    with pytest.raises(ConfigError, match="'mode' is not known; choose from minimum"):
        element_stats(rows, np.ones((119, 1)), ["mode"])


# laws


@given(compositions, st.sampled_from((2.0, 3.0, 0.1, 7.5)))
@settings(max_examples=80)
def test_a_formula_and_its_multiple_have_the_same_features(composition, factor):
    once, multiple = make_featurizer("guo65").transform(
        [composition, {symbol: factor * amount for symbol, amount in composition.items()}]
    )
    np.testing.assert_allclose(multiple, once, rtol=1e-9, atol=1e-9 * np.abs(once).max())


@given(compositions.flatmap(lambda c: st.tuples(st.just(c), st.permutations(list(c.items())))))
@settings(max_examples=80)
def test_the_order_of_elements_does_not_change_a_bit(pair):
    composition, shuffled = pair
    for name in ("guo65", "rich"):
        first, second = make_featurizer(name).transform([composition, dict(shuffled)])
        np.testing.assert_array_equal(first, second)


@given(st.lists(compositions, min_size=1, max_size=5))
@settings(max_examples=80)
def test_means_lie_between_minimum_and_maximum_and_spreads_are_not_negative(materials):
    blocks = make_featurizer("guo65", impute="matminer").transform(materials).reshape(-1, 13, 5)
    minimum, maximum, extent, mean, spread = np.moveaxis(blocks, 2, 0)
    assert (minimum <= mean).all()
    assert (mean <= maximum).all()
    assert (extent == maximum - minimum).all()
    assert (spread >= 0).all()
    assert ((spread == 0) | (extent > 0)).all()


@given(st.sampled_from(SYMBOLS), amounts)
@settings(max_examples=40)
def test_a_pure_element_has_its_own_values_and_no_spread(symbol, amount):
    minimum, maximum, extent, mean, spread = np.moveaxis(
        make_featurizer("guo65").transform([{symbol: amount}]).reshape(13, 5), 1, 0
    )
    np.testing.assert_array_equal(minimum, maximum)
    np.testing.assert_array_equal(minimum, mean)
    assert not extent.any()
    assert not spread.any()
