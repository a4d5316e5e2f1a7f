"""What a slow, a greedy or a hostile peer can take: memory in bounds, at both ends; and sites as processes."""

import asyncio
import multiprocessing
import os
import signal
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_fed.errors import SiloFailed
from ray_fed.federation.cohort import LocalCohort
from ray_fed.federation.coordinator import Coordinator
from ray_fed.federation.messages import SessionSpec, Update
from ray_fed.federation.rounds.job import Job
from ray_fed.learning.standardisation import ColumnMoments
from ray_fed.learning.trainer import TrainingPlan
from ray_fed.sites import requests
from ray_fed.sites.agent import HubAddress, SiteAgent
from ray_fed.sites.asking import SiteSilo
from ray_fed.sites.cohort import SiteCohort
from ray_fed.sites.hub import Hub
from ray_fed.sites.link import ByteBudget
from ray_fed.sites.requests import Given, InviteRequest, OpenSessionRequest, QueryRequest
from ray_fed.sites.wire import Encoded
from tests.sites import OwnHosts, agent, certificates, cohort_of, hub_of, invitation, site_of
from tests.synthetic import SyntheticTask, silos
from tests.unit.test_site_connections import bits, running, wait_until

MEBI = 1 << 20


class Echo:
    """A host that sends back what it got."""

    def __init__(self, name, asked=None):
        self.name, self.asked = name, asked if asked is not None else []

    def moments(self):
        return ColumnMoments.of(np.zeros((1, 2)))

    def fit(self, session, server_round, vector):
        self.asked.append(server_round)
        return Update(self.name, session, server_round, vector + np.float32(1), 1, 1, 0.0)


def invited(cohort):
    cohort._ask(cohort.silos, lambda name: InviteRequest(invitation(name)))
    return cohort


# ---- the budget


def test_who_comes_when_the_budget_is_spent_waits_in_line_and_one_always_fits():
    async def tried():
        budget, order = ByteBudget(10), []

        async def taken(name, num_bytes):
            await budget.claim(num_bytes)
            order.append((name, budget.held))

        await taken("huge", 100)
        waiting = [asyncio.create_task(taken(name, size)) for name, size in (("a", 6), ("b", 6), ("c", 4))]
        await asyncio.sleep(0)
        budget.release(100)
        await asyncio.sleep(0)
        assert order == [("huge", 100), ("a", 6)]
        waiting[1].cancel()
        budget.release(6)
        await asyncio.gather(*waiting, return_exceptions=True)
        assert order[-1] == ("c", 4)
        assert budget.held == 4

    asyncio.run(tried())


@given(st.lists(st.tuples(st.integers(1, 20), st.booleans()), max_size=12))
def test_the_budget_is_never_overdrawn_and_ends_empty(claims):
    async def tried():
        budget = ByteBudget(10)

        async def used(num_bytes):
            await budget.claim(num_bytes)
            try:
                assert budget.held <= max(10, num_bytes)
                await asyncio.sleep(0)
            finally:
                budget.release(num_bytes)

        tasks = [asyncio.create_task(used(num_bytes)) for num_bytes, _ in claims]
        for task, (_, is_cancelled) in zip(tasks, claims, strict=True):
            if is_cancelled:
                task.cancel()
                await asyncio.sleep(0)
        await asyncio.gather(*tasks, return_exceptions=True)
        assert budget.held == 0

    asyncio.run(tried())


def test_large_answers_wait_until_the_coordinator_has_taken_those_before_them():
    names = [f"silo-{number}" for number in range(1, 6)]
    vector = np.zeros(MEBI, np.float32)
    with hub_of(list(map(site_of, names)), most_bytes=9 * MEBI) as hub:
        sites = [agent(site_of(name), hub.port, [], make_host=lambda given: Echo(given.silo)) for name in names]
        with running(*sites):
            cohort = invited(cohort_of(hub, silos(1, 1, 1, 1, 1), SyntheticTask()))
            cohort.submit("s", 1, dict.fromkeys(names, vector))
            wait_until(lambda: cohort._arrived.qsize() == 2)
            time.sleep(0.3)
            assert cohort._arrived.qsize() == 2  # the other three answers are still with their sites
            assert hub._budget.held == 8 * MEBI
            assert len(cohort.moments(names)) == 5  # what is asked meanwhile does not stand in that line
            answered = {event.silo for event in (cohort.next_event(20) for _ in names)}
            assert cohort.next_event(0) is None
            assert answered == set(names)
            cohort._release_used()
            wait_until(lambda: hub._budget.held == 0)


