"""Which of several structures in one file: said on the command line, by the owner of a site, and where they are
predicted."""

from pathlib import Path

import pandas as pd
import pytest
import yaml
from pymatgen.core import Lattice, Structure
from pymatgen.io.cif import CifWriter

from pipelines.cli import main
from pipelines.site.check import opened
from ray_fed.errors import ConfigError
from ray_fed.sites.site_file import SiteFile, read_site_file

TARGET = "formation_energy_per_atom"
CUBES = [(lattice, element) for lattice, element in ((3.0, "Po"), (3.2, "Fe"), (3.4, "Cu"))]


def cif(lattice: float, element: str) -> str:
    return str(CifWriter(Structure(Lattice.cubic(lattice), [element], [[0, 0, 0]])))


@pytest.fixture
def folder(tmp_path) -> Path:
    """Two structures in one file under one label, and one in another."""
    place = tmp_path / "cifs"
    place.mkdir()
    (place / "two.cif").write_text(cif(*CUBES[0]) + cif(*CUBES[1]))
    (place / "one.cif").write_text(cif(*CUBES[2]))
    (place / "id_prop.csv").write_text("two,-2.1\none,-3.0\n")
    return place


def site(folder: Path, **more: object) -> SiteFile:
    dataset = {"source": str(folder), "targets": {TARGET: {"column": TARGET, "unit": "eV/atom"}}, **more}
    content = {
        "name": "north", "hub": {"address": "127.0.0.1:7443", "key": "0" * 64}, "datasets": {"alloys": dataset},
        "tasks": ["property"], "perimeter": {"min_examples": 1},
    }  # fmt: skip
    path = folder.parent / "site.yaml"
    path.write_text(yaml.safe_dump(content))
    path.chmod(0o600)
    return read_site_file(path)


@pytest.mark.parametrize(
    ("structures", "said"),
    [
        (None, "1 usable rows of 2 (1 x file has structures; choose one by its number, or all)"),
        ("all", "3 usable rows of 3 (2 x one of several structures in its file)"),
        (2, "2 usable rows of 2 (1 x one of several structures in its file)"),
    ],
)
def test_the_owner_of_a_site_chooses_and_hears_what_it_comes_to(folder, structures, said):
    file = site(folder, **({} if structures is None else {"structures": structures}))
    assert opened(file, file.datasets["alloys"]) == f"{TARGET}: {said}"


def test_a_choice_that_is_none_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="structures='some' must be all, first, or a number from 1"):
        site(tmp_path, structures="some")


def test_the_owner_s_classes_are_checked_like_numbers(folder):
    (folder / "id_prop.csv").write_text("id,metal\ntwo,yes\none,no\n")
    file = site(folder, structures="all", targets={"metal": {"column": "metal", "classes": [False, True]}})
    assert opened(file, file.datasets["alloys"]).startswith("metal: 3 usable rows of 3")


def test_predictions_are_of_the_structures_that_are_chosen_and_hold_no_text_of_them(folder, tmp_path):
    run = tmp_path / "run"
    options = "--rows 300 --silos 60,90 --epochs 2 --rounds 1 --features guo65 --hidden 4 --baselines no --analysis no"
    assert main(["train", "--cohort", "local", *options.split(), "--out", str(run)]) == 0

    def predicted(*more: str) -> list[str]:
        out = tmp_path / "p.csv"
        assert main(["predict", str(run), str(folder / "two.cif"), "--out", str(out), *more]) == 0
        table = pd.read_csv(out)
        assert "structure" not in table
        assert "_cell_length" not in out.read_text()
        return table["formula"].tolist()

    assert predicted() == ["Po", "Fe"]
    assert predicted("--structures", "first") == ["Po"]
    assert predicted("--structures", "2", "--symmetry", "check") == ["Fe"]
