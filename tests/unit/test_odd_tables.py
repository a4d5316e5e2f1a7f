"""Tables as people and programs leave them: the right value, or a reason or note that names the cause."""

import os
import zipfile
from pathlib import Path

import pytest

from ray_fed.errors import DataError
from ray_fed.federation.reasons import OTHER, counted_notes, counted_reasons
from ray_fed.materials.databases.database import Database, open_database
from ray_fed.materials.databases.source import Source

TARGET = "formation_energy_per_atom"
CASES = Path(__file__).resolve().parents[3] / "shared" / "cases" / "materials"


def opened(folder: Path, text: str, name: str = "x.csv", **source: object) -> Database:
    (folder / name).write_text(text, newline="")
    return open_database(Source(str(folder / name), **{"target": TARGET, **source}))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("cell", "value", "reason"),
    [
        ("\u22122.1", -2.1, ""),
        ("-2.1e0", -2.1, ""),
        ('"-2,1"', None, "target '-2,1' is not a number; write a decimal point"),
        ("eV/atom", None, "target 'eV/atom' is a unit, not a number"),
        ("-2.1(3)", None, "target '-2.1(3)' is not a number"),
        ("1e-400", None, "target '1e-400' is not a number"),
        ("1_000", None, "target '1_000' is not a number"),
        ("1e400", None, "target 'inf' is not finite"),
    ],
)
def test_a_cell_is_the_number_it_shows_or_says_why_it_is_none(tmp_path, cell, value, reason):
    frame = opened(tmp_path, f"formula,{TARGET}\nNaCl,{cell}\nMgO,-3\n").frame
    assert frame["reason"].tolist() == [reason, ""]
    assert [one for one in frame["target"] if one == one] == ([] if value is None else [value]) + [-3.0]
    assert OTHER not in counted_reasons(frame["reason"])


@pytest.mark.parametrize(
    ("formula", "same", "reason"),
    [
        ("\"{'Na': 1, 'Cl': 1}\"", "NaCl", ""),
        ('"{""Fe"":2,""O"":3}"', "Fe2O3", ""),
        ("Fe\u2082O\u2083", "Fe2O3", ""),
        ("Li\u2080.\u2085CoO\u2082", "Li0.5CoO2", ""),
        ("CuSO\u2084\u00b75H\u2082O", "CuSO4(H2O)5", ""),
        ("(Fe0.6794)(C0.0072)(Mn0.0001)", "Fe0.6794C0.0072Mn0.0001", ""),
        ("Fe9e-05Ni0.99991", "Fe0.00009Ni0.99991", ""),
        ("\u0421\u043e", "", "cannot read '\u0421\u043e' at '\u0421\u043e': it begins with 'U+0421 CYRILLIC CAPITAL "
         "LETTER ES'"),
        ("\u200bNaCl", "", "cannot read '\u200bNaCl' at '\u200bNaCl': it begins with 'U+200B ZERO WIDTH SPACE'"),
        ("=NaCl", "", "cannot read '=NaCl' at '=NaCl'"),
        ("Al2O3 (s)", "", "cannot read 'Al2O3 (s)' at 's)'"),
        ("\"{'Qq': 1}\"", "", "unknown element 'Qq' in '{\"Qq\": \"1\"}'"),
    ],
)  # fmt: skip
def test_a_formula_is_read_as_it_is_meant_or_says_where_it_is_none(tmp_path, formula, same, reason):
    from ray_fed.materials.chemical_groups import composition_keys

    frame = opened(tmp_path, f"formula,{TARGET}\n{formula},-1\nMgO,-3\n").frame
    assert frame["reason"].tolist() == [reason, ""]
    assert OTHER not in counted_reasons(frame["reason"])
    if same:
        assert composition_keys(frame["formula"].tolist()[:1]) == composition_keys([same])


def test_formulas_alone_that_disagree_are_noted_and_polymorphs_are_not(tmp_path):
    text = f"formula,{TARGET}\nNaCl,-1\nCl2Na2,-2\nMgO,-3\nMgO,-3\nCaO,-4\nCaO,\n"
    note = "formula is listed more than once with different targets"
    assert opened(tmp_path, text).frame["note"].tolist() == [note, note, "", "", "", ""]
    assert opened(tmp_path, text, target=None, targets=(TARGET,)).frame["note"].tolist() == [note, note, *[""] * 4]
    cells = "formula,a,b,c,alpha,beta,gamma,spacegroup_number," + TARGET + "\n"
    rows = "".join(f"TiO2,{a},4,4,90,90,90,1,{target}\n" for a, target in ((4, -3), (5, -3.1)))
    assert opened(tmp_path, cells + rows).frame["note"].tolist() == ["", ""]
    database = opened(tmp_path, f"id,formula,{TARGET},kind\na,NaCl,,x\na,NaCl,,y\n", target=None, targets=("kind",))
    assert counted_notes(database.frame["note"]) == {"id is listed more than once with different targets": 2, note: 2}


def test_a_quotation_mark_that_nothing_closes_is_named(tmp_path):
    frame = opened(tmp_path, f'formula,{TARGET}\nMgO,-3\n"NaCl,-2.1\nCaO,-3\n').frame
    assert frame["reason"].tolist() == ["", "torn row '1 of 2 values'; a quotation mark is not closed"]
    assert OTHER not in counted_reasons(frame["reason"])


def test_archives_that_cannot_be_opened_are_refused_in_one_line(tmp_path):
    (tmp_path / "x.csv.zip").write_bytes(b"PK\x03\x04")
    with pytest.raises(DataError, match=r"x\.csv\.zip cannot be read, it may be damaged"):
        open_database(Source(str(tmp_path / "x.csv.zip")))
    with zipfile.ZipFile(tmp_path / "y.zip", "w") as archive:
        archive.writestr("y.csv", f"formula,{TARGET}\nNaCl,-1\n")
    content = bytearray((tmp_path / "y.zip").read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "y.zip").write_bytes(content)
    with pytest.raises(DataError, match="packed with a password; unpack it"):
        open_database(Source(str(tmp_path / "y.zip")))


def test_columns_of_a_list_without_a_header_are_not_left_out_silently(tmp_path):
    (tmp_path / "a.vasp").write_text("x\n1.0\n4 0 0\n0 4 0\n0 0 4\nPo\n1\ndirect\n0 0 0\n")
    (tmp_path / "id_prop.csv").write_text("a,-1,0.5\n")
    database = open_database(Source(str(tmp_path)))
    assert database.frame["target"].tolist() == [-1.0]
    assert counted_notes(database.notices) == {
        "a list without a header: its second column is the target, further ones are not used": 1
    }


@pytest.mark.skipif(not CASES.is_dir(), reason=f"needs the odd inputs in {CASES}")
def test_every_handed_case_has_a_row_or_the_cause_by_its_name(monkeypatch):
    monkeypatch.setenv("RAY_FED_CACHE", "off")
    sources = [*(CASES / "structs").iterdir(), *CASES.glob("*.cif"), *(CASES / "csv").iterdir(), *CASES.glob("idp_*")]
    for path in sources:
        has_target = path.is_dir() or path.parent.name == "csv"
        source = Source(os.fspath(path), target=TARGET if has_target else None, cell="standard")
        refused, told = "", []
        try:
            database = open_database(source, "north")
            told = [*counted_reasons(database.frame["reason"]), *counted_notes(database.notices)]
            told += counted_notes(database.frame["note"])
        except DataError as error:
            refused = str(error)
        assert OTHER not in told, path
        assert refused.startswith("silo 'north': ") or not refused, path
        assert len(refused.splitlines()) <= 1, path
