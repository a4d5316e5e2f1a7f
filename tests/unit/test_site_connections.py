"""Connections that break, end and come back; and who may connect at all."""

import asyncio
import contextlib
import logging
import os
import threading
import time
from dataclasses import dataclass, field, replace

import grpc
import numpy as np
import pytest

from ray_fed.errors import ConfigError, SiloFailed
from ray_fed.federation.cohort import LocalCohort
from ray_fed.federation.coordinator import Coordinator
from ray_fed.federation.messages import Died, Restarted, Update
from ray_fed.federation.rounds.job import Job
from ray_fed.federation.rounds.machine import RoundRules, StartRules
from ray_fed.learning.trainer import TrainingPlan
from ray_fed.sites import link, requests, wire
from ray_fed.sites.agent import HubAddress
from ray_fed.sites.answers import HostLost
from ray_fed.sites.asking import SiteSilo
from ray_fed.sites.cohort import SiteCohort
from ray_fed.sites.hub import Hub
from ray_fed.sites.wire import Hello, encode_header
from tests.commands import PATIENCE
from tests.relay import ConnectProxy, relay
from tests.sites import OwnHosts, agent, certificates, cohort_of, hub_of, invitation, site_of
from tests.synthetic import SyntheticTask, silos

PLAN = TrainingPlan(seed=0, epochs=6, steps_per_epoch=4, num_rounds=6, learning_rate=0.01)
NAMES = ("silo-1", "silo-2")
SPECS = silos(40, 60, held_out=12)


@dataclass(frozen=True)
class Interrupted(SyntheticTask):
    """Calls `happens` when a silo is asked for its `at`-th loss."""

    at: int = 0
    happens: object = None
    calls: list[int] = field(default_factory=lambda: [0], compare=False)

    def loss(self, prediction, target):  # type: ignore[override]
        self.calls[0] += 1
        if self.calls[0] == self.at:
            self.happens()  # type: ignore[operator]
        return super().loss(prediction, target)


def job(names=NAMES, plan=PLAN, **changes):
    return Job("federated", names, dict.fromkeys(names, plan), model_seed=0, **changes)


def bits(records):
    return [{name: value.tobytes() for name, value in record.state.items()} for record in records]


def records_of(cohort, task=None, the_job=None, names=NAMES):
    coordinator = Coordinator(cohort, task or SyntheticTask(), names)
    coordinator.agree()
    return list(coordinator.run(the_job or job(names)))


def undisturbed(specs=SPECS, the_job=None, names=NAMES):
    return records_of(LocalCohort(specs, SyntheticTask()), the_job=the_job, names=names)


@contextlib.contextmanager
def running(*agents):
    try:
        for each in agents:
            each.start()
        yield
    finally:
        for each in agents:
            each.stop()


def wait_until(holds, seconds=PATIENCE):
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)


# ---- cut and restored


@pytest.mark.parametrize("back_before_the_answer", [True, False])
def test_a_link_that_is_cut_in_mid_round_changes_no_bit_and_no_call_is_run_twice(back_before_the_answer):
    def cut():
        between.cut()
        wait_until(lambda: not hub.is_connected("site-1"))
        if back_before_the_answer:
            between.restore()
            wait_until(lambda: hub.is_connected("site-1"))
        else:
            threading.Timer(0.3, between.restore).start()

    task = Interrupted(at=10, happens=cut)
    plain = SyntheticTask()
    with hub_of(["site-1", "site-2"]) as hub, relay(hub.port) as between:
        agents = agent("site-1", between.port, SPECS[:1], task), agent("site-2", hub.port, SPECS[1:], plain)
        with running(*agents):
            records = records_of(cohort_of(hub, SPECS, plain))
    assert bits(records) == bits(undisturbed())
    assert [record.participants for record in records[1:]] == [NAMES] * 6
    assert not any(record.restarts for record in records)
    assert between.num_connections == 2
    assert task.calls[0] == PLAN.total_steps


def test_calls_that_are_made_while_a_site_is_away_are_run_when_it_is_back():
    with hub_of(["site-1"]) as hub, relay(hub.port) as between, running(agent("site-1", between.port, SPECS[:1])):
        cohort = cohort_of(hub, SPECS[:1], SyntheticTask())
        cohort.open()
        between.cut()
        wait_until(lambda: not hub.is_connected("site-1"))
        threading.Timer(0.3, between.restore).start()
        assert cohort.moments(["silo-1"])["silo-1"].num_examples == 40


