"""Strong-Wolfe line search for many problems at once: each has its own bracket, each round costs each one evaluation.

Nocedal & Wright, Numerical Optimization (2006), Sec. 3.5. With phi(t) = f(x + t d) the accepted t satisfies

    phi(t) <= phi(0) + c1 t phi'(0)      sufficient decrease
    |phi'(t)| <= -c2 phi'(0)             curvature

`low` always satisfies the first condition and has phi' < 0; `high`, where there is one, fails the first condition, lies
above `low`, or has phi' >= 0. So an acceptable step lies between them.
"""

from dataclasses import dataclass

import torch

SUFFICIENT_DECREASE, CURVATURE = 1e-4, 0.9
MAX_TRIALS = 20
"""Trials after which the best step so far is taken."""
MARGIN = 0.1
"""A new trial keeps this share of the bracket away from its ends."""


@dataclass
class Brackets:
    """State of one search per problem; all tensors are [n]. float64: differences of nearly equal values decide."""

    value: torch.Tensor
    """phi(0)"""
    slope: torch.Tensor
    """phi'(0), negative"""
    step: torch.Tensor
    """The trial under way."""
    low: torch.Tensor
    low_value: torch.Tensor
    low_slope: torch.Tensor
    high: torch.Tensor
    """Infinite while the interval is still growing."""
    high_value: torch.Tensor
    high_slope: torch.Tensor
    trials: torch.Tensor

    @classmethod
    def start(cls, value: torch.Tensor, slope: torch.Tensor, step: torch.Tensor) -> "Brackets":
        """Begin searches at phi(0) = value with first trials `step`."""
        zero, infinite = torch.zeros_like(value), torch.full_like(value, torch.inf)
        return cls(
            value, slope, step.clone(), zero, value, slope, infinite, infinite.clone(), zero.clone(), zero.clone()
        )

    def renew(self, where: torch.Tensor, value: torch.Tensor, slope: torch.Tensor, step: torch.Tensor) -> None:
        """Begin new searches for the problems `where` [n], bool."""
        fresh = Brackets.start(value, slope, step)
        for name, tensor in vars(self).items():
            setattr(self, name, torch.where(where, getattr(fresh, name), tensor))

    def judge(self, value: torch.Tensor, slope: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (accepted, failed) [n], bool, for phi and phi' at the trials, and set the next trials of the others.

        failed: no step was found that decreases phi enough; the trials have run out.
        """
        self.trials = self.trials + 1
        finite = torch.isfinite(value) & torch.isfinite(slope)
        enough = finite & (value <= self.value + SUFFICIENT_DECREASE * self.step * self.slope)
        lowest = enough & (value < self.low_value)
        flat = slope.abs() <= -CURVATURE * self.slope
        # Out of trials, a step that decreases phi is better than none.
        accepted = enough & (flat | (self.trials >= MAX_TRIALS))
        failed = ~accepted & (self.trials >= MAX_TRIALS)
        rising = ~lowest | (slope >= 0)
        self._narrow(rising, value, slope, finite)
        self.step = torch.where(accepted | failed, self.step, self._next_trial())
        return accepted, failed

    def _narrow(self, rising: torch.Tensor, value: torch.Tensor, slope: torch.Tensor, finite: torch.Tensor) -> None:
        nothing = torch.full_like(value, torch.nan)
        self.high = torch.where(rising, self.step, self.high)
        self.high_value = torch.where(rising, torch.where(finite, value, nothing), self.high_value)
        self.high_slope = torch.where(rising, torch.where(finite, slope, nothing), self.high_slope)
        self.low = torch.where(rising, self.low, self.step)
        self.low_value = torch.where(rising, self.low_value, value)
        self.low_slope = torch.where(rising, self.low_slope, slope)

    def _next_trial(self) -> torch.Tensor:
        width = self.high - self.low
        inside = torch.nan_to_num(self._cubic_minimum(), nan=torch.nan, posinf=torch.nan, neginf=torch.nan)
        inside = torch.where(torch.isnan(inside), self.low + width / 2, inside)
        inside = torch.minimum(torch.maximum(inside, self.low + MARGIN * width), self.high - MARGIN * width)
        return torch.where(torch.isinf(self.high), 2 * torch.maximum(self.step, self.low), inside)

    def _cubic_minimum(self) -> torch.Tensor:
        """Minimum of the cubic through values and slopes at both ends (Nocedal & Wright, Eq. 3.59)."""
        width = self.high - self.low
        first = self.low_slope + self.high_slope - 3 * (self.high_value - self.low_value) / width
        second = (first.square() - self.low_slope * self.high_slope).clamp_min(0).sqrt()
        share = (self.high_slope + second - first) / (self.high_slope - self.low_slope + 2 * second)
        return self.high - width * share
