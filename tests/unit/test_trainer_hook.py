"""What a silo trains with is the task's affair: no gradients, no arrays of one shape, no code of a silo's own."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import nn

from pipelines import Training, federate
from ray_fed import (
    FitResult,
    Layout,
    LocalRows,
    RegressionSums,
    Samples,
    SessionSpec,
    SiloSpec,
    Task,
    TrainingPlan,
    load_vector,
)
from ray_fed.learning.trainer import LocalTrainer
from ray_fed.randomness import generator

COLUMNS = 4
SILOS = [SiloSpec(name, (name, 40 + 20 * number)) for number, name in enumerate(["north", "south", "west"])]


def table(name: str, rows: int):
    x = generator(0, "table", name).normal(size=(rows, COLUMNS))
    return x, x @ np.array([1.0, -2.0, 0.5, 0.0]) + 0.1 * generator(1, "noise", name).normal(size=rows)


# ---- a model that is fitted in closed form: what travels are sums, and the mean of sums is the sum of all rows


class NormalEquations:
    """Answers X^T X, X^T y and the number of rows, all divided by it; the silo's rows are never stepped through."""

    def __init__(self, module: nn.Module, samples: Samples, plan: TrainingPlan):
        self.plan, self.layout, self.samples = plan, Layout.of(module), samples

    def fit_round(self, vector, server_round):  # noqa: ARG002
        x, y = self.samples.features.numpy().astype(float), self.samples.targets.numpy().astype(float)
        sums = np.concatenate([(x.T @ x).ravel(), (x.T @ y).ravel()]) / len(x)
        return sums.astype(np.float32), FitResult(0, len(x), 0.0)

    def predict(self, features, vector):
        return torch.from_numpy(predicted(vector, features.numpy()))

    def compress(self, received, vector):  # noqa: ARG002
        return None

    def local_state(self):
        return {}

    def forget(self):
        """Nothing stays."""


def predicted(vector, x):
    gram, moment = vector[: COLUMNS**2].reshape(COLUMNS, COLUMNS), vector[COLUMNS**2 :]
    return (x @ np.linalg.lstsq(gram.astype(float), moment.astype(float), rcond=None)[0])[:, None]


@dataclass(frozen=True)
class LeastSquares(Task):
    standardises: bool = False  # type: ignore[assignment]

    def load(self, spec: SiloSpec) -> LocalRows:
        x, y = table(*spec.source)  # type: ignore[misc]
        return LocalRows(x[8:], y[8:], x[:8], y[:8], {}, {"rows": len(x) - 8}, {})

    def model(self, seed):  # noqa: ARG002
        return nn.ParameterList([nn.Parameter(torch.zeros(COLUMNS * (COLUMNS + 1)))])

    def agreement(self):
        return {}

    def trainer(self, samples, session, silo):  # noqa: ARG002
        return NormalEquations(self.model(0), samples, session.plan)

    def predictor(self):
        return lambda vector, features: predicted(vector, features.numpy())


def test_a_model_without_gradients_is_federated_to_the_pooled_solution():
    result = federate(LeastSquares(), SILOS, Training(rounds=1), test=SiloSpec("test", ("test", 200)), cohort="local")
    x, y = (np.concatenate([table(*spec.source)[part][8:] for spec in SILOS]) for part in (0, 1))
    held_out_x, held_out_y = (part[8:] for part in table("test", 200))
    pooled = held_out_x @ np.linalg.lstsq(x, y, rcond=None)[0]
    expected = RegressionSums.of(held_out_y, pooled).values()
    assert result.metrics["federated.mae"] == pytest.approx(expected["mae"], rel=1e-4)
    assert result.metrics["federated.r2"] == pytest.approx(expected["r2"], rel=1e-4)


# ---- samples of different sizes, as graphs are


class GraphTrainer(LocalTrainer):
    """Batches of graphs are joined; which atom belongs to which graph travels beside the atoms."""

    def _batches(self, steps):
        for step in steps:
            order = generator(self.plan.seed, "graphs", step, self.silo).permutation(len(self.graphs))[:8]
            yield joined([self.graphs[i] for i in order]), self.targets[torch.from_numpy(order)]

    def predict(self, features, vector):
        kept = self.vector()
        load_vector(self.module, vector)
        with torch.no_grad():
            outputs = self.module(joined(features)) if len(features) else torch.zeros(0, 1)
        load_vector(self.module, kept)
        return outputs


def joined(graphs):
    """Return [atoms, 1 + COLUMNS]: number of the graph, columns of the atom."""
    numbers = torch.cat([torch.full((len(graph), 1), float(number)) for number, graph in enumerate(graphs)])
    return torch.cat([numbers, torch.cat(list(graphs))], 1)


class SumOfAtoms(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(COLUMNS, 1)

    def forward(self, atoms):
        number = atoms[:, 0].long()
        return torch.zeros(int(number.max()) + 1, 1).index_add(0, number, self.layer(atoms[:, 1:]))


def graphs_of(name: str, count: int):
    random = generator(0, "graphs", name)
    graphs = [random.normal(size=(random.integers(1, 6), COLUMNS)) for _ in range(count)]
    return graphs, np.array([graph.sum() for graph in graphs])


@dataclass(frozen=True)
class GraphTask(LeastSquares):
    def load(self, spec: SiloSpec) -> LocalRows:
        graphs, y = graphs_of(*spec.source)  # type: ignore[misc]
        return LocalRows(graphs[8:], y[8:], graphs[:8], y[:8], {}, {"rows": len(graphs) - 8}, {})

    loss = staticmethod(nn.functional.mse_loss)

    def model(self, seed):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return SumOfAtoms()

    def prepare(self, rows, standardizer, device):  # noqa: ARG002
        own, held_out = (
            [torch.from_numpy(graph.astype(np.float32)) for graph in part]
            for part in (rows.features, rows.held_out_features)
        )
        return Samples(rows, own, torch.from_numpy(rows.targets.astype(np.float32))[:, None], held_out)

    def trainer(self, samples: Samples, session: SessionSpec, silo: SiloSpec):
        made = GraphTrainer(self.model(0), self.loss, samples.targets, samples.targets, session.plan, silo.name)
        made.graphs = samples.features
        return made


def test_samples_of_different_sizes_are_federated_without_a_silo_of_their_own():
    training = Training(rounds=10, epochs=20, batch_size=8, learning_rate=0.1)
    result = federate(GraphTask(), SILOS, training, cohort="local")
    assert result.metrics["federated.r2"] > 0.95
    assert result.metrics["federated.mae"] < 0.2


def test_the_same_task_on_graphs_keeps_its_bits_when_a_round_is_done_twice(tmp_path):
    from ray_fed.federation.silo import Silo

    task, spec = GraphTask(), replace(SILOS[0], state_folder=str(tmp_path))
    silo = Silo(spec, task)
    silo.open()
    silo.prepare(None)
    silo.open_session(SessionSpec("s", Training(rounds=3, epochs=3).plan(32), 0, Layout.of(task.model(0)).digest))
    start = np.zeros(COLUMNS + 1, np.float32)
    first = silo.fit("s", 1, start).vector
    second = silo.fit("s", 2, first).vector
    assert silo.fit("s", 2, first).vector.tobytes() == second.tobytes()
