"""The run directory: complete or absent, strict, inside its folder."""

import csv
import json
import math
import os
import stat
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from ray_fed.errors import ConfigError, DataError
from ray_fed.reporting import environment
from ray_fed.reporting.run_directory import RunDirectory
from ray_fed.reporting.writing import to_json, to_plain

# ---- plain values

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def refuse_constant(token):
    raise AssertionError(f"{token} is not JSON")


@given(json_values)
def test_every_value_becomes_json_that_a_strict_reader_accepts(value):
    json.loads(to_json(value), parse_constant=refuse_constant)


@given(st.dictionaries(st.text(), st.floats(allow_nan=False, allow_infinity=False) | st.text()))
def test_finite_values_survive_the_round_trip_whatever_the_order_of_keys(value):
    backwards = dict(reversed(list(value.items())))
    assert json.loads(to_json(value)) == value
    assert to_json(backwards) == to_json(value)


def test_nan_and_infinity_become_null_in_scalars_arrays_and_mappings():
    value = {"a": math.nan, "b": np.array([1.0, np.inf]), "c": [np.float32("nan"), -math.inf, np.int64(3)]}
    assert to_json(value) == b'{"a": null, "b": [1.0, null], "c": [null, null, 3]}'


def test_an_object_that_would_need_pickle_is_refused():
    with pytest.raises(TypeError, match="no JSON form"):
        to_plain({"model": object()})


# ---- run directory


@pytest.fixture
def run(tmp_path):
    return RunDirectory.create(tmp_path / "run", "formation-energy")


def test_the_default_folder_is_named_by_pipeline_and_time_and_numbered_when_taken(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    now = datetime(2026, 3, 4, 5, 6, 7)
    runs = [RunDirectory.create(None, "formation-energy", now) for _ in range(3)]
    assert [run.path.as_posix() for run in runs] == [
        "runs/formation-energy-20260304-050607",
        "runs/formation-energy-20260304-050607-2",
        "runs/formation-energy-20260304-050607-3",
    ]
    assert all(run.path.is_dir() for run in runs)


def test_a_folder_that_holds_something_is_refused_with_a_remedy_and_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"is not empty; give another --out or remove it first"):
        RunDirectory.create(tmp_path, "x")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_path_through_a_file_is_a_configuration_error_that_leaves_nothing(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "deeper" / "run"):
        with pytest.raises(ConfigError, match="cannot be made"):
            RunDirectory.create(path, "x")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_name_too_long_for_the_disk_is_a_configuration_error(tmp_path):
    with pytest.raises(ConfigError, match=r"cannot be made \(File name too long\)"):
        RunDirectory.create(tmp_path / ("x" * 300), "x")


def test_a_creation_that_fails_half_way_leaves_nothing(tmp_path, monkeypatch):
    original = os.mkdir

    def full_at_the_last(path, *args):
        if str(path).endswith("run") and (tmp_path / "new").exists():
            raise OSError(28, "No space left on device")
        original(path, *args)

    with monkeypatch.context() as patch:
        patch.setattr(os, "mkdir", full_at_the_last)
        with pytest.raises(ConfigError, match="No space left"):
            RunDirectory.create(tmp_path / "new" / "run", "x")
    assert list(tmp_path.iterdir()) == []


def test_undoing_the_creation_removes_exactly_the_folders_it_made(tmp_path):
    there = tmp_path / "there"
    there.mkdir()
    run = RunDirectory.create(there / "a" / "b" / "run", "x")
    run.figures.mkdir()
    assert run.discard_if_empty()
    assert list(there.iterdir()) == []


def test_undoing_keeps_a_folder_that_was_there_before(tmp_path):
    run = RunDirectory.create(tmp_path, "x")
    assert not run.discard_if_empty()
    assert tmp_path.is_dir()


