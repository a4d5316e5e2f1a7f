"""The owner's file of a site: it is the owner's alone, and every mistake in it is named with its remedy."""

import os
import re
import shlex
from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from pipelines import cli
from ray_fed.errors import ConfigError
from ray_fed.perimeter.policy import KINDS, SITE_KEYS, Policy, read_site
from ray_fed.sites.site_file import TASK_NAMES, TargetColumn, read_relay_file, read_site_file
from ray_fed.sites.tasks import TASKS

KEY = "3f" * 32
GOOD = {
    "name": "north",
    "hub": {"address": "hub.example.org:7443", "key": KEY},
    "datasets": {
        "alloys": {
            "source": "data/alloys.csv",
            "targets": {"formation_energy_per_atom": {"column": "e_form", "unit": "eV/atom"}},
            "filters": {"pbe": {"functional": "PBE"}},
            "perimeter": {"min_examples": 30, "epsilon_budget": 4},
        }
    },
    "tasks": ["property"],
    "perimeter": {"min_examples": 20, "kinds": ["description", "moments", "update"]},
    "partners": {"south": KEY},
}


@pytest.fixture
def write(tmp_path):
    def write(mode=0o600, **changes):
        path = tmp_path / "site.yaml"
        content = {key: value for key, value in {**GOOD, **changes}.items() if value is not None}
        path.write_text(yaml.safe_dump(content))
        path.chmod(mode)
        return path

    return write


def test_it_says_names_and_what_they_stand_for(write, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    file = read_site_file(write(receive_models="~/models"))
    alloys = file.datasets["alloys"]
    assert alloys.source == str(tmp_path / "data/alloys.csv")
    assert alloys.targets == {"formation_energy_per_atom": TargetColumn("e_form", "eV/atom")}
    assert alloys.filters == {"pbe": (("functional", "PBE"),)}
    assert alloys.policy.epsilon_budget == 4.0
    assert (file.name, file.tasks, file.device.address) == ("north", ("property",), "local")
    assert file.model_folder == tmp_path / "home/models"
    assert file.hub.tls_folder == tmp_path / "home/ray-fed/tls"
    assert file.ledger_folder == tmp_path / "home/ray-fed/ledger"


def test_a_data_set_has_the_sites_policy_with_what_it_has_of_its_own(write):
    file = read_site_file(write())
    site = file.site_of(file.datasets["alloys"])
    assert (site.policy.min_examples, site.policy.kinds) == (30, ("description", "moments", "update"))
    assert site.partners == {"south": KEY}
    assert site.key_file == file.key_file


def test_the_reader_of_the_one_cluster_mode_reads_the_same_file_and_the_same_words(write):
    assert read_site("anyone", write()).policy.min_examples == 20


def test_every_built_in_task_that_may_be_named_can_be_rebuilt():
    assert set(TASK_NAMES) == set(TASKS)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dataset": {}}, "unknown key 'dataset'; did you mean 'datasets'?"),
        ({"name": "a/b"}, "name='a/b' must be the site's name"),
        ({"datasets": {}}, "datasets: is empty; name at least one data set"),
        ({"datasets": {"../x": {}}}, "datasets: '../x' must be letters"),
        ({"datasets": {"a": {"sorce": "x"}}}, "datasets: a: unknown key 'sorce'; did you mean 'source'?"),
        ({"datasets": {"a": {"targets": {}}}}, "datasets: a: key 'source' is missing"),
        (
            {"datasets": {"a": {"source": "x", "targets": {"e": "eV"}}}},
            "targets: e: must be {column: NAME, unit: UNIT}",
        ),
        ({"datasets": {"a": {"source": "x", "filters": {"f": "PBE"}}}}, "filters: f: must be a mapping of columns"),
        (
            {"datasets": {"a": {"source": "x", "perimeter": {"epsilon_budget": 0}}}},
            "epsilon_budget=0.0 must be above 0",
        ),
        ({"datasets": {"a": {"source": "x", "perimeter": {"min_example": 1}}}}, "perimeter: unknown key 'min_example'"),
        ({"hub": {"address": "hub"}}, "hub: address='hub' must be HOST:PORT"),
        ({"hub": {"address": "hub:1", "key": "12"}}, "hub: key='12' must be the hash of the hub's key"),
        ({"hub": None}, "hub: address='' must be HOST:PORT"),
        ({"tasks": ["proprty"]}, "tasks: unknown task 'proprty'; did you mean 'property'?"),
        ({"own_tasks": {"g": {"make": "m:f"}}}, "own_tasks: g: key 'sha256' is missing"),
        ({"own_tasks": {"g": {"make": "m", "sha256": KEY}}}, "make='m' must be MODULE:FUNCTION"),
        ({"device": {"num_gpus": -1}}, "device: num_gpus=-1.0 must be a finite number, 0 or more"),
        ({"partners": {"south": 5}}, "partners: south=5 must be a public key in quotes"),
        (
            {"silos": {"north": {}}},
            "silos: counts where a coordinator's file names silos; here write it under datasets",
        ),
    ],
)
def test_a_mistake_is_named_with_file_key_value_and_remedy(write, changes, message):
    path = write(**changes)
    with pytest.raises(ConfigError) as raised:
        read_site_file(path)
    assert message in str(raised.value)
    assert str(raised.value).startswith(str(path))