def test_a_message_of_many_frames_survives_a_cut_in_the_middle_of_it():
    length = 4 << 20
    vector = np.arange(length, dtype=np.float32)

    class Echo:
        asked = 0

        def fit(self, session, server_round, given):
            self.asked += 1
            return Update("silo-1", session, server_round, given + np.float32(1), 1, 1, 0.0)

    echo = Echo()
    with (
        hub_of(["site-1"]) as hub,
        relay(hub.port) as between,
        running(agent("site-1", between.port, [], make_host=lambda _: echo)),
    ):
        cohort = cohort_of(hub, SPECS[:1], SyntheticTask())
        cohort._ask(["silo-1"], lambda _: requests.InviteRequest(invitation("silo-1")))
        cohort.submit("s", 1, {"silo-1": vector})
        for passed in (4 << 20, 28 << 20):
            wait_until(lambda enough=passed: between.num_bytes > enough)
            between.cut()
            between.restore()
        event = cohort.next_event(60)
    assert np.array_equal(event.update.vector, vector + np.float32(1))
    assert echo.asked == 1
    assert between.num_connections == 3


# ---- another process


def test_a_site_that_is_started_again_is_restored_and_the_bits_stay_the_same(tmp_path):
    specs = [replace(spec, state_folder=str(tmp_path / spec.name)) for spec in SPECS]

    def stop():
        threading.Thread(target=replaced).start()
        wait_until(lambda: not hub.is_connected("site-1"))

    def replaced():
        first.stop()
        second.start()

    plain = SyntheticTask()
    with hub_of(["site-1", "site-2"]) as hub:
        first = agent("site-1", hub.port, specs[:1], Interrupted(at=10, happens=stop))
        second, other = agent("site-1", hub.port, specs[:1]), agent("site-2", hub.port, specs[1:])
        first.start()
        with running(other):
            records = records_of(cohort_of(hub, specs, plain))
        second.stop()
    assert bits(records) == bits(undisturbed())
    assert [name for record in records for name, _ in record.restarts] == ["silo-1"]
    assert [record.failures for record in records] == [()] * 7


def test_a_silo_whose_process_dies_at_its_site_is_started_again_there(tmp_path):
    specs = [replace(spec, state_folder=str(tmp_path / spec.name)) for spec in SPECS]

    class Dying(OwnHosts):
        def __call__(self, invited):
            host = super().__call__(invited)
            if len(self.made) == 1:
                inner, calls = host.fit, []

                def fit(*args):
                    calls.append(args)
                    if len(calls) == 3:
                        raise HostLost
                    return inner(*args)

                host.fit = fit
            return host

    hosts = Dying(specs[:1], SyntheticTask())
    with hub_of(["site-1", "site-2"]) as hub:
        one, other = agent("site-1", hub.port, [], make_host=hosts), agent("site-2", hub.port, specs[1:])
        with running(one, other):
            records = records_of(cohort_of(hub, specs, SyntheticTask()))
    assert bits(records) == bits(undisturbed())
    assert [(record.server_round, name) for record in records for name, _ in record.restarts] == [(3, "silo-1")]
    assert hosts.made == ["silo-1", "silo-1"]


def test_a_site_that_is_lost_between_two_jobs_gets_one_fresh_start():
    with hub_of(["site-1", "site-2"]) as hub:
        first, second = agent("site-1", hub.port, SPECS[:1]), agent("site-1", hub.port, SPECS[:1])
        first.start()
        with running(agent("site-2", hub.port, SPECS[1:])):
            cohort = cohort_of(hub, SPECS, SyntheticTask())
            coordinator = Coordinator(cohort, SyntheticTask(), NAMES)
            coordinator.agree()
            before = list(coordinator.run(job()))
            first.stop()
            second.start()
            after = list(coordinator.run(replace(job(), name="again")))
            second.stop()
    assert bits(after) == bits(before)


