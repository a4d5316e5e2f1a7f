"""Compares the ledgers of a run: what contradicts, and what nobody can know from them."""

import itertools
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ray_fed.perimeter.chain import SUMMED, Chain, Line
from ray_fed.perimeter.policy import COORDINATOR

UPDATES = ("update", "masked")
"""Kinds of message that belong to a round."""
COMPARED = ("kind", "session", "sha256", "message_sha256", "bytes", "num_examples")
BUFFERED = "FedBuff"
"""Its updates belong to the rounds they were begun in, not to those they went into."""


@dataclass(frozen=True)
class LedgerComparison:
    """What the comparison of a run's ledgers found."""

    problems: tuple[str, ...]
    """What contradicts: somebody changed, dropped or added something."""
    unknown: tuple[str, ...] = ()
    """What the ledgers leave open: a forger could have done it and nothing would look different."""
    compared: Mapping[str, int] = field(default_factory=dict)
    """Silo -> messages that both sides have with the same hash."""
    not_received: Mapping[str, int] = field(default_factory=dict)
    """Silo -> messages that left and that the coordinator did not note: late, repeated after a restart, or lost with a
    coordinator."""


Finding = tuple[bool, str]
"""(whether it contradicts, or else is something unknown; what)."""


def compare(
    coordinator: Chain, silos: Sequence[Chain], keys: Mapping[str, str] | None = None, run_completed: bool = False
) -> LedgerComparison:
    """Check each ledger, that it is by the key known of its writer, that it is whole, and that both sides agree.

    keys: writer -> public key, known from elsewhere than these files. run_completed: the run folder says so.
    Every message received must have left its silo, with the same kind, session, round, bytes, rows and SHA-256.
    """
    by_name = {chain.writer: chain for chain in reversed(silos)}
    received, sent = _received(coordinator), {silo: _sent(chain) for silo, chain in by_name.items()}
    both = [silo for silo in sorted(received) if silo in by_name]
    findings = [
        *_own_problems((coordinator, *silos)),
        *_other_writers(coordinator, silos),
        *_seconds(silos),
        *(each for silo in both for each in _unmatched(silo, received[silo], sent[silo])),
        *_sums(coordinator, by_name, sent),
        *_missing(coordinator, received, by_name),
        *(each for chain in silos for each in _problems_with_the_collected(coordinator, chain)),
        *_round_problems(coordinator),
        *_key_findings((coordinator, *silos), keys or {}),
        *_endings(coordinator, silos, run_completed),
    ]
    return LedgerComparison(
        tuple(text for contradicts, text in findings if contradicts),
        tuple(text for contradicts, text in findings if not contradicts),
        {silo: len(received[silo]) for silo in both},
        {silo: sum(sent[silo].values()) for silo in both},
    )


def _own_problems(chains: Sequence[Chain]) -> Iterator[Finding]:
    for chain in chains:
        yield from ((True, f"{chain.path}: {problem}") for problem in chain.problems)


def _other_writers(coordinator: Chain, silos: Sequence[Chain]) -> Iterator[Finding]:
    """Yield ledgers that stand in another's place."""
    if coordinator.lines and coordinator.writer != COORDINATOR:
        yield True, f"{coordinator.path}: written by '{coordinator.writer}', not by the coordinator"
    for chain in silos:
        if chain.writer == COORDINATOR:
            yield True, f"{chain.path}: written by the coordinator, not by a silo"


def _seconds(silos: Sequence[Chain]) -> Iterator[Finding]:
    """Yield ledgers of a silo that has one already."""
    first: dict[str, Chain] = {}
    for chain in silos:
        if chain.writer in first:
            yield True, f"{chain.path}: a second ledger of silo '{chain.writer}', beside {first[chain.writer].path}"
        first.setdefault(chain.writer, chain)


def _missing(coordinator: Chain, received: Mapping[str, Sequence[Line]], found: Collection[str]) -> Iterator[Finding]:
    """Yield silos without a ledger: taken away if it was handed over, else perhaps kept by its owner."""
    collected = {line["silo"] for line in coordinator.of_kind("handed over")}
    for silo in sorted({*received, *collected} - set(found)):
        count = len(received.get(silo, ()))
        if silo in collected:
            yield True, f"silo '{silo}': {count} messages were received, its ledger is missing"
        else:
            yield (
                False,
                f"silo '{silo}': its ledger was not handed over, so its {count} messages are the coordinator's word "
                "alone; ask its owner for it, and give --silo-ledgers",
            )


