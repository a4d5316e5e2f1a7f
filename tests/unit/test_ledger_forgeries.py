"""What `ray-fed ledger verify` says to forgers: of one ledger, of all of them, of the model file, of the keys."""

import json
import shutil

import numpy as np
import pytest

from pipelines import cli
from pipelines.ledger.coordinator_ledger import CoordinatorLedger
from ray_fed.perimeter.ledger import GENESIS, line_digest
from ray_fed.privacy.signing import SigningKey
from ray_fed.reporting.model_files import serialised
from ray_fed.reporting.run_directory import RunDirectory
from tests.ledgers import NAMES, copied, finished_run, ledger_of, lines_of, owners_keys, write_anew

VERIFIED, CONTRADICTED, UNREADABLE, NOT_KNOWN = 0, 1, 2, 3
WRITERS = ("coordinator", *NAMES)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("run")
        patch.setenv("RAY_FED_SITE", str(folder / "no site"))
        yield finished_run(folder)[0]


@pytest.fixture
def forged(run, tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_FED_SITE", str(tmp_path / "no site"))
    return copied(run, tmp_path / "forged")


def pins(directory):
    return [f"--key={name}={key}" for name, key in owners_keys(directory).items()]


def verify(directory, *options):
    return cli.main(["ledger", "verify", str(directory.path), *options])


def cut(path, kind="signature"):
    """Drop what follows the first line of a kind."""
    lines = path.read_bytes().splitlines(keepends=True)
    first = next(number for number, line in enumerate(lines) if json.loads(line)["kind"] == kind)
    path.write_bytes(b"".join(lines[: first + 1]))


def test_a_run_is_verified_where_its_keys_are_known(run, forged, capsys):
    assert verify(forged, *pins(run)) == VERIFIED
    assert "the run is complete and every key is known" in capsys.readouterr().out


def test_a_run_that_was_broken_off_and_resumed_is_whole(tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_FED_SITE", str(tmp_path / "no site"))
    resumed, records = finished_run(tmp_path, broken_off_after=1)
    assert [record.server_round for record in records] == [0, 1, 2, 3]
    assert verify(resumed, *pins(resumed)) == VERIFIED
    kinds = [line["kind"] for line in lines_of(ledger_of(resumed, "silo-1"))]
    assert (kinds.count("reopening"), kinds.count("closing")) == (1, 2)


def test_without_keys_nobody_can_know_who_signed(run, forged, capsys):
    assert verify(forged) == NOT_KNOWN
    said = capsys.readouterr().out
    assert said.count("signed by a key that nobody vouched for") == 3
    assert "NOT verified: nothing contradicts" in said
    for name, key in owners_keys(run).items():
        assert f"--key {name}={key}" in said


def test_the_site_file_names_keys_and_holds_own_ones(run, forged, tmp_path, monkeypatch):
    keys = owners_keys(run)
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.setenv("RAY_FED_SITE", str(site))
    partners = "".join(f"  {name}: '{keys[name]}'\n" for name in ("coordinator", "silo-2"))
    (site / "site.yaml").write_text(f"ledger: {run.path.parent / 'silos'}\npartners:\n{partners}")
    assert verify(forged) == VERIFIED
    other = write_anew(ledger_of(forged, "silo-2"))
    assert verify(forged) == CONTRADICTED
    assert verify(forged, f"--key=silo-2={other.public}") == CONTRADICTED, "another head was handed over"


# ---- forgers who have the files


def key_of_the_coordinator(directory):
    """The key of a copy is a new one: nothing but the pins could tell."""
    return SigningKey.at(directory.path.parent / "coordinator.key")


def head_of(path):
    return line_digest(path.read_bytes().splitlines()[-1])


def truncated_everywhere(directory):
    for writer in WRITERS:
        cut(ledger_of(directory, writer))


def signed_anew(directory):
    """All lines changed, all chains made to fit, and all sides agree again."""

    def lie(lines):
        for line in lines:
            message = line.get("message", line)
            if message["kind"] == "update":
                message |= {"sha256": "00" * 32, "num_examples": 7}
        return lines

    keys = {name: write_anew(ledger_of(directory, name), lie) for name in NAMES}
    heads = {name: head_of(ledger_of(directory, name)) for name in NAMES}

    def and_collected(lines):
        for line in lie(lines):
            if line["kind"] == "handed over":
                line |= {"head": heads[line["silo"]], "silo_key": keys[line["silo"]].public}
        return lines

    write_anew(ledger_of(directory, "coordinator"), and_collected)


def erased(directory):
    """A silo that took part is nowhere any more."""
    shutil.rmtree(ledger_of(directory, "silo-1").parent)

    def without(lines):
        for line in lines:
            if line["kind"] == "model":
                line["participants"].remove("silo-1") if "silo-1" in line["participants"] else None
        return [line for line in lines if line.get("silo") != "silo-1"]

    write_anew(ledger_of(directory, "coordinator"), without)


def altered_model(directory):
    path = directory.path / "models" / "federated.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def another_model(directory):
    path = directory.path / "models" / "federated.safetensors"
    path.write_bytes(serialised({"a": np.ones(3, np.float32)}))


def swapped(directory):
    path = ledger_of(directory, "coordinator")
    lines = path.read_bytes().splitlines(keepends=True)
    lines[4], lines[5] = lines[5], lines[4]
    path.write_bytes(b"".join(lines))


def replaced_opening(directory):
    path = ledger_of(directory, "silo-2")
    lines = path.read_bytes().splitlines(keepends=True)
    lines[0] = lines[0].replace(b'"min_examples":5', b'"min_examples":1')
    path.write_bytes(b"".join(lines))


def appended(directory):
    path = ledger_of(directory, "silo-1")
    facts = {"number": len(lines_of(path)) + 1, "previous": head_of(path), "time": 0.0, "kind": "update"}
    with path.open("ab") as file:
        file.write(json.dumps(facts, separators=(",", ":")).encode() + b"\n")


def appended_to_the_coordinators(directory):
    path = ledger_of(directory, "coordinator")
    facts = {"number": len(lines_of(path)) + 1, "previous": head_of(path), "time": 0.0, "kind": "update"}
    with path.open("ab") as file:
        file.write(json.dumps(facts, separators=(",", ":")).encode() + b"\n")


FOUND_WITHOUT_KEYS = {
    "all ledgers cut after their first signature": truncated_everywhere,
    "the coordinator's cut after its first signature": lambda run: cut(ledger_of(run, "coordinator")),
    "the coordinator's cut before its closing line": lambda run: cut(ledger_of(run, "coordinator"), "handed over"),
    "a silo's cut after its first signature": lambda run: cut(ledger_of(run, "silo-1")),
    "a silo's removed": lambda run: ledger_of(run, "silo-1").unlink(),
    "one bit of the model file": altered_model,
    "another model file": another_model,
    "a removed model file": lambda run: (run.path / "models" / "federated.safetensors").unlink(),
    "a model file that was added": lambda run: (run.path / "models" / "b.safetensors").write_bytes(b"x"),
    "two lines swapped": swapped,
    "the opening replaced": replaced_opening,
    "a forged line at the end": appended,
    "a forged line at the coordinator's end": appended_to_the_coordinators,
    "one silo's signed anew": lambda run: write_anew(ledger_of(run, "silo-1")),
    "a second ledger of a silo": lambda run: shutil.copytree(
        ledger_of(run, "silo-1").parent, run.path / "ledger" / "silos" / "evil"
    ),
    "the name of another run": lambda run: write_anew(
        ledger_of(run, "coordinator"), lambda lines: [{**lines[0], "run": "other"}, *lines[1:]]
    ),
    "a silo in the coordinator's place": lambda run: shutil.copy(
        ledger_of(run, "silo-1"), ledger_of(run, "coordinator")
    ),
    "the coordinator's in a silo's place": lambda run: shutil.copy(
        ledger_of(run, "coordinator"), ledger_of(run, "silo-1")
    ),
    "a round left out by who holds the key": lambda run: write_anew(
        ledger_of(run, "coordinator"),
        lambda lines: [line for line in lines if line["kind"] != "model" or line["round"] != 2],
        key_of_the_coordinator(run),
    ),
    "an update left out by who holds the key": lambda run: write_anew(
        ledger_of(run, "coordinator"),
        lambda lines: [line for line in lines if line.get("message", {}).get("round") != 2],
        key_of_the_coordinator(run),
    ),
}
FOUND_BY_KEYS_ALONE = {"everything signed anew": signed_anew, "a silo erased everywhere": erased}


@pytest.mark.parametrize("how", FOUND_WITHOUT_KEYS)
def test_a_forgery_is_found_without_any_key(forged, how, capsys):
    FOUND_WITHOUT_KEYS[how](forged)
    assert verify(forged) == CONTRADICTED
    assert "NOT verified: " in capsys.readouterr().out


@pytest.mark.parametrize("how", FOUND_BY_KEYS_ALONE)
def test_a_forger_of_all_files_is_found_by_the_keys_and_never_called_verified(run, forged, how, capsys):
    FOUND_BY_KEYS_ALONE[how](forged)
    assert verify(forged) == NOT_KNOWN, "nothing in the files can contradict him"
    assert verify(forged, f"--key=coordinator={owners_keys(run)['coordinator']}") == CONTRADICTED
    assert "its owner's is" in capsys.readouterr().out


def test_a_silo_whose_key_is_given_must_have_a_ledger(run, forged, capsys):
    erased(forged)
    assert verify(forged, f"--key=silo-1={owners_keys(run)['silo-1']}") == UNREADABLE
    assert "the run has no ledger of 'silo-1'" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["silo-1", "silo-1=", "=" + "0" * 64, "silo-1=xyz", "silo-1=" + "A" * 64])
def test_a_key_that_is_none_is_refused(forged, text, capsys):
    assert verify(forged, f"--key={text}") == UNREADABLE
    assert "must be NAME=KEY" in capsys.readouterr().err


def test_a_run_that_says_it_did_not_end_is_never_verified(run, forged, capsys):
    """The summary is no signed file: who cuts the ledgers can change it, too."""
    truncated_everywhere(forged)
    forged.write_summary({"status": "running"})
    assert verify(forged, *pins(run)) == NOT_KNOWN
    assert "no closing line: the run did not end, or the last lines were dropped" in capsys.readouterr().out


def test_a_ledger_that_its_owner_keeps_leaves_something_unknown(run, forged, capsys):
    key = SigningKey.at(run.path.parent / "coordinator.key")
    ledger_of(forged, "silo-1").unlink()
    kept = write_anew(
        ledger_of(forged, "coordinator"),
        lambda lines: [line for line in lines if line["kind"] != "handed over" or line["silo"] != "silo-1"],
        key,
    )
    given = [pin for pin in pins(run) if "silo-1" not in pin]
    assert verify(forged, *given) == NOT_KNOWN
    assert "its 9 messages are the coordinator's word alone; ask its owner" in capsys.readouterr().out
    assert kept.public == key.public


# ---- files that no ledger wrote


HEAD = {"number": 1, "previous": GENESIS}
MALFORMED = {
    "a received line without silo and message": {**HEAD, "kind": "received"},
    "a kind that is a list": {**HEAD, "kind": ["a"]},
    "a hash that is a list": {**HEAD, "kind": "update", "sha256": ["x"], "bytes": {}},
    "a message that is a number": {**HEAD, "kind": "received", "silo": "a", "message": 5},
    "a message without its round": {**HEAD, "kind": "received", "silo": "a", "message": {"kind": "update"}},
    "a lone surrogate": {**HEAD, "kind": "opening", "x": "\ud800"},
    "participants that are numbers": {
        **HEAD, "kind": "model", "session": "s", "round": 1, "strategy": "s", "participants": [1], "models": {},
    },
    "a negative round": {**HEAD, "kind": "update", "round": -1},
    "bytes beyond 64 bits": {**HEAD, "kind": "update", "bytes": 2**63},
    "a closing line of words": {**HEAD, "kind": "closing", "lines": "8", "messages": {}, "rounds": {}},
    "terminal commands": {**HEAD, "kind": "opening", "writer": "\x1b[2J", "run": "", "format": "", "public_key": ""},
    "no number": {"kind": "update"},
}  # fmt: skip
RAW = {
    "lists in lists": b"[" * 100_000,
    "objects in objects": b'{"a":' * 100_000,
    "a number of 5,000 digits": b'{"number":' + b"9" * 5000 + b"}",
    "null bytes": b"\0" * 100,
    "nothing": b"",
    "no UTF-8": b"\xff\xfe",
    "a line of 5 MB": b'{"a":"' + b"x" * 5_000_000 + b'"}',
}


@pytest.mark.parametrize("writer", ["coordinator", "silo-1"])
@pytest.mark.parametrize("what", [*MALFORMED, *RAW])
def test_a_malformed_line_is_a_problem_with_file_and_line(forged, what, writer, capsys):
    path = ledger_of(forged, writer)
    path.write_bytes(RAW[what] if what in RAW else json.dumps(MALFORMED[what], separators=(",", ":")).encode() + b"\n")
    assert verify(forged) == CONTRADICTED
    said = capsys.readouterr().out
    assert f"problem: {path}: line 1" in said
    assert "\x1b" not in said
    assert cli.main(["ledger", "trace", str(forged.path), "none"]) == UNREADABLE


def test_a_malformed_line_further_down_is_named_by_its_number(forged, capsys):
    path = ledger_of(forged, "silo-1")
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:5], b'{"number":6}\n', *lines[6:]]))
    assert verify(forged) == CONTRADICTED
    assert f"{path}: line 6 is not a line of a ledger" in capsys.readouterr().out


