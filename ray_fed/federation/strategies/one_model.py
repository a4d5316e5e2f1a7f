"""What all strategies share whose silos start every round from one global model."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ray_fed.config import require
from ray_fed.errors import FedError
from ray_fed.federation.messages import Vector
from ray_fed.federation.strategies.base import Models, State


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
