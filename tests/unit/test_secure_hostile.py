"""One hostile silo of four under secure aggregation: it fails by name, the rest has the bits of a round without it."""

import os
from dataclasses import dataclass, replace

import numpy as np
import pytest

from ray_fed.errors import QuorumLost
from ray_fed.federation.cohort import LocalCohort
from ray_fed.federation.messages import Artifact
from ray_fed.perimeter.coordinator_record import CoordinatorRecord
from ray_fed.privacy.secure_sum.member import _complaint, _signed_keys
from ray_fed.privacy.secure_sum.sealed import SealedShares
from ray_fed.privacy.secure_sum.wire import as_bytes, of_bytes
from tests.synthetic import SyntheticTask
from tests.unit.test_secure_rounds import NAMES, SPECS, Failing, bits, run

HOSTILE = "silo-2"
HONEST = tuple(name for name in NAMES if name != HOSTILE)


class Hostile(LocalCohort):
    """One silo answers one question of round 2, of its training, with something else."""

    def __init__(self, question, change):
        super().__init__(SPECS, SyntheticTask())
        self.lies = {question: change}

    def query(self, question, given):
        answers = super().query(question, given)
        asked = {parts[:2] for parts in given.values()}
        if question in self.lies and asked == {("federated", 2)} and HOSTILE in answers:
            member = self.silos[HOSTILE].secure._members["federated"]
            answers[HOSTILE] = self.lies[question](answers[HOSTILE], member)
        return answers

    def next_event(self, timeout=None):
        event = super().next_event(timeout)
        if "fit" in self.lies and getattr(event, "server_round", 0) == 2 and event.silo == HOSTILE:
            return replace(event, update=self.lies["fit"](event.update, None))
        return event


def raw(text):
    return lambda answer, _: replace(answer, data=np.frombuffer(text, np.uint8))


def said(change):
    return lambda answer, member: replace(answer, data=as_bytes(change(of_bytes(answer.data), member)))


def resigned(change):
    """Other keys, signed as they should be."""

    def give(parts, member):
        parts = parts | change
        signed = _signed_keys(HOSTILE, "federated", 2, parts["channel"], parts["mask"])
        return parts | {"signature": bytes.fromhex(member.signer.sign(signed))}

    return said(give)


def sealed_noise(*receivers):
    """Signed shares that do not open."""

    def seal(parts, member):
        for to in receivers:
            way = member._way(HOSTILE, to)
            parts[to] = SealedShares.signed(member.signer, way, os.urandom(132), os.urandom(148)).to_bytes()
            member._dealt[to] = parts[to], os.urandom(132)
        return parts

    return said(seal)


MALFORMED = {
    "lists in lists": raw(b"[" * 100_000),
    "objects in objects": raw(b'{"a":' * 100_000),
    "a list": raw(b"[1]"),
    "numbers": raw(b'{"channel": 1}'),
    "no hexadecimal": raw(b'{"channel": "xy"}'),
    "no JSON": raw(os.urandom(100)),
    "nothing": raw(b""),
    "a number of 5,000 digits": raw(b'{"a":' + b"9" * 5000 + b"}"),
    "another dtype": lambda answer, _: replace(answer, data=np.ones((3, 3))),
    "objects of Python": lambda answer, _: replace(answer, data=np.array([object()])),
    "no array": lambda answer, _: replace(answer, data=b"{}"),
    "another answer": lambda answer, _: replace(answer, what="secure_other"),
    "another silo's": lambda answer, _: replace(answer, silo="silo-1"),
    "facts": lambda answer, _: replace(answer, facts={"row": 1.0}),
    "no answer": lambda *_: None,
    "a number": lambda *_: 5,
    "a subclass": lambda answer, _: Dressed(answer.silo, answer.what, answer.num_examples, answer.facts, answer.data),
    "100 MB": lambda answer, _: replace(answer, data=np.zeros(100_000_000, np.uint8)),
}


@dataclass(frozen=True)
class Dressed(Artifact):
    """What a subclass does when it is looked at is its own affair."""


KEYS = {
    "a short key": resigned({"mask": b""}),
    "a key of low order": resigned({"mask": bytes(32)}),
    "another key of low order": resigned({"channel": (1).to_bytes(32, "little")}),
    "one key twice": lambda answer, member: resigned({"mask": of_bytes(answer.data)["channel"]})(answer, member),
    "a key that is not signed": said(lambda parts, _: parts | {"mask": b"1" * 32}),
    "one part too many": said(lambda parts, _: parts | {"more": b""}),
    "one part too few": said(lambda parts, _: {"mask": parts["mask"]}),
    "keys of nobody": said(lambda *_: {}),
}


