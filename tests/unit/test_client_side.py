"""FedProx, FedBN and SCAFFOLD, and what happens to buffers: from the silo's gradient to the server's model."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from ray_fed.errors import ConfigError
from ray_fed.federation.cohort import LocalCohort
from ray_fed.federation.coordinator import Coordinator
from ray_fed.federation.messages import Update
from ray_fed.federation.rounds.job import Job
from ray_fed.federation.silo import Silo
from ray_fed.federation.strategies import FedAvg, FedBN, FedProx, Scaffold, make_strategy
from ray_fed.federation.strategies.client_side import CONTROL
from ray_fed.federation.task import LocalRows, SiloSpec
from ray_fed.learning.layout import Layout, initial_vector, load_vector
from ray_fed.learning.trainer import LocalTrainer, TrainingPlan
from tests.synthetic import DrawnRows, SyntheticTask, silos

PLAN = TrainingPlan(seed=0, epochs=8, steps_per_epoch=2, num_rounds=4, learning_rate=0.01, optimizer="sgd")


@dataclass(frozen=True)
class NormedTask(SyntheticTask):
    """A network with a BatchNorm layer, and silos whose features lie in different places."""

    standardises = False

    def model(self, seed):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.1), nn.Linear(8, 1))

    def load(self, spec):
        rows = super().load(spec)
        shift = 3.0 * (spec.name == "silo-2")
        return replace(rows, features=rows.features + shift, held_out_features=rows.held_out_features + shift)


def run(strategy, task=None, plan=PLAN, specs=None):
    task, specs = task or SyntheticTask(), specs or silos(40, 80, held_out=10)
    names = tuple(spec.name for spec in specs)
    ours = Coordinator(LocalCohort(specs, task), task, names)
    ours.agree()
    return ours, list(ours.run(Job("federated", names, dict.fromkeys(names, plan), 0, strategy)))


def trainer(plan, module=None, seed=0):
    random = np.random.default_rng(seed)
    x = torch.from_numpy(random.normal(size=(20, 3)).astype(np.float32))
    module = module or SyntheticTask().model(0)
    return LocalTrainer(module, functional.mse_loss, x, x.square().sum(1, keepdim=True), plan, "a")


# FedProx ----------------------------------------------------------------------------------------------------------


def test_fed_prox_is_fed_avg_with_a_proximal_plan():
    _, prox = run(FedProx(mu=0.3))
    _, by_plan = run(FedAvg(), plan=replace(PLAN, proximal_mu=0.3))
    _, avg = run(FedAvg())
    last = [records[-1].models["federated"].tobytes() for records in (prox, by_plan, avg)]
    assert last[0] == last[1] != last[2]


def test_a_strong_pull_keeps_the_silos_near_what_they_received():
    start = initial_vector(SyntheticTask().model(0))
    moved = [
        np.linalg.norm(trainer(replace(PLAN, proximal_mu=mu)).fit(start, range(8))[0] - start)
        for mu in (0.0, 1.0, 50.0)
    ]
    assert moved[0] > moved[1] > moved[2] > 0


# SCAFFOLD ---------------------------------------------------------------------------------------------------------


def test_the_silos_control_variate_is_option_ii_of_the_paper():
    """c_i+ = c_i - c + (x - y) / (K eta_l)."""
    worker = trainer(replace(PLAN, control_variates=True))
    num = worker.layout.num_parameters
    x, c = initial_vector(SyntheticTask().model(0)), np.full(num, 0.25, np.float32)
    worker.control.own.fill_(0.125)
    answer, _ = worker.fit(np.concatenate([x, c]), range(6))
    y, expected = answer[:num], 0.125 - c + (x - answer[:num]) / (6 * PLAN.learning_rate)
    np.testing.assert_allclose(worker.control.own.numpy(), expected, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(answer[num:], c + worker.control.own.numpy() - 0.125, rtol=1e-5, atol=1e-6)
    assert not np.array_equal(y, x)


def test_the_server_takes_the_steps_computed_by_hand():
    """Two of three silos, 1 and 3 rows: mean y = 4, x = 0 + 0.5 * 4 = 2; mean c = 3, c = 1 + 2/3 (3 - 1) = 7/3."""
    strategy = Scaffold(eta=0.5)
    state = {**strategy.start(np.zeros(1, np.float32), ["a", "b", "c"]), CONTROL: np.ones(1, np.float32)}
    assert strategy.dispatch(state, ["a"])["a"].tolist() == [0.0, 1.0]
    answers = [([1, 6], 1), ([5, 2], 3)]
    updates = [Update(f"silo-{i}", "s", 1, np.array(v, np.float32), n, 1, 0.0) for i, (v, n) in enumerate(answers)]
    after = strategy.aggregate(state, updates)
    assert after["federated"].tolist() == [2.0]
    np.testing.assert_allclose(after[CONTROL], [7 / 3], rtol=1e-6)
    assert strategy.models(after).keys() == {"federated"}


@given(st.permutations(range(4)))
def test_scaffold_has_the_same_bits_for_every_order_of_arrival(order):
    random = np.random.default_rng(0)
    updates = [Update(f"silo-{i}", "s", 1, random.normal(size=6).astype(np.float32), i + 1, 1, 0.0) for i in range(4)]
    strategy = Scaffold()
    state = strategy.start(np.zeros(3, np.float32), [update.silo for update in updates])
    want, got = strategy.aggregate(state, updates), strategy.aggregate(state, [updates[i] for i in order])
    assert all(want[key].tobytes() == got[key].tobytes() for key in want)


def test_scaffold_reaches_the_optimum_that_fed_avg_misses():
    """Two silos, each with one row too few to know the line: ten local steps a round pull FedAvg off the optimum."""
    task = _LineTask()
    specs = [SiloSpec("a", ((1.0, 0.0), 1.0, 3.0)), SiloSpec("b", ((1.0, 2.0), 0.2, 3.0))]
    plan = TrainingPlan(0, 1500, 1, 150, learning_rate=0.1, optimizer="sgd")
    optimum = task.optimum([spec.source for spec in specs])
    errors = {}
    for name, strategy in (("avg", FedAvg()), ("scaffold", Scaffold())):
        model = run(strategy, task, plan, specs)[1][-1].models["federated"]
        errors[name] = float(np.abs(model - optimum).max())
    assert errors["scaffold"] < 1e-3 < 0.05 < errors["avg"]


@dataclass(frozen=True)
class _LineTask(SyntheticTask):
    """y = w x + b with silos whose points disagree: weighted least squares has a closed form."""

    standardises = False

    def model(self, seed):  # noqa: ARG002
        module = nn.Linear(1, 1)
        nn.init.zeros_(module.weight)
        nn.init.zeros_(module.bias)
        return module

    def load(self, spec):
        x, y = _points(spec.source)
        return LocalRows(x, y, x[:0], y[:0], {}, {}, self.agreement())

    def optimum(self, sources):
        x, y = (np.concatenate(parts) for parts in zip(*map(_points, sources), strict=True))
        return np.linalg.lstsq(np.hstack([x, np.ones_like(x)]), y, rcond=None)[0]


def _points(source):
    places, slope, level = source
    x = np.array(places)[:, None]
    return x, slope * x[:, 0] + level * x[:, 0] ** 2


def test_scaffold_does_not_average_adams_moments_too():
    with pytest.raises(ConfigError, match="optimizer_state=average does not go with SCAFFOLD"):
        run(Scaffold(), plan=replace(PLAN, optimizer="adam", optimizer_state="average"))


def test_a_silo_asked_twice_for_a_round_answers_the_same_with_every_kind_of_local_state(tmp_path):
    task = NormedTask()
    plan = replace(PLAN, optimizer="adam", control_variates=True, keep_local=("4.bias",), buffers="local")
    silo = Silo(SiloSpec("silo-1", DrawnRows(40), state_folder=str(tmp_path)), task)
    silo.open()
    silo.prepare(None)
    silo.open_session(_session(task, plan))
    start = np.concatenate([initial_vector(task.model(0), "local")] * 2)
    first = silo.fit("s", 1, start)
    second = silo.fit("s", 2, first.vector)
    again = [silo.fit("s", 2, first.vector).vector.tobytes(), silo.fit("s", 1, start).vector.tobytes()]
    assert again == [second.vector.tobytes(), first.vector.tobytes()]
    restored = Silo(silo.spec, task)
    restored.restore(None, [_session(task, plan)])
    assert restored.fit("s", 2, first.vector).vector.tobytes() == second.vector.tobytes()


def _session(task, plan):
    from ray_fed.federation.messages import SessionSpec

    return SessionSpec("s", plan, 0, Layout.of(task.model(0), plan.buffers).digest)


# Buffers and FedBN ------------------------------------------------------------------------------------------------


def test_a_vector_carries_parameters_then_floating_buffers_and_never_a_counter():
    module = NormedTask().model(0)
    layout = Layout.of(module)
    assert layout.names[-2:] == ("1.running_mean", "1.running_var")
    assert "1.num_batches_tracked" not in layout.names
    assert (layout.size, layout.num_parameters) == (73, 57)
    assert Layout.of(module, "local").size == 57
    vector = np.arange(73, dtype=np.float32)
    assert initial_vector(load_vector(module, vector)).tolist() == vector.tolist()


def test_averaged_statistics_are_the_mean_of_the_silos_and_counters_stay_whole_numbers():
    task = NormedTask()
    ours, records = run(FedAvg(), task, replace(PLAN, num_rounds=1, epochs=1))
    layout = Layout.of(task.model(0))
    got = layout.unflatten(records[-1].models["federated"])["1.running_mean"]
    want = sum(n / 120 * _statistics(ours, task, name) for name, n in (("silo-1", 40), ("silo-2", 80)))
    np.testing.assert_allclose(got, want, rtol=1e-5)


def _statistics(ours, task, name):
    """Train the silo's round once more; return its running mean."""
    silo = Silo(ours.cohort.silos[name].spec, task)
    silo.open()
    silo.prepare(None)
    plan = replace(PLAN, num_rounds=1, epochs=1)
    silo.open_session(_session(task, plan))
    silo.fit("s", 1, initial_vector(task.model(0)))
    counter = silo.sessions["s"].module[1].num_batches_tracked
    assert (counter.dtype, int(counter)) == (torch.int64, 2)
    return silo.sessions["s"].module[1].running_mean.numpy()


