"""The Python API: one call federates a task over silos, in this process or on Ray."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import ceil
from typing import TYPE_CHECKING, Literal

from torch import nn

from pipelines.launching import FederationSpec, launched
from ray_fed.config import require
from ray_fed.errors import DataError
from ray_fed.federation.coordinator import Agreement
from ray_fed.federation.rounds.job import Job, RoundRecord
from ray_fed.federation.rounds.machine import RoundRules
from ray_fed.federation.strategies import Strategy, make_strategy
from ray_fed.federation.task import SiloSpec, Task
from ray_fed.learning.layout import load_vector
from ray_fed.learning.trainer import TrainingPlan

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Training:
    """How every silo trains, and how often they meet. ConfigError for a number that is not positive."""

    rounds: int = 10
    """Exchanges in the whole run."""
    epochs: int = 10
    """Passes of every silo over its samples in the whole run."""
    batch_size: int = 32
    """Samples of one local step of a silo."""
    learning_rate: float = 1e-3
    """Of every silo's own optimiser."""
    optimizer: Literal["adam", "sgd"] = "adam"
    """What the silos train with."""
    optimizer_state: Literal["keep", "reset", "average"] = "keep"
    """Adam's moments at an exchange."""
    buffers: Literal["average", "local", "recompute"] = "average"
    """BatchNorm's running statistics at an exchange."""
    seed: int = 0
    """Of initial weights, shuffles and the choice of silos."""

    def __post_init__(self) -> None:
        for name in ("rounds", "epochs", "batch_size", "learning_rate"):
            require(getattr(self, name) > 0, f"{name}={getattr(self, name)} must be positive")

    def plan(self, num_examples: int) -> TrainingPlan:
        """Return the plan of a silo with that many samples."""
        return TrainingPlan(
            self.seed, self.epochs, ceil(num_examples / self.batch_size), self.rounds, self.learning_rate,
            self.optimizer, self.optimizer_state, buffers=self.buffers,
        )  # fmt: skip


@dataclass(frozen=True)
class Federated:
    """What came out: the trained network and what happened in each round."""

    module: nn.Module
    """The network with the global parameters, on the CPU, in evaluation mode."""
    records: tuple[RoundRecord, ...]
    """One per round; the first is the evaluation of the initial parameters, round 0."""
    agreement: Agreement
    """What the silos said about themselves before training."""

    def __repr__(self) -> str:
        last = self.records[-1]
        size = sum(parameter.numel() for parameter in self.module.parameters())
        what = f"{len(self.agreement.silos)} silos, {last.server_round} rounds, {size:,} parameters"
        return f"Federated({what}: {last.main_metrics})"

    @property
    def metrics(self) -> dict[str, float]:
        """The last round's metrics: `federated.<name>` and `silo.<silo>.<name>`."""
        return dict(self.records[-1].metrics)

    def history(self) -> "pd.DataFrame":
        """Return one row per round, indexed by its number: metrics, participants, failures, over which
        silos metrics are pooled where not over all, bytes sent."""
        import pandas as pd

        rows = [
            {
                "round": record.server_round,
                "num_participants": len(record.participants),
                "failures": "; ".join(f"{silo}: {reason}" for silo, reason in record.failures),
                "pooled_over": ", ".join(record.pooled_over),
                "bytes_sent": record.bytes_sent,
                **record.metrics,
            }
            for record in self.records
        ]
        return pd.DataFrame(rows).set_index("round")


def federate(
    task: Task,
    silos: Sequence[SiloSpec],
    training: Training | None = None,
    *,
    test: SiloSpec | None = None,
    strategy: Strategy | str = "fed_avg",
    rules: RoundRules | None = None,
    cohort: Literal["ray", "local"] = "ray",
    address: str = "local",
    on_round: Callable[[RoundRecord], object] | None = None,
) -> Federated:
    """Train one network over all silos; their samples stay where they are.

    strategy: a name that `make_strategy` knows, or an object with the methods of `Strategy`.
    rules: when a round counts; by default every silo takes part, and failures are gone on without.
    test: a common test set, published by its owner; without one, models are marked on the silos' held-out samples.
    cohort: "ray" makes every silo an actor on the cluster at `address` ("local" starts a private one, or uses the one
    this process is connected to); "local" keeps all silos in this process, with bit-equal results. A cluster that is
    joined runs the ray-fed installed at its nodes, or, with RAY_FED_SHIP_CODE=yes, this process's.
    on_round: called with each RoundRecord as it comes.

    Raises ConfigError, DataError, PlacementError or SiloRefused before training; QuorumLost or SiloFailed during it.
    """
    training = training or Training()
    chosen = make_strategy(strategy) if isinstance(strategy, str) else strategy
    names = tuple(spec.name for spec in silos)
    require(len(names) > 0, "silos is empty; give at least one SiloSpec")
    require(len(set(names)) == len(names), f"silo names {names} must differ")
    rules = rules or RoundRules()
    if test is not None:
        test = replace(test, possession=task.possession(test.source))
    members = FederationSpec(silos, task, test, names)
    with launched(members, cohort, address, rules.round_timeout) as (coordinator, _):
        agreement = coordinator.agree()
        plans = {name: training.plan(_examples(agreement, name)) for name in names}
        records = []
        for record in coordinator.run(Job("federated", names, plans, training.seed, chosen, rules)):
            records.append(record)
            if on_round:
                on_round(record)
    last = records[-1].models
    assert last is not None
    vector = next(iter(last.values()))
    return Federated(load_vector(task.model(training.seed), vector).eval(), tuple(records), agreement)


def _examples(agreement: Agreement, name: str) -> int:
    num = agreement.silos[name].num_examples
    if num < 1:
        raise DataError(f"silo '{name}' has no usable training samples")
    return num
