"""What the messages of one silo reveal, measured inside that silo against its own records.

Nothing leaves the silo but counts and errors. The messages are those of replay.py; the attack is algebra on the first
layer's part of a message (tabular.py), with and without defences, and with the training done in other ways
(`TrainingChange`: how the training is cut into messages, by what optimiser, how privately).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from math import ceil

import numpy as np
from torch import nn

from ray_fed.config import require, unknown_name
from ray_fed.federation.silo import Silo
from ray_fed.leakage.defences import Defence
from ray_fed.leakage.replay import Parts, Replay, defended
from ray_fed.leakage.tabular import (
    EXACT,
    NEAR,
    factor_candidates,
    match_owner,
    match_rows,
    recovered_target,
    row_candidates,
)
from ray_fed.learning.layout import load_vector
from ray_fed.learning.private_steps import PrivateSteps
from ray_fed.learning.trainer import TrainingPlan
from ray_fed.privacy.accounting import PrivacyAccount
from ray_fed.privacy.compression import METHODS, Compression


@dataclass(frozen=True)
class TrainingChange:
    """`batch:8+steps:1+dp:8+sgd+int8`; what is not named stays as the federation has it."""

    batch: int | None = None
    """Rows of one silo per step."""
    steps: int | None = None
    """Local steps per message."""
    sgd: bool = False
    """Plain SGD instead of the federation's optimiser: its update is a sum of gradients."""
    dp: float | None = None
    """Epsilon of DP-SGD over the whole run, example level, at delta 1e-5 (privacy/dp)."""
    compression: Compression | None = None
    """Of the updates, with error feedback (privacy/compression.py)."""

    def __str__(self) -> str:
        numbers = (("batch", self.batch), ("steps", self.steps), ("dp", self.dp))
        words = ["sgd"] * self.sgd + ([self.compression.method] if self.compression else [])
        return "+".join([*(f"{name}:{value:g}" for name, value in numbers if value is not None), *words])

    def of(self, plans: Mapping[str, TrainingPlan], sizes: Mapping[str, int]) -> dict[str, TrainingPlan]:
        """Return the plans of all silos with as many passes over the rows, changed.

        sizes: silo -> training rows. All silos take as many steps per pass as the largest needs.
        """
        some = next(iter(plans.values()))
        per_epoch = some.steps_per_epoch if self.batch is None else ceil(max(sizes.values()) / self.batch)
        total = some.epochs * per_epoch
        rounds = some.num_rounds if self.steps is None else max(1, total // self.steps)
        changes: dict[str, object] = {"steps_per_epoch": per_epoch, "num_rounds": min(rounds, total)}
        if self.sgd:
            changes |= {"optimizer": "sgd", "optimizer_state": "keep"}
        if self.dp:
            changes["private"] = PrivateSteps(noise_for(self.dp, 1 / per_epoch, total))
        if self.compression:
            changes["compression"] = self.compression
        return {name: replace(plan, **changes) for name, plan in plans.items()}  # type: ignore[arg-type]


def noise_for(epsilon: float, probability: float, num_steps: int) -> float:
    """Return the smallest noise multiplier, to 1 %, with which `num_steps` private steps spend at most `epsilon`."""
    low, high = 1e-2, 1e-2
    while PrivacyAccount("example", high, probability).epsilon(num_steps) > epsilon:
        low, high = high, 2 * high
    while high > 1.01 * low:
        middle = (low * high) ** 0.5
        fits = PrivacyAccount("example", middle, probability).epsilon(num_steps) <= epsilon
        low, high = (low, middle) if fits else (middle, high)
    return high


def parse_change(text: str) -> TrainingChange:
    """Return the change written as batch:N, steps:N, dp:EPSILON, sgd or a compression, joined by '+'; ConfigError for
    anything else."""
    found: dict[str, object] = {}
    for part in text.split("+"):
        name, _, number = part.partition(":")
        if name not in ("batch", "steps", "dp", "sgd", *METHODS):
            raise unknown_name("change", name, ["batch", "steps", "dp", "sgd", *METHODS])
        if name in ("batch", "steps"):
            require(number.isdecimal() and int(number) >= 1, f"change {part!r} must be {name}:NUMBER, 1 or more")
            found[name] = int(number)
        elif name == "dp":
            found[name] = _epsilon(number, part)
        else:
            require(not number, f"change {part!r}: {name} takes no number")
            found |= {"sgd": True} if name == "sgd" else {"compression": Compression(name)}  # type: ignore[arg-type]
    return TrainingChange(**found)  # type: ignore[arg-type]


def _epsilon(number: str, part: str) -> float:
    is_number = number.replace(".", "", 1).isdecimal()
    require(is_number and float(number) > 0, f"change {part!r} must be dp:EPSILON, above 0")
    return float(number)


Found = tuple[float, np.ndarray, int]
"""Error, guess, record."""


@dataclass(frozen=True)
class MessageAudit:
    """What one kind of message reveals under one defence: numbers only."""

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
    """Median |recovered - true target| in the target's unit, of messages of one record; None for others, and where
    several targets or classes are learned."""
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
        if replay.owners and replay.summed == 1 and len(guesses) and len(replay.targets):
            recovered = recovered_target(network, guesses[0], sent)
            target_errors.append(_target_error(silo, recovered, float(replay.targets[replay.owners[number]])))
    exact = sum(error < EXACT for error, *_ in found)
    near = sum(EXACT <= error < NEAR for error, *_ in found)
    return MessageAudit(
        silo.spec.name, replay.kind, str(defence or "none"), replay.records, exact, near,
        _physical(found, replay, units, scale),
        float(np.median(target_errors)) if target_errors else None, replay.summed,
    )  # fmt: skip


def _target_error(silo: Silo, recovered: float, true: float) -> float:
    """Return how far two targets, as the network learns them, are apart in the user's unit."""
    first, second = silo.samples.said(np.array([[recovered], [true]]))[:, 0].tolist()
    return abs(first - second)


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
    """Yield what message `number` reveals."""
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
