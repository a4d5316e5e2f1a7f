"""An existing Flower `NumPyClient` as a silo, unchanged. Flower itself is not needed: its contract is.

Contract (flwr 1.41, `flwr.client.NumPyClient`), as Flower itself keeps it:

    client_fn(context) -> NumPyClient, or what its `to_client()` returns    called anew for every message
    fit(parameters, config) -> (parameters, num_examples, metrics)          lists of writable arrays, a dict
    evaluate(parameters, config) -> (loss, num_examples, metrics)

The local work is the client's own: epochs, batches and optimiser of the training plan have no effect, rounds, rules
and the strategy have. Floating-point arrays travel as float32; arrays of whole numbers stay with the silo.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from ray_fed.config import require
from ray_fed.errors import DataError, SiloFailed
from ray_fed.federation.messages import MAX_EXAMPLES, SessionSpec, Vector
from ray_fed.federation.task import LocalRows, Samples, SiloSpec, Task
from ray_fed.learning.layout import Layout
from ray_fed.learning.standardisation import Standardizer
from ray_fed.learning.trainer import FitResult, Trainer, TrainingPlan
from ray_fed.metrics import LOSS, MeanScores, Metric, regression_metrics

Arrays = list[np.ndarray]
USUAL_METRICS = (
    LOSS, *(Metric(name, "", True, 4) for name in ("accuracy", "precision", "recall", "f1", "auc", "score")),
    *(Metric(name, "", True, 4) for name in ("iou", "mean_iou", "dice")),
    *(Metric(name, "", False, 4) for name in ("cross_entropy", "perplexity", "error", "test_loss")),
    *regression_metrics(), Metric("rmse", "", False, 4, "RMSE"),
)  # fmt: skip
"""What clients written for Flower usually tell."""

LARGEST = float(np.finfo(np.float32).max)


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
    """Makes a client from a `ClientContext`, in the silo's process."""
    initial_parameters: Sequence[np.ndarray] = field(repr=False)
    """The arrays that travel, in the client's own types and shapes; ConfigError without a floating-point one."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """Added to the config of every call, beside "server_round"; also the context's `run_config`."""
    standardises: bool = False  # type: ignore[assignment]
    """The client scales its own data."""
    knows_rows: ClassVar[bool] = False  # type: ignore[misc]
    """Only the client knows how many rows it has."""
    metrics: tuple[Metric, ...] = USUAL_METRICS  # type: ignore[assignment]
    """What the clients' `evaluate` may tell: "loss", and the numbers among its metrics. Name others here; a silo lets
    out no metric that its task has not named."""

    def __post_init__(self) -> None:
        is_app = type(self.client_fn).__name__ == "ClientApp"
        require(not is_app, "client_fn is a ClientApp, which answers messages: run it with pipelines.run_flower_app")
        require(
            len(self.floating()) > 0,
            "initial_parameters has no floating-point array; get the list from client.get_parameters({}) at any site",
        )
        for i in self.floating():
            array = self.initial_parameters[i]
            fits = bool((np.abs(array, dtype=np.float64) <= LARGEST).all())
            require(fits, f"initial_parameters: array {i} ({array.dtype}) has values that are no finite float32, as "
                    "which arrays travel")  # fmt: skip

    def floating(self) -> list[int]:
        """Return which of the arrays are floating-point ones."""
        return [i for i, array in enumerate(self.initial_parameters) if np.issubdtype(array.dtype, np.floating)]

    def load(self, spec: SiloSpec) -> LocalRows:
        """Make the client once, so that a client that cannot be made is known now. It keeps its samples to itself: how
        many it has, it says with its first update."""
        given = spec.source if isinstance(spec.source, Mapping) else {"source": spec.source}
        context = ClientContext(int.from_bytes(spec.name.encode()[:7], "little"), dict(given), dict(self.config))
        self.client(spec.name, context)
        unknown, none = np.zeros((1, 0)), np.zeros((0, 0))
        return FlowerRows(unknown, unknown, none, none, {}, {"client": "flower"}, self.agreement(), context=context)

    def model(self, seed: int) -> nn.Module:  # noqa: ARG002
        """Return a holder of the floating-point arrays; it computes nothing."""
        arrays = [np.array(self.initial_parameters[i], np.float32) for i in self.floating()]
        return nn.ParameterList([nn.Parameter(torch.from_numpy(np.atleast_1d(array))) for array in arrays])

    def agreement(self) -> Mapping[str, str]:
        """Return the digest of names and shapes of the floating-point arrays."""
        return {"task": "flower", "parameters": Layout.of(self.model(0)).digest}

    def most_examples(self, num_examples: int, plan: TrainingPlan) -> int:  # noqa: ARG002
        """A client tells its number of samples with its updates only, so there is nothing to hold them against."""
        return MAX_EXAMPLES - 1

    def prepare(self, rows: LocalRows, standardizer: Standardizer | None, device: str) -> Samples:  # noqa: ARG002
        """The client prepares its own data."""
        return Samples(rows, rows.features, rows.targets, rows.held_out_features)

    def trainer(self, samples: Samples, session: SessionSpec, silo: SiloSpec) -> "FlowerTrainer":
        """ConfigError for what a client's own loop cannot keep: noise in its steps, coded updates."""
        plan = session.plan
        require(plan.private is None, "differential privacy of steps is the Flower client's own affair; leave it out")
        require(plan.compression is None, "compression does not go with a Flower client; leave it out")
        assert isinstance(samples.rows, FlowerRows)
        return FlowerTrainer(self, session, silo.name, samples.rows.context)

    def evaluate(self, trainer: Trainer, samples: Samples, vector: Vector) -> tuple[MeanScores, MeanScores]:  # noqa: ARG002
        """Return no scores on training samples, and what the client's own `evaluate` tells."""
        assert isinstance(trainer, FlowerTrainer)
        scores = trainer.evaluate(vector)
        return MeanScores(0, dict.fromkeys(scores.sums, 0.0)), scores

    def client(self, silo: str, context: ClientContext) -> Any:
        """Return a new client. DataError for what is none."""
        made = self.client_fn(context)
        client = getattr(made, "numpy_client", made)
        if not callable(getattr(client, "fit", None)):
            remedy = "; a ClientApp is run with pipelines.run_flower_app" if type(made).__name__ == "ClientApp" else ""
            raise DataError(f"silo '{silo}': client_fn returned a {type(made).__name__}, not a NumPyClient{remedy}")
        return client


