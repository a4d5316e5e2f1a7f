"""What an audit found, and whether that is more than allowed."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from pipelines.leakage.threats import (
    CRAFTED,
    LISTED,
    MARGINALS,
    MEMBERSHIP,
    MODELS,
    NOTHING_KNOWN,
    PROPERTY,
    SILOS,
    THREAT_MODELS,
    WITH,
)
from ray_fed.leakage.attribution import Attributed
from ray_fed.leakage.audit import ONE_ROUND, ROUNDS_TOGETHER, MessageAudit
from ray_fed.leakage.fidelity import wilson_interval
from ray_fed.leakage.listed_records import Named, together
from ray_fed.leakage.membership import Membership
from ray_fed.leakage.property_inference import PropertyRead
from ray_fed.metrics import Metric

SUM = "secure sum"
"""The row in which only the sum over the silos is seen."""
NOTHING = "none"
GRADIENT = "gradient"
"""How kinds of message begin that a federation of rounds does not send."""
FOUND_NOTHING, NONE_TRIED = "nothing found", "none that was tried"
Found = MessageAudit | Membership | PropertyRead


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
    of_models: list[MessageAudit] = field(default_factory=list)
    """Of changes of the global model, as another silo sees them."""
    of_crafted: list[MessageAudit] = field(default_factory=list)
    """Answers to crafted models in the first round, as the coordinator sees them."""
    of_crafted_batches: list[MessageAudit] = field(default_factory=list)
    """Gradients of a whole batch at crafted models."""
    attributed: list[Attributed] = field(default_factory=list)
    """Whose the records are that were named in the sums of kinds of message."""
    of_kinds: list[MessageAudit] = field(default_factory=list)
    """One per kind of message, defence and silo; under `SUM` for the sum over the silos."""
    of_changes: dict[str, list[MessageAudit]] = field(default_factory=dict)
    """Way to train -> the first round's updates; "" as set up."""
    of_changed_sums: dict[str, list[MessageAudit]] = field(default_factory=dict)
    """The same, where only the sum of the round is seen."""
    costs: dict[str, float] = field(default_factory=dict)
    """Defence or change -> what the metric comes to after training with it; "" as set up."""
    memberships: list[Membership] = field(default_factory=list)
    """Of the attacked updates and of the model of the whole run, per silo."""
    properties: list[PropertyRead] = field(default_factory=list)
    """Means over each silo's rows, read from its first update."""
    untried: dict[str, str] = field(default_factory=dict)
    """Threat model -> why it was not tried."""
    rounds: tuple[int, int, int] = (0, 0, 0)
    """Rounds attacked, the last round replayed, rounds of the run."""
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
        """Return the defence under which no attack finds anything in this kind of message, nor in those of several
        rounds together where it is one of a round, and the metric is best."""
        if leak.worst_share == 0:
            return FOUND_NOTHING
        mine = [one for one in self.of_kinds if one.kind in self._beside(leak.kind) and one.silo == leak.silo]
        leaking = {one.kind for one in mine if one.defence == NOTHING and one.worst_share}
        if not leaking:
            return NONE_TRIED  # a later round leaks what those did not in which defences were tried
        there = (NOTHING, SUM) if self.is_summed else (NOTHING,)
        names = dict.fromkeys(one.defence for one in mine if one.defence not in there)
        withstood = [name for name in names if self._withstands(name, leak, mine, leaking)]
        return min(withstood, key=lambda name: self.metric.gain(0.0, self.costs.get(name, 0.0)), default=NONE_TRIED)

    def _withstands(
        self, defence: str, leak: MessageAudit, mine: Sequence[MessageAudit], leaking: Iterable[str]
    ) -> bool:
        """Whether a defence was attacked in every kind of message that leaks without it, and nothing was found in any
        kind; a secure sum in the sums of all attacked rounds."""
        tried = [one for one in mine if one.defence == defence]
        if defence == SUM and not leak.kind.startswith(GRADIENT):
            return not self._sum_leaks(leak.silo)
        return {one.kind for one in tried} >= set(leaking) and not any(one.worst_share for one in tried)

    def _sum_leaks(self, silo: str) -> bool:
        """Whether any sum, of any round or of several together, gives something of a silo away."""
        return any(one.worst_share for one in self.of_sums if one.silo == silo)

    def _beside(self, kind: str) -> tuple[str, ...]:
        """Return the kinds that a defence must withstand with this one."""
        together = kind.replace(ONE_ROUND, ROUNDS_TOGETHER)
        return (together.replace(ROUNDS_TOGETHER, ONE_ROUND), together)

    @property
    def shown(self) -> list[MessageAudit]:
        """Return what the coordinator sees."""
        return self.of_sums if self.is_summed and self.of_sums else self.of_rounds

    @property
    def rounds_words(self) -> str:
        attacked, last, whole = self.rounds
        which = f"{attacked} of {last} replayed rounds attacked"
        return f"{which}, the whole run" if last == whole else f"{which}, of a run of {whole}: what is later is unknown"

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


