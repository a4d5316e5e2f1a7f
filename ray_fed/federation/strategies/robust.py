"""Strategies that survive silos which send anything at all (Byzantine silos), as long as these are a minority.

Every one of them holds all updates of the round, [num_updates, num_parameters] in float32, and sorts them by silo
name so that the order of arrival cannot matter. Only GeometricMedian uses the num_examples that silos claim: a
weight is one more thing to lie about. With `optimizer_state="average"` the vector, moments included, is one point;
medians and means of Adam's second moments stay non-negative.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from ray_fed.config import require
from ray_fed.federation.messages import Update, Vector
from ray_fed.federation.norms import CHUNK, distance, squared_distance
from ray_fed.federation.strategies.base import State
from ray_fed.federation.strategies.one_model import OneModel, require_count, require_decay, require_positive
from ray_fed.federation.strategies.updates import collected, need_updates, plain_mean, stacked

MORE_SILOS = "wait for more silos (min_fit_clients)"


def trimmed_mean(points: np.ndarray, num_trimmed: int) -> Vector:
    """Return the mean of each coordinate without its `num_trimmed` largest and smallest values.

    points: float32 [num_points, num_parameters] with num_points > 2 num_trimmed; returns float32 [num_parameters].
    """
    result = np.empty(points.shape[1], np.float32)
    for start in range(0, points.shape[1], CHUNK):
        ordered = np.sort(points[:, start : start + CHUNK], axis=0)[num_trimmed : len(points) - num_trimmed]
        result[start : start + CHUNK] = ordered.mean(axis=0, dtype=np.float64)
    return result


def coordinate_median(points: np.ndarray) -> Vector:
    """Return the median of each coordinate, the mean of the middle two for an even number of points."""
    return trimmed_mean(points, (len(points) - 1) // 2)


@dataclass(frozen=True, kw_only=True)
class CoordinateMedian(OneModel):
    """The median of every coordinate on its own. Holds all updates.

    Yin et al. 2018, Definition 1 and Algorithm 1 (Option I), on parameters instead of gradients:

        x_{t+1, k} = med{w_{i, k} : i = 1 ... m}

        paper   code               shape
        w_i     update.vector      float32 [num_parameters]
        m       number of updates  count

    Bounded by honest values as long as fewer than half of the silos lie.
    """

    def aggregate(self, state: State, updates: Iterable[Update]) -> State:
        held = collected(updates, len(state[self.name]))
        need_updates("median", 1, len(held), MORE_SILOS)
        return {self.name: coordinate_median(stacked(held))}


@dataclass(frozen=True, kw_only=True)
class TrimmedMean(OneModel):
    """The mean of every coordinate without its largest and smallest values. Holds all updates.

    Yin et al. 2018, Definition 2 and Algorithm 1 (Option II), on parameters instead of gradients:

        x_{t+1, k} = 1 / (m - 2b) sum of what is left of {w_{i, k}} without the b largest and b smallest,   b = beta m

        paper   code               shape, unit
        w_i     update.vector      float32 [num_parameters]
        m       number of updates  count
        beta    beta               fraction of the silos, at each end
        beta m  num_trimmed(m)     count, rounded up

    b is rounded up where the paper assumes it whole: rounded down, 0.1 of 8 silos would trim nothing, silently.
    Needs beta at least as large as the fraction of silos that lie.
    """

    beta: float = 0.2
    """Fraction trimmed at each end, below 1/2. The paper has no default, its beta bounds the silos that lie."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.beta < 0.5, f"beta={self.beta!r} must be at least 0 and below 0.5; at 0.5 use median")

    def num_trimmed(self, num_updates: int) -> int:
        """Return how many values are dropped at each end."""
        return math.ceil(self.beta * num_updates - 1e-9)  # 0.07 * 100 is 7.000000000000001

    def aggregate(self, state: State, updates: Iterable[Update]) -> State:
        held = collected(updates, len(state[self.name]))
        trimmed = self.num_trimmed(len(held))
        remedy = f"lower beta={self.beta} or {MORE_SILOS}"
        need_updates("trimmed_mean", 2 * trimmed + 1, len(held), remedy)
        return {self.name: trimmed_mean(stacked(held), trimmed)}


def krum_scores(updates: Sequence[Update], num_byzantine: int) -> list[float]:
    """Return Krum's score of each update, the square of the parameters' unit: small is central.

    Score of i: the sum of squared distances to its n - f - 2 nearest others. Cost: n^2 / 2 distances.
    """
    squared = np.zeros((len(updates), len(updates)))
    for i, one in enumerate(updates):
        for j in range(i):
            squared[i, j] = squared[j, i] = squared_distance(one.vector, updates[j].vector)
    nearest = len(updates) - num_byzantine - 2
    return [math.fsum(np.sort(np.delete(row, i))[:nearest]) for i, row in enumerate(squared)]


def most_central(updates: Sequence[Update], num_byzantine: int, num_selected: int) -> list[Update]:
    """Return the updates with the best Krum scores; equal scores go to the silo first by name."""
    scores = krum_scores(updates, num_byzantine)
    best = sorted(range(len(updates)), key=lambda i: (scores[i], updates[i].silo))
    return [updates[i] for i in best[:num_selected]]


