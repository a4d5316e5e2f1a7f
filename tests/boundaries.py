"""Silos behind their boundaries for tests: honest and hostile ones."""

import json

import pytest

from ray_fed.errors import FedError
from ray_fed.federation.cohort import LocalCohort
from ray_fed.federation.messages import SessionSpec
from ray_fed.federation.silo import Silo, make_silo
from ray_fed.federation.task import SiloSpec
from ray_fed.learning.layout import Layout, initial_vector
from ray_fed.learning.trainer import TrainingPlan
from ray_fed.perimeter.guarded_silo import GuardedSilo
from tests.synthetic import DrawnRows, SyntheticTask

PLAN = TrainingPlan(seed=0, epochs=6, steps_per_epoch=4, num_rounds=3, learning_rate=0.01)


def write_site(site, text):
    site.mkdir(exist_ok=True)
    (site / "site.yaml").write_text(text)


def spec(tmp_path, rows=60, **changes):
    return SiloSpec("north", DrawnRows(rows, 10), run="run-1", ledger_folder=str(tmp_path / "ledgers"), **changes)


def guarded(tmp_path, cls=Silo, task=None, rows=60, **options):
    """A silo of class `cls` behind its boundary, open and prepared."""
    task = task or SyntheticTask(num_features=20, hidden=(64,))
    boundary = GuardedSilo(spec(tmp_path, rows), lambda: cls(spec(tmp_path, rows), task), **options)
    boundary.open()
    boundary.prepare(None)
    return boundary


def cohort_behind_boundaries(specs, task, test=None):
    """Silos in this process, each behind a boundary, as those on actors are."""
    cohort = LocalCohort(specs, task, test)
    cohort.silos = {spec.name: GuardedSilo(spec, lambda spec=spec: make_silo(spec, task)) for spec in specs}
    return cohort


def vector_of(boundary):
    return initial_vector(boundary.silo.task.model(0))


def open_session(boundary, plan=PLAN):
    digest = Layout.of(boundary.silo.task.model(0)).digest
    boundary.open_session(SessionSpec("s", plan, 0, digest))
    return vector_of(boundary)


def lines_of(boundary):
    return [json.loads(line) for line in boundary.ledger.path.read_text().splitlines()]


def hostile(method, answer):
    """A silo class whose `method` answers with `answer(rows, honest answer)`."""

    def act(self, *given):
        honest = getattr(Silo, method)(self, *given)
        return answer(self.rows, honest)

    return type("HostileSilo", (Silo,), {method: act})


def refusal(tmp_path, cls, *, method="fit"):
    """The error that crosses when a hostile silo is asked."""
    with pytest.raises(FedError) as raised:
        ask(tmp_path, cls, method)
    return raised.value


def ask(tmp_path, cls, method):
    boundary = guarded(tmp_path, cls)
    vector = open_session(boundary)
    if method == "fit":
        boundary.fit("s", 1, vector)
    elif method == "moments":
        boundary.moments()
    else:
        boundary.evaluate("s", {"model": vector})
