"""Silos in databases: the same rows give the same model, bit for bit, whichever server they stand in; what goes wrong
is one line; and a password stays where it was."""

import gzip
import json
import re
import shutil
import socket
import sqlite3
import zipfile
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from pipelines.cli import main
from ray_fed.errors import ConfigError, DataError, Trouble
from ray_fed.materials.databases import optimade
from ray_fed.materials.databases.addresses import check_address, filled, redacted, split
from ray_fed.materials.databases.database import open_database
from ray_fed.materials.databases.kinds import KINDS, open_source, whole_path
from ray_fed.materials.databases.source import Access, Source
from ray_fed.perimeter.checks import checked_fingerprint
from ray_fed.perimeter.gate import Gate
from ray_fed.perimeter.policy import Policy
from ray_fed.sites.requests import Invitation
from ray_fed.sites.site_file import read_site_file
from ray_fed.sites.tasks import accepted
from tests.database_rows import (
    POSTGRES_TABLE,
    TARGET,
    optimade_entries,
    postgres_values,
    rows,
    shuffled,
    write_ase,
    write_parquet,
    write_sqlite,
)
from tests.database_servers import READER_PASSWORD, optimade_server, postgres_server

# The reference OPTIMADE server warns of its own use of old names, and answers 500 where that is an error.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Accessing the 'model_:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Unrecognised field"),
]
ROWS = rows()
GIVEN = Access(password=READER_PASSWORD)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_FED_CACHE", str(tmp_path / "cache"))
    for name in ("PGPASSWORD", "RAY_FED_PASSWORD"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def postgres():
    with postgres_server() as server:
        server.execute(f"CREATE TABLE crystals {POSTGRES_TABLE}")
        server.insert("crystals", postgres_values(ROWS))
        yield server


@pytest.fixture(scope="module")
def provider():
    with optimade_server(optimade_entries(ROWS), ["energy"]) as server:
        yield server


@pytest.fixture
def served(provider):
    """The provider, as if nobody had asked it yet."""
    for given in (provider.asked, provider.answers, provider.bodies):
        given.clear()
    provider.fails_at = 0
    yield provider
    for given in (provider.answers, provider.bodies):
        given.clear()
    provider.fails_at = 0


def refused(source: Source, failure: Trouble) -> str:
    """Return the one line with which a source is refused."""
    with pytest.raises(DataError) as raised:
        open_database(source, "north")
    message = str(raised.value)
    assert raised.value.failure is failure, message
    assert "\n" not in message
    assert message.startswith("silo 'north': ")
    assert READER_PASSWORD not in message
    return message


# ---- the same rows


def parquet(tmp_path, given=ROWS):
    return open_database(Source(write_parquet(tmp_path / "rows.parquet", given), target=TARGET))


def assert_same(database, expected):
    pd.testing.assert_frame_equal(database.frame, expected.frame, check_exact=True)
    assert database.fingerprint["sha256"] == expected.fingerprint["sha256"]


def test_rows_of_postgresql_are_those_of_a_parquet_file(postgres, tmp_path):
    for access in (replace(GIVEN, table="crystals"), replace(GIVEN, table="public.crystals"), GIVEN,
                   replace(GIVEN, query="SELECT * FROM crystals;"),
                   replace(GIVEN, query="select * from crystals where structure is not null ORDER BY id")):  # fmt: skip
        assert_same(open_database(Source(postgres.address(), target=TARGET, access=access)), parquet(tmp_path))


def test_rows_of_sqlite_are_those_of_a_parquet_file_by_address_and_by_path(tmp_path):
    address = write_sqlite(tmp_path / "rows.sqlite", ROWS)
    for path in (address, str(tmp_path / "rows.sqlite")):
        assert_same(open_database(Source(path, target=TARGET)), parquet(tmp_path))


def test_rows_of_an_ase_database_are_those_of_a_parquet_file_by_address_and_by_path(tmp_path):
    pytest.importorskip("ase.db", reason="needs ase")
    address = write_ase(tmp_path / "rows.db", sorted(ROWS, key=lambda row: row.id))
    for path in (address, str(tmp_path / "rows.db")):
        database = open_database(Source(path, target=TARGET))
        by_id = database.frame.sort_values("id").reset_index(drop=True)
        pd.testing.assert_frame_equal(by_id, parquet(tmp_path).frame, check_exact=True)


def test_rows_of_an_optimade_provider_are_those_of_a_parquet_file(served, tmp_path):
    database = open_database(Source(served.address, target="_exmpl_energy"))
    expected = parquet(tmp_path)
    pd.testing.assert_frame_equal(database.frame, expected.frame, check_exact=True)
    named = expected.fingerprint | {"provider": "exmpl", "licence": "CC-BY-4.0"}
    assert {key: value for key, value in database.fingerprint.items() if key != "sha256"} == {
        key: value for key, value in named.items() if key != "sha256"
    }


def test_documents_of_mongodb_are_rows_of_a_parquet_file(mongo, tmp_path):
    documents = [{"material_id": row.id, "structure": row.structure, TARGET: row.energy} for row in shuffled(ROWS)]
    mongo.documents["materials"]["crystals"].insert_many(documents)
    assert_same(open_database(replace(of_mongodb(mongo), target=TARGET)), parquet(tmp_path))
    assert mongo.asked.count("find") == 1
    assert mongo.asked.count("getMore") == (len(ROWS) - 1) // 3


def test_rows_that_a_statement_orders_keep_its_order_and_others_are_sorted(tmp_path):
    address = write_sqlite(tmp_path / "rows.sqlite", ROWS)
    statement = f"SELECT id, structure, {TARGET} FROM (SELECT * FROM crystals ORDER BY id DESC)"
    sorted_here = open_source(Source(address, access=Access(query=statement)))
    by_energy = open_source(Source(address, access=Access(query=f"SELECT * FROM crystals ORDER BY {TARGET}")))
    assert sorted_here.read("id").tolist() == [row.id for row in ROWS]
    assert by_energy.read(TARGET).tolist() == sorted(row.energy for row in ROWS)


def test_rows_without_ids_are_sorted_by_their_content(tmp_path):
    orders = []
    for number, given in enumerate((ROWS, shuffled(ROWS))):
        write_sqlite(tmp_path / f"{number}.sqlite", given)
        query = f"SELECT structure, {TARGET} FROM crystals"
        table = open_source(Source(f"sqlite:///{tmp_path}/{number}.sqlite", access=Access(query=query)))
        orders.append(table.read(TARGET).tolist())
    assert orders[0] == orders[1]


# ---- types


def test_every_type_of_postgresql_arrives_as_parquet_would_hold_it(postgres):
    postgres.execute(
        "CREATE TABLE kinds (id int, double double precision, single real, exact numeric, cents numeric(12,2), "
        "flag boolean, at timestamp, cif bytea, cell double precision[], singles real[], atoms jsonb, key uuid, n int)"
    )
    key = "8d9b1b1e-2e83-4b11-9a3e-2b7f1f7f6c11"
    postgres.insert("kinds", [
        (1, 0.1 + 0.2, 0.1, "0.30000000000000004", "12.50", True, "2024-01-02 03:04:05", b"data_x",
         [1 / 3, 0.1], [0.1, 1 / 3], json.dumps({"elements": ["Na"], "a": 5.6}), key, 7),
        (2, None, None, None, None, None, None, b"\xff\xfe", None, None, None, None, None),
    ])  # fmt: skip
    table = open_source(Source(postgres.address(), access=replace(GIVEN, table="kinds")))
    found = {name: table.read(name) for name in table.columns}
    assert found["id"].dtype == np.int64
    assert found["double"].tolist()[0] == found["exact"].tolist()[0] == 0.1 + 0.2
    assert found["single"].tolist()[0] == float(np.float32(0.1))
    assert found["singles"].tolist()[0].tolist() == np.float32([0.1, 1 / 3]).astype(float).tolist()
    assert found["cents"].tolist()[0] == 12.5
    assert found["flag"].tolist() == [True, None]
    assert str(found["at"].tolist()[0]) == "2024-01-02 03:04:05"
    assert found["cif"].tolist() == ["data_x", "2 bytes that are no text"]
    assert found["cell"].tolist()[0].tolist() == [1 / 3, 0.1]
    assert found["atoms"].tolist()[0] == {"elements": ["Na"], "a": 5.6}
    assert found["key"].tolist()[0] == key
    for name in ("double", "single", "exact", "cents", "n"):
        assert found[name].dtype == np.float64
        assert np.isnan(found[name].tolist()[1])


def test_columns_of_numbers_and_arrays_make_the_frame_of_a_parquet_file_with_the_same_numbers(postgres, tmp_path):
    given = [("x-1", 3.1, 4.1, 5.1, 80.0, 90.0, 100.0, [11, 17], [0.0, 0.0, 0.0, 0.5, 0.5, 0.5], 0.1),
             ("x-2", 3.2, 4.2, 5.2, 80.0, 90.0, 100.0, [19, 35], [0.0, 0.0, 0.0, 0.5, 0.5, 0.5], 1 / 3)]  # fmt: skip
    names = ["id", "a", "b", "c", "alpha", "beta", "gamma", "numbers", "frac_coords", "energy"]
    postgres.execute(
        "CREATE TABLE arrays (id text, a float8, b float8, c numeric, alpha float8, beta float8, gamma float8, "
        "numbers int[], frac_coords float8[], energy real)"
    )
    postgres.insert("arrays", given)
    frame = pd.DataFrame(given, columns=names).astype({"energy": np.float32})
    frame.to_parquet(tmp_path / "arrays.parquet")
    expected = open_database(Source(str(tmp_path / "arrays.parquet"), target="energy"))
    found = open_database(Source(postgres.address(), target="energy", access=replace(GIVEN, table="arrays")))
    assert_same(found, expected)
    assert found.frame["spacegroup_number"].tolist() == [2.0, 2.0]


def test_nulls_are_missing_values_with_their_reason(tmp_path):
    with closing(sqlite3.connect(tmp_path / "nulls.sqlite")) as connection:
        connection.execute("CREATE TABLE crystals (id TEXT, formula TEXT, energy REAL)")
        connection.executemany("INSERT INTO crystals VALUES (?, ?, ?)",
                               [("a", "NaCl", None), ("b", None, -1.0), (None, "KCl", -2.0)])  # fmt: skip
        connection.commit()
    frame = open_database(Source(f"sqlite:///{tmp_path}/nulls.sqlite", target="energy")).frame
    assert frame["reason"].astype(bool).tolist() == [True, True, False]
    assert frame["id"].tolist() == ["a", "b", "row-3"]


def test_where_rows_and_columns_choose_as_they_do_in_a_file(tmp_path):
    with closing(sqlite3.connect(tmp_path / "rows.sqlite")) as connection:
        connection.execute("CREATE TABLE crystals (id INTEGER, formula TEXT, functional TEXT, energy NUMERIC)")
        connection.executemany("INSERT INTO crystals VALUES (?, ?, ?, ?)",
                               [(3, "NaCl", "PBE", -2.0), (1, "KCl", "PBE", -1), (2, "LiF", "SCAN", -3)])  # fmt: skip
        connection.commit()
    source = Source(f"sqlite:///{tmp_path}/rows.sqlite", target="energy", where=(("functional", "PBE"),), rows=1,
                    keep=("functional",), columns=("formula",))  # fmt: skip
    frame = open_database(source).frame
    assert frame[["formula", "functional", "target"]].values.tolist() == [["KCl", "PBE", -1.0]]


# ---- one federation


@pytest.fixture
def federation(postgres, served, tmp_path, monkeypatch):
    """Four silos in four kinds of database, and the same rows as four parquet files; file -> federation file."""
    pytest.importorskip("ase.db", reason="needs ase")
    monkeypatch.setenv("RAY_FED_PASSWORD", READER_PASSWORD)
    parts = [ROWS[at::4] for at in range(4)]
    ids = ", ".join(f"'{row.id}'" for row in parts[0])
    filters = " OR ".join(f'id="{row.id}"' for row in parts[3])
    address = postgres.address().replace("reader@", "reader:${RAY_FED_PASSWORD}@")
    write_sqlite(tmp_path / "south.sqlite", parts[1])
    # An ASE database keeps the order of its rows.
    monkeypatch.setattr("tests.database_rows.shuffled", list)
    write_ase(tmp_path / "east.db", parts[2])
    databases = [
        {"name": "north", "data": address, "query": f"SELECT * FROM crystals WHERE id IN ({ids})"},
        {"name": "south", "data": "sqlite:///south.sqlite", "table": "crystals"},
        {"name": "east", "data": "ase:///east.db", "query": f"{TARGET}<100"},
        {"name": "west", "data": served.address, "query": filters, "target": "_exmpl_energy", "unit": "eV/atom"},
    ]
    files = [
        {"name": entry["name"], "data": write_parquet(tmp_path / f"{entry['name']}.parquet", part)}
        for entry, part in zip(databases, parts, strict=True)
    ]
    for name, silos in (("databases", databases), ("files", files)):
        content = {"silos": silos, "training": {"test_fraction": 0.3}}
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(content))
    return tmp_path


