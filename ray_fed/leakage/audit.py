"""What the messages of one silo give away, measured inside that silo against its own records.

Nothing leaves the silo but counts and errors. Messages are replayed: the silo trains as it would in the federation,
and what the coordinator would see is attacked with `tabular.row_candidates`, with and without defences.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from ray_fed.config import require
from ray_fed.federation.messages import SessionSpec
from ray_fed.federation.silo import Silo
from ray_fed.leakage.defences import Defence
from ray_fed.leakage.tabular import EXACT, NEAR, match_rows, residual_from_bias, row_candidates
from ray_fed.learning.layout import Layout, initial_vector, load_vector
from ray_fed.learning.trainer import TrainingPlan

SINGLES = 64
"""Single-example gradients replayed per silo."""

Parts = list[np.ndarray]


@dataclass(frozen=True)
class Replay:
    """Messages of one kind from one silo; stays inside it."""

    kind: str
    messages: tuple[Parts, ...]
    """One array per parameter each."""
    rows: np.ndarray
    """[num_rows, num_features]: all the silo's training records, as the network sees them."""
    targets: np.ndarray
    """[num_rows]"""
    records: int
    """Records that took part."""
    owners: tuple[int, ...] = ()
    """Record behind each message, where each comes from one."""


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

    @property
    def found(self) -> int:
        return self.exact + self.near


def single_records(silo: Silo, vector: np.ndarray) -> Replay:
    """Replay gradients of one record each at the parameters `vector`: the worst case of local training."""
    count = min(SINGLES, len(silo.features))
    messages = tuple(_gradient(silo, vector, slice(number, number + 1)) for number in range(count))
    return _replay(silo, "gradient of one record", messages, count, tuple(range(count)))


def one_batch(silo: Silo, vector: np.ndarray, size: int) -> Replay:
    """Replay the gradient of one batch of the silo's records."""
    size = min(size, len(silo.features))
    return _replay(silo, f"gradient of a batch of {size}", (_gradient(silo, vector, slice(0, size)),), size)


def whole_round(silo: Silo, plan: TrainingPlan, vector: np.ndarray, seed: int) -> Replay:
    """Replay the silo's answer to round 1, trained from `vector` as planned: sent minus returned parameters."""
    session = "audit of a round"
    _open(silo, session, plan, seed)
    update = silo.fit(session, 1, vector)
    silo.close_session(session)
    moved = vector.astype(np.float64) - update.vector[: len(vector)]
    kind = f"update of a round ({update.num_steps} local {plan.optimizer} steps)"
    return _replay(silo, kind, (_parts(moved, silo),), min(update.num_examples, len(silo.features)))


def summed(replays: Sequence[Replay]) -> list[Replay]:
    """Return what secure aggregation shows instead of each silo's message: the sum, to be matched with each silo."""
    total = [np.sum(parts, axis=0) for parts in zip(*(one.messages[0] for one in replays), strict=True)]
    return [replace(one, kind=f"sum of the updates of {len(replays)} silos", messages=(total,)) for one in replays]


def audit(
    silo: Silo, replay: Replay, vector: np.ndarray, units: Mapping[str, str], scale: np.ndarray, defence: Defence | None
) -> MessageAudit:
    """Attack the messages of a replay under a defence.

    units: feature -> unit, in order; scale [num_features]: standard deviations of the features. ConfigError when the
    network's first layer is not linear with a bias.
    """
    network = load_vector(silo.task.model(0), vector)
    check_first_layer(network)
    found, target_errors = [], []
    for number, message in enumerate(replay.messages):
        sent = defended(message, defence, number)
        guesses = row_candidates(sent[0], sent[1])
        found += _found(guesses, replay, number)
        if replay.owners and len(guesses):
            target_errors.append(_target_error(network, guesses[0], sent, replay.targets[replay.owners[number]]))
    exact = sum(error < EXACT for error, *_ in found)
    near = sum(EXACT <= error < NEAR for error, *_ in found)
    errors = [np.abs(guess - replay.rows[record]) for error, guess, record in found if error < NEAR]
    physical = np.median(errors, axis=0) * scale if errors else []
    return MessageAudit(
        silo.spec.name, replay.kind, str(defence or "none"), replay.records, exact, near,
        {name: float(error) for name, error in zip(units, physical, strict=False)},
        float(np.median(target_errors)) if target_errors else None,
    )  # fmt: skip


