"""A federation file that somebody else wrote names no code, no place to write to and no cluster."""

import sys
from pathlib import Path

import pytest
import yaml

from pipelines.cli import main
from pipelines.training.federation_file import STATE_FOLDER, read_federation
from pipelines.training.setup import resolve
from ray_fed.errors import ConfigError, DataError
from ray_fed.federation.cohort import LocalCohort
from ray_fed.federation.silo import make_silo
from ray_fed.federation.task import SiloSpec
from tests.synthetic import DrawnRows, SyntheticTask

SILO = {"name": "north", "data": "north.csv"}
OWN_CODE = "import pathlib\npathlib.Path('ran').touch()\n"


@pytest.fixture
def received(tmp_path, monkeypatch):
    """Write a file into the current folder, next to a module that leaves a trace when it is imported."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "my_code", raising=False)
    (tmp_path / "my_code.py").write_text(OWN_CODE)

    def write(training=None, **silo):
        path = tmp_path / "federation.yaml"
        path.write_text(yaml.safe_dump({"silos": [{**SILO, **silo}], "training": training or {}}))
        return str(path)

    return write


def test_it_names_no_code_of_the_current_folder(received):
    path = received({"strategy": "my_code:Mine"})
    with pytest.raises(ConfigError, match=r"names code, which a federation file must not; .* give --strategy my_code"):
        resolve({"federation": path})
    assert not Path("ran").exists()


def test_code_that_the_user_names_on_the_command_line_does_not_open_the_way_for_the_files(received):
    path = received({"strategy": "my_code:Mine"})
    with pytest.raises(ConfigError, match="names code"):
        resolve({"federation": path, "strategy": "my_code:Mine"})
    assert not Path("ran").exists()


@pytest.mark.parametrize(("key", "value"), [("out", "/etc/cron.d"), ("address", "192.0.2.1:6379")])
def test_it_chooses_neither_where_a_run_is_written_nor_the_cluster_that_gets_the_code(received, key, value):
    with pytest.raises(ConfigError, match=f"{key}='{value}' must not stand in a federation file: .* give --{key}"):
        read_federation(received({key: value}))


@pytest.mark.parametrize("state", ["/etc", "../up", "a/b", "~/.ssh", ".ssh", "a\0b", 3, ["a"]])
def test_it_chooses_no_place_for_states_but_a_name_in_their_own_folder(received, state):
    with pytest.raises(ConfigError, match=r"chooses where files are written; .*--set silos\.north\.state=FOLDER"):
        read_federation(received(state=state))


def test_a_plain_name_of_states_is_a_folder_in_the_home_of_the_silos_account(received, tmp_path, monkeypatch):
    file = read_federation(received(state="alloys"))
    assert file.silos[0].state == f"{STATE_FOLDER}/alloys"
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    silo = make_silo(SiloSpec("north", DrawnRows(9, 3), state_folder=file.silos[0].state), SyntheticTask())
    assert silo.spec.state_folder == str(tmp_path / "home/ray-fed/state/alloys")


def test_the_user_may_choose_any_place_on_the_command_line(received):
    assert read_federation(received(state="a"), ["silos.north.state=/scratch/x"]).silos[0].state == "/scratch/x"


def test_a_home_in_its_paths_is_that_of_the_account_that_reads_the_data(received, tmp_path, monkeypatch):
    setup = resolve({"federation": received(data="~/north.csv"), "cohort": "local"})
    assert setup.silos[0].source.source.path == "~/north.csv"
    monkeypatch.setenv("HOME", str(tmp_path / "elsewhere"))
    with pytest.raises(DataError, match=str(tmp_path / "elsewhere/north.csv")):
        LocalCohort(setup.silos, setup.task).open()


def test_it_is_no_deeper_than_a_parser_can_go(received):
    path = Path(received())
    path.write_text("silos: " + "[" * 5000 + "]" * 5000)
    with pytest.raises(ConfigError, match="nests deeper than 60 levels"):
        read_federation(str(path))


RUN = {"command": "ray-fed", "set": [], "silos": [5], "communication_frequency": 1.0, "strategy": "my_code:Mine"}
SWEEP = {
    "command": "ray-fed",
    "sweep": {"grid": ["epochs=1,2"]},
    "base": {"baselines": False, "strategy": "my_code:Mine"},
}
FOLDERS = {
    "resume": (("resume", "run"), RUN),
    "audit": (("audit", "run"), RUN),
    "sweep": (("sweep", "--resume", "run"), SWEEP),
}


@pytest.mark.parametrize("what", FOLDERS)
def test_a_received_folder_of_a_run_names_no_code_of_the_current_folder_either(received, capsys, what):
    received()
    words, config = FOLDERS[what]
    Path("run").mkdir()
    Path("run/config.yaml").write_text(yaml.safe_dump(config))
    assert main(list(words)) == 2
    assert "is code that is not ray-fed's; if it is yours, say so: --strategy my_code:Mine" in capsys.readouterr().err
    assert not Path("ran").exists()
    assert main([*words, "--strategy", "other:Code"]) == 2
    assert not Path("ran").exists()
    assert main([*words, "--strategy", "my_code:Mine"]) == 2  # the module has no such class
    assert Path("ran").exists()
