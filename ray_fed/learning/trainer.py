"""Local training inside a silo: mini-batch steps on a flat parameter vector.

Paper (Guo et al. 2022, Algorithm 2): UpdateParameters(w_c); TrainModel(); w_c = GetParameters(). The paper names
neither its optimiser nor its scaling; Adam is ours (facts in decisions/0003).
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from ray_fed.learning.gradients import Gradient, Loss, gradient_for
from ray_fed.learning.layout import Layout, bind
from ray_fed.learning.optimizers import flat_optimizer
from ray_fed.randomness import generator


@dataclass(frozen=True)
class TrainingPlan:
    """How one silo works through one training run: everything its steps depend on besides data and parameters."""

    seed: int
    """Seed of the shuffles."""
    epochs: int
    """Passes over the silo's rows in the whole run."""
    steps_per_epoch: int
    """Mini-batches per pass; the rows are dealt into this many batches of equal size (+-1)."""
    num_rounds: int
    """Exchanges in the whole run; the steps are dealt evenly over them."""
    learning_rate: float = 1e-3
    optimizer: str = "adam"
    """adam | sgd"""
    optimizer_state: str = "keep"
    """keep | reset | average: what happens to Adam's moments when new global parameters arrive."""
    proximal_mu: float = 0.0
    """FedProx pull towards the received parameters (Li et al. 2020); 0 is FedAvg."""
    keep_local: tuple[str, ...] = ()
    """Names of parameters that every silo keeps for itself, e.g. the output bias, which absorbs the reference energy of
    its database (the idea of FedBN, Li et al. 2021, applied to other parameters)."""

    @property
    def total_steps(self) -> int:
        return self.epochs * self.steps_per_epoch

    def steps_of_round(self, server_round: int) -> range:
        """Return the global step numbers of round 1..num_rounds; the rounds together cover every step once."""
        first = (server_round - 1) * self.total_steps // self.num_rounds
        return range(first, server_round * self.total_steps // self.num_rounds)


@dataclass(frozen=True)
class FitResult:
    """What a stretch of local steps came to."""

    num_steps: int
    num_examples: int
    """Rows seen, counted once per step they took part in."""
    mean_loss: float
    """Mean training loss over the steps, in the square of the target's unit."""


class LocalTrainer:
    """A bound model, its optimiser and the silo's rows on one device.

    `features` [rows, num_features] and `targets` [rows, 1] are float32 tensors on `device`. The vector that travels
    is the parameters [P], followed by Adam's two moments [2P] when `optimizer_state` is "average".
    """

    def __init__(
        self,
        module: nn.Module,
        loss: Loss,
        features: torch.Tensor,
        targets: torch.Tensor,
        plan: TrainingPlan,
        silo: str,
    ):
        self.plan, self.silo, self.loss = plan, silo, loss
        self.features, self.targets = features, targets
        self.layout = Layout.of(module)
        self.module = module
        self.flat, self.flat_gradient = bind(module, features.device)
        self.optimizer = flat_optimizer(plan.optimizer, self.flat, self.flat_gradient, plan.learning_rate)
        self.step = _stepper(self, gradient_for(module, loss, self.flat_gradient))
        self._anchor: torch.Tensor | None = None
        self._own = _mask(self.layout, plan.keep_local, self.flat.device)
        self.own_values = self.flat[self._own].clone()
        """The silo's own values of `plan.keep_local`; what it receives for them is ignored."""

    def fit(self, vector: np.ndarray, steps: range) -> tuple[np.ndarray, FitResult]:
        """Load `vector`, take `steps`, return the new vector (a fresh array) and what happened.

        The received array is copied, never written to: it may be the shared memory of every silo on this host.
        """
        self.load(vector)
        if self.plan.proximal_mu:
            self._anchor = self.flat.clone()
        num_examples, loss_sum = 0, torch.zeros((), device=self.flat.device)
        for x, y in self._batches(steps):
            num_examples += len(x)
            loss_sum += self.step(x, y)
        mean_loss = float(loss_sum) / max(1, len(steps))
        self.own_values.copy_(self.flat[self._own])
        return self.vector(), FitResult(len(steps), num_examples, mean_loss)

    def load(self, vector: np.ndarray) -> None:
        """Set the parameters (and moments) from a received vector, by the plan's optimiser-state policy."""
        expected = self.layout.num_parameters * (
            1 + (self.plan.optimizer_state == "average") * len(self.optimizer.moments)
        )
        if vector.shape != (expected,) or vector.dtype != np.float32:
            raise ValueError(f"expected float32 [{expected}], got {vector.dtype} {list(vector.shape)}")
        parts = np.split(vector, len(vector) // self.layout.num_parameters)
        self._set_parameters(parts[0])
        if self.plan.optimizer_state == "reset":
            self.optimizer.reset()
        for moment, part in zip(self.optimizer.moments, parts[1:], strict=False):
            _copy_into(moment, part)

    def vector(self) -> np.ndarray:
        """Return a copy of the parameters (and moments) as one float32 array."""
        tensors = [self.flat, *(self.optimizer.moments if self.plan.optimizer_state == "average" else [])]
        return np.concatenate([tensor.cpu().numpy() for tensor in tensors])

    def local_state(self) -> dict[str, torch.Tensor]:
        """Return the tensors that stay with the silo between rounds, by name; writing into them restores a state."""
        moments = self.optimizer.state() if self.plan.optimizer_state == "keep" else {}
        return {**moments, **({"own": self.own_values} if self.plan.keep_local else {})}

    def _set_parameters(self, values: np.ndarray) -> None:
        _copy_into(self.flat, values)
        if self.plan.keep_local:
            self.flat[self._own] = self.own_values

    @torch.no_grad()
    def predict(self, features: torch.Tensor, vector: np.ndarray) -> torch.Tensor:
        """Return predictions [rows] of the model at `vector`, with the silo's own values where it keeps some; the
        trainer's parameters are untouched."""
        kept = self.flat.clone()
        self._set_parameters(vector[: self.layout.num_parameters])
        try:
            return self.module(features).squeeze(1)
        finally:
            self.flat.copy_(kept)

    def _batches(self, steps: range) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield (x, y) of each step; the shuffle of an epoch depends on (seed, epoch, silo) alone."""
        epoch, batches = -1, []
        for step in steps:
            if step // self.plan.steps_per_epoch != epoch:
                epoch = step // self.plan.steps_per_epoch
                batches = self._shuffled(epoch)
            index = batches[step % self.plan.steps_per_epoch]
            yield self.features.index_select(0, index), self.targets.index_select(0, index)

    def _shuffled(self, epoch: int) -> list[torch.Tensor]:
        order = generator(self.plan.seed, "shuffle", epoch, self.silo).permutation(len(self.features))
        index = torch.from_numpy(order).to(self.features.device)
        bounds = [batch * len(order) // self.plan.steps_per_epoch for batch in range(self.plan.steps_per_epoch + 1)]
        return [index[start:stop] for start, stop in itertools.pairwise(bounds)]

    def take_step(self, gradient: Gradient, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """One optimiser step on one mini-batch; returns the loss before the step (0-d)."""
        loss = gradient(x, y)
        if self._anchor is not None:
            self.flat_gradient.add_(self.flat - self._anchor, alpha=self.plan.proximal_mu)
        self.optimizer.step()
        return loss


def _mask(layout: Layout, names: Sequence[str], device: torch.device) -> torch.Tensor:
    """Return the positions of the named parameters in the flat vector; ValueError for a name that is not there."""
    unknown = set(names) - set(layout.names)
    if unknown:
        raise ValueError(f"keep_local={sorted(unknown)} are not parameters; there are: {', '.join(layout.names)}")
    positions = torch.arange(layout.num_parameters, device=device)
    parts = [
        part.reshape(-1) for name, part in zip(layout.names, layout.views(positions), strict=True) if name in names
    ]
    return torch.cat(parts) if parts else positions[:0]


def _copy_into(tensor: torch.Tensor, array: np.ndarray) -> None:
    if tensor.device.type == "cpu":
        np.copyto(tensor.numpy(), array)
    else:
        tensor.copy_(torch.from_numpy(array.copy()))


def _stepper(trainer: LocalTrainer, gradient: Gradient):
    if trainer.flat.device.type == "cuda":
        from ray_fed.learning.cuda_graphs import GraphedSteps

        return GraphedSteps(trainer, gradient)
    return lambda x, y: trainer.take_step(gradient, x, y)
