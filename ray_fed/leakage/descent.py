"""First-order steps for many problems at once, with the same two methods as `Lbfgs`: `points` and `tell`."""

import torch

DECAY_POINTS = (3 / 8, 5 / 8, 7 / 8)
"""Shares of the budget after which the step size falls to a tenth (Geiping et al. 2020, their published settings)."""


class Adam:
    """Adam (Kingma & Ba 2015), on the gradient or on its sign, optionally with step decay over `budget` evaluations."""

    def __init__(
        self, start: torch.Tensor, learning_rate: float, signed: bool = False, budget: int = 0,
        bounds: tuple[float, float] | None = None,
    ):  # fmt: skip
        self.points = start.clone()
        self.learning_rate, self.signed, self.budget, self.bounds = learning_rate, signed, budget, bounds
        self.first, self.second = torch.zeros_like(start), torch.zeros_like(start)
        self.finished = torch.zeros(len(start), dtype=torch.bool, device=start.device)
        self.steps = 0

    def tell(self, values: torch.Tensor, gradients: torch.Tensor) -> None:
        """Take values [n] and gradients [n, size] at `points`."""
        self.finished |= ~torch.isfinite(values)
        gradients = torch.where(self.finished[:, None], 0, gradients)
        gradients = gradients.sign() if self.signed else gradients
        self.steps += 1
        self.first.lerp_(gradients, 0.1)
        self.second.lerp_(gradients.square(), 0.001)
        first = self.first / (1 - 0.9**self.steps)
        second = self.second / (1 - 0.999**self.steps)
        moved = self.points - self._rate() * first / (second.sqrt() + 1e-8)
        moved = moved.clamp(*self.bounds) if self.bounds else moved
        self.points = torch.where(self.finished[:, None], self.points, moved)

    def _rate(self) -> float:
        passed = sum(self.steps > point * self.budget for point in DECAY_POINTS) if self.budget else 0
        return self.learning_rate * 0.1**passed


class GradientDescent:
    """x <- x - eta df/dx: the update as it stands in the paper's Algorithm 1."""

    def __init__(self, start: torch.Tensor, learning_rate: float):
        self.points, self.learning_rate = start.clone(), learning_rate
        self.finished = torch.zeros(len(start), dtype=torch.bool, device=start.device)

    def tell(self, values: torch.Tensor, gradients: torch.Tensor) -> None:
        """Take values [n] and gradients [n, size] at `points`."""
        self.finished |= ~torch.isfinite(values) | ~torch.isfinite(gradients).all(1)
        self.points = torch.where(self.finished[:, None], self.points, self.points - self.learning_rate * gradients)
