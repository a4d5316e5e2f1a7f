"""Crystal-graph networks (Xie & Grossman, Phys. Rev. Lett. 120 (2018) 145301) on plain torch.

    symbol     code         shape                          meaning
    v_i        atoms        [atoms, width]                 state of an atom, from its element
    u_(i,j)    edges        [atoms, neighbours, gaussians] distance to a neighbour in Gaussians
    z_(i,j)                 [v_i, v_j, u_(i,j)]
    Eq. (5)    v_i <- softplus(v_i + sum_j sigmoid(z W_f + b_f) * softplus(z W_s + b_s))

Every atom has the same number of neighbours (the nearest), so a batch of crystals is three dense arrays.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import nn

from ray_fed.materials.databases.lattices import vectors_of_cells
from ray_fed.model_library.radial_distribution import images_within
from ray_fed.randomness import derived_seed

NEIGHBOURS, CUTOFF = 12, 8.0
"""The published choice: 12 nearest within 8 Å; fewer within the cutoff: the radius grows."""
CENTRES = np.linspace(0.0, CUTOFF, 33)
MAX_SITES = 40
GRAPH_HASH = hashlib.sha256(f"crystal graph 1, {NEIGHBOURS} nearest, {CUTOFF} A, {len(CENTRES)}".encode()).hexdigest()
"""Fingerprint of the graphs: equal hashes mean equal inputs."""


@dataclass(frozen=True)
class CrystalGraphs:
    """Graphs of many crystals behind each other.

    numbers     int64 [atoms]               atomic numbers
    neighbours  int64 [atoms, NEIGHBOURS]   positions in the arrays
    distances   float32 [atoms, NEIGHBOURS] Å
    starts      int64 [crystals + 1]        atoms of crystal k: starts[k]:starts[k + 1]
    """

    numbers: np.ndarray
    neighbours: np.ndarray
    distances: np.ndarray
    starts: np.ndarray

    def __len__(self) -> int:
        return len(self.starts) - 1

    def take(self, crystals: np.ndarray) -> "CrystalGraphs":
        """Return the graphs of these crystals, in this order."""
        sizes = np.diff(self.starts)[crystals]
        starts = np.concatenate(([0], np.cumsum(sizes)))
        atoms = np.concatenate([np.arange(int(self.starts[k]), int(self.starts[k + 1])) for k in crystals])
        shift = np.repeat(starts[:-1] - self.starts[crystals], sizes)
        return CrystalGraphs(
            self.numbers[atoms], self.neighbours[atoms] + shift[:, None], self.distances[atoms], starts
        )


def crystal_graphs(frame: pd.DataFrame) -> tuple[CrystalGraphs, list[str]]:
    """Return the graphs of the readable rows, and a reason per row, "" where it was read."""
    vectors = vectors_of_cells(frame[["a", "b", "c", "alpha", "beta", "gamma"]].to_numpy(float))
    parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    reasons = [""] * len(frame)
    for row, (numbers, sites) in enumerate(zip(frame["numbers"], frame["frac_coords"], strict=True)):
        fractional = np.asarray(sites, float).reshape(-1, 3)
        if not 0 < len(fractional) <= MAX_SITES:
            reasons[row] = f"{len(fractional)} atoms in the cell; crystal graphs take 1 to {MAX_SITES}"
            continue
        parts.append((np.asarray(numbers, np.int64), *nearest(vectors[row], fractional)))
    return _joined(parts), reasons


def nearest(vectors: np.ndarray, fractional: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return neighbours [atoms, NEIGHBOURS] and distances in Å of one crystal, nearest first."""
    cutoff = CUTOFF
    while True:
        images = images_within(vectors, cutoff) @ vectors
        apart = (fractional[None, :] - fractional[:, None]) @ vectors
        distances = np.linalg.norm(apart[:, :, None, :] + images, axis=3)
        distances[distances < 1e-6] = np.inf
        flat = distances.reshape(len(fractional), -1)
        # Symmetry makes many distances equal up to rounding: rounded, their order does not depend on it.
        order = np.argsort(flat.round(6), axis=1, kind="stable")[:, :NEIGHBOURS]
        found = np.take_along_axis(flat, order, 1)
        if found.shape[1] == NEIGHBOURS and found.max() <= cutoff:
            return order // len(images), found.astype(np.float32)
        cutoff *= 1.5


class CrystalGraphNetwork(nn.Module):
    """Embedding, `depth` convolutions, mean over the atoms, two layers, one output."""

    def __init__(self, width: int = 32, depth: int = 2, hidden: int = 32):
        super().__init__()
        self.embedding = nn.Embedding(119, width)
        self.convolutions = nn.ModuleList(nn.Linear(2 * width + len(CENTRES), 2 * width) for _ in range(depth))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(depth))
        self.hidden = nn.Linear(width, hidden)
        self.output = nn.Linear(hidden, 1)

    def forward(self, graphs: CrystalGraphs) -> torch.Tensor:
        """Return [crystals, 1]."""
        return self.output(torch.relu(self.crystal_state(graphs)))

    def crystal_state(self, graphs: CrystalGraphs) -> torch.Tensor:
        """Return the last hidden layer before its activation, [crystals, hidden]: the frozen feature of a crystal."""
        atoms = self.embedding(torch.from_numpy(graphs.numbers))
        neighbours = torch.from_numpy(graphs.neighbours)
        distances = torch.from_numpy(graphs.distances)[:, :, None]
        centres = torch.tensor(CENTRES, dtype=torch.float32)
        edges = torch.exp(-((distances - centres) ** 2) / (CENTRES[1] - CENTRES[0]) ** 2)
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            own = atoms[:, None, :].expand(-1, NEIGHBOURS, -1)
            gate, core = convolution(torch.cat((own, atoms[neighbours], edges), 2)).chunk(2, 2)
            message = (torch.sigmoid(gate) * nn.functional.softplus(core)).sum(1)
            atoms = nn.functional.softplus(atoms + norm(message))
        sizes = np.diff(graphs.starts)
        owner = torch.from_numpy(np.repeat(np.arange(len(graphs)), sizes))
        pooled = atoms.new_zeros(len(graphs), atoms.shape[1]).index_add_(0, owner, atoms)
        return self.hidden(pooled / torch.from_numpy(sizes.astype(np.float32))[:, None])


def seeded_crystal_graph(seed: int, **sizes: int) -> CrystalGraphNetwork:
    """Return a network whose weights depend on `seed` alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derived_seed(seed, "initial weights"))
        return CrystalGraphNetwork(**sizes)


def _joined(parts: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> CrystalGraphs:
    starts = np.concatenate(([0], np.cumsum([len(part[0]) for part in parts]))).astype(np.int64)
    if not parts:
        return CrystalGraphs(
            np.zeros(0, np.int64), np.zeros((0, NEIGHBOURS), np.int64), np.zeros((0, NEIGHBOURS), np.float32), starts
        )
    numbers, neighbours, distances = zip(*parts, strict=True)
    shifted = [part + start for part, start in zip(neighbours, starts[:-1], strict=True)]
    return CrystalGraphs(np.concatenate(numbers), np.concatenate(shifted), np.concatenate(distances), starts)
