"""Go on training a stored network on a small target: all layers, a small step, early stopping on some of the rows."""

from dataclasses import replace

import numpy as np
import torch

from ray_fed.errors import DataError
from ray_fed.learning.layout import Layout, bind
from ray_fed.learning.models import mlp
from ray_fed.model_library import predictors
from ray_fed.randomness import derived_seed, generator
from ray_fed.reporting.model_files import ModelCard

Model = tuple[dict[str, np.ndarray], ModelCard]


def fine_tune(
    model: Model, features: np.ndarray, targets: np.ndarray, *, property_name: str, unit: str, epochs: int = 200,
    learning_rate: float = 1e-3, patience: int = 30, held_out: float = 0.2, seed: int = 0,
) -> Model:  # fmt: skip
    """Return a network trained on from `model`, and its card with `parent` set.

    features  raw, [rows, features of the model's descriptor]; they are standardised by the source's scaler
    targets   [rows] in `unit`; the output layer starts at their mean and spread, in the direction of the source's
    held_out  share of the rows that stop the training; their error is on the card as "validation"

    DataError for fewer than 8 rows or features of another width.
    """
    arrays, card = model
    predictors.check_width(card, features)
    if len(targets) < 8:
        raise DataError(f"{len(targets)} rows are too few to fine-tune on; need 8")
    inputs = torch.from_numpy(predictors.standardised(arrays, card, features))
    order = generator(seed, "fine-tuning split").permutation(len(targets))
    count = max(2, round(held_out * len(targets)))
    stop, learn = order[:count], order[count:]
    centre, spread = float(targets[learn].mean()), float(targets[learn].std()) or 1.0
    wanted = torch.tensor((targets - centre) / spread, dtype=torch.float32)[:, None]
    network = _network(_restandardised(arrays, inputs[learn].numpy()))
    loss, best_epoch, best = _trained(
        network, inputs, wanted, learn, stop, epochs=epochs, rate=learning_rate, patience=patience, seed=seed
    )
    tuned = best
    last = 2 * (predictors.num_layers(arrays) - 1)
    tuned[f"{last}.weight"], tuned[f"{last}.bias"] = (
        tuned[f"{last}.weight"] * np.float32(spread),
        tuned[f"{last}.bias"] * np.float32(spread) + np.float32(centre),
    )
    tuned |= {name: arrays[name] for name in card.scaler_tensors}
    return tuned, replace(
        card,
        name=f"{property_name} from {card.name}",
        property=property_name,
        unit=unit,
        parent=card.id,
        seed=derived_seed(seed, "fine-tuning"),
        metrics={"train": {"n": len(learn)}, "validation": {"n": count, "rmse": spread * float(np.sqrt(loss))}},
        hyperparameters={
            **card.hyperparameters, "fine_tuning": {"learning_rate": learning_rate, "best_epoch": best_epoch}
        },
        id="",
    )  # fmt: skip


def _restandardised(arrays: dict[str, np.ndarray], inputs: np.ndarray) -> dict[str, np.ndarray]:
    """Return the arrays with an output of mean 0 and spread 1 on these inputs: the source's unit means nothing here."""
    outputs = predictors.forward(arrays, inputs)[-1]
    last = 2 * (predictors.num_layers(arrays) - 1)
    spread = float(outputs.std()) or 1.0
    return {
        **arrays,
        f"{last}.weight": arrays[f"{last}.weight"] / np.float32(spread),
        f"{last}.bias": (arrays[f"{last}.bias"] - outputs.mean()) / np.float32(spread),
    }


def _network(arrays: dict[str, np.ndarray]) -> torch.nn.Sequential:
    hidden = [len(arrays[f"{2 * layer}.bias"]) for layer in range(predictors.num_layers(arrays) - 1)]
    network = mlp(arrays["0.weight"].shape[1], hidden)
    flat, _ = bind(network)
    np.copyto(flat.numpy(), Layout.of(network).flatten(arrays))
    return network


def _trained(
    network: torch.nn.Sequential, inputs: torch.Tensor, wanted: torch.Tensor, learn: np.ndarray, stop: np.ndarray,
    *, epochs: int, rate: float, patience: int, seed: int,
) -> tuple[float, int, dict[str, np.ndarray]]:  # fmt: skip
    """Return (validation error, epoch, arrays) at the best epoch; epoch 0 is the source as it came."""
    optimizer = torch.optim.Adam(network.parameters(), lr=rate)

    def state() -> dict[str, np.ndarray]:
        return {name: tensor.numpy().copy() for name, tensor in network.state_dict().items()}

    def error() -> float:
        with torch.no_grad():
            return float((network(inputs[stop]) - wanted[stop]).square().mean())

    best, best_epoch, kept = error(), 0, state()
    for epoch in range(1, epochs + 1):
        for batch in torch.from_numpy(learn[generator(seed, "tuning", epoch).permutation(len(learn))]).split(16):
            optimizer.zero_grad()
            torch.nn.functional.mse_loss(network(inputs[batch]), wanted[batch]).backward()
            optimizer.step()
        now = error()
        if now < best:
            best, best_epoch, kept = now, epoch, state()
        if epoch - best_epoch >= patience:
            break
    return best, best_epoch, kept
