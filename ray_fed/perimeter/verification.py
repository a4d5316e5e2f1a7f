"""Reads ledgers: says what is wrong with them, and from which updates a model was made.

It needs nothing but the files: anybody can verify.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from ray_fed.errors import DataError
from ray_fed.perimeter.ledger import GENESIS, line_digest, to_line
from ray_fed.privacy.signing import is_signed

Line = Mapping[str, Any]
OTHER_LINES = (
    "opening", "reopening", "signature", "refused", "error", "session", "handed over", "received", "model",
)  # fmt: skip
"""Kinds of line that are no message that left."""
UPDATES = ("update", "masked")
"""Kinds of message that belong to a round."""
COMPARED = ("kind", "session", "sha256", "message_sha256", "bytes", "num_examples")


@dataclass(frozen=True)
class Chain:
    """One ledger as it was read, and what is wrong with it."""

    path: Path
    lines: tuple[Line, ...]
    heads: tuple[str, ...]
    """SHA-256 of each line."""
    problems: tuple[str, ...]
    unsigned: int
    """Last lines that no signature covers: a writer that was killed leaves some."""

    @property
    def writer(self) -> str:
        return str(self.lines[0].get("writer", "")) if self.lines else ""

    @property
    def public_key(self) -> str:
        return str(self.lines[0].get("public_key", "")) if self.lines else ""

    def of_kind(self, kind: str) -> list[Line]:
        return [line for line in self.lines if line["kind"] == kind]

    @property
    def run(self) -> str:
        return str(self.lines[0].get("run", "")) if self.lines else ""

    def messages(self) -> list[Line]:
        """Return the lines of messages that left."""
        return [line for line in self.lines if line["kind"] not in OTHER_LINES]


@dataclass(frozen=True)
class LedgerComparison:
    """What the comparison of a run's ledgers found."""

    problems: tuple[str, ...]
    compared: Mapping[str, int] = field(default_factory=dict)
    """Silo -> messages that both sides have with the same hash."""
    not_received: Mapping[str, int] = field(default_factory=dict)
    """Silo -> messages that left and that the coordinator did not note: late, repeated after a restart, or lost with a
    coordinator."""


def read_chain(path: Path, public_key: str = "") -> Chain:
    """Read a ledger and check its chain and signatures, against `public_key` where it is known from elsewhere.

    DataError when the file cannot be read at all; anything else that is wrong is in `problems`, with its line.
    """
    try:
        raw = path.read_bytes().splitlines()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); was the ledger handed over?") from error
    lines, heads, problems = [], [], []
    previous, signed, key = GENESIS, 0, public_key
    for number, text in enumerate(raw, start=1):
        line = _parsed(text)
        if line is None:
            problems.append(f"line {number} is not a line of a ledger")
            break
        key = key or str(line.get("public_key", ""))
        problems += [f"line {number}: {problem}" for problem in _line_problems(line, number, previous, key)]
        if to_line(line) != text:
            problems.append(f"line {number} is not written as a ledger writes it")
        previous = line_digest(text)
        lines.append(line)
        heads.append(previous)
        signed = number if line["kind"] == "signature" else signed
    if not lines:
        problems.append("it is empty")
    return Chain(path, tuple(lines), tuple(heads), tuple(problems), len(lines) - signed)


def _parsed(text: bytes) -> dict[str, Any] | None:
    try:
        line = json.loads(text, parse_constant=_refuse_number)
    except (ValueError, RecursionError):
        return None
    fits = isinstance(line, dict) and {"number", "previous", "kind"} <= set(line)
    return line if fits else None


def _refuse_number(name: str) -> float:
    raise ValueError(f"{name} is no number")


def _line_problems(line: Line, number: int, previous: str, key: str) -> Iterator[str]:
    if line["number"] != number:
        yield f"it has the number {line['number']}: lines were dropped, added or moved"
    if line["previous"] != previous:
        yield "it does not follow from the line before: one of the two was changed, or lines were dropped or moved"
    if line.get("public_key", key) != key:
        yield "it was written with another key than the first line"
    if line["kind"] == "signature":
        signed = to_line({name: value for name, value in line.items() if name != "signature"})
        if not is_signed(signed, str(line.get("signature")), key):
            yield f"its signature is not by the key {key[:16]}..."


