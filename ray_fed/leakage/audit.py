"""What the messages of one silo give away, measured inside that silo against its own records.

Nothing leaves the silo but counts and errors. The messages are those of replay.py; the attack is algebra on the first
layer's part of a message (tabular.py, sparse_factors.py), with and without defences.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from ray_fed.config import require
from ray_fed.federation.silo import Silo
from ray_fed.leakage.defences import Defence
from ray_fed.leakage.replay import Parts, Replay, defended
from ray_fed.leakage.sparse_factors import factor_candidates
from ray_fed.leakage.tabular import EXACT, NEAR, match_owner, match_rows, residual_from_bias, row_candidates
from ray_fed.learning.layout import load_vector

Found = tuple[float, np.ndarray, int]
"""Error, guess, record."""


@dataclass(frozen=True)
class MessageAudit:
    """What one kind of message gives away under one defence: numbers only."""

    silo: str
    kind: str
    defence: str
    records: int
    """Records that took part."""
    exact: int
    """Records reconstructed up to 1 % of a standard deviation per feature."""
    near: int
    """Records reconstructed up to 10 %, the exact ones left out."""
    feature_errors: Mapping[str, float]
    """Feature -> median absolute error over the records found, in the feature's own unit."""
    target_error: float | None
    """Median |recovered - true target| in the target's unit, of messages of one record; None for others."""
    summed: int = 1
    """Silos in the sum, if only the sum is seen."""

    @property
    def found(self) -> int:
        return self.exact + self.near

    @property
    def share(self) -> float:
        """Return the share of the records behind the message that is reconstructed, exactly or nearly."""
        return self.found / self.records


def audit(
    silo: Silo, replay: Replay, vector: np.ndarray, units: Mapping[str, str], scale: np.ndarray, defence: Defence | None
) -> MessageAudit:
    """Attack the messages of a replay under a defence.

    units: feature -> unit, in order; scale [num_features]: standard deviations of the features. ConfigError when the
    network's first layer is not linear with a bias.
    """
    network = load_vector(silo.task.model(0), vector)
    check_first_layer(network)
    found: list[Found] = []
    target_errors = []
    for number, message in enumerate(replay.messages):
        sent = defended(message, defence, number)
        guesses = _guesses(sent, replay)
        found += _found(guesses, replay, number)
        if replay.owners and replay.summed == 1 and len(guesses):
            target_errors.append(_target_error(network, guesses[0], sent, replay.targets[replay.owners[number]]))
    exact = sum(error < EXACT for error, *_ in found)
    near = sum(EXACT <= error < NEAR for error, *_ in found)
    return MessageAudit(
        silo.spec.name, replay.kind, str(defence or "none"), replay.records, exact, near,
        _physical(found, replay, units, scale),
        float(np.median(target_errors)) if target_errors else None, replay.summed,
    )  # fmt: skip


def check_first_layer(network: nn.Module) -> None:
    """ConfigError when rows cannot be read from the first layer."""
    first = next(layer for layer in network.modules() if not list(layer.children()))
    linear = isinstance(first, nn.Linear) and first.bias is not None
    name = type(first).__name__
    require(linear, f"audit: the first layer is a {name}; rows are read from a linear layer with a bias")


def _guesses(message: Parts, replay: Replay) -> np.ndarray:
    """Ratios of the units; for few records together, their exact factors as well."""
    ratios = row_candidates(message[0], message[1])
    return np.concatenate([ratios, factor_candidates(message[0], message[1], replay.together)])


def _found(guesses: np.ndarray, replay: Replay, number: int) -> Iterable[Found]:
    """Yield what message `number` gives away."""
    if replay.owners:  # others that look like it have not been reconstructed
        matches = match_owner(guesses, replay.rows, replay.owners[number])
    else:
        matches = match_rows(guesses, replay.rows)
    found = np.flatnonzero(matches.guess >= 0)
    if replay.took_part is not None:  # a guess may happen to resemble a record that is not behind the message
        found = np.intersect1d(found, replay.took_part)
    for record in found:
        yield float(matches.error[record]), guesses[matches.guess[record]], int(record)


def _physical(found: Iterable[Found], replay: Replay, units: Mapping[str, str], scale: np.ndarray) -> dict[str, float]:
    errors = [np.abs(guess - replay.rows[record]) for error, guess, record in found if error < NEAR]
    physical = np.median(errors, axis=0) * scale if errors else []
    return {name: float(error) for name, error in zip(units, physical, strict=False)}


def _target_error(network: nn.Module, guess: np.ndarray, message: Parts, target: float) -> float:
    """y = F(x) - dL/db_out / 2 for a mean squared error."""
    with torch.no_grad():
        predicted = float(network(torch.from_numpy(guess.astype(np.float32))[None])[0, 0])
    return abs(predicted - residual_from_bias(float(message[-1][0])) - float(target))