def test_a_vector_for_many_sites_is_encoded_once():
    vector, made = np.zeros(1000, np.float32), []

    class Counting:
        sites = frozenset(map(site_of, ("silo-1", "silo-2", "silo-3")))

        def watch(self, *_):
            pass

        def ask(self, *given):
            made.append(given[4])

    cohort = cohort_of(Counting(), silos(1, 1, 1), SyntheticTask())
    cohort.submit("s", 1, dict.fromkeys(("silo-1", "silo-2", "silo-3"), vector))
    assert [id(message) for message in made] == [id(made[0])] * 3
    assert np.shares_memory(np.frombuffer(made[0].pieces[0], np.float32), vector)


# ---- a hostile hub


@settings(max_examples=60)
@given(body=st.binary(max_size=200), payload=st.binary(max_size=100))
def test_calls_of_anything_reach_no_host_and_are_answered_by_an_error(one_site, body, payload):
    hub, cohort, hosts = one_site
    sent = Encoded(body, (memoryview(payload),) if payload else (), len(payload))
    with pytest.raises(SiloFailed, match="reading a call: it is"):
        cohort._answer_of("silo-1", requests.OpenRequest(), 20.0, sent)
    assert hosts.made == []
    assert hub.is_connected("site-1")


@pytest.fixture(scope="module")
def one_site():
    hosts = OwnHosts(silos(20), SyntheticTask())
    with hub_of(["site-1"]) as hub, running(agent("site-1", hub.port, [], make_host=hosts)):
        yield hub, cohort_of(hub, silos(20), SyntheticTask()), hosts


def test_a_call_that_is_larger_than_the_owner_allows_is_not_taken(caplog):
    with hub_of(["site-1"]) as hub:
        site = agent("site-1", hub.port, [], make_host=lambda given: Echo(given.silo), most_bytes=MEBI)
        with running(site):
            cohort = invited(cohort_of(hub, silos(1), SyntheticTask()))
            cohort.submit("s", 1, {"silo-1": np.zeros(MEBI, np.float32)})
            wait_until(
                lambda: any(f"a call of {4 * MEBI} bytes, {MEBI} are the most" in line for line in caplog.messages)
            )


def test_calls_wait_at_the_hub_when_a_site_has_enough_of_them():
    go, asked = threading.Event(), []

    class Slow(Echo):
        def fit(self, *given):
            go.wait(30)
            return super().fit(*given)

    vector = np.zeros(MEBI, np.float32)
    with hub_of(["site-1"]) as hub:
        site = agent("site-1", hub.port, [], make_host=lambda given: Slow(given.silo, asked), most_bytes=9 * MEBI)
        with running(site):
            cohort = invited(cohort_of(hub, silos(1), SyntheticTask()))
            for server_round in range(8):
                cohort.submit("s", server_round, {"silo-1": vector})
            wait_until(lambda: site._budget.held == 8 * MEBI)
            time.sleep(0.2)
            assert site._budget.held == 8 * MEBI
            go.set()
            rounds = [cohort.next_event(20).server_round for _ in range(8)]
            wait_until(lambda: site._budget.held == 0)
    assert rounds == asked == list(range(8))


def test_a_hub_that_acknowledges_nothing_is_not_worked_for(caplog, monkeypatch):
    monkeypatch.setattr("ray_fed.sites.agent.MOST_KEPT", 3)
    monkeypatch.setattr(Hub, "_acknowledge", lambda *_: None)
    asked = []
    with hub_of(["site-1"]) as hub:
        site = agent("site-1", hub.port, [], make_host=lambda given: Echo(given.silo, asked))
        with running(site):
            cohort = invited(cohort_of(hub, silos(1), SyntheticTask()))
            for server_round in range(5):
                cohort.submit("s", server_round, {"silo-1": np.zeros(3, np.float32)})
                cohort.next_event(0.5)
            wait_until(lambda: any("no word that 3 answers have arrived" in line for line in caplog.messages))


def test_an_invitation_of_more_silos_than_a_site_takes_ends_the_connection(caplog, monkeypatch):
    monkeypatch.setattr("ray_fed.sites.agent.MOST_SILOS", 2)
    with hub_of(["site-1"]) as hub, running(agent("site-1", hub.port, [], make_host=lambda given: Echo(given.silo))):
        for name in ("a", "b", "c"):
            hub.ask("site-1", name, InviteRequest(invitation(name)), lambda *_: None)
        wait_until(lambda: any("calls of more than 2 silos" in line for line in caplog.messages))


