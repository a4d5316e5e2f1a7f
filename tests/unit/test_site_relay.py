"""Hubs that stack: a hub as a site of another hub, and the bits of a federation without it."""

import contextlib
import threading
from dataclasses import replace

import numpy as np
import pytest

from ray_fed.errors import ConfigError, FedError, SiloFailed, UpdateRejected
from ray_fed.exact_sum import ExactWeightedSum
from ray_fed.federation.cohort import LocalCohort
from ray_fed.federation.coordinator import Coordinator
from ray_fed.federation.diversity import DIVERSITY
from ray_fed.federation.messages import Update
from ray_fed.federation.rounds.job import Job, local_job
from ray_fed.federation.rounds.machine import StartRules
from ray_fed.federation.silo import Evaluator
from ray_fed.federation.strategies import CoordinateMedian, FedAdam, ScaffoldAdam
from ray_fed.federation.task import SiloSpec
from ray_fed.learning.trainer import TrainingPlan
from ray_fed.privacy.compression import Compression
from ray_fed.sites import requests
from ray_fed.sites.agent import HubAddress
from ray_fed.sites.answers import NumbersForm, SumForm
from ray_fed.sites.asking import SiteSilo
from ray_fed.sites.cohort import SiteCohort
from ray_fed.sites.relay import RelayAgent, _checked
from ray_fed.sites.requests import FitSumRequest
from ray_fed.sites.sums import updates_of_sum
from tests.sites import OwnHosts, agent, certificates, hub_of, invitation, site_of
from tests.synthetic import DrawnRows, SyntheticTask, silos
from tests.unit.test_site_connections import bits, running, wait_until

PLAN = TrainingPlan(seed=0, epochs=6, steps_per_epoch=4, num_rounds=6, learning_rate=0.01)
SIZES = (40, 60, 25, 31, 50)
NAMES = tuple(f"silo-{number}" for number in range(1, 6))
REGIONS = {"region-a": NAMES[:2], "region-b": NAMES[2:4]}
TASK = SyntheticTask()


def behind(region, silo):
    return SiteSilo(region, replace(invitation(silo), way=site_of(silo)))


def job(plan=PLAN, **changes):
    return Job("federated", NAMES, dict.fromkeys(NAMES, plan), model_seed=0, **changes)


def run(cohort, *jobs):
    coordinator = Coordinator(cohort, TASK, NAMES)
    agreement = coordinator.agree()
    return agreement, [list(coordinator.run(each)) for each in jobs or (job(),)]


@contextlib.contextmanager
def region(name, upper, names, specs, make_host=None, **options):
    """A hub for some silos that is a site of the upper hub."""
    with hub_of([site_of(silo) for silo in names]) as lower:
        address = HubAddress(f"127.0.0.1:{upper.port}")
        relay = RelayAgent(name, address, certificates(name), lower, **options)
        sites = [agent(site_of(silo), lower.port, [specs[silo]], TASK, make_host=make_host) for silo in names]
        with running(*sites), running(relay):
            yield relay, sites


@contextlib.contextmanager
def two_levels(specs=None, make_host=None, evaluator=None, **options):
    """Silos 1 and 2 behind one hub, 3 and 4 behind another, 5 at a site of the coordinator's own hub."""
    by_name = {spec.name: spec for spec in specs or silos(*SIZES, held_out=12)}
    with contextlib.ExitStack() as stack:
        upper = stack.enter_context(hub_of([*REGIONS, "site-5"]))
        for name, names in REGIONS.items():
            stack.enter_context(region(name, upper, names, by_name, make_host, **options))
        stack.enter_context(running(agent("site-5", upper.port, [by_name["silo-5"]], TASK)))
        far = [behind(name, silo) for name, names in REGIONS.items() for silo in names]
        yield SiteCohort(upper, [*far, SiteSilo("site-5", invitation("silo-5"))], TASK, evaluator)


def seen_through_hubs(records):
    """Without how unlike silos are: of sums, single moves are not seen."""
    return [replace(each, metrics={**each.metrics, DIVERSITY: 0}) for each in records]


