"""Server optimisers: the silos' mean move is taken as a gradient step of the server.

All of them stream: they need nothing but the exact weighted mean, so memory does not grow with the number of silos.
With Delta_t = fed_avg(updates) - x_t, the pseudo-gradient (it points downhill already):

    symbol   code                      shape
    x_t      state[name]               float32 [num_parameters]
    Delta_t  delta                     float64 [num_parameters]
    m_t      state["server.momentum"]  float64 [num_parameters]
    v_t      state["server.second"]    float64 [num_parameters]

Learned values are stepped. What else is in the vector, BatchNorm's running statistics and, with `optimizer_state`
average, the silos' own Adam moments, is averaged and not stepped.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from ray_fed.federation.messages import Update, Vector
from ray_fed.federation.strategies.averaging import fed_avg
from ray_fed.federation.strategies.base import State
from ray_fed.federation.strategies.one_model import SteppedModel, kept, require_decay, require_positive, stepped

MOMENTUM = "server.momentum"
SECOND = "server.second"


def pseudo_gradient(model: Vector, updates: Iterable[Update]) -> tuple[Vector, np.ndarray]:
    """Return the silos' mean, and Delta_t = mean - x_t, float64 [num_parameters]."""
    mean = fed_avg(len(model), updates)
    return mean, np.subtract(mean, model, dtype=np.float64)


@dataclass(frozen=True, kw_only=True)
class FedAvgM(SteppedModel):
    """Momentum on the server, so that rounds which see different silos do not pull to and fro.

    Hsu et al. 2019, the update that defines FedAvgM (there w - v, with Delta of the opposite sign; the experiments
    use Nesterov's variant of it); eta as in Reddi et al. 2021, Algorithm 1:

        m_t     = beta m_{t-1} + Delta_t,   m_0 = 0
        x_{t+1} = x_t + eta m_t

        paper   code   shape
        v       m_t    float64 [num_parameters]
        beta    beta   dimensionless
        eta     eta    dimensionless

    A steady Delta moves the model by eta / (1 - beta) Delta per round: with the default momentum ten times as far as
    FedAvg. beta = 0 and eta = 1 is FedAvg.
    """

    eta: float = 1.0
    """Server learning rate."""
    beta: float = 0.9
    """Momentum; the paper tries 0 to 0.997."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(eta=self.eta)
        require_decay(beta=self.beta)

    def start(self, initial: Vector, silos: Sequence[str]) -> State:  # noqa: ARG002
        return {self.name: initial, MOMENTUM: np.zeros(len(initial))}

    def aggregate(self, state: State, updates: Iterable[Update]) -> State:
        model = state[self.name]
        mean, delta = pseudo_gradient(model, updates)
        momentum = self.beta * state[MOMENTUM] + delta
        moved = stepped(state, mean, model + self.eta * momentum, f"lower eta={self.eta} or beta={self.beta}")
        return {**kept(state), self.name: moved, MOMENTUM: momentum}


@dataclass(frozen=True, kw_only=True)
class AdaptiveServer(SteppedModel, ABC):
    """What FedAdagrad, FedAdam and FedYogi share: Reddi et al. 2021, Algorithm 2; they differ in v_t alone.

        m_t     = beta_1 m_{t-1} + (1 - beta_1) Delta_t,   m_0 = 0
        v_t     = the subclass's rule,                     v_0 = tau^2, the least that the paper allows
        x_{t+1} = x_t + eta m_t / (sqrt(v_t) + tau)

        paper    code    unit
        eta      eta     unit of the parameters
        beta_1   beta_1  dimensionless
        tau      tau     unit of the parameters: moves much smaller than tau are not amplified

    No bias correction, as in the paper. Delta_t is weighted by examples, as in the paper's experiments.
    """

    eta: float = 0.01
    """Server learning rate. The paper tunes it for each task; this value is ours, from its grid."""
    beta_1: float = 0.9
    """Decay of the first moment."""
    tau: float = 1e-3
    """Degree of adaptivity."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(eta=self.eta, tau=self.tau)
        require_decay(beta_1=self.beta_1)

    def start(self, initial: Vector, silos: Sequence[str]) -> State:  # noqa: ARG002
        return {
            self.name: initial,
            MOMENTUM: np.zeros(len(initial)),
            SECOND: np.full(len(initial), self.tau * self.tau),
        }

    def aggregate(self, state: State, updates: Iterable[Update]) -> State:
        model = state[self.name]
        mean, delta = pseudo_gradient(model, updates)
        momentum = self.beta_1 * state[MOMENTUM] + (1 - self.beta_1) * delta
        second = self.second_moment(state[SECOND], np.square(delta))
        moved = model + self.eta * momentum / (np.sqrt(second) + self.tau)
        model = stepped(state, mean, moved, f"lower eta={self.eta}")
        return {**kept(state), self.name: model, MOMENTUM: momentum, SECOND: second}

    @abstractmethod
    def second_moment(self, second: np.ndarray, squared: np.ndarray) -> np.ndarray:
        """Return v_t from v_{t-1} and Delta_t^2, all float64 [num_parameters]."""


@dataclass(frozen=True, kw_only=True)
class FedAdagrad(AdaptiveServer):
    """v_t = v_{t-1} + Delta_t^2 (Reddi et al. 2021, Algorithm 2; symbols in AdaptiveServer).

    Steps only ever get smaller. The paper's experiments use beta_1 = 0 here.
    """

    eta: float = 0.1
    beta_1: float = 0.0

    def second_moment(self, second: np.ndarray, squared: np.ndarray) -> np.ndarray:
        return second + squared


@dataclass(frozen=True, kw_only=True)
class FedAdam(AdaptiveServer):
    """v_t = beta_2 v_{t-1} + (1 - beta_2) Delta_t^2 (Reddi et al. 2021, Algorithm 2; symbols in AdaptiveServer)."""

    beta_2: float = 0.99
    """Decay of the second moment."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_decay(beta_2=self.beta_2)

    def second_moment(self, second: np.ndarray, squared: np.ndarray) -> np.ndarray:
        return self.beta_2 * second + (1 - self.beta_2) * squared


@dataclass(frozen=True, kw_only=True)
class FedYogi(AdaptiveServer):
    """v_t = v_{t-1} - (1 - beta_2) Delta_t^2 sign(v_{t-1} - Delta_t^2) (Reddi et al. 2021, Algorithm 2).

    Symbols in AdaptiveServer. v_t moves by at most (1 - beta_2) Delta_t^2, so it forgets a large early round slowly
    where FedAdam forgets it exponentially.
    """

    beta_2: float = 0.99
    """Rate of the second moment."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_decay(beta_2=self.beta_2)

    def second_moment(self, second: np.ndarray, squared: np.ndarray) -> np.ndarray:
        return second - (1 - self.beta_2) * squared * np.sign(second - squared)
