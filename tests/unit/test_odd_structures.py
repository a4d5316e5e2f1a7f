"""Structure files as journals, spreadsheets and programs write them: the right value, or the cause by its name."""

import json

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure
from pymatgen.io.cif import CifWriter

from ray_fed.errors import DataError
from ray_fed.federation.reasons import NOTES, UNREADABLE, counted_notes, kind_of
from ray_fed.materials.databases.database import open_database
from ray_fed.materials.databases.source import Source
from ray_fed.materials.structures import parse_structure

TARGET = "formation_energy_per_atom"
NACL = Structure.from_spacegroup("Fm-3m", Lattice.cubic(5.64), ["Na", "Cl"], [[0, 0, 0], [0.5, 0, 0]])
MGO = Structure.from_spacegroup("Fm-3m", Lattice.cubic(4.21), ["Mg", "O"], [[0, 0, 0], [0.5, 0, 0]])


def cif(*sites: str, header: str = "", columns: str = "label type_symbol fract_x fract_y fract_z occupancy") -> str:
    cell = "".join(f"_cell_length_{one} 4.0\n" for one in "abc")
    cell += "".join(f"_cell_angle_{one} 90\n" for one in ("alpha", "beta", "gamma"))
    names = "".join(f"_atom_site_{name}\n" for name in columns.split())
    return f"data_x\n{cell}{header}loop_\n_symmetry_equiv_pos_as_xyz\n'x,y,z'\nloop_\n{names}" + "\n".join(sites) + "\n"


def whole(structure: Structure) -> str:
    return str(CifWriter(structure))


@pytest.mark.parametrize(
    ("sites", "formula", "note"),
    [
        (["Ce1 Ce 0 0 0 1", "As1 As .5 .5 0 1", "H1 H .5 .5 .5 .9", "O1 O .5 .5 .5 .1"], "Ce1As1H0.9O0.1", ""),
        (["Li1 Li 0 0 0 1", "D1 D .5 .5 .5 1"], "LiH", "D or T is counted as H"),
        (["Li1 Li 0 0 0 1", "T1 T .5 .5 .5 1"], "LiH", "D or T is counted as H"),
        (["Pb1 Pb 0 0 0 1", "OH1 OH .5 .5 .5 1", "OH2 OH 0 .5 .5 1"], "H2PbO2", "site typed as a group of atoms"),
        (["Pb1 Pb 0 0 0 1", "W OH2 .5 .5 .5 .6", "OH OH .5 .5 .5 .4"], "H1.6Pb1O1", "site typed as a group of atoms"),
        (["Ca1 Ca 0 0 0 1", "F1 F .5 .5 .5 .5", "O1 OH .5 .5 .5 .5"], "Ca1H0.5O0.5F0.5",
         "site typed as a group of atoms"),
        (["Ca1 Ca 0 0 0 1", "W1 Wat .5 .5 .5 1"], "CaH2O", "site typed as a group of atoms"),
        (["Ca1 Ca2+ 0 0 0 1", "O1 O2- .5 .5 .5 1"], "CaO", ""),
        (["CA1 CA 0 0 0 1", "O1 O .5 .5 .5 ?"], "CaO", ""),
        (["Na1 Na 0 0 0 1", "Cl1 Cl .5 .5 .5 .52", "Br1 Br .5 .5 .5 .5"], "Na1Br0.49019608Cl0.50980392",
         "occupancies a little above 1 are scaled back"),
        (["Sr1 Sr 0 0 0 .3", "La1 La 0 0 0 .7", "O1 O .5 .5 .5 1", "X1 Mn 0 .5 .5 0"], "Sr0.3La0.7O1", ""),
    ],
)  # fmt: skip
def test_every_atom_of_a_cif_is_counted(sites, formula, note):
    crystal = parse_structure(cif(*sites))
    assert crystal.formula == formula
    assert list(counted_notes(["; ".join(crystal.notes)])) == ([note] if note else [])


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            cif("Na1 Na 0 0 0 1", "Cl1 Cl .5 .5 .5 1", "Br1 Br .5 .5 .5 1"),
            "occupancies sum to more than 1 '2 of",
        ),
        (cif("Ca1 Ca 0 0 0 1", "O1 O ? ? ? 1"), "CIF has a coordinate that is not a number 'O1: ? ? ?'"),
        (cif("Ca1 Ca 0 0 0 1", "O1 O .5 .5 .5 x"), "CIF has an occupancy that is not a number, 0 or more 'O1: x'"),
        (cif("Ca1 Ca 0 0 0 1", "V1 Vac .5 .5 .5 1"), "site type is no element 'Vac'"),
        (cif("HO1 0 0 0", columns="label fract_x fract_y fract_z"), "site label may be of several elements 'HO1'"),
        (cif("Na1 Na 0 0 0 1", "Cl1 Cl .001 0 0 1"), "atoms are too close '0.004 Å'"),
        (cif("Na1 Na 0 0 0 1").replace("_cell_length_b 4.0\n", ""), "CIF has no number for _cell_length_b"),
        (cif("Na1 Na 0 0 0 1").replace(" 90", " 150"), "angles '150, 150, 150' close no cell"),
        ("data_x\n_cell_length_a 4\n", "CIF lists no atoms with fractional coordinates"),
        ("<html>404</html>", "structure is a web page or XML"),
        (whole(NACL) + whole(MGO), "file has '2' structures; choose one by its number, or all"),
    ],
)
def test_what_cannot_be_told_is_refused_by_its_cause(text, reason):
    with pytest.raises(DataError) as caught:
        parse_structure(text)
    assert str(caught.value).startswith(reason)
    assert kind_of(str(caught.value)) in UNREADABLE - {"another reason"}


