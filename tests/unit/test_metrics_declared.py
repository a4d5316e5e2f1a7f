"""Names of metrics: a task declares them when it opens its data, and no other ones leave the silo."""

from dataclasses import dataclass, replace

import numpy as np
import pytest

from ray_fed.errors import ConfigError, PerimeterRefused
from ray_fed.federation.messages import Metrics, SessionSpec
from ray_fed.federation.silo import Silo
from ray_fed.federation.task import SiloSpec
from ray_fed.learning.layout import Layout, initial_vector
from ray_fed.learning.trainer import TrainingPlan
from ray_fed.metrics import RESERVED, MeanScores, Metric
from ray_fed.perimeter.guarded_silo import GuardedSilo
from ray_fed.perimeter.policy import SITE_VARIABLE
from tests.synthetic import DrawnRows, SyntheticTask

PLAN = TrainingPlan(seed=0, epochs=1, steps_per_epoch=1, num_rounds=1)
USERS = Metric("Band gap error-2.1", "eV", higher_is_better=False, digits=2)


@dataclass(frozen=True)
class NamingTask(SyntheticTask):
    """Tells one metric under a name of its user's."""

    declared: tuple[Metric, ...] = (USERS,)
    told: str = USERS.name

    @property
    def metrics(self):
        return self.declared

    def score(self, targets, outputs):
        return MeanScores(len(targets), {self.told: float(np.abs(outputs[:, 0] - targets).sum())})


@pytest.fixture(autouse=True)
def site(tmp_path, monkeypatch):
    monkeypatch.setenv(SITE_VARIABLE, str(tmp_path))
    return tmp_path / "site.yaml"


def opened(task, make=Silo):
    spec = SiloSpec("north", DrawnRows(60, 20))
    boundary = GuardedSilo(spec, lambda: make(spec, task))
    return boundary, boundary.open()


def session(task):
    return SessionSpec("s", PLAN, 0, Layout.of(task.model(0)).digest)


def evaluated(boundary, task):
    boundary.prepare(None)
    boundary.open_session(session(task))
    return told(boundary, task)


def told(boundary, task) -> dict[str, Metrics]:
    return boundary.evaluate("s", {"m": initial_vector(task.model(0), "average")})


def test_a_name_of_the_user_that_the_task_declares_is_seen_when_the_silo_opens_and_may_leave():
    boundary, said = opened(task := NamingTask())
    assert said.metrics == (USERS.name,)
    assert list(evaluated(boundary, task)["m"].held_out.values()) == [USERS.name]


def test_a_name_that_was_not_declared_stays_inside():
    boundary, _ = opened(task := NamingTask(told="4.215"))
    with pytest.raises(PerimeterRefused, match="one of its names is not allowed") as caught:
        evaluated(boundary, task)
    assert "4.215" not in str(caught.value)


def test_a_silo_that_was_started_again_may_use_the_names_it_declared_and_no_others():
    for task, is_allowed in ((NamingTask(), True), (NamingTask(told="4.215"), False)):
        spec = SiloSpec("north", DrawnRows(60, 20))
        boundary = GuardedSilo(spec, lambda task=task, spec=spec: Silo(spec, task))
        boundary.restore(None, [session(task)])
        if is_allowed:
            assert told(boundary, task)["m"].held_out.num_examples == 20
        else:
            with pytest.raises(PerimeterRefused, match="one of its names is not allowed"):
                told(boundary, task)


def test_an_owner_who_lists_names_lets_out_no_declared_one_besides(site):
    site.write_text("perimeter: {metrics: [loss]}")
    boundary, said = opened(task := NamingTask())
    assert said.metrics == ()
    with pytest.raises(PerimeterRefused, match="the owner lists names under 'metrics'"):
        evaluated(boundary, task)


def test_an_owner_may_allow_what_is_declared_and_more(site):
    site.write_text("perimeter: {metrics: [declared, extra]}")
    for told_name in (USERS.name, "extra"):
        boundary, _ = opened(task := NamingTask(told=told_name))
        assert evaluated(boundary, task)["m"].held_out.num_examples == 20


def saying(change):
    class Says(Silo):
        def open(self):
            return replace(super().open(), metrics=change(self.rows))

    return Says


SMUGGLED = {
    "rows": (lambda rows: tuple(f"m {x:.15f}" for x in rows.features[0]), "does not declare"),
    "too many": (lambda _: tuple(f"m{i}" for i in range(65)), "at most 64 names"),
    "a long name": (lambda _: ("m" * 65,), "a name must be"),
    "other characters": (lambda _: ("a;b",), "a name must be"),
    "a list, which could change": (lambda _: ["a"], "a tuple of at most"),
    "a text with more to it": (lambda _: (type("Name", (str,), {})("a"),), "a name must be"),
}


@pytest.mark.parametrize("way", SMUGGLED)
def test_a_description_cannot_carry_rows_in_names_of_metrics(way):
    change, reason = SMUGGLED[way]
    with pytest.raises(PerimeterRefused, match=reason):
        opened(NamingTask(), saying(change))


def test_names_of_metrics_count_among_the_bytes_of_a_description(site):
    site.write_text("perimeter: {max_description_bytes: 200}")
    opened(NamingTask())
    with pytest.raises(PerimeterRefused, match="max_description_bytes=200"):
        opened(NamingTask(declared=tuple(Metric(f"{i:02d}".join("ab") * 10, "", True, 2) for i in range(20))))


@pytest.mark.parametrize("name", ["", "2nd", "a\n", "a/b", "é", "m" * 65, *RESERVED])
def test_a_metric_with_a_name_that_is_none_or_is_taken_is_refused(name):
    with pytest.raises(ConfigError, match="metric name"):
        Metric(name, "", True, 2)