OPTIONS = ["--cohort", "local", "--baselines", "no", "--epochs", "4", "--communication-frequency", "1", "--hidden", "8",
           "--features", "guo73", "--batch-size", "16"]  # fmt: skip


def train(folder: Path, name: str, command: str) -> Path:
    out = folder / f"run-{name}"
    given = ["--federation", str(folder / f"{name}.yaml"), "--out", str(out)]
    own = ["--target", TARGET, "--features", "rich+structure"] if command == "train" else []
    assert main([command, *OPTIONS, *given, *own]) == 0
    return out


def everything_written(folder: Path) -> bytes:
    return b"\n".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())


def forms_of(secret: str) -> list[bytes]:
    """A secret as it is, and as an address escapes it."""
    from urllib.parse import quote

    return [secret.encode(), quote(secret, safe="").encode(), quote(secret).encode()]


@pytest.mark.parametrize("command", ["formation-energy", "train"])
def test_silos_in_four_databases_give_the_model_of_parquet_files_bit_for_bit_and_no_password_is_written(
    command, federation, capfd
):
    of_databases, of_files = train(federation, "databases", command), train(federation, "files", command)
    from safetensors.numpy import load_file

    ours, theirs = (load_file(run / "models/federated.safetensors") for run in (of_databases, of_files))
    assert ours.keys() == theirs.keys()
    assert all(ours[name].tobytes() == theirs[name].tobytes() for name in ours)
    data, expected = (
        {entry["silo"]: entry for entry in json.loads((run / "data.json").read_text())}
        for run in (of_databases, of_files)
    )
    for silo in ("north", "south", "east"):
        assert data[silo] == expected[silo]
    # The provider has another name for its column; a fingerprint is one of rows under their names.
    same = {key: value for key, value in expected["west"].items() if key != "sha256"}
    assert data["west"] == same | {"provider": "exmpl", "licence": "CC-BY-4.0", "sha256": data["west"]["sha256"]}
    shown = capfd.readouterr()
    written = everything_written(of_databases) + everything_written(federation / "cache")
    for form in forms_of(READER_PASSWORD):
        assert form not in written
        assert form not in (shown.out + shown.err).encode()
    assert b"RAY_FED_PASSWORD" in (federation / "databases.yaml").read_bytes()