def _received(coordinator: Chain) -> dict[str, list[Line]]:
    """Return silo -> the messages that the coordinator says it sent, with the number of their line."""
    received: dict[str, list[Line]] = {}
    for line in coordinator.of_kind("received"):
        received.setdefault(line["silo"], []).append(line["message"] | {"number": line["number"]})
    return received


def _compared_fields(line: Line) -> tuple[Any, ...]:
    """Return what must agree. Only an update belongs to a round; between rounds the two sides count differently."""
    numbered = line.get("round") if line["kind"] in UPDATES else None
    return (numbered, *(line.get(name) for name in COMPARED))


def _sent(silo: Chain) -> Counter[tuple[Any, ...]]:
    return Counter(_compared_fields(line) for line in silo.messages())


def _unmatched(silo: str, messages: Sequence[Line], sent: Counter[tuple[Any, ...]]) -> Iterator[Finding]:
    """Yield what was received and never sent; takes what matches out of `sent`."""
    for message in messages:
        key = _compared_fields(message)
        if sent[key] > 0:
            sent[key] -= 1
        else:
            which = f"session '{message['session']}', round {message['round']} (sha256 {message['sha256'][:12]}...)"
            where = f"silo '{silo}': coordinator's line {message['number']}"
            yield True, f"{where}: the {message['kind']} of {which} never left the silo"


def _sums(
    coordinator: Chain, silos: Mapping[str, Chain], sent: Mapping[str, Counter[tuple[Any, ...]]]
) -> Iterator[Finding]:
    """Yield what contradicts the sums that hubs have made on the way, and that nobody here can add them up again.
    Takes the updates that silos wrote down for them out of `sent`."""
    summed, own = coordinator.of_kind(SUMMED), 0
    left = {silo: _updates_by_round(chain) for silo, chain in silos.items()}
    for line in summed:
        silo, which = line["silo"], place_of(line)
        if silo in left and not left[silo][which]:
            where = f"silo '{silo}': coordinator's line {line['number']}: its part of a sum"
            yield True, f"{where} of session '{which[0]}', round {which[1]}, {which[2]} rows, never left the silo"
        elif silo in left:
            update = left[silo][which].pop()
            sent[silo][_compared_fields(update)] -= 1
            own += 1
    if summed:
        names = ", ".join(f"'{silo}'" for silo in sorted({line["silo"] for line in summed}))
        yield (
            False,
            f"{len(summed)} updates of the silos {names} were added up by a hub on the way, and never came here one by "
            f"one: {own} of them stand in their silos' ledgers, with session, round and rows; whether the hub added up "
            "these values, and nothing else, is its operator's word",
        )


def _updates_by_round(silo: Chain) -> dict[tuple[Any, ...], list[Line]]:
    """Return (session, round, rows) -> the updates that left for it."""
    found: dict[tuple[Any, ...], list[Line]] = defaultdict(list)
    for line in silo.of_kind("update"):
        found[place_of(line)].append(line)
    return found


def place_of(update: Line) -> tuple[Any, ...]:
    """Return what tells an update's place in a run without its hash: session, round and rows."""
    return update.get("session"), update.get("round"), update.get("num_examples")


def _problems_with_the_collected(coordinator: Chain, silo: Chain) -> Iterator[Finding]:
    """Yield where a ledger is not the one that the coordinator collected: it wrote down key and head of each."""
    whose = f"silo '{silo.writer}': the ledger"
    if silo.run != coordinator.run:
        yield True, f"{whose} is of run '{silo.run}', not of '{coordinator.run}'"
    collected = [line for line in coordinator.of_kind("handed over") if line["silo"] == silo.writer]
    for line in collected:
        if line["silo_key"] != silo.public_key:
            yield True, f"{whose} is signed with another key than the one handed over"
        if line["head"] not in silo.heads:
            yield True, f"{whose} is not the one handed over, or its last lines were dropped"
        elif line is collected[-1] and coordinator.closing is not None and line["head"] != silo.heads[-1]:
            yield True, f"{whose} has lines that were added after it was handed over"


# ---- whose word it is


def _key_findings(chains: Sequence[Chain], keys: Mapping[str, str]) -> Iterator[Finding]:
    """Yield ledgers by another key than their writer's, and those by a key that nobody vouched for."""
    for chain in chains:
        known, found, whose = keys.get(chain.writer), chain.public_key, f"ledger of '{chain.writer}'"
        if known is None:
            yield (
                False,
                f"{whose}: signed by a key that nobody vouched for, so whoever held these files could have written it "
                f"anew; if its owner names the same key, give --key {chain.writer}={found}",
            )
        elif known != found:
            yield True, f"{whose}: signed by the key {found[:16]}..., its owner's is {known[:16]}..."


