"""Differential privacy of whole silos: the coordinator clips each move and noises the sum."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from ray_fed.config import require
from ray_fed.errors import FedError
from ray_fed.federation.messages import Update, Vector
from ray_fed.federation.norms import distance
from ray_fed.federation.strategies.base import State
from ray_fed.federation.strategies.clipping import clipped_update
from ray_fed.federation.strategies.one_model import OneModel, require_positive, rounded_model
from ray_fed.federation.strategies.updates import plain_mean
from ray_fed.privacy.accounting import PrivacyAccount
from ray_fed.privacy.noise import NoiseSource

CLIP = "server.clip"
SILOS = "server.num_silos"


@dataclass(frozen=True, kw_only=True)
class DPFedAvg(OneModel):
    """Clip each silo's move to C, average with equal weights, add noise that hides one silo. Streams.

    McMahan et al. 2018 with a fixed divisor; Andrew et al. 2021, Algorithm 1, for the adaptive clip:

        Delta_i <- Delta_i min(1, C / |Delta_i|)
        x_{t+1} =  x_t + (sum_i Delta_i + N(0, z_Delta^2 C^2 I)) / m
        b_i     =  1 if |Delta_i| <= C, else 0;   b = (sum_i (b_i - 1/2) + N(0, sigma_b^2)) / m + 1/2
        C       <- C exp(-eta_C (b - gamma)),     z_Delta = (z^-2 - (2 sigma_b)^-2)^(-1/2)

        paper    code               unit
        C        state[CLIP]        unit of the parameters
        z        noise_multiplier   dimensionless; what the account counts
        gamma    target_quantile    share of the silos whose moves stay as they are
        sigma_b  count_noise        silos
        eta_C    clip_rate          dimensionless
        m        state[SILOS]       silos of the federation: fixed, so that who failed changes no weight

    The coordinator sees the updates before the noise: silos trust it (or combine this with example-level noise). Few
    silos give little to hide among: with m = 4, z = 1 adds noise as long as a quarter of the clip per parameter.
    """

    noise_multiplier: float = 1.0
    clip: float = 1.0
    """Longest move that counts in full; the first one if it adapts."""
    target_quantile: float | None = None
    """Share of the moves that the clip should leave as they are; none keeps the clip fixed."""
    clip_rate: float = 0.2
    """How fast the clip adapts; the paper's value."""
    count_noise: float | None = None
    """Noise of the count of unclipped silos; a twentieth of the silos, as in the paper, but at least 0.75 z."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(noise_multiplier=self.noise_multiplier, clip=self.clip, clip_rate=self.clip_rate)
        quantile = self.target_quantile
        require(quantile is None or 0 < quantile < 1, f"target_quantile={quantile} must lie between 0 and 1")
        sigma = self.count_noise
        enough = sigma is None or 2 * sigma > self.noise_multiplier
        require(enough, f"count_noise={sigma} must be above half of noise_multiplier={self.noise_multiplier}")

    def account(self, delta: float, budget: float | None) -> PrivacyAccount:
        """Return the account of this noise: one step a round, every silo in every round."""
        return PrivacyAccount("silo", self.noise_multiplier, 1.0, delta, budget)

    def start(self, initial: Vector, silos: Sequence[str]) -> State:
        return {self.name: initial, CLIP: np.array([self.clip]), SILOS: np.array([len(silos)], np.int64)}

    def aggregate(self, state: State, updates: Iterable[Update]) -> State:
        model, clip, num_silos = state[self.name], float(state[CLIP][0]), int(state[SILOS][0])
        source = NoiseSource.of_process(model.tobytes().hex()[:64])
        counted = _Counted(updates, model, clip)
        mean = plain_mean(counted.clipped(), len(model))
        total = np.subtract(mean, model, dtype=np.float64) * counted.num_updates
        total += source.normal(len(model)) * (self._move_noise(num_silos) * clip)
        moved = rounded_model(model + total / num_silos, f"lower noise_multiplier={self.noise_multiplier}")
        return {**state, self.name: moved, CLIP: np.array([self._next_clip(clip, counted, num_silos, source)])}

    def _sigma_b(self, num_silos: int) -> float:
        return self.count_noise or max(num_silos / 20, 0.75 * self.noise_multiplier)

    def _move_noise(self, num_silos: int) -> float:
        """Return z_Delta: the noise of the moves, so that moves and count together are covered by z."""
        if self.target_quantile is None:
            return self.noise_multiplier
        return (self.noise_multiplier**-2 - (2 * self._sigma_b(num_silos)) ** -2) ** -0.5

    def _next_clip(self, clip: float, counted: "_Counted", num_silos: int, source: NoiseSource) -> float:
        if self.target_quantile is None:
            return clip
        centred = counted.num_unclipped - counted.num_updates / 2
        share = (centred + self._sigma_b(num_silos) * float(source.normal(1)[0])) / num_silos + 0.5
        renewed = clip * math.exp(-self.clip_rate * (share - self.target_quantile))
        if not 0 < renewed < math.inf:
            raise FedError(f"the adaptive clip became {renewed}; lower clip_rate={self.clip_rate}")
        return renewed


class _Counted:
    """Clips updates one by one as they come, and counts how many there were and how many stayed as they were."""

    def __init__(self, updates: Iterable[Update], centre: Vector, clip: float):
        self.updates, self.centre, self.clip = updates, centre, clip
        self.num_updates = self.num_unclipped = 0

    def clipped(self) -> Iterable[Update]:
        for update in self.updates:
            bounded = clipped_update(update, self.centre, self.clip)
            self.num_updates += 1
            self.num_unclipped += distance(update.vector, self.centre) <= self.clip
            yield bounded
