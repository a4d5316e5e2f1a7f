"""Folders and JSON files of structures, and the space groups computed from them."""

import gzip
import json
import logging
import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pymatgen.core import Lattice, Molecule, Structure

from ray_fed.errors import ConfigError, DataError
from ray_fed.materials import symmetry
from ray_fed.materials.crystal import Crystal
from ray_fed.materials.databases import crystal_batches
from ray_fed.materials.databases.database import open_database
from ray_fed.materials.databases.source import Source
from ray_fed.materials.finder_words import quiet_finders
from ray_fed.materials.structures import parse_structure
from ray_fed.materials.symmetry import space_groups

TARGET = "formation_energy_per_atom"
NACL = Structure.from_spacegroup("Fm-3m", Lattice.cubic(5.64), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])
CSCL = Structure(Lattice.cubic(4.12), ["Cs", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])
RUTILE = Structure.from_spacegroup(
    "P4_2/mnm", Lattice.tetragonal(4.59, 2.96), ["Ti", "O"], [[0, 0, 0], [0.305, 0.305, 0]]
)
WURTZITE = Structure.from_spacegroup(
    "P6_3mc", Lattice.hexagonal(3.19, 5.19), ["Ga", "N"], [[1 / 3, 2 / 3, 0], [1 / 3, 2 / 3, 0.377]]
)
CRYSTALS = {"NaCl": (NACL, 225), "CsCl": (CSCL, 221), "TiO2": (RUTILE, 136), "GaN": (WURTZITE, 186)}


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("RAY_FED_CACHE", str(tmp_path_factory.mktemp("cache") / "entries"))


def folder_of(folder: Path, files: dict[str, str | bytes], rows: list[str], listed: str = "id_prop.csv") -> Source:
    for name, content in files.items():
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    (folder / listed).write_text("\n".join(rows) + "\n")
    return Source(str(folder))


def cif(structure: Structure) -> str:
    return structure.to(fmt="cif")


def poscar(structure: Structure) -> str:
    return structure.to(fmt="poscar")


def as_json(structure: Structure) -> str:
    return json.dumps(structure.as_dict())


def check_against_pymatgen(row: pd.Series, structure: Structure, number: int) -> None:
    expected = [*structure.lattice.abc, *structure.lattice.angles, structure.volume]
    cell = row[["a", "b", "c", "alpha", "beta", "gamma", "volume"]].to_numpy(float)
    np.testing.assert_allclose(cell, expected, rtol=1e-6)
    assert row["formula"] == structure.composition.reduced_formula
    assert row["spacegroup_number"] == number
    assert row["num_atoms"] == len(structure)
    assert row["reason"] == ""


# Folders


@pytest.mark.parametrize(("write", "suffix"), [(cif, ".cif"), (poscar, ".vasp"), (as_json, ".json")])
@pytest.mark.parametrize("with_suffix", [True, False])
def test_a_folder_with_id_prop_is_read_with_ids_with_or_without_extension(tmp_path, write, suffix, with_suffix):
    files = {f"{name}{suffix}": write(structure) for name, (structure, _) in CRYSTALS.items()}
    rows = [f"{name}{suffix if with_suffix else ''},-{at}.5" for at, name in enumerate(CRYSTALS)]
    database = open_database(folder_of(tmp_path, files, rows))
    assert database.target_name == TARGET
    assert database.frame["target"].tolist() == [-0.5, -1.5, -2.5, -3.5]
    for (_, row), (structure, number) in zip(database.frame.iterrows(), CRYSTALS.values(), strict=True):
        check_against_pymatgen(row, structure, number)


def test_targets_csv_is_the_same_list_and_files_called_poscar_are_structures(tmp_path):
    files = {"POSCAR-1": poscar(NACL), "POSCAR_2.vasp": poscar(CSCL)}
    source = folder_of(tmp_path, files, ["POSCAR-1,-2.1", "POSCAR_2,-2.2"], listed="targets.csv")
    assert open_database(source).frame["formula"].tolist() == ["NaCl", "CsCl"]


@pytest.mark.parametrize("header", ["id,target", "filename,formation_energy_per_atom", "name,e_form"])
def test_a_header_is_no_structure(tmp_path, header):
    frame = open_database(folder_of(tmp_path, {"x.cif": cif(NACL)}, [header, "x,-2.1"])).frame
    assert frame[["id", "target", "reason"]].to_numpy().tolist() == [["x", -2.1, ""]]