def test_a_hub_that_is_killed_and_started_again_goes_on_with_a_resumed_run(tmp_path):
    specs = [replace(spec, state_folder=str(tmp_path / spec.name)) for spec in SPECS]
    whole = undisturbed()
    task = SyntheticTask()
    with hub_of(["site-1", "site-2"]) as hub, relay(hub.port) as one:
        hosts = OwnHosts(specs, task)
        agents = [agent(site_of(name), one.port, [], make_host=hosts) for name in NAMES]
        with running(*agents):
            coordinator = Coordinator(cohort_of(hub, specs, task), task, NAMES)
            coordinator.agree()
            rounds = coordinator.run(job())
            before = [next(rounds) for _ in range(4)]
            one.cut()  # nothing that the first hub says at its end comes to the sites
            wait_until(lambda: not hub.is_connected("site-1") and not hub.is_connected("site-2"))
            with hub_of(["site-1", "site-2"]) as another:
                one.target = ("127.0.0.1", another.port)
                one.restore()
                resumed = Coordinator(cohort_of(another, specs, task), task, NAMES)
                resumed.agree()
                after = list(resumed.run(job(), before[-1].server_round, before[-1].state))
    assert bits(before) + bits(after) == bits(whole)
    assert sorted(hosts.made) == ["silo-1", "silo-1", "silo-2", "silo-2"]


# ---- sites that are not there


def test_a_site_that_does_not_come_is_named_in_the_log_and_then_in_an_error(caplog, monkeypatch):
    monkeypatch.setattr("ray_fed.sites.hub.SAY_AFTER_SECONDS", 0.1)
    caplog.set_level(logging.WARNING)
    with hub_of(["site-1", "site-2"]) as hub, running(agent("site-1", hub.port, SPECS[:1])):
        cohort = cohort_of(hub, SPECS, SyntheticTask(), start=StartRules(timeout=2.5))
        with pytest.raises(SiloFailed, match=r"silo 'silo-2' .*its site 'site-2' has not connected within 2.5 s"):
            cohort.open()
    said = [line for line in caplog.messages if line.startswith("waiting for site")]
    assert said
    assert all("'site-2'" in line for line in said)


def test_a_late_site_takes_part_from_the_round_after_it_came():
    task = Interrupted(at=10, happens=lambda: late.start() and wait_until(lambda: hub.is_connected("site-2")))
    start = StartRules(timeout=0.2, may_be_late=frozenset({"silo-2"}))
    with hub_of(["site-1", "site-2"]) as hub:
        late = agent("site-2", hub.port, SPECS[1:])
        with running(agent("site-1", hub.port, SPECS[:1], task)):
            cohort = cohort_of(hub, SPECS, SyntheticTask(), start=start)
            records = []
            coordinator = Coordinator(cohort, SyntheticTask(), NAMES)
            agreement = coordinator.agree()
            for record in coordinator.run(job(plan=replace(PLAN, epochs=60, num_rounds=60))):
                records.append(record)
        late.stop()
    assert list(agreement.silos) == ["silo-1"]
    came = [record.server_round for record in records if record.joined]
    assert len(came) == 1
    assert [record.participants for record in records[1 : came[0] + 1]] == [NAMES[:1]] * came[0]
    assert [record.participants for record in records[came[0] + 1 :]] == [NAMES] * (60 - came[0])
    assert records[1].failures == (("silo-2", "its site 'site-2' has not connected yet"),)


def test_a_late_site_that_does_not_fit_is_refused_and_the_run_goes_on():
    other = SyntheticTask(says="other tables")
    start = StartRules(timeout=0.2, may_be_late=frozenset({"silo-2"}))
    with hub_of(["site-1", "site-2"]) as hub:
        late = agent("site-2", hub.port, SPECS[1:], other)
        with running(agent("site-1", hub.port, SPECS[:1])):
            coordinator = Coordinator(cohort_of(hub, SPECS, SyntheticTask(), start=start), SyntheticTask(), NAMES)
            coordinator.agree()
            late.start()
            wait_until(lambda: hub.is_connected("site-2"))
            records = list(coordinator.run(job(plan=replace(PLAN, epochs=100, num_rounds=100))))
        late.stop()
    assert all(record.participants == NAMES[:1] for record in records[1:])
    assert "its task is 'other tables'" in dict(records[-1].failures)["silo-2"]