def defended(message: Parts, defence: Defence | None, seed: int) -> Parts:
    """Return a message as the silo would send it under a defence."""
    if defence is None:
        return message
    parts = [torch.from_numpy(np.asarray(part, np.float32)) for part in message]
    return [part.numpy() for part in defence.on_message(parts, seed)]


def check_first_layer(network: nn.Module) -> None:
    """ConfigError when rows cannot be read from the first layer."""
    first = next(layer for layer in network.modules() if not list(layer.children()))
    linear = isinstance(first, nn.Linear) and first.bias is not None
    name = type(first).__name__
    require(linear, f"audit: the first layer is a {name}; rows are read from a linear layer with a bias")


def trained_error(
    silos: Sequence[Silo],
    plans: Mapping[str, TrainingPlan],
    seed: int,
    rounds: int,
    defence: Defence | None,
    score: Callable[[np.ndarray], float],
) -> float:
    """Return `score` of the parameters after `rounds` rounds of federated averaging with every update defended."""
    vector, session = initial_vector(silos[0].task.model(seed)), f"audit of the cost of {defence or 'none'}"
    for silo in silos:
        _open(silo, session, plans[silo.spec.name], seed)
    for server_round in range(1, rounds + 1):
        updates = [silo.fit(session, server_round, vector) for silo in silos]
        total = sum(update.num_examples for update in updates)
        step = np.zeros(len(vector))
        for number, (silo, update) in enumerate(zip(silos, updates, strict=True)):
            moved = update.vector[: len(vector)].astype(np.float64) - vector
            sent = defended(_parts(moved, silo), defence, 1000 * server_round + number)
            step += update.num_examples / total * np.concatenate([part.ravel() for part in sent])
        vector = (vector + step).astype(np.float32)
    for silo in silos:
        silo.close_session(session)
    return score(vector)


def _replay(silo: Silo, kind: str, messages: tuple[Parts, ...], records: int, owners: tuple[int, ...] = ()) -> Replay:
    rows, targets = silo.features.cpu().numpy(), silo.targets.cpu().numpy().ravel()
    return Replay(kind, messages, rows, targets, records, owners)


def _found(guesses: np.ndarray, replay: Replay, number: int) -> list[tuple[float, np.ndarray, int]]:
    """Return (error, guess, record) of the records that message `number` gives away."""
    matches = match_rows(guesses, replay.rows)
    records = np.flatnonzero(matches.guess >= 0)
    if replay.owners:  # others that look like it have not been reconstructed
        records = records[records == replay.owners[number]]
    return [(float(matches.error[record]), guesses[matches.guess[record]], int(record)) for record in records]


def _open(silo: Silo, session: str, plan: TrainingPlan, seed: int) -> None:
    digest = Layout.of(silo.task.model(seed), plan.buffers).digest
    silo.open_session(SessionSpec(session, plan, seed, digest))


def _gradient(silo: Silo, vector: np.ndarray, rows: slice) -> Parts:
    network = load_vector(silo.task.model(0), vector)
    loss = silo.task.loss(network(silo.features[rows]), silo.targets[rows])
    return [part.numpy() for part in torch.autograd.grad(loss, list(network.parameters()))]


def _parts(moved: np.ndarray, silo: Silo) -> Parts:
    layout = Layout.of(silo.task.model(0))
    return list(layout.unflatten(moved[: layout.size]).values())


def _target_error(network: nn.Module, guess: np.ndarray, message: Parts, target: float) -> float:
    """y = F(x) - dL/db_out / 2 for a mean squared error."""
    with torch.no_grad():
        predicted = float(network(torch.from_numpy(guess.astype(np.float32))[None])[0, 0])
    return abs(predicted - residual_from_bias(float(message[-1][0])) - float(target))