RELAY = {"datasets": None, "tasks": None, "perimeter": None, "partners": None, "relay": {"sites": {"south": KEY}}}


def test_the_file_of_a_hub_between_names_its_sites_and_no_data(write, tmp_path):
    file = read_relay_file(write(**RELAY, ledger=str(tmp_path / "log")))
    assert (file.name, file.hub.address, file.relay.listen) == ("north", "hub.example.org:7443", "0.0.0.0:7443")
    assert (file.relay.pins, file.relay.patience, file.log_folder) == ({"south": KEY}, None, tmp_path / "log")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"datasets": GOOD["datasets"]}, "datasets: a hub between has no data"),
        ({"relay": None}, "key 'relay' is missing; write relay: {listen: HOST:PORT"),
        ({"relay": {}}, "relay: sites: is empty; name at least one site"),
        ({"relay": {"sites": {"south": "12"}}}, "relay: sites: south='12' must be the hash of the site's key"),
        ({"relay": {"sites": {"a/b": KEY}}}, "relay: sites: 'a/b' must be letters"),
        ({"relay": {"sites": {"a": KEY}, "listen": "x"}}, "relay: listen='x' must be HOST:PORT"),
        ({"relay": {"sites": {"a": KEY}, "patience": 0}}, "relay: patience=0.0 must be a finite number above 0"),
        ({"relay": {"site": {"a": KEY}}}, "relay: unknown key 'site'; did you mean 'sites'?"),
    ],
)
def test_a_mistake_in_the_file_of_a_hub_between_is_named_with_file_key_value_and_remedy(write, changes, message):
    path = write(**{**RELAY, **changes})
    with pytest.raises(ConfigError) as raised:
        read_relay_file(path)
    assert message in str(raised.value)
    assert str(raised.value).startswith(str(path))


def test_the_file_of_a_hub_between_is_refused_when_others_can_read_it_and_where_a_site_is_started(write):
    with pytest.raises(ConfigError, match="others can read or write it"):
        read_relay_file(write(0o644, **RELAY))
    with pytest.raises(ConfigError, match="relay: is for a hub between; start it with `ray-fed site relay`"):
        read_site_file(write(**RELAY))


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o644, 0o660])
def test_it_is_refused_when_others_can_read_or_write_it(write, mode):
    path = write(mode)
    with pytest.raises(ConfigError, match=f"others can read or write it .*; chmod 600 {path}"):
        read_site_file(path)