def test_under_fed_bn_normalisation_never_leaves_and_only_silos_evaluate():
    test = SiloSpec("test", DrawnRows(30))
    task, names = NormedTask(), ("silo-1", "silo-2")
    ours = Coordinator(LocalCohort(silos(40, 80, held_out=10), task, test), task, names)
    ours.agree()
    records = list(ours.run(Job("federated", names, dict.fromkeys(names, PLAN), 0, FedBN())))
    last = records[-1]
    assert len(last.models["federated"]) == 57
    both = (last.metrics["silo.silo-1.mae"] + last.metrics["silo.silo-2.mae"]) / 2
    assert last.metrics["federated.mae"] == pytest.approx(both)


def test_fed_bn_keeps_the_norm_layers_apart_and_shares_the_rest():
    task, names = NormedTask(), ("silo-1", "silo-2")
    ours = Coordinator(LocalCohort(silos(40, 80), task), task, names)
    ours.agree()
    rounds = ours.run(Job("federated", names, dict.fromkeys(names, PLAN), 0, FedBN()))
    records = [next(rounds) for _ in range(3)]  # the sessions are still open
    shared = records[-1].state["federated"]
    for silo in ours.cohort.silos.values():
        silo.sessions["federated"].load(shared)
    one, other = (silo.sessions["federated"].module for silo in ours.cohort.silos.values())
    assert torch.equal(one[0].weight, other[0].weight)
    for name in ("weight", "bias", "running_mean"):
        assert not torch.equal(getattr(one[1], name), getattr(other[1], name)), name