def test_hosts_are_ended_when_the_cohort_is_closed():
    ended = []
    with hub_of(["site-1"]) as hub, running(agent("site-1", hub.port, SPECS[:1], end_host=ended.append)):
        cohort = cohort_of(hub, SPECS[:1], SyntheticTask())
        cohort.open()
        cohort.close()
        assert len(ended) == 1
        with pytest.raises(SiloFailed, match="has not been invited"):
            cohort.moments(["silo-1"])


def test_what_takes_a_cancellation_for_its_own_is_cancelled_again():
    taken = []

    async def stubborn():
        while len(taken) < 2:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                taken.append("a cancellation")
        await asyncio.sleep(60)

    async def ended():
        task = asyncio.create_task(stubborn())
        await asyncio.sleep(0)
        await link.end(task)
        return task.cancelled()

    assert asyncio.run(ended())
    assert len(taken) == 2


# ---- who may connect


def refusal(caplog, *agents, says, hub=None):
    caplog.set_level(logging.WARNING)
    with running(*agents):
        wait_until(lambda: any(says in line for line in caplog.messages))
    assert hub is None or not any(map(hub.is_connected, hub.sites))


def test_a_site_with_the_certificate_of_another_site_is_refused(caplog):
    with hub_of(["site-1", "site-2"]) as hub:
        impostor = agent("site-1", hub.port, [], own=certificates("site-2"))
        refusal(caplog, impostor, says="'site-1' refused: its certificate is made out to 'site-2'", hub=hub)


def test_a_site_that_the_hub_does_not_know_is_refused(caplog):
    with hub_of(["site-1"]) as hub:
        stranger = agent("stranger", hub.port, [])
        refusal(caplog, stranger, says="'stranger' refused: this hub does not know a site of that name", hub=hub)


def test_a_site_with_another_key_than_the_pinned_one_is_refused(caplog):
    with hub_of({"site-1": certificates("site-2").key_hash()}) as hub:
        refusal(caplog, agent("site-1", hub.port, []), says="another public key than the one pinned", hub=hub)


def test_a_pinned_key_is_enough_whatever_name_the_certificate_has():
    own = certificates("n-17.example")
    with hub_of({"north": own.key_hash()}) as hub:
        site = agent("north", hub.port, SPECS, own=own)
        with running(site):
            assert hub.wait_for(["north"], 20) == []


def test_a_certificate_of_another_authority_gets_no_connection(caplog):
    with hub_of(["site-1"]) as hub:
        refusal(caplog, agent("site-1", hub.port, [], own=certificates("site-1", of=1)), says="no connection", hub=hub)


def test_without_a_certificate_there_is_no_connection():
    with hub_of(["site-1"]) as hub:
        credentials = grpc.ssl_channel_credentials(certificates("hub").authorities)
        with grpc.secure_channel(f"127.0.0.1:{hub.port}", credentials) as channel:
            ready = grpc.channel_ready_future(channel)
            with pytest.raises(grpc.FutureTimeoutError):
                ready.result(timeout=1.0)
            ready.cancel()


def test_a_hub_with_another_name_than_its_address_is_not_trusted(caplog):
    with hub_of(["site-1"]) as hub:
        address = HubAddress(f"127.0.0.1:{hub.port}", server_name="hub.example")
        refusal(caplog, agent("site-1", 0, [], hub=address), says="no connection", hub=hub)


def test_a_hub_whose_key_is_not_the_pinned_one_gets_no_answer(caplog):
    with hub_of(["site-1"]) as hub:
        address = HubAddress(f"127.0.0.1:{hub.port}", key_hash=certificates("other").key_hash())
        site = agent("site-1", 0, SPECS[:1], hub=address)
        refusal(caplog, site, says="it is not the hub whose public key is pinned")
        assert site._places == {}


def test_a_hub_proves_the_pinned_key():
    with hub_of(["site-1"]) as hub:
        address = HubAddress(f"127.0.0.1:{hub.port}", key_hash=certificates("hub").key_hash())
        with running(agent("site-1", 0, SPECS[:1], hub=address)):
            assert hub.wait_for(["site-1"], 20) == []


