"""The store: content addresses, tampering, queries, moving, failures as rows."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pipelines.cli import main
from ray_fed.errors import ConfigError, DataError
from ray_fed.model_library.cards import ALIASES, FIELDS, Failure, pack
from ray_fed.model_library.index import parse_query
from ray_fed.model_library.places import RemoteFolder, difference, pull, push, query_place, verify_place
from ray_fed.model_library.store import Library
from ray_fed.reporting.model_files import ModelCard, load_model
from ray_fed.reporting.writing import to_json, write_atomically

SCALER = {"scaler.mean": np.zeros(2), "scaler.scale": np.ones(2)}


def card(name="a", prop="band_gap", unit="eV", mae=0.3, descriptor="guo73", seed=1, **more) -> ModelCard:
    return ModelCard(
        name=name, property=prop, unit=unit, descriptor={"name": descriptor, "table_hash": "f" * 64, "options": {}},
        feature_names=("x", "y"), architecture={"type": "mlp", "hidden": [3], "depth": 1, "num_parameters": 13},
        hyperparameters={}, seed=seed, data=({"name": "set1", "material": "inorganic"},), split={},
        metrics={"test": {"mae": mae, "r2": 0.5, "n": 20}, "train": {"n": 80}}, software={}, **more,
    )  # fmt: skip


def model(value=1.0, **fields):
    return pack({"0.weight": np.full((3, 2), value, np.float32), **SCALER}, card(**fields))


@pytest.fixture
def library(tmp_path) -> Library:
    library = Library.create(tmp_path / "library")
    library.add(
        [model(1, mae=0.3), model(2, mae=0.6, descriptor="rich"), model(3, prop="density", unit="g/cm^3", mae=0.1)],
        [Failure("band_gap", "eV", "rdf", "mlp", "set1", 5, "no structure")],
    )
    return library


def test_the_example_query_of_the_documentation_finds_its_model(library):
    found = library.query("property = band_gap and mae < 0.5 and descriptor = guo73")
    assert len(found) == 1
    assert found["mae"].iloc[0] == 0.3


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("", 3), ("mae < 0.5 eV", 1), ("not mae < 0.5", 1), ("property in (band_gap, density)", 3),
        ("property = band_gap and (mae < 0.4 or descriptor = 'rich')", 2), ("order by mae limit 2", 2),
        ("succeed = false", 1), ("succeed = false and property = density", 0), ("descriptor like 'ri%'", 1),
        ("meanAbsError < 0.2", 1), ("transferred", 0), ("isRegression = true", 3), ("n_train >= 80 and depth = 1", 3),
    ],
)  # fmt: skip
def test_queries_count(library, text, count):
    assert len(library.query(text)) == count


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("mae <", "a value for 'mae'"), ("propety = x", "did you mean 'property'"), ("mae < abc", "is a number"),
        ("property = band_gab", "did you mean 'band_gap'"), ("(mae < 1", "')'"), ("mae < 1 eV eV", "column 12"),
        ("mae < 0.5 GPa", "unit mismatch: mae of these models is in eV, g/cm^3, not GPa"), ("= 3", "a field name"),
        ("name = 'x", "quote not closed"), ("limit x", "whole number"),
        ("limit ²", "whole number"), ("and", "a field name"), ("mae", "comparison"), ("(" * 3000, "more than 50 times"),
        (" or ".join(["seed=1"] * 900), "more than 500"), ("seed = 1_0", "whole number"), ("seed = 9" + "9" * 30, "a"),
        ("mae < 1; drop table models", "column"), ("seed = 1.5", "whole number"),
    ],
)  # fmt: skip
def test_a_query_that_makes_no_sense_is_one_clear_line(library, text, said):
    with pytest.raises(ConfigError) as error:
        library.query(text)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_text_of_a_query_never_enters_the_statement():
    parsed = parse_query("name = '1 or 1=1; --'")
    assert parsed.sql == 'WHERE "name" = ?'
    assert parsed.parameters == ["1 or 1=1; --"]


def test_xenonpy_names_are_aliases_of_known_fields():
    assert set(ALIASES.values()) <= set(FIELDS)
    assert ALIASES["meanAbsError"] == "mae"


def test_equal_models_have_one_address_and_any_change_another():
    assert model(1).id == model(1).id
    assert len({model(1).id, model(2).id, model(1, seed=2).id, model(1, mae=0.31).id}) == 4


def test_a_stored_model_is_the_pair_of_files_that_load_model_reads(library):
    model_id = library.query("mae = 0.3", ["id"])["id"].iloc[0]
    arrays, loaded = library.load(model_id[:10])
    direct, other = load_model(library.paths(model_id)[0])
    assert loaded == other
    np.testing.assert_array_equal(arrays["0.weight"], direct["0.weight"])


def test_the_index_can_be_made_again_from_the_cards(library):
    columns = list(FIELDS)
    before = library.query("order by id", columns, failures=True)
    library.index.path.unlink()
    again = Library.open(library.path)
    pd.testing.assert_frame_equal(again.query("order by id", columns, failures=True), before)


def test_a_changed_weight_a_changed_card_and_a_missing_file_are_found_and_refused(library):
    ids = library.query("order by mae", ["id"])["id"].tolist()
    weights, changed_card = library.paths(ids[0])[0], library.paths(ids[1])[1]
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(bytes(content))
    values = json.loads(changed_card.read_text())
    values["metrics"]["test"]["mae"] = 0.0001
    changed_card.write_bytes(to_json(values))
    library.paths(ids[2])[0].unlink()
    assert {fault.id for fault in library.verify()} == set(ids)
    for model_id, said in zip(ids, ("sha256", "hash", "cannot be read"), strict=True):
        with pytest.raises(DataError, match=said):
            library.load(model_id)


def test_a_corrupt_card_is_named_and_set_aside_when_the_index_is_made(library):
    model_id = library.stored_ids()[0]
    library.paths(model_id)[1].write_bytes(b"{")
    [fault] = library.reindex()
    assert (fault.id, "not a model card" in fault.what) == (model_id, True)
    assert (len(library), model_id in library.stored_ids()) == (2, False)
    assert len(list((library.path / "damaged").iterdir())) == 2
    assert library.verify() == []


def test_nothing_is_unpickled(library):
    import pickle

    model_id = library.stored_ids()[0]
    library.paths(model_id)[0].write_bytes(pickle.dumps(print))
    with pytest.raises(DataError):
        library.load(model_id)


@pytest.mark.parametrize("place", ["folder", "memory://library-test"])
def test_push_and_pull_keep_every_byte(library, tmp_path, place):
    url = str(tmp_path / place) if place == "folder" else place
    ids = library.stored_ids()
    assert push(library, url, ids).ids == ids
    assert push(library, url, ids).ids == []
    other = Library.create(tmp_path / f"other-{place[:3]}")
    assert pull(other, url).ids == ids
    assert all(other.read(model_id) == library.read(model_id) for model_id in ids)
    found = difference(library, url)
    assert (found.only_here, found.only_there) == ([], [])


def test_a_model_that_was_tampered_with_elsewhere_is_not_pulled(library, tmp_path):
    ids = library.stored_ids()
    push(library, str(tmp_path / "there"), ids)
    path = next((tmp_path / "there").glob("models/*/*.safetensors"))
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    other = Library.create(tmp_path / "other")
    copied = pull(other, str(tmp_path / "there"))
    assert [fault.id for fault in copied.faults] == [path.name.split(".")[0]]
    assert "sha256" in copied.faults[0].what
    assert other.stored_ids() == copied.ids == [model_id for model_id in ids if model_id != copied.faults[0].id]


def test_difference_tells_which_side_has_what(library, tmp_path):
    ids = library.stored_ids()
    push(library, str(tmp_path / "there"), ids[:1])
    assert difference(library, str(tmp_path / "there")).only_here == ids[1:]


def test_deprecation_survives_a_new_index_and_touches_no_card(library):
    model_id = library.stored_ids()[0]
    before = library.read(model_id)
    library.deprecate(model_id)
    library.reindex()
    assert library.query("deprecated", ["id"])["id"].tolist() == [model_id]
    assert library.read(model_id) == before


def test_a_failed_model_is_a_row_with_its_reason(library):
    found = library.query("succeed = false", ["property", "reason", "mae"])
    assert found.iloc[0].tolist()[:2] == ["band_gap", "no structure"]


def test_wrong_ids_and_folders_are_refused(library, tmp_path):
    with pytest.raises(ConfigError, match="no model with id"):
        library.load("beef")
    with pytest.raises(DataError, match="not a model library"):
        Library.open(tmp_path / "nothing")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("x")
    with pytest.raises(ConfigError, match="not empty"):
        Library.create(tmp_path / "full")
    with pytest.raises(ConfigError, match="no place"):
        push(library, "nowhere://x", [])
    with pytest.raises(DataError, match="holds no models"):
        pull(library, str(tmp_path / "empty"))


def test_a_full_disk_is_told_with_the_file_and_leaves_no_litter(library, monkeypatch):
    weights, card = library.read(library.stored_ids()[0])
    write = Path.write_bytes

    def full(path, content):
        write(path, content[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left") as caught:
        write_atomically(library.path / "models" / "xx.safetensors", weights + card, durable=False)
    assert caught.value.filename.endswith("models/xx.safetensors")
    assert not list(library.path.rglob("*.part"))


class Breaking:
    """A place whose connection breaks in the middle of the n-th file."""

    def __init__(self, remote, at):
        self.files, self.at, self.write = remote.files, at, remote.files.pipe_file
        remote.files.pipe_file = self.pipe_file

    def pipe_file(self, path, content):
        self.at -= 1
        if self.at == 0:
            self.write(path, content[:10])
            raise ConnectionError("gone")
        self.write(path, content)


@pytest.mark.parametrize("at", [1, 2, 3, 4])
def test_a_push_that_breaks_leaves_no_half_file_and_goes_on_from_there(library, tmp_path, monkeypatch, at):
    place, ids = str(tmp_path / "there"), library.stored_ids()
    breaking = {}
    monkeypatch.setattr(
        "ray_fed.model_library.places.RemoteFolder",
        lambda url: breaking.setdefault("place", (remote := RemoteFolder(url), Breaking(remote, at)))[0],
    )
    copied = push(library, place, ids)
    monkeypatch.undo()
    breaking["place"][0].files.pipe_file = breaking["place"][1].write  # fsspec keeps one file system for all
    assert (len(copied.ids), len(copied.faults)) == (2, 1)
    assert "gone" in copied.faults[0].what
    assert not list((tmp_path / "there").rglob("*.part"))
    assert verify_place(place)[0] == 2
    assert push(library, place, ids).ids == [copied.faults[0].id]
    assert verify_place(place) == (3, [])


def test_a_push_repairs_what_is_cut_or_lacks_its_weights(library, tmp_path):
    place, ids = str(tmp_path / "there"), library.stored_ids()
    push(library, place, ids)
    cut, lonely = (next((tmp_path / "there").rglob(f"{model_id}.{kind}")) for model_id, kind in
                   ((ids[0], "card.json"), (ids[1], "safetensors")))  # fmt: skip
    cut.write_bytes(cut.read_bytes()[:50])
    lonely.unlink()
    assert {fault.id for fault in verify_place(place)[1]} == set(ids[:2])
    assert push(library, place, ids).ids == ids[:2]
    assert verify_place(place) == (3, [])


def test_one_damaged_model_does_not_stop_the_others_of_a_push(library, tmp_path):
    ids = library.stored_ids()
    library.paths(ids[0])[0].write_bytes(b"?")
    copied = push(library, str(tmp_path / "there"), ids)
    assert (copied.ids, [fault.id for fault in copied.faults]) == (ids[1:], ids[:1])


def test_a_place_is_asked_without_pulling_and_a_card_its_index_lacks_is_read(library, tmp_path):
    place, ids = str(tmp_path / "there"), library.stored_ids()
    push(library, place, ids)
    answer = query_place(place, "property = band_gap order by mae", ["id", "mae"])
    assert (answer.table["mae"].tolist(), answer.read_cards) == ([0.3, 0.6], 0)
    (tmp_path / "there" / "rows.json").write_bytes(b"{")
    assert query_place(place, "mae < 0.5").read_cards == 3
    path = next((tmp_path / "there").rglob(f"{ids[0]}.card.json"))
    path.write_bytes(b"{")
    answer = query_place(place, "")
    assert (len(answer.table), [fault.id for fault in answer.faults]) == (2, ids[:1])


def test_deprecated_models_are_left_out_and_the_mark_travels_both_ways(library, tmp_path):
    place, ids = str(tmp_path / "there"), library.stored_ids()
    push(library, place, ids)
    library.deprecate(ids[0])
    assert set(library.query("")["id"]) == set(ids[1:])
    assert len(library.query("deprecated or not deprecated")) == 3
    assert push(library, place, ids).ids == []
    assert len(query_place(place, "").table) == 2
    other = Library.create(tmp_path / "other")
    pull(other, place)
    assert other.deprecated() == ids[:1]
    assert len(other.query("")) == 2


def test_set_aside_models_leave_the_index_and_come_back_by_a_pull(library, tmp_path):
    place, ids = str(tmp_path / "there"), library.stored_ids()
    push(library, place, ids)
    library.paths(ids[0])[0].write_bytes(b"?")
    library.paths(ids[1])[1].unlink()
    library.set_aside(library.verify())
    assert len(library) == 1
    assert pull(library, place).ids == ids[:2]
    assert library.verify() == []


def test_an_index_of_another_version_is_made_again(library):
    import sqlite3

    with sqlite3.connect(library.index.path) as connection:
        connection.execute("PRAGMA user_version = 1")
    connection.close()
    assert len(Library.open(library.path).query("")) == 3
    assert library.index.is_current()


def test_a_library_is_a_page_of_its_own_and_no_name_becomes_markup(library, tmp_path, capsys):
    library.add([model(4, name="<script>alert(1)</script>")])
    out = tmp_path / "page.html"
    assert main(["library", "page", "--library", str(library.path), "--out", str(out)]) == 0
    assert "4 of 4 models" in capsys.readouterr().out
    text = out.read_text()
    assert "<script>alert" not in text
    assert (text.count("http"), text.count("<tr>")) == (0, 1 + 2 + 1 + 4)


@pytest.mark.parametrize("what", ["properties", "sets", "methods", "summary"])
def test_what_a_library_holds_is_told_of_places_too(library, tmp_path, capsys, what):
    push(library, str(tmp_path / "there"), library.stored_ids())
    said = []
    for place in (library.path, tmp_path / "there"):
        assert main(["library", what, "--library", str(place)]) == 0
        said.append(capsys.readouterr().out.replace(str(place), "PLACE"))
    assert said[0] == said[1]
    assert "3" in said[0]
