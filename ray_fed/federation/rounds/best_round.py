"""Which round's models are the outcome of a run, and when no further round is worth its cost.

A function of the records' metrics alone, kept in the state of each round: a run that is resumed chooses as one that was
not broken off.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from ray_fed.config import require
from ray_fed.federation.strategies import Models, State

STANDING, MODEL = "choice.standing", "choice.model."
"""Names in the state: float64 [best value, its round, evaluations since], and before the names of the best models."""


@dataclass(frozen=True)
class BestRound:
    """The models of the round with the best value of a metric are the outcome. ConfigError for numbers out of range."""

    metric: str
    """Name in a RoundRecord's metrics, such as federated.loss."""
    higher_is_better: bool = False
    patience: int | None = None
    """Evaluations without a better value after which the run ends; None: it goes on to its last round."""
    least_gain: float = 0.0
    """By how much a value must be better to count as better."""

    def __post_init__(self) -> None:
        require(self.patience is None or self.patience >= 1, f"patience={self.patience} must be at least 1")
        require(self.least_gain >= 0, f"least_gain={self.least_gain} must not be negative")

    def is_better(self, value: float, best: float) -> bool:
        """Tell whether a value is better than the best one so far; NaN never is, and anything is better than NaN."""
        if math.isnan(value) or math.isnan(best):
            return not math.isnan(value)
        gain = value - best if self.higher_is_better else best - value
        return gain > self.least_gain

    def best_round(self, values: Iterable[tuple[int, float]]) -> int:
        """Return the round with the best of (round, value); -1 where there is none."""
        best_round, best = -1, math.nan
        for server_round, value in values:
            if self.is_better(value, best):
                best_round, best = server_round, value
        return best_round


@dataclass(frozen=True)
class Standing:
    """The best models so far."""

    choice: BestRound
    best: float = math.nan
    best_round: int = -1
    since: int = 0
    """Evaluations without a better value."""
    models: Models | None = None

    @classmethod
    def of(cls, choice: BestRound, state: State) -> "Standing":
        """Return what a state says; the beginning where it says nothing."""
        if STANDING not in state:
            return cls(choice)
        best, best_round, since = state[STANDING].tolist()
        models = {name.removeprefix(MODEL): value for name, value in state.items() if name.startswith(MODEL)}
        return cls(choice, best, int(best_round), int(since), models or None)

    def after(self, server_round: int, metrics: Mapping[str, float], models: Models) -> "Standing":
        """Return the standing after a round; as it was, where the metric is not among what was told."""
        value = metrics.get(self.choice.metric)
        if value is None:
            return self
        if self.choice.is_better(value, self.best):
            return Standing(self.choice, value, server_round, 0, models)
        return Standing(self.choice, self.best, self.best_round, self.since + 1, self.models)

    @property
    def is_over(self) -> bool:
        return self.choice.patience is not None and self.since >= self.choice.patience

    def arrays(self) -> dict[str, np.ndarray]:
        """Return what a state says of it."""
        named = {f"{MODEL}{name}": vector for name, vector in (self.models or {}).items()}
        return {STANDING: np.array([self.best, self.best_round, self.since], np.float64), **named}


def without_choice(state: State) -> State:
    """Return the strategy's own part of a state."""
    return {name: value for name, value in state.items() if name != STANDING and not name.startswith(MODEL)}