def test_a_header_that_names_another_target_is_refused(tmp_path):
    source = folder_of(tmp_path, {"x.cif": cif(NACL)}, ["id,band_gap", "x,5.0"])
    with pytest.raises(DataError, match=f"has no column '{TARGET}'; it has: id, band_gap, structure"):
        open_database(source)


def test_files_that_cannot_be_read_are_reasons_and_the_rest_is_used(tmp_path):
    no_symbols = "\n".join(line for at, line in enumerate(poscar(NACL).splitlines()) if at != 5)
    no_symbols = "\n".join(
        " ".join(line.split()[:3]) if at > 6 else line for at, line in enumerate(no_symbols.split("\n"))
    )
    files = {
        "good.cif": cif(NACL),
        "empty.cif": "",
        "garbage.cif": bytes(range(256)) * 10,
        "torn.cif": cif(NACL)[:300],
        "letters.cif": cif(NACL).replace("_cell_length_a   5.64", "_cell_length_a   long"),
        "flat.json": as_json(NACL).replace("[[5.64, ", "[[0.0, "),
        "vasp4.vasp": no_symbols,
        "nan.json": as_json(NACL).replace("0.5", "NaN"),
        "number.json": "{1: 2}",
        "molecule.json": json.dumps(Molecule(["O"], [[0, 0, 0]]).as_dict()),
        "unknown.json": as_json(NACL).replace('"Na"', '"Xx"'),
        "text.json": "{" * 5000,
        "many.vasp": poscar(NACL).replace("4 4", "4000000000 4"),
    }
    (tmp_path / "folder.cif").mkdir()
    (tmp_path / "loop.cif").symlink_to(tmp_path / "loop.cif")
    names = ["good", *(name.split(".")[0] for name in files if name != "good.cif"), "folder", "loop", "lost", "../good"]
    source = folder_of(tmp_path, files, [f"{name},-2.1" for name in names])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        frame = open_database(source).frame
    assert caught == []
    reasons = dict(zip(frame["id"], frame["reason"], strict=True))
    assert reasons.pop("good") == ""
    assert reasons["empty"] == "structure is empty"
    assert reasons["vasp4"].startswith("POSCAR names no elements")
    assert reasons["nan"] == "structure has a lattice vector or coordinate that is not finite"
    assert reasons["molecule"] == "structure has no lattice; molecules cannot be used"
    assert reasons["unknown"].startswith("unknown element")
    assert reasons["flat"].startswith("a '0' is not 0.1 to 10000")
    assert reasons["many"] == "POSCAR has '16' lines and announces more atoms: '4000000000 4'"
    assert reasons["lost"] == "no structure file for id 'lost'"
    assert reasons["../good"] == "no structure file for id '../good'"
    assert reasons["torn"] == "CIF lists no atoms with fractional coordinates"
    for name in ("garbage", "letters", "number", "text"):
        assert reasons[name].startswith("unreadable structure '"), name
    assert all(reasons.values())
    assert not any("\n" in reason for reason in reasons.values())


def test_a_row_of_the_list_with_a_missing_or_wrong_target_is_a_reason(tmp_path):
    source = folder_of(tmp_path, {"x.cif": cif(NACL)}, ["x,-2.1", "x", "x,none", "x,high", "x,1,2"])
    assert open_database(source).frame["reason"].tolist() == [
        "",
        "torn row '1 of 2 values' in id_prop.csv",
        "target is missing",
        "target 'high' is not a number",
        "torn row '3 of 2 values' in id_prop.csv",
    ]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([""], "id_prop.csv is empty"),
        (["x", "y"], "id_prop.csv has one column"),
        (["lost,1"], "has no usable row of 1"),
    ],
)
def test_a_list_of_no_use_is_refused(tmp_path, rows, message):
    with pytest.raises(DataError, match=message):
        open_database(folder_of(tmp_path, {"x.cif": cif(NACL)}, rows))


def test_structures_without_a_list_need_one_unless_no_target_is_wanted(tmp_path):
    (tmp_path / "b.cif").write_text(cif(NACL))
    (tmp_path / "a.vasp").write_text(poscar(RUTILE))
    (tmp_path / "._a.vasp").write_text("litter of another system")
    with pytest.raises(DataError, match=r"has 2 structure files but no id_prop.csv or targets.csv; write one line"):
        open_database(Source(str(tmp_path)))
    frame = open_database(Source(str(tmp_path), target=None)).frame
    assert frame[["id", "formula"]].to_numpy().tolist() == [["a.vasp", "TiO2"], ["b.cif", "NaCl"]]
    frame = open_database(Source(str(tmp_path / "b.cif"), target=None)).frame
    assert frame["spacegroup_number"].tolist() == [225]
    with pytest.raises(DataError, match=r"is one structure; give the folder that holds it with id_prop\.csv"):
        open_database(Source(str(tmp_path / "b.cif")))


