"""DP-SGD inside a silo: every example's gradient is clipped, and noise covers what one example can change.

Abadi et al. 2016, Algorithm 1, with torch.func instead of hooks, and in closed form for plain MLPs:

    L_t    each example with probability q, independently                          (Poisson sampling)
    g(x)   <- g(x) / max(1, |g(x)| / C)
    g      <- (sum_{x in L_t} g(x) + N(0, z^2 C^2 I)) / (q n)

    paper   code                        unit
    C       clip                        loss per parameter
    z       noise_multiplier            dimensionless
    q       1 / plan.steps_per_epoch    dimensionless
    n       public_examples             examples
    q n     expected_batch              examples

One example more or less changes the sum by at most C. The optimiser, momentum and averaging come after the noise and
cost nothing further. q and n are the plan's, the same for a silo with one example more or less: n is the number of rows
that the silo told when it opened its data, and that number is public. What epsilon counts is what the *parameters* tell
of one training example. Not covered: that number of rows, and the means and variances of the feature columns from which
the federation's scaler is made.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.func import functional_call, grad, vmap

from ray_fed.config import require
from ray_fed.errors import SiloFailed, Trouble
from ray_fed.learning.dense_clipping import DenseClippedSum, clipping_scale
from ray_fed.learning.steps import DenseReluMseGradient, Loss
from ray_fed.privacy.noise import NoiseSource
from ray_fed.reporting.writing import write_atomically

VALUES_AT_ONCE = 1 << 24
"""Gradient values of single examples that are held at a time: 64 MiB."""


@dataclass(frozen=True)
class PrivateSteps:
    """How the steps of a silo are made private."""

    noise_multiplier: float
    """Standard deviation of the noise, in units of `clip`."""
    clip: float = 1.0
    """Longest gradient of one example that counts in full (2-norm)."""
    most_steps: int | None = None
    """Steps after which the silo answers no more; restarted rounds count again, because their noise was another."""
    public_examples: int | None = None
    """Number of the silo's rows, as everybody knows it: divides the noised sum, and weighs the update. The coordinator
    fills in what the silo told when it opened its data."""

    def __post_init__(self) -> None:
        require(self.noise_multiplier > 0, f"noise_multiplier={self.noise_multiplier} must be positive")
        require(self.clip > 0, f"clip={self.clip} must be positive")
        known = self.public_examples
        require(known is None or known > 0, f"public_examples={known} must be 1 or more")

    @property
    def num_examples(self) -> int:
        """The public number of rows; ConfigError where the plan has none: the true one must not show in the noise."""
        known = self.public_examples
        require(known is not None, f"public_examples={known}: private steps need a number of rows that is public")
        assert known is not None
        return known


class PrivateGradient:
    """The noised mean of clipped per-example gradients, written into `flat_gradient`; a `Gradient`.

    Returns 0 for the loss: the loss of a silo's rows is not covered by the noise, so it is not told.
    """

    def __init__(
        self,
        module: nn.Module,
        loss: Loss,
        flat_gradient: torch.Tensor,
        private: PrivateSteps,
        expected_batch: float,
        source: NoiseSource,
    ):
        _require_separate_rows(module)
        self.module, self.loss, self.flat_gradient = module, loss, flat_gradient
        self.private, self.expected_batch, self.source = private, expected_batch, source
        self.zero = torch.zeros((), device=flat_gradient.device)
        fits = DenseReluMseGradient.fits(module, loss)
        self._dense = DenseClippedSum(DenseReluMseGradient(module), flat_gradient) if fits else None  # type: ignore[arg-type]
        self._per_example = vmap(grad(self._loss_of_one), in_dims=(None, 0, 0), randomness="different")

    def __call__(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        noise = torch.from_numpy(self.source.normal(self.flat_gradient.numel()))
        total = noise.to(self.flat_gradient) * (self.private.noise_multiplier * self.private.clip)
        if self._dense:
            total += self._dense(x, y, self.private.clip)
        else:
            for part, target in self._portions(x, y):
                total += self.clipped_sum(part, target)
        torch.div(total, self.expected_batch, out=self.flat_gradient)
        return self.zero

    def clipped_sum(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Return sum_x g(x) min(1, C / |g(x)|), [num_parameters], without noise."""
        parameters = {name: value.detach() for name, value in self.module.named_parameters()}
        found = self._per_example(parameters, x, y)
        gradients = torch.cat([found[name].flatten(1) for name in parameters], dim=1)
        norms = gradients.norm(dim=1)
        return clipping_scale(norms, self.private.clip) @ torch.where(norms.isfinite()[:, None], gradients, 0.0)

    def _portions(self, x: torch.Tensor, y: torch.Tensor):
        rows = max(1, VALUES_AT_ONCE // self.flat_gradient.numel())
        return zip(x.split(rows), y.split(rows), strict=True) if len(x) else ()

    def _loss_of_one(self, parameters: dict[str, torch.Tensor], x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return self.loss(functional_call(self.module, parameters, (x[None],)), y[None])


class Spent:
    """How many private steps of a session a silo has taken, across restarts of its process; `folder=""` forgets."""

    def __init__(self, private: PrivateSteps, folder: str, silo: str, session: str):
        self.private, self.silo = private, silo
        self.path = Path(folder) / silo / f"{session}.privacy.json" if folder else None
        self.steps = int(json.loads(self.path.read_text())["steps"]) if self.path and self.path.exists() else 0

    def take(self, num_steps: int) -> None:
        """Count steps before they are taken; SiloFailed when they would exceed what the session may spend."""
        most = self.private.most_steps
        if most is not None and self.steps + num_steps > most:
            reason = f"its privacy budget is spent: {self.steps} of {most} private steps are taken"
            raise SiloFailed(self.silo, "training", reason, failure=Trouble.BUDGET_SPENT)
        self.steps += num_steps
        if self.path:
            write_atomically(self.path, json.dumps({"steps": self.steps}).encode())


def chosen_rows(source: NoiseSource, num_rows: int, probability: float) -> torch.Tensor:
    """Return the positions of the rows of one step, each taken with `probability`. Which ones stays secret: the account
    counts on it."""
    return torch.from_numpy((source.uniform(num_rows) < probability).nonzero()[0])


def _require_separate_rows(module: nn.Module) -> None:
    """ConfigError for layers that mix the rows of a batch: the gradient of one example would not be its own."""
    mixing = [name for name, part in module.named_modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
    require(
        not mixing,
        f"differential privacy needs a network that treats rows one by one; {mixing} is a BatchNorm: use GroupNorm",
    )
