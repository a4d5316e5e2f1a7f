"""Clients written for Flower: by its contract, and by the package itself where it is installed."""

from pathlib import Path

import numpy as np
import pytest

from pipelines import Training, federate
from ray_fed import ConfigError, DataError, FlowerTask, RoundRules, SiloSpec
from ray_fed.errors import QuorumLost
from ray_fed.federation.coordinator import Coordinator
from ray_fed.federation.rounds.job import Job
from tests.boundaries import cohort_behind_boundaries

INITIAL = [np.zeros((2, 1)), np.zeros(1, np.float32), np.array(0, np.int64)]
"""float64 weights, float32 bias, a counter without dimensions."""


class LineClient:
    """y = x . (2, -1) + offset of the partition; one gradient step a round. Written to Flower's contract."""

    def __init__(self, partition):
        random = np.random.default_rng(partition)
        self.x = random.normal(size=(20 + 20 * partition, 2))
        self.y = self.x @ np.array([2.0, -1.0]) + 0.5

    def get_parameters(self, config):  # noqa: ARG002
        return INITIAL

    def fit(self, parameters, config):
        weights, bias, counter = parameters
        for _ in range(config.get("local_steps", 5)):
            error = self.x @ weights[:, 0] + bias[0] - self.y
            weights -= 0.2 * (self.x.T @ error / len(self.x))[:, None]
            bias -= np.float32(0.2 * error.mean())
            counter = counter + 1
        return [weights, bias, np.asarray(counter)], len(self.x), {"train_loss": float(np.square(error).mean())}

    def evaluate(self, parameters, config):  # noqa: ARG002
        error = self.x @ parameters[0][:, 0] + parameters[1][0] - self.y
        return float(np.square(error).mean()), len(self.x), {"mae": float(np.abs(error).mean()), "note": "fine"}


def client_fn(context):
    return LineClient(context.node_config["partition-id"])


TASK = FlowerTask(client_fn, INITIAL)
SILOS = [SiloSpec(f"site-{i}", {"partition-id": i}) for i in range(3)]


def train(task=TASK, rounds=12, **options):
    return federate(task, SILOS, Training(rounds=rounds), cohort="local", **options)


def test_an_unchanged_client_is_federated_with_its_own_weights_and_metrics():
    result = train()
    assert result.metrics["federated.loss"] < 1e-3 < result.records[0].metrics["federated.loss"]
    weights, bias = (parameter.detach().numpy() for parameter in result.module)
    np.testing.assert_allclose([*weights[:, 0], *bias], [2.0, -1.0, 0.5], atol=0.05)
    assert result.metrics["silo.site-1.mae"] < 0.05
    assert "federated.note" not in result.metrics


def test_what_clients_usually_tell_may_leave_a_silo_without_being_named():
    usual = {"accuracy", "auc", "iou", "mean_iou", "dice", "cross_entropy", "perplexity", "error", "score", "test_loss"}
    assert usual <= {metric.name for metric in TASK.metrics}
    assert len({metric.name for metric in TASK.metrics}) == len(TASK.metrics)


def test_the_first_round_is_the_mean_that_flower_computes():
    """FedAvg by hand: each client from zero, weighted by the examples it reports."""
    answers = [LineClient(i).fit([np.array(array) for array in INITIAL], {}) for i in range(3)]
    total = sum(num for _, num, _ in answers)
    want = sum(num / total * parameters[0] for parameters, num, _ in answers)
    np.testing.assert_allclose(next(iter(train(rounds=1).module)).detach().numpy(), want, rtol=1e-6)


def test_arrays_come_in_the_clients_types_and_can_be_written_and_counters_stay_whole():
    seen = []

    class Looking(LineClient):
        def fit(self, parameters, config):
            seen.append([(array.dtype, array.shape, array.flags.writeable) for array in parameters])
            seen.append(int(parameters[2]))
            return super().fit(parameters, config)

    train(FlowerTask(lambda context: Looking(context.node_config["partition-id"]), INITIAL), rounds=2)
    assert seen[0] == [(np.float64, (2, 1), True), (np.float32, (1,), True), (np.int64, (), True)]
    assert [counter for counter in seen if isinstance(counter, int)] == [0, 0, 0, 5, 5, 5]


def test_the_config_of_a_call_has_the_round_and_what_the_task_adds():
    configs = []

    class Noting(LineClient):
        def fit(self, parameters, config):
            configs.append(dict(config))
            return super().fit(parameters, config)

    task = FlowerTask(lambda context: Noting(context.node_config["partition-id"]), INITIAL, {"local_steps": 2})
    train(task, rounds=2)
    assert configs[0] == {"server_round": 1, "local_steps": 2}
    assert configs[-1]["server_round"] == 2


@pytest.mark.parametrize("strategy", ["fed_adam", "median", "fed_buff"])
def test_strategies_of_ours_work_on_clients_of_flowers(strategy):
    result = train(strategy=strategy)
    assert result.metrics["federated.loss"] < result.records[0].metrics["federated.loss"]


def test_a_client_that_raises_is_left_out_of_the_round_with_its_error():
    class Failing(LineClient):
        def fit(self, parameters, config):
            if len(self.x) == 40 and config["server_round"] == 2:
                raise RuntimeError("no power")
            return super().fit(parameters, config)

    result = train(FlowerTask(lambda context: Failing(context.node_config["partition-id"]), INITIAL), rounds=3)
    assert result.records[2].failures == (("site-1", "RuntimeError: no power"),)


