"""Broken and hostile tables: what becomes a reason, what is refused, and in which words."""

import gzip
import json
import os

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ray_fed.errors import DataError
from ray_fed.materials.databases.database import open_database, reason_counts
from ray_fed.materials.databases.source import Source
from tests.crystal_files import ROCKSALT, TARGET, WURTZITE, csv_file, table, text_file

NAN = float("nan")
HOSTILE = [
    b"",
    b"NaN",
    b"1e999",
    b"-1",
    b"null",
    b"[]",
    b"{}",
    b'"',
    b",",
    b"\n",
    b"\0",
    b"\xff",
    b"9" * 30,
    b"'",
    b"Xx",
]


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("RAY_FED_CACHE", str(tmp_path_factory.mktemp("cache") / "entries"))


# What becomes a reason


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({TARGET: ""}, "target is missing"),
        ({TARGET: "nan"}, "target is missing"),
        ({TARGET: "inf"}, "target 'inf' is not finite"),
        ({TARGET: "-1e300"}, "target '-1e+300' is beyond 1e+15"),
        ({TARGET: "cheap"}, "target 'cheap' is not a number"),
        ({TARGET: "1_000"}, "target '1_000' is not a number"),
        ({TARGET: "1e-400"}, "target '1e-400' is not a number"),
        ({"formula": ""}, "formula is empty"),
        ({"formula": "Xx2O3"}, "unknown element 'Xx' in 'Xx2O3'"),
        ({"a": "-5.6"}, "a '-5.6' is not 0.1 to 10000 Å"),
        ({"b": "1e300"}, "b '1e+300' is not 0.1 to 10000 Å"),
        ({"c": ""}, "c is missing"),
        ({"c": "long"}, "c 'long' is not a number"),
        ({"alpha": "180"}, "alpha '180' is not 0 to 180 degrees"),
        ({"alpha": "170", "beta": "70"}, "angles '170, 70, 90' close no cell"),
        ({"volume": "-175"}, "volume '-175' is not a volume"),
        ({"volume": "inf"}, "volume 'inf' is not a volume"),
        ({"spacegroup_number": "231"}, "space group '231' is not 1 to 230"),
        ({"spacegroup_number": "Q4"}, "space group 'Q4' is not a number"),
        ({"formula": "Na'Cl"}, "cannot read 'Na\"Cl' at '\"Cl'"),
    ],
)
def test_a_row_that_cannot_be_used_stays_with_its_reason(tmp_path, change, reason):
    frame = open_database(Source(csv_file(tmp_path, {**ROCKSALT, **change}, WURTZITE))).frame
    assert frame["reason"].tolist() == [reason, ""]


def test_the_first_reason_stays_and_values_are_not_counted(tmp_path):
    rows = [{**ROCKSALT, TARGET: text} for text in ("high", "low", "", "-2.0")]
    database = open_database(Source(csv_file(tmp_path, *rows)))
    assert reason_counts(database.frame) == {"target is not a number": 2, "target is missing": 1}
    assert database.fingerprint["num_rows"] == 4
    assert database.fingerprint["num_usable"] == 1


def test_a_torn_csv_row_and_a_torn_json_line_are_reasons(tmp_path):
    path = text_file(tmp_path, "torn.csv", f"formula,{TARGET}\nNaCl,-2\nKCl\nKBr,-1,7\n")
    assert open_database(Source(path)).frame["reason"].tolist() == [
        "",
        "torn row '1 of 2 values'",
        "torn row '3 of 2 values'",
    ]
    lines = [json.dumps({"formula": "NaCl", TARGET: -2}), '{"formula": "KC', "7", "[" * 100_000]
    path = text_file(tmp_path, "torn.jsonl", "\n".join(lines))
    assert reason_counts(open_database(Source(path)).frame) == {"entry is not a JSON object": 3}


