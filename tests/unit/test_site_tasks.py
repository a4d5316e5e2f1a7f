"""What a coordinator may ask a site for: names that its owner has given, and plain options."""

import logging
import sysconfig
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from ray_fed.errors import ConfigError, PerimeterRefused
from ray_fed.federation.silo import make_silo
from ray_fed.materials.property_task import CrystalRows, PropertyTask
from ray_fed.perimeter.guarded_silo import GuardedSilo
from ray_fed.sites.asking import SiteSilo
from ray_fed.sites.cohort import SiteCohort
from ray_fed.sites.requests import Invitation
from ray_fed.sites.site_file import read_site_file
from ray_fed.sites.tasks import accepted, check_source, source_hash
from tests.crystal_files import ROCKSALT, TARGET, WURTZITE, table
from tests.sites import agent, hub_of

KEY = "3f" * 32
OPTIONS = {"features": "guo65", "hidden": (8,), "target": TARGET, "unit": "eV/atom"}
ASKED = Invitation("run-1", "north", "alloys", "property", OPTIONS)
PACKAGE = "ray_fed_test_of_own_tasks"
SOURCE = """from ray_fed.materials.property_task import PropertyTask
def make_task(width=4):
    return PropertyTask("guo65", (), (width,))
def make_nothing():
    return None
"""


@pytest.fixture
def site(tmp_path):
    """A site whose table has notes that are nobody's business."""
    rows = table(*(ROCKSALT | {"e_form": -1.0, "note": "PATENT", "functional": "PBE"} for _ in range(6)), WURTZITE)
    rows.rename(columns={TARGET: "other"}).to_csv(tmp_path / "alloys.csv", index=False)
    alloys = {
        "source": "alloys.csv",
        "targets": {TARGET: {"column": "e_form", "unit": "eV/atom"}},
        "filters": {"pbe": {"functional": "PBE"}},
    }
    content = {"name": "north", "hub": {"address": "hub:1", "key": KEY}, "datasets": {"alloys": alloys}}

    folders = {"state": str(tmp_path / "state"), "ledger": str(tmp_path / "ledger")}

    def read(**changes):
        path = tmp_path / "site.yaml"
        path.write_text(yaml.safe_dump({**content, "tasks": ["property"], **folders, **changes}))
        path.chmod(0o600)
        return read_site_file(path)

    return read


def test_an_invitation_becomes_the_silo_that_the_owner_has_named(site, tmp_path):
    invited = accepted(site(), replace(ASKED, options=OPTIONS | {"filters": ("pbe",)}, test_fraction=0.3, split_seed=7))
    rows = invited.spec.source
    assert isinstance(rows, CrystalRows)
    assert (rows.source.path, rows.source.target) == (str(tmp_path / "alloys.csv"), "e_form")
    assert rows.source.where == (("functional", "PBE"),)
    assert (rows.test_fraction, rows.split_seed) == (0.3, 7)
    assert invited.make_task() == PropertyTask("guo65", (("impute", "median"),), (8,))
    assert invited.spec.state_folder == str(tmp_path / "state/run-1")
    said = make_silo(replace(invited.spec, source=replace(rows, test_fraction=0.0)), invited.make_task()).open()
    assert (said.num_examples, said.agreement["target"]) == (6, f"{TARGET} [eV/atom]")


def named(site, **targets):
    """Return the file of a site whose data set has these targets."""
    content = yaml.safe_load(site().path.read_text())
    content["datasets"]["alloys"]["targets"] = targets
    return site(datasets=content["datasets"])


def test_a_site_converts_its_unit_and_refuses_one_that_cannot_be_converted(site):
    mine = named(site, **{TARGET: {"column": "e_form", "unit": "meV/atom"}})
    invited = accepted(mine, ASKED)
    silo = make_silo(invited.spec, invited.make_task())
    assert silo.open().agreement["target"] == f"{TARGET} [eV/atom]"
    assert set(silo.rows.targets.tolist()) == {-0.001}
    other = named(site, **{TARGET: {"column": "e_form", "unit": "kJ/mol"}})
    with pytest.raises(PerimeterRefused, match="its unit of that target cannot be converted to the one asked for"):
        accepted(other, ASKED)


def test_a_site_tells_classes_apart_that_its_owner_lists_and_no_others(site):
    mine = named(site, kind={"column": "functional", "classes": ["PBE", "SCAN"]})
    asked = OPTIONS | {"target": ("kind",), "unit": ("",), "classes": ("SCAN|PBE",), "standardise_target": True}
    invited = accepted(mine, replace(ASKED, options=asked))
    silo = make_silo(invited.spec, invited.make_task())
    assert silo.open().agreement["target"] == "kind {SCAN, PBE}"
    assert set(silo.rows.targets.tolist()) == {1.0}
    for classes in (("PBE|LDA",), ()):
        with pytest.raises(PerimeterRefused, match="its owner lists other classes of that target, or none"):
            accepted(mine, replace(ASKED, options=asked | {"classes": classes, "unit": ("eV",)}))


