"""Sources and what is read from them: the crystal frame, the fingerprint, the shared data sets."""

import pickle
import re
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ray_fed.errors import ConfigError, DataError
from ray_fed.materials.databases import database as databases
from ray_fed.materials.databases.columns import canonical_target, unit_of_target
from ray_fed.materials.databases.database import FRAME_COLUMNS, open_database, reason_counts
from ray_fed.materials.databases.source import Source
from ray_fed.materials.lattices import cells_of_vectors, vectors_of_cells, volumes_of_cells
from ray_fed.materials.units import UNKNOWN_UNIT
from tests.crystal_files import ROCKSALT, TARGET, WURTZITE, csv_file, table, text_file

SHARED = Path(__file__).parents[3] / "shared" / "datasets"
NAN = float("nan")


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("RAY_FED_CACHE", str(tmp_path_factory.mktemp("cache") / "entries"))


def shared(name: str) -> str:
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"needs the shared data set {name} beside the repository")
    return str(path)


# What is read


def test_a_table_with_structure_columns_becomes_the_crystal_frame(tmp_path):
    database = open_database(Source(csv_file(tmp_path)))
    frame = database.frame
    assert tuple(frame.columns) == FRAME_COLUMNS
    assert frame.index.equals(pd.RangeIndex(2))
    assert frame["id"].tolist() == ["mp-1", "mp-2"]
    assert frame["formula"].tolist() == ["NaCl", "GaN"]
    assert frame.loc[1, ["a", "b", "c", "alpha", "beta", "gamma"]].tolist() == [3, 3, 5, 90, 90, 120]
    assert frame["spacegroup_number"].tolist() == [225, 186]
    assert frame["target"].tolist() == [-2.1, -0.6]
    assert frame["reason"].tolist() == ["", ""]
    numbers = [name for name in FRAME_COLUMNS if name not in ("id", "formula", "reason", "note")]
    assert all(frame[name].dtype == np.float64 for name in numbers)
    assert (database.target_name, database.target_unit) == (TARGET, "eV/atom")


def test_the_same_rows_have_the_same_fingerprint_in_every_format(tmp_path):
    frame = table()
    frame.to_parquet(tmp_path / "data.parquet")
    frame.to_json(tmp_path / "data.jsonl", orient="records", lines=True, double_precision=15)
    frame.to_json(tmp_path / "records.json", orient="records", double_precision=15)
    frame.to_json(tmp_path / "columns.json", double_precision=15)
    frame.to_json(tmp_path / "split.json.gz", orient="split", double_precision=15)
    frame.to_csv(tmp_path / "data.csv.gz", index=False)
    csv_file(tmp_path)
    opened = {path.name: open_database(Source(str(path))).fingerprint for path in sorted(tmp_path.iterdir())}
    assert len(opened) == 7
    assert len({fingerprint["sha256"] for fingerprint in opened.values()}) == 1


def test_a_volume_that_is_not_given_follows_from_the_lattice(tmp_path):
    rows = [{name: value for name, value in row.items() if name != "volume"} for row in (ROCKSALT, WURTZITE)]
    volumes = open_database(Source(csv_file(tmp_path, *rows))).frame["volume"]
    assert volumes.tolist() == pytest.approx([5.6**3, 3 * 3 * 5 * np.sqrt(0.75)], rel=1e-14)


def test_lattice_vectors_and_cell_parameters_are_each_other_s_inverse():
    cells = np.array([[3.0, 4.0, 5.0, 80.0, 95.0, 110.0, 0.0], [5.0, 5.0, 9.0, 90.0, 90.0, 120.0, 0.0]])
    cells[:, 6] = volumes_of_cells(cells)
    np.testing.assert_allclose(cells_of_vectors(vectors_of_cells(cells)), cells, rtol=1e-12)
    # Triclinic volume by hand: abc sqrt(1 - sum cos^2 + 2 prod cos).
    x, y, z = np.cos(np.radians([80.0, 95.0, 110.0]))
    assert cells[0, 6] == pytest.approx(60 * np.sqrt(1 - x**2 - y**2 - z**2 + 2 * x * y * z))


def test_a_source_of_formulas_alone_has_no_cell_and_is_usable(tmp_path):
    path = text_file(tmp_path, "data.csv", f"composition,{TARGET}\nFe2O3,-1.7\n")
    frame = open_database(Source(path)).frame
    assert frame.loc[0, "id"] == "row-1"
    assert frame.loc[0, "formula"] == "Fe2O3"
    assert np.isnan(frame.loc[0, ["a", "volume", "spacegroup_number"]].to_numpy(float)).all()
    assert frame.loc[0, "reason"] == ""