@pytest.mark.parametrize(
    ("lists", "reason"),
    [
        ({"numbers": [11, 200]}, "unknown atomic number '200'"),
        ({"frac_coords": [0.0] * 5}, "frac_coords has '5' values for '2' sites; three for each are needed"),
        ({"frac_coords": [0.0] * 5 + [NAN]}, "frac_coords has a value that is not finite"),
        ({"numbers": [31, 31], "frac_coords": [0.0] * 6}, "atoms are too close '0.000 Å'; under 0.4 Å none can be"),
        ({"numbers": [], "frac_coords": []}, "numbers is empty"),
        ({"numbers": None}, "numbers is missing"),
    ],
)
def test_lists_that_make_no_structure_are_reasons_where_the_space_group_is_searched(tmp_path, lists, reason):
    good = {**WURTZITE, "numbers": [31, 7], "frac_coords": [0.0, 0.0, 0.0, 0.3, 0.3, 0.3]}
    rows = [{**good, **lists}, good]
    rows = [{name: value for name, value in row.items() if name != "spacegroup_number"} for row in rows]
    table(*rows).to_parquet(tmp_path / "data.parquet")
    assert open_database(Source(str(tmp_path / "data.parquet"))).frame["reason"].tolist() == [reason, ""]


# What is refused


def refusal(source: Source) -> str:
    with pytest.raises(DataError) as caught:
        open_database(source, silo="mit")
    message = str(caught.value)
    assert message.startswith("silo 'mit': ")
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.csv", b"", "is an empty file"),
        ("header.csv", b"formula,formation_energy_per_atom\n", "is empty: it has no rows"),
        ("blank.csv", b"\n\n  \n", "has no rows"),
        ("garbage.csv", bytes(range(256)) * 20, "is not UTF-8 text"),
        ("zeros.csv", b"\0\n" * 1000, "has no column 'formula'"),
        ("quote.csv", b'formula,x\n"' + b"y" * 200_000, "cannot be read, it may be damaged: 'field larger"),
        ("utf16.csv", "formula,x\nNaCl,1\n".encode("utf-16-le"), "has no column 'formula'"),
        ("latin1.csv", "formula,x\nNaCl,\xe9\n".encode("latin-1"), "is not UTF-8 text (byte 15); save it as UTF-8"),
        ("twice.csv", b"formula,x,x\nNaCl,1,2\n", "has more than one column named 'x'"),
        ("torn.parquet", b"PAR1" + b"\0" * 500, "cannot be read, it may be damaged"),
        ("text.parquet", b"formula,target", "cannot be read, it may be damaged"),
        ("empty.jsonl", b"\n", "has no rows"),
        ("word.json", b'"hello"', "holds a JSON str; it must be a list of entries"),
        ("broken.json", b'[{"formula": "Na', "cannot be read, it may be damaged"),
        ("keys.json", b'{"a": 1, "b": [2]}', "neither a list of entries nor columns of a table; its keys: 'a, b'"),
        ("deep.json", b"[" * 100_000, "cannot be read, it may be damaged"),
        ("torn.csv.gz", gzip.compress(b"formula,x\n" * 1000, mtime=0)[:-20], "cannot be read, it may be damaged"),
        ("plain.csv.gz", b"formula,x\nNaCl,1\n", "cannot be read, it may be damaged: 'Not a gzipped file"),
        ("data.xlsx", b"PK", "cannot be read, it may be damaged"),
        ("data.pkl", b"\x80", "cannot tell what kind of file it is; its name must end in .parquet"),
    ],
)
def test_a_broken_file_is_refused_in_one_line(tmp_path, name, content, message):
    assert message in refusal(Source(text_file(tmp_path, name, content)))