def assert_equal(ours, theirs):
    for one, other in zip(ours[1], theirs[1], strict=True):
        assert seen_through_hubs(one) == seen_through_hubs(other)
        assert bits(one) == bits(other)
    assert ours[0].standardizer.mean.tobytes() == theirs[0].standardizer.mean.tobytes()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"strategy": FedAdam()},
        {"strategy": ScaffoldAdam()},
        {"plan": replace(PLAN, optimizer_state="average")},
        {"plan": replace(PLAN, compression=Compression("int8"))},
        {"secure_threshold": 3},
    ],
    ids=["plain", "fed_adam", "scaffold_adam", "average", "int8", "masks"],
)
def test_two_levels_of_hubs_give_the_bits_of_silos_in_this_process(changes):
    test = SiloSpec("test", DrawnRows(50))
    specs = silos(*SIZES, held_out=12)
    with two_levels(evaluator=Evaluator(test, TASK)) as cohort:
        assert_equal(run(LocalCohort(specs, TASK, test), job(**changes)), run(cohort, job(**changes)))


@pytest.mark.parametrize(
    "the_job",
    [job(strategy=CoordinateMedian()), job(max_norm=1.0), local_job(job(), job().plans, "local")],
    ids=["median", "max_norm", "local"],
)
def test_what_needs_single_updates_is_refused_with_the_remedy(the_job):
    says = r"hubs (between silos and coordinator|on the way)"
    with two_levels() as cohort, pytest.raises(ConfigError, match=says):
        run(cohort, the_job)


def test_a_vector_comes_to_a_hub_once_for_all_its_silos_and_one_sum_goes_back():
    asked = []
    with two_levels() as cohort:
        ask = cohort.hub.ask

        def counting(site, silo, request, *more):
            asked.append((silo, type(request).__name__))
            return ask(site, silo, request, *more)

        cohort.hub.ask = counting
        run(cohort)
    fits = [silo for silo, kind in asked if "Fit" in kind]
    assert fits == ["region-a", "region-b", "silo-5"] * 6
    evaluations = [silo for silo, kind in asked if "Evaluate" in kind]
    assert sorted(evaluations) == sorted(["region-a", "region-b", "silo-5"] * 7)


def test_a_silo_that_fails_behind_a_hub_is_named_and_the_others_count():
    class Failing(OwnHosts):
        def __call__(self, invited):
            host = super().__call__(invited)
            if invited.silo == "silo-1":
                inner = host.fit

                def fit(session, server_round, vector):
                    update = inner(session, server_round, vector)
                    return replace(update, vector=update.vector * np.nan) if server_round == 2 else update

                host.fit = fit
            return host

    specs = silos(*SIZES)
    with two_levels(specs, Failing(specs, TASK)) as cohort:
        _, [records] = run(cohort)
    assert [record.participants for record in records[1:]] == [NAMES, NAMES[1:], *[NAMES] * 4]
    assert "not finite" in dict(records[2].failures)["silo-1"]


def test_a_site_behind_a_hub_that_is_started_again_is_restored_through_it(tmp_path):
    specs = [replace(spec, state_folder=str(tmp_path / spec.name)) for spec in silos(*SIZES, held_out=12)]
    by_name = {spec.name: spec for spec in specs}
    with contextlib.ExitStack() as stack:
        upper = stack.enter_context(hub_of(["region-a", "region-b", "site-5"]))
        relay, sites = stack.enter_context(region("region-a", upper, NAMES[:2], by_name))
        stack.enter_context(region("region-b", upper, NAMES[2:4], by_name))
        stack.enter_context(running(agent("site-5", upper.port, [by_name["silo-5"]], TASK)))
        far = [behind(name, silo) for name, names in REGIONS.items() for silo in names]
        cohort = SiteCohort(upper, [*far, SiteSilo("site-5", invitation("silo-5"))], TASK)
        coordinator = Coordinator(cohort, TASK, NAMES)
        coordinator.agree()
        rounds = coordinator.run(job())
        records = [next(rounds) for _ in range(3)]
        sites[0].stop()
        wait_until(lambda: not relay.lower.is_connected("site-1"))
        stack.enter_context(running(agent("site-1", relay.lower.port, specs[:1], TASK)))
        wait_until(lambda: relay.lower.is_connected("site-1"))
        records += rounds
    whole = run(LocalCohort(silos(*SIZES, held_out=12), TASK))[1][0]
    assert bits(records) == bits(whole)
    assert [(record.server_round, silo) for record in records for silo, _ in record.restarts] == [(3, "silo-1")]


