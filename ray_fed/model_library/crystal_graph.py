"""Crystal-graph networks (Xie & Grossman, Phys. Rev. Lett. 120 (2018) 145301) on plain torch.

    symbol     code         shape                          meaning
    v_i        atoms        [atoms, width]                 state of an atom, from its element
    u_(i,j)    edges        [atoms, neighbours, gaussians] distance to a neighbour in Gaussians
    z_(i,j)                 [v_i, v_j, u_(i,j)]
    Eq. (5)    v_i <- softplus(v_i + sum_j sigmoid(z W_f + b_f) * softplus(z W_s + b_s))

Every atom has the same number of neighbours (the nearest), so a batch of crystals is three dense arrays.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
from torch import nn

from ray_fed.errors import DataError
from ray_fed.materials.lattices import images_within, vectors_of_cells
from ray_fed.randomness import derived_seed, generator
from ray_fed.reporting.model_files import ModelCard

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


METHOD = "crystal_graph"
BATCH, EPOCHS, PATIENCE = 32, 60, 12


def fit_crystal_graphs(
    count: int, graphs: CrystalGraphs, targets: np.ndarray, parts: Mapping[str, np.ndarray], blank: ModelCard, seed: int
) -> Iterator[tuple[dict[str, np.ndarray], ModelCard, str]]:
    """Yield (arrays, card, reason) of `count` networks of random width, depth and learning rate."""
    learn, stop = parts["train"], parts["validation"]
    centre, spread = float(targets[learn].mean()), float(targets[learn].std()) or 1.0
    wanted = torch.tensor((targets - centre) / spread, dtype=torch.float32)[:, None]
    for number in range(count):
        own = derived_seed(seed, METHOD, blank.property, number)
        draw = generator(own, "hyperparameters")
        sizes = {"width": int(draw.integers(16, 41)), "depth": int(draw.integers(1, 4)), "hidden": 32}
        rate = float(f"{np.exp(draw.uniform(np.log(1e-3), np.log(1e-2))):.3g}")
        network = seeded_crystal_graph(own, **sizes)
        loss, epoch = _train(network, graphs, wanted, learn, stop, rate, own)
        arrays = {name: tensor.numpy().copy() for name, tensor in network.state_dict().items()}
        arrays |= {"target.scale": np.array([centre, spread]), "scaler.mean": np.zeros(0), "scaler.scale": np.zeros(0)}
        size = sum(parameter.numel() for parameter in network.parameters())
        card = replace(
            blank,
            name=f"{blank.property} {METHOD}",
            architecture={"type": METHOD, **sizes, "num_parameters": size},
            hyperparameters={"optimizer": "adam", "learning_rate": rate, "batch_size": BATCH, "best_epoch": epoch},
            seed=own,
        )
        yield arrays, card, "" if np.isfinite(loss) else "training diverged: the validation error is not finite"


def predict_crystals(arrays: Mapping[str, np.ndarray], card: ModelCard, graphs: CrystalGraphs) -> np.ndarray:
    """Return predictions [crystals] in `card.unit`; DataError when the arrays are not those of the architecture."""
    network = CrystalGraphNetwork(**{name: int(str(card.architecture[name])) for name in ("width", "depth", "hidden")})
    names = network.state_dict().keys()
    missing = [name for name in names if name not in arrays]
    if missing:
        raise DataError(f"model {card.id[:12]} has no array {missing[0]!r}; pull it again")
    network.load_state_dict({name: torch.from_numpy(np.array(arrays[name])) for name in names})
    centre, spread = arrays["target.scale"]
    with torch.no_grad():
        parts = [network(graphs.take(rows))[:, 0].numpy() for rows in _batches(np.arange(len(graphs)), 200)]
    return np.concatenate(parts).astype(np.float64) * spread + centre if parts else np.zeros(0)


def predict_structures(arrays: Mapping[str, np.ndarray], card: ModelCard, frame: pd.DataFrame):
    """Return predictions [rows], NaN where a structure cannot be read, and a reason per row."""
    graphs, reasons = crystal_graphs(frame)
    predicted = np.full(len(frame), np.nan)
    predicted[[not reason for reason in reasons]] = predict_crystals(arrays, card, graphs)
    return predicted, reasons


def _train(
    network: CrystalGraphNetwork, graphs: CrystalGraphs, wanted: torch.Tensor, learn: np.ndarray, stop: np.ndarray,
    rate: float, seed: int,
) -> tuple[float, int]:  # fmt: skip
    """Train in place to the best validation error; returns it and its epoch."""
    optimizer = torch.optim.Adam(network.parameters(), lr=rate)
    held = graphs.take(stop)
    best, best_epoch, kept = float("inf"), 0, None
    for epoch in range(1, EPOCHS + 1):
        for rows in _batches(learn[generator(seed, "graph batches", epoch).permutation(len(learn))], BATCH):
            optimizer.zero_grad()
            torch.nn.functional.mse_loss(network(graphs.take(rows)), wanted[rows]).backward()
            optimizer.step()
        with torch.no_grad():
            now = float((network(held) - wanted[stop]).square().mean())
        if now < best:
            best, best_epoch = now, epoch
            kept = {name: tensor.clone() for name, tensor in network.state_dict().items()}
        if epoch - best_epoch >= PATIENCE:
            break
    if kept is not None:
        network.load_state_dict(kept)
    return best, best_epoch


def _batches(rows: np.ndarray, size: int) -> list[np.ndarray]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]
