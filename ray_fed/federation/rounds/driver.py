"""Drives rounds: asks the strategy, and looks at what it answers; carries the decisions of the rules to the cohort, and
the silos' events back to the rules."""

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np

from ray_fed.errors import FedError, QuorumLost, StrategyFailed, UpdateRejected
from ray_fed.federation.cohort import Cohort, now, said_by
from ray_fed.federation.messages import (
    NO_VALUES,
    Arrived,
    Died,
    Guard,
    RelayedUpdate,
    Restarted,
    SiloDescription,
    SiloEvent,
    ToldUpdate,
    Update,
    Vector,
)
from ray_fed.federation.rounds.asynchronous_machine import AsyncRoundMachine
from ray_fed.federation.rounds.job import Observer
from ray_fed.federation.rounds.machine import (
    Accept,
    Close,
    DeadlinePassed,
    Decision,
    Event,
    Opened,
    Phase,
    Refused,
    Restart,
    RoundMachine,
    Stop,
    Submit,
)
from ray_fed.federation.strategies import Models, State, Strategy, started
from ray_fed.learning.layout import Layout
from ray_fed.learning.trainer import TrainingPlan
from ray_fed.metrics import TRAIN_LOSS

Answer = TypeVar("Answer")
VARIANCE = "running_var"
"""How the names of buffers end that hold variances."""


