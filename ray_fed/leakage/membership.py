"""Which records a model was trained on, from its losses (Yeom et al. 2018): those of members are smaller.

The attacker has candidate records with their targets, and the model that a silo returned or the federation ended with.
"""

from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import norm, rankdata

from ray_fed.federation.task import Task

LEVEL = 0.95


@dataclass(frozen=True)
class Membership:
    """How well losses tell a silo's training records from records like them."""

    silo: str
    of: str
    """The model: of a round's update, or the one the run ended with."""
    auc: float
    """Probability that a member has the smaller loss than one that is none; 0.5 is chance."""
    members: int
    others: int

    @property
    def interval(self) -> tuple[float, float]:
        """Return the 95 % interval of the AUC (Hanley & McNeil 1982)."""
        auc = min(max(self.auc, 1e-6), 1 - 1e-6)
        first, second = auc / (2 - auc), 2 * auc**2 / (1 + auc)
        spread = auc * (1 - auc) + (self.members - 1) * (first - auc**2) + (self.others - 1) * (second - auc**2)
        error = norm.ppf((1 + LEVEL) / 2) * np.sqrt(spread / (self.members * self.others))
        return max(0.0, float(auc - error)), min(1.0, float(auc + error))

    @property
    def share(self) -> float:
        """Return the advantage 2 AUC - 1 over guessing, 0 to 1; 0 where the interval holds chance."""
        return max(0.0, 2 * self.auc - 1) if self.interval[0] > 0.5 else 0.0


def membership(silo: str, of: str, of_members: np.ndarray, of_others: np.ndarray) -> Membership:
    """Return what losses of members [m] and of others [n] tell; both at least one."""
    ranks = rankdata(np.concatenate([of_members, of_others]))
    members, others = len(of_members), len(of_others)
    below = ranks[:members].sum() - members * (members + 1) / 2
    return Membership(silo, of, float(1 - below / (members * others)), members, others)


def row_losses(task: Task, outputs: torch.Tensor, targets: torch.Tensor) -> np.ndarray:
    """Return the task's loss of each row [rows], from what the network gives and what it learns [rows, ...]."""
    pairs = zip(outputs.split(1), targets.split(1), strict=True)
    return np.array([float(task.loss(output, target)) for output, target in pairs])
