"""A training run as it is ordered from the coordinator, what each of its rounds comes to, and who may watch."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

from torch import nn

from ray_fed.federation.messages import SiloDescription, Vector
from ray_fed.federation.rounds.best_round import BestRound
from ray_fed.federation.rounds.kept_back import KeptBack
from ray_fed.federation.rounds.machine import RoundRules
from ray_fed.federation.strategies import FedAvg, LocalOnly, Models, State, Strategy
from ray_fed.learning.trainer import TrainingPlan
from ray_fed.metrics import Scores, in_one_line
from ray_fed.privacy.accounting import PrivacyAccount

EPSILON = "privacy.epsilon"
"""Name of the metric: epsilon after the round."""
STATE_BYTES_PER_VALUE = 12
"""Adam's two moments and, in SCAFFOLD, a control variate: float32 each."""


CENTRAL = "central."
"""Before the names of metrics that the coordinator's own function gives."""
EvaluateFn = Callable[[int, nn.Module], Mapping[str, float]]
"""(server_round, network in evaluation mode) -> metrics by name."""


@dataclass(frozen=True)
class Job:
    """One training run over some silos of the cohort."""

    name: str
    """Name of the session; unique among the jobs of a run."""
    silos: tuple[str, ...]
    plans: Mapping[str, TrainingPlan]
    """Silo -> what it does; all have the same num_rounds."""
    model_seed: int
    strategy: Strategy = field(default_factory=FedAvg)
    rules: RoundRules = field(default_factory=RoundRules)
    max_norm: float | None = None
    """Longest move of an update that is accepted, in the unit of the parameters."""
    evaluate_every: int = 1
    """Rounds between evaluations; round 0 and the last are always evaluated."""
    evaluate_at: tuple[int, ...] = ()
    """Rounds that are evaluated in place of every `evaluate_every`-th, besides round 0 and the last; none: those."""
    evaluate_silos: bool = True
    """Also evaluate the models on every silo's own rows."""
    single_metrics: bool = False
    """Let each silo tell its own metrics under secure aggregation, too, where its owner allows it; else they are added
    up under masks."""
    account: PrivacyAccount | None = None
    """What the noise in the silos or in the strategy promises; none where there is no noise."""
    secure_threshold: int = 0
    """Secure aggregation: silos without whose updates no sum is shown; 0 sends updates without masks."""
    kind: Literal["federated", "baseline"] = "federated"
    """A baseline exchanges nothing: each silo alone, all rows pooled."""
    initial: Vector | None = field(default=None, repr=False, compare=False)
    """What training starts from, float32 [layout.size]; None: the weights that `model_seed` gives."""
    best_round: BestRound | None = None
    """Which round's models are the outcome, and when the run ends before its last round; None: the last one's."""
    kept_back: KeptBack | None = None
    """What silos are asked about rows kept back from training; the metric KEPT_BACK, for `best_round`."""
    evaluate_fn: "EvaluateFn | None" = field(default=None, compare=False)
    """Marks the global model in the coordinator's process, beside the silos: metrics `central.<name>`."""
    last_round: int | None = None
    """Round after which the job is complete, where a privacy budget ends it before its plan."""

    @cached_property
    def any_plan(self) -> TrainingPlan:
        """One of the plans: they agree on the number of rounds and on what travels."""
        return next(iter(self.plans.values()))

    @cached_property
    def num_rounds(self) -> int:
        return self.any_plan.num_rounds if self.last_round is None else self.last_round

    def noised_steps(self, server_round: int) -> int:
        """Return how many noised releases of the account's level rounds 1 to `server_round` make."""
        by_example = self.account is not None and self.account.level == "example"
        return self.any_plan.steps_of_round(server_round).stop if by_example else server_round


