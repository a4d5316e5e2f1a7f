"""How a silo takes its steps, in PyTorch's own words: optimiser, schedule, clipping, accumulation, autocast."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import ceil, cos, pi
from typing import Any

import torch
from torch import nn

from ray_fed.config import require
from ray_fed.errors import ConfigError
from ray_fed.learning.trainer import TrainingPlan

MakeOptimizer = Callable[[nn.Module], torch.optim.Optimizer]
"""Makes the optimiser of a network; a class of torch.optim is given its parameters, the learning rate and the
options."""
AUTOCASTS = {"": None, "bfloat16": torch.bfloat16, "float16": torch.float16}
FLAT = ("adam", "sgd")
"""Optimisers with steps of our own on flat vectors (steps.py), as long as no option is given."""


@dataclass(frozen=True)
class Progress:
    """Where a step of a silo's optimiser stands in the whole run."""

    step: int
    """From 0; with accumulation a step takes several mini-batches."""
    total_steps: int
    """Of this silo in the whole run."""
    server_round: int
    """From 1."""
    num_rounds: int


Schedule = Callable[[Progress], float]
"""What the learning rate of each parameter group is multiplied with."""
MakeScheduler = Callable[[torch.optim.Optimizer, int], Any]
"""(optimiser, all steps of the run) -> one of torch.optim.lr_scheduler; it is stepped after each step."""

SCHEDULES: Mapping[str, Callable[[float], float]] = {
    "constant": lambda share: 1.0,  # noqa: ARG005
    "linear": lambda share: 1.0 - share,
    "cosine": lambda share: (1.0 + cos(pi * share)) / 2.0,
}
"""Name -> factor of the learning rate once this share of the run is done."""


