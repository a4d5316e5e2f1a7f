"""Local training that keeps a share of the rows back and ends with the parameters that are best on them.

For models that no others take part in: a silo alone, or the pooled rows. After each round the loss on the rows kept
back is looked at; after PATIENCE looks without a better one the training is over, and all further rounds return the
best parameters without a step (Prechelt 1998).
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from ray_fed.learning.steps import Loss
from ray_fed.learning.trainer import FitResult, LocalTrainer, TrainingPlan
from ray_fed.randomness import generator

PATIENCE = 8
"""Looks; a baseline is looked at 25 to 100 times."""
FEWEST_GROUPS = 10
"""With fewer groups of rows nothing is kept back, and every round is trained."""


class StoppingTrainer(LocalTrainer):
    """See `LocalTrainer`; `plan.validation_share` of the rows, whole groups, are not trained on.

    groups: of each row, what is not cut between the two; a group of its own each if empty. What is remembered is part
    of the local state: a round that is done again ends as it did.
    """

    def __init__(
        self,
        module: nn.Module,
        loss: Loss,
        features: torch.Tensor,
        targets: torch.Tensor,
        plan: TrainingPlan,
        silo: str,
        groups: Sequence[str] = (),
    ):
        kept = torch.from_numpy(kept_back(groups or range(len(features)), plan, silo)).to(features.device)
        self._watched = features[kept], targets[kept]
        self._best: torch.Tensor | None = None
        super().__init__(module, loss, features[~kept], targets[~kept], plan, silo)
        self._best = self.flat.clone()
        self._looks = torch.tensor([math.inf, 0.0])
        """The least loss so far, and looks since then."""
        self._first_state = {name: tensor.clone() for name, tensor in self.own_state().items()}

    def fit_round(self, vector: np.ndarray, server_round: int) -> tuple[np.ndarray, FitResult]:
        if not len(self._watched[0]):
            return super().fit_round(vector, server_round)
        if self._looks[1] >= PATIENCE:
            return self._ending(), FitResult(0, len(self.features), float(self._looks[0]))
        trained, result = super().fit_round(vector, server_round)
        self._look()
        is_over = self._looks[1] >= PATIENCE or server_round == self.plan.num_rounds
        return (self._ending() if is_over else trained), result

    def own_state(self) -> dict[str, torch.Tensor]:
        best = {} if self._best is None else {"best": self._best, "looks": self._looks}
        return super().own_state() | best

    @torch.no_grad()
    def _look(self) -> None:
        """Compare the loss on the rows kept back with the least one so far."""
        features, targets = self._watched
        self.module.eval()
        loss = float(self.loss(self.module(features), targets))
        if loss < float(self._looks[0]):
            self._looks.copy_(torch.tensor([loss, 0.0]))
            self._best.copy_(self.flat)  # type: ignore[union-attr]
        else:
            self._looks[1] += 1

    def _ending(self) -> np.ndarray:
        """Return the best parameters, and what else travels as it is."""
        ended = self.vector()
        assert self._best is not None
        ended[: len(self._best)] = self._best.cpu().numpy()
        return ended


def kept_back(groups: Sequence[object], plan: TrainingPlan, silo: str) -> np.ndarray:
    """Return which rows are kept back, bool [rows]: whole groups, drawn by the plan's seed."""
    names, numbered = np.unique(np.array([str(group) for group in groups]), return_inverse=True)
    if len(names) < FEWEST_GROUPS:
        return np.zeros(len(groups), bool)
    drawn = generator(plan.seed, "rows kept back", silo).random(len(names)) < plan.validation_share
    return drawn[numbered] if drawn.any() else numbered == 0
