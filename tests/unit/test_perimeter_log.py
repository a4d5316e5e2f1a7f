"""Where a silo's log is: in a place of its owner's, never foreseen by others, never through a link."""

import os
import re
import signal
import stat
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest

from ray_fed.errors import DataError
from ray_fed.federation.silo import Silo
from ray_fed.perimeter.boundary import LOG_FILE, SiloLog
from ray_fed.perimeter.guarded_silo import GuardedSilo
from ray_fed.perimeter.own_words import words_of
from ray_fed.perimeter.policy import site_path
from tests.boundaries import spec
from tests.commands import REPOSITORY, finished, start_module
from tests.synthetic import SyntheticTask


@pytest.fixture(autouse=True)
def machine(tmp_path, monkeypatch):
    """A machine whose temporary files are in a folder of their own."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    monkeypatch.setenv("RAY_FED_SITE", str(tmp_path / "site"))
    return tmp_path / "tmp"


def without_folder(tmp_path):
    passing = replace(spec(tmp_path), ledger_folder="", run="")
    return GuardedSilo(passing, lambda: Silo(passing, SyntheticTask()))


def test_a_log_without_a_folder_is_where_nobody_could_have_put_something_before(tmp_path, machine):
    silos = [without_folder(tmp_path) for _ in range(3)]
    paths = {silo.log.path for silo in silos}
    assert len(paths) == 3
    for path in paths:
        assert path.is_relative_to(machine)
        assert re.search(r"[a-z0-9_]{8}$", path.parent.name)
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_silo_with_nothing_to_say_leaves_nothing_among_the_temporary_files(tmp_path, machine):
    silo = without_folder(tmp_path)
    silo.open()
    assert list(machine.iterdir()) == []
    assert silo.log.path.is_file()  # as where a process's output goes there
    del silo
    assert list(machine.iterdir()) == []


def test_what_a_silo_wrote_down_outlives_it(tmp_path, machine):
    silo = without_folder(tmp_path)
    reference = silo.log.note("why it failed")
    del silo
    [path] = machine.glob(f"*/{LOG_FILE}")
    assert f"reference {reference} why it failed" in path.read_text()


def test_what_killed_processes_left_empty_goes_with_the_next_log(machine):
    open_log, full, young = SiloLog(None), SiloLog(None), SiloLog(None)
    full.note("why it failed")
    for log in (open_log, full):
        os.utime(log.path, (0, 0))
    folders = {log.path.parent for log in (open_log, full, young)}
    killed = finished(start_module("tests.unit.test_perimeter_log", str(machine), folder=REPOSITORY))
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert len(list(machine.iterdir())) == 4
    after = SiloLog(None)
    after.note("and what comes next")
    assert set(machine.iterdir()) == folders | {after.path.parent}


def test_a_log_is_never_written_through_a_link(tmp_path):
    victim = tmp_path / "victim.txt"
    victim.write_text("mine\n")
    for name, make in (("soft", os.symlink), ("hard", os.link)):
        (tmp_path / name).mkdir(mode=0o700)
        make(victim, tmp_path / name / LOG_FILE)
        with pytest.raises(DataError):
            SiloLog(tmp_path / name)
    assert victim.read_text() == "mine\n"


@pytest.mark.parametrize("kind", ["a link", "a file", "a folder that others may write"])
def test_a_folder_that_is_no_folder_of_its_owners_holds_no_log(tmp_path, kind):
    (tmp_path / "other").mkdir(mode=0o700)
    folder = tmp_path / "log"
    if kind == "a link":
        folder.symlink_to(tmp_path / "other")
    elif kind == "a file":
        folder.write_text("x")
    else:
        folder.mkdir()
        folder.chmod(0o777)
    with pytest.raises((DataError, OSError)):
        SiloLog(folder)
    assert list((tmp_path / "other").iterdir()) == []


def test_a_pipe_in_the_place_of_a_log_does_not_hold_the_silo_up(tmp_path):
    (tmp_path / "log").mkdir(mode=0o700)
    os.mkfifo(tmp_path / "log" / LOG_FILE, 0o600)
    with pytest.raises(DataError):
        SiloLog(tmp_path / "log")


def test_a_silo_whose_log_cannot_be_had_answers_nothing_and_does_not_tell_the_place(tmp_path, machine):
    folder = tmp_path / "ledgers" / "north"
    folder.mkdir(parents=True)
    (folder / LOG_FILE).symlink_to(tmp_path / "victim.txt")
    boundary = GuardedSilo(spec(tmp_path), lambda: Silo(spec(tmp_path), SyntheticTask()))
    with pytest.raises(DataError, match="failed while opening its log: a file cannot be written") as raised:
        boundary.open()
    assert str(tmp_path) not in str(raised.value)
    assert not (tmp_path / "victim.txt").exists()
    assert boundary.log.path.is_relative_to(machine)


def test_words_are_found_under_their_number_alone(tmp_path):
    log = SiloLog(tmp_path / "north")
    first, second = log.write("training", ValueError("row 1")), log.note("target: mine\nreference 0 not this")
    specs = [replace(spec(tmp_path), ledger_folder="", log_folder=str(tmp_path))]
    said = "; ".join(f"reference {number} in the log of silo 'north' at its owner's" for number in (first, second))
    assert words_of(said, specs) == ["while training: ValueError: row 1", "target: mine"]
    assert words_of(said.replace(first, "0" * 12).replace(second, "0" * 12), specs) == []
    assert words_of(said.replace("north", "../north"), specs) == []


def test_the_owners_file_is_in_the_accounts_home_whatever_the_environment_calls_home(tmp_path, monkeypatch):
    monkeypatch.delenv("RAY_FED_SITE")
    usual = site_path()
    monkeypatch.setenv("HOME", str(tmp_path))
    assert site_path() == usual
    assert not usual.is_relative_to(tmp_path)
    assert site_path({"RAY_FED_SITE": str(tmp_path)}) == tmp_path / "site.yaml"


def test_an_old_log_that_is_full_is_set_aside(tmp_path, monkeypatch):
    monkeypatch.setattr("ray_fed.perimeter.boundary.MAX_LOG_BYTES", 10)
    SiloLog(tmp_path / "north").note("long enough to be full")
    SiloLog(tmp_path / "north")
    assert (tmp_path / "north" / LOG_FILE).read_text() == ""
    assert "long enough" in Path(tmp_path / "north" / "silo.log.1").read_text()


if __name__ == "__main__":  # a process that opens a log and is killed
    tempfile.tempdir = sys.argv[1]
    log = SiloLog(None)  # goes with its folder when nobody has it any more
    os.utime(log.path, (0, 0))
    os.kill(os.getpid(), signal.SIGKILL)
