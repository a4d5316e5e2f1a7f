"""What all strategies share whose silos start every round from one global model."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ray_fed.config import require
from ray_fed.errors import FedError
from ray_fed.federation.messages import Vector
from ray_fed.federation.strategies.base import Models, State
from ray_fed.learning.layout import Layout


@dataclass(frozen=True, kw_only=True)
class OneModel:
    """The model is `state[name]`, float32 [num_parameters]; other arrays of the state belong to the subclass."""

    name: str = "federated"
    """Key of the global model in the state and in reports."""

    def __post_init__(self) -> None:
        require(not self.name.startswith("server."), f"name={self.name!r} must not start with 'server.'")

    def start(self, initial: Vector, silos: Sequence[str]) -> State:  # noqa: ARG002
        return {self.name: initial}

    def dispatch(self, state: State, silos: Sequence[str]) -> Mapping[str, Vector]:
        return dict.fromkeys(silos, state[self.name])

    def models(self, state: State) -> Models:
        return {self.name: state[self.name]}


LEARNED = "server.num_learned"
"""In the state of a strategy that steps on the server: how many of the first values are learned, int64 [1]."""


class SteppedModel(OneModel):
    """A model of which learned values alone are stepped: running statistics, counters and averaged moments, which come
    after them in the vector, are the silos' mean as it is. A statistic that is pushed along like a weight can become
    what none can be, such as a negative variance."""

    def start_with(self, initial: Vector, silos: Sequence[str], layout: Layout) -> State:
        return {**self.start(initial, silos), LEARNED: np.array([layout.num_parameters], np.int64)}


def kept(state: State) -> State:
    """Return what of a state every later one has, too."""
    return {LEARNED: state[LEARNED]} if LEARNED in state else {}


def num_learned(state: State, model: Vector) -> int:
    """Return how many of the first values are stepped; all where the state does not say it."""
    return int(state[LEARNED][0]) if LEARNED in state else len(model)


def stepped(state: State, mean: Vector, moved: np.ndarray, remedy: str) -> Vector:
    """Return the next model: `moved`, float64, where values are learned, and the silos' mean where they are not."""
    model, learned = rounded_model(moved, remedy), num_learned(state, mean)
    model[learned:] = mean[learned:]
    return model


def rounded_model(values: np.ndarray, remedy: str) -> Vector:
    """Return float64 values rounded once to float32. FedError if the model has left the range of float32."""
    with np.errstate(over="ignore"):
        model = values.astype(np.float32)
    if not np.isfinite(model).all():
        raise FedError(f"the step of the server left the range of float32 (|value| > 3.4e38); {remedy}")
    return model


def require_positive(**options: float) -> None:
    """Raise ConfigError for an option that is not a positive finite number."""
    for name, value in options.items():
        require(0 < value < math.inf, f"{name}={value!r} must be a positive finite number")


def require_decay(**options: float) -> None:
    """Raise ConfigError for a decay rate outside [0, 1)."""
    for name, value in options.items():
        require(0 <= value < 1, f"{name}={value!r} must be at least 0 and below 1; 0 forgets at once")


def require_count(least: int, **options: int) -> None:
    """Raise ConfigError for an option that is not a whole number of at least `least`."""
    for name, value in options.items():
        whole = isinstance(value, int) and not isinstance(value, bool)
        require(whole and value >= least, f"{name}={value!r} must be a whole number of at least {least}")