def test_a_ledger_that_is_a_device_is_one_line(forged, capsys):
    path = ledger_of(forged, "silo-1")
    path.unlink()
    path.symlink_to("/dev/zero")
    assert verify(forged) == UNREADABLE
    assert "it is no regular file" in capsys.readouterr().err


def test_a_model_that_is_a_link_is_not_followed(forged, capsys):
    path = forged.path / "models" / "federated.safetensors"
    path.unlink()
    path.symlink_to("/dev/zero")
    assert verify(forged) == CONTRADICTED
    assert "changed since the run ended" in capsys.readouterr().out


def test_a_run_of_endless_rounds_is_not_counted_one_by_one(run, forged):
    key = SigningKey.at(run.path.parent / "coordinator.key")

    def endless(lines):
        return [line | {"num_rounds": 2**62} if line["kind"] == "model" else line for line in lines]

    write_anew(ledger_of(forged, "coordinator"), endless, key)
    assert verify(forged) == CONTRADICTED


# ---- ledgers of earlier versions


def of_version_1(lines):
    return [
        {name: value for name, value in line.items() if name != "num_rounds"}
        | ({"format": "ray-fed ledger 1"} if "format" in line else {})
        for line in lines
        if line["kind"] != "closing"
    ]


def test_a_run_of_version_1_is_read_and_its_completeness_is_open(run, forged, capsys):
    folder = run.path.parent
    for name in NAMES:
        write_anew(ledger_of(forged, name), of_version_1, SigningKey.at(folder / "silos" / name / "signing.key"))
    heads = {name: head_of(ledger_of(forged, name)) for name in NAMES}

    def collected(lines):
        return [line | ({"head": heads[line["silo"]]} if line["kind"] == "handed over" else {}) for line in lines]

    write_anew(
        ledger_of(forged, "coordinator"),
        lambda lines: collected(of_version_1(lines)),
        SigningKey.at(folder / "coordinator.key"),
    )
    assert verify(forged, *pins(run)) == NOT_KNOWN
    said = capsys.readouterr().out
    assert said.count("written by version 1: completeness cannot be checked") == 3
    assert "18 messages of 2 silos are the same on both sides" in said


