"""An existing Flower `NumPyClient` as a silo, unchanged. Flower itself is not needed: its contract is.

Contract (flwr 1.41, `flwr.client.NumPyClient`), as Flower itself keeps it:

    client_fn(context) -> NumPyClient, or what its `to_client()` returns    called anew for every message
    fit(parameters, config) -> (parameters, num_examples, metrics)          lists of writable arrays, a dict
    evaluate(parameters, config) -> (loss, num_examples, metrics)

The local work is the client's own: epochs, batches and optimiser of the training plan have no effect, rounds, rules
and the strategy have. Floating-point arrays travel as float32; arrays of whole numbers stay with the silo.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from ray_fed.config import require
from ray_fed.errors import DataError, SiloFailed
from ray_fed.federation.messages import Metrics, SessionSpec, SiloDescription, Update, Vector
from ray_fed.federation.silo import Silo
from ray_fed.federation.silo_state import SiloState
from ray_fed.federation.task import LocalRows, SiloSpec, Task
from ray_fed.learning.layout import Layout
from ray_fed.learning.regression import regression_metrics
from ray_fed.learning.scores import LOSS, MeanScores, Metric
from ray_fed.learning.standardisation import ColumnMoments, Standardizer

Arrays = list[np.ndarray]
USUAL_METRICS = (
    LOSS, *(Metric(name, "", True, 4) for name in ("accuracy", "precision", "recall", "f1", "auc")),
    *regression_metrics(), Metric("rmse", "", False, 4, "RMSE"),
)  # fmt: skip
"""What clients written for Flower usually tell."""


@dataclass
class ClientContext:
    """What a `client_fn` finds in its argument, by Flower's names."""

    node_id: int
    node_config: dict[str, Any]
    """The source of the SiloSpec where that is a mapping, e.g. {"partition-id": 0, "num-partitions": 3}."""
    run_config: dict[str, Any]
    run_id: int = 0
    state: dict[str, Any] = field(default_factory=dict)
    """Kept between the calls of one silo, as long as its process lives."""


@dataclass(frozen=True)
class FlowerTask(Task):
    """Federate clients written for Flower.

    `initial_parameters` are what Flower's `FedAvg(initial_parameters=...)` takes, as a list of arrays: get them once
    from a client at any site with `client.get_parameters({})`.
    """

    client_fn: Callable[[Any], Any]
    initial_parameters: Sequence[np.ndarray]
    config: Mapping[str, Any] = field(default_factory=dict)
    """Added to the config of every call, beside "server_round"; also the context's `run_config`."""
    standardises: bool = False  # type: ignore[assignment]
    metrics: tuple[Metric, ...] = USUAL_METRICS  # type: ignore[assignment]
    """What the clients' `evaluate` may tell: "loss", and the numbers among its metrics. Name others here; a silo lets
    out no metric that its task has not named."""

    def __post_init__(self) -> None:
        require(
            len(self.floating()) > 0,
            "initial_parameters has no floating-point array; get the list from client.get_parameters({}) at any site",
        )

    def floating(self) -> list[int]:
        """Return which of the arrays are floating-point ones."""
        return [i for i, array in enumerate(self.initial_parameters) if np.issubdtype(array.dtype, np.floating)]

    def load(self, spec: SiloSpec) -> LocalRows:
        """A Flower client keeps its samples to itself: DataError."""
        raise DataError(f"silo '{spec.name}': a Flower client has no samples to hand over")

    def model(self, seed: int) -> nn.Module:  # noqa: ARG002
        """Return a holder of the floating-point arrays; it computes nothing."""
        arrays = [np.array(self.initial_parameters[i], np.float32) for i in self.floating()]
        return nn.ParameterList([nn.Parameter(torch.from_numpy(np.atleast_1d(array))) for array in arrays])

    def agreement(self) -> Mapping[str, str]:
        return {"task": "flower", "parameters": Layout.of(self.model(0)).digest}

    def silo(self, spec: SiloSpec, device: str = "cpu") -> Silo:
        return FlowerSilo(spec, self, device)


