"""The chain of a ledger, its signatures, and what the comparison of two sides finds."""

import hashlib
import json
import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.ledger.coordinator_ledger import CoordinatorLedger, name_of_run
from ray_fed.errors import DataError, SiloFailed
from ray_fed.federation.messages import Update
from ray_fed.learning.layout import Layout
from ray_fed.perimeter.chain import read_chain
from ray_fed.perimeter.checks import digest_of
from ray_fed.perimeter.coordinator_record import SiloLedger, collected
from ray_fed.perimeter.ledger import GENESIS, Ledger, canonical_text, tensors_digest, vector_digest
from ray_fed.perimeter.lineage import lineage, origin_of
from ray_fed.perimeter.verification import compare
from ray_fed.privacy.signing import SigningKey, is_signed
from tests.ledgers import NAMES, finished_run, ledger_of, write_anew
from tests.synthetic import SyntheticTask


def ledger_at(folder, lines=10, sign_every=4):
    """A closed ledger of some updates."""
    key = SigningKey.at(folder / "signing.key")
    ledger = Ledger(folder / "l.jsonl", key, {"writer": "north", "run": "r"}, clock=lambda: 7.0, sign_every=sign_every)
    for number in range(lines):
        ledger.write({"kind": "update", "session": "s", "round": number, "sha256": f"{number:064x}", "bytes": 10})
    ledger.close()
    return ledger.path


# ---- keys


def test_a_key_is_made_once_and_its_owner_alone_can_read_it(tmp_path):
    first, second = SigningKey.at(tmp_path / "keys" / "k"), SigningKey.at(tmp_path / "keys" / "k")
    assert first.public == second.public
    assert (tmp_path / "keys" / "k").stat().st_mode & 0o777 == 0o600
    assert [path.name for path in (tmp_path / "keys").iterdir()] == ["k"]


def test_a_key_that_others_can_read_is_refused(tmp_path):
    SigningKey.at(tmp_path / "k")
    (tmp_path / "k").chmod(0o644)
    with pytest.raises(DataError, match="others can read this key; chmod 600"):
        SigningKey.at(tmp_path / "k")


def test_a_file_that_is_no_key_is_refused(tmp_path):
    (tmp_path / "k").write_bytes(b"short")
    (tmp_path / "k").chmod(0o600)
    with pytest.raises(DataError, match="holds 5 bytes, a key has 32"):
        SigningKey.at(tmp_path / "k")


def test_signatures_are_those_of_rfc_8032(tmp_path):
    """Section 7.1, test 2."""
    secret = bytes.fromhex("4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb")
    (tmp_path / "k").write_bytes(secret)
    (tmp_path / "k").chmod(0o600)
    key = SigningKey.at(tmp_path / "k")
    assert key.public == "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c"
    signature = key.sign(b"\x72")
    assert signature == (
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
        "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"
    )
    assert is_signed(b"\x72", signature, key.public)
    assert not is_signed(b"\x73", signature, key.public)
    assert not is_signed(b"\x72", "no hexadecimal", key.public)


# ---- the chain


def test_an_untouched_ledger_has_no_problems(tmp_path):
    chain = read_chain(ledger_at(tmp_path))
    assert chain.problems == ()
    assert chain.unsigned == 0
    assert [line["number"] for line in chain.lines] == list(range(1, len(chain.lines) + 1))
    assert (chain.writer, chain.run) == ("north", "r")
    assert len(chain.messages()) == 10


def test_each_line_holds_the_sha256_of_the_line_before(tmp_path):
    lines = ledger_at(tmp_path).read_bytes().splitlines()
    previous = [json.loads(line)["previous"] for line in lines]
    assert previous == [GENESIS, *(hashlib.sha256(line).hexdigest() for line in lines[:-1])]


def test_one_signature_stands_for_several_lines(tmp_path):
    chain = read_chain(ledger_at(tmp_path, lines=10, sign_every=4))
    assert [line["number"] for line in chain.of_kind("signature")] == [2, 7, 12, 15]


