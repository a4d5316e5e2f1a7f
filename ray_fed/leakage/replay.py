"""What the coordinator of a federation receives, made again inside the silos: the messages an audit attacks.

Two kinds: the messages of the federation as it is set up, round by round (`RecordingSilo`), and those of the same
silo if it sent after every record, or after every batch (`single_records`, `one_batch`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby, islice

import numpy as np
import torch
from torch.nn.functional import mse_loss

from ray_fed.federation.cohort import LocalCohort
from ray_fed.federation.coordinator import Coordinator
from ray_fed.federation.messages import MaskedUpdate, Update, Vector
from ray_fed.federation.rounds.job import Job
from ray_fed.federation.silo import Silo
from ray_fed.federation.strategies import State
from ray_fed.federation.task import SiloSpec, Task
from ray_fed.leakage.defences import Defence
from ray_fed.learning.layout import Layout, load_vector
from ray_fed.learning.trainer import LocalTrainer, TrainingPlan
from ray_fed.randomness import derived_seed

SINGLES = 32
"""Single-record gradients replayed per silo."""

Parts = list[np.ndarray]
"""One array per parameter."""


@dataclass(frozen=True)
class Replay:
    """Messages of one kind from one silo; stays inside it."""

    silo: str
    kind: str
    messages: tuple[Parts, ...]
    rows: np.ndarray
    """[num_rows, num_features]: all the silo's training records, as the network sees them."""
    targets: np.ndarray
    """[num_rows]"""
    sent: Vector
    """Parameters that the silo was sent."""
    records: int
    """Records that took part."""
    took_part: np.ndarray | None = None
    """Positions of those records; None where they are unknown or all of them."""
    owners: tuple[int, ...] = ()
    """Record behind each message, where each comes from one."""
    together: int = 0
    """Records behind each message, those of other silos in the sum included."""
    summed: int = 1
    """Silos in the sum, if only the sum is seen."""
    others: tuple[np.ndarray, ...] = ()
    """Per message the rows of other silos in the sum [.., num_features]."""
    classes: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    """[num_rows]: the class of each row, where one class is learned; else empty."""
    is_gradient: bool = False
    """Whether the messages are gradients at `sent` (in a sum: weighted by records), not updates of several steps."""

    def behind(self, number: int) -> np.ndarray:
        """Return positions of the silo's own records behind message `number`; all of them where chance chose."""
        if self.owners:
            return np.array(self.owners[number : number + 1])
        return np.arange(len(self.rows)) if self.took_part is None else self.took_part


@dataclass(frozen=True)
class RecordedUpdate:
    """One update as the coordinator received it, and what it had sent."""

    sent: Vector
    update: Update
    took_part: np.ndarray | None
    """Positions of the records in it; None where chance chose them in secret."""

    def moved(self, size: int) -> np.ndarray:
        """Return sent minus returned parameters [size]: the direction of a gradient."""
        return self.sent[:size].astype(np.float64) - self.update.vector[:size]


class RecordingSilo(Silo):
    """A silo that keeps, for its own audit, what it is sent and what it answers, after a defence if there is one."""

    def __init__(self, spec: SiloSpec, task: Task, recording: "Recording"):
        super().__init__(spec, task)
        self._recording = recording

    def leaving(self, update: Update, received: Vector) -> Update | MaskedUpdate:
        update = self._recording.defended(received, update)
        if not self._recording.keeps(update.server_round):
            return super().leaving(update, received)
        trainer = self.sessions[update.session]
        assert isinstance(trainer, LocalTrainer)
        rows = rows_of_round(trainer, update.server_round)
        self._recording.updates.append(RecordedUpdate(received, update, rows))
        return super().leaving(update, received)


@dataclass
class Recording:
    """What the silos of a replay keep together."""

    defence: Defence | None = None
    layout: Layout | None = None
    updates: list[RecordedUpdate] = field(default_factory=list)
    rounds: frozenset[int] | None = None
    """Rounds of which updates are kept; None: of all."""

    def begin(self, defence: Defence | None, layout: Layout, rounds: frozenset[int] | None) -> None:
        """Forget what was recorded; defend what is answered from now on, and keep that of these rounds."""
        self.defence, self.layout, self.updates, self.rounds = defence, layout, [], rounds

    def keeps(self, server_round: int) -> bool:
        return self.rounds is None or server_round in self.rounds

    def defended(self, sent: Vector, update: Update) -> Update:
        """Return the update as it leaves under the defence."""
        if self.defence is None:
            return update
        assert self.layout is not None
        size = self.layout.size
        moved = update.vector[:size].astype(np.float64) - sent[:size]
        seed = derived_seed(0, "defence of an update", update.silo, update.server_round)
        parts = defended(list(self.layout.unflatten(moved).values()), self.defence, seed)
        vector = update.vector.copy()
        vector[:size] = sent[:size] + np.concatenate([part.ravel() for part in parts])
        return replace(update, vector=vector)


