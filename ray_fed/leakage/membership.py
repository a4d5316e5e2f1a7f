"""Which records a model was trained on, from its losses (Yeom et al. 2018): those of members are smaller.

With shadow models (shadow_models.py) each loss is compared with what it is for that record in and out of training,
which tells few members more surely: the rate at one false alarm in a hundred says how many. The attacker has candidate
records with their targets, and the model that a silo returned or the federation ended with.
"""

from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import norm, rankdata

from ray_fed.federation.task import Task

LEVEL = 0.95
FALSE_ALARMS = 0.01
"""Share of records that are no members, at which single members are named."""
LOSS, SHADOWS, ANSWERS = "loss", "shadow models", "evaluation answers"


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
    exposed: int = 0
    """Members of whom the attacker is so sure that at most `FALSE_ALARMS` of the others are named with them."""
    attack: str = LOSS
    tests: int = 1
    """Models of this kind that were asked: the interval is wider, so that the largest of so many is not chance."""
    is_in_update: bool = False
    """Whether the model is a silo's own answer, not one that all silos get."""

    @property
    def interval(self) -> tuple[float, float]:
        """Return the 95 % interval of the AUC (Hanley & McNeil 1982), for all `tests` together (Bonferroni)."""
        auc = min(max(self.auc, 1e-6), 1 - 1e-6)
        first, second = auc / (2 - auc), 2 * auc**2 / (1 + auc)
        spread = auc * (1 - auc) + (self.members - 1) * (first - auc**2) + (self.others - 1) * (second - auc**2)
        error = norm.ppf(1 - (1 - LEVEL) / 2 / self.tests) * np.sqrt(spread / (self.members * self.others))
        return max(0.0, float(auc - error)), min(1.0, float(auc + error))

    @property
    def share(self) -> float:
        """Return the advantage 2 AUC - 1 over guessing, 0 to 1; 0 where the interval holds chance."""
        return max(0.0, 2 * self.auc - 1) if self.interval[0] > 0.5 else 0.0


def membership(
    silo: str, of: str, of_members: np.ndarray, of_others: np.ndarray, attack: str = LOSS, tests: int = 1,
    is_in_update: bool = False,
) -> Membership:  # fmt: skip
    """Return what losses of members [m] and of others [n] tell, or other numbers that are smaller for members; both at
    least one."""
    ranks = rankdata(np.concatenate([of_members, of_others]))
    members, others = len(of_members), len(of_others)
    below = ranks[:members].sum() - members * (members + 1) / 2
    auc = float(1 - below / (members * others))
    limit = np.sort(of_others)[int(FALSE_ALARMS * others)]
    exposed = int((of_members < limit).sum())
    return Membership(silo, of, auc, members, others, exposed, attack, tests, is_in_update)


def exposure_bits(of_members: np.ndarray, of_others: np.ndarray) -> np.ndarray:
    """Return for each member [m] how exposed it is, in bits: minus the logarithm of the share of others that are at
    least as suspicious (Carlini et al. 2019, with others in the place of all that could be). Smaller numbers are more
    suspicious."""
    there = np.sort(of_others)
    return np.log2((1 + len(there)) / (1 + np.searchsorted(there, of_members, side="right")))


def row_losses(task: Task, outputs: torch.Tensor, targets: torch.Tensor) -> np.ndarray:
    """Return the task's loss of each row [rows], from what the network gives and what it learns [rows, ...]."""
    pairs = zip(outputs.split(1), targets.split(1), strict=True)
    return np.array([float(task.loss(output, target)) for output, target in pairs])