TAMPERING = {
    "changed": lambda lines: [*lines[:5], lines[5].replace(b'"bytes":10', b'"bytes":11'), *lines[6:]],
    "dropped": lambda lines: [*lines[:5], *lines[6:]],
    "swapped": lambda lines: [*lines[:4], lines[5], lines[4], *lines[6:]],
    "repeated": lambda lines: [*lines[:5], lines[4], *lines[5:]],
    "added": lambda lines: [*lines[:5], b'{"number":6,"previous":"","kind":"update"}', *lines[5:]],
    "first dropped": lambda lines: lines[1:],
    "no JSON": lambda lines: [*lines[:5], b"no line", *lines[6:]],
    "no mapping": lambda lines: [*lines[:5], b"[1]", *lines[6:]],
    "no number": lambda lines: [*lines[:5], lines[5].replace(b'"bytes":10', b'"bytes":NaN'), *lines[6:]],
    "other letters": lambda lines: [*lines[:5], lines[5].replace(b":", b": "), *lines[6:]],
    "nested": lambda lines: [*lines[:5], b"[" * 100_000, *lines[6:]],
    "emptied": lambda lines: lines[:0],
}


@pytest.mark.parametrize("how", TAMPERING)
def test_tampering_is_found(tmp_path, how):
    path = ledger_at(tmp_path)
    lines = path.read_bytes().splitlines()
    path.write_bytes(b"".join(line + b"\n" for line in TAMPERING[how](lines)))
    assert read_chain(path).problems != ()


@given(position=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_no_bit_of_a_ledger_can_be_flipped_unnoticed(tmp_path_factory, position, bit):
    path = ledger_at(tmp_path_factory.mktemp("flip"), lines=3, sign_every=2)
    content = bytearray(path.read_bytes())
    content[int(position * (len(content) - 1))] ^= 1 << bit  # the end of the last line is no part of it
    path.write_bytes(bytes(content))
    chain = read_chain(path)
    # A last signature that is no longer called one leaves its lines unsigned, as those of a killed writer are.
    assert chain.problems != () or chain.unsigned > 0


def rechained(lines, change):
    """A forger without the key: changes a line and makes the chain fit again."""
    previous, forged = GENESIS, []
    for line in lines:
        facts = change(json.loads(line)) | {"previous": previous}
        text = json.dumps(facts, separators=(",", ":")).encode()
        previous = hashlib.sha256(text).hexdigest()
        forged.append(text)
    return b"".join(line + b"\n" for line in forged)


def test_a_chain_that_was_made_to_fit_again_fails_at_its_signatures(tmp_path):
    path = ledger_at(tmp_path)
    path.write_bytes(rechained(path.read_bytes().splitlines(), lambda line: line | {"bytes": 0}))
    problems = read_chain(path).problems
    assert problems
    assert all("signature is not by the key" in problem for problem in problems)


def test_a_ledger_signed_anew_with_another_key_is_not_the_one_known(tmp_path):
    path = ledger_at(tmp_path)
    chain, other = read_chain(path), SigningKey.at(tmp_path / "other.key")
    assert not any("signed by the key" in text for text in compare(chain, [], {"north": chain.public_key}).problems)
    assert any("signed by the key" in text for text in compare(chain, [], {"north": other.public}).problems)


def test_lines_dropped_at_the_end_are_seen_as_unsigned_or_by_the_head(tmp_path):
    path = ledger_at(tmp_path, lines=10, sign_every=4)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:10]))
    chain = read_chain(path)
    assert chain.problems == ()
    assert chain.unsigned == 3


# ---- processes that end


def test_a_ledger_goes_on_where_an_earlier_process_ended(tmp_path):
    path = ledger_at(tmp_path)
    again = Ledger(path, SigningKey.at(tmp_path / "signing.key"), {"writer": "north", "run": "r"})
    assert again.total == 100
    again.write({"kind": "update", "bytes": 5})
    again.close()
    chain = read_chain(path)
    assert chain.problems == ()
    assert chain.of_kind("reopening")
    assert again.total == 105


@pytest.mark.parametrize("cut", [1, 20, 80])
def test_a_torn_last_line_is_cut_off_and_said_so(tmp_path, cut):
    path = ledger_at(tmp_path)
    content = path.read_bytes()
    os.truncate(path, len(content) - cut)
    Ledger(path, SigningKey.at(tmp_path / "signing.key"), {"writer": "north", "run": "r"}).close()
    chain = read_chain(path)
    assert chain.problems == ()
    assert chain.of_kind("reopening")[0]["torn_bytes_cut"] > 0


def test_a_damaged_ledger_is_not_gone_on_with(tmp_path):
    path = ledger_at(tmp_path)
    path.write_bytes(b"no line\n")
    with pytest.raises(DataError, match="is damaged"):
        Ledger(path, SigningKey.at(tmp_path / "signing.key"), {})


