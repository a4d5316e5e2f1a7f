"""A site with changed code answers everything with anything: it fails by name, and nobody else notices."""

import resource
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ray_fed.errors import FedError
from ray_fed.federation.cohort import LocalCohort
from ray_fed.federation.coordinator import Coordinator
from ray_fed.federation.messages import Arrived, Died, Raised
from ray_fed.federation.rounds.job import Job
from ray_fed.federation.rounds.machine import RoundRules
from ray_fed.learning.trainer import TrainingPlan
from ray_fed.sites import agent as agent_module
from ray_fed.sites import link
from ray_fed.sites.agent import HubAddress, SiteAgent
from ray_fed.sites.answers import ANSWERS, answer_form
from ray_fed.sites.asking import SiteSilo
from ray_fed.sites.cohort import SiteCohort
from ray_fed.sites.hub import Lost
from ray_fed.sites.requests import FitRequest
from ray_fed.sites.wire import MAX_BODY_BYTES, Answer, Encoded, encode
from tests.sites import OwnHosts, agent, certificates, cohort_of, hub_of, invitation
from tests.synthetic import SyntheticTask, silos
from tests.unit.test_site_connections import bits, running, wait_until
from tests.unit.test_site_wire import MESSAGES, REQUESTS, VALUES

PLAN = TrainingPlan(seed=0, epochs=2, steps_per_epoch=2, num_rounds=2, learning_rate=0.01)
SPECS = silos(30, 40, 50, held_out=12)
NAMES = tuple(spec.name for spec in SPECS)
LIMIT_SECONDS = 20
"""Of one answer: a bound that says that it comes to an end, not how fast."""
MOST_BYTES = 1 << 29
SILENT = "silent"


class Liar(SiteAgent):
    """Runs the protocol as a site does, up to the answers: `lies` makes them of a call and the honest answer."""

    lies: Callable[..., Any]

    def _answer(self, place, header, request):
        honest = super()._answer(place, header, request)
        return self.lies(header, request, honest)

    def _keep(self, call, answer):
        if answer is SILENT:
            self._open.discard(call)
        elif isinstance(answer, list):
            for number, each in enumerate(answer):
                super()._keep(call if number == 0 else -1000 * call - number, each)
        else:
            super()._keep(call, answer)


def liar(site, port, specs=(), make_host=None):
    hosts = make_host or OwnHosts(specs, SyntheticTask())
    return Liar(site, HubAddress(f"127.0.0.1:{port}"), certificates(site), hosts)


# ---- what it may say

HONEST = [answer_form(message, "a") for message in MESSAGES]
NESTED = msgspec.msgpack.encode({"silo": "a", "unreadable": {}}).replace(b"\x80", b"\x91" * 3000 + b"\x90")