# ---- whether everything is there


def _endings(coordinator: Chain, silos: Sequence[Chain], run_completed: bool) -> Iterator[Finding]:
    """Yield ledgers that do not end with a closing line."""
    over = coordinator.closing is not None or run_completed
    collected = {line["silo"] for line in coordinator.of_kind("handed over")}
    for chain in (coordinator, *silos):
        if chain.closing is not None or not chain.lines:
            continue
        whose = f"ledger of '{chain.writer}'"
        if chain.version < 2:
            yield False, f"{whose}: written by version 1: completeness cannot be checked"
        elif over and (chain is coordinator or chain.writer in collected):
            yield (
                True,
                f"{whose}: the run is over and its closing line is missing: lines were dropped or added at its end",
            )
        else:
            yield False, f"{whose}: no closing line: the run did not end, or the last lines were dropped"


def _round_problems(coordinator: Chain) -> Iterator[Finding]:
    """Yield what the coordinator's own ledger lacks: rounds of a job, which runs from 0 to the number it says, and
    updates of who took part in one."""
    arrived: set[tuple[str, int, str]] = set()
    sums: dict[tuple[str, int], set[tuple[str, ...]]] = defaultdict(set)
    jobs: dict[str, list[Line]] = {}
    for line in coordinator.lines:
        if line["kind"] == "received" and line["message"]["kind"] in UPDATES:
            arrived.add((line["message"]["session"], line["message"]["round"], line["silo"]))
        elif line["kind"] == SUMMED:
            arrived.add((line["session"], line["round"], line["silo"]))
            sums[line["session"], line["round"]].add(tuple(line["summed_with"]))
        elif line["kind"] == "model":
            jobs.setdefault(line["session"], []).append(line)
            yield from _without_update(line, arrived)
            yield from _parts_of_sums(line, sums.pop((line["session"], line["round"]), set()))
    if coordinator.closing is not None:
        for session, lines in jobs.items():
            yield from _missing_rounds(session, lines)


def _without_update(model: Line, arrived: Collection[tuple[str, int, str]]) -> Iterator[Finding]:
    session, number = model["session"], model["round"]
    for silo in model["participants"] if number and model["strategy"] != BUFFERED else ():
        if (session, number, silo) not in arrived:
            where = f"coordinator's line {model['number']}"
            yield True, f"{where}: silo '{silo}' took part in round {number} of '{session}' without an update"


def _parts_of_sums(model: Line, sums: Collection[tuple[str, ...]]) -> Iterator[Finding]:
    """Yield who stands in a sum that went into a model, and not among those who took part: none can be taken out."""
    took_part = set(model["participants"])
    for silo in sorted({silo for each in sums if took_part & set(each) for silo in set(each) - took_part}):
        where = f"coordinator's line {model['number']}"
        yield True, f"{where}: silo '{silo}' is in a sum of round {model['round']}, and did not take part in it"


def _missing_rounds(session: str, models: Sequence[Line]) -> Iterator[Finding]:
    ends = [line["round"] for line in models if line["round"] == line.get("num_rounds")]  # a strategy may end sooner
    length = min(ends, default=max(line.get("num_rounds", 0) for line in models))
    done = {line["round"] for line in models if line["round"] <= length}
    if len(done) <= length:
        first = next(number for number in itertools.count() if number not in done)
        yield (
            True,
            f"ledger of '{COORDINATOR}': {length + 1 - len(done)} of {length} rounds of '{session}' are missing, the "
            f"first is {first}",
        )


def file_problems(coordinator: Chain, found: Mapping[str, str]) -> Iterator[str]:
    """Yield what is wrong with the run's model files; `found` maps their names to the SHA-256 of what they hold now."""
    if coordinator.closing is None:
        return
    signed = coordinator.closing.get("files", {})
    for name in sorted({*signed, *found}):
        if name not in found:
            yield f"{name}: the closing line names this file, and it is missing"
        elif name not in signed:
            yield f"{name}: no file of the run when it ended"
        elif signed[name] != found[name]:
            yield f"{name}: changed since the run ended: sha256 is {found[name][:16]}..., signed {signed[name][:16]}..."