@dataclass(frozen=True, repr=False)
class FlowerRows(LocalRows):
    """No rows: what a client is made from."""

    context: ClientContext = field(kw_only=True)


class FlowerTrainer:
    """A `Trainer` whose work is done by a Flower client."""

    def __init__(self, task: FlowerTask, session: SessionSpec, silo: str, context: ClientContext):
        self.task, self.plan, self.silo, self.context = task, session.plan, silo, context
        self.layout = Layout.of(task.model(session.model_seed))
        self.integers = self._initial_integers()
        """Arrays of whole numbers, which stay with the silo."""
        self._round = 0
        self.config: Mapping[str, float] = {}
        self.metrics: Mapping[str, float] = {}

    # ---- numbers of this silo's own, in each round

    def check_numbers(self, config: Sequence[str], told: Sequence[str]) -> None:
        """What they are called is the client's own affair."""

    def take(self, config: Mapping[str, float]) -> None:
        """They are in the config of `fit`, whole ones as such."""
        self.config = {name: int(value) if value == int(value) else value for name, value in config.items()}

    def tell(self) -> Mapping[str, float]:
        return self.metrics

    def fit_round(self, vector: Vector, server_round: int) -> tuple[Vector, FitResult]:
        """Let the client train from `vector`. The loss is its metric "loss" or "train_loss", 0 where it tells none."""
        answer = self._client().fit(self._arrays(vector), {**self._config(server_round), **self.config})
        parameters, num_examples, metrics = self._checked(answer, "fit")
        if missing := sorted({*self.plan.told} - {*metrics}):
            raise self._failure("fit", f"its metrics have no {', '.join(missing)}, which the strategy reads")
        self.metrics = {name: self._number("fit", name, metrics[name]) for name in self.plan.told}
        moved, self._round = self._vector(parameters), server_round
        name = next((name for name in ("loss", "train_loss") if name in metrics), "")
        loss = self._number("fit", name, metrics[name]) if name else 0.0
        return moved, FitResult(1, num_examples, loss)

    def _number(self, method: str, name: str, value: object) -> float:
        """Return a metric as a float; SiloFailed for what is no number."""
        if isinstance(value, int | float | np.integer | np.floating):
            return float(value)
        raise self._failure(method, f"its metric '{name}' is a {type(value).__name__}, not a number")

    def evaluate(self, vector: Vector) -> MeanScores:
        """Let the client evaluate on its own data; numbers among its metrics become means over examples."""
        answer = self._client().evaluate(self._arrays(vector), self._config(self._round))
        loss, num_examples, metrics = self._checked(answer, "evaluate")
        numbers = {key: float(value) for key, value in metrics.items() if isinstance(value, int | float)}
        means = {"loss": float(loss), **numbers}
        known = {metric.name for metric in self.task.metrics}
        if unknown := sorted({*means} - known):
            remedy = "name each in FlowerTask(metrics=(Metric(name, unit, higher_is_better, digits), ...))"
            raise self._failure("evaluate", f"it tells {', '.join(unknown)}, which the task does not name; {remedy}")
        return MeanScores(num_examples, {key: value * num_examples for key, value in means.items()})

    def predict(self, features: Any, vector: Vector) -> torch.Tensor:  # noqa: ARG002
        raise SiloFailed(self.silo, "predicting", "a Flower client evaluates models and predicts nothing")

    def compress(self, received: Vector, vector: Vector) -> None:  # noqa: ARG002
        return None

    def local_state(self) -> dict[str, torch.Tensor]:
        return self.integers

    def forget(self) -> None:
        self.integers = self._initial_integers()

    # ---- the client

    def _client(self) -> Any:
        return self.task.client(self.silo, self.context)

    def _config(self, server_round: int) -> dict[str, Any]:
        return {"server_round": server_round, **self.task.config}

    def _checked(self, answer: Any, method: str) -> tuple[Any, int, Mapping[str, Any]]:
        """Return the three parts of an answer; SiloFailed where the client breaks the contract."""
        first = list if method == "fit" else float
        fits = isinstance(answer, tuple) and len(answer) == 3
        if not (fits and isinstance(answer[0], first) and isinstance(answer[1], int) and isinstance(answer[2], dict)):
            kinds = [type(part).__name__ for part in answer] if isinstance(answer, tuple) else type(answer).__name__
            raise self._failure(method, f"it must return ({first.__name__}, int, dict), not {kinds}")
        return answer

    def _failure(self, method: str, reason: str) -> SiloFailed:
        return SiloFailed(self.silo, f"calling {method}", reason)

    # ---- arrays and vectors

    def _arrays(self, vector: Vector) -> Arrays:
        """Return writable arrays in the client's own types and shapes."""
        arrays, start = [], 0
        for number, initial in enumerate(self.task.initial_parameters):
            if np.issubdtype(initial.dtype, np.floating):
                part, start = vector[start : start + initial.size], start + initial.size
                arrays.append(part.reshape(initial.shape).astype(initial.dtype))
            else:
                arrays.append(self.integers[str(number)].numpy().reshape(initial.shape).copy())
        return arrays

    def _vector(self, parameters: Arrays) -> Vector:
        shapes, found = [array.shape for array in self.task.initial_parameters], [np.shape(each) for each in parameters]
        if len(found) != len(shapes):
            raise self._failure("fit", f"it returned {len(found)} arrays, and the task has {len(shapes)}")
        for number, (theirs, ours) in enumerate(zip(found, shapes, strict=True)):
            if theirs != ours:
                raise self._failure("fit", f"its array {number} is of shape {theirs}, the task's is {ours}")
        for key, tensor in self.integers.items():
            tensor.copy_(torch.from_numpy(np.atleast_1d(np.asarray(parameters[int(key)]))))
        return np.concatenate([np.asarray(parameters[i], np.float32).ravel() for i in self.task.floating()])

    def _initial_integers(self) -> dict[str, torch.Tensor]:
        return {
            str(number): torch.from_numpy(np.atleast_1d(np.array(array)))
            for number, array in enumerate(self.task.initial_parameters)
            if not np.issubdtype(array.dtype, np.floating)
        }