@dataclass(frozen=True)
class Recipe:
    """How a silo takes its steps. ConfigError for what PyTorch does not have, or numbers without a meaning.

    Parameters, gradients and what travels are float32 whatever `autocast` says: that is the master copy. Only the
    forward pass and the loss of training steps are computed in the shorter type; models are marked in float32.
    """

    optimizer: str | MakeOptimizer = "adam"
    """Name of a class in torch.optim, in any case; such a class; or a function of the network that makes one."""
    optimizer_options: Mapping[str, Any] = field(default_factory=dict)
    """Weight decay, momentum, betas: what the class takes besides parameters and learning rate."""
    schedule: str | Schedule = "constant"
    """constant | linear | cosine, to 0 over the run; or a function of `Progress` that says the factor."""
    schedule_by: str = "step"
    """step | round: whether a named schedule moves with each step, or at each exchange."""
    warmup_steps: int = 0
    """Steps over which the learning rate first rises from 0, whatever follows."""
    scheduler: MakeScheduler | None = None
    """Makes a PyTorch scheduler in place of `schedule`."""
    clip_norm: float | None = None
    """Longest gradient of a step, over all parameters."""
    clip_value: float | None = None
    """Largest value of a gradient, either way."""
    accumulate: int = 1
    """Mini-batches whose samples' mean gradient makes one step; what is left of a round makes its last."""
    autocast: str = ""
    """bfloat16 | float16: type of the forward pass and the loss in training steps; float16 with a loss scale of its
    own. Empty: float32."""

    def __post_init__(self) -> None:
        if isinstance(self.optimizer, str):
            optimizer_class(self.optimizer)
        else:
            require(callable(self.optimizer), f"optimizer={self.optimizer!r} is neither a name nor makes an optimiser")
        named = isinstance(self.schedule, str)
        is_known = not named or self.schedule in SCHEDULES
        require(is_known, f"schedule={self.schedule!r} must be one of {', '.join(SCHEDULES)}, or a function")
        require(self.schedule_by in ("step", "round"), f"schedule_by={self.schedule_by!r} must be step or round")
        twice = self.scheduler is not None and (self.schedule != "constant" or self.warmup_steps)
        require(not twice, "scheduler makes the whole schedule; leave schedule and warmup_steps out")
        require(self.warmup_steps >= 0, f"warmup_steps={self.warmup_steps} must not be negative")
        for name in ("clip_norm", "clip_value"):
            value = getattr(self, name)
            require(value is None or value > 0, f"{name}={value} must be positive")
        require(self.accumulate >= 1, f"accumulate={self.accumulate} must be at least 1")
        kinds = ", ".join(kind for kind in AUTOCASTS if kind)
        require(self.autocast in AUTOCASTS, f"autocast={self.autocast!r} must be one of {kinds}, or empty")

    @property
    def has_flat_optimizer(self) -> bool:
        """Whether the optimiser is one of our own (steps.py)."""
        return self.optimizer in FLAT and not self.optimizer_options and self.has_constant_rate

    @property
    def has_constant_rate(self) -> bool:
        return self.schedule == "constant" and self.scheduler is None and not self.warmup_steps

    @property
    def is_plain(self) -> bool:
        """Whether it says no more than an optimiser of our own."""
        untouched = self.clip_norm is None and self.clip_value is None and self.accumulate == 1 and not self.autocast
        return self.has_flat_optimizer and untouched

    def make_optimizer(self, module: nn.Module, learning_rate: float) -> torch.optim.Optimizer:
        """Return the optimiser of a network's trained parameters. ConfigError for options that it does not take, and
        for one that wants the loss as a function."""
        asked = self.optimizer
        if isinstance(asked, str) or inspect.isclass(asked):
            kind: Any = optimizer_class(asked) if isinstance(asked, str) else asked
            trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
            require(len(trained) > 0, f"optimizer={named(asked)}: all parameters are frozen")
            try:
                made = kind(trained, lr=learning_rate, **self.optimizer_options)
            except (TypeError, ValueError) as error:
                said = f"optimizer={named(asked)}, {dict(self.optimizer_options)}: {' '.join(str(error).split())}"
                raise ConfigError(said) from error
        else:
            require(not self.optimizer_options, "optimizer_options go with a name or a class; say them in the function")
            made = asked(module)
        is_one = isinstance(made, torch.optim.Optimizer)
        require(is_one, f"optimizer={named(asked)} made a {type(made).__name__}, not a torch.optim.Optimizer")
        wants = inspect.signature(type(made).step).parameters.get("closure")
        needs_loss = wants is not None and wants.default is inspect.Parameter.empty
        said = f"optimizer={named(asked)} asks for the loss again and again; write a loop of your own (TorchTask(fit=))"
        require(not needs_loss, said)
        return made

    def factor(self, at: Progress) -> float:
        """Return what the learning rate is multiplied with."""
        warm = min(1.0, (at.step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        if not isinstance(self.schedule, str):
            return warm * float(self.schedule(at))
        by_round = self.schedule_by == "round"
        share = (at.server_round - 1) / at.num_rounds if by_round else at.step / max(1, at.total_steps)
        return warm * SCHEDULES[self.schedule](share)


def named(optimizer: object) -> str:
    """Return what an optimiser is called in a message and in the record of a run."""
    return optimizer if isinstance(optimizer, str) else getattr(optimizer, "__qualname__", repr(optimizer))


def optimizer_class(name: str) -> type[torch.optim.Optimizer]:
    """Return the class in torch.optim of that name, in any case; ConfigError lists them."""
    kinds = {
        key.lower(): kind
        for key, kind in vars(torch.optim).items()
        if inspect.isclass(kind) and issubclass(kind, torch.optim.Optimizer) and kind is not torch.optim.Optimizer
    }
    require(name.lower() in kinds, f"optimizer={name!r} must be one of {', '.join(sorted(kinds))}, or make one")
    return kinds[name.lower()]


class Pace:
    """Sets the learning rates of an optimiser to where a silo stands in the run, wherever it comes from.

    The position is a number, that of the next step; it is never stored, but follows from the round. What PyTorch's
    schedulers hold is made again by stepping a new one up to there.
    """

    def __init__(self, recipe: Recipe, plan: TrainingPlan, optimizer: torch.optim.Optimizer):
        self.recipe, self.plan, self.optimizer = recipe, plan, optimizer
        self._first = [_options(group) for group in optimizer.param_groups]
        self._until = [0]
        for server_round in range(1, plan.num_rounds + 1):
            steps = ceil(len(plan.steps_of_round(server_round)) / recipe.accumulate)
            self._until.append(self._until[-1] + steps)
        self._scheduler: Any = None
        self._position = -1
        self._round = 1
        self.scale = 1.0
        """Of this silo's rates in this round."""

    def begin(self, server_round: int) -> None:
        """Go to the first step of a round."""
        self._round, position = server_round, self._until[server_round - 1]
        if self.recipe.scheduler is not None and position != self._position:
            self.restart()
            self._scheduler = self.recipe.scheduler(self.optimizer, self._until[-1])
            said = "scheduler: one that wants a metric cannot follow steps; write a loop of your own (TorchTask(fit=))"
            is_stepped = not isinstance(self._scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau)
            require(is_stepped and hasattr(self._scheduler, "step"), said)
            for _ in range(position):
                self._step()
        self._position = position

    def restart(self) -> None:
        """Give all groups the options that they began with."""
        for group, first in zip(self.optimizer.param_groups, self._first, strict=True):
            parameters = group["params"]
            group.clear()
            group.update(first, params=parameters)
        self._scheduler, self._position = None, -1

    def set(self) -> None:
        """Set the rates of the next step."""
        if self.recipe.scheduler is None and not (self.recipe.has_constant_rate and not self.plan.config):
            at = Progress(self._position, self._until[-1], self._round, self.plan.num_rounds)
            factor = self.recipe.factor(at)
            for group, first in zip(self.optimizer.param_groups, self._first, strict=True):
                group["lr"] = first["lr"] * factor * self.scale

    def went(self) -> None:
        """A step was taken."""
        self._position += 1
        if self._scheduler is not None and self._position < self._until[-1]:  # some raise when stepped beyond
            self._step()

    def _step(self) -> None:
        self.optimizer._opt_called = True  # type: ignore[attr-defined]  # else it warns that no step came before
        self._scheduler.step()


def _options(group: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in group.items() if name != "params"}