@pytest.mark.parametrize(
    ("own", "told", "seconds"), [(2.0, None, 2.0), (None, 2.0, 1.8), (9.0, 2.0, 1.8), (1.5, 2.0, 1.5)]
)
def test_a_hub_answers_in_time_without_the_silos_that_are_late(own, told, seconds, monkeypatch, caplog):
    """In its own time, or in nine tenths of the coordinator's; meanwhile it says for whom it waits."""
    monkeypatch.setattr("ray_fed.sites.relay.SAY_AFTER_SECONDS", 0.3)

    class Late(OwnHosts):
        def __call__(self, invited):
            host = super().__call__(invited)
            if invited.silo == "silo-3":
                inner = host.fit

                def fit(session, server_round, vector):
                    if server_round == 2:
                        relay_is_late.wait(20)
                    return inner(session, server_round, vector)

                host.fit = fit
            return host

    relay_is_late = threading.Event()
    specs = silos(*SIZES)
    with two_levels(specs, Late(specs, TASK), patience=own) as cohort:
        cohort.answer_timeout = told
        coordinator = Coordinator(cohort, TASK, NAMES)
        coordinator.agree()
        rounds = coordinator.run(job())
        records = [next(rounds) for _ in range(3)]
        relay_is_late.set()
        records += rounds
    assert dict(records[2].failures) == {"silo-3": f"late: no answer to its hub within {seconds:g} s"}
    said = [record.getMessage() for record in caplog.records if "waiting for round 2" in record.getMessage()]
    assert [line.endswith("for 'silo-3 at site-3'") for line in said] == [True] * len(said)
    assert len(said) == 2, "after 0.3 s, 0.9 s and 2.7 s"
    assert [len(record.participants) for record in records[1:]] == [5, 4, 5, 5, 5, 5]


def test_a_silo_that_a_hub_has_no_site_for_is_named_with_the_remedy():
    with hub_of(["region-a"]) as upper, region("region-a", upper, NAMES[:1], {"silo-1": silos(9)[0]}):
        cohort = SiteCohort(upper, [behind("region-a", "silo-9")], TASK)
        with pytest.raises(ConfigError, match="silo 'silo-9': the hub 'region-a' knows no site 'site-9'; name it"):
            cohort.open()


def test_a_site_that_never_comes_is_named_at_both_hubs_and_in_the_end(monkeypatch, caplog):
    for module in ("hub", "asking"):
        monkeypatch.setattr(f"ray_fed.sites.{module}.SAY_AFTER_SECONDS", 0.2)
    with hub_of(["region-a"]) as upper, hub_of(["site-1"]) as lower:
        address = HubAddress(f"127.0.0.1:{upper.port}")
        relay = RelayAgent("region-a", address, certificates("region-a"), lower, site_within=3.0)
        cohort = SiteCohort(upper, [behind("region-a", "silo-1")], TASK)
        says = (
            "silo 'silo-1' failed while joining the federation: its site 'site-1' has not answered the hub 'region-a'"
        )
        with running(relay), pytest.raises(SiloFailed, match=f"{says} within 3 s; its owner starts it"):
            cohort.open()
    said = [record.getMessage() for record in caplog.records]
    assert any(line.startswith("waiting for 'silo-1 at region-a/site-1': no answer for ") for line in said)
    assert any(line.startswith("waiting for site 'site-1': not connected for") for line in said)


def test_a_silo_behind_a_hub_cannot_come_late_and_that_is_said():
    rules = StartRules(timeout=0.2, may_be_late=frozenset({"silo-1", "silo-2"}), fewest=1)
    with hub_of(["region-a", "site-2"]) as upper, running(agent("site-2", upper.port, silos(9, 9)[1:], TASK)):
        both = [behind("region-a", "silo-1"), SiteSilo("site-2", invitation("silo-2"))]
        cohort = SiteCohort(upper, both, TASK, start=rules)
        with pytest.raises(SiloFailed, match=r"'silo-1' .* `ray-fed site relay`; silos behind a hub cannot come late"):
            cohort.open()


def test_a_hub_takes_no_update_of_more_rows_than_its_silo_may_claim():
    update = Update("a", "s", 1, VECTOR, 9, 1, 0.0)
    assert _checked("a", update, REQUEST) is update
    for claimed in (replace(update, num_examples=10), replace(update, silo="c", num_examples=1)):
        with pytest.raises(UpdateRejected, match=r"is more than the [09] that a round can have with the rows"):
            _checked("a", claimed, REQUEST)


