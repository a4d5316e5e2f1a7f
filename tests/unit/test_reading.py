"""Files of strangers: each bad one is one DataError, and none is waited for or fills the memory."""

import os
import time
import tracemalloc

import pytest

from ray_fed.errors import DataError
from ray_fed.reading import bounded_lines, parse_json, parse_yaml, read_bounded, read_json, read_yaml

JSON = {
    "cut": b'{"a": 1',
    "no text": b"\xff\xfe\x00",
    "NaN": b'{"a": NaN}',
    "beyond all numbers": b'{"a": 1e999}',
    "a number of 3,000 digits": b'{"a": ' + b"9" * 3000 + b"}",
    "a number of a million digits": b'{"a": ' + b"9" * 10**6 + b"}",
    "lists in lists": b"[" * 100_000,
    "objects in objects": b'{"a":' * 100_000,
    "61 levels": b"[" * 61 + b"]" * 61,
}
YAML = {
    "cut": b"a: [1",
    "lists in lists": b"[" * 20_000,
    "no key": b"? [1]\n: 2\n",
    "a number of 3,000 digits": b"a: " + b"9" * 3000,
    "an object of Python": b"a: !!python/object/apply:os.getcwd []",
    "aliases that multiply": b"a: &a [x]\n"
    + b"".join(b"%c: &%c [%s]\n" % (98 + n, 98 + n, b", ".join([b"*%c" % (97 + n)] * 9)) for n in range(20)),
    "merges that multiply": b"a: &a {x: 1}\n"
    + b"".join(b"%c: &%c {<<: [%s]}\n" % (98 + n, 98 + n, b", ".join([b"*%c" % (97 + n)] * 9)) for n in range(20)),
    "a list that holds itself": b"a: &a [*a]\n",
    "two megabytes": b"# " + b"x" * 2**21,
}


@pytest.mark.parametrize("what", JSON)
def test_bad_json_is_one_line(what):
    with pytest.raises(DataError, match=r"^here is not the JSON it should be .*; get it again") as caught:
        parse_json(JSON[what], "here")
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("what", YAML)
def test_bad_yaml_is_one_line_and_costs_little_memory(what):
    tracemalloc.start()
    with pytest.raises(DataError, match=r"^here is not the YAML it should be .*; was it edited"):
        parse_yaml(YAML[what], "here")
    assert tracemalloc.get_traced_memory()[1] < 2**28
    tracemalloc.stop()


def test_what_is_within_bounds_is_read_as_it_is(tmp_path):
    deep = "[" * 60 + "]" * 60
    assert parse_json(deep, "here") == eval(deep)
    assert parse_yaml("base: &base {a: 1}\nb: {<<: *base, c: .inf}", "here")["b"] == {"a": 1, "c": float("inf")}
    assert parse_yaml("", "here") is None
    (tmp_path / "a.json").write_text('{"a": 18446744073709551615}')
    assert read_json(tmp_path / "a.json") == {"a": 2**64 - 1}


@pytest.mark.parametrize("read", [read_json, read_yaml, read_bounded])
def test_a_device_a_pipe_and_a_folder_are_no_files(tmp_path, read):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("/dev/zero")
    for path in (tmp_path / "pipe", tmp_path / "link", tmp_path):
        before = time.monotonic()
        with pytest.raises((DataError, OSError), match=r"no regular file|cannot be read"):
            read(path)
        assert time.monotonic() - before < 60, "it would wait for ever"


def test_a_file_longer_than_its_bound_is_not_read(tmp_path):
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(DataError, match="it is longer than 100 bytes"):
        read_json(tmp_path / "sparse", max_bytes=100)
    assert [len(line) for line in bounded_lines(tmp_path / "sparse", 10, 10**6)] == [11]


def test_lines_end_at_the_bound_of_the_file(tmp_path):
    (tmp_path / "lines").write_bytes(b"abc\n" * 10)
    assert list(bounded_lines(tmp_path / "lines", 10, 12)) == [b"abc"] * 4