def test_columns_are_found_under_other_names(tmp_path):
    names = {"material_id": "jid", "formula": "Composition", "a": "lattice_a", "b": "lattice_b", "c": "lattice_c",
             "alpha": "cell_angle_alpha", "volume": "cell_volume", "spacegroup_number": "spacegroup.number",
             TARGET: "e_form"}  # fmt: skip
    table().rename(columns=names).to_parquet(tmp_path / "data.parquet")
    database = open_database(Source(str(tmp_path / "data.parquet")))
    plain = open_database(Source(csv_file(tmp_path)))
    assert database.fingerprint["sha256"] == plain.fingerprint["sha256"]
    assert database.target_name == TARGET


def test_capital_a_and_b_are_sites_of_a_perovskite_and_not_lattice_parameters(tmp_path):
    names = f"formula,A,B,c,alpha,beta,gamma,{TARGET}"
    path = text_file(tmp_path, "data.csv", f"{names}\nSrTiO3,Sr,Ti,3.9,90,90,90,-3.5\n")
    database = open_database(Source(path))
    assert np.isnan(database.frame.loc[0, "a"])
    assert reason_counts(database.frame) == {}


def test_b_and_c_without_the_rest_of_a_lattice_are_not_lattice_parameters(tmp_path):
    path = text_file(tmp_path, "data.csv", f"formula,b,c,{TARGET}\nSrTiO3,-7,banana,-3.5\n")
    assert reason_counts(open_database(Source(path)).frame) == {}


def test_a_space_group_may_be_a_symbol_and_zero_is_none(tmp_path):
    path = text_file(tmp_path, "data.csv", f"formula,spacegroup,{TARGET}\nNaCl,Fm-3m,-2\nGaN,0,-1\nTiO2, 136 ,-3\n")
    database = open_database(Source(path))
    assert database.frame["spacegroup_number"].tolist() == pytest.approx([225, NAN, 136], nan_ok=True)
    assert reason_counts(database.frame) == {}


def test_sodium_nitride_is_not_a_missing_value(tmp_path):
    path = text_file(tmp_path, "data.csv", f"formula,{TARGET}\nNaN,0.1\nNO,0.5\nInF,-1\n")
    assert open_database(Source(path)).frame["formula"].tolist() == ["NaN", "NO", "InF"]


def test_rows_are_cut_after_the_conditions_and_keep_their_place_as_id(tmp_path):
    path = text_file(tmp_path, "data.csv", f"formula,db,{TARGET}\nA,x,1\nNaCl,y,2\nKCl,x,3\nKBr,x,4\nKI,x,5\n")
    frame = open_database(Source(path, where={"db": "x"}, rows=3)).frame
    assert frame["id"].tolist() == ["row-1", "row-3", "row-4"]


@pytest.mark.parametrize(
    ("where", "formulas"),
    [
        ({"db": "OQMD"}, ["NaCl", "KBr"]),
        ({"n": 2}, ["NaCl", "KCl"]),
        ({"n": "2.0"}, ["NaCl", "KCl"]),
        ({"flag": False}, ["KCl", "KBr"]),
        ({"flag": "false"}, ["KCl", "KBr"]),
        ({"db": "OQMD", "n": "2"}, ["NaCl"]),
    ],
)
def test_conditions_compare_numbers_as_numbers_and_text_as_text(tmp_path, where, formulas):
    rows = pd.DataFrame(
        {"formula": ["NaCl", "KCl", "KBr"], "db": pd.Categorical(["OQMD", "MP", "OQMD"]), "n": [2, 2, 3],
         "flag": [True, False, False], TARGET: [1.0, 2.0, 3.0]}
    )  # fmt: skip
    rows.to_parquet(tmp_path / "data.parquet")
    assert open_database(Source(str(tmp_path / "data.parquet"), where=where)).frame["formula"].tolist() == formulas


def test_kept_columns_stand_at_the_end_and_those_of_the_frame_are_kept_anyway(tmp_path):
    rows = [{**ROCKSALT, "db": "MP", "gap": 5.0}, {**WURTZITE, "db": "EXPT", "gap": 3.4}]
    frame = open_database(Source(csv_file(tmp_path, *rows), keep=("db", "spacegroup_number"))).frame
    assert tuple(frame.columns) == (*FRAME_COLUMNS, "db")
    assert frame["db"].tolist() == ["MP", "EXPT"]


def test_without_a_target_rows_are_usable_and_have_none(tmp_path):
    database = open_database(Source(text_file(tmp_path, "data.csv", "formula\nNaCl\nXx9\n"), target=None))
    assert database.frame["reason"].astype(bool).tolist() == [False, True]
    assert database.frame["target"].isna().all()
    assert (database.target_name, database.target_unit) == ("", "")


