"""Writes down what crosses between a ServerApp and the silos: one record a round, as of any other run.

A message belongs to the round that its config names ("server-round"), or else to that of its group; without either a
round begins where a silo is sent a second message of one type. Metrics are means
over the silos, weighted with the examples that the clients tell: `federated.<name>` of evaluations, `train.<name>` and
`query.<name>` of the others, `central.<name>` of what the server computed itself.
"""

import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pipelines.round_notes import FailureNotes
from pipelines.training.recorder import history_line, timing_line
from ray_fed.errors import QuorumLost
from ray_fed.federation.messages import Records
from ray_fed.federation.rounds.job import CENTRAL, RoundRecord
from ray_fed.flower.kept_replies import Outcome
from ray_fed.perimeter.ledger import bytes_of
from ray_fed.reporting.run_directory import RunDirectory
from ray_fed.reporting.tensorboard_log import EventLog, global_tag, silo_tag

WEIGHTS = ("num-examples", "num_examples")
PREFIX = {"evaluate": "federated", "train": "train", "query": "query"}
OPENING = ("get_parameters", "get_properties", "reconnect")
"""Messages of the older generation that belong to no round."""


@dataclass
class OpenRound:
    """What is known so far of the round under way."""

    number: int
    group: str = ""
    asked: set[tuple[str, str]] = field(default_factory=set)
    """(type, silo) of its messages."""
    told: dict[tuple[str, str], dict[str, float]] = field(default_factory=dict)
    """(type, silo) -> numbers."""
    failures: dict[str, str] = field(default_factory=dict)
    central: dict[str, float] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    num_bytes: int = 0


class FlowerRecorder:
    """Listens to a grid (`AnswerListener`) and to the server's own evaluations; thread-safe."""

    def __init__(self, silos: tuple[str, ...], directory: RunDirectory | None, has_tensorboard: bool):
        self.silos, self.directory = silos, directory
        self.log = EventLog(directory.tensorboard) if directory and has_tensorboard else None
        self.records: list[RoundRecord] = []
        self._open = OpenRound(0)
        self._answered: set[str] = set()
        """Types of messages that any silo has answered."""
        self._notes = FailureNotes()
        self._lock = threading.Lock()

    def close(self) -> None:
        if self.log:
            self.log.close()

    def on_answer(self, silo: str, message: Any, outcome: Outcome, num_bytes: int, seconds: float) -> None:
        metadata = message.metadata
        kind = metadata.message_type.partition(".")[0]
        with self._lock:
            if kind not in OPENING:
                self._open_round(message, silo)
            one = self._open
            one.num_bytes += num_bytes + bytes_of(outcome.records)
            one.seconds[f"silo.{silo}"] = one.seconds.get(f"silo.{silo}", 0.0) + seconds
            if outcome.error:
                one.failures[silo] = outcome.error
                return
            self._answered.add(metadata.message_type)
            one.told.setdefault((kind, silo), {}).update(numbers_told(outcome.records))

    def on_central(self, server_round: int, metrics: Mapping[str, float]) -> None:  # noqa: ARG002
        with self._lock:
            self._open.central |= {f"{CENTRAL}{name}": value for name, value in metrics.items()}

    def finish(self) -> None:
        """Close the last round."""
        with self._lock:
            self._close_round()

    # ---- rounds

    def _open_round(self, message: Any, silo: str) -> None:
        one, asked = self._open, (message.metadata.message_type, silo)
        named, group = named_round(message), message.metadata.group_id
        if named is not None:
            number = max(named, one.number)
        else:
            is_new = group != one.group if group else asked in one.asked
            number = one.number + is_new
        if number != one.number:
            self._close_round()
            self._open = one = OpenRound(number, group)
        one.asked.add(asked)

    def _close_round(self) -> None:
        one = self._open
        if not (one.asked or one.central or one.told or one.failures):
            return
        record = self._record(one)
        self.records.append(record)
        self._tell(record)
        self._require_answers(one)

    def _record(self, one: OpenRound) -> RoundRecord:
        by_kind: dict[str, dict[str, dict[str, float]]] = {}
        for (kind, silo), numbers in sorted(one.told.items()):
            by_kind.setdefault(kind, {})[silo] = numbers
        metrics = dict(one.central)
        for kind, by_silo in by_kind.items():
            prefix = PREFIX.get(kind, kind)
            metrics |= {f"{prefix}.{name}": value for name, value in weighted_means(by_silo).items()}
            own = "" if kind == "evaluate" else f"{prefix}."
            for silo, numbers in by_silo.items():
                metrics |= {f"silo.{silo}.{own}{name}": value for name, value in numbers.items() if name not in WEIGHTS}
        participants = tuple(sorted({silo for _, silo in one.told}))
        seconds = {"total": max(one.seconds.values(), default=0.0), **one.seconds}
        return RoundRecord(
            "federated", "federated", one.number, max(one.number, 1), metrics, participants,
            tuple(sorted(one.failures.items())), one.num_bytes, seconds,
        )  # fmt: skip

    def _tell(self, record: RoundRecord) -> None:
        for line in self._notes.lines(dict(record.failures), {}, ()):
            print(f"round {record.server_round}: {line}", file=sys.stderr)
        if self.directory:
            self.directory.append_history(history_line(record, 0))
            self.directory.append_timing(timing_line(record))
        if self.log:
            self.log.scalars(curves_of(record), record.server_round)

    def _require_answers(self, one: OpenRound) -> None:
        """Raise QuorumLost where no silo has ever answered a type of message: no later round would be better."""
        never = {kind for kind, _ in one.asked} - self._answered
        if never and one.failures:
            listed = "; ".join(f"silo '{silo}': {reason}" for silo, reason in sorted(one.failures.items()))
            raise QuorumLost(one.number, f"no silo answers '{min(never)}': {listed}")


