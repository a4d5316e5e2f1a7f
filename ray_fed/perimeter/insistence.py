"""What an owner insists on: masks, noise, budgets. Checked by what was opened here, never by what a silo's code says.

`masks: required`: what is learned from the rows leaves under masks that at least the named partners hold, or not at
all; so neither updates in clear, nor answers to further questions, nor single gradients. `noise: required` (and an
`epsilon_budget`): updates leave with noise in every step; what has no noise of its own stays inside.
"""

from dataclasses import dataclass, field

from ray_fed.federation.messages import SessionSpec
from ray_fed.federation.secure_client import QUERIES as SECURE_QUERIES
from ray_fed.learning.private_steps import PrivateSteps
from ray_fed.learning.trainer import TrainingPlan
from ray_fed.perimeter.book import Book
from ray_fed.perimeter.gate import Gate
from ray_fed.perimeter.policy import COORDINATOR, Site

IN_SITE_FILE = "in its owner's site.yaml"
MOST_STEPS_PER_EPOCH = 1 << 20
"""The rows are dealt into so many batches: each takes memory, however few rows there are."""
MOST_KEPT_STATES = 1 << 10
"""Each takes room on the owner's disk."""
PORTION_BYTES = 1 << 24
"""Bytes are written down in such portions before they leave: the book waits for the disk. What is left of one when the
silo's process ends counts as sent."""
FEWER = "evaluate less often (evaluate_every), or let the owner allow more in site.yaml"