@dataclass
class AskedStrategy:
    """A strategy, as a coordinator has it. Every method raises StrategyFailed for what cannot be used."""

    strategy: Strategy
    layout: Layout
    """Of the vectors' first part: what of the network travels."""
    silos: Sequence[str]
    has_second_moments: bool = False
    """Whether the silos' own Adam moments come after it."""
    beside: TrainingPlan | None = None
    """A plan of the silos', where numbers of single silos travel behind the vectors."""
    server_round: int = 0
    size: int = 0
    """Length of a model's vector."""
    _variances: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        variances = [name for name in self.layout.names if name.endswith(VARIANCE)]
        self._variances = np.flatnonzero(self.layout.is_in_part(variances))
        # Answers of sums (boosted trees) change their length, and are whole numbers.
        self._changes = bool(getattr(self.strategy, "fits", None))

    def start(self, initial: Vector) -> State:
        self.size = len(initial)
        return self._state("start", lambda: started(self.strategy, initial, self.silos, self.layout))

    def dispatch(self, state: State, server_round: int) -> Mapping[str, Vector]:
        """Return what each silo that takes part starts the round from."""
        self.server_round = server_round
        vectors = self._answer("dispatch", lambda: self.strategy.dispatch(state, self.silos))
        if not isinstance(vectors, Mapping) or not vectors:
            raise self._failed("dispatch chose no silo; it must return a vector for at least one")
        strange = sorted(map(str, set(vectors) - set(self.silos)))
        if strange:
            raise self._failed(f"dispatch names {strange}, which are no silos; there are: {', '.join(self.silos)}")
        for silo, vector in vectors.items():
            if not _is_vector(vector):
                raise self._failed(f"dispatch: the vector of '{silo}' is {_kind(vector)}, not float32 [n]")
        return self._with_numbers(vectors, state) if self.beside else vectors

    def _with_numbers(self, vectors: Mapping[str, Vector], state: State) -> dict[str, Vector]:
        """Return the vectors with what `configure` gives their silos behind them; silos that are given the same share
        one."""
        plan, silos = self.beside, list(vectors)
        assert plan is not None
        given: Mapping = {}
        if plan.config:
            configure = getattr(self.strategy, "configure", None)
            if configure is None:
                raise self._failed(f"config_names are {', '.join(plan.config)}, and there is no method `configure`")
            given = self._answer("configure", lambda: configure(state, silos))
        numbers = {silo: self._numbers(silo, given) for silo in silos} if plan.config else dict.fromkeys(silos, ())
        shared: dict[tuple, Vector] = {}
        for silo, values in numbers.items():
            key = id(vectors[silo]), values
            if key not in shared:
                tail = np.array([*values, *[0.0] * len(plan.told)], np.float32)
                shared[key] = np.concatenate([vectors[silo], tail])
        return {silo: shared[id(vectors[silo]), values] for silo, values in numbers.items()}

    def _numbers(self, silo: str, given: object) -> tuple[float, ...]:
        assert self.beside is not None
        wanted = self.beside.config
        own = given.get(silo) if isinstance(given, Mapping) else None
        if not isinstance(own, Mapping) or {*own} != {*wanted}:
            found = f"{sorted(map(str, own))}" if isinstance(own, Mapping) else type(own).__name__
            raise self._failed(f"configure must give silo '{silo}' a number for each of {list(wanted)}, not {found}")
        for name in wanted:
            if _number(own[name]) is None:
                said = "no finite number that float32 has"
                raise self._failed(f"configure gives silo '{silo}' {name}={own[name]!r}: {said}"[:200])
        return tuple(float(own[name]) for name in wanted)

    def aggregate(self, state: State, updates: Iterable[Update]) -> State:
        reading = _Reading(updates)
        try:
            found = self.strategy.aggregate(state, reading)
        except Exception as error:
            if error is reading.error or isinstance(error, FedError):
                raise
            raise self._failed(f"aggregate raised {said_by(error)}") from error
        if not reading.ended:
            raise self._failed("aggregate returned before it had read all updates of the round; read them to the end")
        return self._state("aggregate", lambda: found)

    def observed(self, state: State, metrics: Mapping[str, float]) -> State:
        """Return the state after a strategy that looks at evaluations has seen one; as it was for any other."""
        look = getattr(self.strategy, "observed", None)
        return self._state("observed", lambda: look(state, dict(metrics))) if look else state

    def models(self, state: State) -> Models:
        return self._answer("models", lambda: self.strategy.models(state))

    def _state(self, method: str, call: Callable[[], State]) -> State:
        state = self._answer(method, call)
        if not (isinstance(state, Mapping) and all(isinstance(value, np.ndarray) for value in state.values())):
            raise self._failed(f"{method} must return named arrays, not {type(state).__name__}")
        models = self.models(state)
        if not isinstance(models, Mapping) or not models:
            raise self._failed("models returned no model")
        for name, vector in models.items():
            if not self._changes and (problem := self._problem(vector)):
                raise self._failed(f"{method}: its model '{name}' {problem}")
        return state

    def _problem(self, vector: object) -> str:
        """Return what is wrong with a model, "" where nothing is."""
        if not _is_vector(vector) or len(vector) != self.size:  # type: ignore[arg-type]
            return f"is {_kind(vector)}, not float32 [{self.size}]"
        assert isinstance(vector, np.ndarray)
        if not (np.isfinite(vector.max(initial=0)) and np.isfinite(vector.min(initial=0))):
            return f"has {int((~np.isfinite(vector)).sum())} values that are not finite"
        bad = vector[self._variances] < 0
        if bad.any():
            name = self._name_of(int(self._variances[bad.argmax()]))
            return (
                f"has {int(bad.sum())} negative variances, in {name}; average them, or keep them with buffers='local'"
            )
        size, learned = self.layout.size, self.layout.num_parameters
        if self.has_second_moments and (vector[size + learned : size + 2 * learned] < 0).any():
            return "has negative second moments; use optimizer_state keep or reset"
        return ""

    def _name_of(self, position: int) -> str:
        return next(name for name in self.layout.names if self.layout.is_in_part([name])[position])

    def _answer(self, method: str, call: Callable[[], Answer]) -> Answer:
        try:
            return call()
        except FedError:
            raise
        except Exception as error:
            raise self._failed(f"{method} raised {said_by(error)}") from error

    def _failed(self, reason: str) -> StrategyFailed:
        return StrategyFailed(type(self.strategy).__name__, self.server_round, reason)


class _Reading:
    """The updates of a round, and whether they were read to the end."""

    def __init__(self, updates: Iterable[Update]):
        self.updates, self.ended = updates, False
        self.error: Exception | None = None
        """What went wrong in the round itself, which is no fault of whoever reads."""

    def __iter__(self) -> Iterator[Update]:
        try:
            yield from self.updates
        except Exception as error:
            self.error = error
            raise
        self.ended = True


def _told_by(update: Update) -> dict[str, float]:
    told = update.metrics if isinstance(update, ToldUpdate) else {}
    return {f"silo.{update.silo}.train.{name}": value for name, value in told.items()}