WRONG = {
    "two parts": (lambda p: (p, 3), r"must return \(list, int, dict\), not \['list', 'int'\]"),
    "a float count": (lambda p: (p, 3.0, {}), r"not \['list', 'float', 'dict'\]"),
    "other shapes": (lambda p: ([p[0].T, p[1], p[2]], 3, {}), r"array 0 is of shape \(1, 2\), the task's is \(2, 1\)"),
    "too few": (lambda p: (p[:2], 3, {}), "it returned 2 arrays, and the task has 3"),
    "nan": (lambda p: ([p[0] * np.nan, p[1], p[2]], 3, {}), "not finite"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_client_that_breaks_the_contract_is_left_out_with_the_reason(what):
    answer, said = WRONG[what]

    class Broken(LineClient):
        def fit(self, parameters, config):
            return answer(parameters) if len(self.x) == 40 else super().fit(parameters, config)

    task = FlowerTask(lambda context: Broken(context.node_config["partition-id"]), INITIAL)
    result = train(task, rounds=2, rules=RoundRules())
    [(silo, reason)] = result.records[1].failures
    assert silo == "site-1"
    import re

    assert re.search(said, reason), reason


def test_what_is_no_client_and_what_has_no_parameters_is_refused():
    with pytest.raises(DataError, match="silo 'site-0': client_fn returned a dict, not a NumPyClient"):
        train(FlowerTask(lambda _: {}, INITIAL))
    with pytest.raises(ConfigError, match=r"get the list from client.get_parameters\(\{\}\)"):
        FlowerTask(client_fn, [])


def test_clients_behind_boundaries_learn_what_those_in_one_process_do():
    """No silo knows how many rows its client has, so none is refused for having few."""
    coordinator = Coordinator(cohort_behind_boundaries(SILOS, TASK), TASK, names := [spec.name for spec in SILOS])
    coordinator.agree()
    job = Job("federated", tuple(names), dict.fromkeys(names, Training(rounds=12).plan(1)), 0)
    *_, last = coordinator.run(job)
    assert not last.failures
    alone = train()
    assert last.models["federated"].tobytes() == np.concatenate([p.detach().ravel() for p in alone.module]).tobytes()
    assert last.metrics["federated.mae"] == pytest.approx(alone.metrics["federated.mae"], rel=0.2)


def test_values_that_float32_has_not_are_refused_where_they_are_given():
    with pytest.raises(ConfigError, match=r"array 0 \(float64\) has values that are no finite float32"):
        FlowerTask(client_fn, [np.full(2, 1e300), np.zeros(1)])


def test_a_client_app_is_sent_where_it_runs():
    class ClientApp:
        pass

    with pytest.raises(ConfigError, match=r"answers messages: run it with pipelines\.run_flower_app"):
        FlowerTask(ClientApp(), INITIAL)


TOLD = {
    "a metric without a name": ("evaluate", (1.0, 40, {"top1": 0.5}), r"it tells top1, which the task does not name"),
    "a loss in words": ("fit", {"loss": "n/a"}, r"its metric 'loss' is a str, not a number"),
}


@pytest.mark.parametrize("what", TOLD)
def test_what_a_client_tells_is_named_where_it_cannot_be_used(what):
    method, answer, said = TOLD[what]

    class Telling(LineClient):
        def fit(self, parameters, config):
            parameters, count, metrics = super().fit(parameters, config)
            return parameters, count, answer if method == "fit" else metrics

        def evaluate(self, parameters, config):
            return answer if method == "evaluate" else super().evaluate(parameters, config)

    with pytest.raises(QuorumLost, match=said):
        train(FlowerTask(lambda context: Telling(context.node_config["partition-id"]), INITIAL), rounds=1)


def test_a_restarted_silo_counts_on_from_where_it_stood(tmp_path):
    from ray_fed.federation.messages import SessionSpec
    from ray_fed.federation.silo import Silo
    from ray_fed.learning.layout import Layout, initial_vector

    spec = SiloSpec("site-1", {"partition-id": 1}, state_folder=str(tmp_path))
    session = SessionSpec("s", Training().plan(1), 0, Layout.of(TASK.model(0)).digest)

    def silo():
        made = Silo(spec, TASK)
        made.open()
        made.prepare(None)
        made.open_session(session)
        return made

    first, start = silo(), initial_vector(TASK.model(0))
    second_answer = first.fit("s", 2, first.fit("s", 1, start).vector).vector
    again = silo()
    assert again.fit("s", 2, first.fit("s", 1, start).vector).vector.tobytes() == second_answer.tobytes()
    assert int(again.sessions["s"].integers["2"]) == 10


def test_a_real_numpy_client_of_flower_runs_unchanged():
    flwr = pytest.importorskip("flwr.client", reason="flwr is not installed: pip install 'ray-fed[flower]'")

    class Real(flwr.NumPyClient, LineClient):
        fit, evaluate, get_parameters = LineClient.fit, LineClient.evaluate, LineClient.get_parameters

        def __init__(self, partition):
            LineClient.__init__(self, partition)

    real = train(FlowerTask(lambda context: Real(context.node_config["partition-id"]).to_client(), INITIAL))
    assert real.metrics == train().metrics


def test_constraints_for_flower_differ_only_where_flower_asks_for_it():
    ours, theirs = (
        dict(line.split("==") for line in (Path(__file__).parents[2] / name).read_text().splitlines() if "==" in line)
        for name in ("constraints.txt", "constraints-flower.txt")
    )
    assert {name for name in ours if theirs.get(name) != ours[name]} == {"rich", "virtualenv"}
    assert set(theirs) - set(ours) == {"protobuf", "packaging", "flwr"}
