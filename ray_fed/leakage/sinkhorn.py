"""Entropic optimal transport between small point sets, many problems at once.

Paper: "WDLG" (Int. J. Intell. Syst. 2022), Algorithm 2 (WDCA); Cuturi 2013; the log-domain form is Peyre & Cuturi 2019,
Sec. 4.4.

    paper       code         shape
    G, G'       left, right  [n, p, d], [n, q, d]
    C           cost         [n, p, q]
    mu, nu      uniform      1/p, 1/q
    epsilon     epsilon      scalar
    u, v        u, v         [n, p], [n, q]
    pi          plan         [n, p, q]
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import log

import torch

from ray_fed.config import require


@dataclass(frozen=True)
class SinkhornSettings:
    """Options of Algorithm 2. Defaults are those of the form in common use; the paper's own values are lost."""

    epsilon: float = 0.1
    """Weight of the entropy; small is closer to the unregularised distance, and slower."""
    max_iterations: int = 100
    """Most Sinkhorn iterations."""
    threshold: float = 0.1
    """Stop when sum |u - u_old| falls below this."""
    power: float = 2.0
    """p of the cost sum_k |a_ik - b_jk|^p."""
    anchor: float = 0.0
    """Added to the cost off the identity pairing (point sets of equal size): large values forbid other pairings."""
    unrolled: bool = True
    """Differentiate through the iterations; no: treat the plan as constant (envelope theorem)."""
    debias: bool = False
    """Subtract half the distances of each set to itself, so that equal sets have distance 0 (Sinkhorn divergence)."""

    def __post_init__(self) -> None:
        require(self.epsilon > 0, f"epsilon={self.epsilon} must be positive")
        require(self.max_iterations >= 1, f"max_iterations={self.max_iterations} must be at least 1")
        require(self.threshold >= 0, f"threshold={self.threshold} must not be negative")


PointSets = tuple[torch.Tensor, torch.Tensor]


def transport_costs(pairs: Sequence[PointSets], settings: SinkhornSettings) -> list[torch.Tensor]:
    """Return WD [n] of each pair (left [n, p, d], right [n, q, d]); p, q and d may differ from pair to pair."""
    if not settings.debias:
        return _transport_costs(pairs, settings)
    within = _transport_costs([(side, side) for pair in pairs for side in pair], settings)
    between = _transport_costs(pairs, settings)
    return [cost - (a + b) / 2 for cost, a, b in zip(between, within[::2], within[1::2], strict=True)]


def _transport_costs(pairs: Sequence[PointSets], settings: SinkhornSettings) -> list[torch.Tensor]:
    costs = [cost_matrix(left, right, settings.power) for left, right in pairs]
    shaped = [_anchored(cost, settings) for cost in costs]
    plans = _plans([cost if settings.unrolled else cost.detach() for cost in shaped], settings)
    return [(plan * cost).sum(dim=(1, 2)) for plan, cost in zip(plans, costs, strict=True)]


def _anchored(cost: torch.Tensor, settings: SinkhornSettings) -> torch.Tensor:
    if not settings.anchor:
        return cost
    require(cost.shape[1] == cost.shape[2], "an anchored transport needs point sets of equal size")
    return cost + settings.anchor * (1 - torch.eye(cost.shape[1], dtype=cost.dtype, device=cost.device))


def _plans(costs: Sequence[torch.Tensor], settings: SinkhornSettings) -> list[torch.Tensor]:
    """Return the plan of each cost. Those of one size are iterated together: the matrices are so small that the number
    of operations counts, not their size."""
    sizes = [cost.shape[1:] for cost in costs]
    plans: list[torch.Tensor] = list(costs)
    for size in dict.fromkeys(sizes):
        places = [place for place, other in enumerate(sizes) if other == size]
        together = transport_plan(torch.cat([costs[place] for place in places]), settings)
        for place, plan in zip(places, together.split([len(costs[place]) for place in places]), strict=True):
            plans[place] = plan
    return plans


def cost_matrix(left: torch.Tensor, right: torch.Tensor, power: float) -> torch.Tensor:
    """Return C [n, p, q], C_ij = sum_k |a_ik - b_jk|^power."""
    if power == 2:
        # Expanding the square would cancel near the solution, where differences are all that matters.
        return (left[:, :, None] - right[:, None]).square().sum(-1)
    return (left[:, :, None] - right[:, None]).abs().pow(power).sum(-1)


def transport_plan(cost: torch.Tensor, settings: SinkhornSettings) -> torch.Tensor:
    """Return the plan pi [n, p, q] of cost [n, p, q]; each problem stops by its own threshold (Algorithm 2).

    In units of epsilon, M = C / epsilon, a = u / epsilon, b = v / epsilon, the algorithm's step of u is
    a <- log mu - logsumexp_j(b_j - M_ij): the old u that it adds is also in its exponent, and cancels.
    """
    shaped = cost / settings.epsilon
    n, p, q = cost.shape
    running, matrix = torch.arange(n, device=cost.device), shaped
    a, b = cost.new_zeros(n, p), cost.new_zeros(n, q)
    order, done = [], []
    for iteration in range(1, settings.max_iterations + 1):
        new_a = -log(p) - torch.logsumexp(b[:, None] - matrix, dim=2)
        b = -log(q) - torch.logsumexp(new_a[:, :, None] - matrix, dim=1)
        moved, a = settings.epsilon * (new_a - a).detach().abs().sum(dim=1), new_a
        over = (moved < settings.threshold) | (iteration == settings.max_iterations)
        if bool(over.any()):  # iterate only what still runs: most of the time goes into the last few
            order.append(running[over])
            done.append(a[over][:, :, None] + b[over][:, None])
            running, matrix, a, b = running[~over], matrix[~over], a[~over], b[~over]
        if len(running) == 0:
            break
    return torch.exp(torch.cat(done)[torch.argsort(torch.cat(order))] - shaped)