def test_a_disk_that_takes_nothing_lets_nothing_leave(tmp_path):
    path = ledger_at(tmp_path)
    ledger = Ledger(path, SigningKey.at(tmp_path / "signing.key"), {})
    os.dup2(os.open("/dev/full", os.O_WRONLY), ledger._handle)
    with pytest.raises(DataError, match="nothing leaves without a line"):
        ledger.write({"kind": "update"})


# ---- digests of messages


def test_both_ends_describe_a_message_alike():
    vector = np.arange(4, dtype=np.float32)
    sent, received = Update("n", "s", 1, vector, 3, 2, 0.5, 1.0), Update("n", "s", 1, vector.copy(), 3, 2, 0.5, 1.0)
    assert digest_of(sent) == digest_of(received)
    assert digest_of(sent).sha256 == hashlib.sha256(vector.tobytes()).hexdigest()
    assert digest_of(sent).norm == pytest.approx(14**0.5)


def test_a_message_of_no_known_kind_has_no_digest():
    with pytest.raises(TypeError, match="a list is no message"):
        digest_of([1])


@given(st.dictionaries(st.text(max_size=5), st.floats(allow_nan=False)))
def test_equal_messages_have_equal_texts_and_different_ones_do_not(values):
    assert canonical_text(values) == canonical_text(dict(reversed(values.items())))
    changed = {**values, "other key": 1.0}
    assert canonical_text(values) != canonical_text(changed)


def test_the_digest_of_tensors_does_not_depend_on_their_order():
    a, b = np.ones((2, 3), np.float32), np.zeros(4, np.float32)
    assert tensors_digest({"a": a, "b": b}) == tensors_digest({"b": b, "a": a})
    assert tensors_digest({"a": a}) != tensors_digest({"a": a.T.copy()})
    assert vector_digest(a) == hashlib.sha256(a.tobytes()).hexdigest()


# ---- a federation and its two sides


@pytest.fixture
def ledgers(tmp_path, monkeypatch):
    """A run directory with the ledgers of a small federation, and the records of its rounds."""
    monkeypatch.setenv("RAY_FED_SITE", str(tmp_path / "site"))
    return finished_run(tmp_path)


def sides(directory):
    chains = [read_chain(path) for path in sorted(directory.path.rglob("*.jsonl"))]
    return next(c for c in chains if c.writer == "coordinator"), [c for c in chains if c.writer != "coordinator"]


def test_both_sides_of_a_federation_agree_on_every_message(ledgers):
    coordinator, own = sides(ledgers[0])
    comparison = compare(coordinator, own)
    assert comparison.problems == ()
    # description, moments, 3 updates, 4 evaluations
    assert comparison.compared == {"silo-1": 9, "silo-2": 9}
    assert comparison.not_received == {"silo-1": 0, "silo-2": 0}


def test_a_refusal_or_an_error_of_a_silo_is_no_message_that_left(tmp_path):
    ledger = Ledger(tmp_path / "l.jsonl", SigningKey.at(tmp_path / "k"), {"writer": "north", "run": "r"})
    for kind in ("refused", "error", "update"):
        ledger.write({"kind": kind, "while": "training round 1"})
    ledger.close()
    assert [line["kind"] for line in read_chain(ledger.path).messages()] == ["update"]


def test_the_digest_of_every_global_model_is_written_down(ledgers):
    directory, records = ledgers
    coordinator, _ = sides(directory)
    models = coordinator.of_kind("model")
    assert [line["round"] for line in models] == [0, 1, 2, 3]
    final = records[-1].models["federated"]
    assert models[-1]["models"] == {"federated": hashlib.sha256(final.tobytes()).hexdigest()}


def test_a_model_is_traced_back_to_every_update(ledgers):
    directory, records = ledgers
    coordinator, own = sides(directory)
    arrays = Layout.of(SyntheticTask().model(0)).unflatten(records[-1].models["federated"])
    origin = origin_of(coordinator, tensors_digest(arrays))
    assert (origin.model, origin.session, origin.server_round, origin.strategy) == (
        "federated",
        "federated",
        3,
        "FedAvg",
    )
    made = lineage(coordinator, own, origin)
    assert [(each.server_round, each.silo) for each in made] == [(n, silo) for n in (1, 2, 3) for silo in NAMES]
    assert all(each.line is not None for each in made)


