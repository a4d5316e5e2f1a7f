"""The wheel is the package: it installs without the sources, and the main command runs outside of the checkout."""

import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
from pathlib import Path
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("ray_fed", "actors", "pipelines")


def ran(*command, **how):
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=300, **how)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy: setuptools leaves its folders beside the sources."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        shutil.copytree(ROOT / name, folder / "copy" / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "copy" / name)
    build = "import setuptools.build_meta as backend, sys; print(backend.build_wheel(sys.argv[1]))"
    name = ran(sys.executable, "-c", build, folder, cwd=folder / "copy").splitlines()[-1]
    return folder / name


def test_it_has_every_file_of_the_three_packages_and_no_other(wheel):
    there = {name for name in ZipFile(wheel).namelist() if ".dist-info/" not in name}
    kept = {".py", ".typed", *(path.suffix for path in ROOT.glob("ray_fed/**/tables/*"))}
    tracked = ran("git", "ls-files", *SOURCES, cwd=ROOT).splitlines()
    assert there == {name for name in tracked if Path(name).suffix in kept}


def test_it_installs_into_an_empty_environment_and_runs_the_main_command_elsewhere(wheel, tmp_path):
    """The environment finds the dependencies where this one has them, but not the checkout, which is only linked."""
    venv.create(tmp_path / "env", with_pip=False, symlinks=True)
    (site,) = (tmp_path / "env").glob("lib/*/site-packages")
    ran(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", site, wheel)
    (site / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"])
    python, elsewhere = tmp_path / "env" / "bin" / "python", tmp_path / "elsewhere"
    elsewhere.mkdir()
    where = ran(python, "-c", "import actors, pipelines, ray_fed; print(ray_fed.__file__)", cwd=elsewhere)
    assert where.startswith(str(site))
    command = [python, "-c", "import sys; from pipelines.cli import main; sys.exit(main())"]
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert ran(*command, "--version", cwd=elsewhere).split()[1] == version
    options = ["--cohort", "local", "--epochs", "2", "--rounds", "1", "--baselines", "no", "--out", "run"]
    assert "MAE" in ran(*command, "formation-energy", *options, cwd=elsewhere)
    assert (elsewhere / "run" / "report.html").is_file()