def test_hydrogens_that_have_no_site_are_counted_by_what_the_file_says():
    sites = ["Ca1 Ca 0 0 0 1", "O1 O .5 .5 .5 1"]
    declared = parse_structure(cif(*sites, header="_chemical_formula_sum 'Ca1 H2 O1'\n"))
    assert (declared.formula, declared.notes) == (
        "CaH2O",
        ("hydrogens without sites are counted by the file's formula",),
    )
    columns = "label type_symbol fract_x fract_y fract_z attached_hydrogens"
    attached = parse_structure(cif("Ca1 Ca 0 0 0 0", "O1 O .5 .5 .5 2", columns=columns))
    assert attached.formula == "CaH2O"
    other = parse_structure(cif(*sites, header="_chemical_formula_sum 'Ca1 C1 O3'\n"))
    assert other.formula == "CaO"
    assert other.notes == ("sites give another formula than the file 'CaO, not Ca1 C1 O3'",)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("group", ["Fm-3m", "R-3c", "Pnma", "P2_1/c", "I4_1/amd"])
def test_our_reader_of_sites_agrees_with_pymatgen_on_symmetric_cifs(group):
    lattice = {"Fm-3m": Lattice.cubic(5.6), "R-3c": Lattice.hexagonal(4.76, 13),
               "Pnma": Lattice.orthorhombic(5.1, 6.3, 7.7), "P2_1/c": Lattice.monoclinic(5, 6, 7, 101),
               "I4_1/amd": Lattice.tetragonal(3.8, 9.5)}[group]  # fmt: skip
    places = [[0, 0, 0.35], [0.31, 0.11, 0.25]]
    structure = Structure.from_spacegroup(group, lattice, ["Ti", "O"], places, tol=0.01)
    text = str(CifWriter(structure, symprec=0.01))
    crystal, read = parse_structure(text), Structure.from_str(text, fmt="cif")
    assert crystal.formula == read.composition.reduced_formula
    assert len(crystal.kinds) == len(read)
    assert np.linalg.det(crystal.vectors) == pytest.approx(read.volume)


def test_a_block_of_a_journal_before_the_structure_and_a_text_with_data_in_it_are_passed_over():
    text = f"data_global\n_publ_author 'x'\n_publ_text\n;\ndata_of others\n;\n{whole(NACL)}"
    assert parse_structure(text).formula == "NaCl"


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "two.cif").write_text(whole(NACL) + whole(MGO))
    (tmp_path / "one.cif").write_text(whole(MGO))
    (tmp_path / "id_prop.csv").write_text("two,-2.1\none,-3.0\n")
    return tmp_path


def test_of_several_structures_in_a_file_none_is_taken_silently(folder):
    frame = open_database(Source(str(folder))).frame
    assert frame["reason"].tolist() == ["file has '2' structures; choose one by its number, or all", ""]
    frame = open_database(Source(str(folder), structures="all")).frame
    assert frame[["id", "formula"]].to_numpy().tolist() == [["two#1", "NaCl"], ["two#2", "MgO"], ["one", "MgO"]]
    assert frame["note"].tolist() == ["one of several structures in its file"] * 2 + [""]
    assert open_database(Source(str(folder), structures="2")).frame["formula"].tolist() == ["MgO", "MgO"]
    assert open_database(Source(str(folder), structures="first")).frame["formula"].tolist() == ["NaCl", "MgO"]
    frame = open_database(Source(str(folder), structures="3")).frame
    assert frame["reason"].tolist() == ["file has '2' structures, number '3' is asked for", ""]
    (folder / "id_prop.csv").unlink()
    frame = open_database(Source(str(folder), target=None)).frame
    assert frame["id"].tolist() == ["one.cif", "two.cif#1", "two.cif#2"]


def test_repeated_ids_and_files_that_are_left_out_are_noted(folder):
    (folder / "id_prop.csv").write_text("one;-2,1\none;-2,2\n")
    (folder / "readme.foo").write_text("x")
    database = open_database(Source(str(folder)))
    assert database.frame["note"].tolist() == ["id is listed more than once with different targets"] * 2
    assert database.frame["target"].tolist() == [-2.1, -2.2]
    assert counted_notes(database.notices) == {
        "decimal commas are read as points": 1,
        "structure file that the list does not name": 1,
        "file of a kind that is not read": 1,
    }
    assert "another reason" not in counted_notes([*database.notices, *database.frame["note"]])


