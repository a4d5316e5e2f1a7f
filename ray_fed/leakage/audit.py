"""What the messages of one silo reveal, measured inside that silo against its own records.

Nothing leaves the silo but counts and errors. The messages are those of replay.py. Three kinds of attacker: one who
knows nothing of the records (algebra on the first layer's part of a message, tabular.py), one who knows how such
records are distributed (marginals.py), and one who holds a list on which they stand among others (listed_records.py).
With and without defences, and with the training done in other ways (`TrainingChange`: how the training is cut into
messages, by what optimiser, how privately).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import ceil

import numpy as np
import torch
from torch import nn

from ray_fed.config import require, unknown_name
from ray_fed.federation.silo import Silo
from ray_fed.leakage.crafted_models import guesses_of
from ray_fed.leakage.defences import Defence
from ray_fed.leakage.listed_records import (
    LEAST_SQUARES,
    LEFT_ENTRIES,
    NOBODY,
    Named,
    RecordList,
    Suspected,
    added_up,
    named,
    suspected,
    together,
)
from ray_fed.leakage.marginals import Marginals
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

    @property
    def is_averaged(self) -> bool:
        """Whether the change needs plain averages of parameters: with FedAvg, whatever the federation's strategy."""
        return bool(self.sgd or self.dp or self.compression)

    def of(self, plans: Mapping[str, TrainingPlan], sizes: Mapping[str, int]) -> dict[str, TrainingPlan]:
        """Return the plans of all silos with as many passes over the rows, changed.

        sizes: silo -> training rows. All silos take as many steps per pass as the largest needs.
        """
        some = next(iter(plans.values()))
        per_epoch = some.steps_per_epoch if self.batch is None else ceil(max(sizes.values()) / self.batch)
        total = some.epochs * per_epoch
        rounds = some.num_rounds if self.steps is None else max(1, total // self.steps)
        changes: dict[str, object] = {"steps_per_epoch": per_epoch, "num_rounds": min(rounds, total)}
        if self.is_averaged:
            changes |= {"optimizer_state": "keep", "control_variates": False}
        if self.sgd:
            changes |= {"optimizer": "sgd"}
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


LISTED_MESSAGES = 8
"""Messages of one kind, at most, that are attacked with a list: each costs a pass over it."""

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
    named: Mapping[str, Named] = field(default_factory=dict)
    """Attack with a list -> the records it named; empty without a list."""
    listed_target_error: float | None = None
    """Median |read - true target|, in the target's unit, of the records that `LEAST_SQUARES` named rightly in one
    gradient; None for updates of several steps, and where several targets or classes are learned."""
    with_marginals: int = 0
    """Records reconstructed, exactly or nearly, by one who knows how records are distributed."""
    unguided: Suspected = NOBODY
    """What least squares names where nobody says how many records are behind a message."""
    labels: tuple[int, int] = (0, 0)
    """Classes read rightly, and records named rightly whose class was read."""

    @property
    def named_most(self) -> Named:
        """Return what the attack named that named most beyond chance; none without a list."""
        return max(self.named.values(), key=lambda one: (one.share, one.right), default=Named(0, 0, 0.0))

    @property
    def found(self) -> int:
        return self.exact + self.near

    @property
    def share(self) -> float:
        """Return the share of the records behind the message that is reconstructed, exactly or nearly."""
        return self.found / self.records

    @property
    def share_with_marginals(self) -> float:
        """Return the same for one who knows how records are distributed."""
        return max(self.found, self.with_marginals) / self.records

    @property
    def worst_share(self) -> float:
        """Return the largest share of all attackers: reconstructed, or named from the list beyond chance."""
        return max(self.share_with_marginals, self.named_most.share)


def audit(
    silo: Silo,
    replay: Replay,
    units: Mapping[str, str],
    scale: np.ndarray,
    defence: Defence | None,
    listed: RecordList | None = None,
    marginals: Marginals | None = None,
) -> MessageAudit:
    """Attack the messages of a replay under a defence.

    units: feature -> unit, in order; scale [num_features]: standard deviations of the features; listed: what an
    attacker with a list suspects; marginals: how records are distributed. ConfigError when the network's first layer is
    not linear with a bias.
    """
    network = load_vector(silo.task.model(0), replay.sent)
    check_first_layer(network)
    found: list[Found] = []
    target_errors, refined = [], 0
    messages = [defended(message, defence, number) for number, message in enumerate(replay.messages)]
    for number, sent in enumerate(messages):
        guesses = _guesses(sent, replay)
        found += _found(guesses, replay, number)
        if marginals:
            both = np.concatenate([guesses, marginals.likeliest(guesses)])
            refined += sum(error < NEAR for error, *_ in _found(both, replay, number))
        if replay.owners and replay.summed == 1 and len(guesses) and len(replay.targets):
            recovered = recovered_target(network, guesses[0], sent)
            target_errors.append(_target_error(silo, recovered, float(replay.targets[replay.owners[number]])))
    exact = sum(error < EXACT for error, *_ in found)
    near = sum(EXACT <= error < NEAR for error, *_ in found)
    counts, listed_error, unguided, labels = _named(silo, replay, network, messages, listed) if listed else NOT_LISTED
    return MessageAudit(
        silo.spec.name, replay.kind, str(defence or "none"), replay.records, exact, near,
        _physical(found, replay, units, scale),
        float(np.median(target_errors)) if target_errors else None, replay.summed, counts, listed_error,
        refined, unguided, labels,
    )  # fmt: skip


FromList = tuple[dict[str, Named], float | None, Suspected, tuple[int, int]]
NOT_LISTED: FromList = ({}, None, NOBODY, (0, 0))


def _named(silo: Silo, replay: Replay, network: nn.Module, messages: Sequence[Parts], listed: RecordList) -> FromList:
    """Return what each attack with a list names, the median error of the targets it reads, what is named by one who is
    not told how many records are behind a message, and how many classes are read rightly, of how many."""
    found: dict[str, list[Named]] = {}
    errors: list[float] = []
    alone: list[Suspected] = []
    labels: list[bool] = []
    for number, message in enumerate(messages[:LISTED_MESSAGES]):
        own = replay.behind(number)
        mine, behind = _on_list(listed, replay, number)
        strengths, coefficients = listed.strengths(message, network, replay.together)
        tests = {attack: named(strength, behind, mine) for attack, strength in strengths.items()}
        for attack, (counted, _) in tests.items():
            found.setdefault(attack, []).append(counted)
        best = LEFT_ENTRIES if LEFT_ENTRIES in strengths else LEAST_SQUARES
        alone.append(suspected(strengths[best], behind, mine))
        right = tests[LEAST_SQUARES][1]
        if len(replay.classes):
            true = _on_list_as(listed, replay, own, replay.classes)
            labels += [int(coefficients[place].argmin()) == true[int(place)] for place in right]
        if replay.is_gradient and len(replay.targets):
            true = _on_list_as(listed, replay, own, replay.targets)
            read = _read_targets(replay, network, listed.rows[right], coefficients[right, 0])
            errors += [_target_error(silo, guess, true[int(where)]) for guess, where in zip(read, right, strict=True)]
    return (
        {attack: together(several) for attack, several in found.items() if len(several) == len(alone)},
        float(np.median(errors)) if errors else None,
        Suspected(*(sum(getattr(one, part) for one in alone) for part in ("right", "named", "listed"))),
        (sum(labels), len(labels)),
    )


def _on_list(listed: RecordList, replay: Replay, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Return positions on the list of the silo's own records behind a message, and of all that are behind it."""
    mine = listed.positions(replay.rows[replay.behind(number)])
    others = listed.positions(replay.others[number]) if replay.others else mine
    return mine, np.union1d(mine, others)


ADDED_UP = "least squares, added up over rounds"
ONE_ROUND, ROUNDS_TOGETHER = "update of a round", "updates of rounds together"
"""How kinds of messages begin."""


def audit_together(silo: Silo, replays: Sequence[Replay], listed: RecordList) -> MessageAudit:
    """Attack messages of several rounds as one with a list: what each says of a record is added up.

    replays: of the same silo or sums, one message each, made from the parameters of its round.
    """
    strengths = [
        np.abs(listed.gradients(load_vector(silo.task.model(0), one.sent)).coefficients(one.messages[0])).max(1)
        for one in replays
    ]
    places = [_on_list(listed, one, 0) for one in replays]
    mine, behind = (np.unique(np.concatenate(part)) for part in zip(*places, strict=True))
    counted, _ = named(total := added_up(strengths), behind, mine)
    kind = replays[0].kind.replace(ONE_ROUND, ROUNDS_TOGETHER)
    records = len(np.unique(np.concatenate([one.behind(0) for one in replays])))
    return MessageAudit(
        silo.spec.name, kind, "none", records, 0, 0, {}, None, replays[0].summed, {ADDED_UP: counted},
        unguided=suspected(total, behind, mine),
    )  # fmt: skip


def audit_crafted(silo: Silo, replay: Replay, kind: str) -> MessageAudit:
    """Attack answers to a crafted model (crafted_models.py): records that it lets stand alone."""
    found = [
        error
        for number, message in enumerate(replay.messages)
        for error, *_ in _found(guesses_of(kind, message[0], message[1]), replay, number)
    ]
    exact, near = sum(error < EXACT for error in found), sum(EXACT <= error < NEAR for error in found)
    return MessageAudit(
        silo.spec.name, f"{kind}, {replay.kind}", "none", replay.records, exact, near, {}, None, replay.summed
    )


def _on_list_as(listed: RecordList, replay: Replay, own: np.ndarray, values: np.ndarray) -> dict[int, float]:
    """Return position on the list -> value, of the silo's own records [..] that stand there; values [num_rows]."""
    places = ((listed.positions(replay.rows[[record]]), float(values[record])) for record in own)
    return {int(place[0]): value for place, value in places if len(place)}


def _read_targets(replay: Replay, network: nn.Module, rows: np.ndarray, coefficients: np.ndarray) -> list[float]:
    """Return targets from c = 2 (f(x) - y) / B, without B in a sum weighted by records; rows [n, d]."""
    with torch.no_grad():
        predicted = network(torch.from_numpy(rows))[:, 0].double().numpy()
    return (predicted - coefficients / 2 * (replay.together if replay.summed == 1 else 1)).tolist()


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
