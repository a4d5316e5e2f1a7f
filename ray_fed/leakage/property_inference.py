"""What an update tells of a silo's rows as a whole: their mean target, their mean of a feature.

Ganju et al. 2018 and Melis et al. 2019 with shadow silos: the attacker has records like the silo's, draws silos in
which the property differs, trains each for a round from the model that the silo was sent, and learns to read the
property off the answer. What is read is how the predictions at some records move, so that the order of units does not
matter; read by ridge regression. How far to trust it is measured on further shadow silos, made of other records: shadow
silos of the same records are more alike than the attacked one is to any of them.

    p_i: property of shadow silo i      m_i: moves of its predictions      read: p = w^T m + b
"""

from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from ray_fed.federation.silo import Silo
from ray_fed.leakage.shadow_models import shadow_trainer
from ray_fed.learning.layout import load_vector
from ray_fed.learning.trainer import TrainingPlan
from ray_fed.randomness import generator

SHADOW_SILOS, CHECKS = 32, 16
"""Silos that the attack learns from, and silos of other records on which its error is measured."""
PROBES = 200
"""Records at which predictions are compared: in no shadow silo, as in no real one."""
STRONGEST_TILT = 1.5
"""Of the weights with which records are drawn, in standard deviations of the property."""
RIDGES = 10.0 ** np.arange(-8, 3)
"""Of the mean square of a move: the ridge is the one with the smallest error on silos left out, one at a time."""

SMALLEST_FREEDOM = 1e-6
"""One minus the leverage of a shadow silo, below which its error when left out is rounding."""


@dataclass(frozen=True)
class PropertyRead:
    """One property of a silo's rows, as read from one of its updates; in the property's unit."""

    silo: str
    name: str
    unit: str
    true: float
    read: float
    error: float
    """Root mean square error of the attack on shadow silos of other records."""
    guess_error: float
    """The same of one who has no update and guesses the mean of all shadow silos."""

    @property
    def explained(self) -> float:
        """Return the share of the variance among shadow silos that the attack explains (R^2), 0 to 1."""
        return max(0.0, 1 - (self.error / self.guess_error) ** 2) if self.guess_error > 0 else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        """Return the 95 % interval of `explained`, by Fisher's transform of its root, the correlation."""
        middle, wide = np.arctanh(min(self.explained, 1 - 1e-9) ** 0.5), 1.96 / (CHECKS - 3) ** 0.5
        return float(np.tanh(max(0.0, middle - wide)) ** 2), float(np.tanh(middle + wide) ** 2)

    @property
    def share(self) -> float:
        """Return `explained`; 0 where its interval holds 0."""
        return self.explained if self.interval[0] > 0 else 0.0


@dataclass(frozen=True)
class Property:
    """Something of each record [num_rows] whose mean over a silo's records is asked for."""

    name: str
    unit: str
    of_public: np.ndarray
    """Of the attacker's records, in the property's unit."""
    true: float
    """Mean over the silo's records."""


def read_properties(
    silo: Silo, features: torch.Tensor, targets: torch.Tensor, asked: list[Property], plan: TrainingPlan,
    sent: np.ndarray, moved_to: np.ndarray, server_round: int,
) -> list[PropertyRead]:  # fmt: skip
    """Return what an update tells of each property.

    features [n, ...], targets [n, ...]: the attacker's records, as the network sees them; sent, moved_to: vectors that
    the silo was sent in `server_round` and returned.
    """
    num_probes = min(PROBES, len(features) // 4)
    middle = num_probes + (len(features) - num_probes) // 2
    moves_of = partial(_moves, silo, features[:num_probes], sent)
    moves, true = [], []
    for count, first, last in ((SHADOW_SILOS, num_probes, middle), (CHECKS, middle, len(features))):
        drawn = _shadow_silos(asked, count, first, last, len(silo.samples.features))
        trainers = (shadow_trainer(silo, features[chosen], targets[chosen], plan) for chosen in drawn)
        moves.append(np.array([moves_of(trainer.fit_round(sent, server_round)[0]) for trainer in trainers]))
        true.append([np.array([one.of_public[chosen].mean() for chosen in drawn]) for one in asked])
    return [
        _read(silo.spec.name, one, (moves[0], true[0][place]), (moves[1], true[1][place]), moves_of(moved_to))
        for place, one in enumerate(asked)
    ]


def _shadow_silos(asked: list[Property], count: int, first: int, last: int, size: int) -> list[np.ndarray]:
    """Return the records of `count` silos of at most `size` records, from positions `first` to `last`, half at most of
    these in each."""
    rows = min(size, (last - first) // 2)
    return [first + _tilted(asked[number % len(asked)].of_public[first:last], rows, number) for number in range(count)]


def _moves(silo: Silo, probes: torch.Tensor, sent: np.ndarray, vector: np.ndarray) -> np.ndarray:
    size = sum(parameter.numel() for parameter in silo.task.model(0).parameters())
    before, after = (load_vector(silo.task.model(0), part[:size]).eval() for part in (sent, vector))
    with torch.no_grad():
        return (after(probes) - before(probes)).flatten().double().numpy()


def _tilted(values: np.ndarray, rows: int, number: int) -> np.ndarray:
    """Return `rows` positions, drawn so that large values, or small ones, come more often."""
    draw = generator(0, "a shadow silo", number)
    standard = (values - values.mean()) / max(float(values.std()), np.finfo(float).tiny)
    weights = np.exp(np.clip(draw.uniform(-STRONGEST_TILT, STRONGEST_TILT) * standard, -20, 20))
    return draw.choice(len(values), rows, replace=False, p=weights / weights.sum())


def _read(
    silo: str, asked: Property, learned: tuple[np.ndarray, np.ndarray], checked: tuple[np.ndarray, np.ndarray],
    move: np.ndarray,
) -> PropertyRead:  # fmt: skip
    """Return what is read from a move [m]; learned, checked: moves [silos, m] and the property [silos] of shadows."""
    (moves, true), (other_moves, other_true) = learned, checked
    centre, middle = moves.mean(0), true.mean()
    apart = moves - centre
    values, vectors = np.linalg.eigh(apart @ apart.T)
    fits = [_left_out(values, vectors, true - middle, ridge * max(values.mean(), 1e-300)) for ridge in RIDGES]
    weights = min(fits, key=lambda fit: fit[0])[1] @ apart
    read, of_others = (float(middle + (move - centre) @ weights), middle + (other_moves - centre) @ weights)
    error, guess = (float(np.sqrt(np.mean(np.square(other_true - told)))) for told in (of_others, middle))
    return PropertyRead(silo, asked.name, asked.unit, asked.true, read, error, guess)


def _left_out(values: np.ndarray, vectors: np.ndarray, apart: np.ndarray, ridge: float) -> tuple[float, np.ndarray]:
    """Return the root mean square error on silos left out, and the weights [silos] of all."""
    inverse = vectors @ np.diag(1 / (values.clip(0) + ridge)) @ vectors.T
    weights = inverse @ apart
    free = ridge * np.diag(inverse) - 1 / len(apart)  # one minus the leverage; the mean is fitted as well
    if free.min() < SMALLEST_FREEDOM:
        return np.inf, weights
    return float(np.sqrt(np.mean(np.square(ridge * weights / free)))), weights