@pytest.mark.parametrize("mode", [0o620, 0o646])
def test_the_policy_of_the_one_cluster_mode_may_be_read_but_not_written_by_others(write, mode):
    assert read_site("any", write(0o644)).policy.min_examples == 20
    with pytest.raises(ConfigError, match="others can write it"):
        read_site("any", write(mode))


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o1777])
def test_it_is_refused_in_a_folder_that_others_can_write(write, mode):
    path = write()
    path.parent.chmod(mode)
    with pytest.raises(ConfigError, match="others can write this folder, and put another file in the place of yours"):
        read_site_file(path)
    path.parent.chmod(0o700)


def test_a_folder_further_up_that_others_can_write_is_refused_unless_it_is_one_like_tmp(tmp_path):
    shared = tmp_path / "shared"
    (shared / "mine").mkdir(parents=True)
    path = shared / "mine/site.yaml"
    path.write_text(yaml.safe_dump(GOOD))
    path.chmod(0o600)
    shared.chmod(0o1777)
    assert read_site_file(path).name == "north"
    shared.chmod(0o777)
    with pytest.raises(ConfigError, match="others can write this folder"):
        read_site_file(path)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
@pytest.mark.parametrize("what", ["file", "folder", "link"])
def test_what_belongs_to_another_account_is_refused(write, tmp_path, what):
    path = write()
    (tmp_path / "way").mkdir()
    link = tmp_path / "way/site.yaml"
    link.symlink_to(path)
    assert read_site_file(link).name == "north"
    given = {"file": path, "folder": tmp_path / "way", "link": link}[what]
    os.chown(given, 12345, 12345, follow_symlinks=False)
    with pytest.raises(ConfigError, match=r"belongs to another account \(user 12345\)"):
        read_site_file(link)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"perimeter: [", "cannot be read"),
        (b"\xff", "cannot be read"),
        (b"[1]", "must be a mapping"),
        (b"a: " + b"[" * 5000, "cannot be read"),
        (b"perimeter: {min_examples: 50}\nperimeter: {}", "key 'perimeter' stands twice"),
        (b"#" * (1 << 20) + b"\na: 1", "larger than"),
    ],
    ids=["yaml", "bytes", "list", "deep", "twice", "large"],
)
def test_a_file_that_is_no_site_file_lets_nothing_out_in_either_mode(tmp_path, content, message):
    path = tmp_path / "site.yaml"
    path.write_bytes(content)
    path.chmod(0o600)
    for read in (lambda: read_site_file(path), lambda: read_site("any", path)):
        with pytest.raises(ConfigError, match=message) as raised:
            read()
        assert "\n" not in str(raised.value)


def test_without_a_file_the_remedy_is_named(tmp_path):
    with pytest.raises(ConfigError, match="no such file; make one with `ray-fed site init`"):
        read_site_file(tmp_path / "site.yaml")


def test_a_fifo_in_its_place_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "site.yaml", 0o600)
    with pytest.raises(ConfigError, match="is no plain file"):
        read_site_file(Path(tmp_path / "site.yaml"))


OWNERS_PAGE = (Path(__file__).resolve().parents[2] / "cluster" / "site.md").read_text()


def test_the_owners_page_names_every_kind_of_message_and_only_keys_that_there_are():
    rows = [line.strip("|").split("|") for line in OWNERS_PAGE.splitlines() if line.startswith("|")][2:]
    kinds = [kind.strip() for row in rows for kind in row[0].split(",") if not kind.startswith(" no kind")]
    assert sorted(kinds) == sorted(KINDS)
    keys = {key.partition(":")[0] for row in rows for key in re.findall(r"`([^`]+)`", row[2])}
    assert keys <= {each.name for each in fields(Policy)} | set(SITE_KEYS)


def test_every_command_of_the_owners_page_is_one_and_the_page_is_one_screen():
    text = OWNERS_PAGE.replace("\\\n", " ")
    commands = [shlex.split(line, comments=True) for line in text.splitlines() if line.startswith("    ray-fed site")]
    assert [words[2] for words in commands] == ["init", "check", "start", "key"]
    for words in commands:
        cli._parse(words[1:])
    lines = OWNERS_PAGE.splitlines()
    assert len(lines) <= 60
    assert max(map(len, lines)) <= 150