# JSON


def entries(**more: object) -> list[dict]:
    return [{"structure": structure.as_dict(), TARGET: -1.0, **more} for structure, _ in CRYSTALS.values()]


@pytest.mark.parametrize(
    "layout", ["records", "lines", "columns", "split", "split.gz", "bare", "text column", "parquet with json text"]
)
def test_structures_in_json_are_read_in_every_usual_layout(tmp_path, layout):
    records = entries()
    columns = {name: {str(at): record[name] for at, record in enumerate(records)} for name in records[0]}
    split = {"index": [0, 1, 2, 3], "columns": list(records[0]), "data": [list(record.values()) for record in records]}
    bare = [{**record["structure"], "properties": {TARGET: -1.0}} for record in records]
    texts = [{"cif": cif(structure), TARGET: -1.0} for structure, _ in CRYSTALS.values()]
    content = {"records": records, "columns": columns, "split": split, "split.gz": split, "bare": bare,
               "text column": texts}  # fmt: skip
    path = tmp_path / {"lines": "x.jsonl", "split.gz": "x.json.gz", "parquet with json text": "x.parquet"}.get(
        layout, "x.json"
    )
    if layout == "lines":
        path.write_text("\n".join(map(json.dumps, records)))
    elif layout == "split.gz":
        path.write_bytes(gzip.compress(json.dumps(split).encode()))
    elif layout == "parquet with json text":
        pd.DataFrame([{**record, "structure": json.dumps(record["structure"])} for record in records]).to_parquet(path)
    else:
        path.write_text(json.dumps(content[layout]))
    frame = open_database(Source(str(path))).frame
    assert frame["target"].tolist() == [-1.0] * 4
    for (_, row), (structure, number) in zip(frame.iterrows(), CRYSTALS.values(), strict=True):
        check_against_pymatgen(row, structure, number)


def test_jarvis_atoms_are_read_in_cartesian_and_fractional_coordinates(tmp_path):
    def atoms(coordinates: np.ndarray, cartesian: bool) -> dict:
        return {"lattice_mat": WURTZITE.lattice.matrix.tolist(), "coords": coordinates.tolist(), "cartesian": cartesian,
                "elements": [f"{site.specie.symbol} " for site in WURTZITE]}  # fmt: skip

    both = [atoms(WURTZITE.frac_coords, False), atoms(WURTZITE.cart_coords, True)]
    (tmp_path / "x.json").write_text(
        json.dumps([{"jid": f"J-{at}", "atoms": one, TARGET: 0} for at, one in enumerate(both)])
    )
    frame = open_database(Source(str(tmp_path / "x.json"))).frame
    for _, row in frame.iterrows():
        check_against_pymatgen(row, WURTZITE, 186)


def test_our_reader_of_as_dict_agrees_with_pymatgen_on_charged_and_mixed_sites():
    mixed = Structure(Lattice.cubic(3.9), [{"Sr": 0.5, "Ca": 0.5}, "Ti4+", "O2-", "O2-", "O2-"],
                      [[0.5] * 3, [0] * 3, [0.5, 0, 0], [0, 0.5, 0], [0, 0, 0.5]])  # fmt: skip
    crystal = parse_structure(mixed.as_dict())
    assert crystal.formula == mixed.composition.reduced_formula
    np.testing.assert_allclose(crystal.positions, mixed.frac_coords)
    assert crystal.kinds.tolist() == [1, 3, 2, 2, 2]
    assert space_groups([crystal], "spglib", 0.01)[0].tolist() == [221]


def test_a_row_without_a_structure_among_structures_is_a_reason(tmp_path):
    records = [*entries(), {TARGET: -1.0}, {"structure": 7, TARGET: -1.0}, {"structure": {"x": 1}, TARGET: -1.0}, [1]]
    (tmp_path / "x.json").write_text(json.dumps(records))
    assert open_database(Source(str(tmp_path / "x.json"))).frame["reason"].tolist() == [
        *[""] * 4,
        "structure is missing",
        "structure '7' is neither text nor object",
        "structure is a dict with neither sites nor lattice_mat; it has: 'x'",
        "entry is not a JSON object",
    ]