@dataclass
class Insistence:
    """Of one silo: what its owner's file demands, and the sessions it was opened for."""

    site: Site
    gate: Gate
    book: Book
    dataset: str
    """What the book counts by."""
    run: str = ""
    masked: set[str] = field(default_factory=set)
    """Sessions that were opened with masks at any time: their updates leave under masks only, however often asked."""
    priced: dict[str, TrainingPlan] = field(default_factory=dict)
    """Sessions whose rounds are written down in the book before they are trained."""
    taken: int = 0
    """Bytes that are written down and have not left yet."""

    def open(self, spec: SessionSpec) -> None:
        """Refuse a session in which updates would leave otherwise than their owner wants."""
        self._require_an_end(spec)
        self._require_masks(spec)
        self._require_noise(spec.plan.private)
        self.priced.pop(spec.session, None)
        if spec.plan.private and self.site.policy.epsilon_budget is not None:
            folder = f"epsilon_budget {IN_SITE_FILE} needs a folder that lasts: name one there under 'ledger'"
            self.gate.require(self.book.lasts, "session", folder)
            self.priced[spec.session] = spec.plan

    def trained_by(self, module: str) -> None:
        """Refuse a trainer of somebody's own module where noise is required: only ours are known to add it."""
        ours = module.startswith("ray_fed.")
        reason = f"noise: required {IN_SITE_FILE}, and its task trains in a way of its own, without noise that is known"
        self.gate.require(ours or not self.site.policy.needs_noise, "session", reason)

    def before_fit(self, session: str, server_round: int) -> None:
        """Write down what a round costs before it is trained; refused when that is more than is left."""
        plan, policy = self.priced[session], self.site.policy
        assert policy.epsilon_budget is not None
        steps = len(plan.steps_of_round(server_round))
        found = self.book.take_steps(
            self.dataset, mechanism_of(plan), steps, policy.epsilon_budget, policy.epsilon_delta
        )
        self.gate.require(not found, "update", found)

    def before_bytes(self, count: int) -> str:
        """Write down bytes that are to leave; return why they must not, "" where they may."""
        missing, most, found = count - self.taken, self.site.policy.max_bytes_per_dataset, ""
        for portion in (max(missing, PORTION_BYTES), missing) if missing > 0 else ():
            found = self.book.take_bytes(self.dataset, portion, most)
            if not found:
                self.taken += portion
                break
        self.taken -= 0 if found else count
        return found

    def before_evaluation(self, run: str, num_models: int) -> None:
        """Count models that are to be marked over all runs; refused when there were too many."""
        policy = self.site.policy
        found = self.book.take_evaluations(
            self.dataset, run, num_models, policy.max_evaluations_per_run, policy.max_evaluations_per_dataset
        )
        self.gate.require(not found, "metrics", f"{found}; {FEWER}")

    def before_clear(self, kind: str) -> None:
        """Refuse statistics of this silo alone where they are to leave under masks, with the updates."""
        reason = f"masks: required {IN_SITE_FILE}, and they would leave in clear"
        self.gate.require(self.site.policy.masks != "required", kind, reason)

    def before_answer(self, kind: str, query: str) -> None:
        """Refuse a further question, or a gradient, whose answer would leave in clear or without noise."""
        policy = self.site.policy
        demanded = "masks" if policy.masks == "required" else "noise"
        insists = policy.masks == "required" or policy.needs_noise
        reason = f"{demanded}: required {IN_SITE_FILE}, and this answer would leave without"
        self.gate.require(not insists or query in SECURE_QUERIES, kind, reason)

    def before_counts(self) -> None:
        """Refuse counts of rows where noise is required: they have none, under masks either."""
        reason = f"noise: required {IN_SITE_FILE}, and counts of rows have none; its predictions have no intervals"
        self.gate.require(not self.site.policy.needs_noise, "counts", reason)

    def _require_an_end(self, spec: SessionSpec) -> None:
        """Refuse a plan whose rounds would never end, or fill the memory or the disk."""
        plan, most = spec.plan, self.site.policy.max_steps_per_round
        numbers = (plan.epochs, plan.steps_per_epoch, plan.num_rounds)
        reason = "epochs, steps_per_epoch and num_rounds must be 1 or more"
        self.gate.require(all(type(number) is int and number >= 1 for number in numbers), "session", reason)
        reason = f"one round would be more than max_steps_per_round={most} {IN_SITE_FILE}; exchange more often"
        self.gate.require(plan.most_steps <= most, "session", reason)
        reason = f"more than {MOST_STEPS_PER_EPOCH} steps an epoch, or {MOST_KEPT_STATES} kept states"
        fits = plan.steps_per_epoch <= MOST_STEPS_PER_EPOCH and 0 <= spec.kept_states <= MOST_KEPT_STATES
        self.gate.require(fits, "session", reason)
        reason = "it asks for numbers of the training besides the update, and its owner lets out no metrics"
        self.gate.require(not plan.told or "metrics" in self.site.policy.kinds, "session", reason)

    def _require_masks(self, spec: SessionSpec) -> None:
        has_masks = spec.secure_threshold > 0
        reason = "its updates left under masks; the same ones do not leave in clear"
        before = spec.session in self.masked
        if self.book.lasts:  # a process that was started again must not forget it
            before |= self.book.had_masks(self.dataset, f"{self.run}/{spec.session}", has_masks)
        self.gate.require(has_masks or not before, "session", reason)
        if self.site.policy.masks == "required":
            wanted = f"masks: required {IN_SITE_FILE}"
            reason = f"it has no masks; {wanted}; ask for it with --secure-aggregation yes"
            self.gate.require(has_masks, "session", reason)
            reason = f"{wanted} names no partners: a coordinator could invent them; name their public keys there"
            self.gate.require(bool(set(self.site.partners) - {COORDINATOR}), "session", reason)
        if has_masks:
            self.masked.add(spec.session)

    def _require_noise(self, private: PrivateSteps | None) -> None:
        policy, wanted = self.site.policy, f"noise: required {IN_SITE_FILE}"
        if not policy.needs_noise:
            return
        self.gate.require(private is not None, "session", f"it has no noise; {wanted}; add --dp-noise-multiplier")
        assert private is not None
        least, clip = policy.min_noise_multiplier, policy.max_clip
        reason = f"noise_multiplier={private.noise_multiplier:g} is below min_noise_multiplier={least:g}; {wanted}"
        self.gate.require(private.noise_multiplier >= least, "session", reason)
        reason = f"clip={private.clip:g} is above max_clip={clip}; {wanted}"
        self.gate.require(clip is None or private.clip <= clip, "session", reason)


def mechanism_of(plan: TrainingPlan) -> tuple[float, float]:
    """Return (noise multiplier, sampling probability) of a plan's noised steps."""
    assert plan.private is not None
    return plan.private.noise_multiplier, 1 / plan.steps_per_epoch