def test_extended_xyz_is_a_table_of_its_frames(tmp_path):
    pytest.importorskip("ase")
    lattice = 'Lattice="2.8 0 0 0 2.8 0 0 0 2.8" Properties=species:S:1:pos:R:3'
    frames = f"2\n{lattice} band_gap=8.5 energy=-6.8\nNa 0 0 0\nCl 1.4 1.4 1.4\n"
    frames += f"1\n{lattice} band_gap=0\nPo 0 0 0\n1\nProperties=species:S:1:pos:R:3 band_gap=1\nAr 0 0 0\n"
    (tmp_path / "x.xyz").write_text(frames)
    frame = open_database(Source(str(tmp_path / "x.xyz"), target="band_gap")).frame
    assert frame["formula"].tolist() == ["NaCl", "Po", ""]
    assert frame["target"].tolist() == [8.5, 0.0, 1.0]
    assert frame["reason"].tolist() == ["", "", "structure has no lattice; molecules cannot be used"]
    assert frame["id"].tolist() == ["x.xyz#1", "x.xyz#2", "x.xyz#3"]


def test_a_spreadsheet_is_read_like_a_csv(tmp_path):
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    for row in (("formula", TARGET), ("NaCl", -2.1), ("MgO", "x"), (None, None)):
        book.active.append(row)
    book.create_sheet("more").append(("formula",))
    book.save(tmp_path / "x.xlsx")
    database = open_database(Source(str(tmp_path / "x.xlsx")))
    assert database.frame["formula"].tolist() == ["NaCl", "MgO"]
    assert database.frame["reason"].tolist() == ["", "target 'x' is not a number"]
    assert counted_notes(database.notices) == {"sheet beside the first is left out": 1}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("x.csv", f"formula;{TARGET}\nNaCl;-2,1\nMgO;-3,0\n".encode()),
        ("x.tsv", f"formula\t{TARGET}\r\nNaCl\t-2.1\r\nMgO\t-3.0\r\n".encode()),
        ("x.txt", f"\ufeffMy data\nformula|{TARGET}\nNaCl|-2.1\nMgO|-3.0\n".encode()),
        ("x.csv", f"# from a database\nformula,{TARGET}\nNaCl,-2.1\nMgO,-3.0\n".encode()),
        ("x.csv", f"formula,{TARGET}\nNaCl,-2.1\nMgO,-3.0\n".encode("utf-16")),
    ],
)
def test_tables_are_read_whatever_parts_their_cells(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    database = open_database(Source(str(tmp_path / name)))
    assert database.frame[["formula", "target"]].to_numpy().tolist() == [["NaCl", -2.1], ["MgO", -3.0]]
    assert set(counted_notes(database.notices)) <= NOTES - {"another reason"}


def test_words_that_mean_missing_are_no_formulas(tmp_path):
    def reasons(*formulas: str) -> list[str]:
        (tmp_path / "x.csv").write_text(f"formula,{TARGET}\n" + "".join(f"{one},-1\n" for one in (*formulas, "MgO")))
        frame = open_database(Source(str(tmp_path / "x.csv"))).frame
        assert frame["reason"].iloc[-1] == ""
        return [reason or note for reason, note in zip(frame["reason"], frame["note"], strict=True)][:-1]

    assert reasons("Na", "NO", "NaN") == ["", "", "formula NaN is read as sodium nitride"]
    assert reasons("NaN", "NaN") == ["formula is missing 'NaN'"] * 2
    assert reasons("NaN", "None", "N/A", "-") == [f"formula is missing '{one}'" for one in ("NaN", "None", "N/A", "-")]


def test_a_given_group_that_is_not_found_is_counted_where_it_is_checked(tmp_path):
    records = [{"structure": NACL.as_dict(), "sg": number, TARGET: -2.1} for number in (225, 221, None)]
    (tmp_path / "x.json").write_text(json.dumps(records))
    frame = open_database(Source(str(tmp_path / "x.json"), symmetry="check")).frame
    assert frame["spacegroup_number"].tolist() == [225, 221, 225]
    assert counted_notes(frame["note"]) == {"space group given is not the one found": 1}
    assert open_database(Source(str(tmp_path / "x.json"))).frame["note"].tolist() == [""] * 3


def test_a_whole_reason_is_kept_and_its_first_words_are_in_the_refusal(tmp_path):
    (tmp_path / "x.vasp").write_text("title\n1.0\n" + "a long line of words that are no numbers\n" * 9)
    with pytest.raises(DataError, match=r"1 x unreadable structure; the first: 'unreadable structure \"ValueError: "):
        open_database(Source(str(tmp_path / "x.vasp"), target=None))