def named_round(message: Any) -> int | None:
    """Return the round that a message's config names, if it names one."""
    for record in message.content.config_records.values():
        if type(record.get("server-round")) is int:
            return record["server-round"]
    return None


def numbers_told(records: Records) -> dict[str, float]:
    """Return the numbers that an answer tells, by name, those of a list as `name.0`, `name.1`; of the older generation
    those of its metrics, too."""
    found: dict[str, float] = {}
    for name, record in records.items():
        values = record.get("metrics") or (record.get("config", {}) if name.endswith("res.metrics") else {})
        for key, value in values.items():
            listed = (
                {f"{key}.{number}": part for number, part in enumerate(value)} if type(value) is list else {key: value}
            )
            found |= {key: float(part) for key, part in listed.items() if type(part) in (int, float)}
    return found


def weighted_means(by_silo: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Return the means over silos of what all of them tell, weighted with their examples where they say how many."""
    names = [name for name in next(iter(by_silo.values())) if all(name in told for told in by_silo.values())]
    weights = {silo: next((told[name] for name in WEIGHTS if name in told), 1.0) for silo, told in by_silo.items()}
    total = sum(weights.values()) or 1.0
    return {
        name: sum(weights[silo] * told[name] for silo, told in by_silo.items()) / total
        for name in names
        if name not in WEIGHTS
    }


def curves_of(record: RoundRecord) -> dict[str, float]:
    """Return TensorBoard's tag -> value."""
    curves = {}
    for name, value in record.metrics.items():
        parts = name.split(".")
        if parts[0] == "silo":
            curves[silo_tag(parts[1], "_".join(parts[2:]))] = value
        else:
            curves[global_tag("_".join(parts[1:] if parts[0] == "federated" else parts))] = value
    curves[global_tag("bytes_sent")] = float(record.bytes_sent)
    curves[global_tag("participants")] = float(len(record.participants))
    curves[global_tag("failures")] = float(len(record.failures))
    return curves
