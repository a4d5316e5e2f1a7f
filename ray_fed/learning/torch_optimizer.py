"""Any optimiser of PyTorch on a network whose parameters are views of one flat vector."""

import copy
from typing import Any

import torch
from torch import nn

from ray_fed.learning.recipe import Pace, Recipe
from ray_fed.learning.trainer import TrainingPlan


class TorchOptimizer:
    """A `FlatOptimizer`. Its state has any form, and is kept as a whole (`kept`, `restore`)."""

    def __init__(self, module: nn.Module, recipe: Recipe, plan: TrainingPlan):
        for parameter in module.parameters():
            if not parameter.requires_grad:  # without a gradient no optimiser touches it, not even by weight decay
                parameter.grad = None
        self.optimizer = recipe.make_optimizer(module, plan.learning_rate)
        self.moments: list[torch.Tensor] = []
        self.learning_rate: float | torch.Tensor = plan.learning_rate
        self.pace = Pace(recipe, plan, self.optimizer)

    def step(self) -> None:
        self.pace.set()
        self.optimizer.step()
        self.pace.went()

    def reset(self) -> None:
        self.optimizer.state.clear()
        self.pace.restart()

    def state(self) -> dict[str, torch.Tensor]:
        """Nothing that has one form for good."""
        return {}

    def kept(self) -> dict[str, Any]:
        """Return the optimiser's own state; learning rates follow from the step."""
        return self.optimizer.state_dict()["state"]

    def restore(self, kept: dict[str, Any]) -> None:
        """Go on from what `kept` returned."""
        self.reset()
        state = {"state": copy.deepcopy(kept), "param_groups": self.optimizer.state_dict()["param_groups"]}
        self.optimizer.load_state_dict(state)
