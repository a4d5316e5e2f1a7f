"""Models that a malicious coordinator sends in the place of the global one, so that rows stand alone in the answer.

They have the federation's own layout, so no silo sees it by their shape. Every unit of the first layer shall answer to
few records, and the layers behind it shall send every unit the same gradient:

- **Bins** (Fowl et al. 2022): all units measure the same direction, each from another quantile on. Units i and i + 1
  differ by the records between their quantiles, so differences of their rows are records, wherever one is alone.
- **Trap weights** (Boenisch et al. 2023): each unit has weights of both signs and a threshold that few records pass.
- **Class fishing** (Wen et al. 2022): all classes but one lose their weights, and that one its bias, so that only its
  records reach the first layer; bins then part those.

Sent to nobody but the audit's own silos.
"""

import copy
from collections.abc import Mapping

import numpy as np
import torch
from torch import nn

from ray_fed.randomness import generator

BINS, TRAPS, FISHING = "bins", "trap weights", "class fishing"
SMALL = 1e-3
"""Of the weights: the answers to small ones are small, and the model hardly moves in many steps."""
UNLIKELY = -20.0
"""Bias of the class that is fished for."""


def crafted(network: nn.Module, public: np.ndarray, together: int, seed: int = 0) -> dict[str, nn.Module]:
    """Return kind -> model; none where the network is no plain stack of linear layers and ReLU.

    public: records [num_rows, num_features] like the silos', as the network sees them; together: records that are
    expected behind a message.
    """
    if not _is_plain(network):
        return {}
    draw = generator(seed, "crafted models")
    made = {BINS: _with_bins(network, public, draw), TRAPS: _with_traps(network, public, together, draw)}
    return made | ({FISHING: _fishing(made[BINS])} if _layers(network)[-1].out_features > 1 else {})


def why_not_crafted(network: nn.Module) -> str:
    """Return why nothing is crafted of a network; "" where it is."""
    if _is_plain(network):
        return ""
    parts = list(network.children()) if isinstance(network, nn.Sequential) else []
    odd = next((type(part).__name__ for part in parts if not isinstance(part, nn.Linear | nn.ReLU)), "")
    what = f"has a layer of kind {odd}" if odd else "is no such stack"
    return f"crafted models are made of stacks of linear layers with biases and ReLU between them; this network {what}"


def bins_of(weights: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """Return what lies between neighbouring units of a model with bins: guesses [guesses, num_features].

    weights [units, num_features], bias [units]: the first layer's part of a message.
    """
    between = np.append(-np.diff(bias), bias[-1])
    sums = np.concatenate([-np.diff(weights, axis=0), weights[-1:]])
    live = np.abs(between) > np.finfo(np.float32).eps * np.abs(bias).max(initial=0.0)
    return sums[live] / between[live, None]


def _is_plain(network: nn.Module) -> bool:
    parts = list(network.children())
    is_linear = [isinstance(part, nn.Linear) and part.bias is not None for part in parts]
    is_relu = [isinstance(part, nn.ReLU) for part in parts]
    plain = isinstance(network, nn.Sequential) and len(parts) % 2 == 1 and len(parts) >= 3
    return plain and all(is_linear[::2]) and all(is_relu[1::2])


def _layers(network: nn.Module) -> list[nn.Linear]:
    return [part for part in network.children() if isinstance(part, nn.Linear)]


@torch.no_grad()
def _with_bins(network: nn.Module, public: np.ndarray, draw: np.random.Generator) -> nn.Module:
    made = _passing_on(network)
    first = _layers(made)[0]
    direction = draw.normal(size=public.shape[1])
    edges = np.quantile(public @ direction, np.linspace(0, 1, first.out_features + 2)[1:-1])
    first.weight.copy_(SMALL * torch.from_numpy(direction)[None].expand_as(first.weight))
    first.bias.copy_(-SMALL * torch.from_numpy(edges))
    return made


@torch.no_grad()
def _with_traps(network: nn.Module, public: np.ndarray, together: int, draw: np.random.Generator) -> nn.Module:
    made = _passing_on(network)
    first = _layers(made)[0]
    weights = np.abs(draw.normal(size=tuple(first.weight.shape)))
    weights *= np.where(draw.random(weights.shape) < 0.5, -1.0, 1.0)
    edges = np.quantile(public @ weights.T, 1 - 1 / max(2, together), axis=0)
    first.weight.copy_(SMALL * torch.from_numpy(weights))
    first.bias.copy_(-SMALL * torch.from_numpy(edges))
    return made


@torch.no_grad()
def _passing_on(network: nn.Module) -> nn.Module:
    """Return a copy whose layers behind the first send all units of the first the same gradient, whatever the row."""
    made = copy.deepcopy(network)
    _, *behind = _layers(made)
    for layer in behind:
        layer.weight.fill_(1 / layer.in_features)
        layer.bias.fill_(1.0)
    behind[-1].weight[1:] = 0.0  # equal weights of all classes would cancel
    behind[-1].weight *= SMALL
    return made


@torch.no_grad()
def _fishing(with_bins: nn.Module) -> nn.Module:
    made = copy.deepcopy(with_bins)
    last = _layers(made)[-1]
    last.bias.fill_(0.0)
    last.bias[0] = UNLIKELY
    return made


def guesses_of(kind: str, weights: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """Return guesses [guesses, num_features] from the first layer's part of an answer to a crafted model."""
    alone = np.abs(bias) > np.finfo(np.float32).eps * np.abs(bias).max(initial=0.0)
    ratios = weights[alone] / bias[alone, None]
    return ratios if kind == TRAPS else np.concatenate([ratios, bins_of(weights, bias)])


EXPLAINED: Mapping[str, str] = {
    BINS: "Fowl et al. 2022", TRAPS: "Boenisch et al. 2023", FISHING: "Wen et al. 2022",
}  # fmt: skip