class FlowerSilo(Silo):
    """A silo whose work is done by a Flower client."""

    task: FlowerTask

    def __init__(self, spec: SiloSpec, task: FlowerTask, device: str = "cpu"):
        super().__init__(spec, task, device)
        given = spec.source if isinstance(spec.source, Mapping) else {"source": spec.source}
        number = int.from_bytes(spec.name.encode()[:7], "little")
        self.context = ClientContext(number, dict(given), dict(task.config))
        self._plans: dict[str, SessionSpec] = {}
        self._integers: dict[str, dict[str, torch.Tensor]] = {}

    def open(self) -> SiloDescription:
        """Make the client once, so that a client that cannot be made is known now. How many examples it has, it says
        with its first update."""
        self._client()
        return SiloDescription(
            self.spec.name, 1, 0, {}, self.task.agreement(), {"client": "flower"}, self.device,
            metrics=tuple(metric.name for metric in self.task.metrics),
        )  # fmt: skip

    def moments(self) -> ColumnMoments:
        raise SiloFailed(self.spec.name, "computing moments", "a Flower client gives out no statistics")

    def prepare(self, standardizer: Standardizer | None) -> None:
        """The client prepares its own data."""

    def open_session(self, spec: SessionSpec) -> str:
        layout = Layout.of(self.task.model(0))
        if layout.digest != spec.layout_digest:
            raise SiloFailed(self.spec.name, "opening a session", "its parameters differ from the coordinator's")
        self._plans[spec.session] = spec
        self._integers[spec.session] = self._initial_integers()
        self._last_round[spec.session] = 0
        self._states[spec.session] = SiloState(self.spec.state_folder, self.spec.name, spec.session, spec.kept_states)
        return layout.digest

    def close_session(self, session: str) -> None:
        self._plans.pop(session, None)
        self._integers.pop(session, None)
        self._states.pop(session, None)

    def fit(self, session: str, server_round: int, vector: Vector) -> Update:
        """Let the client train from `vector`. The loss is its metric "loss" or "train_loss", 0 where it tells none."""
        start = time.perf_counter()
        self._stand_before(session, server_round)
        answer = self._client().fit(self._arrays(session, vector), self._config(server_round))
        parameters, num_examples, metrics = self._checked(answer, "fit")
        moved = self._vector(session, parameters)
        self._states[session].remember(server_round, self._integers[session])
        self._last_round[session] = server_round
        loss = float(metrics.get("loss", metrics.get("train_loss", 0.0)))
        seconds = time.perf_counter() - start
        return Update(self.spec.name, session, server_round, moved, num_examples, 1, loss, seconds)

    def evaluate(self, session: str, models: Mapping[str, Vector]) -> dict[str, Metrics]:
        """Let the client evaluate each model on its own data; numbers among its metrics become means over examples."""
        return {name: self._evaluated(session, vector) for name, vector in models.items()}

    def _evaluated(self, session: str, vector: Vector) -> Metrics:
        config = self._config(self._last_round[session])
        answer = self._client().evaluate(self._arrays(session, vector), config)
        loss, num_examples, metrics = self._checked(answer, "evaluate")
        numbers = {key: float(value) for key, value in metrics.items() if isinstance(value, int | float)}
        means = {"loss": float(loss), **numbers}
        scores = MeanScores(num_examples, {key: value * num_examples for key, value in means.items()})
        return Metrics(self.spec.name, MeanScores(0, dict.fromkeys(means, 0.0)), scores)

    # ---- the client

    def _client(self) -> Any:
        made = self.task.client_fn(self.context)
        client = getattr(made, "numpy_client", made)
        if not callable(getattr(client, "fit", None)):
            raise DataError(f"silo '{self.spec.name}': client_fn returned a {type(made).__name__}, not a NumPyClient")
        return client

    def _config(self, server_round: int) -> dict[str, Any]:
        return {"server_round": server_round, **self.task.config}

    def _checked(self, answer: Any, method: str) -> tuple[Any, int, Mapping[str, Any]]:
        """Return the three parts of an answer; SiloFailed where the client breaks the contract."""
        first = list if method == "fit" else float
        fits = isinstance(answer, tuple) and len(answer) == 3
        if not (fits and isinstance(answer[0], first) and isinstance(answer[1], int) and isinstance(answer[2], dict)):
            kinds = [type(part).__name__ for part in answer] if isinstance(answer, tuple) else type(answer).__name__
            raise SiloFailed(
                self.spec.name, f"calling {method}", f"it must return ({first.__name__}, int, dict), not {kinds}"
            )
        return answer

    # ---- arrays and vectors

    def _arrays(self, session: str, vector: Vector) -> Arrays:
        """Return writable arrays in the client's own types and shapes."""
        arrays, start = [], 0
        for number, initial in enumerate(self.task.initial_parameters):
            if np.issubdtype(initial.dtype, np.floating):
                part, start = vector[start : start + initial.size], start + initial.size
                arrays.append(part.reshape(initial.shape).astype(initial.dtype))
            else:
                arrays.append(self._integers[session][str(number)].numpy().reshape(initial.shape).copy())
        return arrays

    def _vector(self, session: str, parameters: Arrays) -> Vector:
        shapes = [array.shape for array in self.task.initial_parameters]
        found = [np.shape(array) for array in parameters]
        if found != shapes:
            wrong = next(
                (i for i, pair in enumerate(zip(found, shapes, strict=False)) if pair[0] != pair[1]), len(found)
            )
            raise SiloFailed(
                self.spec.name,
                "calling fit",
                f"{len(found)} arrays for {len(shapes)}, the first wrong one is number {wrong}",
            )
        for key, tensor in self._integers[session].items():
            tensor.copy_(torch.from_numpy(np.atleast_1d(np.asarray(parameters[int(key)]))))
        return np.concatenate([np.asarray(parameters[i], np.float32).ravel() for i in self.task.floating()])

    def _initial_integers(self) -> dict[str, torch.Tensor]:
        arrays = enumerate(self.task.initial_parameters)
        return {
            str(number): torch.from_numpy(np.atleast_1d(np.array(array)))
            for number, array in arrays
            if not np.issubdtype(array.dtype, np.floating)
        }

    def _stand_before(self, session: str, server_round: int) -> None:
        """A round that is done again begins with the whole numbers it began with before."""
        if session not in self._plans:
            raise SiloFailed(self.spec.name, "answering", f"no session '{session}'; open: {sorted(self._plans)}")
        last, state = self._last_round[session], self._integers[session]
        if (last == 0 or last >= server_round) and not self._states[session].recall(server_round, state):
            self._integers[session] = self._initial_integers()