def test_a_hub_between_that_is_started_again_changes_no_bit(tmp_path):
    specs = [replace(spec, state_folder=str(tmp_path / spec.name)) for spec in silos(*SIZES[:2], held_out=12)]
    names, by_name = NAMES[:2], {spec.name: spec for spec in specs}
    ours = Job("federated", names, dict.fromkeys(names, PLAN), model_seed=0)
    with hub_of(["region-a"]) as upper, contextlib.ExitStack() as stack:
        relay, _ = stack.enter_context(region("region-a", upper, names, by_name))
        coordinator = Coordinator(SiteCohort(upper, [behind("region-a", silo) for silo in names], TASK), TASK, names)
        coordinator.agree()
        rounds = coordinator.run(ours)
        records = [next(rounds) for _ in range(3)]
        relay.stop()
        again = RelayAgent("region-a", HubAddress(f"127.0.0.1:{upper.port}"), certificates("region-a"), relay.lower)
        with running(again):
            records += rounds
    coordinator = Coordinator(LocalCohort(silos(*SIZES[:2], held_out=12), TASK), TASK, names)
    coordinator.agree()
    assert bits(records) == bits(coordinator.run(ours))
    assert sorted(silo for record in records for silo, _ in record.restarts) == list(names)


def test_three_levels_of_hubs_give_the_bits_of_silos_in_this_process():
    """A consortium of a region of a site."""
    specs = silos(*SIZES[:2], held_out=12)
    names, by_name = NAMES[:2], {spec.name: spec for spec in specs}
    ours = Job("federated", names, dict.fromkeys(names, PLAN), model_seed=0)
    with hub_of(["consortium"]) as upper, hub_of(["region"]) as middle:
        address = HubAddress(f"127.0.0.1:{upper.port}")
        consortium = RelayAgent("consortium", address, certificates("consortium"), middle)
        with running(consortium), region("region", middle, names, by_name):
            ways = [replace(invitation(silo), way=f"region/{site_of(silo)}") for silo in names]
            cohort = SiteCohort(upper, [SiteSilo("consortium", way) for way in ways], TASK)
            coordinator = Coordinator(cohort, TASK, names)
            coordinator.agree()
            records = list(coordinator.run(ours))
    coordinator = Coordinator(LocalCohort(specs, TASK), TASK, names)
    coordinator.agree()
    assert bits(records) == bits(coordinator.run(ours))
    assert str(consortium.sums) == "12 updates in 6 sums"


# ---- a hub's sum is looked at before it counts

VECTOR = np.zeros(3, np.float32)
REQUEST = FitSumRequest("s", 1, ("a", "b"), (9, 9), VECTOR)


def sum_form(**changes):
    total = ExactWeightedSum(3)
    for _ in range(2):
        total.add(np.ones(3, np.float32), 2)
    numbers = dict.fromkeys("ab", NumbersForm(2, 1, 0.5, 0.1, 12))
    return SumForm(**{"high": total.parts()[0], "low": total.parts()[1], "numbers": numbers, "failures": {}} | changes)


def test_a_sum_is_the_update_of_each_of_its_silos():
    updates = updates_of_sum(sum_form(), REQUEST)
    assert [update.silo for update in updates] == ["a", "b"]
    assert updates[0].summed().total.mean().tolist() == [1.0, 1.0, 1.0]
    assert updates[0].sum is updates[1].sum


@pytest.mark.parametrize(
    "changes",
    [
        {"numbers": {"a": NumbersForm(2, 1, 0.5, 0.1, 12)}},
        {"failures": {"a": "late"}},
        {"failures": {"c": "late"}},
        {"lost": ("b",)},
        {"numbers": dict.fromkeys("ab", NumbersForm(0, 1, 0.5, 0.1, 12))},
        {"numbers": dict.fromkeys("ab", NumbersForm(2, 1, float("nan"), 0.1, 12))},
        {"high": np.zeros(2, np.int64)},
        {"high": np.zeros(3)},
        {"high": np.full(3, -(2**63))},
        {"high": np.full(3, 2**62)},
        {"low": np.full(3, 2**50)},
        {"low": np.full(3, -1)},
    ],
    ids=str,
)
def test_what_is_no_sum_of_what_was_asked_for_is_refused(changes):
    with pytest.raises(FedError):
        updates_of_sum(sum_form(**changes), REQUEST)


def test_a_site_that_is_no_hub_says_so():
    with hub_of(["site-1"]) as hub, running(agent("site-1", hub.port, silos(9), TASK)):
        cohort = SiteCohort(hub, [behind("site-1", "silo-1")], TASK)
        cohort.open()
        cohort.submit("s", 1, {"silo-1": VECTOR})
        assert "silo 'site-1'" in cohort.next_event(20).reason
        with pytest.raises(SiloFailed, match="not been invited"):
            raise cohort._call("site-1", requests.OpenRequest()).result(20)