def test_the_sessions_of_all_silos_of_a_site_are_bounded_together(monkeypatch):
    monkeypatch.setattr("ray_fed.sites.agent.MOST_SESSIONS", 3)
    names, plan = ("silo-1", "silo-2"), TrainingPlan(seed=0, epochs=1, steps_per_epoch=1, num_rounds=1)

    class Many(Echo):
        def open_session(self, spec):
            return spec.layout_digest

        def close_session(self, session):
            pass

    with hub_of(["site-1"]) as hub, running(agent("site-1", hub.port, [], make_host=lambda given: Many(given.silo))):
        cohort = SiteCohort(hub, [SiteSilo("site-1", invitation(name)) for name in names], SyntheticTask())
        invited(cohort)

        def opened(name, session):
            cohort._ask([name], lambda _: OpenSessionRequest(SessionSpec(session, plan, 0, "digest")))

        opened("silo-1", "a"), opened("silo-1", "b"), opened("silo-2", "a"), opened("silo-2", "a")
        with pytest.raises(SiloFailed, match=r"'silo-2' .* 3 sessions are open at its site, 3 are the most"):
            opened("silo-2", "b")
        cohort.close_session("b", ["silo-1"])
        opened("silo-2", "b")
        cohort._ask(["silo-2"], lambda name: InviteRequest(invitation(name)))
        opened("silo-1", "c"), opened("silo-1", "d")


def test_a_host_that_ends_its_thread_does_not_end_its_site():
    class Leaving(Echo):
        def query(self, *given):
            raise SystemExit(" ".join(given))

    with hub_of(["site-1"]) as hub, running(agent("site-1", hub.port, [], make_host=lambda given: Leaving(given.silo))):
        cohort = invited(cohort_of(hub, silos(1), SyntheticTask()))
        with pytest.raises(SiloFailed, match="SystemExit at its site; what it says stays in the site's own log"):
            cohort._ask(["silo-1"], lambda _: QueryRequest("q", (Given("a secret"),)))
        assert cohort.moments(["silo-1"])["silo-1"].num_examples == 1


# ---- sites as processes


def run_site(name, port, own, specs, killed_at):
    """The whole of a site's process; it kills itself at a training step, once."""

    class Mortal(SyntheticTask):
        steps = 0

        def loss(self, prediction, target):
            Mortal.steps += 1
            if Mortal.steps == killed_at:
                os.kill(os.getpid(), signal.SIGKILL)
            return SyntheticTask.loss(prediction, target)

    SiteAgent(name, HubAddress(f"127.0.0.1:{port}"), own, OwnHosts(specs, Mortal())).run()


def test_a_site_s_process_that_is_killed_and_started_again_changes_no_bit(tmp_path):
    names, context = ("silo-1", "silo-2"), multiprocessing.get_context("spawn")
    specs = [replace(spec, state_folder=str(tmp_path / spec.name)) for spec in silos(40, 60)]
    plan = TrainingPlan(seed=0, epochs=6, steps_per_epoch=4, num_rounds=6, learning_rate=0.01)
    job = Job("federated", names, dict.fromkeys(names, plan), model_seed=0)

    def process(name, spec, killed_at):
        own = certificates(name)
        made = context.Process(target=run_site, args=(name, hub.port, own, [spec], killed_at), daemon=True)
        made.start()
        return made

    with hub_of(["site-1", "site-2"]) as hub:
        first, other = process("site-1", specs[0], 10), process("site-2", specs[1], 0)

        def watch():
            first.join()
            second.append(process("site-1", specs[0], 0))

        second = []
        watching = threading.Thread(target=watch)
        watching.start()
        coordinator = Coordinator(cohort_of(hub, specs, SyntheticTask()), SyntheticTask(), names)
        coordinator.agree()
        records = list(coordinator.run(job))
        watching.join()
        for each in (*second, other):
            each.kill()
            each.join()
    local = Coordinator(LocalCohort(silos(40, 60), SyntheticTask()), SyntheticTask(), names)
    local.agree()
    assert bits(records) == bits(list(local.run(job)))
    assert [name for record in records for name, _ in record.restarts] == ["silo-1"]
    assert first.exitcode == -signal.SIGKILL
