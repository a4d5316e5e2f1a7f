"""What an audit found, and whether that is more than allowed."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from pipelines.leakage.audit_config import LISTED, MEMBERSHIP, UNKNOWING
from ray_fed.leakage.audit import MessageAudit
from ray_fed.leakage.fidelity import wilson_interval
from ray_fed.leakage.listed_records import Named, together
from ray_fed.leakage.membership import Membership
from ray_fed.metrics import Metric

SUM = "secure sum"
"""The row in which only the sum over the silos is seen."""
NOTHING = "none"
FOUND_NOTHING, NONE_TRIED = "nothing found", "none tried"
WITH = {
    UNKNOWING: "knowing nothing of the records",
    LISTED: "with a list of suspects",
    MEMBERSHIP: "asking who was trained on",
}


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
    memberships: list[Membership] = field(default_factory=list)
    """Of the last update replayed and of the model of the whole run, per silo."""
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
        """Return the defence under which the attacks of both threat models find nothing of this kind of message and the
        metric is best."""
        if leak.worst_share == 0:
            return FOUND_NOTHING
        mine = [one for one in self.of_kinds if (one.kind, one.silo) == (leak.kind, leak.silo)]
        if not any(one.worst_share for one in mine if one.defence == NOTHING):
            return NONE_TRIED  # a later round leaks what the first did not
        there = (NOTHING, SUM) if self.is_summed else (NOTHING,)
        withstood = [one.defence for one in mine if one.defence not in there and one.worst_share == 0]
        return min(withstood, key=lambda name: self.metric.gain(0.0, self.costs.get(name, 0.0)), default=NONE_TRIED)

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
    """Whether any message, as the federation is set up, gives away more of a silo than allowed, per threat model."""

    def __init__(self, limits: Mapping[str, float], findings: Findings):
        self.findings = findings
        shown = findings.of_sums if findings.is_summed and findings.of_sums else findings.of_rounds
        tried: dict[str, Sequence[MessageAudit] | Sequence[Membership]] = {
            UNKNOWING: shown, LISTED: [one for one in shown if one.named], MEMBERSHIP: findings.memberships,
        }  # fmt: skip
        self.worst = {model: max(of, key=lambda one: share(one, model)) for model, of in tried.items() if of}
        self.limits = {model: limit for model, limit in limits.items() if model in self.worst}

    @property
    def broken(self) -> list[str]:
        """Threat models under which more is given away than allowed."""
        return [model for model, limit in self.limits.items() if share(self.worst[model], model) > limit]

    @property
    def words(self) -> str:
        """Return the verdict in one line."""
        said = "; ".join(self._said(model) for model in self.broken or self.worst)
        if not self.limits:
            return f"most found: {said}"
        named = ", ".join(f"{model}:{limit:g}" for model, limit in self.limits.items())
        if not self.broken:
            return f"passed: these attacks find no more than max_leak={named} allows; most found: {said}"
        return f"failed: max_leak={named} is exceeded; {said}; {self._remedy()}"

    def _said(self, model: str) -> str:
        worst = self.worst[model]
        if isinstance(worst, Membership):
            low, high = worst.interval
            return (
                f"{WITH[model]}, silo '{worst.silo}': AUC {worst.auc:.3f} ({low:.3f} to {high:.3f}) in the {worst.of}"
            )
        where = f"the sum over {worst.summed} silos of its" if worst.summed > 1 else "its"
        return f"{WITH[model]}, silo '{worst.silo}': {_counted(worst, model)} in {where} {worst.kind}"

    def _remedy(self) -> str:
        worst = self.worst[self.broken[0]]
        if isinstance(worst, Membership):
            return "train for fewer rounds, on more rows, or with DP-SGD"
        withstood = self.findings.cheapest(worst)
        if withstood == SUM:
            return "of a secure sum these attacks find nothing"
        if withstood in (NONE_TRIED, FOUND_NOTHING):
            return "send after more local steps or larger batches, or train with DP-SGD"
        return f"under {withstood} these attacks find nothing"


def share(one: MessageAudit | Membership, model: str) -> float:
    """Return the share of the records that an attacker with this knowledge gets, or the advantage over guessing, 0 to
    1."""
    if isinstance(one, Membership):
        return one.share
    return one.share if model == UNKNOWING else one.named_most.share


def _counted(one: MessageAudit, model: str) -> str:
    if model == UNKNOWING:
        low, high = wilson_interval(one.found, one.records)
        return f"{one.found} of {one.records} records reconstructed ({one.share:.1%}, 95 %: {low:.1%} to {high:.1%})"
    most = one.named_most
    return (
        f"{most.right} of {most.named} listed records named, {most.by_chance:.1f} by chance ({most.share:.1%} beyond)"
    )


def total(audits: Sequence[MessageAudit]) -> tuple[int, int]:
    """Return records found and records behind the messages, over silos."""
    return sum(one.found for one in audits), sum(one.records for one in audits)


def named_in_all(audits: Sequence[MessageAudit]) -> Named:
    """Return the records named from the list over silos, each by the attack that names most of it."""
    return together([one.named_most for one in audits])


def worst_per_silo(audits: Iterable[MessageAudit]) -> list[MessageAudit]:
    """Return of each silo the audit that found the largest share, under either threat model."""
    worst: dict[str, MessageAudit] = {}
    for one in audits:
        if one.silo not in worst or one.worst_share > worst[one.silo].worst_share:
            worst[one.silo] = one
    return list(worst.values())