def test_a_truncated_parquet_file_is_refused_in_one_line(tmp_path):
    table().to_parquet(tmp_path / "data.parquet")
    whole = (tmp_path / "data.parquet").read_bytes()
    assert "may be damaged" in refusal(Source(text_file(tmp_path, "cut.parquet", whole[: len(whole) // 2])))
    # The footer is whole, the pages are not.
    rotten = whole[:4] + b"\xff" * (len(whole) // 4) + whole[4 + len(whole) // 4 :]
    assert "may be damaged" in refusal(Source(text_file(tmp_path, "rotten.parquet", rotten)))


def test_a_path_that_is_no_file_is_refused(tmp_path):
    assert "no such file or folder" in refusal(Source(str(tmp_path / "nothing.csv")))
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert "no such file or folder" in refusal(Source(str(tmp_path / "loop")))
    os.mkfifo(tmp_path / "pipe.csv")
    assert "neither a file nor a folder" in refusal(Source(str(tmp_path / "pipe.csv")))
    assert "cannot be read" in refusal(Source("x" * 5000))
    assert "holds no data" in refusal(Source(str(tmp_path)))


def test_a_missing_column_is_refused_with_what_is_there_and_the_nearest_name(tmp_path):
    path = text_file(tmp_path, "data.csv", "formula,formation_enthalpy_per_atom,gap\nNaCl,1,2\n")
    message = refusal(Source(path))
    assert f"data.csv has no column '{TARGET}'; it has: formula, formation_enthalpy_per_atom, gap" in message
    assert message.endswith("did you mean 'formation_enthalpy_per_atom'?")
    assert "has no column 'formulas'" in refusal(Source(path, target="gap", keep=("formulas",)))
    assert "has no column 'source'" in refusal(Source(path, target="gap", where={"source": "MP"}))
    path = text_file(tmp_path, "plain.csv", "x,y\n1,2\n")
    assert "(formula, structure or atomic numbers are needed) has no column 'formula'; it has: x, y" in refusal(
        Source(path, target="y")
    )


def test_a_line_break_in_a_column_s_name_does_not_break_the_message(tmp_path):
    path = text_file(tmp_path, "data.csv", 'formula,"formation\nenergy"\nNaCl,1\n')
    assert "it has: formula, formation energy; did you mean" in refusal(Source(path))


def test_a_condition_that_no_row_meets_is_refused_with_the_values_there_are(tmp_path):
    rows = [{**ROCKSALT, "db": "MP", "n": 2}, {**WURTZITE, "db": "MP", "n": 3}, {**WURTZITE, "db": "EXPT", "n": 3}]
    path = csv_file(tmp_path, *rows)
    assert "where db='QM' matches no row; the column holds: MP (2 rows), EXPT (1 rows)" in refusal(
        Source(path, where={"db": "QM"})
    )
    assert "no row meets all of where db='EXPT' and n=2" in refusal(Source(path, where={"db": "EXPT", "n": 2}))


def test_a_source_without_a_usable_row_is_refused_with_the_reasons(tmp_path):
    rows = [{**ROCKSALT, TARGET: ""}, {**ROCKSALT, TARGET: "x"}, {**ROCKSALT, TARGET: "y"}]
    assert refusal(Source(csv_file(tmp_path, *rows))).endswith(
        "has no usable row of 3: 2 x target is not a number; 1 x target is missing; the first: 'target is missing'"
    )


def test_without_a_silo_the_message_begins_with_the_file(tmp_path):
    with pytest.raises(DataError, match=f"^{tmp_path}/none.csv: no such file"):
        open_database(Source(str(tmp_path / "none.csv")))


def test_a_folder_with_one_data_file_is_that_file_and_with_two_it_is_refused(tmp_path):
    csv_file(tmp_path)
    text_file(tmp_path, "README.md", "about the data")
    text_file(tmp_path, "._data.csv", b"\0\0litter of another system")
    assert open_database(Source(str(tmp_path))).fingerprint["num_rows"] == 2
    csv_file(tmp_path, name="more.csv")
    assert "holds 2 data files (data.csv, more.csv); give the path of one of them" in refusal(Source(str(tmp_path)))


@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(["data.csv", "data.jsonl", "data.json", "data.parquet"]), st.randoms(use_true_random=False))
def test_whatever_is_wrong_with_a_file_it_is_a_reason_or_a_data_error(tmp_path, name, random):
    path = tmp_path / name
    write = {"csv": "to_csv", "jsonl": "to_json", "json": "to_json", "parquet": "to_parquet"}[name.split(".")[1]]
    options = {"data.csv": {"index": False}, "data.jsonl": {"orient": "records", "lines": True}}.get(name, {})
    getattr(table(), write)(path, **options)
    content = bytearray(path.read_bytes())
    for _ in range(random.randint(1, 6)):
        start = random.randrange(len(content))
        content[start : start + random.randrange(20)] = random.choice(HOSTILE)
    path.write_bytes(content)
    message, frame = "silo 'mit': ", None
    try:
        frame = open_database(Source(str(path)), silo="mit").frame
    except DataError as error:
        message = str(error)
    assert message.startswith("silo 'mit': ")
    assert "\n" not in message
    if frame is not None:
        usable = frame[frame["reason"] == ""]
        assert np.isfinite(usable["target"]).all()
        assert not (usable[["a", "b", "c", "volume"]] <= 0).any(axis=None)
