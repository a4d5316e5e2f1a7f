"""Featurizers as scikit-learn and matminer users meet them, and the cell columns."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from ray_fed.errors import ConfigError, DataError
from ray_fed.materials.features.cells import LAST_SPACE_GROUP
from ray_fed.materials.features.featurizers import FEATURIZERS, make_featurizer


def crystal_frame(**columns):
    """Rock salt twice, with columns replaced."""
    frame = {
        "id": ["mp-1", "mp-2"], "formula": ["NaCl", "Fe2O3"], "a": 4.0, "b": 5.0, "c": 6.0, "alpha": 90.0, "beta": 90.0,
        "gamma": 120.0, "volume": 64.0, "spacegroup_number": 225.0, "target": 0.0, "reason": "",
    }  # fmt: skip
    return pd.DataFrame({**frame, **columns})


# cells


def test_cell_columns_follow_the_composition_as_they_are_given():
    features = make_featurizer("guo73").transform(crystal_frame())
    assert features[0, 65:].tolist() == [4, 5, 6, 90, 90, 120, 64, 225]
    np.testing.assert_array_equal(features[:, :65], make_featurizer("guo65").transform(["NaCl", "Fe2O3"]))


@pytest.mark.parametrize(("column", "value", "reason"), [
    ("a", np.nan, "cell: a is missing"),
    ("volume", 0.0, "cell: volume is '0.0', must be positive and finite"),
    ("b", np.inf, "cell: b is 'inf', must be positive and finite"),
    ("gamma", 180.0, "cell: gamma is '180.0', must be between 0 and 180"),
    ("spacegroup_number", 231.0, "cell: spacegroup_number is '231.0', must be a whole number from 1 to 230"),
    ("spacegroup_number", 14.5, "cell: spacegroup_number is '14.5', must be a whole number from 1 to 230"),
    ("c", "long", "cell: c is 'long', must be positive and finite"),
])  # fmt: skip
def test_a_cell_that_cannot_be_is_a_reason(column, value, reason):
    frame = crystal_frame()
    frame[column] = pd.Series([value, frame[column][1]], dtype=object if isinstance(value, str) else float)
    features, reasons = make_featurizer("guo73").transform_with_reasons(frame)
    assert reasons == [reason, ""]
    assert np.isnan(features[0]).all()
    assert np.isfinite(features[1]).all()


def test_a_table_without_cells_is_refused_by_the_names_of_its_missing_columns():
    with pytest.raises(DataError, match=r"no column 'b', 'spacegroup_number'; .*guo65"):
        make_featurizer("guo73").transform(crystal_frame().drop(columns=["b", "spacegroup_number"]))
    with pytest.raises(DataError, match="no column 'formula'; it has: x, y"):
        make_featurizer("guo65").transform(pd.DataFrame({"x": [1], "y": [2]}))
    _, reasons = make_featurizer("guo73").transform_with_reasons(["NaCl"])
    assert reasons == ["no cell: 'NaCl' is of type str; pass Structures or a table with cell columns"]


def test_normalised_cells_are_per_atom_ratios_and_one_crystal_system():
    featurizer = make_featurizer("guo73", structure="normalised")
    features = featurizer.transform(crystal_frame(num_atoms=[2, 8]))
    assert features[:, 65].tolist() == [32.0, 8.0]
    assert features[0, 66:71].tolist() == [1.25, 1.5, 90.0, 90.0, 120.0]
    assert dict(zip(featurizer.feature_labels()[71:], features[0, 71:], strict=True))["crystal_system_cubic"] == 1
    with pytest.raises(DataError, match="needs the number of atoms in the cell"):
        featurizer.transform(crystal_frame())


def test_the_230_space_groups_fall_into_seven_systems_of_the_known_sizes():
    frame = pd.concat([crystal_frame(num_atoms=1).iloc[:1]] * 230, ignore_index=True)
    frame["spacegroup_number"] = np.arange(1.0, 231.0)
    systems = make_featurizer("guo73", structure="normalised").transform(frame)[:, 71:]
    assert systems.sum(axis=0).tolist() == [2, 13, 59, 68, 25, 27, 36]
    assert len(LAST_SPACE_GROUP) == 7


def test_structures_bring_their_own_cell_and_space_group():
    from pymatgen.core import Lattice, Structure

    rock_salt = Structure.from_spacegroup(225, Lattice.cubic(5.64), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])
    features, reasons = make_featurizer("guo73").transform_with_reasons([rock_salt, None])
    np.testing.assert_allclose(features[0, 65:], [5.64] * 3 + [90.0] * 3 + [5.64**3, 225], rtol=1e-12)
    assert reasons == ["", "formula is missing"]
    per_atom = make_featurizer("guo73", structure="normalised").transform([rock_salt])[0, 65]
    assert per_atom == pytest.approx(5.64**3 / 8)
    table = make_featurizer("guo73").featurize_dataframe(pd.DataFrame({"structure": [rock_salt]}), "structure")
    assert table["spacegroup_number"].tolist() == [225.0]


def test_a_disordered_structure_counts_its_occupations():
    from pymatgen.core import Lattice, Structure

    alloy = Structure(Lattice.cubic(3.6), [{"Cu": 0.75, "Au": 0.25}], [[0, 0, 0]])
    features, reasons = make_featurizer("guo73").transform_with_reasons([alloy])
    assert reasons == [""]
    np.testing.assert_allclose(features[0, :65], make_featurizer("guo65").transform(["Cu3Au"])[0], rtol=1e-12)


# scikit-learn and matminer conventions


@pytest.mark.parametrize("name", FEATURIZERS)
def test_featurizers_clone_with_their_options_and_their_fingerprint(name):
    featurizer = make_featurizer(name, impute="none", missing_count=True)
    copy: Any = clone(featurizer)
    assert copy.get_params() == featurizer.get_params()
    assert copy.fingerprint() == featurizer.fingerprint()
    assert (
        copy.fit().get_feature_names_out().tolist() == featurizer.feature_labels() == list(featurizer.feature_units())
    )
    assert featurizer.needs_structure == (name not in ("guo65", "rich"))


def test_every_option_changes_the_fingerprint():
    options = [
        {}, {"impute": "none"}, {"impute": "matminer"}, {"spread": "variance"}, {"modulus": "youngs"},
        {"block": "ordinal"}, {"structure": "none"}, {"structure": "normalised"}, {"missing_count": True},
    ]  # fmt: skip
    assert len({make_featurizer("guo73", **option).fingerprint() for option in options}) == len(options)


def test_the_fingerprint_follows_the_values_of_a_table_and_not_its_path(tmp_path):
    texts = {"one": "element,x\nFe,1\n", "same": "element,x\nFe,1\n", "other": "element,x\nFe,2\n"}
    for name, text in texts.items():
        (tmp_path / f"{name}.csv").mkdir()
        (tmp_path / f"{name}.csv" / "t.csv").write_text(text, encoding="utf-8")
    one, same, other = (
        make_featurizer("rich", table=str(tmp_path / f"{n}.csv" / "t.csv")).fingerprint() for n in texts
    )
    assert one == same != other


def test_featurizers_stand_in_a_pipeline_and_name_their_columns():
    pipeline = make_pipeline(make_featurizer("guo65"), StandardScaler(), Ridge())
    pipeline.fit(["NaCl", "KCl", "LiF", "CsI"], [1.0, 2.0, 3.0, 4.0])
    assert pipeline.predict(["NaF"]).shape == (1,)
    table = (
        make_featurizer("guo73").set_output(transform="pandas").transform(crystal_frame().set_index("id", drop=False))
    )
    assert table.index.tolist() == ["mp-1", "mp-2"]
    assert table.columns.tolist() == make_featurizer("guo73").feature_labels()


def test_featurize_dataframe_keeps_rows_index_and_columns_and_adds_reasons(caplog):
    frame = pd.DataFrame({"compound": ["NaCl", "Xx2O3", None], "y": [1, 2, 3]}, index=[10, 20, 30])
    table = make_featurizer("guo65").featurize_dataframe(frame, "compound")
    assert table.index.tolist() == [10, 20, 30]
    assert table.columns[:2].tolist() == ["compound", "y"]
    assert table["reason"].tolist() == ["", "unknown element 'Xx' in 'Xx2O3'", "formula is missing"]
    assert table["mean X"].isna().tolist() == [False, True, True]
    assert "2 of 3 rows are NaN: 1 x unknown element, 1 x formula is missing; first: row 20" in caplog.text
    assert "reason" not in make_featurizer("guo65").featurize_dataframe(frame, "compound", return_errors=False)
    assert frame.columns.tolist() == ["compound", "y"]


def test_featurize_dataframe_stops_at_the_first_bad_row_when_told_to():
    frame = pd.DataFrame({"formula": ["NaCl", "Xx2O3"]}, index=["first", "second"])
    with pytest.raises(DataError, match="row second: unknown element 'Xx' in 'Xx2O3'"):
        make_featurizer("guo65").featurize_dataframe(frame, ignore_errors=False)
    with pytest.raises(DataError, match="no column 'composition'; it has: formula"):
        make_featurizer("guo65").featurize_dataframe(frame, "composition")


def test_featurize_dataframe_of_a_crystal_frame_keeps_the_readers_reason():
    frame = crystal_frame(reason=["", "target is missing"])
    table = make_featurizer("guo73").featurize_dataframe(frame)
    assert table["reason"].tolist() == ["", "target is missing"]
    assert table.columns.is_unique
    assert table["a"].tolist() == [4.0, 4.0]


def test_a_single_material_is_not_taken_for_a_list():
    for item in ("Fe2O3", {"Fe": 2, "O": 3}):
        with pytest.raises(DataError, match="is one material; pass a list of materials, or a table"):
            make_featurizer("guo65").transform(item)


@pytest.mark.parametrize("items", [["NaCl"], np.array(["NaCl"]), np.array([["NaCl"]]), pd.Series(["NaCl"]), ("NaCl",),
                                   pd.DataFrame({"x": ["NaCl"]}), iter(["NaCl"])])  # fmt: skip
def test_any_sequence_of_formulas_is_taken(items):
    np.testing.assert_array_equal(
        make_featurizer("guo65").transform(items), make_featurizer("guo65").transform(["NaCl"])
    )


def test_the_paper_to_the_letter_differs_from_the_default_in_spreads_modulus_and_block_alone():
    labels = dict.fromkeys(("guo73", "guo73_variance", "guo73_youngs", "guo73_literal"))
    for name in labels:
        labels[name] = make_featurizer(name).feature_labels()
        assert len(labels[name]) == 73
    changed = {name: set(found) - set(labels["guo73"]) for name, found in labels.items()}
    assert {len(changed["guo73_variance"]), len(changed["guo73_youngs"])} == {13, 5}
    assert all(label.startswith("variance ") for label in changed["guo73_variance"])
    assert all("youngs_modulus" in label for label in changed["guo73_youngs"])
    words = "block_ordinal", "log10_youngs_modulus"
    assert {label for label in changed["guo73_literal"] if not label.startswith("variance ")} == {
        f"{statistic} {word}" for word in words for statistic in ("minimum", "maximum", "range", "mean")
    }
    frame = crystal_frame(formula=["Fe2O3", "LaB6"])
    std, variance = (make_featurizer(name).transform(frame) for name in ("guo73", "guo73_variance"))
    spread = [label.startswith("std_dev") for label in labels["guo73"]]
    np.testing.assert_allclose(variance[:, spread], np.square(std[:, spread]), rtol=1e-9)


def test_no_rows_give_no_rows():
    assert make_featurizer("guo65").transform([]).shape == (0, 65)
    assert make_featurizer("guo73", missing_count=True).transform(crystal_frame().iloc[:0]).shape == (0, 74)


@pytest.mark.parametrize(("name", "options", "message"), [
    ("guo37", {}, "feature set 'guo37' is not known; choose one of guo73, guo65, guo73_variance, guo73_youngs, "
     "guo73_literal, rich"),
    ("guo73", {"imputer": "x"}, "feature set 'guo73' has no option 'imputer'; it has impute, spread"),
    ("guo73", {"impute": "mean"}, "impute='mean' is not known; choose one of median, matminer, none"),
    ("guo73", {"impute": True}, "impute=True is not known"),
    ("guo73", {"spread": "mad"}, "spread='mad' is not known; choose one of std, variance"),
    ("guo73", {"modulus": "shear"}, "modulus='shear' is not known; choose one of bulk, youngs"),
    ("guo73", {"block": "onehot"}, "block='onehot' is not known; choose one of matminer, ordinal"),
    ("guo73", {"structure": "cell"}, "structure='cell' is not known; choose one of as_given, normalised, none"),
    ("guo73", {"structure": ["none"]}, r"structure=\['none'\] must be text, true or false"),
    ("guo73", {"missing_count": "yes"}, "missing_count='yes' must be true or false"),
    ("rich", {"statistics": "all"}, "statistics='all' is not known; choose one of xenonpy, guo"),
    ("rich", {"impute": "mean"}, "impute='mean' is not known"),
])  # fmt: skip
def test_a_wrong_option_is_refused_with_its_value_and_the_choices(name, options, message):
    with pytest.raises(ConfigError, match=message):
        make_featurizer(name, **options)


def test_citations_name_the_paper_and_the_packages():
    assert [entry.split("{")[1].split(",")[0] for entry in make_featurizer("guo73").citations()] == [
        "guo2022", "ward2018", "ong2013",
    ]  # fmt: skip
    assert any("acscentsci.9b00804" in entry for entry in make_featurizer("rich").citations())