@dataclass(frozen=True)
class RoundRecord:
    """What happened in one round; round 0 is the evaluation of the initial parameters."""

    job: str
    """Name of the job; "federated" for that of `pipelines.federate`."""
    kind: Literal["federated", "baseline"]
    """A baseline exchanges nothing."""
    server_round: int
    """Number of the round, from 0."""
    num_rounds: int
    """Rounds of the whole job."""
    metrics: Mapping[str, float]
    """Flat: of an evaluation `<model>.<metric>` and `silo.<name>.<metric>`; of training `train_loss` and
    `silo.<name>.train_loss`. Depends on seed and data alone."""
    participants: tuple[str, ...]
    """Silos whose updates went into the round's model, sorted."""
    failures: tuple[tuple[str, str], ...]
    """(silo, why it did not take part, or what its evaluation failed by), sorted."""
    bytes_sent: int
    """Bytes of parameters that crossed the silos' boundaries in this round, both directions."""
    seconds: Mapping[str, float] = field(compare=False)
    """`total`, `compute`, `communicate`, `evaluate` and `silo.<name>` (computing)."""
    models: Models | None = field(default=None, repr=False, compare=False)
    """The models, in the last record of a job."""
    state: State | None = field(default=None, repr=False, compare=False)
    """The strategy's state after the round: with `server_round`, all that is needed to go on from here."""
    joined: tuple[SiloDescription, ...] = ()
    """Silos that were absent at the start and came in this round: they take part from the next one on."""
    restarts: tuple[tuple[str, str], ...] = field(default=(), compare=False)
    """(silo, why) of those that died and were started again; one that redid its round leaves no other trace."""
    notes: tuple[Mapping[str, object], ...] = field(default=(), repr=False, compare=False)
    """For the coordinator's ledger: what was received, and the digest of each model."""

    unevaluated: tuple[tuple[str, str], ...] = ()
    """(silo, why its evaluation is in no metric), sorted: those of `failures` that are evaluations'."""
    pooled_over: tuple[str, ...] = ()
    """Silos over whose held-out rows the models' metrics are pooled, sorted, where some are missing that tell theirs;
    empty: nobody is missing, or there is a common test set."""
    scores: Mapping[str, Scores] = field(default_factory=dict, repr=False, compare=False)
    """Model -> what was told of it on the common test set, or on all held-out rows together, in the last record of a
    job: figures need more than the metrics."""

    def __repr__(self) -> str:
        silos = ", ".join(self.participants) if len(self.participants) <= 4 else f"{len(self.participants)} silos"
        failed = f", {len(self.failures)} failed" if self.failures else ""
        failed += f", evaluated by {', '.join(self.pooled_over)} alone" if self.pooled_over else ""
        which = f"{self.job}, round {self.server_round} of {self.num_rounds}, by {silos or 'no silo'}{failed}"
        return f"RoundRecord({which}: {self.main_metrics})"

    @property
    def main_metrics(self) -> str:
        """The metrics of the models, in one line; those of single silos are in `metrics`."""
        return in_one_line({name: value for name, value in self.metrics.items() if not name.startswith("silo.")})


def state_bytes(record: RoundRecord) -> int:
    """Return about how much a silo keeps on its disk after the round of a record."""
    largest = max((value.size for value in (record.state or {}).values()), default=0)
    return STATE_BYTES_PER_VALUE * largest


class Observer:
    """Watches a coordinator without standing in its way: override what you want to see.

    Given to `Coordinator(observers=...)`; called in its process, in the order of events. An observer that raises stops
    the run: watching must not fail in silence.
    """

    def message_received(self, silo: str, message: object, session: str = "", server_round: int = 0) -> None:
        """A message came from a silo: of the session and round it says it belongs to, "" and 0 where it has none."""

    def round_ended(self, record: RoundRecord, job: Job) -> RoundRecord:  # noqa: ARG002
        """A round is over; return its record, perhaps with notes added."""
        return record


def local_job(job: Job, plans: Mapping[str, TrainingPlan], name: str) -> Job:
    """Return the no-exchange counterpart of a job over the silos of `plans`."""
    # Nothing is averaged, so nothing is selected, refused or cut short: only restarts are as in the federation.
    rules = RoundRules(max_restarts=job.rules.max_restarts)
    return replace(
        job, name=name, silos=tuple(plans), plans=plans, strategy=LocalOnly(), rules=rules, max_norm=None,
        evaluate_silos=False, secure_threshold=0, account=None, last_round=None, kind="baseline", initial=None,
        best_round=None, kept_back=None, evaluate_fn=None,
    )  # fmt: skip