def test_two_names_of_one_quantity_agree_and_units_are_named(tmp_path):
    assert canonical_target("e_form") == canonical_target("formation_energy_peratom") == TARGET
    assert canonical_target("band_gap") == "band_gap"
    assert [unit_of_target(name) for name in ("delta_e", "Tc_supercon", "hardness")] == ["eV/atom", "K", UNKNOWN_UNIT]
    path = text_file(tmp_path, "data.csv", "formula,hardness\nTiN,20\n")
    assert open_database(Source(path, target="hardness", unit="GPa")).target_unit == "GPa"


def test_lists_are_decoded_only_for_rows_whose_space_group_is_not_given(tmp_path, monkeypatch):
    lists = {"numbers": [11, 17], "frac_coords": [0.0, 0.0, 0.0, 0.5, 0.5, 0.5]}
    cubic = {**ROCKSALT, "a": 2.8, "b": 2.8, "c": 2.8, "volume": 21.952, "n_sites": 2, **lists}
    asked: list[str] = []

    def watched(source, opened=databases.open_source):
        raw = opened(source)
        return replace(raw, read=lambda name: asked.append(name) or raw.read(name))

    monkeypatch.setattr(databases, "open_source", watched)
    table(cubic).to_parquet(tmp_path / "given.parquet")
    assert open_database(Source(str(tmp_path / "given.parquet"))).frame.loc[0, "spacegroup_number"] == 225
    assert {"numbers", "frac_coords"}.isdisjoint(asked)
    del cubic["spacegroup_number"]
    table(cubic).to_parquet(tmp_path / "computed.parquet")
    # Two kinds of atoms at the corner and the centre of a cube: CsCl.
    assert open_database(Source(str(tmp_path / "computed.parquet"))).frame.loc[0, "spacegroup_number"] == 221
    assert {"numbers", "frac_coords"} <= set(asked)


def test_formula_and_number_of_atoms_follow_from_lists(tmp_path):
    row = {"numbers": "[22, 8, 8]", "frac_coords": "[0 0 0 0.3 0.3 0 0.7 0.7 0]", TARGET: -3.0}
    frame = open_database(Source(csv_file(tmp_path, row))).frame
    assert frame.loc[0, "formula"] == "TiO2"
    row = {"numbers": [22, 8, 8], TARGET: -3.0}
    table(row).to_parquet(tmp_path / "data.parquet")
    assert open_database(Source(str(tmp_path / "data.parquet"))).frame.loc[0, "num_atoms"] == 3


# Source


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"path": ""}, "path=''"),
        ({"path": "a\0b"}, "must name a file or folder"),
        ({"target": ""}, "target=''"),
        ({"where": "source=MP"}, "where='source=MP' must be a mapping or pairs"),
        ({"where": (("source",),)}, "must be a mapping or pairs"),
        ({"where": {"source": ["MP"]}}, "must be a mapping or pairs"),
        ({"symmetry": "magic"}, "symmetry='magic' must be one of given, check, spglib, moyopy"),
        ({"symprec": 0.0}, "symprec=0.0 must be a length in Å"),
        ({"symprec": NAN}, "symprec=nan must be a length in Å"),
        ({"rows": 0}, "rows=0 must be a whole number"),
        ({"rows": True}, "rows=True must be a whole number"),
        ({"keep": "source"}, "keep='source' must be column names"),
    ],
)
def test_a_wrong_field_of_a_source_is_a_config_error_that_names_it(fields, message):
    with pytest.raises(ConfigError) as caught:
        Source(**fields)
    assert message in str(caught.value)


def test_a_source_can_be_hashed_and_pickled_and_a_mapping_is_the_same_as_pairs():
    source = Source("data.csv", where={"db": "MP"}, keep=["db", "db"])  # pyright: ignore[reportArgumentType]
    assert source == Source("data.csv", where=(("db", "MP"),), keep=("db",))
    assert hash(source) == hash(pickle.loads(pickle.dumps(source)))


# Fingerprint


def test_the_fingerprint_is_a_hash_and_counts_without_a_name_of_the_owners(tmp_path):
    fingerprint = open_database(Source(csv_file(tmp_path))).fingerprint
    counts = {"num_rows": 2, "num_usable": 2, "num_columns": len(FRAME_COLUMNS) - 1}
    assert fingerprint == {"sha256": fingerprint["sha256"], **counts}
    assert re.fullmatch("[0-9a-f]{64}", str(fingerprint["sha256"]))


