"""The cache: named by content, never pickled, never in the way."""

import logging
import multiprocessing
import stat
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_fed.materials.databases.feature_cache import cache_folder, cached, content_key, pack_texts, unpack_texts

KEY = content_key("a key")


class Counted:
    """Computes the same arrays and counts how often."""

    def __init__(self):
        self.calls = 0

    def __call__(self) -> dict[str, np.ndarray]:
        self.calls += 1
        return {"x": np.array([1.0, np.nan, -0.0]), "texts": pack_texts(["é", ""])}


def test_arrays_are_computed_once_and_come_back_bit_for_bit(tmp_path):
    compute = Counted()
    first, second = (cached(KEY, compute, tmp_path / "cache") for _ in range(2))
    assert compute.calls == 1
    assert first["x"].tobytes() == second["x"].tobytes()
    assert unpack_texts(second["texts"]) == ["é", ""]


def test_the_folder_belongs_to_its_owner_alone_and_holds_nothing_but_the_entry(tmp_path):
    folder = tmp_path / "deep" / "cache"
    cached(KEY, Counted(), folder)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert [path.name for path in folder.iterdir()] == [f"{KEY}.npz"]


def test_without_a_folder_nothing_is_stored():
    compute = Counted()
    cached(KEY, compute, None)
    cached(KEY, compute, None)
    assert compute.calls == 2


@pytest.mark.parametrize("damage", ["cut", "flipped", "emptied", "text", "plain array", "pickle"])
def test_a_broken_entry_is_computed_again_and_replaced(tmp_path, damage, caplog):
    compute = Counted()
    cached(KEY, compute, tmp_path)
    entry = tmp_path / f"{KEY}.npz"
    whole = entry.read_bytes()
    if damage == "plain array":
        with entry.open("wb") as file:
            np.save(file, np.zeros(3))
    elif damage == "pickle":
        with entry.open("wb") as file:
            np.savez(file, x=np.array([{"code": 1}], dtype=object))
    else:
        flipped = whole[:60] + bytes([whole[60] ^ 255]) + whole[61:]
        entry.write_bytes({"cut": whole[:-30], "flipped": flipped, "emptied": b"", "text": b"hello"}[damage])
    with caplog.at_level(logging.WARNING):
        again = cached(KEY, compute, tmp_path)
    assert compute.calls == 2
    assert "is broken" in caplog.text
    assert again["x"][0] == 1.0
    assert cached(KEY, compute, tmp_path)["x"][0] == 1.0
    assert compute.calls == 2


def test_where_nothing_can_be_written_the_arrays_are_computed_and_a_line_is_logged(tmp_path, caplog):
    (tmp_path / "file").write_text("in the way")
    compute = Counted()
    with caplog.at_level(logging.WARNING):
        assert cached(KEY, compute, tmp_path / "file")["x"][0] == 1.0
        assert cached(KEY, compute, tmp_path / "file" / "below")["x"][0] == 1.0
    assert compute.calls == 2
    assert "cache" in caplog.text


def test_an_error_of_the_computation_leaves_no_entry(tmp_path):
    def fail() -> dict[str, np.ndarray]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cached(KEY, fail, tmp_path)
    assert list(tmp_path.iterdir()) == []


def slow_entry(folder: Path, log: Path) -> None:
    def compute() -> dict[str, np.ndarray]:
        with log.open("a") as file:
            file.write("computed\n")
        time.sleep(0.3)
        return {"x": np.ones(2)}

    assert cached(KEY, compute, folder)["x"].sum() == 2


def test_processes_that_ask_at_once_compute_once(tmp_path):
    context = multiprocessing.get_context("spawn")
    asking = [context.Process(target=slow_entry, args=(tmp_path / "cache", tmp_path / "log")) for _ in range(3)]
    for process in asking:
        process.start()
    for process in asking:
        process.join(300)
    assert [process.exitcode for process in asking] == [0, 0, 0]
    assert (tmp_path / "log").read_text() == "computed\n"


def test_a_key_is_no_path(tmp_path):
    with pytest.raises(AssertionError, match="is no content key"):
        cached("../../etc/passwd", Counted(), tmp_path)


def test_the_folder_is_that_of_the_variable_or_in_the_home_or_off(monkeypatch):
    monkeypatch.setenv("RAY_FED_CACHE", "~/elsewhere")
    assert cache_folder() == Path.home() / "elsewhere"
    monkeypatch.setenv("RAY_FED_CACHE", "off")
    assert cache_folder() is None
    monkeypatch.delenv("RAY_FED_CACHE")
    assert cache_folder() == Path.home() / ".cache" / "ray-fed"


def test_keys_know_kinds_and_borders():
    array = np.array([1.0, 2.0])
    keys = [
        content_key("ab", "c"), content_key("a", "bc"), content_key("abc"), content_key(b"abc"), content_key(),
        content_key(array), content_key(array.astype(np.float32)), content_key(array.reshape(1, 2)),
        content_key(array.tobytes()),
    ]  # fmt: skip
    assert len(set(keys)) == len(keys)
    # sha256 of the text "text:3\nabc", so that keys stay the same from version to version.
    assert keys[2] == "1f2529759fa1a3bdbf1ba135ab02939106261c77e6435e2794fd685c61f4ba9a"
    assert content_key(np.arange(6).reshape(2, 3).T) == content_key(np.ascontiguousarray(np.arange(6).reshape(2, 3).T))


@given(st.lists(st.text()))
def test_texts_survive_packing(texts):
    packed = pack_texts(texts)
    assert packed.dtype == np.uint8
    assert unpack_texts(packed) == texts
