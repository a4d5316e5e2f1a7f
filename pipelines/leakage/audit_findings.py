"""What an audit found, and whether that is more than allowed."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from ray_fed.leakage.audit import MessageAudit
from ray_fed.metrics import Metric

SUM = "secure sum"
"""The row in which only the sum over the silos is seen."""
NOTHING = "none"


@dataclass
class Findings:
    """Audits of the messages as the federation is set up, and of what would be sent otherwise."""

    unit: str
    """Of the target."""
    feature_units: Mapping[str, str]
    metric: Metric
    """In which costs are told."""
    of_rounds: list[MessageAudit] = field(default_factory=list)
    """One per silo and round replayed."""
    of_sums: list[MessageAudit] = field(default_factory=list)
    """The same, where only the sum of a round is seen."""
    of_kinds: list[MessageAudit] = field(default_factory=list)
    """One per kind of message, defence and silo; under `SUM` for the sum over the silos."""
    of_changes: dict[str, list[MessageAudit]] = field(default_factory=dict)
    """Way to train -> the first round's updates; "" as set up."""
    of_changed_sums: dict[str, list[MessageAudit]] = field(default_factory=dict)
    """The same, where only the sum of the round is seen."""
    costs: dict[str, float] = field(default_factory=dict)
    """Defence or change -> what the metric comes to after training with it; "" as set up."""
    is_summed: bool = False
    """Whether the federation shows its coordinator only the sum of a round."""
    has_secret_noise: bool = False
    """Whether what the silos sent cannot be repeated."""
    verified: tuple[int, int] | None = None
    """Replayed updates that are those of the coordinator's ledger, and how many it has of these rounds."""

    @property
    def kinds(self) -> list[str]:
        return list(dict.fromkeys(one.kind for one in self.of_kinds))

    @property
    def defences(self) -> list[str]:
        return list(dict.fromkeys(one.defence for one in self.of_kinds))

    def cost(self, key: str) -> float | None:
        """Return by how much a defence or change is worse than the federation as it is set up."""
        key = "" if key == NOTHING else key
        return self.metric.gain(self.costs[""], self.costs[key]) if key in self.costs else None

    def select(self, kind: str, defence: str) -> list[MessageAudit]:
        return [one for one in self.of_kinds if (one.kind, one.defence) == (kind, defence)]

    def cheapest(self, leak: MessageAudit) -> str:
        """Return the defence under which nothing of this kind of message is found and the metric is best."""
        if leak.found == 0:
            return "not needed"
        mine = [one for one in self.of_kinds if (one.kind, one.silo) == (leak.kind, leak.silo)]
        if not any(one.found for one in mine if one.defence == NOTHING):
            return "none tried"  # a later round leaks what the first did not
        there = (NOTHING, SUM) if self.is_summed else (NOTHING,)
        stopping = [one.defence for one in mine if one.defence not in there and one.found == 0]
        return min(stopping, key=lambda name: self.metric.gain(0.0, self.costs.get(name, 0.0)), default="none tried")

    @property
    def verified_words(self) -> str:
        if self.has_secret_noise:
            return "The silos' noise is secret: the replay has other noise of the same size."
        if self.is_summed:
            return "The coordinator received updates under masks: the replay looks below them, and attacks their sum."
        if self.verified is None:
            return "The replay was not compared with what a coordinator wrote down: there is no ledger of all silos."
        same, there = self.verified
        return f"{same} of the {there} updates that the coordinator wrote down in these rounds are the replayed ones."


class LeakLimit:
    """Whether any message, as the federation is set up, gives away more of a silo than allowed."""

    def __init__(self, limit: float | None, findings: Findings):
        self.limit, self.findings = limit, findings
        shown = findings.of_sums if findings.is_summed and findings.of_sums else findings.of_rounds
        self.worst = max(shown, key=lambda one: one.share)

    @property
    def is_broken(self) -> bool:
        return self.limit is not None and self.worst.share > self.limit

    @property
    def words(self) -> str:
        """Return the verdict in one line."""
        worst = self.worst
        counted = f"{worst.found} of {worst.records} records ({worst.share:.1%})"
        where = f"the sum over {worst.summed} silos of its" if worst.summed > 1 else "its"
        said = f"silo '{worst.silo}': {counted} found in {where} {worst.kind}"
        if self.limit is None:
            return f"most found: {said}"
        if not self.is_broken:
            return f"passed: no message gives away more than max_leak={self.limit:g}; most found: {said}"
        return f"failed: max_leak={self.limit:g} is exceeded; {said}; {self._remedy()}"

    def _remedy(self) -> str:
        stopping = self.findings.cheapest(self.worst)
        if stopping == SUM:
            return "secure aggregation stops it"
        if stopping in ("none tried", "not needed"):
            return "send after more local steps or larger batches"
        return f"{stopping} stops it"


def total(audits: Sequence[MessageAudit]) -> tuple[int, int]:
    """Return records found and records behind the messages, over silos."""
    return sum(one.found for one in audits), sum(one.records for one in audits)


def worst_per_silo(audits: Iterable[MessageAudit]) -> list[MessageAudit]:
    """Return of each silo the audit that found the largest share."""
    worst: dict[str, MessageAudit] = {}
    for one in audits:
        if one.silo not in worst or one.share > worst[one.silo].share:
            worst[one.silo] = one
    return list(worst.values())
