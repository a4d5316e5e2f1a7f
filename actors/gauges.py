"""What Prometheus can read of a run while it goes on: gauges of the coordinator, on its node's metrics port."""

import os
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from ray.util.metrics import Gauge

from ray_fed.config import require
from ray_fed.federation.rounds.job import Job, Observer, RoundRecord

SWITCH = "RAY_FED_METRICS"
"""Environment variable of the machine that the coordinator runs on: "on" makes the gauges. The port is plain HTTP."""
GAUGES = {
    "fed_round": ("Last round that is over", ("job",)),
    "fed_rounds": ("Rounds of the whole job", ("job",)),
    "fed_loss": ("Mean training loss of the round", ("job",)),
    "fed_bytes": ("Bytes of parameters in the round, both ways", ("job",)),
    "fed_seconds": ("Seconds of the round, by what they went to", ("job", "what")),
    "fed_silo_took_part": ("1 where a silo's update went into the round's model, else 0", ("job", "silo")),
}
"""Name -> (what it is, its labels). Ray puts `ray_` before names; a dashboard of them: cluster/grafana.json."""
PARTS = ("total", "compute", "communicate", "evaluate")


class Reading(NamedTuple):
    gauge: str
    value: float
    labels: dict[str, str]


def readings(record: RoundRecord, silos: Sequence[str]) -> Iterator[Reading]:
    """Yield what a round tells. A loss that nobody told is NaN."""
    job = {"job": record.job}
    yield Reading("fed_round", record.server_round, job)
    yield Reading("fed_rounds", record.num_rounds, job)
    yield Reading("fed_loss", record.metrics.get("train_loss", float("nan")), job)
    yield Reading("fed_bytes", record.bytes_sent, job)
    for part in PARTS:
        if part in record.seconds:
            yield Reading("fed_seconds", record.seconds[part], {**job, "what": part})
    for silo in silos:
        yield Reading("fed_silo_took_part", float(silo in record.participants), {**job, "silo": silo})


class RoundGauges(Observer):
    """Sets the gauges after each round of a federated job."""

    def __init__(self) -> None:
        self.gauges = {name: Gauge(name, what, labels) for name, (what, labels) in GAUGES.items()}

    def round_ended(self, record: RoundRecord, job: Job) -> RoundRecord:
        if record.kind == "federated" and record.server_round:
            for gauge, value, labels in readings(record, job.silos):
                self.gauges[gauge].set(value, labels)
        return record


def asked_gauges() -> list[Observer]:
    """Return the gauges where this machine's environment asks for them; ConfigError for a word besides on and off."""
    word = os.environ.get(SWITCH, "off").strip().lower()
    require(word in ("on", "off"), f"{SWITCH}={word!r} must be on or off")
    return [RoundGauges()] if word == "on" else []