def test_undoing_keeps_a_run_with_a_file_and_a_neighbour_of_the_run(run, tmp_path):
    run.write_config({"seed": 0})
    assert not run.discard_if_empty()
    assert run.config_path.exists()
    second = RunDirectory.create(tmp_path / "new" / "second", "x")
    (tmp_path / "new" / "neighbour").mkdir()
    assert second.discard_if_empty()
    assert not second.path.exists()
    assert (tmp_path / "new" / "neighbour").is_dir()


def test_an_interrupted_write_keeps_the_old_file_whole_and_leaves_no_litter(run, monkeypatch):
    run.write_summary({"rounds": 1})
    before = run.summary_path.read_bytes()

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run.write_summary({"rounds": 2})
    assert [path.name for path in run.path.iterdir()] == ["summary.json"]
    assert run.summary_path.read_bytes() == before


def test_a_full_disk_keeps_the_old_file_whole(run, monkeypatch):
    run.write_config({"seed": 1})

    def full(_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            run.write_config({"seed": 2})
    assert run.read_config() == {"seed": 1}
    assert [path.name for path in run.path.iterdir()] == ["config.yaml"]


def test_summary_keys_are_sorted_flat_and_nan_is_null(run):
    run.write_summary({"rounds": np.int64(25), "federated.mae": np.float32(0.5), "pooled.mae": math.nan})
    text = run.summary_path.read_text()
    assert text == '{\n  "federated.mae": 0.5,\n  "pooled.mae": null,\n  "rounds": 25\n}\n'
    assert run.read_summary() == {"federated.mae": 0.5, "pooled.mae": None, "rounds": 25}


@pytest.mark.parametrize("nested", [{"mae": 1.0}, [1.0], np.zeros(2)])
def test_a_nested_summary_value_is_refused_by_its_key_and_nothing_is_written(run, nested):
    with pytest.raises(ConfigError, match=r"summary key 'federated'"):
        run.write_summary({"federated": nested})
    assert not run.summary_path.exists()


def test_history_lines_are_equal_for_equal_records_and_refuse_clocks(run):
    run.append_history({"server_round": 1, "metrics": {"federated.mae": 0.5, "federated.r2": math.nan}})
    run.append_history({"metrics": {"federated.r2": math.nan, "federated.mae": 0.5}, "server_round": 1})
    first, second = run.history_path.read_text().splitlines()
    assert first == second
    for key in ("seconds", "seconds.total", "time", "elapsed_time"):
        with pytest.raises(ConfigError, match="append_timing"):
            run.append_history({key: 1.0})
    run.append_timing({"server_round": 1, "seconds.total": 0.25})
    assert run.read_timing() == [{"server_round": 1, "seconds.total": 0.25}]


def test_a_last_history_line_cut_by_a_crash_is_left_out_but_damage_within_is_an_error(run):
    run.append_history({"server_round": 1})
    run.append_history({"server_round": 2})
    whole = run.history_path.read_bytes()
    run.history_path.write_bytes(whole[:-3])
    assert run.read_history() == [{"server_round": 1}]
    run.history_path.write_bytes(b"{broken\n" + whole)
    with pytest.raises(DataError, match=r"history\.jsonl is not the JSON"):
        run.read_history()


def test_the_configuration_keeps_its_order_and_reads_back(run):
    config = {"silos": (1000, 2000), "data": run.path / "a.csv", "name": "Größe: é", "limit": math.inf, "seed": 0}
    run.write_config(config)
    read = run.read_config()
    assert list(read) == list(config)
    assert read == {"silos": [1000, 2000], "data": str(run.path / "a.csv"), "name": "Größe: é", "limit": math.inf,
                    "seed": 0}  # fmt: skip
    run.config_path.write_text("a: [1")
    with pytest.raises(DataError, match=r"config\.yaml is not the YAML"):
        run.read_config()


def test_reading_a_run_that_did_not_end_says_so(tmp_path):
    with pytest.raises(DataError, match="not a run directory"):
        RunDirectory.open(tmp_path)
    run = RunDirectory(tmp_path)
    run.write_config({})
    with pytest.raises(DataError, match=r"summary\.json cannot be read .*did the run end"):
        RunDirectory.open(tmp_path).read_summary()


@pytest.mark.parametrize("name", ["../outside.json", "/etc/x.json", "a/../../outside.json", "."])
def test_a_file_name_cannot_lead_out_of_the_run(run, name):
    with pytest.raises(ConfigError, match="leads out of the run directory"):
        run.write_json(name, {})
    assert list(run.path.parent.rglob("*.json")) == []


def test_csv_keeps_every_digit_and_leaves_missing_values_empty(run):
    third = 1 / 3
    path = run.write_csv("predictions/test.csv", {"id": ["a,b", 'c"d'], "energy": np.array([third, np.nan])})
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    assert rows == [["id", "energy"], ["a,b", repr(third)], ['c"d', ""]]
    with pytest.raises(ValueError, match="shorter"):
        run.write_csv("uneven.csv", {"a": [1, 2], "b": [1]})


def test_arrays_are_written_without_pickle(run):
    path = run.write_arrays("parity.npz", {"true": np.arange(3.0)})
    with np.load(path, allow_pickle=False) as arrays:
        assert arrays["true"].tolist() == [0.0, 1.0, 2.0]
    with pytest.raises(ConfigError, match="Python objects"):
        run.write_arrays("objects.npz", {"x": np.array([{}], dtype=object)})


def test_the_environment_names_versions_and_processors_without_importing_them(run, monkeypatch, tmp_path):
    fake = tmp_path / "bin" / "nvidia-smi"
    fake.parent.mkdir()
    fake.write_text("#!/bin/sh\necho 'NVIDIA H200'\necho 'NVIDIA H200'\n")
    fake.chmod(fake.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{fake.parent}:{os.environ['PATH']}")
    run.write_environment({"mit": "cuda:0"})
    found = run.read_environment()
    assert found["packages"]["numpy"] == np.__version__
    assert set(environment.PACKAGES) == set(found["packages"])
    assert found["gpus"] == ["NVIDIA H200", "NVIDIA H200"]
    assert found["devices"] == {"mit": "cuda:0"}
    assert found["cpu_count_usable"] >= 1
    assert found["cpu"]
    fake.write_text("#!/bin/sh\necho 'NVIDIA-SMI has failed'\nexit 9\n")
    assert environment.gpu_names() == []


def test_a_package_that_is_not_installed_has_no_version():
    assert environment.installed_version("no-such-distribution-of-ours") is None


def test_fingerprints_are_kept_as_they_are(run):
    run.write_data([{"name": "mit", "rows": 1000, "sha256": "ab"}, {"name": "ucla", "rows": 5}])
    assert run.read_data() == [{"name": "mit", "rows": 1000, "sha256": "ab"}, {"name": "ucla", "rows": 5}]
    assert yaml.safe_load(run.data_path.read_text())[0]["name"] == "mit"


def test_a_disk_that_cannot_be_written_is_named_by_the_file_asked_for(run, monkeypatch):
    def read_only(*_args, **_options):
        raise OSError(30, "Read-only file system")

    run.write_config({"seed": 1})
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", read_only)
        patch.setattr(Path, "unlink", read_only)
        with pytest.raises(OSError, match="Read-only") as caught:
            run.write_summary({"rounds": 2})
        assert caught.value.filename == str(run.summary_path)
        with pytest.raises(OSError, match="Read-only") as caught:
            run.append_history({"round": 1})
        assert caught.value.filename == str(run.history_path)


def test_a_place_that_cannot_be_written_is_one_line_with_a_remedy(monkeypatch, capsys):
    from pipelines import cli

    def refused(_options, _command_line):
        raise OSError(30, "Read-only file system", "lib/models")

    monkeypatch.setattr("pipelines.model_library.build.build", refused)
    assert cli.main(["library", "build"]) == 1
    (said,) = capsys.readouterr().err.splitlines()
    assert said == (
        "ray-fed library build: error: lib/models: Read-only file system; check that the place is there, "
        "may be written and has room"
    )
