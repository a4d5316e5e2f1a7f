"""Where an attack begins: noise, grey, or the input found layer by layer."""

from collections.abc import Sequence

import torch

from ray_fed.leakage.attacks import Attack
from ray_fed.leakage.layer_inversion import invert_layers, is_chain
from ray_fed.leakage.observation import AttackObservation
from ray_fed.randomness import derived_seed

BATCH_SPREAD = 0.2
"""Spread of a grey start for batches: images that start together stay together."""


def start_inputs(observations: Sequence[AttackObservation], attack: Attack, seeds: Sequence[int]) -> list[torch.Tensor]:
    """Return candidates for the start, each [n, samples, *input_shape]; the attack begins at the better one.

    Equal seeds give equal guesses whatever else is in the batch.
    """
    like = observations[0].parameters[0]
    noise = torch.stack([_noise(one, attack, seed) for one, seed in zip(observations, seeds, strict=True)]).to(like)
    if attack.start == "layers" and is_chain(observations[0]):
        return [*_inverted(observations, noise), noise]
    return [noise]


def _inverted(observations: Sequence[AttackObservation], otherwise: torch.Tensor) -> list[torch.Tensor]:
    """Return the inputs found layer by layer, where they are finite; nothing where the linear algebra breaks down,
    as it does for a message without an output bias's gradient."""
    try:
        return [_finite(invert_layers(observations), otherwise)]
    except torch.linalg.LinAlgError:  # pyright: ignore[reportPrivateImportUsage]
        return []


def _noise(observation: AttackObservation, attack: Attack, seed: int) -> torch.Tensor:
    knows = observation.knows
    draw = torch.Generator().manual_seed(derived_seed(seed, "start of an attack"))
    noise = torch.randn(knows.samples, *knows.input_shape, generator=draw)
    if attack.start == "normal":
        return noise
    low, high = knows.value_range
    spread = attack.spread if knows.samples == 1 else max(attack.spread, BATCH_SPREAD)
    return (low + high) / 2 + spread * (high - low) * noise


def _finite(wanted: torch.Tensor, otherwise: torch.Tensor) -> torch.Tensor:
    usable = torch.isfinite(wanted).flatten(1).all(1)
    return torch.where(usable.reshape(-1, *[1 for _ in wanted.shape[1:]]), wanted, otherwise)
