"""What the noise is worth: epsilon at a given delta, by Google's dp-accounting (Renyi accountant, Mironov 2017).

Two neighbouring data sets differ by one training example of one silo (example level), or by one silo (silo level), that
is there or not. A model is (epsilon, delta)-private if no observer's odds between two neighbours change by more than
exp(epsilon), except with probability delta.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from ray_fed.config import require
from ray_fed.errors import ConfigError

ORDERS = (*range(2, 65), 80, 96, 128, 192, 256, 512, 1024)
"""Orders of the Renyi divergence: any choice gives an upper bound. Those between 1 and 2 serve only epsilons above 10,
and their series may fail to converge."""


@dataclass(frozen=True)
class PrivacyAccount:
    """The noise of one run, and what it may spend. Its epsilon is an upper bound that depends on no data."""

    level: Literal["example", "silo"]
    noise_multiplier: float
    """Standard deviation of the noise over the largest change that one example, or one silo, can make."""
    sampling_probability: float = 1.0
    """Chance of an example to be in a step; 1 for silos, whose choice is no secret."""
    delta: float = 1e-5
    """Chance that the promise does not hold: well below one over the number of examples (or silos)."""
    budget: float | None = None
    """Largest epsilon the run may reach; none is not bounded."""

    def __post_init__(self) -> None:
        require(0 < self.delta < 1, f"dp_delta={self.delta} must lie between 0 and 1")
        require(self.budget is None or self.budget > 0, f"dp_budget={self.budget} must be positive")

    def epsilon(self, num_steps: int) -> float:
        """Return epsilon after so many noised steps (example level) or rounds (silo level)."""
        if not num_steps:
            return 0.0
        return _epsilon(self.noise_multiplier, self.sampling_probability, num_steps, self.delta)

    def most_steps(self, planned: int) -> int:
        """Return how many of the planned steps the budget allows."""
        if self.budget is None or self.epsilon(planned) <= self.budget:
            return planned
        low, high = 0, planned  # epsilon(low) fits, epsilon(high) does not
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.epsilon(middle) <= self.budget else (low, middle)
        return low


Mechanism = tuple[float, float]
"""(noise multiplier, sampling probability) of one noised step."""


def composed_epsilon(steps: Mapping[Mechanism, int], delta: float) -> float:
    """Return epsilon after steps of several kinds together: of several sessions, runs, or points of a sweep. Renyi
    divergences add up, whoever chose the next step by looking at the last."""
    return _composed(tuple(sorted((mechanism, count) for mechanism, count in steps.items() if count)), delta)


def _epsilon(noise_multiplier: float, probability: float, num_steps: int, delta: float) -> float:
    return _composed((((noise_multiplier, probability), num_steps),), delta)


@lru_cache(maxsize=4096)
def _composed(steps: tuple[tuple[Mechanism, int], ...], delta: float) -> float:
    if not steps:
        return 0.0
    try:
        import dp_accounting
        from dp_accounting.rdp import RdpAccountant
    except ImportError as error:
        raise ConfigError(
            "differential privacy needs the package dp-accounting to count epsilon; pip install 'ray-fed[privacy]'"
        ) from error
    accountant = RdpAccountant(ORDERS)
    for (noise_multiplier, probability), num_steps in steps:
        event: dp_accounting.DpEvent = dp_accounting.GaussianDpEvent(noise_multiplier)
        if probability < 1:
            event = dp_accounting.PoissonSampledDpEvent(probability, event)
        accountant.compose(event, num_steps)
    return float(accountant.get_epsilon(delta))
