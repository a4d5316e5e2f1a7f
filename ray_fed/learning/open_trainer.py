"""Local training as people write it: samples of any form, any optimiser, and steps as a recipe says.

A `LocalTrainer` in all else: flat vectors, strategies' terms, buffers' policies. Where nothing is asked for that it
does not do already, it does it, bit for bit.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from ray_fed.config import require
from ray_fed.errors import ConfigError
from ray_fed.learning.recipe import AUTOCASTS, Recipe
from ray_fed.learning.sample_rows import SampleRows, called, stacked, table_of
from ray_fed.learning.steps import FlatOptimizer, Gradient, Loss, flat_optimizer, set_rate
from ray_fed.learning.torch_optimizer import TorchOptimizer
from ray_fed.learning.trainer import FitResult, LocalTrainer, TrainingPlan, portions

TrainingStep = Callable[[nn.Module, Any], torch.Tensor]
"""(network, batch) -> mean loss of the batch, a 0-d tensor."""
FIRST_SCALE, STEPS_TO_GROW = 2.0**16, 2000
"""Of the loss in float16, whose gradients would vanish: halved where they are not finite, doubled after so many steps
in which they were (Micikevicius et al. 2018)."""


@dataclass(frozen=True)
class LocalWork:
    """What a silo does to its samples in a step."""

    loss: Loss | None
    """(outputs, targets) -> mean loss; None: the network's outputs have a `loss`."""
    training_step: TrainingStep | None = None
    """In place of network and loss."""
    recipe: Recipe = field(default_factory=Recipe)

    def loss_of(self, module: nn.Module, rows: SampleRows | tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        """Return the mean loss of a batch."""
        batch = rows.batch() if isinstance(rows, SampleRows) else rows
        if self.training_step:
            return one_number("training_step", self.training_step(module, batch))
        inputs, targets = rows.inputs_and_targets(batch) if isinstance(rows, SampleRows) else rows
        return self.own_loss(called(module, inputs), targets)

    def own_loss(self, outputs: Any, targets: Any) -> torch.Tensor:
        """Return the mean loss of outputs, by the loss given or the network's own."""
        if self.loss is not None:
            return one_number("loss", self.loss(outputs, targets))
        return one_number("the network's loss", outputs["loss"] if isinstance(outputs, dict) else outputs.loss)


def one_number(what: str, loss: Any) -> torch.Tensor:
    """Return a loss; ConfigError for what is no mean over a batch."""
    if not isinstance(loss, torch.Tensor) or loss.numel() != 1:
        found = list(loss.shape) if isinstance(loss, torch.Tensor) else type(loss).__name__
        raise ConfigError(f"{what} must be one number, the mean over the batch, not {found}")
    return loss


@dataclass(frozen=True)
class Said:
    """What a network says of a portion of samples, and what is true there."""

    outputs: Any
    rows: SampleRows | None
    """None where samples are single tensors: their targets are elsewhere."""
    num_rows: int
    targets: Any = None
    batch: Any = None
    inputs: Any = None


class OpenTrainer(LocalTrainer):
    """Steps on samples of any form. `features` are tensors beside `targets`, or SampleRows that hold both."""

    def __init__(
        self, module: nn.Module, work: LocalWork, features: Any, targets: torch.Tensor, plan: TrainingPlan, silo: str
    ):
        self.work, self.recipe = work, work.recipe
        has_tensors = isinstance(features, torch.Tensor)
        self.is_plain = has_tensors and work.recipe.is_plain and work.loss is not None and not work.training_step
        require(self.is_plain or plan.private is None, "privacy of single samples has steps of its own; leave it out")
        self.said: list[Said] = []
        """Of the last prediction."""
        self.scale = torch.tensor([FIRST_SCALE, 0.0])
        """In float16: what the loss is multiplied with, and steps since it was last changed."""
        super().__init__(module, work.loss or _no_loss, features, targets, plan, silo)
        if isinstance(work.loss, nn.Module):  # its class weights
            work.loss.to(self.flat.device)

    def _optimizer(self) -> FlatOptimizer:
        recipe, plan = self.recipe, self.plan
        if recipe.has_flat_optimizer:
            return flat_optimizer(str(recipe.optimizer), self.flat, self.flat_gradient, plan.learning_rate)
        states = f"optimizer_state={plan.optimizer_state} needs plain adam; choose keep or reset"
        require(plan.optimizer_state in ("keep", "reset"), states)
        return TorchOptimizer(self.module, recipe, plan)

    def _gradient(self) -> Gradient:
        return super()._gradient() if self.is_plain else _no_gradient

    # ---- a round

    def check_numbers(self, config: Sequence[str], told: Sequence[str]) -> None:
        super().check_numbers(config, told)
        said = "learning_rate of single silos does not go with a scheduler of PyTorch's; use schedule="
        require("learning_rate" not in config or self.recipe.scheduler is None, said)

    def fit_round(self, vector: np.ndarray, server_round: int) -> tuple[np.ndarray, FitResult]:
        steps = self.steps_of(server_round)
        if self.is_plain:
            return self.fit(vector, steps)
        self.load(vector)
        self._begin(steps)
        self.module.train()
        if isinstance(self.optimizer, TorchOptimizer):
            self.optimizer.pace.begin(server_round)
            self.optimizer.pace.scale = self.rate_factor
        elif self.plan.config:
            set_rate(self.optimizer, self.plan.learning_rate * self.rate_factor)
        loss_sum, num_examples, num_steps = torch.zeros((), device=self.flat.device), 0, 0
        with self._lent_generator(steps.start):
            for group in _grouped(self._drawn(steps), self.recipe.accumulate):
                num_rows = [len(index) for index in group]
                loss_sum += self._step(group, sum(num_rows))
                num_steps, num_examples = num_steps + 1, num_examples + sum(num_rows)
        for term in self.terms:
            term.finish(num_steps)
        self.own_values.copy_(self.flat[self._own])
        return self.vector(), FitResult(num_steps, num_examples, float(loss_sum) / max(1, len(steps)))

    def _step(self, group: Sequence[torch.Tensor], num_rows: int) -> torch.Tensor:
        """Take one step on the mean over all samples of some mini-batches; return the sum of their losses."""
        self.flat_gradient.zero_()
        scale = float(self.scale[0]) if self.recipe.autocast == "float16" else 1.0
        losses = torch.zeros((), device=self.flat.device)
        for index in group:
            loss = self._loss(index)
            share = len(index) / num_rows
            (loss if share * scale == 1 else loss * (share * scale)).backward()
            losses += loss.detach()
        if self._is_finite(scale):
            self._clip()
            for term in self.terms:
                term(self.flat_gradient)
            self.optimizer.step()
        return losses

    def _loss(self, index: torch.Tensor) -> torch.Tensor:
        rows = self.features.index_select(0, index)
        given = rows if isinstance(rows, SampleRows) else (rows, self.targets.index_select(0, index))
        dtype = AUTOCASTS[self.recipe.autocast]
        with torch.autocast(self.flat.device.type, dtype, enabled=dtype is not None):
            return self.work.loss_of(self.module, given).float()

    def _is_finite(self, scale: float) -> bool:
        """Take the loss scale out of the gradient; False where nothing of it is left, and the step is not taken."""
        if self.recipe.autocast != "float16":
            return True
        self.flat_gradient.div_(scale)
        if not bool(torch.isfinite(self.flat_gradient).all()):
            self.scale[0], self.scale[1] = scale / 2, 0.0
            return False
        self.scale[1] += 1
        if self.scale[1] >= STEPS_TO_GROW:
            self.scale[0], self.scale[1] = scale * 2, 0.0
        return True

    def _clip(self) -> None:
        if self.recipe.clip_value is not None:
            self.flat_gradient.clamp_(-self.recipe.clip_value, self.recipe.clip_value)
        if self.recipe.clip_norm is not None:
            norm = self.flat_gradient.norm()
            self.flat_gradient.mul_((self.recipe.clip_norm / (norm + 1e-6)).clamp(max=1.0))

    # ---- what stays between rounds

    def own_state(self) -> dict[str, torch.Tensor]:
        scale = {"scale": self.scale} if self.recipe.autocast == "float16" else {}
        return super().own_state() | scale

    def kept(self) -> dict[str, Any]:
        """Return what stays with the silo between rounds besides `local_state`, in any form."""
        keeps = isinstance(self.optimizer, TorchOptimizer) and self.plan.optimizer_state == "keep"
        return {"optimizer": self.optimizer.kept()} if keeps else {}  # type: ignore[union-attr]

    def restore(self, kept: dict[str, Any]) -> None:
        """Go on from what `kept` returned."""
        if isinstance(self.optimizer, TorchOptimizer):
            self.optimizer.restore(kept["optimizer"])

    # ---- outside of training

    def _recompute_buffers(self) -> None:
        if isinstance(self.features, torch.Tensor):
            super()._recompute_buffers()
            return
        inputs = (part.inputs_and_targets(part.batch())[0] for part in portions(self.features))
        with self._lent_generator(0):
            torch.optim.swa_utils.update_bn(((one,) for one in inputs), _Called(self.module))

    @torch.no_grad()
    def predict(self, features: Any, vector: np.ndarray) -> torch.Tensor:
        """Return the outputs [rows, ...] of the model at `vector`; of outputs that are no single tensor the columns of
        all that have one entry per sample. `said` has them as they are."""
        with self.at(vector):
            self.said = list(said_of(self.module, features))
        return joined(self.said)


def joined(said: Sequence[Said]) -> torch.Tensor:
    """Return outputs of all portions, [rows, ...]; of what is no single tensor the columns, [rows, columns]."""
    outputs = [one.outputs for one in said]
    if not outputs:
        return torch.zeros(0, 1)
    if all(isinstance(one, torch.Tensor) and one.shape[1:] == outputs[0].shape[1:] for one in outputs):
        return torch.cat(outputs)
    return stacked([table_of(one.outputs, one.num_rows) for one in said])


def predicted(module: nn.Module, features: Any) -> Any:
    """Return what a network says of samples: an array [rows, ...], or a tuple or dictionary of them."""
    outputs = [one.outputs for one in said_of(module, features)]
    return _rows_of_all(outputs)


def _rows_of_all(outputs: Sequence[Any]) -> Any:
    first = outputs[0]
    if isinstance(first, Mapping):
        return {name: _rows_of_all([one[name] for one in outputs]) for name in first}
    if isinstance(first, tuple | list):
        return tuple(_rows_of_all([one[at] for one in outputs]) for at in range(len(first)))
    return torch.cat([one.float() if one.dtype == torch.bfloat16 else one for one in outputs]).cpu().numpy()


def _grouped(batches: Iterator[torch.Tensor], size: int) -> Iterator[list[torch.Tensor]]:
    while group := list(itertools.islice(batches, size)):
        yield group


class _Called(nn.Module):
    """A network of several inputs as one of a tuple."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module

    def forward(self, inputs: Any) -> Any:
        return called(self.module, inputs)


@torch.no_grad()
def said_of(module: nn.Module, features: Any) -> Iterator[Said]:
    """Yield what a network says of samples, portion by portion."""
    for part in portions(features):
        if not isinstance(part, SampleRows):
            yield Said(module(part), None, len(part), inputs=part)
        elif len(part):
            batch = part.batch()
            inputs, targets = part.inputs_and_targets(batch)
            yield Said(called(module, inputs), part, len(part), targets, batch)


def _no_loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    raise AssertionError((outputs, targets))


def _no_gradient(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    raise AssertionError((x, y))
