"""Models that an attacker trains on records of the own choice, to learn how training shows.

For membership (Carlini et al. 2022, online, with one variance for all records): half of the candidates are drawn for
each shadow, so that every candidate is in some and out of others. A candidate's score is the likelihood of its loss
under the models it is in, over that under those it is not in:

    paper                       code
    phi(f(x)_y)                 log loss
    N(mu_in, s_in), N(mu_out, s_out)   `Shadows.scores`
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.stats import norm

from ray_fed.federation.messages import SessionSpec
from ray_fed.federation.silo import Silo
from ray_fed.leakage.membership import row_losses
from ray_fed.learning.layout import initial_vector, load_vector
from ray_fed.learning.trainer import LocalTrainer, TrainingPlan
from ray_fed.randomness import derived_seed, generator

SMALLEST_LOSS = 1e-9
SMALLEST_DEVIATION = 1e-3


@dataclass(frozen=True)
class Shadows:
    """Log losses of candidates under shadow models, and who was in which; both [shadows, candidates]."""

    log_losses: np.ndarray
    is_in: np.ndarray

    def scores(self, losses: np.ndarray) -> np.ndarray:
        """Return how much likelier losses [candidates] are for one who was trained on: logarithm of the ratio."""
        told = np.log(losses + SMALLEST_LOSS)
        inside, outside = (self._normal(told, self.is_in == where) for where in (True, False))
        return inside - outside

    def _normal(self, told: np.ndarray, chosen: np.ndarray) -> np.ndarray:
        counts = chosen.sum(0)
        means = np.where(chosen, self.log_losses, 0).sum(0) / np.maximum(counts, 1)
        apart = np.where(chosen, self.log_losses - means, 0)
        deviation = np.sqrt(np.square(apart).sum() / max(1, (chosen.sum() - len(counts))))
        return norm.logpdf(told, means, max(float(deviation), SMALLEST_DEVIATION))


def train_shadows(
    silo: Silo, features: torch.Tensor, targets: torch.Tensor, plan: TrainingPlan, shadows: int, seed: int
) -> Shadows:
    """Train `shadows` models (an even number) as a silo does, each on half of the candidates [n, ...], from weights of
    their own.

    plan: of the federation; as many passes, of steps of as many rows as `plan` has for this silo.
    """
    losses, is_in = [], []
    size = len(features) // 2
    rows_per_step = max(1, len(silo.samples.features) // plan.steps_per_epoch)
    alone = replace(
        plan, steps_per_epoch=max(1, size // rows_per_step), num_rounds=1, private=None, compression=None,
        control_variates=False, optimizer_state="keep", proximal_mu=0.0, validation_share=0.0, keep_local=(),
    )  # fmt: skip
    for number in range(shadows):
        order = generator(seed, "records of a shadow", number // 2).permutation(len(features))
        chosen = order[:size] if number % 2 == 0 else order[size:]
        model_seed = derived_seed(seed, "weights of a shadow", number)
        trainer = shadow_trainer(silo, features[chosen], targets[chosen], alone, model_seed)
        vector, _ = trainer.fit_round(initial_vector(silo.task.model(model_seed)), 1)
        losses.append(_log_losses(silo, vector[: trainer.layout.size], features, targets))
        is_in.append(np.isin(np.arange(len(features)), chosen))
    return Shadows(np.array(losses), np.array(is_in))


def shadow_trainer(
    silo: Silo, features: torch.Tensor, targets: torch.Tensor, plan: TrainingPlan, model_seed: int = 0
) -> LocalTrainer:
    """Return a trainer of other rows [n, ...], as the silo would have it."""
    samples = replace(silo.samples, features=features, targets=targets)
    trainer = silo.task.trainer(samples, SessionSpec("shadow", plan, model_seed, ""), silo.spec)
    assert isinstance(trainer, LocalTrainer)
    return trainer


def _log_losses(silo: Silo, vector: np.ndarray, features: torch.Tensor, targets: torch.Tensor) -> np.ndarray:
    network = load_vector(silo.task.model(0), vector).eval()
    with torch.no_grad():
        return np.log(row_losses(silo.task, network(features), targets) + SMALLEST_LOSS)


def halves(members: int, others: int, most: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return positions of as many members as others, at most `most` of each, drawn by seed."""
    count = min(members, others, most)
    return tuple(  # type: ignore[return-value]
        np.sort(generator(seed, "candidates", name).permutation(size)[:count])
        for name, size in (("members", members), ("others", others))
    )