# Space groups


def test_the_number_a_cif_gives_is_taken_unless_it_says_that_all_atoms_are_listed(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pymatgen's own use of spglib
        symmetrised = RUTILE.to(fmt="cif", symprec=0.1)
    assert "_symmetry_Int_Tables_number   136" in symmetrised
    # A wrong number shows who is asked.
    files = {"given.cif": symmetrised.replace("_number   136", "_number   99"), "listed.cif": cif(RUTILE)}
    source = folder_of(tmp_path, files, ["given,-1", "listed,-1"])
    assert open_database(source).frame["spacegroup_number"].tolist() == [99, 136]
    computed = open_database(Source(source.path, symmetry="spglib")).frame
    assert computed["spacegroup_number"].tolist() == [136, 136]


def test_a_given_column_goes_before_the_number_in_a_cif(tmp_path):
    text = cif(RUTILE).replace("_Int_Tables_number   1", "_Int_Tables_number   99")
    records = [{"cif": text, "sg": number, TARGET: -1.0} for number in (77, None)]
    (tmp_path / "x.json").write_text(json.dumps(records))
    assert open_database(Source(str(tmp_path / "x.json"))).frame["spacegroup_number"].tolist() == [77, 99]


def test_a_given_column_goes_before_the_computed_number(tmp_path):
    records = entries(spacegroup_number=2)
    records[1]["spacegroup_number"] = None
    (tmp_path / "x.json").write_text(json.dumps(records))
    numbers = open_database(Source(str(tmp_path / "x.json"))).frame["spacegroup_number"]
    assert numbers.tolist() == [2, 221, 2, 2]
    numbers = open_database(Source(str(tmp_path / "x.json"), symmetry="spglib")).frame["spacegroup_number"]
    assert numbers.tolist() == [225, 221, 136, 186]


def test_spglib_and_moyopy_find_the_same_groups():
    pytest.importorskip("moyopy")
    crystals = [parse_structure(structure.as_dict()) for structure, _ in CRYSTALS.values()]
    numbers = [float(number) for _, number in CRYSTALS.values()]
    for finder in ("spglib", "moyopy"):
        found, reasons = space_groups(crystals, finder, 0.1)
        assert found.tolist() == numbers
        assert reasons == [""] * 4


SPGLIB_PRINTS = Crystal(
    "GePbN2O",
    np.eye(3) * 3.9679386615753174,
    np.array([[0.508855, 0.5, 0.5], [0.018215, 0, 0], [0.498158, 0, 0.5], [0.498158, 0.5, 0], [0.002731, 0.5, 0.5]]),
    np.array([1, 2, 3, 3, 4]),
)
"""Atoms at the edge of the tolerance, from perov5; spglib tells the terminal so from C."""
MOYOPY_LOGS = Crystal(
    "CsCl",
    np.diag([4.12, 4.12, 8.24]),
    np.array([[0, 0, 0], [0.5, 0.5, 0.25], [0, 0, 0.5], [0.5, 0.5, 0.75]]),
    np.array([1, 2, 1, 2]),
)
"""A doubled cell; moyopy logs a warning that some operations do not fit into it."""


@pytest.mark.parametrize("printing", ["ON", "OFF"])
def test_what_the_finders_say_is_a_note_of_the_row_and_not_on_the_terminal(printing, capfd, caplog, monkeypatch):
    pytest.importorskip("moyopy")
    monkeypatch.setenv("SPGLIB_WARNING", printing)
    plain = parse_structure(NACL.as_dict())
    with caplog.at_level(logging.WARNING):
        for odd, finder, said in ((SPGLIB_PRINTS, "spglib", "failed"), (MOYOPY_LOGS, "moyopy", "Omitted")):
            notes: list[list[str]] = [[], [], []]
            assert space_groups([plain, odd, plain], finder, 0.1, notes)[1] == [""] * 3
            assert notes[0] == notes[2] == []
            assert all(note.startswith(f"{finder} warns '") for note in notes[1])
            assert any(said in note for note in notes[1])
    assert caplog.records == []
    assert capfd.readouterr() == ("", "")
    assert os.environ["SPGLIB_WARNING"] == printing


def test_what_others_write_while_symmetry_is_searched_reaches_the_terminal(capfd):
    with quiet_finders() as words:
        os.write(2, b"spglib: odd.\nanother thread says so\nspglib: odd.\nspglib: odder.\n")
        assert words.taken("spglib") == ["spglib warns 'odd.'", "spglib warns 'odder.'"]
        os.write(2, b"and goes on")
    assert capfd.readouterr().err == "another thread says so\nand goes on"


def test_a_row_keeps_what_the_finder_said_of_its_crystal(tmp_path):
    pytest.importorskip("moyopy")
    atoms = (SPGLIB_PRINTS, ["Ge", "Pb", "N", "N", "O"]), (MOYOPY_LOGS, ["Cs", "Cl", "Cs", "Cl"])
    structures = [Structure(Lattice(one.vectors), elements, one.positions) for one, elements in atoms]
    records = [{"structure": one.as_dict(), TARGET: -1.0} for one in structures]
    (tmp_path / "x.json").write_text(json.dumps(records))

    def notes(**options) -> list[str]:
        return open_database(Source(str(tmp_path / "x.json"), **options)).frame["note"].tolist()

    assert "spglib warns 'get_bravais_exact_positions_and_lattice failed.'" in notes(symmetry="spglib")[0]
    for cell in ("given", "standard"):
        assert notes(symmetry="moyopy", cell=cell)[1].startswith("moyopy warns 'Omitted")


@pytest.mark.parametrize("finder", ["spglib", "moyopy"])
def test_atoms_on_top_of_each_other_have_no_space_group(finder):
    if finder == "moyopy":
        pytest.importorskip("moyopy")
    twice = Crystal("Na", np.eye(3) * 4, np.zeros((2, 3)), np.array([1, 1]))
    numbers, reasons = space_groups([twice], finder, 0.1)
    assert np.isnan(numbers[0])
    assert reasons[0].startswith(f"{finder} finds no space group")


def test_what_kills_spglib_is_refused_before_it_is_asked():
    # A NaN coordinate ends the whole process with a segmentation fault; if that is ever mended, this guard may go.
    sites = NACL.as_dict()
    sites["sites"][0]["abc"][0] = float("nan")
    with pytest.raises(DataError, match="not finite"):
        parse_structure(sites)
    code = (
        "import numpy, warnings; warnings.simplefilter('ignore'); import spglib; "
        "spglib.get_spacegroup((numpy.eye(3) * 3, [[0, 0, float('nan')], [0, 0, 0]], [1, 1]))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode != 0


def test_moyopy_where_it_is_not_installed_is_a_config_error_with_the_remedy(tmp_path, monkeypatch):
    def missing(name: str) -> str:
        raise symmetry.PackageNotFoundError(name)

    source = folder_of(tmp_path, {"x.cif": cif(NACL)}, ["x,-2.1"])
    monkeypatch.setattr(symmetry, "version", missing)
    with pytest.raises(ConfigError, match=r"run `pip install ray-fed\[symmetry\]`"):
        open_database(Source(source.path, symmetry="moyopy"))


# The cache


def test_a_second_opening_reads_the_cache_and_a_changed_file_is_read_again(tmp_path, monkeypatch):
    source = folder_of(tmp_path, {"x.cif": cif(NACL), "y.cif": cif(CSCL)}, ["x,-2.1", "y,-2.2"])
    first = open_database(source)

    def refuse(value):
        raise AssertionError(f"read again: {value[:20]}")

    with monkeypatch.context() as patched:
        patched.setattr(crystal_batches, "parse_structure", refuse)
        assert open_database(source).fingerprint == first.fingerprint
        pd.testing.assert_frame_equal(open_database(source).frame, first.frame)
        for changed in (Source(source.path, symmetry="spglib"), Source(source.path, symprec=0.01)):
            with pytest.raises(AssertionError, match="read again"):
                open_database(changed)
    (tmp_path / "x.cif").write_text(cif(RUTILE))
    assert open_database(source).frame["formula"].tolist() == ["TiO2", "CsCl"]


def test_batches_join_to_the_same_frame_as_one_batch(tmp_path, monkeypatch):
    (tmp_path / "x.json").write_text(json.dumps(entries()))
    whole = open_database(Source(str(tmp_path / "x.json"))).frame
    monkeypatch.setattr(crystal_batches, "BATCH_ROWS", 3)
    pd.testing.assert_frame_equal(open_database(Source(str(tmp_path / "x.json"))).frame, whole)
