"""Element tables: hashed, rebuilt from the packages, refused when touched, or brought along."""

import json
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest

from ray_fed.errors import DataError
from ray_fed.materials.features.elements import (
    TABLE_FOLDER,
    load_table,
    read_element_table,
    read_hashed_table,
    table_paths,
)
from ray_fed.materials.features.featurizers import make_featurizer
from tests.golden.make_element_tables import build_table, changes

XENONPY_TABLE = Path(__file__).parents[3] / "shared" / "datasets" / "elements" / "xenonpy_elements_completed.csv"


def test_the_shipped_tables_hold_what_the_packages_say():
    for name in ("guo", "rich"):
        shipped = load_table(name)
        if any(version(package) != number for package, number in shipped.packages.items()):
            pytest.skip(f"the {name} table was built with {dict(shipped.packages)}; other versions are installed")
        built = build_table(name)
        assert changes(built, shipped) == []
        assert built.digest == shipped.digest


@pytest.mark.parametrize(("old", "new", "message"), [
    ("26,Fe,1.83,", "26,Fe,1.84,", "values were changed"),
    ("26,Fe,1.83,", "26,Fe,,", "values were changed"),
    ("26,Fe,1.83,", "26,Fe,high,", "line 27, column 'X': 'high' is not a number"),
    ("26,Fe,", "26,Fx,", "line 27: unknown element 'Fx'"),
    ("Z,symbol,X,", "Z,symbol,Y,", "its columns are not those of guo_elements.json"),
])  # fmt: skip
def test_a_table_whose_values_were_touched_is_refused(tmp_path, old, new, message):
    for path in table_paths(TABLE_FOLDER, "guo"):
        shutil.copy(path, tmp_path)
    assert read_hashed_table(tmp_path, "guo").digest == load_table("guo").digest
    values = tmp_path / "guo_elements.csv"
    values.write_text(values.read_text(encoding="utf-8").replace(old, new), encoding="utf-8")
    with pytest.raises(DataError, match=message):
        read_hashed_table(tmp_path, "guo")


def test_a_table_whose_units_or_marks_were_touched_is_refused(tmp_path):
    for path in table_paths(TABLE_FOLDER, "guo"):
        shutil.copy(path, tmp_path)
    path = tmp_path / "guo_elements.json"
    header = json.loads(path.read_text(encoding="utf-8"))
    for change, message in [
        ({"columns": header["columns"] | {"X": header["columns"]["X"] | {"log10": True}}}, "values were changed"),
        ({"columns": header["columns"] | {"X": {"units": "1"}}}, "column 'X' is described wrongly"),
        ({"format": 2}, "has format 2, this version reads format 1"),
    ]:
        path.write_text(json.dumps(header | change), encoding="utf-8")
        with pytest.raises(DataError, match=message):
            read_hashed_table(tmp_path, "guo")
    path.write_text("{}", encoding="utf-8")
    with pytest.raises(DataError, match="has no columns, format"):
        read_hashed_table(tmp_path, "guo")


def test_formulas_become_features_without_pymatgen_mendeleev_or_torch():
    code = (
        "import sys; from ray_fed.materials.features.featurizers import make_featurizer as make; "
        "make('guo65').transform(['Fe2O3', 'Ca3(PO4)2', 'Xx']); make('rich').transform(['NaCl']); "
        "print(sorted({'pymatgen', 'mendeleev', 'torch', 'ray'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_a_table_of_ones_own_becomes_features(tmp_path):
    path = tmp_path / "hardness.csv"
    path.write_text("element,mohs,price\nFe,4,0.1\nO,,\nSi,6.5,2\n", encoding="utf-8")
    _, values = read_element_table(path).imputed(["mohs"], "median")
    assert np.flatnonzero(np.isfinite(values[:, 0])).tolist() == [8, 14, 26]  # no element is made up
    featurizer = make_featurizer("rich", table=str(path))
    features, reasons = featurizer.transform_with_reasons(["FeSi", "Fe2O3", "NaCl"])
    assert featurizer.feature_labels()[:2] == ["ave:mohs", "ave:price"]
    assert reasons == ["", "", "element 'Na' is not in the element table"]
    assert features[0, :2].tolist() == [5.25, 1.05]
    assert features[1, 0] == pytest.approx((2 * 4 + 3 * 5.25) / 5)  # oxygen takes the median of 4 and 6.5
    assert np.isnan(features[2]).all()


@pytest.mark.parametrize(("text", "message"), [
    ("", "holds no rows"),
    ("element,x\n", "holds no rows"),
    ("element,x\nFe,one\n", "line 2, column 'x': 'one' is not a number"),
    ("element,x\nFe,inf\n", "line 2, column 'x': 'inf' is not finite"),
    ("element,x\nFx,1\n", "line 2: unknown element 'Fx'"),
    ("element,x\nFe,1,2\n", "line 2: 3 fields, the header has 2"),
    ("element,x,x\nFe,1,2\n", "properties of different names"),
    ("element,x\nFe,\n", "column 'x' holds no number"),
])  # fmt: skip
def test_a_table_of_ones_own_that_is_wrong_is_refused_by_its_line(tmp_path, text, message):
    path = tmp_path / "own.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        read_element_table(path)
    with pytest.raises(DataError, match="cannot be read"):
        read_element_table(tmp_path / "absent.csv")


@pytest.mark.skipif(not XENONPY_TABLE.exists(), reason="../shared/datasets/elements is not there")
def test_xenonpys_table_gives_its_290_columns():
    featurizer = make_featurizer("rich", table=str(XENONPY_TABLE))
    features, reasons = featurizer.transform_with_reasons(["Fe2O3", "AmO2"])
    names = featurizer.feature_labels()
    assert len(names) == 290
    assert reasons == ["", "element 'Am' is not in the element table"]
    assert features[0, names.index("ave:covalent_radius_cordero")] == pytest.approx((2 * 142 + 3 * 66) / 5)
    assert np.isfinite(features[0]).all()


@pytest.mark.skipif(not XENONPY_TABLE.exists(), reason="../shared/datasets/elements is not there")
def test_the_rich_table_and_its_omissions_are_xenonpys_58_properties():
    theirs, ours = read_element_table(XENONPY_TABLE), load_table("rich")
    assert {*ours.column_names, *ours.left_out} == set(theirs.column_names)
    assert not set(ours.column_names) & set(ours.left_out)
    close = 0
    for name in ours.column_names:
        own, other = ours.column(name)[1][1:95], theirs.column(name)[1][1:95]
        known = ~np.isnan(own)
        close += np.corrcoef(own[known], other[known])[0, 1] > 0.97
    assert close >= 45  # fusion enthalpies and electron affinities were revised since
