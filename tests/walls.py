"""Silos behind walls for tests: honest and hostile ones."""

import json

import pytest

from ray_fed.errors import FedError
from ray_fed.federation.messages import SessionSpec
from ray_fed.federation.silo import Silo
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
    """A silo of class `cls` behind its wall, open and prepared."""
    task = task or SyntheticTask(num_features=20, hidden=(64,))
    wall = GuardedSilo(spec(tmp_path, rows), lambda: cls(spec(tmp_path, rows), task), **options)
    wall.open()
    wall.prepare(None)
    return wall


def vector_of(wall):
    return initial_vector(wall.silo.task.model(0))


def open_session(wall, plan=PLAN):
    digest = Layout.of(wall.silo.task.model(0)).digest
    wall.open_session(SessionSpec("s", plan, 0, digest))
    return vector_of(wall)


def lines_of(wall):
    return [json.loads(line) for line in wall.ledger.path.read_text().splitlines()]


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
    wall = guarded(tmp_path, cls)
    vector = open_session(wall)
    if method == "fit":
        wall.fit("s", 1, vector)
    elif method == "moments":
        wall.moments()
    else:
        wall.evaluate("s", {"model": vector})
