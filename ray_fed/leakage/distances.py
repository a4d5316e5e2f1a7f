"""Distances between a message and a virtual message: the objectives of the attacks.

Each takes two lists of tensors [n, ...], one per parameter, and returns [n], one number per problem.

The transport distance of WDLG (Int. J. Intell. Syst. 2022, Algorithm 2, WDCA; Cuturi 2013) is entropic optimal
transport between small point sets, computed in the log domain (Peyre & Cuturi 2019, Sec. 4.4):

    paper       code         shape
    G, G'       left, right  [n, p, d], [n, q, d]
    C           cost         [n, p, q]
    mu, nu      uniform      1/p, 1/q
    epsilon     epsilon      scalar
    u, v        u, v         [n, p], [n, q]
    pi          plan         [n, p, q]
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import log
from typing import Literal

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
    points: Literal["rows", "filters"] = "rows"
    """rows: a layer's weight is `out` points of dimension fan-in; filters: each filter channel is a set of its own, and
    its kernel rows are the points (what the form in common use does to a tensor it is given as it is)."""
    normalise: bool = False
    """Divide each layer by the root mean square of the gradient seen, so that epsilon means the same in all of them."""
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


Tensors = Sequence[torch.Tensor]
Distance = Callable[[Tensors, Tensors], torch.Tensor]


def squared_error(virtual: Tensors, seen: Tensors) -> torch.Tensor:
    """sum ||g' - g||^2 over all parameters (Zhu et al. 2019, Eq. 4; Zhao et al. 2020, Eq. 7)."""
    return sum_of((a - b).flatten(1).square().sum(1) for a, b in zip(virtual, seen, strict=True))


def relative_error(virtual: Tensors, seen: Tensors) -> torch.Tensor:
    """The squared error of each layer over its squared norm: layers with small gradients count as much as others."""
    parts = []
    for a, b in zip(virtual, seen, strict=True):
        norm = b.flatten(1).square().sum(1)
        parts.append((a - b).flatten(1).square().sum(1) / norm.clamp_min(torch.finfo(norm.dtype).tiny))
    return sum_of(parts)


def cosine(virtual: Tensors, seen: Tensors) -> torch.Tensor:
    """1 - <g', g> / (|g'| |g|) over all parameters together (Geiping et al. 2020, Eq. 4)."""
    dot = sum_of((a * b).flatten(1).sum(1) for a, b in zip(virtual, seen, strict=True))
    norms = [sum_of(part.flatten(1).square().sum(1) for part in side) for side in (virtual, seen)]
    return 1 - dot / (norms[0] * norms[1]).sqrt().clamp_min(torch.finfo(dot.dtype).tiny)


def scaled_error(virtual: Tensors, seen: Tensors) -> torch.Tensor:
    """min over s of ||g - s g'||^2 = |g|^2 - <g', g>^2 / |g'|^2: the squared error of a message of unknown length."""
    dot = sum_of((a * b).flatten(1).sum(1) for a, b in zip(virtual, seen, strict=True))
    norm = sum_of(part.flatten(1).square().sum(1) for part in virtual)
    scale = dot / norm.clamp_min(torch.finfo(norm.dtype).tiny)
    return sum_of(
        (b.flatten(1) - scale[:, None] * a.flatten(1)).square().sum(1) for a, b in zip(virtual, seen, strict=True)
    )


def transport_rows(settings: SinkhornSettings) -> Distance:
    """WDLG over the points of each layer (Eq. 5); a bias is as many numbers. Rows of one size count per dimension."""

    def distance(virtual: Tensors, seen: Tensors) -> torch.Tensor:
        pairs = [_of_one_size(a, b) if settings.normalise else (a, b) for a, b in zip(virtual, seen, strict=True)]
        cut = _kernel_rows if settings.points == "filters" else _rows
        sets = [(cut(a), cut(b)) for a, b in pairs]
        costs = transport_costs(sets, settings)
        per = [a.shape[2] if settings.normalise and settings.points == "rows" else 1 for a, _ in sets]
        # Sets of one problem lie one after another: [n * sets, p, d].
        return sum_of(cost.reshape(len(virtual[0]), -1).sum(1) / size for cost, size in zip(costs, per, strict=True))

    return distance


def _of_one_size(virtual: torch.Tensor, seen: torch.Tensor) -> PointSets:
    size = seen.flatten(1).square().mean(1).sqrt().clamp_min(1e-20)
    size = size.reshape(-1, *[1 for _ in seen.shape[1:]])
    return virtual / size, seen / size


def _kernel_rows(tensor: torch.Tensor) -> torch.Tensor:
    """[n, out, in, k, k] -> [n * out * in, k, k]; a matrix is one set of its rows, a bias one of numbers."""
    if tensor.dim() == 2:
        return tensor[:, :, None]
    return tensor if tensor.dim() == 3 else tensor.reshape(-1, *tensor.shape[-2:])


def sorted_entries(virtual: Tensors, seen: Tensors) -> torch.Tensor:
    """Exact squared 2-Wasserstein distance of each layer's entries as numbers on a line: sort both, then subtract.

    The optimal plan in one dimension pairs by rank (Peyre & Cuturi 2019, Remark 2.28). Mean over a layer's entries.
    """
    return sum_of(
        (a.flatten(1).sort(1).values - b.flatten(1).sort(1).values).square().mean(1)
        for a, b in zip(virtual, seen, strict=True)
    )


def make_distance(name: str, settings: SinkhornSettings | None = None) -> Distance:
    """Return a distance by name; `settings` are those of `rows`."""
    if name == "rows":
        return transport_rows(settings or SinkhornSettings())
    return DISTANCES[name]


DISTANCES: dict[str, Distance] = {
    "l2": squared_error,
    "relative": relative_error,
    "cosine": cosine,
    "scaled": scaled_error,
    "sorted": sorted_entries,
}


def total_variation(images: torch.Tensor) -> torch.Tensor:
    """Mean absolute difference of neighbouring pixels [n] of images [n, batch, channels, height, width]."""
    down = (images[..., 1:, :] - images[..., :-1, :]).abs().flatten(1).mean(1)
    across = (images[..., 1:] - images[..., :-1]).abs().flatten(1).mean(1)
    return down + across


def _rows(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.reshape(tensor.shape[0], tensor.shape[1], -1)


def sum_of(parts) -> torch.Tensor:
    """Sum tensors [n]; the built-in would start from the integer 0."""
    return torch.stack(list(parts)).sum(0)
