"""Leakage against communication frequency: the same training, told in more or fewer messages.

Guo et al. 2022 say that fewer exchanges leak less. Here one silo makes one pass of SGD over its records, and sends what
has changed after every step, every second, ... or only at the end; all its messages are attacked, and what they name
together is counted.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from ray_fed.leakage.listed_records import Named, named, row_space_residuals, together
from ray_fed.leakage.tabular import factor_candidates, match_rows, row_candidates
from ray_fed.leakage.tabular_study import TabularCase, local_update
from ray_fed.learning.models import seeded_mlp
from ray_fed.randomness import generator

BATCH, RATE = 4, 1e-3
STEPS = 32
EVERY = (1, 2, 4, 8, 16, 32)
"""Local steps between exchanges."""


@dataclass(frozen=True)
class FrequencyLeak:
    """What one training gives away in all its messages together."""

    exchanges: int
    local_steps: int
    records: int
    """Records of the silo; each is used once."""
    found: int
    """Records that an attacker who knows nothing finds, within 10 % of a standard deviation."""
    named: Named
    """Records named by the span of the first layer's rows, from a list of all records of the study."""


def frequency_leaks(features: np.ndarray, targets: np.ndarray, seed: int) -> Iterator[FrequencyLeak]:
    """Yield what leaks at each frequency; features [listed, 73] standardised, targets [listed]."""
    order = generator(seed, "a silo that exchanges often or seldom").permutation(len(features))[: STEPS * BATCH]
    for steps in EVERY:
        yield _one_training(features, targets, order, steps, seed)


def _one_training(
    features: np.ndarray, targets: np.ndarray, order: np.ndarray, steps: int, seed: int
) -> FrequencyLeak:  # fmt: skip
    network, case = seeded_mlp(features.shape[1], (200, 200), seed), TabularCase(BATCH, steps, "sgd", RATE)
    rows, wanted = torch.from_numpy(features), torch.from_numpy(targets)[:, None]
    found, counted = 0, []
    for behind in np.split(order, STEPS // steps):
        message = local_update(
            network, rows, wanted, [torch.from_numpy(part) for part in np.split(behind, steps)], case
        )
        weights, bias = message[0].numpy(), message[1].numpy()
        guesses = np.concatenate([row_candidates(weights, bias), factor_candidates(weights, bias, len(behind))])
        matched = match_rows(guesses, features[behind])
        found += matched.exact + matched.near
        strengths = -row_space_residuals(weights, bias, features, len(behind))
        counted.append(named(strengths, behind, behind)[0])
        _move(network, message)
    return FrequencyLeak(STEPS // steps, steps, len(order), found, together(counted))


@torch.no_grad()
def _move(network: nn.Module, message: Sequence[torch.Tensor]) -> None:
    for parameter, part in zip(network.parameters(), message, strict=True):
        parameter -= RATE * part


def as_rows(leaks: Sequence[FrequencyLeak]) -> list[list[str]]:
    """Return a header and a line per frequency."""
    lines = [
        [f"{one.exchanges}", f"{one.local_steps}", f"{one.records}", f"{one.found}",
         f"{one.named.right} ({one.named.by_chance:.0f})"]
        for one in leaks
    ]  # fmt: skip
    return [
        ["exchanges", "local steps between", "records", "found without a list", "named from a list (by chance)"],
        *lines,
    ]
