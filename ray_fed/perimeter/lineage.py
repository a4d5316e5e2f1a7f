"""From a model back to the updates that made it, by the ledgers of its run."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ray_fed.perimeter.chain import SUMMED, Chain, Line
from ray_fed.perimeter.verification import UPDATES, place_of


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
    """Empty where it came in a sum, and its silo's ledger is not there: the coordinator has not seen it."""
    line: int | None
    """Number of the line in its silo's ledger; None where it is not there."""
    is_summed: bool = False
    """Whether a hub on the way added it to others."""


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
    own = {(chain.writer, *place_of(line)): line for chain in silos for line in chain.of_kind("update")}
    rounds: dict[int, list[Contribution]] = {}
    pending: dict[int, dict[str, Line]] = {}
    for line in coordinator.lines[: origin.number]:
        if line["kind"] == "received" and line["message"]["kind"] in UPDATES:
            message = line["message"]
            if message["session"] == origin.session:
                pending.setdefault(message["round"], {})[line["silo"]] = message
        elif line["kind"] == SUMMED and line["session"] == origin.session:
            unseen = {"num_examples": line["num_examples"], "norm": None, "sha256": ""}
            message = {**own.get((line["silo"], *place_of(line)), unseen), "is_summed": True}
            pending.setdefault(line["round"], {})[line["silo"]] = message
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
    is_summed = message.get("is_summed", False)
    return Contribution(
        server_round, silo, message["num_examples"], message["norm"], message["sha256"], line, is_summed
    )