def test_a_proof_holds_for_one_site_one_nonce_and_one_key():
    hub, other = certificates("hub"), certificates("other")
    proof = link.proof_of(hub, "nonce", "site's key")
    assert link.is_proof(proof, hub.certificate, "nonce", "site's key")
    assert not link.is_proof(proof, hub.certificate, "nonce", "another key")
    assert not link.is_proof(proof, hub.certificate, "another nonce", "site's key")
    assert not link.is_proof(proof, other.certificate, "nonce", "site's key")


def test_a_second_process_of_a_site_is_refused_while_the_first_is_connected(caplog):
    with hub_of(["site-1"]) as hub, running(agent("site-1", hub.port, SPECS[:1])):
        assert hub.wait_for(["site-1"], 20) == []
        refusal(caplog, agent("site-1", hub.port, []), says="another process of this site is connected; stop one")
        assert hub.is_connected("site-1")


def test_another_version_of_the_protocol_is_refused_with_both_numbers(caplog, monkeypatch):
    with hub_of(["site-1"]) as hub:
        monkeypatch.setattr("ray_fed.sites.agent.PROTOCOL", 77)
        refusal(caplog, agent("site-1", hub.port, []), says=f"it speaks protocol 77, this hub {wire.PROTOCOL}", hub=hub)


def test_a_site_reaches_the_hub_through_a_proxy():
    with hub_of(["site-1"]) as hub, relay(0, ConnectProxy) as proxy:
        address = HubAddress(f"localhost:{hub.port}", proxy=f"127.0.0.1:{proxy.port}")
        with running(agent("site-1", 0, SPECS[:1], hub=address)):
            cohort = cohort_of(hub, SPECS[:1], SyntheticTask())
            assert cohort.open()["silo-1"].num_examples == 40
        assert proxy.asked == [f"CONNECT localhost:{hub.port}"]


def test_a_port_that_is_taken_is_refused_by_its_address():
    with hub_of([]) as hub:
        second = Hub(f"127.0.0.1:{hub.port}", certificates("hub"), {})
        with pytest.raises(ConfigError, match=f"127.0.0.1:{hub.port}: the port is taken"):
            second.start()


def test_silos_at_sites_that_the_hub_does_not_know_are_refused():
    with hub_of(["site-1"]) as hub, pytest.raises(ConfigError, match="silo 'a': the hub knows no site 'site-9'"):
        SiteCohort(hub, [SiteSilo("site-9", invitation("a"))], SyntheticTask())


# ---- sites that break the rules


def hostile(hub, name, frames, answers=1):
    """Connect with the certificate of a site, send frames, return why the hub ended it."""
    own = certificates(name)
    hello = Hello(protocol=wire.PROTOCOL, site=name, incarnation="x")
    first = next(link.frames(hello, wire.Encoded(b"")))
    channel = grpc.secure_channel(f"127.0.0.1:{hub.port}", link.channel_credentials(own), link.channel_options())
    with channel:
        go = threading.Event()

        def sent():
            yield first
            go.wait()
            yield from frames
            threading.Event().wait(5)

        call = channel.stream_stream(f"/{link.SERVICE}/{link.METHOD}")(sent())
        try:
            for number, _ in enumerate(call):
                if number + 1 == answers:
                    go.set()
        except grpc.RpcError as error:
            return error.details()
    return None


def framed(header, payload=b""):
    return list(link.frames(header, wire.Encoded(b"", (memoryview(payload),) if payload else (), len(payload))))


BAD = {
    "noise": ([os.urandom(300)], "a header that is longer than its frame"),
    "nothing": ([b""], "a frame without a header"),
    "half a header": ([b"\xff\xff\xff\x00abc"], "a header that is longer than its frame"),
    "no msgpack": ([link.LENGTH.pack(4) + b"\xc1\xc1\xc1\xc1"], "no header"),
    "deep": ([link.LENGTH.pack(20000) + b"\x91" * 20000], "no header"),
    "an answer to nothing": (framed(wire.Answer(call=5, kind="done")), "an answer to call 5, which is not open"),
    "a call": (framed(wire.Ask(call=1, silo="a")), "a message that is no answer"),
    "a terabyte": ([link.LENGTH.pack(len(raw)) + raw for raw in [encode_header(
        wire.Answer(call=1, kind="description", num_bytes=2**40))]], "1099511627776 bytes while opening its data"),
    "another kind": (framed(wire.Answer(call=1, kind="update")), "an answer of another kind than was asked for"),
    "a body of noise": (framed(wire.Answer(call=1, kind="description", body=b"\x93\x01\x02")), "no SiloDescription"),
}  # fmt: skip