def test_a_model_that_was_changed_by_one_bit_is_not_found(ledgers):
    directory, records = ledgers
    coordinator, _ = sides(directory)
    arrays = Layout.of(SyntheticTask().model(0)).unflatten(records[-1].models["federated"])
    arrays["0.weight"].view(np.int32)[0, 0] ^= 1
    assert origin_of(coordinator, tensors_digest(arrays)) is None


def forged(directory, silo, change):
    """Change lines of a ledger, with chain, counts and all signatures made anew by the owner of the key."""
    key = SigningKey.at(directory.path.parent / "silos" / silo / "signing.key")
    write_anew(ledger_of(directory, silo), lambda lines: [lines[0], *change(lines[1:-2]), *lines[-2:]], key)


def with_update(**changes):
    return lambda lines: [line | changes if line["kind"] == "update" else line for line in lines]


FORGERIES = {
    "an update dropped": lambda lines: [line for line in lines if line.get("round") != 2 or line["kind"] != "update"],
    "an update made smaller": with_update(bytes=1),
    "another hash": with_update(sha256="0" * 64),
    "fewer rows": with_update(num_examples=1),
}


@pytest.mark.parametrize("how", FORGERIES)
def test_an_owner_who_rewrites_the_own_ledger_is_found_by_the_other_side(ledgers, how):
    directory, _ = ledgers
    forged(directory, "silo-1", FORGERIES[how])
    coordinator, own = sides(directory)
    assert all(chain.problems == () for chain in own), "the forger has the key"
    problems = compare(coordinator, own).problems
    assert any("never left the silo" in problem for problem in problems)
    assert any("not the one handed over" in problem for problem in problems)


def test_an_owner_who_only_moves_lines_is_found_by_the_head_that_was_handed_over(ledgers):
    directory, _ = ledgers
    forged(directory, "silo-2", lambda lines: list(reversed(lines)))
    [problem] = compare(*sides(directory)).problems
    assert "not the one handed over, or its last lines were dropped" in problem


@pytest.mark.parametrize(
    "said",
    [
        5,
        (),
        (b"", "0" * 64),
        ("text", "0" * 64, "0" * 64),
        (b"", "head", "0" * 64),
        (b"", "0" * 64, None),
        [b"", "", ""],
    ],
)
def test_a_silo_that_hands_over_something_else_is_named(said):
    with pytest.raises(SiloFailed, match="silo 'north' failed while handing over its ledger: it handed over something"):
        SiloLedger.handed_over("north", said)
    assert SiloLedger.handed_over("north", None) is None
    assert SiloLedger.handed_over("north", (b"{}", "0" * 64, "1" * 64)) == SiloLedger(b"{}", "0" * 64, "1" * 64)


class Gone:
    def collect_ledger(self, silo):
        if silo == "south":
            raise SiloFailed(silo, "handing over its ledger", "its site is away")


def test_a_ledger_that_does_not_come_is_named_and_one_that_its_owner_keeps_is_not():
    found = collected(dict.fromkeys(("north", "south"), Gone()), None)
    assert found.missing == {"south": "silo 'south' failed while handing over its ledger: its site is away"}
    assert found.silos == {}


def test_a_missing_ledger_is_a_problem(ledgers):
    coordinator, own = sides(ledgers[0])
    [problem] = compare(coordinator, own[:1]).problems
    assert problem == "silo 'silo-2': 9 messages were received, its ledger is missing"


def test_a_ledger_of_another_run_is_a_problem(ledgers, tmp_path):
    coordinator, own = sides(ledgers[0])
    other = read_chain(ledger_at(tmp_path))
    assert "silo 'north': the ledger is of run 'r'" in compare(coordinator, [*own, other]).problems[0]


def test_a_resumed_run_keeps_its_name_and_its_chain(ledgers, tmp_path):
    directory, _ = ledgers
    name = name_of_run(directory)
    ledger = CoordinatorLedger(directory, name, SigningKey.at(tmp_path / "coordinator.key"))
    ledger.write([{"kind": "model", "session": "f", "round": 3, "strategy": "s", "participants": [], "models": {}}])
    ledger.close()
    coordinator, _ = sides(directory)
    assert coordinator.problems == ()
    assert name_of_run(directory) == name


def test_a_line_costs_a_fixed_number_of_bytes(ledgers):
    coordinator, own = sides(ledgers[0])
    longest = max(len(line) for chain in (coordinator, *own) for line in chain.path.read_bytes().splitlines())
    assert longest < 1500