def compare(coordinator: Chain, silos: Sequence[Chain]) -> LedgerComparison:
    """Check that what the coordinator says it received is what the silos say they sent, line by line.

    Every message received must have left its silo, with the same kind, session, round, bytes, rows and SHA-256.
    """
    problems = [f"{chain.path.name}: {problem}" for chain in (coordinator, *silos) for problem in chain.problems]
    by_name = {chain.writer: chain for chain in silos}
    received: dict[str, list[Line]] = {}
    for line in coordinator.of_kind("received"):
        received.setdefault(str(line["silo"]), []).append(line["message"] | {"number": line["number"]})
    compared, not_received = {}, {}
    for silo, messages in sorted(received.items()):
        if silo not in by_name:
            problems.append(f"silo '{silo}': {len(messages)} messages were received, its ledger is missing")
            continue
        sent = Counter(_compared_fields(line) for line in by_name[silo].messages())
        problems += [f"silo '{silo}': {text}" for text in _unmatched(messages, sent)]
        compared[silo], not_received[silo] = len(messages), sum(sent.values())
    problems += [text for chain in silos for text in _problems_with_the_collected(coordinator, chain)]
    return LedgerComparison(tuple(problems), compared, not_received)


def _compared_fields(line: Line) -> tuple[Any, ...]:
    """Return what must agree. Only an update belongs to a round; between rounds the two sides count differently."""
    numbered = line.get("round") if line["kind"] in UPDATES else None
    return (numbered, *(line.get(name) for name in COMPARED))


def _unmatched(messages: Sequence[Line], sent: Counter) -> Iterator[str]:
    """Yield what was received and never sent; takes what matches out of `sent`."""
    for message in messages:
        key = _compared_fields(message)
        if sent[key] > 0:
            sent[key] -= 1
        else:
            yield (
                f"coordinator's line {message['number']}: the {message['kind']} of session '{message['session']}', "
                f"round {message['round']} (sha256 {str(message['sha256'])[:12]}...) never left the silo"
            )


def _problems_with_the_collected(coordinator: Chain, silo: Chain) -> Iterator[str]:
    """Yield where a ledger is not the one that the coordinator collected: it wrote down key and head of each."""
    if silo.run != coordinator.run:
        yield f"silo '{silo.writer}': the ledger is of run '{silo.run}', not of '{coordinator.run}'"
    for line in coordinator.of_kind("handed over"):
        if line["silo"] == silo.writer:
            if line["silo_key"] != silo.public_key:
                yield f"silo '{silo.writer}': the ledger is signed with another key than the one handed over"
            if line["head"] not in silo.heads:
                yield f"silo '{silo.writer}': the ledger is not the one handed over, or its last lines were dropped"


# ---- from a model back to the updates that made it


@dataclass(frozen=True)
class Origin:
    """The line of the coordinator's ledger in which a model was written down."""

    model: str
    session: str
    server_round: int
    strategy: str
    number: int
    """Number of the line."""


class Contribution(NamedTuple):
    """One update that went into a model."""

    server_round: int
    silo: str
    num_examples: int | None
    """None under masks: the coordinator does not know it."""
    norm: float | None
    sha256: str
    line: int | None
    """Number of the line in its silo's ledger; None where it is not there."""


def origin_of(coordinator: Chain, digest: str) -> Origin | None:
    """Return where the model with this hash of its named tensors was written down; None where it was not."""
    for line in reversed(coordinator.of_kind("model")):
        for model, found in line.get("tensors", {}).items():
            if found == digest:
                return Origin(model, line["session"], line["round"], line["strategy"], line["number"])
    return None


def lineage(coordinator: Chain, silos: Sequence[Chain], origin: Origin) -> list[Contribution]:
    """Return the updates of all rounds up to the model's, oldest first, the last time each round was done.

    A run that was resumed may have done a round twice; what counts is what was received before the round's last model.
    """
    sent = {(chain.writer, line["sha256"]): line["number"] for chain in silos for line in chain.messages()}
    rounds: dict[int, list[Contribution]] = {}
    pending: dict[int, dict[str, Line]] = {}
    for line in coordinator.lines[: origin.number]:
        if line["kind"] == "received" and line["message"]["kind"] in UPDATES:
            message = line["message"]
            if message["session"] == origin.session:
                pending.setdefault(message["round"], {})[line["silo"]] = message
        elif line["kind"] == "model" and line["session"] == origin.session:
            received = pending.pop(line["round"], {})
            took_part = [silo for silo in _makers(line, origin) if silo in received]
            rounds[line["round"]] = [_contribution(line["round"], silo, received[silo], sent) for silo in took_part]
    return [each for server_round in sorted(rounds) for each in rounds[server_round]]


def _makers(line: Line, origin: Origin) -> list[str]:
    """The silos behind a model: all that took part, or the one whose own model it is."""
    own_models = line["strategy"] == "LocalOnly"
    return [silo for silo in line["participants"] if silo == origin.model] if own_models else list(line["participants"])


def _contribution(server_round: int, silo: str, message: Line, sent: dict[tuple[str, str], int]) -> Contribution:
    line = sent.get((silo, message["sha256"]))
    return Contribution(server_round, silo, message["num_examples"], message["norm"], message["sha256"], line)
