"""An owner who keeps metrics (`kinds` without them) takes part like the others: what is not told is not known."""

import pytest

from ray_fed.errors import PerimeterRefused
from ray_fed.federation.coordinator import Coordinator
from ray_fed.federation.rounds.job import Job
from ray_fed.federation.strategies import FedAvg
from ray_fed.federation.task import SiloSpec
from tests.boundaries import PLAN, cohort_behind_boundaries, guarded, open_session, write_site
from tests.synthetic import DrawnRows, SyntheticTask

SPECS = [SiloSpec(name, DrawnRows(60, 20)) for name in ("north", "south")]
KEEPS = "kinds: [description, moments, update]"


@pytest.fixture(autouse=True)
def site(tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_FED_SITE", str(tmp_path / "site"))
    write_site(tmp_path / "site", "{}")
    return tmp_path / "site"


def last_record(specs=SPECS, test=None):
    """Train over silos behind their boundaries; return the description of each, and the last round."""
    names, task = tuple(spec.name for spec in specs), SyntheticTask()
    coordinator = Coordinator(cohort_behind_boundaries(specs, task, test), task, names)
    said = coordinator.agree().silos
    return said, list(coordinator.run(Job("federated", names, dict.fromkeys(names, PLAN), 0, FedAvg())))[-1]


def test_the_model_is_the_same_and_no_metric_is_told(site):
    _, told = last_record()
    write_site(site, f"perimeter: {{{KEEPS}}}")
    said, kept = last_record()
    assert [silo.metrics for silo in said.values()] == [(), ()]
    assert kept.models["federated"].tobytes() == told.models["federated"].tobytes()
    assert sorted(kept.metrics) == ["silo.north.train_loss", "silo.south.train_loss", "train_loss"]


def test_those_of_the_others_are_told_without_those_of_the_silo_that_keeps_them(site):
    write_site(site, f"silos: {{north: {{{KEEPS}}}}}")
    _, kept = last_record()
    assert "silo.north.mae" not in kept.metrics
    assert kept.metrics["federated.mae"] == kept.metrics["silo.south.mae"]


def test_a_common_test_set_still_measures_the_model(site):
    write_site(site, f"perimeter: {{{KEEPS}}}")
    _, kept = last_record(test=SiloSpec("test", DrawnRows(40)))
    assert "federated.mae" in kept.metrics
    assert "silo.north.mae" not in kept.metrics


def test_asked_all_the_same_the_silo_refuses(site, tmp_path):
    write_site(site, f"perimeter: {{{KEEPS}}}")
    silo = guarded(tmp_path)
    with pytest.raises(PerimeterRefused, match="metrics refused"):
        silo.evaluate("s", {"model": open_session(silo)})