def test_fed_bn_without_a_normalisation_layer_is_refused():
    with pytest.raises(ConfigError, match="fed_bn: the network has no normalisation layer"):
        run(FedBN())


def test_recomputed_statistics_are_those_of_the_silos_own_rows_under_the_evaluated_model():
    module = NormedTask().model(0)
    worker = trainer(replace(PLAN, buffers="recompute"), NormedTask().model(0))
    before = [buffer.clone() for buffer in worker.module.buffers()]
    predicted = worker.predict(worker.features, initial_vector(module, "recompute"))
    hidden = module[0](worker.features).detach()
    scaled = (hidden - hidden.mean(0)) / torch.sqrt(hidden.var(0) + module[1].eps)
    torch.testing.assert_close(predicted, module[4](module[2](scaled)), rtol=1e-4, atol=1e-5)
    assert all(torch.equal(a, b) for a, b in zip(before, worker.module.buffers(), strict=True))


def test_dropout_depends_on_seed_silo_and_round_and_leaves_the_global_generator_alone():
    start = initial_vector(NormedTask().model(0))
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    first, again, other = (
        trainer(replace(PLAN, seed=seed), NormedTask().model(0)).fit(start, range(2))[0] for seed in (0, 0, 1)
    )
    assert torch.equal(torch.rand(1), expected)
    assert first.tobytes() == again.tobytes() != other.tobytes()


def test_scaffold_and_averaged_statistics_travel_together():
    _, records = run(make_strategy("scaffold"), NormedTask())
    assert len(records[-1].models["federated"]) == 73
