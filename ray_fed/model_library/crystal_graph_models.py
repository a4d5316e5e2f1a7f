"""Train crystal-graph networks for a library, and predict with them from their arrays."""

from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np
import pandas as pd
import torch

from ray_fed.errors import DataError
from ray_fed.model_library.crystal_graph import CrystalGraphNetwork, CrystalGraphs, crystal_graphs, seeded_crystal_graph
from ray_fed.randomness import derived_seed, generator
from ray_fed.reporting.model_files import ModelCard

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