REFUSED = {
    "another data set": ({"dataset": "secret"}, "its owner names no such data set"),
    "a path": ({"dataset": "/etc/passwd"}, "its owner names no such data set"),
    "another task": ({"task": "os:system"}, "its owner allows no such task"),
    "another target": ({"options": {"target": "note"}}, "its owner names no such target"),
    "a column of the owner's": ({"options": {"target": "e_form_of_others"}}, "its owner names no such target"),
    "another filter": ({"options": {"filters": ("note",)}}, "its owner names no such filter"),
    "a condition": ({"options": {"where": "note=PATENT"}}, "its options make no task at this site"),
    "an unknown feature set": ({"options": {"features": "mine"}}, "its options make no task at this site"),
    "a network that fills the memory": ({"options": {"hidden": (9**9,)}}, "its options make no task at this site"),
    "very many layers": ({"options": {"hidden": (16000,) * 60}}, "its options make no task at this site"),
    "a run elsewhere": ({"run": "../../x"}, "a name that it was sent is none"),
    "a silo elsewhere": ({"silo": "/etc"}, "a name that it was sent is none"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_the_owner_has_not_named_is_refused_in_a_phrase_without_a_name_of_the_owner(site, caplog, what):
    changes, phrase = REFUSED[what]
    options = OPTIONS | changes.get("options", {})
    with caplog.at_level(logging.WARNING), pytest.raises(PerimeterRefused) as raised:
        accepted(site(), replace(ASKED, **{**changes, "options": options}))
    assert raised.value.args[1:] == ("invitation", phrase)
    for hidden in ("alloys", "e_form", "pbe", "PATENT"):
        assert hidden not in str(raised.value)
    assert phrase in caplog.text


@pytest.mark.parametrize("fraction", [0.2000001, 1e-9, 0.05, 0.55, 0.999])
def test_a_split_that_singles_out_rows_is_refused(site, fraction):
    """Two fractions that differ by little hold out the same rows but for one formula: its count told who is there."""
    with pytest.raises(PerimeterRefused, match="tells who is among its rows"):
        accepted(site(), replace(ASKED, test_fraction=fraction))


def test_a_data_set_is_split_in_few_ways_whatever_the_run_is_called(site):
    file = site(perimeter={"max_splits_per_dataset": 2})
    for number in (0, 1, 0, 1):
        accepted(file, replace(ASKED, run=f"run-{number}", test_fraction=0.2, split_seed=number))
    with pytest.raises(PerimeterRefused, match="held out in 2 other ways before; max_splits_per_dataset=2"):
        accepted(file, replace(ASKED, run="run-3", test_fraction=0.2, split_seed=2))
    accepted(file, ASKED)


def test_columns_that_the_owner_does_not_list_are_no_inputs(site):
    file = site()
    named = {"alloys": {"source": "alloys.csv", "targets": {TARGET: {"column": "e_form", "unit": "eV/atom"}}}}
    named["alloys"]["columns"] = ["formula"]
    with_formula_only = accepted(site(datasets=named), ASKED).spec.source.source
    assert with_formula_only.columns == ("formula",)
    assert accepted(file, ASKED).spec.source.source.columns == ()


@pytest.fixture
def installed():
    """A package among those that are installed."""
    folder = Path(sysconfig.get_paths()["purelib"]) / PACKAGE
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "graphs.py").write_text(SOURCE)
    yield folder
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    folder.rmdir()


def own(site, make, sha256):
    return site(own_tasks={"graphs": {"make": f"{PACKAGE}.graphs:{make}", "sha256": sha256}})


def test_code_of_the_sites_own_runs_where_its_owner_has_listed_its_hash(site, installed, tmp_path):
    file = own(site, "make_task", source_hash(PACKAGE))
    invited = accepted(file, replace(ASKED, task="graphs", options={"width": 3}))
    assert invited.spec.source == str(tmp_path / "alloys.csv")
    assert invited.make_task().hidden == (3,)
    (installed / "graphs.py").write_text(SOURCE + "\n")
    with pytest.raises(ConfigError, match="look at what changed, then write the new one"):
        check_source(file.own_tasks["graphs"])
    with pytest.raises(PerimeterRefused, match="its options make no task at this site"):
        accepted(file, replace(ASKED, task="graphs", options={"width": 3}))


def test_the_hash_covers_every_source_file_of_the_package_and_their_names(installed):
    before = source_hash(PACKAGE)
    (installed / "more").mkdir()
    (installed / "more/hidden.py").write_text("")
    assert source_hash(PACKAGE) != before


def test_code_of_the_current_folder_is_not_installed(tmp_path, monkeypatch):
    (tmp_path / "here.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ConfigError, match="install it in this environment"):
        source_hash("here")


def test_a_refusal_reaches_the_coordinator_in_its_phrase_and_a_silo_that_is_named_opens_its_data(site):
    file = site()

    def make_host(invitation):
        invited = accepted(file, invitation)
        return GuardedSilo(invited.spec, lambda: make_silo(invited.spec, invited.make_task()), site=invited.site)

    known, unknown = ASKED, replace(ASKED, silo="other", dataset="secret")
    task = PropertyTask("guo65", (), (8,))
    with hub_of(["north"]) as hub:
        serving = agent("north", hub.port, [], make_host=make_host).start()
        try:
            said = SiteCohort(hub, [SiteSilo("north", known)], task).open()["north"]
            assert (said.num_examples, said.metrics) == (6, ("mae", "r2", "mse"))
            with pytest.raises(PerimeterRefused, match="its owner names no such data set"):
                SiteCohort(hub, [SiteSilo("north", unknown)], task).open()
        finally:
            serving.stop()
