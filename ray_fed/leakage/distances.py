"""Distances between a message and a virtual message: the objectives of the attacks.

Each takes two lists of tensors [n, ...], one per parameter, and returns [n], one number per problem.
"""

from collections.abc import Callable, Sequence

import torch

from ray_fed.leakage.sinkhorn import SinkhornSettings, transport_costs

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
    """WDLG with a layer's weights as points: `out` points of dimension fan-in, a bias as `out` numbers (Eq. 5)."""

    def distance(virtual: Tensors, seen: Tensors) -> torch.Tensor:
        pairs = zip(virtual, seen, strict=True)
        return sum_of(transport_costs([(_rows(a), _rows(b)) for a, b in pairs], settings))

    return distance


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
