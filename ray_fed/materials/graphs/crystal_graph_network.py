"""A crystal-graph network (Xie & Grossman, Phys. Rev. Lett. 120 (2018) 145301) on rows of graphs.

    symbol     code        shape                meaning
    v_i        atoms       [A, width]           state of an atom, from its element
    u_(i,j)    lengths     [E, gaussians]       length of an edge in Gaussians
    w_(i,j)    weights     [E]                  how much of the edge counts (neighbours.py)
    z_(i,j)                                     [v_i, v_j, u_(i,j)]
    Eq. (5)    v_i <- softplus(v_i + norm(sum_j w_(i,j) sigmoid(z W_f + b_f) * softplus(z W_s + b_s)))

z W is the sum of three products, of which two are made once for each atom instead of once for each edge. Layers are
normalised (LayerNorm), not batches as in the paper: no statistics of a silo's rows travel or stay behind, and a crystal
is predicted alone as among others.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from ray_fed.config import from_mapping, require
from ray_fed.materials.graphs.graph_rows import GraphRows, mean_of_crystals, picked, sum_of_atoms
from ray_fed.materials.graphs.neighbours import CUTOFF

MOST_ELEMENT = 118
GAUSSIANS = 32
MOST_WIDTH, MOST_DEPTH = 1024, 16


@dataclass(frozen=True)
class GraphSettings:
    """The form of a crystal-graph network. ConfigError names what is wrong."""

    width: int = 64
    """Numbers that describe an atom."""
    depth: int = 3
    """Convolutions: how many bonds away an atom is felt."""
    hidden: int = 128
    """Width of the layer between crystal and outputs."""
    descriptors: bool = True
    """Whether the descriptors of the crystal (--features) go into that layer, too."""

    def __post_init__(self) -> None:
        for name, most in (("width", MOST_WIDTH), ("depth", MOST_DEPTH), ("hidden", MOST_WIDTH)):
            value = getattr(self, name)
            require(0 < value <= most, f"{name}={value} must be 1 to {most}")


def graph_settings(options: Sequence[str]) -> GraphSettings:
    """Return the settings that options NAME=VALUE make; ConfigError names the one that is wrong."""
    pairs = {name: value for name, _, value in (text.partition("=") for text in options)}
    return from_mapping(GraphSettings, pairs, "model_options")


class CrystalNetwork(nn.Module):
    """Embedding of elements, convolutions, mean over the atoms, two layers: GraphRows of n crystals to [n, outputs]."""

    def __init__(self, settings: GraphSettings, num_columns: int, num_outputs: int):
        super().__init__()
        width, twice = settings.width, 2 * settings.width
        self.settings = settings
        self.embedding = nn.Embedding(MOST_ELEMENT + 1, width)
        self.ends = nn.ModuleList(nn.Linear(width, twice) for _ in range(settings.depth))
        self.begins = nn.ModuleList(nn.Linear(width, twice, bias=False) for _ in range(settings.depth))
        self.lengths = nn.ModuleList(nn.Linear(GAUSSIANS, twice, bias=False) for _ in range(settings.depth))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(settings.depth))
        self.hidden = nn.Linear(width + (num_columns if settings.descriptors else 0), settings.hidden)
        self.output = nn.Linear(settings.hidden, num_outputs)

    def forward(self, rows: GraphRows) -> torch.Tensor:
        crystals = mean_of_crystals(self.atoms(rows), rows)
        if self.settings.descriptors:
            crystals = torch.cat([crystals, rows.table], 1)
        return self.output(functional.silu(self.hidden(crystals)))

    def atoms(self, rows: GraphRows) -> torch.Tensor:
        """Return the states of all atoms after the convolutions, [A, width]."""
        atoms, lengths, weights = self.embedding(rows.numbers), in_gaussians(rows.distances), rows.weights[:, None]
        for ends, begins, of_length, norm in zip(self.ends, self.begins, self.lengths, self.norms, strict=True):
            both = picked(ends(atoms), rows.ends) + picked(begins(atoms), rows.begins) + of_length(lengths)
            gate, core = both.chunk(2, 1)
            message = sum_of_atoms(weights * torch.sigmoid(gate) * functional.softplus(core), rows)
            atoms = functional.softplus(atoms + norm(message))
        return atoms


def in_gaussians(distances: torch.Tensor) -> torch.Tensor:
    """Return distances [E] in Å as GAUSSIANS numbers each, [E, GAUSSIANS]."""
    centres = torch.linspace(0.0, CUTOFF, GAUSSIANS, device=distances.device)
    return torch.exp(-(((distances[:, None] - centres) * (GAUSSIANS / CUTOFF)) ** 2))