SHARES = {
    "a share too few": said(lambda parts, _: {to: text for to, text in parts.items() if to != "silo-1"}),
    "a share for nobody": said(lambda parts, _: parts | {"silo-9": parts["silo-1"]}),
    "noise": said(lambda parts, _: {to: os.urandom(len(text)) for to, text in parts.items()}),
    "short shares": said(lambda parts, _: {to: text[:10] for to, text in parts.items()}),
    "shares for one another": said(lambda parts, _: parts | {"silo-1": parts["silo-3"]}),
    "signed noise for all": sealed_noise(*HONEST),
    "signed noise for one": sealed_noise("silo-1"),
}
FIT = {
    "another shape": lambda update, _: replace(update, ring=update.ring[:-1]),
    "another dtype": lambda update, _: replace(update, ring=update.ring.astype(np.float64)),
    "no array": lambda update, _: replace(update, ring=[1]),
    "nothing": lambda *_: None,
    "seconds that are none": lambda update, _: replace(update, seconds=float("nan")),
    "another round": lambda update, _: replace(update, server_round=1),
}
BEFORE_THE_SUM = [
    *(("secure_keys", name, change) for name, change in {**MALFORMED, **KEYS}.items()),
    *(("secure_shares", name, change) for name, change in {**MALFORMED, **SHARES}.items()),
    *(("secure_deliver", name, change) for name, change in MALFORMED.items()),
    *(("fit", name, change) for name, change in FIT.items()),
]
UNMASK = {
    "noise": said(lambda parts, _: {name: os.urandom(len(share)) for name, share in parts.items()}),
    "a share too few": said(lambda parts, _: {name: share for name, share in parts.items() if name != "silo-1"}),
    "short shares": said(lambda parts, _: dict.fromkeys(parts, b"1")),
    "one bit": said(lambda parts, _: parts | {"silo-3": bytes([parts["silo-3"][0] ^ 1]) + parts["silo-3"][1:]}),
}
AFTER_THE_SUM = [
    *(("secure_agree", name, change) for name, change in MALFORMED.items()),
    *(("secure_unmask", name, change) for name, change in {**MALFORMED, **UNMASK}.items()),
]


def named(cases):
    return pytest.mark.parametrize(
        ("question", "change"), [each[::2] for each in cases], ids=[f"{each[0]}: {each[1]}" for each in cases]
    )


@pytest.fixture(scope="module")
def without_the_hostile():
    return bits(run(0, Failing(SPECS, SyntheticTask(), phase="fit", silo=HOSTILE)))


@pytest.fixture(scope="module")
def with_all():
    return bits(run())


@named(BEFORE_THE_SUM)
def test_a_hostile_silo_is_left_out_by_name_and_the_rest_has_its_bits(question, change, without_the_hostile):
    records = run(3, Hostile(question, change), observers=[CoordinatorRecord(SyntheticTask())])
    assert records[2].participants == HONEST
    [(silo, reason)] = records[2].failures
    assert silo == HOSTILE
    assert reason
    assert len(reason) < 500
    assert records[3].participants == NAMES
    assert bits(records) == without_the_hostile


@named(AFTER_THE_SUM)
def test_a_hostile_silo_that_is_in_the_sum_is_named_and_its_help_is_not_needed(question, change, with_all):
    records = run(3, Hostile(question, change), observers=[CoordinatorRecord(SyntheticTask())])
    assert records[2].participants == NAMES
    assert [silo for silo, _ in records[2].failures] == [HOSTILE]
    assert records[3].failures == ()
    assert bits(records) == with_all


def test_garbage_shares_name_their_sender_and_who_could_not_open_them():
    records = run(3, Hostile("secure_shares", sealed_noise("silo-1", "silo-4")))
    assert records[2].failures == (
        (HOSTILE, "update refused: secure aggregation: the shares that it dealt to silo-1, silo-4 do not open"),
    )


def test_a_silo_that_complains_of_honest_shares_leaves_nobody_out(with_all):
    asked = []

    class Complaining(Hostile):
        def query(self, question, given):
            asked.append(question)
            if question == "secure_deliver" and HOSTILE in given:
                self.delivered = of_bytes(given[HOSTILE][2])
            return super().query(question, given)

    def complain(_, member):
        return {
            name: bytes.fromhex(member.signer.sign(_complaint("federated", 2, name, sealed)))
            for name, sealed in cohort.delivered.items()
        }

    cohort = Complaining("secure_deliver", said(complain))
    records = run(3, cohort)
    assert asked.count("secure_show") == 1
    assert records[2].participants == NAMES
    assert bits(records) == with_all


def test_a_complaint_that_nobody_signed_is_none(with_all):
    records = run(3, Hostile("secure_deliver", said(lambda *_: dict.fromkeys([*HONEST, "silo-9"], bytes(64)))))
    assert bits(records) == with_all


def test_shares_that_were_shown_still_unmask(with_all):
    """A silo that could not open another's shares is helped by that one: it showed them, and they are what it dealt."""

    def noise_then_truth(parts, member):
        way, both = member._way(HOSTILE, "silo-1"), member._dealt["silo-1"][1]
        sealed = SealedShares.signed(member.signer, way, both, bytes(148))
        member._dealt["silo-1"] = sealed.to_bytes(), both
        return parts | {"silo-1": sealed.to_bytes()}

    records = run(3, Hostile("secure_shares", said(noise_then_truth)))
    assert records[2].participants == NAMES
    assert records[2].failures == ()
    assert bits(records) == with_all


def test_below_the_threshold_the_hostile_silo_is_named():
    with pytest.raises(QuorumLost, match=r"3 silos gave keys.* needs 4; silo 'silo-2': .*cannot be read"):
        run(4, Hostile("secure_keys", MALFORMED["lists in lists"]))