def _number(value: object) -> float | None:
    """Return a number as it travels; None for what is none, is not finite, or a whole number that float32 has not."""
    is_number = isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
    given = float(value) if is_number and abs(value) <= np.finfo(np.float32).max else math.nan  # type: ignore[arg-type]
    is_same = math.isfinite(given) and (given != int(given) or float(np.float32(given)) == given)
    return given if is_same else None


def chosen(ranking: Sequence[str], vectors: Collection[str]) -> list[str]:
    """Return those of a ranking that a strategy has sent something."""
    return [silo for silo in ranking if silo in vectors]


def _is_vector(value: object) -> bool:
    return isinstance(value, np.ndarray) and value.dtype == np.float32 and value.ndim == 1


def _kind(value: object) -> str:
    return f"{value.dtype} {list(value.shape)}" if isinstance(value, np.ndarray) else type(value).__name__


@dataclass
class RoundDriver:
    """Runs one session's rounds. `updates` yields what may be averaged; the rest is bookkeeping of the round."""

    cohort: Cohort
    machine: RoundMachine | AsyncRoundMachine
    guard: Guard
    session: str
    observers: Sequence[Observer] = ()
    seen: list[tuple[float, Update]] = field(default_factory=list)
    """(arrival on our clock, update without its vector) of the updates taken in the round."""
    num_bytes: int = 0
    failures: tuple[tuple[str, str], ...] = ()
    joined: list[SiloDescription] = field(default_factory=list)
    """Silos that were absent and came in the round: they take part from the next one on."""
    restarts: list[tuple[str, str]] = field(default_factory=list)
    """(silo, why) of the silos that were started again in the round, whether they were back in time or not."""
    catch_up: Callable[[], Vector] | None = None
    """What a silo is sent that has not answered the last round, where a round builds on the one before."""
    in_step: set[str] = field(default_factory=set)
    """Silos whose process has answered the last round."""
    beside: TrainingPlan | None = None
    """A plan of the session, where numbers of single silos travel behind the vectors."""

    def updates(self, server_round: int, vectors: Mapping[str, Vector], ranking: Sequence[str]) -> Iterator[Update]:
        """Run a round and yield its updates as they arrive. QuorumLost when the rules cannot be met."""
        self.rest()
        timeout = self.machine.rules.round_timeout
        deadline = None if timeout is None else now() + timeout
        decisions, update = self.machine.handle(Opened(server_round, tuple(ranking))), None
        while True:
            self._carry_out(decisions, server_round, vectors)
            if update is not None and any(isinstance(decision, Accept) for decision in decisions):
                self._note(update)
                yield from self._to_be_averaged(update)
            if any(isinstance(decision, Close) for decision in decisions):
                self.in_step = {update.silo for _, update in self.seen} - {silo for silo, _ in self.restarts}
                return
            received = self.cohort.next_event(None if deadline is None else max(0.0, deadline - now()))
            self._observe(received)
            event, update = self._event(received, server_round, vectors), None
            if isinstance(event, Arrived):
                update = self._fresh(event.update, server_round, vectors)  # type: ignore[arg-type]  (masked: the secure one)
                if self.beside and event.server_round == server_round:
                    update = ToldUpdate.of(update, self.beside)
            decisions = self.machine.handle(event)
            if isinstance(event, Died) and self.machine.phase.get(event.silo) is Phase.RESTARTING:
                self.restarts.append((event.silo, event.reason))

    def rest(self) -> None:
        """Begin a round of which nothing has been heard; one in which nobody has work is over with that."""
        self.seen, self.num_bytes, self.failures, self.joined, self.restarts = [], 0, (), [], []

    @staticmethod
    def _to_be_averaged(update: Update) -> Iterator[Update]:
        """Yield an update, and of those that a hub has summed the sum, once."""
        if not isinstance(update, RelayedUpdate):
            yield update
        elif update.silo == update.sum.silos[0]:
            yield update.summed()

    def idle(self) -> list[str]:
        """Return the silos that can be asked for an evaluation now."""
        return [silo for silo in self.machine.silos if self.machine.phase[silo] is Phase.IDLE]

    def losses(self) -> dict[str, float]:
        """Training loss of each silo in the round, and over all silos by the rows they saw."""
        updates = sorted((update for _, update in self.seen), key=lambda update: update.silo)
        if not updates:
            return {}
        examples = sum(update.num_examples for update in updates)
        mean = sum(update.loss * update.num_examples for update in updates) / examples
        told = {name: value for update in updates for name, value in _told_by(update).items()}
        means = {
            f"train.{name}": sum(told[f"silo.{one.silo}.train.{name}"] * one.num_examples for one in updates) / examples
            for name in (self.beside.told if self.beside else ())
        }
        losses = {f"silo.{update.silo}.{TRAIN_LOSS}": update.loss for update in updates}
        return {TRAIN_LOSS: mean, **means, **losses, **told}

    def remembered(self, state: State) -> State:
        """Return the state with what a resumed run must know of the rounds besides it."""
        return state

    def _carry_out(self, decisions: Sequence[Decision], server_round: int, vectors: Mapping[str, Vector]) -> None:
        self._submit([decision for decision in decisions if isinstance(decision, Submit)], server_round, vectors)
        for decision in decisions:
            if isinstance(decision, Restart):
                self.in_step.discard(decision.silo)
                self.cohort.restart(decision.silo)
            elif isinstance(decision, Close):
                self.failures = decision.failures
            elif isinstance(decision, Stop):
                raise QuorumLost(server_round, decision.reason)

    def _submit(self, submits: Sequence[Submit], server_round: int, vectors: Mapping[str, Vector]) -> None:
        if submits:
            sent = self._vectors([submit.silo for submit in submits], vectors)
            self.num_bytes += sum(vector.nbytes for vector in sent.values())
            self.cohort.submit(self.session, server_round, sent)

    def _vectors(self, silos: Sequence[str], vectors: Mapping[str, Vector]) -> dict[str, Vector]:
        """Return what silos are sent in a round."""
        behind = [silo for silo in silos if self.catch_up and silo not in self.in_step]
        whole = self.catch_up() if self.catch_up and behind else None
        return {silo: vectors[silo] if whole is None or silo not in behind else whole for silo in silos}

    def _fresh(self, update: Update, server_round: int, vectors: Mapping[str, Vector]) -> Update:  # noqa: ARG002
        """Return the update as one to the model of this round."""
        return update

    def _observe(self, received: SiloEvent | None) -> None:
        for observer in self.observers:
            if isinstance(received, Arrived) and received.update is not None:
                observer.message_received(
                    received.silo, received.update, received.update.session, received.update.server_round
                )
            elif isinstance(received, Restarted) and received.description:
                observer.message_received(received.silo, received.description)

    def _event(self, received: SiloEvent | None, server_round: int, vectors: Mapping[str, Vector]) -> Event:
        match received:
            case None:
                return DeadlinePassed(server_round)
            case Arrived():
                return self._checked(received, server_round, vectors)
            case Restarted(_, description) if description:
                self.joined.append(description)
        return received

    def _checked(self, arrived: Arrived, server_round: int, vectors: Mapping[str, Vector]) -> Event:
        """A stale answer is left to the rules, which drop it; one to this round must pass the guard."""
        silo, update = arrived.silo, arrived.update
        if isinstance(update, RelayedUpdate) and not self._counts_as_one(update, server_round):
            return Refused(silo, arrived.server_round, "its hub summed it with an update that is not of this round")
        if arrived.server_round == server_round:
            try:
                seen = {accepted.silo for _, accepted in self.seen}
                self.guard.check(update, vectors[silo], server_round, self.session, seen)  # type: ignore[arg-type]
            except UpdateRejected as error:
                return Refused(silo, server_round, error.args[2])
        return arrived

    def _counts_as_one(self, update: RelayedUpdate, server_round: int) -> bool:
        """Whether all updates of a sum are asked for in this round: none can be taken out of it."""
        assert isinstance(self.machine, RoundMachine)  # FedBuff takes no sums
        taken, phase, submitted = {each.silo for _, each in self.seen}, self.machine.phase, self.machine.submitted
        return all(
            silo in taken or (phase.get(silo) is Phase.WORKING and submitted.get(silo) == server_round)
            for silo in update.sum.silos
        )

    def _note(self, update: Update) -> None:
        self.num_bytes += update.num_bytes
        if isinstance(update, RelayedUpdate):
            update = update.numbers()
        self.seen.append((now(), replace(update, vector=NO_VALUES, code=None)))