def tried(findings: Findings) -> dict[str, list[Found]]:
    """Return threat model -> what its attacks found in what is really sent; those that were not tried are left out."""
    in_clear = not findings.is_summed
    has_list = any(one.named for one in findings.shown)
    found: dict[str, Sequence[Found]] = {
        NOTHING_KNOWN: findings.shown,
        MARGINALS: findings.shown if has_list else [],
        LISTED: [one for one in findings.shown if one.named],
        MODELS: findings.of_models,
        SILOS: [*findings.of_rounds, *(() if in_clear else _behind_masks(findings))] if findings.of_sums else [],
        MEMBERSHIP: [one for one in findings.memberships if in_clear or not one.is_in_update],
        PROPERTY: findings.properties if in_clear else [],
        CRAFTED: findings.of_crafted,
    }
    return {model: list(found[model]) for model in THREAT_MODELS if found[model]}


def _behind_masks(findings: Findings) -> list[Found]:
    """Return what the updates of single silos tell, which all others together see."""
    return [*(one for one in findings.memberships if one.is_in_update), *findings.properties]


class LeakLimit:
    """Whether any message, as the federation is set up, gives away more of a silo than allowed, per threat model."""

    def __init__(self, limits: Mapping[str, float], findings: Findings, named: Collection[str] = ()):
        """named: threat models that must be tried, as each has a limit of its own."""
        self.findings = findings
        self.unchecked = {model: why for model, why in findings.untried.items() if model in named}
        """Threat models with a limit of their own that were not tried, and why."""
        self.worst = {model: max(of, key=lambda one: share(one, model)) for model, of in tried(findings).items()}
        self.limits = {model: limit for model, limit in limits.items() if model in self.worst}

    @property
    def has_failed(self) -> bool:
        return bool(self.broken or self.unchecked)

    @property
    def broken(self) -> list[str]:
        """Threat models under which more is given away than allowed."""
        return [model for model, limit in self.limits.items() if share(self.worst[model], model) > limit]

    @property
    def words(self) -> str:
        """Return the verdict in one line."""
        said = "; ".join(f"{WITH[model]}, {said_of(self.worst[model], model)}" for model in self.broken or self.worst)
        if self.unchecked:
            why = "; ".join(f"max_leak={model} was not checked: {why}" for model, why in self.unchecked.items())
            return f"failed: {why}; most found: {said}"
        if not self.limits:
            return f"most found: {said}"
        named = ", ".join(f"{model}:{limit:g}" for model, limit in self.limits.items())
        if not self.broken:
            return f"passed: these attacks find no more than max_leak={named} allows; most found: {said}"
        return f"failed: max_leak={named} is exceeded; {said}; {self._remedy()}"

    def _remedy(self) -> str:
        worst = self.worst[self.broken[0]]
        if isinstance(worst, Membership):
            return "train for fewer rounds, on more rows, or with DP-SGD"
        withstood = self.findings.cheapest(worst) if isinstance(worst, MessageAudit) else NONE_TRIED
        if withstood == SUM:
            return "of a secure sum these attacks find nothing, unless all others are together"
        if withstood in (NONE_TRIED, FOUND_NOTHING):
            return "send after more local steps or larger batches, or train with DP-SGD"
        return f"under {withstood} these attacks find nothing"


def said_of(worst: Found, model: str) -> str:
    """Return in one line what the attacks of a threat model found at worst."""
    if isinstance(worst, PropertyRead):
        low, high = worst.interval
        return (
            f"silo '{worst.silo}': {worst.name} read as {worst.read:.3g} ± {worst.error:.2g} {worst.unit} (true "
            f"{worst.true:.3g}; {worst.explained:.0%} of the variance, 95 %: {low:.0%} to {high:.0%})"
        )
    if isinstance(worst, Membership):
        low, high = worst.interval
        return (
            f"silo '{worst.silo}': AUC {worst.auc:.3f} ({low:.3f} to {high:.3f}) in the {worst.of}, by {worst.attack}"
        )
    where = f"the sum over {worst.summed} silos of its" if worst.summed > 1 else "its"
    return f"silo '{worst.silo}': {_counted(worst, model)} in {where} {worst.kind}"


def share(one: Found, model: str) -> float:
    """Return the share of the records that an attacker with this knowledge gets, or the advantage over guessing, 0 to
    1."""
    if not isinstance(one, MessageAudit):
        return one.share
    shares = {MARGINALS: one.share_with_marginals, LISTED: one.named_most.share}
    shares |= dict.fromkeys((MODELS, SILOS), one.worst_share)
    return shares.get(model, one.share)


def _counted(one: MessageAudit, model: str) -> str:
    most = one.named_most
    if model == LISTED or (model in (MODELS, SILOS) and most.share > one.share_with_marginals):
        low, high = wilson_interval(most.right, most.named)
        return (
            f"{most.right} of {most.named} listed records named ({most.right / most.named:.1%}, 95 %: {low:.1%} to "
            f"{high:.1%}), {most.by_chance:.1f} by chance"
        )
    found = one.found if model in (NOTHING_KNOWN, CRAFTED) else max(one.found, one.with_marginals)
    low, high = wilson_interval(found, one.records)
    return f"{found} of {one.records} records reconstructed ({found / one.records:.1%}, 95 %: {low:.1%} to {high:.1%})"


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