@dataclass(frozen=True, kw_only=True)
class Krum(OneModel):
    """Take the one update that is closest to its neighbours. Holds all updates.

    Blanchard et al. 2017, Sec. 4, on parameters instead of gradients:

        s(i)    = sum over the n - f - 2 nearest j != i of |w_i - w_j|^2
        x_{t+1} = w_{i*},   i* = argmin s(i)

        paper   code               shape
        V_i     update.vector      float32 [num_parameters]
        n       number of updates  count
        f       num_byzantine      count
        s(i)    krum_scores        square of the parameters' unit

    Needs n >= 2 f + 3 (FedError otherwise). With silos whose data differ, one silo's model is a poor mean: prefer
    MultiKrum there.
    """

    num_byzantine: int = 1
    """Silos that may lie."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_count(0, num_byzantine=self.num_byzantine)

    def aggregate(self, state: State, updates: Iterable[Update]) -> State:
        return {self.name: _krum("krum", updates, len(state[self.name]), self.num_byzantine, 1)}


@dataclass(frozen=True, kw_only=True)
class MultiKrum(OneModel):
    """The plain mean of the m updates with the best Krum scores. Holds all updates.

    Blanchard et al. 2017, Krum of Sec. 4 in the variant of their experiments: m = 1 is Krum, m = n the plain mean.

        paper   code               shape
        V_i     update.vector      float32 [num_parameters]
        n       number of updates  count
        f       num_byzantine      count
        m       num_selected       count

    Needs n >= 2 f + 3 and n >= m (FedError otherwise).
    """

    num_byzantine: int = 1
    """Silos that may lie."""
    num_selected: int | None = None
    """Updates that are averaged; none takes all but num_byzantine."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_count(0, num_byzantine=self.num_byzantine)
        if self.num_selected is not None:
            require_count(1, num_selected=self.num_selected)

    def aggregate(self, state: State, updates: Iterable[Update]) -> State:
        return {self.name: _krum("multi_krum", updates, len(state[self.name]), self.num_byzantine, self.num_selected)}


def _krum(name: str, updates: Iterable[Update], num_parameters: int, f: int, num_selected: int | None) -> Vector:
    held = collected(updates, num_parameters)
    need_updates(f"{name} with num_byzantine={f}", 2 * f + 3, len(held), f"lower num_byzantine or {MORE_SILOS}")
    wanted = len(held) - f if num_selected is None else num_selected
    need_updates(f"{name} with num_selected={wanted}", wanted, len(held), f"lower num_selected or {MORE_SILOS}")
    return plain_mean(most_central(held, f, wanted), num_parameters)


def geometric_median(
    points: np.ndarray, weights: Sequence[float], nu: float, max_iterations: int, tolerance: float
) -> np.ndarray:
    """Return the point with the least weighted sum of distances to `points`, float64 [num_parameters].

    points: float32 [num_points, num_parameters]; weights sum to 1. Weiszfeld's iteration on the smoothed distance of
    GeometricMedian, from the coordinate-wise median. It stops when the gradient, a pure number between 0 and 1, is
    at most `tolerance`; the decrease of the objective would stop it too early next to a point that is not the median.
    """
    centre = coordinate_median(points).astype(np.float64)
    for _ in range(max_iterations):
        pulls = [w / max(nu, distance(point, centre)) for w, point in zip(weights, points, strict=True)]
        following = _weighted_mean(points, pulls)
        gradient = math.fsum(pulls) * distance(following, centre)
        centre = following
        if gradient <= tolerance:
            break
    return centre


def _weighted_mean(points: np.ndarray, weights: Sequence[float]) -> np.ndarray:
    total = np.zeros(points.shape[1])
    for weight, point in zip(weights, points, strict=True):  # row by row: a matrix product would call BLAS
        total += weight * point.astype(np.float64)
    return total / math.fsum(weights)


@dataclass(frozen=True, kw_only=True)
class GeometricMedian(OneModel):
    """The point with the least weighted sum of distances to the updates (RFA). Holds all updates.

    Pillutla et al. 2022, the smoothed geometric median and the smoothed Weiszfeld algorithm for it:

        x_{t+1} = argmin_z sum_i alpha_i |z - w_i|_nu,   |u|_nu = |u| if |u| >= nu, else |u|^2 / (2 nu) + nu / 2
        z <- sum_i beta_i w_i / sum_i beta_i,   beta_i = alpha_i / max(nu, |z - w_i|)

        paper    code                                   shape, unit
        w_i      update.vector                          float32 [num_parameters]
        alpha_i  num_examples / sum, or 1 / n           dimensionless
        beta_i   pulls                                  1 / unit of the parameters
        nu       nu                                     unit of the parameters
        z        centre                                 float64 [num_parameters]

    Stays with the honest silos while these hold more than half of the weight; with `weighted` a silo states its own
    weight. The paper stops after 3 iterations, each a round of secure sums; here they are cheap and run to the end.
    """

    nu: float = 1e-6
    """Smoothing: distances below it count as it."""
    max_iterations: int = 1000
    """Some dozens do, but the way to or from a point that is nearly the median is slow."""
    tolerance: float = 1e-6
    """Length of the gradient at which the iteration stops, dimensionless."""
    weighted: bool = True
    """Weigh silos by their num_examples as in the paper; false counts each once."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(nu=self.nu)
        require_decay(tolerance=self.tolerance)
        require_count(1, max_iterations=self.max_iterations)

    def aggregate(self, state: State, updates: Iterable[Update]) -> State:
        held = collected(updates, len(state[self.name]))
        need_updates("geometric_median", 1, len(held), MORE_SILOS)
        counts = [update.num_examples if self.weighted else 1 for update in held]
        weights = [count / sum(counts) for count in counts]
        found = geometric_median(stacked(held), weights, self.nu, self.max_iterations, self.tolerance)
        return {self.name: found.astype(np.float32)}
