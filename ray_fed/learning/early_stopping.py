"""Local training that keeps a share of the rows back, finds out how long to train, and then trains on all rows.

For models that no others take part in: a silo alone, or the pooled rows. After each round the loss on the rows kept
back is looked at; after PATIENCE looks without a better one nothing more is tried (Prechelt 1998). The last round
starts anew and trains on all rows as long as was best: where longer was always better, that is plain training, bit for
bit.
"""

import copy
import math
from collections.abc import Sequence
from dataclasses import replace

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
    """See `LocalTrainer`; `plan.validation_share` of the rows, whole groups, are kept back until the last round.

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
        self._all, self._fresh = (features, targets), copy.deepcopy(module)
        kept = torch.from_numpy(kept_back(groups or range(len(features)), plan, silo)).to(features.device)
        self._watched = features[kept], targets[kept]
        self._first: torch.Tensor | None = None
        super().__init__(module, loss, features[~kept], targets[~kept], plan, silo)
        self._first = torch.from_numpy(self.vector())
        self._looks = torch.tensor([math.inf, 0.0])
        """The least loss so far, and the round of it."""
        self._first_state = {name: tensor.clone() for name, tensor in self.own_state().items()}

    def fit_round(self, vector: np.ndarray, server_round: int) -> tuple[np.ndarray, FitResult]:
        if not len(self._watched[0]):
            return super().fit_round(vector, server_round)
        if server_round == 1:
            assert self._first is not None
            self._first.copy_(torch.from_numpy(vector.copy()))
        trained, result = self._tried(vector, server_round)
        return self._ending(server_round) if server_round == self.plan.num_rounds else (trained, result)

    def own_state(self) -> dict[str, torch.Tensor]:
        remembered = {} if self._first is None else {"first": self._first, "looks": self._looks}
        return super().own_state() | remembered

    def _tried(self, vector: np.ndarray, server_round: int) -> tuple[np.ndarray, FitResult]:
        """Train a round without the rows kept back, and look at these; nothing where it is known how long is best."""
        least, best_round = self._looks.tolist()
        if server_round - 1 - best_round >= PATIENCE:
            return vector, FitResult(0, len(self.features), least)
        trained, result = super().fit_round(vector, server_round)
        loss = self._loss_on_rows_kept_back()
        if loss < least:
            self._looks.copy_(torch.tensor([loss, float(server_round)]))
        return trained, result

    @torch.no_grad()
    def _loss_on_rows_kept_back(self) -> float:
        features, targets = self._watched
        self.module.eval()
        return float(self.loss(self.module(features), targets))

    def _ending(self, server_round: int) -> tuple[np.ndarray, FitResult]:
        """Train on all rows, from the first vector on, for as many rounds as were best; said of one round are the rows
        that a round has."""
        assert self._first is not None
        best_round = max(1, int(self._looks[1]))
        whole = LocalTrainer(self._fresh, self.loss, *self._all, self.plan, self.silo)
        vector, result = whole.fit(self._first.numpy(), range(self.plan.steps_of_round(best_round).stop))
        num_rows = len(self._all[0]) * len(self.plan.steps_of_round(server_round)) // self.plan.steps_per_epoch
        return vector, replace(result, num_examples=max(1, num_rows))


def kept_back(groups: Sequence[object], plan: TrainingPlan, silo: str) -> np.ndarray:
    """Return which rows are kept back, bool [rows]: whole groups, drawn by the plan's seed."""
    names, numbered = np.unique(np.array([str(group) for group in groups]), return_inverse=True)
    if len(names) < FEWEST_GROUPS:
        return np.zeros(len(groups), bool)
    drawn = generator(plan.seed, "rows kept back", silo).random(len(names)) < plan.validation_share
    return drawn[numbered] if drawn.any() else numbered == 0
