"""Which ray-fed a machine has, told by version and content; and what a cluster that we join is given."""

import subprocess
import sys
from pathlib import Path

import pytest

from actors.session import _environment, ships_code
from ray_fed.deployment import installed
from ray_fed.errors import ConfigError

ASK = f"import runpy; print(runpy.run_path({installed.__file__!r})['installed_package']())"


@pytest.fixture
def told(tmp_path):
    """Return a function: files of an installation in a folder of that name -> what a Python without others says."""

    def ask(name: str, **files: str) -> str:
        for package in installed.PACKAGES:
            (tmp_path / name / package / "tables").mkdir(parents=True)
            (tmp_path / name / package / "__init__.py").write_text("")
        for path, content in files.items():
            (tmp_path / name / path.replace("__", "/", 1).replace("_DOT_", ".")).write_text(content)
        path = f"import sys; sys.path.append({str(tmp_path / name)!r}); "
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-c", path + ASK], capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    return ask


def test_equal_files_have_one_hash_and_one_changed_file_has_another(told):
    one, same = told("one", actors__silo_DOT_py="x = 1\n"), told("same", actors__silo_DOT_py="x = 1\n")
    other = told("other", actors__silo_DOT_py="x = 2\n")
    moved = told("moved", pipelines__silo_DOT_py="x = 1\n")
    assert one == same
    assert len({one, other, moved}) == 3
    assert one.startswith("unversioned+")


def test_tables_count_and_other_files_beside_the_code_do_not(told):
    plain = told("plain")
    assert told("notes", actors__notes_DOT_txt="to do\n") == plain
    assert told("tables", **{"ray_fed__tables/elements_DOT_csv": "H\n"}) != plain


def test_code_that_came_with_a_job_is_not_installed(told):
    assert told("runtime_resources") == "None"


def test_no_package_is_said_to_be_none():
    assert subprocess.check_output([sys.executable, "-I", "-S", "-c", ASK], text=True).strip() == "None"


def test_this_installation_has_version_and_hash():
    version, _, digest = str(installed.installed_package()).partition("+")
    assert version == installed._version()
    assert len(digest) == 12


def test_nodes_with_another_package_or_none_are_named():
    there = {"a (192.0.2.1, 0f)": "0.1.0+aa", "b (192.0.2.2, 1f)": None, "c (192.0.2.3, 2f)": "0.1.0+bb"}
    assert installed.differences(there, "0.1.0+aa") == [
        "node b (192.0.2.2, 1f) has no ray-fed",
        "node c (192.0.2.3, 2f) has ray-fed 0.1.0+bb",
    ]


def test_nothing_of_ours_goes_to_a_cluster_unless_asked(tmp_path):
    assert set(_environment(str(tmp_path), False)) == {"working_dir", "env_vars"}
    assert list(tmp_path.iterdir()) == []
    sent = _environment(str(tmp_path), True)
    assert [Path(folder).name for folder in sent["py_modules"]] == list(installed.PACKAGES)
    assert sent["env_vars"] == {}


@pytest.mark.parametrize(("word", "ships"), [("", False), ("no", False), ("0", False), ("1", True), ("Yes", True)])
def test_the_wish_is_a_word_in_the_environment(monkeypatch, word, ships):
    monkeypatch.setenv("RAY_FED_SHIP_CODE", word)
    assert ships_code() is ships


def test_another_word_is_refused(monkeypatch):
    monkeypatch.setenv("RAY_FED_SHIP_CODE", "maybe")
    with pytest.raises(ConfigError, match="RAY_FED_SHIP_CODE='maybe' must be yes or no"):
        ships_code()
