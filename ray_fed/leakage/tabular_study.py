"""What a message of our tabular regression network reveals, by batch size, local steps and optimiser."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from ray_fed.config import require
from ray_fed.leakage.defences import parse_defence
from ray_fed.leakage.listed_records import (
    Named,
    RecordList,
    named,
    together,
)
from ray_fed.leakage.observation import StackedNetwork
from ray_fed.leakage.tabular import factor_candidates, match_rows, recovered_target, row_candidates
from ray_fed.learning.models import seeded_mlp
from ray_fed.randomness import generator


@dataclass(frozen=True)
class TabularCase:
    """How a silo trains before it sends."""

    batch_size: int
    local_steps: int = 1
    optimizer: str = "sgd"
    """sgd | adam"""
    learning_rate: float = 1e-3
    silos: int = 1
    """Silos of which only the sum is seen, each with that batch and those steps."""
    defence: str = ""
    """Of the message; empty: none."""


@dataclass(frozen=True)
class TabularLeak:
    """What leaks in one case, over several messages."""

    case: TabularCase
    rows: int
    """Records that took part, over all messages."""
    exact: int
    near: int
    target_errors: tuple[float, ...]
    """|recovered - true target| of messages of one record and one step, in the target's unit."""
    named: Mapping[str, Named] = field(default_factory=dict)
    """Attack with a list, on which all records of the study stand -> how many of those behind the messages it named."""


def crystal_rows(count: int, seed: int) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Return standardised features [count, 73], targets [count] in eV/atom and feature names of embedded crystals."""
    from ray_fed.materials.databases.database import open_database
    from ray_fed.materials.databases.source import Source
    from ray_fed.materials.features.featurizers import make_featurizer

    frame = open_database(Source()).frame
    require(0 < count <= len(frame), f"records={count}: there are {len(frame)} embedded crystals")
    chosen = frame.iloc[generator(seed, "records to attack").permutation(len(frame))[:count]].reset_index(drop=True)
    featurizer = make_featurizer("guo73")
    features, reasons = featurizer.transform_with_reasons(chosen)
    usable = np.array([not reason for reason in reasons])
    features = features[usable]
    scale = features.std(0)
    standard = (features - features.mean(0)) / np.where(scale > 0, scale, 1.0)
    targets = chosen["target"].to_numpy(np.float64)[usable]
    return standard.astype(np.float32), targets.astype(np.float32), tuple(featurizer.get_feature_names_out())


def tabular_leaks(
    features: np.ndarray, targets: np.ndarray, cases: Sequence[TabularCase], messages: int, seed: int
) -> Iterator[TabularLeak]:
    """Attack `messages` messages of each case with the ratios and factors of the first layer, and with a list of all
    records; yields each case's sum.

    Batches are drawn without replacement per message; local steps go through them in turn, as epochs do.
    """
    network, listed = seeded_mlp(features.shape[1], (200, 200), seed), RecordList(features)
    for case in cases:
        found = [_one_message(network, features, targets, listed, case, seed, number) for number in range(messages)]
        errors = tuple(error for one in found for error in one.target_errors)
        counted = {attack: together([one.named[attack] for one in found]) for attack in _of_all(found)}
        rows, exact, near = (sum(getattr(one, of) for one in found) for of in ("rows", "exact", "near"))
        yield TabularLeak(case, rows, exact, near, errors, counted)


def _of_all(found: Sequence[TabularLeak]) -> list[str]:
    """Return the attacks that could be tried on every message."""
    return [attack for attack in found[0].named if all(attack in one.named for one in found)]


def _one_message(
    network: nn.Module,
    features: np.ndarray,
    targets: np.ndarray,
    listed: RecordList,
    case: TabularCase,
    seed: int,
    number: int,
) -> TabularLeak:
    draw = generator(seed, "a silo's batches", number, case.batch_size, case.local_steps)
    wanted = case.batch_size * case.local_steps * case.silos
    order = np.resize(draw.permutation(len(features)), wanted)
    message = _message(network, features, targets, order, case, number)
    taken = np.unique(order)
    weights, bias = message[0].numpy(), message[1].numpy()
    guesses = np.concatenate([row_candidates(weights, bias), factor_candidates(weights, bias, wanted)])
    found = match_rows(guesses, features[taken])
    single = wanted == 1 and case.optimizer == "sgd" and not case.defence
    errors = (abs(recovered_target(network, guesses[0], message) - float(targets[order[0]])),) if single else ()
    behind = listed.positions(features[taken])
    strengths, _ = listed.strengths([part.numpy() for part in message], network, wanted)
    counted = {attack: named(strength, behind, behind)[0] for attack, strength in strengths.items()}
    return TabularLeak(case, len(taken), found.exact, found.near, errors, counted)


def _message(
    network: nn.Module, features: np.ndarray, targets: np.ndarray, order: np.ndarray, case: TabularCase, number: int
) -> list[torch.Tensor]:  # fmt: skip
    """Return what is seen of records `order` [silos * steps * batch]: a silo's message, or the mean of several, under
    the case's defence."""
    rows, wanted = torch.from_numpy(features), torch.from_numpy(targets)[:, None]
    sent = []
    for part in np.split(order, case.silos):
        batches = [torch.from_numpy(batch) for batch in np.split(part, case.local_steps)]
        sent.append(local_update(network, rows, wanted, batches, case))
    message = [torch.stack(parts).mean(0) for parts in zip(*sent, strict=True)]
    return parse_defence(case.defence).on_message(message, number) if case.defence else message


def local_update(
    network: nn.Module,
    features: torch.Tensor,
    targets: torch.Tensor,
    batches: Sequence[torch.Tensor],
    case: TabularCase,
) -> list[torch.Tensor]:
    """Return (w_before - w_after) / learning_rate after one step per batch (indices), per parameter."""
    weights = [parameter.detach().clone() for parameter in network.parameters()]
    before = [weight.clone() for weight in weights]
    optimizer = (torch.optim.Adam if case.optimizer == "adam" else torch.optim.SGD)(weights, lr=case.learning_rate)
    for index in batches:
        stacked = StackedNetwork(network, [weight[None] for weight in weights], functional.mse_loss)
        for weight, part in zip(weights, stacked.gradients(features[index][None], targets[index][None]), strict=True):
            weight.grad = part[0]
        optimizer.step()
    return [(old - new) / case.learning_rate for old, new in zip(before, weights, strict=True)]