def test_the_hash_changes_with_the_name_of_the_target(tmp_path):
    other = {TARGET.replace("energy", "enthalpy") if key == TARGET else key: value for key, value in ROCKSALT.items()}
    digests = [
        open_database(Source(csv_file(tmp_path, row), target=name)).fingerprint["sha256"]
        for row, name in ((ROCKSALT, TARGET), (other, TARGET.replace("energy", "enthalpy")))
    ]
    assert digests[0] != digests[1]


def test_the_hash_changes_with_one_value_and_with_the_order_of_rows(tmp_path):
    def digest(*rows: dict) -> object:
        return open_database(Source(csv_file(tmp_path, *rows))).fingerprint["sha256"]

    first = digest(ROCKSALT, WURTZITE)
    assert digest(ROCKSALT, WURTZITE) == first
    assert digest(WURTZITE, ROCKSALT) != first
    assert digest(ROCKSALT, {**WURTZITE, TARGET: np.nextafter(-0.6, 0)}) != first


def test_every_kind_of_nan_has_the_same_hash(tmp_path):
    odd = np.frombuffer(bytes.fromhex("010000000000f8ff"), "<f8")[0]
    digests = []
    for unknown in (NAN, odd):
        table(ROCKSALT, {**WURTZITE, "spacegroup_number": unknown}).to_parquet(tmp_path / "data.parquet")
        digests.append(open_database(Source(str(tmp_path / "data.parquet"))).fingerprint["sha256"])
    assert digests[0] == digests[1]


# The embedded set and the shared data


def test_the_embedded_set_opens_as_any_other_source():
    database = open_database(Source(rows=50, keep=("anion",)))
    assert len(database.frame) == 50
    assert reason_counts(database.frame) == {}
    assert database.frame[["a", "volume", "spacegroup_number", "target"]].notna().all(axis=None)
    assert open_database(Source(rows=50, keep=("anion",))).fingerprint == database.fingerprint
    assert open_database(Source(rows=50, seed=1)).fingerprint["sha256"] != database.fingerprint["sha256"]
    with pytest.raises(DataError, match="silo 'mit': the embedded data have no 'band_gap'; their only target is"):
        open_database(Source(target="band_gap"), silo="mit")


def test_mp_structures_loads_as_it_is_and_fast():
    path = shared("mp_structures")
    open_database(Source(path, rows=10))
    start = time.process_time()
    database = open_database(Source(path), silo="mp")
    # 0.2 s of a processor; with the lists decoded it takes over 2 s.
    assert time.process_time() - start < 1.5
    assert database.fingerprint["num_usable"] == len(database.frame) == 51_149
    assert database.frame["target"].mean() == pytest.approx(-1.45, abs=0.005)
    assert database.frame.loc[0, ["id", "formula", "spacegroup_number"]].tolist() == ["mp-2", "Pd", 225]


def test_perov5_loads_as_it_is_and_its_space_groups_are_computed():
    database = open_database(Source(shared("perov5"), rows=200))
    reasons = reason_counts(database.frame)
    assert reasons == {"target is missing": 200 - database.fingerprint["num_usable"]}
    usable = database.frame[database.frame["reason"] == ""]
    # Cubic cells with ABX3 sites: the ideal perovskite and its subgroups.
    assert usable["spacegroup_number"].isin([25, 38, 47, 99, 123, 221]).mean() > 0.9
    assert (database.frame["num_atoms"] == 5).all()


def test_the_four_databases_of_formation_energies_load_by_condition():
    path = shared("composition_formation_energy/formation_energy.parquet")
    database = open_database(Source(path, where={"source": "EXPT"}, keep=("source",)))
    assert len(database.frame) == 1_643
    assert set(database.frame["source"]) == {"EXPT"}
    with pytest.raises(DataError, match=r"holds 2 data files \(formation_energy.parquet, oqmd_multi.parquet\)"):
        open_database(Source(str(Path(path).parent)))


def test_jarvis_has_the_same_target_under_another_name():
    database = open_database(Source(shared("jarvis_supercon"), rows=30))
    assert database.target_name == TARGET
    assert database.frame.loc[0, "spacegroup_number"] == 225


@pytest.mark.parametrize("symmetry", ["spglib", "moyopy"])
def test_computed_space_groups_are_those_of_mp_structures(symmetry):
    if symmetry == "moyopy":
        pytest.importorskip("moyopy")
    path = shared("mp_structures")
    given = open_database(Source(path, rows=150)).frame["spacegroup_number"]
    computed = open_database(Source(path, rows=150, symmetry=symmetry)).frame["spacegroup_number"]
    assert (given == computed).mean() >= (1.0 if symmetry == "spglib" else 0.97)