def test_a_run_on_a_database_that_changed_since_it_began_is_not_resumed(federation, monkeypatch, capsys):
    from pipelines.training.recorder import TrainingRecorder

    whole = TrainingRecorder.on_round_end

    def stop(self, record, seed):
        whole(self, record, seed)
        if record.server_round == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as broken:
        broken.setattr(TrainingRecorder, "on_round_end", stop)
        out = federation / "run-broken"
        given = ["--federation", str(federation / "databases.yaml"), "--out", str(out)]
        assert main(["formation-energy", *OPTIONS, *given]) == 130
    with closing(sqlite3.connect(federation / "south.sqlite")) as connection:
        before = connection.execute(f"SELECT id, {TARGET} FROM crystals LIMIT 1").fetchone()
        connection.execute(f"UPDATE crystals SET {TARGET} = {TARGET} + 1e-12 WHERE id = ?", before[:1])
        connection.commit()
    assert main(["resume", str(out)]) == 2
    assert "silo 'south': its data changed since the run began; start a new run" in capsys.readouterr().err
    with closing(sqlite3.connect(federation / "south.sqlite")) as connection:
        connection.execute(f"UPDATE crystals SET {TARGET} = ? WHERE id = ?", before[::-1])
        connection.commit()
    assert main(["resume", str(out)]) == 0


def test_a_federation_is_set_up_and_looked_over_without_asking_any_database(federation, served):
    from pipelines.cluster.doctor import _paths_at
    from pipelines.training.setup import resolve

    setup = resolve({"federation": str(federation / "databases.yaml")})
    assert [spec.name for spec in setup.silos] == ["north", "south", "east", "west"]
    assert served.asked == []
    assert _paths_at(setup.silos) == {}