def recording_cohort(specs: Sequence[SiloSpec], task: Task, test: SiloSpec | None) -> tuple[LocalCohort, Recording]:
    """Return silos in this process that record, and where they do."""
    recording, cohort = Recording(), LocalCohort([], task, test)
    cohort.silos.update({spec.name: RecordingSilo(spec, task, recording) for spec in specs})
    return cohort, recording


@dataclass(frozen=True)
class Replayed:
    """What left the silos in some rounds of a run."""

    updates: list[RecordedUpdate]
    """Each as it left its silo, of the rounds that were asked for."""
    after: Mapping[int, Vector]
    """Round -> global parameters after it, of the same rounds: what all silos are sent next."""
    state: State
    """Of the strategy, after the last round."""


def spread_rounds(last: int, count: int) -> tuple[int, ...]:
    """Return at most `count` rounds from the first to the `last`, evenly spread, both with them."""
    return tuple(sorted({round(one) for one in np.linspace(1, last, min(count, last))}))


def replay_rounds(
    recording: Recording, coordinator: Coordinator, job: Job, rounds: int, defence: Defence | None = None,
    keep: Sequence[int] | None = None,
) -> Replayed:  # fmt: skip
    """Run the first rounds of a job; return the updates of those in `keep`, all of them by default.

    The silos' answers are bit for bit those of a run of the same configuration, on whatever cohort, unless their noise
    is secret. Under secure aggregation they are what is under the masks.
    """
    recording.begin(defence, coordinator.layout, None if keep is None else frozenset(keep))
    job = replace(job, evaluate_every=job.num_rounds + 1, evaluate_silos=False, secure_threshold=0)
    state: State = {}
    after = {}
    records = coordinator.run(job)
    for record in islice(records, min(rounds, job.num_rounds) + 1):
        state = record.state or state
        if record.server_round and recording.keeps(record.server_round):
            after[record.server_round] = next(iter(job.strategy.models(state).values()))
    records.close()  # type: ignore[attr-defined]
    return Replayed(recording.updates, after, state)


def of_round(silo: Silo, recorded: RecordedUpdate, layout: Layout, plan: TrainingPlan) -> Replay:
    """Return the message of one silo and one round."""
    steps = round(plan.total_steps / plan.num_rounds)
    kind = f"update of a round ({steps} local {plan.optimizer} step{'s' if steps > 1 else ''})"
    parts = list(layout.unflatten(recorded.moved(layout.size)).values())
    took_part = recorded.took_part
    count = min(recorded.update.num_examples, len(silo.samples.features)) if took_part is None else len(took_part)
    return replace(_replay(silo, recorded.sent[: layout.size], kind, (parts,), count), took_part=took_part)


def beside_parameters(silo: Silo, recorded: RecordedUpdate, layout: Layout, plan: TrainingPlan) -> Replay | None:
    """Return what travels beside the parameters in a silo's first update, where it is a mean of the silo's plain
    gradients, whatever its optimiser makes of them: the control variate of SCAFFOLD and ScaffoldAdam (the last block of
    the vector), or Adam's first moment where moments are averaged (the second block).

    Later ones are such means as well: whoever sees them all takes off what came before.
    """
    name, block = ("control variate", -1) if plan.control_variates else ("first moment", 1)
    if recorded.update.server_round != 1 or not (plan.control_variates or plan.optimizer_state == "average"):
        return None
    blocks = recorded.update.vector.reshape(-1, layout.size)
    replayed = of_round(silo, recorded, layout, plan)
    mean = list(layout.unflatten(blocks[block].astype(np.float64)).values())
    return replace(replayed, messages=(mean,), kind=replayed.kind.replace("update", name))


def single_records(silo: Silo, vector: np.ndarray) -> Replay:
    """Return gradients of one record each at the parameters `vector`: the worst case of local training."""
    count = min(SINGLES, len(silo.samples.features))
    messages = tuple(_gradient(silo, vector, slice(number, number + 1)) for number in range(count))
    return replace(
        _replay(silo, vector, "gradient of one record", messages, count, tuple(range(count))), is_gradient=True
    )


def one_batch(silo: Silo, vector: np.ndarray, size: int) -> Replay:
    """Return the gradient of one batch of the silo's records."""
    size = min(size, len(silo.samples.features))
    gradient = _gradient(silo, vector, slice(0, size))
    replayed = _replay(silo, vector, f"gradient of a batch of {size}", (gradient,), size)
    return replace(replayed, took_part=np.arange(size), is_gradient=True)


