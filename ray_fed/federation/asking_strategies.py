"""Asks a strategy, and looks at what it answers: a wrong answer is the strategy's error, at once and by its name."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from ray_fed.errors import FedError, StrategyFailed
from ray_fed.federation.cohort import said_by
from ray_fed.federation.messages import Update, Vector
from ray_fed.federation.strategies import Models, State, Strategy, started
from ray_fed.learning.layout import Layout

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
        return vectors

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


def chosen(ranking: Sequence[str], vectors: Collection[str]) -> list[str]:
    """Return those of a ranking that a strategy has sent something."""
    return [silo for silo in ranking if silo in vectors]


def _is_vector(value: object) -> bool:
    return isinstance(value, np.ndarray) and value.dtype == np.float32 and value.ndim == 1


def _kind(value: object) -> str:
    return f"{value.dtype} {list(value.shape)}" if isinstance(value, np.ndarray) else type(value).__name__