@st.composite
def bodies(draw):
    """(kind, body, payload) of some honest message, perhaps with a field of anything, or of no message at all."""
    kind, form = draw(st.sampled_from(HONEST))
    encoded = encode(form)
    body, payload = encoded.body, b"".join(encoded.pieces)
    fields = msgspec.msgpack.decode(body)
    way = draw(st.sampled_from(["as it is", "a field", "another silo", "noise", "nested", "long", "half"]))
    if way == "a field" and isinstance(fields, dict):
        fields[draw(st.sampled_from([*fields, "new"]))] = draw(VALUES)
        body = msgspec.msgpack.encode(fields)
    elif way == "another silo" and isinstance(fields, dict):
        body = msgspec.msgpack.encode(fields | {"silo": draw(st.sampled_from(["victim", "b", "x" * 3000, "\x1b[2J"]))})
    elif way in ("noise", "nested", "long", "half"):
        body = {"noise": draw(st.binary(max_size=200)), "nested": NESTED, "long": bytes(MAX_BODY_BYTES + 1)}.get(
            way, body[: len(body) // 2]
        )
    return kind, body, payload


@st.composite
def lies(draw):
    """What stands in an honest answer's place: (kind, call relative to the one asked, body, payload, bytes that it says
    its payload has, how often it comes), or silence."""
    if draw(st.integers(0, 9)) == 0:
        return SILENT
    kind, body, payload = draw(bodies())
    kind = draw(st.sampled_from([None, kind, kind, *ANSWERS, "x" * 500, ""]))  # None: one that was asked for
    call = draw(st.sampled_from([0, 0, 0, 0, -1, 1, 2**52]))
    num_bytes = draw(st.sampled_from([len(payload)] * 4 + [0, 8, 1 << 22, 2**40, 2**53]))
    payload = draw(st.sampled_from([payload] * 4 + [b"", bytes(1 << 21)]))
    return kind, call, body, payload, num_bytes, draw(st.sampled_from([1, 1, 1, 3]))


def told(lie, header, request):
    if lie == SILENT:
        return SILENT
    kind, call, body, payload, num_bytes, times = lie
    kind = kind if kind is not None else request.answers[0]
    answer = Answer(call=max(0, header.call + call), kind=kind, body=body, num_bytes=num_bytes)
    return [(answer, Encoded(body, (memoryview(payload),) if payload else (), len(payload)))] * times


# ---- every verb, every answer


@pytest.fixture(scope="module")
def there():
    with pytest.MonkeyPatch.context() as changed:
        changed.setattr(link, "STALL_SECONDS", 0.3)
        changed.setattr(agent_module, "FIRST_PAUSE_SECONDS", 0.01)
        changed.setattr(agent_module, "LONGEST_PAUSE_SECONDS", 0.05)
        with hub_of(["bad", "site-1"]) as hub:
            bad = liar("bad", hub.port, make_host=lambda _: None)
            with running(bad, agent("site-1", hub.port, SPECS[:1])):
                good = cohort_of(hub, SPECS[:1], SyntheticTask())
                good.open()
                yield hub, bad, good


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(request_=st.sampled_from(REQUESTS), lie=lies())
def test_whatever_a_site_answers_it_fails_by_name_and_the_hub_and_the_others_go_on(there, request_, lie):
    hub, bad, good = there
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    bad.lies = lambda header, request, _: told(lie, header, request)
    hub.wait_for(["bad"], LIMIT_SECONDS)
    cohort = SiteCohort(hub, [SiteSilo("bad", invitation("victim"))], SyntheticTask(), answer_timeout=1.0)
    outcome = outcome_of(cohort, request_)
    if isinstance(outcome, FedError):
        assert "'victim'" in str(outcome)
        assert str(outcome).isprintable()
        assert len(str(outcome)) < 2500
    else:
        kinds = tuple(ANSWERS[kind] for kind in request_.answers)
        assert isinstance(outcome, (Lost, dict, str, *kinds))
        assert getattr(outcome, "silo", "victim") == "victim"
    assert good.moments(["silo-1"])["silo-1"].num_examples == 30
    cohort._release_used()
    wait_until(lambda: hub._budget.held == 0)
    assert 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) < MOST_BYTES
    bad._kept.clear()


def outcome_of(cohort, request_):
    """Return what the call came to; of a round, what its event says."""
    if isinstance(request_, FitRequest):
        cohort.submit("s", request_.server_round, {"victim": request_.vector})
        event = cohort.next_event(1.0)
        cohort.close_session("s", [])
        if isinstance(event, Arrived):
            return event.update
        said = event.reason if isinstance(event, Raised | Died) else "late"
        return FedError(f"'victim': {said}")
    try:
        return cohort._answer_of("victim", request_, cohort.answer_timeout)
    except FedError as error:
        return error


# ---- a site that begins to lie in mid-run


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(lie=lies(), verb=st.sampled_from(["fit", "evaluate", "close_session", "ledger"]), which=st.sampled_from([1, 2]))
def test_a_site_that_begins_to_lie_costs_the_round_its_own_part_and_no_more(lie, verb, which):
    asked = []

    def lies_at(header, request, honest):
        asked.append(request.__struct_config__.tag)
        return told(lie, header, request) if asked[-1] == verb and asked.count(verb) == which else honest

    with pytest.MonkeyPatch.context() as changed, hub_of(["site-1", "site-2", "site-3"]) as hub:
        changed.setattr(link, "STALL_SECONDS", 0.3)
        changed.setattr(agent_module, "FIRST_PAUSE_SECONDS", 0.01)
        bad = liar("site-1", hub.port, SPECS[:1])
        bad.lies = lies_at
        with running(bad, *(agent(f"site-{number}", hub.port, [SPECS[number - 1]]) for number in (2, 3))):
            cohort = cohort_of(hub, SPECS, SyntheticTask(), answer_timeout=1.5)
            coordinator = Coordinator(cohort, SyntheticTask(), NAMES)
            coordinator.agree()
            records = list(coordinator.run(job(RoundRules(round_timeout=1.5))))
    assert all(set(NAMES[1:]) <= set(record.participants) for record in records[1:])
    assert {name for record in records for name, _ in record.failures} <= {"silo-1"}
    if verb != "fit":
        assert bits(records) == bits(undisturbed())


def job(rules):
    return Job("federated", NAMES, dict.fromkeys(NAMES, PLAN), 0, rules=rules)


def undisturbed():
    local = Coordinator(LocalCohort(SPECS, SyntheticTask()), SyntheticTask(), NAMES)
    local.agree()
    return list(local.run(job(RoundRules())))


def test_every_kind_of_answer_is_tried():
    assert {kind for kind, _ in HONEST} | {"failed"} == set(ANSWERS)
    assert np.all([len(request.answers) > 0 for request in REQUESTS])