def test_a_newer_version_is_named(forged, capsys):
    def newer(lines):
        return [line | ({"format": "ray-fed ledger 3"} if "format" in line else {}) for line in lines]

    write_anew(ledger_of(forged, "silo-1"), newer)
    assert verify(forged) == CONTRADICTED
    assert "install a newer ray-fed" in capsys.readouterr().out


# ---- the writers


def test_the_closing_line_counts_lines_messages_and_rounds_and_hashes_the_model(run):
    [closing] = [line for line in lines_of(ledger_of(run, "coordinator")) if line["kind"] == "closing"]
    assert closing["lines"] == closing["number"] - 1
    assert closing["rounds"] == {"federated": 3}
    assert closing["messages"]["received"] == 18
    assert list(closing["files"]) == ["models/federated.safetensors"]
    for name in NAMES:
        [closing] = [line for line in lines_of(ledger_of(run, name)) if line["kind"] == "closing"]
        assert closing["messages"]["update"] == 3
        assert closing["rounds"] == {"federated": 3}


def test_the_coordinators_key_lasts_where_its_site_file_names_a_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RAY_FED_SITE", str(tmp_path))
    (tmp_path / "site.yaml").write_text(f"ledger: {tmp_path / 'keys'}")
    directory = RunDirectory(tmp_path / "run")
    directory.path.mkdir()
    ledger = CoordinatorLedger.of_run(directory, "r", tmp_path / "checkpoint")
    assert ledger is not None
    ledger.close()
    assert not (tmp_path / "checkpoint").exists()
    assert cli.main(["ledger", "key", "coordinator"]) == 0
    assert capsys.readouterr().out.strip() == ledger.ledger.public_key