def in_sum(replays: Sequence[Replay]) -> list[Replay]:
    """Return what secure aggregation shows instead of each silo's messages: the sum weighted by records, to be matched
    with each silo's own."""
    sums = tuple(
        [
            sum(one.together * part for one, part in zip(replays, parts, strict=True))
            for parts in zip(*of_all, strict=True)
        ]
        for of_all in zip(*(one.messages for one in replays), strict=False)
    )
    together = sum(one.together for one in replays)
    shown = {"messages": sums, "together": together, "summed": len(replays)}
    return [
        replace(one, owners=one.owners[: len(sums)], others=_rows_of_others(one, replays, len(sums)), **shown)
        for one in replays
    ]


def between_models(replays: Sequence[Replay], moved: Parts, weights: Sequence[int]) -> list[Replay]:
    """Return what another silo learns of each from two global models that follow each other.

    replays: of the round, one per silo; moved: the first model less the second; weights: of each silo's update in the
    mean. The attacker is the silo with the most weight among the others: it takes its own part off the mean. Where the
    strategy makes something else of the updates than their mean, the difference is taken as it is.
    """
    size = sum(weights)
    whole = [size * part for part in moved]
    mean = [
        sum(weight * part for weight, part in zip(weights, parts, strict=True))
        for parts in zip(*(one.messages[0] for one in replays), strict=True)
    ]
    is_mean = all(
        np.allclose(a, b, atol=1e-4 * np.abs(a).max(initial=0.0), rtol=1e-3) for a, b in zip(mean, whole, strict=True)
    )
    return [_left_by(number, replays, whole, weights, is_mean) for number in range(len(replays))]


def _left_by(victim: int, replays: Sequence[Replay], whole: Parts, weights: Sequence[int], is_mean: bool) -> Replay:
    others = [number for number in range(len(replays)) if number != victim]
    attacker = max(others, key=lambda number: weights[number])
    left = [number for number in others if number != attacker or not is_mean]
    own = [weights[attacker] * part for part in replays[attacker].messages[0]]
    parts = [a - b for a, b in zip(whole, own, strict=True)] if is_mean else whole
    one, there = replays[victim], [replays[number] for number in left]
    rows = np.concatenate([one.rows[:0], *(each.rows[each.behind(0)] for each in there)])
    together = one.together + sum(each.together for each in there)
    return replace(
        one, kind=one.kind.replace("update", "change of the global model", 1), messages=(parts,), together=together,
        summed=len(there) + 1, others=(rows,), is_gradient=False,
    )  # fmt: skip


def _rows_of_others(mine: Replay, replays: Sequence[Replay], messages: int) -> tuple[np.ndarray, ...]:
    others = [one for one in replays if one is not mine]
    return tuple(np.concatenate([one.rows[one.behind(number)] for one in others]) for number in range(messages))


def defended(message: Parts, defence: Defence | None, seed: int) -> Parts:
    """Return a message as the silo would send it under a defence."""
    if defence is None:
        return message
    parts = [torch.from_numpy(np.asarray(part, np.float32)) for part in message]
    return [part.numpy() for part in defence.on_message(parts, seed)]


def rows_of_round(trainer: LocalTrainer, server_round: int) -> np.ndarray | None:
    """Return positions of the records in a round's steps; None where chance chooses them in secret."""
    if trainer.plan.private:
        return None
    taken = []
    for epoch, steps in groupby(trainer.plan.steps_of_round(server_round), lambda s: s // trainer.plan.steps_per_epoch):
        batches = trainer._shuffled(epoch)  # the trainer's own deal: a copy of its rule here could drift from it
        taken += [batches[step % trainer.plan.steps_per_epoch].numpy() for step in steps]
    return np.unique(np.concatenate(taken))


def _replay(
    silo: Silo, sent: Vector, kind: str, messages: tuple[Parts, ...], records: int, owners: tuple[int, ...] = ()
) -> Replay:
    rows, is_number = silo.samples.features.cpu().numpy(), silo.task.loss is mse_loss
    targets = silo.samples.targets.cpu().numpy().ravel() if is_number else np.empty(0, np.float32)
    return Replay(
        silo.spec.name, kind, messages, rows, targets, sent, records, None, owners, 1 if owners else records,
        classes=np.empty(0, np.int64) if is_number else _classes(silo),
    )  # fmt: skip


def _classes(silo: Silo) -> np.ndarray:
    """Return the class of each row; none where the targets are something else."""
    targets = silo.samples.targets.cpu().numpy().reshape(len(silo.samples.features), -1)
    are_classes = targets.shape[1] == 1 and np.isfinite(targets).all() and (targets == np.rint(targets)).all()
    return targets[:, 0].astype(np.int64) if are_classes else np.empty(0, np.int64)


def _gradient(silo: Silo, vector: np.ndarray, rows: slice) -> Parts:
    network = load_vector(silo.task.model(0), vector)
    loss = silo.task.loss(network(silo.samples.features[rows]), silo.samples.targets[rows])
    return [part.numpy() for part in torch.autograd.grad(loss, list(network.parameters()))]