@pytest.mark.parametrize("kind", list(BAD))
def test_what_is_no_answer_fails_its_site_by_name_and_nobody_else(kind):
    frames, says = BAD[kind]
    with hub_of(["bad", "site-1"]) as hub, running(agent("site-1", hub.port, SPECS[:1])):
        bad = SiteCohort(hub, [SiteSilo("bad", invitation("victim"))], SyntheticTask())
        good = cohort_of(hub, SPECS[:1], SyntheticTask())
        good.open()
        asked = bad._call("victim", requests.OpenRequest())
        reason = hostile(hub, "bad", frames, answers=2)
        assert reason.startswith("site 'bad' sent ")
        assert says in reason
        assert "silo 'victim' failed" in str(asked.result(20))
        assert good.moments(["silo-1"])["silo-1"].num_examples == 40


def test_an_answer_given_twice_fails_the_site_that_gave_it():
    done = framed(wire.Answer(call=1, kind="done", body=b"\xc0"))
    with hub_of(["bad"]) as hub:
        bad = SiteCohort(hub, [SiteSilo("bad", invitation("victim"))], SyntheticTask())
        asked = bad._call("victim", requests.PrepareRequest(None))
        reason = hostile(hub, "bad", done + done, answers=2)
        assert asked.result(20) is None
        assert reason == "site 'bad' sent an answer to call 1, which is not open"


def test_a_message_that_does_not_go_on_is_broken_off(monkeypatch):
    monkeypatch.setattr(link, "STALL_SECONDS", 0.2)
    start = next(link.frames(wire.Answer(call=1, kind="moments", num_bytes=4 << 20), wire.Encoded(b"")))
    with hub_of(["bad"]) as hub:
        bad = SiteCohort(hub, [SiteSilo("bad", invitation("victim"))], SyntheticTask())
        asked = bad._call("victim", requests.MomentsRequest())
        assert hostile(hub, "bad", [start], answers=2) == "site 'bad' sent a message that does not go on"
        assert "does not go on" in str(asked.result(20))


def test_a_site_that_breaks_the_rules_in_a_round_costs_its_own_update_only():
    """It may come back, and is asked again in the next round."""

    class Misnamed(OwnHosts):
        def __call__(self, invited):
            host = super().__call__(invited)
            inner = host.fit

            def fit(session, server_round, vector):
                update = inner(session, server_round, vector)
                return replace(update, session="x" * 5000) if server_round == 2 else update

            host.fit = fit
            return host

    with hub_of(["site-1", "site-2"]) as hub:
        bad = agent("site-1", hub.port, [], make_host=Misnamed(SPECS[:1], SyntheticTask()))
        with running(bad, agent("site-2", hub.port, SPECS[1:])):
            records = records_of(cohort_of(hub, SPECS, SyntheticTask()), the_job=job(rules=RoundRules()))
    assert [record.participants for record in records[1:]] == [NAMES, NAMES[1:], NAMES, NAMES, NAMES, NAMES]
    assert "site 'site-1' sent no Update (a text of 5000 characters" in dict(records[2].failures)["silo-1"]


def test_events_of_a_lost_silo_come_once():
    with hub_of(["site-1"]) as hub:
        first, second = agent("site-1", hub.port, SPECS[:1]), agent("site-1", hub.port, SPECS[:1])
        first.start()
        cohort = cohort_of(hub, SPECS[:1], SyntheticTask())
        cohort.open()
        cohort.prepare(None)
        first.stop()
        second.start()
        wait_until(cohort.is_waiting)
        assert cohort.next_event(20) == Died("silo-1", "its site's process was started again")
        assert cohort.next_event(0.3) is None
        cohort.restart("silo-1")
        assert cohort.next_event(20) == Restarted("silo-1")
        assert not cohort.is_waiting()
        second.stop()