def test_a_study_and_predictions_read_a_database_too(postgres, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PGPASSWORD", READER_PASSWORD)
    study = ["--data", postgres.address(), "--table", "crystals", "--silos", "16,16", "--test-rows", "10"]
    assert main(["formation-energy", *OPTIONS, *study, "--out", "run"]) == 0
    alike = ["--data", write_parquet(tmp_path / "rows.parquet", ROWS), *study[4:]]
    assert main(["formation-energy", *OPTIONS, *alike, "--out", "alike"]) == 0
    history, expected = (Path(run, "history.jsonl").read_bytes() for run in ("run", "alike"))
    assert history == expected  # metrics, too: who asks for the study has all of its rows
    query = "SELECT id, structure FROM crystals WHERE id < 'c-005'"
    assert main(["predict", "run", postgres.address(), "--query", query, "--out", "p.csv"]) == 0
    assert pd.read_csv("p.csv")["id"].tolist() == [row.id for row in ROWS[:5]]
    assert READER_PASSWORD.encode() not in everything_written(tmp_path)


# ---- what goes wrong


@pytest.mark.parametrize(
    ("asked", "failure", "said"),
    [
        ({"table": "no_such"}, Trouble.QUERY_FAILED, "42P01"),
        ({"query": "SELECT volume_x FROM crystals"}, Trouble.QUERY_FAILED, "column \"volume_x\" does not exist"),
        ({"query": "SELECT * FORM crystals"}, Trouble.QUERY_FAILED, "42601"),
        ({"query": "SELECT id::int FROM crystals"}, Trouble.QUERY_FAILED, "22P02"),
        ({"query": "SELECT id, id FROM crystals"}, Trouble.COLUMN_TWICE, "more than one column named 'id'"),
        ({"query": "SELECT id, structure FROM crystals"}, Trouble.COLUMN_MISSING, f"no column '{TARGET}'"),
        ({"query": "SELECT * FROM crystals WHERE false"}, Trouble.FILE_EMPTY, "no rows"),
        ({"query": "SELECT *, pg_sleep(9) FROM crystals", "query_timeout": 0.3}, Trouble.QUERY_LATE, "within 0.3 s"),
        ({"query": "SELECT 1; DROP TABLE crystals"}, Trouble.OPTION_WRONG, "one SELECT statement"),
        ({"query": "DELETE FROM crystals"}, Trouble.OPTION_WRONG, "one SELECT statement"),
        ({"query": "SELECT 1", "table": "crystals"}, Trouble.OPTION_WRONG, "give one of them"),
        ({"query": "SELECT setval('counter', 5), * FROM crystals"}, Trouble.QUERY_FAILED, "only reading is allowed"),
        ({"query": "WITH x AS (DELETE FROM crystals RETURNING *) SELECT * FROM x"}, Trouble.QUERY_FAILED,
         "only reading is allowed"),
        ({"table": "secrets"}, Trouble.DATABASE_LOCKED, "grants SELECT"),
        ({"table": "crystals", "password": "wrong-Kz7"}, Trouble.DATABASE_LOCKED, "refuses the user or the password"),
        ({"table": "crystals", "password": ""}, Trouble.DATABASE_LOCKED, "refuses the user or the password"),
    ],
)  # fmt: skip
def test_what_postgresql_refuses_is_one_line_without_a_value(postgres, asked, failure, said):
    postgres.execute(
        "CREATE SEQUENCE IF NOT EXISTS counter", "GRANT UPDATE ON SEQUENCE counter TO reader",
        "CREATE TABLE IF NOT EXISTS secrets (x int)", "REVOKE SELECT ON secrets FROM reader",
    )  # fmt: skip
    message = refused(Source(postgres.address(), target=TARGET, access=replace(GIVEN, **asked)), failure)
    assert said in message
    for hidden in ("wrong-Kz7", "127.0.0.1", "reader", "c-000", "pg_sleep"):
        assert hidden not in message


def test_a_server_that_is_not_there_is_one_line(postgres):
    asked = replace(GIVEN, table="crystals", query_timeout=2)
    nobody = postgres.address().replace(str(postgres.port), "1")
    assert "no server answers there" in refused(Source(nobody, access=asked), Trouble.DATABASE_AWAY)
    assert "no such database" in refused(Source(postgres.address(database="x"), access=asked), Trouble.DATABASE_AWAY)
    unknown = "postgresql://reader@no-such-host.invalid/x"
    assert "no server answers there" in refused(Source(unknown, access=asked), Trouble.DATABASE_AWAY)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        mute = f"postgresql://reader@127.0.0.1:{silent.getsockname()[1]}/x"
        assert "no server answers there" in refused(Source(mute, access=asked), Trouble.DATABASE_AWAY)


@pytest.mark.parametrize(
    ("asked", "failure", "said"),
    [
        ({"table": "no_such"}, Trouble.QUERY_FAILED, "no such table"),
        ({"query": "SELECT volume_x FROM crystals"}, Trouble.QUERY_FAILED, "no such column"),
        ({"query": "SELECT * FORM crystals"}, Trouble.QUERY_FAILED, "syntax error"),
        ({"query": "SELECT * FROM crystals WHERE 0"}, Trouble.FILE_EMPTY, "no rows"),
        ({"query": "PRAGMA query_only = OFF"}, Trouble.OPTION_WRONG, "one SELECT statement"),
        ({"query": "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT max(x) FROM n",
          "query_timeout": 0.2}, Trouble.QUERY_LATE, "within 0.2 s"),
    ],
)  # fmt: skip
def test_what_sqlite_refuses_is_one_line(tmp_path, asked, failure, said):
    address = write_sqlite(tmp_path / "rows.sqlite", ROWS)
    assert said in refused(Source(address, target=TARGET, access=Access(**asked)), failure)


def test_nothing_is_written_into_a_sqlite_or_ase_file_and_none_is_made(tmp_path):
    pytest.importorskip("ase.db", reason="needs ase")
    addresses = [write_sqlite(tmp_path / "a.sqlite", ROWS), write_ase(tmp_path / "b.db", ROWS)]
    before = [(tmp_path / name).read_bytes() for name in ("a.sqlite", "b.db")]
    for address in addresses:
        open_database(Source(address, target=TARGET))
    assert [(tmp_path / name).read_bytes() for name in ("a.sqlite", "b.db")] == before
    for address in (f"sqlite:///{tmp_path}/none.sqlite", f"ase:///{tmp_path}/none.db"):
        assert "no such file" in refused(Source(address), Trouble.FILE_MISSING)
    assert not list(tmp_path.glob("none*"))


def test_a_file_that_is_no_database_is_named_as_one(tmp_path):
    (tmp_path / "x.sqlite").write_text("id,formula\n1,NaCl\n" * 100)
    assert "no SQLite database" in refused(Source(f"sqlite:///{tmp_path}/x.sqlite"), Trouble.FILE_UNKNOWN)
    write_sqlite(tmp_path / "y.sqlite", ROWS)
    torn = (tmp_path / "y.sqlite").read_bytes()
    (tmp_path / "y.sqlite").write_bytes(torn[:100] + b"\xff" * 3000 + torn[3100:])
    refused(Source(f"sqlite:///{tmp_path}/y.sqlite", access=Access(table="crystals")), Trouble.FILE_DAMAGED)


def test_a_database_of_several_tables_is_asked_for_the_name_of_one(tmp_path):
    with closing(sqlite3.connect(tmp_path / "two.sqlite")) as connection:
        connection.execute("CREATE TABLE alloys (id TEXT)")
        connection.execute("CREATE TABLE oxides (id TEXT)")
    source = Source(f"sqlite:///{tmp_path}/two.sqlite")
    assert "2 tables (alloys, oxides)" in refused(source, Trouble.OPTION_WRONG)


def test_a_selection_that_ase_does_not_understand_is_one_line(tmp_path):
    pytest.importorskip("ase.db", reason="needs ase")
    address = write_ase(tmp_path / "rows.db", ROWS)
    wrong = Source(address, target=TARGET, access=Access(query="Na>x"))
    assert "the selection 'Na>x' cannot be answered" in refused(wrong, Trouble.QUERY_FAILED)
    nothing = Source(address, target=TARGET, access=Access(query="Xe"))
    assert "no rows" in refused(nothing, Trouble.FILE_EMPTY)
    chosen = open_source(Source(address, access=Access(query="Na,Cl")))
    assert [sorted(atoms["elements"]) for atoms in chosen.read("structure")] == [["Cl", "Na"]]


def test_options_that_a_kind_does_not_have_are_refused(tmp_path):
    parquet(tmp_path)
    for path, access in (
        ("optimade+http://127.0.0.1:1", Access(table="x")),
        ("mongodb://127.0.0.1/x", Access(query="{}")),
        ("mongodb://127.0.0.1/x", Access(table="x", query='{"$where": "1"}')),
    ):
        refused(Source(path, access=access), Trouble.OPTION_WRONG)
    with pytest.raises(ConfigError, match="query, table"):
        open_source(Source(str(tmp_path / "rows.parquet"), access=Access(query="SELECT 1")))
    with pytest.raises(ConfigError, match="did you mean 'postgresql'"):
        open_source(Source("postgresl://db/x"))
    with pytest.raises(ConfigError, match="query_timeout"):
        Access(query_timeout=0)


@pytest.mark.parametrize(
    ("module", "extra", "path"),
    [
        ("sqlalchemy", "sql", "sqlite:///x.sqlite"),
        ("ase", "ase", "ase:///x.db"),
        ("pymongo", "mongodb", "mongodb://h/d"),
    ],
)
def test_a_package_that_is_not_installed_is_named_with_its_extra(module, extra, path, monkeypatch):
    monkeypatch.setattr(f"{KINDS[path.partition(':')[0]].open.__module__}.required_package", _without(module))
    message = refused(Source(path, access=Access(table="x")), Trouble.PACKAGE_MISSING)
    assert f"needs the package {module}: pip install 'ray-fed[{extra}]'" in message


def _without(module: str):
    from ray_fed.materials.databases import packages

    def required(name: str, extra: str, source: str) -> None:
        assert name == module
        packages.required_package("no_such_package_here", extra, source)

    def named(name: str, extra: str, source: str) -> None:
        try:
            required(name, extra, source)
        except DataError as error:
            raise DataError(str(error).replace("no_such_package_here", name), failure=error.failure) from None

    return named


# ---- OPTIMADE


def energies(server, **asked):
    return open_source(Source(server.address, target="_exmpl_energy", access=Access(**asked))).read("_exmpl_energy")


def test_all_pages_are_read_and_a_filter_is_the_providers(served):
    assert energies(served).tolist() == [row.energy for row in ROWS]
    assert served.num_pages() > 2
    found = energies(served, query='elements HAS "Na"')
    assert found.tolist() == [row.energy for row in ROWS if row.cation == "Na"]


def test_a_busy_provider_is_asked_again_after_the_time_it_says(served, monkeypatch):
    waited = []
    monkeypatch.setattr(optimade.time, "sleep", waited.append)
    served.answers = [(429, {"Retry-After": "7"}), (503, {}), (429, {"Retry-After": "11"})]
    assert len(energies(served)) == len(ROWS)
    assert waited == [7.0, 2.0, 11.0]


def test_a_provider_that_stays_busy_is_one_line(served, monkeypatch):
    monkeypatch.setattr(optimade.time, "sleep", [].append)
    served.answers = [(503, {})] * 20
    source = Source(served.address, target="_exmpl_energy")
    assert "did not answer 6 times" in refused(source, Trouble.DATABASE_AWAY)
    served.answers = [(429, {"Retry-After": "86400"})]
    assert "asks for 86400 s more" in refused(source, Trouble.QUERY_LATE)


def test_a_download_that_breaks_off_goes_on_where_it_stopped(served):
    source = Source(served.address, target="_exmpl_energy")
    served.fails_at = 4  # after the provider's word of itself, a page of too many entries refused, one page
    refused(source, Trouble.DATABASE_AWAY)
    before, served.fails_at = served.num_pages(), 0
    served.asked.clear()
    open_source(source)
    resumed = served.num_pages()
    shutil.rmtree(optimade.cache_folder())
    served.asked.clear()
    assert len(energies(served)) == len(ROWS)
    assert (before, resumed, served.num_pages()) == (3, served.num_pages() - 2, resumed + 2)


def test_a_whole_download_is_used_again_for_an_hour_and_then_asked_for_anew(served, monkeypatch):
    energies(served)
    served.asked.clear()
    energies(served)
    assert served.asked == []
    monkeypatch.setattr(optimade, "WHOLE_SECONDS", -1)
    energies(served)
    assert served.num_pages() > 2


def test_a_filter_or_a_column_that_the_provider_does_not_know_is_one_line(served):
    wrong = Source(served.address, target="_exmpl_energy", access=Access(query="elements HAS"))
    assert "HTTP 400" in refused(wrong, Trouble.QUERY_FAILED)
    assert "no column '_exmpl_gap'" in refused(Source(served.address, target="_exmpl_gap"), Trouble.COLUMN_MISSING)
    nothing = Source(served.address, target="_exmpl_energy", access=Access(query='elements HAS "Xe"'))
    assert "no rows" in refused(nothing, Trouble.FILE_EMPTY)
    elsewhere = Source(f"{served.address}/no/such/path", target="_exmpl_energy")
    assert "no OPTIMADE interface" in refused(elsewhere, Trouble.DATABASE_AWAY)
    nobody = Source("optimade+http://127.0.0.1:1", target="x")
    assert "no server answers" in refused(nobody, Trouble.DATABASE_AWAY)


def page(*entries, **links) -> bytes:
    return json.dumps({"data": list(entries), "meta": {"data_returned": 2}, "links": links}).encode()


def test_pages_that_make_no_sense_are_one_line(served):
    source = Source(served.address, target="_exmpl_energy")
    for bodies, failure, said in (
        ([b"<html>"] * 2, Trouble.DATA_UNUSABLE, "is that an OPTIMADE provider?"),
        ([b'{"data": 7}'], Trouble.QUERY_FAILED, "no list of entries"),
        ([page({"id": "a"}, next="?page=2"), page({"id": "b"}, next="?page=2")], Trouble.QUERY_FAILED, "have no end"),
        ([page({"id": "a"})], Trouble.QUERY_FAILED, "it told of 2 entries and gave 1"),
        ([page({"id": "a"}, next="?page=2"), page().replace(b"2}", b"3}")], Trouble.QUERY_FAILED, "changed while"),
    ):
        shutil.rmtree(optimade.cache_folder(), ignore_errors=True)
        served.bodies[:] = bodies
        assert said in refused(source, failure)


def test_no_link_and_no_redirection_leads_to_another_server(served):
    source = Source(served.address, target="_exmpl_energy")
    with socket.create_server(("127.0.0.1", 0)) as other:
        other.settimeout(0)
        there = f"http://127.0.0.1:{other.getsockname()[1]}/v1/structures?page=2"
        served.bodies[:] = [page({"id": "a"}, next={"href": there}), page({"id": "b"})]
        refused(source, Trouble.COLUMN_MISSING)
        assert served.num_pages() == 2
        shutil.rmtree(optimade.cache_folder())
        served.answers[:] = [(302, {"Location": there})]
        assert "has moved to another server" in refused(source, Trouble.DATABASE_AWAY)
        with pytest.raises(BlockingIOError):
            other.accept()


def test_a_time_to_wait_may_be_a_date(monkeypatch):
    monkeypatch.setattr(optimade.time, "time", lambda: 1_700_000_000.0)
    assert optimade._seconds_to_wait("Tue, 14 Nov 2023 22:13:50 GMT", 0) == 30.0
    assert [optimade._seconds_to_wait(told, 3) for told in ("9", None, "soon")] == [9.0, 8.0, 8.0]


def test_a_page_that_comes_byte_by_byte_is_not_waited_for_beyond_the_time_there_is():
    class Slow:
        def read1(self, size):
            return b"x" if size else b""

    with pytest.raises(DataError, match="did not come in time"):
        optimade._Provider("optimade database 'x'", "http://h/v1", deadline=0.0)._read(Slow())


def test_disordered_and_missing_structures_of_a_provider_are_read_or_have_a_reason():
    entry = optimade_entries(ROWS[:1])[0]
    mixed = {"name": "A", "chemical_symbols": ["Li", "vacancy"], "concentration": [0.5, 0.5]}
    entry |= {"species": [mixed, entry["species"][1]], "species_at_sites": ["A", entry["species_at_sites"][1]]}
    record = optimade._record({"id": "x", "attributes": entry}, ())
    assert record["structure"]["sites"][0]["species"] == [{"element": "Li", "occu": 0.5}]
    torn = optimade._record({"id": "x", "attributes": {**entry, "species": None}}, ())
    assert (torn["structure"], torn["formula"]) == (None, entry["chemical_formula_reduced"])


def test_a_licence_crosses_the_gate_as_it_is_and_other_texts_as_hashes():
    gate = Gate("north", Policy(), {})
    crossed = checked_fingerprint(gate, {"licence": "CC-BY-4.0", "provider": "exmpl", "other": "/home/me/CC-BY-4.0"})
    assert crossed["licence"] == "CC-BY-4.0"
    assert all(re.fullmatch("[0-9a-f]{16}", str(crossed[name])) for name in ("provider", "other"))


# ---- MongoDB


@pytest.fixture
def mongo():
    """The driver talks to a server of ours on loopback; mongod itself cannot be had for these tests."""
    pytest.importorskip("mongomock", reason="needs mongomock")
    pytest.importorskip("pymongo", reason="needs pymongo")
    from tests.mongodb_server import MongoServer

    with MongoServer() as server:
        yield server


def of_mongodb(server, **asked) -> Source:
    access = Access(**{"table": "crystals", "query_timeout": 20, **asked})
    return Source(f"mongodb://{server.address}/materials", target="energy", access=access)


def test_a_filter_chooses_documents_and_nested_fields_have_dotted_names(mongo):
    documents = [{"formula": "NaCl", "spacegroup": {"number": 225}, "energy": -2.0},
                 {"formula": "GaN", "spacegroup": {"number": 186}, "energy": -0.6}]  # fmt: skip
    mongo.documents["materials"]["crystals"].insert_many(documents)
    frame = open_database(of_mongodb(mongo, query='{"energy": {"$lt": -1}}')).frame
    assert frame[["formula", "spacegroup_number", "target"]].values.tolist() == [["NaCl", 225.0, -2.0]]
    assert re.fullmatch("[0-9a-f]{24}", frame.loc[0, "id"])


NO_ANSWER = {"ok": 0, "codeName": "x", "errmsg": "of sesame-4 at NaCl"}


@pytest.mark.parametrize(
    ("answer", "failure", "said"),
    [
        ({}, Trouble.FILE_EMPTY, "mongodb database 'materials' is empty"),
        ({**NO_ANSWER, "code": 13}, Trouble.DATABASE_LOCKED, "refuses the user or the password"),
        ({**NO_ANSWER, "code": 50}, Trouble.QUERY_LATE, "not answered within 20 s"),
        ({**NO_ANSWER, "code": 2}, Trouble.QUERY_FAILED, "the query fails; try its filter"),
        ({"ok": 1}, Trouble.DATABASE_AWAY, "its answer cannot be read; is there a MongoDB server"),
    ],
)
def test_what_a_mongodb_server_refuses_is_one_line_without_its_words(mongo, answer, failure, said):
    mongo.refusal = answer
    message = refused(of_mongodb(mongo), failure)
    assert said in message
    assert "sesame" not in message
    assert "NaCl" not in message


def test_a_password_that_a_mongodb_server_refuses_is_one_line_without_it(mongo):
    source = replace(of_mongodb(mongo, password=READER_PASSWORD), path=f"mongodb://reader@{mongo.address}/materials")
    assert "refuses the user or the password" in refused(source, Trouble.DATABASE_LOCKED)
    assert "saslStart" in mongo.asked


def test_a_mongodb_server_that_is_slow_or_makes_no_sense_is_one_line(mongo):
    mongo.pause = 2.0
    assert "not answered within 0.5 s" in refused(of_mongodb(mongo, query_timeout=0.5), Trouble.QUERY_LATE)
    mongo.pause, mongo.garbage = 0.0, {"find": b"\x05\0\0\0\xff"}
    assert "its answer cannot be read" in refused(of_mongodb(mongo), Trouble.DATABASE_AWAY)
    mongo.garbage = dict.fromkeys(("hello", "ismaster", "isMaster"), b"\x05\0\0\0\xff")
    refused(of_mongodb(mongo, query_timeout=0.5), Trouble.DATABASE_AWAY)


def test_a_mongodb_server_that_is_not_there_is_one_line():
    pytest.importorskip("pymongo", reason="needs pymongo")
    source = Source("mongodb://reader@127.0.0.1:1/x", access=replace(GIVEN, table="x", query_timeout=0.5))
    assert "no server answers there" in refused(source, Trouble.DATABASE_AWAY)


# ---- passwords


@pytest.mark.parametrize(
    "address",
    [
        "postgresql://reader:sesame-5@db.example.org/materials",
        "postgresql://reader:se/sa@me-5@db.example.org/materials",
        "postgresql://db.example.org/materials?user=reader&password=sesame-5",
        "mongodb://reader:sesame-5@db.example.org/materials",
        "optimade+https://db.example.org/x?api_key=sesame-5",
    ],
)
def test_a_password_in_an_address_is_refused_wherever_others_can_read_it_and_is_not_repeated(address, tmp_path, capsys):
    (tmp_path / "f.yaml").write_text(yaml.safe_dump({"silos": [{"name": "north", "data": address}]}))
    set_by_hand = f"silos.north.data={address}"
    (tmp_path / "g.yaml").write_text(yaml.safe_dump({"silos": [{"name": "north", "data": "embedded"}]}))
    (tmp_path / "h.yaml").write_text(yaml.safe_dump({"silos": [address]}))
    for options in (
        ["--data", address],
        ["--federation", str(tmp_path / "f.yaml")],
        ["--federation", str(tmp_path / "g.yaml"), "--set", set_by_hand],
        ["--federation", str(tmp_path / "h.yaml")],
    ):
        assert main(["formation-energy", *options, "--out", str(tmp_path / "run")]) == 2
        shown = capsys.readouterr()
        assert "sesame-5" not in shown.err + shown.out
        assert "me-5" not in shown.err + shown.out
    assert not (tmp_path / "run").exists()
    with pytest.raises(ConfigError) as raised:
        Source(address)
    assert "me-5" not in str(raised.value)


def test_a_file_of_somebody_else_names_only_variables_that_are_meant_for_it():
    check_address("postgresql://u:${RAY_FED_X}@h/d", only_ours=True)
    check_address("postgresql://u:${HOME}@h/d")
    with pytest.raises(ConfigError, match="a name that begins with RAY_FED_"):
        check_address("postgresql://u:${AWS_SECRET_ACCESS_KEY}@h/d", only_ours=True)


def test_messages_call_a_database_by_its_own_name_alone():
    names = {"postgresql://u@h:1/d?x=1": "postgresql database 'd'", "optimade+https://h:1": "optimade database",
             "sqlite:////data/a.db": "sqlite database 'a.db'", "mongodb://u@h/": "mongodb database"}  # fmt: skip
    assert {path: Source(path).name for path in names} == names


def test_variables_are_filled_in_and_escaped_only_where_the_silo_runs():
    address = "postgresql://u:${RAY_FED_X}@h/d"
    assert filled(address, "", {"RAY_FED_X": "a/b@c"}) == "postgresql://u:a%2Fb%40c@h/d"
    assert filled("postgresql://u@h/d", "${OWN}", {"OWN": "p w"}) == "postgresql://u:p%20w@h/d"
    with pytest.raises(DataError, match="RAY_FED_X is not set where the silo runs"):
        filled(address, "", {})
    assert split("postgresql://u:a%2Fb@h/d") == ("postgresql://u@h/d", "a/b")
    assert split("/data/crystals.parquet") == ("/data/crystals.parquet", "")


@pytest.mark.parametrize("text", ["x postgresql://u:p@h/d y", "a?password=p", "mongodb://u:p@w@h/d", "'x://u:p@h'"])
def test_a_password_is_struck_out_of_any_text(text):
    assert "***" in redacted(text)
    assert not re.search(r"[:=]p", redacted(text))


def test_the_owners_file_may_hold_a_password_and_nothing_that_is_shown_does(postgres, tmp_path):
    pytest.importorskip("sqlalchemy", reason="needs sqlalchemy")
    content = {
        "name": "north",
        "hub": {"address": "hub.example.org:7443", "key": "3f" * 32},
        "datasets": {
            "key": {"source": postgres.address(), "table": "crystals", "password": READER_PASSWORD,
                    "query_timeout": 60, "targets": {TARGET: {"column": TARGET, "unit": "eV/atom"}}},
            "address": {"source": postgres.address().replace("reader@", "reader:reader%2Fp%40ss-9Qx4@"),
                        "query": "SELECT * FROM crystals", "targets": {}},
            "file": {"source": "sqlite:///crystals.sqlite", "targets": {}},
        },
        "tasks": ["property"],
    }  # fmt: skip
    path = tmp_path / "site.yaml"
    path.write_text(yaml.safe_dump(content))
    path.chmod(0o600)
    file = read_site_file(path)
    for name in ("key", "address"):
        dataset = file.datasets[name]
        assert dataset.access.password == READER_PASSWORD
        assert READER_PASSWORD not in repr(file) + dataset.source
        source = Source(dataset.source, target=TARGET, access=dataset.access)
        assert READER_PASSWORD not in repr(source)
        assert len(open_database(source).frame) == len(ROWS)
    assert file.datasets["file"].source == f"sqlite:///{tmp_path}/crystals.sqlite"


def test_site_check_opens_a_database_and_prints_no_password(postgres, tmp_path, capsys):
    targets = {TARGET: {"column": TARGET, "unit": "eV/atom"}}
    sets = {
        "good": {"table": "crystals", "password": READER_PASSWORD},
        "bad": {"table": "crystals", "password": "no-1"},
    }
    datasets = {name: {"source": postgres.address(), "targets": targets, **said} for name, said in sets.items()}
    content = {"name": "north", "hub": {"address": "127.0.0.1:1", "key": "3f" * 32}, "datasets": datasets,
               "tasks": ["property"], "ledger": str(tmp_path / "ledger")}  # fmt: skip
    path = tmp_path / "site.yaml"
    path.write_text(yaml.safe_dump(content))
    path.chmod(0o600)
    assert main(["site", "check", "--file", str(path)]) == 1
    shown = capsys.readouterr()
    assert f"ok      data set 'good': {TARGET}: 48 usable rows of 48" in shown.out
    assert "failed  data set 'bad': postgresql database 'materials': it refuses the user" in shown.out
    assert READER_PASSWORD not in shown.out + shown.err
    assert "no-1" not in shown.out + shown.err


def test_an_invitation_gets_the_access_that_the_owners_file_says(tmp_path):
    write_sqlite(tmp_path / "rows.sqlite", ROWS)
    said = {"source": "sqlite:///rows.sqlite", "query": "SELECT * FROM crystals LIMIT 30", "query_timeout": 9,
            "targets": {TARGET: {"column": TARGET, "unit": "eV/atom"}}}  # fmt: skip
    content = {"name": "north", "hub": {"address": "h:1", "key": "3f" * 32}, "datasets": {"alloys": said},
               "tasks": ["property"], "ledger": str(tmp_path / "ledger")}  # fmt: skip
    path = tmp_path / "site.yaml"
    path.write_text(yaml.safe_dump(content))
    path.chmod(0o600)
    invited = accepted(read_site_file(path), Invitation("run", "north", "alloys", "property", {}, 0.0, 0, ""))
    assert invited.spec.source.source.access == Access("SELECT * FROM crystals LIMIT 30", query_timeout=9)
    assert len(invited.make_task().load(invited.spec).targets) == 30


@pytest.mark.parametrize(
    "option", ["postgresql://h/d?plugin=x", "mysql://h/d?local_infile=1", "mssql://h/d?odbc_connect=x"]
)
def test_an_address_chooses_neither_code_nor_files_of_this_machine(option):
    assert "is not allowed in an address" in refused(Source(option, access=Access(table="x")), Trouble.OPTION_WRONG)


def test_an_address_lets_no_server_have_the_credentials_of_this_machine():
    for option in ("authMechanism=MONGODB-AWS", "tls=true&authMechanismProperties=ENVIRONMENT:gcp"):
        source = Source(f"mongodb://h/d?{option}", access=Access(table="x"))
        assert "own credentials" in refused(source, Trouble.OPTION_WRONG)


def test_an_address_whose_port_is_none_is_one_line():
    for path in ("postgresql://u@h:port/d", "mongodb://h:port/d"):
        refused(Source(path, access=replace(GIVEN, table="x", query_timeout=1)), Trouble.OPTION_WRONG)


# ---- files of databases


def test_paths_of_files_are_taken_from_the_folder_of_who_names_them(tmp_path):
    assert whole_path("sqlite:///a/b.sqlite", tmp_path) == f"sqlite:///{tmp_path}/a/b.sqlite"
    assert whole_path("ase:////data/b.db", tmp_path) == "ase:////data/b.db"
    assert whole_path("sqlite:///~/b.sqlite", tmp_path) == "sqlite:///~/b.sqlite"
    assert whole_path("postgresql:///materials?host=/run/pg", tmp_path) == "postgresql:///materials?host=/run/pg"
    assert whole_path("a.csv", tmp_path) == f"{tmp_path}/a.csv"
    assert [whole_path(path, tmp_path) for path in ("embedded", "~/a.csv")] == ["embedded", "~/a.csv"]
    with pytest.raises(ConfigError, match="must name a file"):
        whole_path("sqlite://", tmp_path)


MATBENCH = {
    "index": ["mb-jdft2d-0001", "mb-jdft2d-0002"],
    "columns": ["structure", "exfoliation_en"],
    "data": [[row.structure | {"@module": "pymatgen.core.structure"}, row.energy] for row in ROWS[:2]],
}
JARVIS = [
    {"jid": f"JVASP-{at}", "formation_energy_peratom": row.energy if at else "na", "optb88vdw_bandgap": 0.1,
     "atoms": {"lattice_mat": row.lattice, "coords": row.positions, "elements": row.elements, "cartesian": True,
               "props": ["", ""], "abc": [1, 1, 1], "angles": [90, 90, 90]}}
    for at, row in enumerate(ROWS[:3])
]  # fmt: skip


def test_a_file_of_matbench_is_read_with_its_ids(tmp_path):
    with gzip.open(tmp_path / "matbench_jdft2d.json.gz", "wt") as file:
        json.dump(MATBENCH, file)
    frame = open_database(Source(str(tmp_path / "matbench_jdft2d.json.gz"), target="exfoliation_en")).frame
    assert frame["id"].tolist() == MATBENCH["index"]
    assert frame["target"].tolist() == [row.energy for row in ROWS[:2]]
    assert (frame["reason"] == "").all()
    expected = open_database(Source(write_parquet(tmp_path / "rows.parquet", ROWS[:2]), target=TARGET)).frame
    pd.testing.assert_frame_equal(frame.drop(columns="id"), expected.drop(columns="id"), check_exact=True)


def test_a_file_of_jarvis_is_read_as_it_is_and_zipped_and_what_it_calls_na_is_missing(tmp_path):
    (tmp_path / "jdft_3d.json").write_text(json.dumps(JARVIS))
    with zipfile.ZipFile(tmp_path / "jdft_3d.json.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("__MACOSX/._jdft_3d.json", b"\0")
        archive.write(tmp_path / "jdft_3d.json", "data/jdft_3d.json")
    plain, packed = (
        open_database(Source(str(tmp_path / f"jdft_3d.{ending}"), target=TARGET)) for ending in ("json", "json.zip")
    )
    assert_same(packed, plain)
    assert plain.frame["id"].tolist() == ["JVASP-0", "JVASP-1", "JVASP-2"]
    assert plain.frame["reason"].tolist() == ["target is missing", "", ""]
    assert plain.frame["target"].tolist()[1:] == [row.energy for row in ROWS[1:3]]


def test_an_archive_of_several_tables_or_of_none_or_that_unpacks_to_too_much_is_refused(tmp_path, monkeypatch):
    for number, names in enumerate(((), ("a.json", "b.json"), ("a.exe",))):
        with zipfile.ZipFile(tmp_path / f"{number}.zip", "w") as archive:
            for name in names:
                archive.writestr(name, json.dumps(JARVIS))
        assert "must hold one" in refused(Source(str(tmp_path / f"{number}.zip")), Trouble.FILE_UNKNOWN)
    monkeypatch.setattr("ray_fed.materials.databases.readers.MAX_ZIPPED_BYTES", 1000)
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.json", " " * 100_000)
    assert "longer than 1,000 bytes" in refused(Source(str(tmp_path / "bomb.zip")), Trouble.FILE_DAMAGED)
