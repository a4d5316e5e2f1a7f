"""ScaffoldAdam: what is common to silos is Adam's, pooled where it can be; whatever happens, the answers keep their
bits."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from ray_fed.errors import ConfigError
from ray_fed.federation.cohort import LocalCohort
from ray_fed.federation.coordinator import Coordinator
from ray_fed.federation.diversity import DIVERSITY, UNLIKE, Diversity
from ray_fed.federation.messages import SessionSpec, Update
from ray_fed.federation.rounds.job import Job
from ray_fed.federation.silo import Silo
from ray_fed.federation.strategies import FedAvg, ScaffoldAdam
from ray_fed.federation.strategies.common_moments import CONTROL, SECOND
from ray_fed.federation.task import LocalRows, SiloSpec
from ray_fed.learning.layout import Layout, initial_vector
from ray_fed.learning.steps import COMMON_BETA_2
from ray_fed.learning.trainer import LocalTrainer, TrainingPlan
from tests.synthetic import DrawnRows, SyntheticTask, silos

PLAN = TrainingPlan(seed=0, epochs=8, steps_per_epoch=2, num_rounds=4, learning_rate=0.01, decay="cosine")


def run(strategy, plan=PLAN, specs=None, task=None, threshold=0, **more):
    task, specs = task or SyntheticTask(), specs or silos(40, 80, held_out=10)
    names = tuple(spec.name for spec in specs)
    ours = Coordinator(LocalCohort(specs, task), task, names)
    ours.agree()
    job = Job("federated", names, dict.fromkeys(names, plan), 0, strategy, secure_threshold=threshold)
    return list(ours.run(job, **more))


def asked(plan=PLAN):
    return ScaffoldAdam().local_plan(plan, SyntheticTask().model(0))


def trainer(plan, rows=slice(None), seed=0):
    random = np.random.default_rng(seed)
    x = torch.from_numpy(random.normal(size=(24, 3)).astype(np.float32))[rows]
    return LocalTrainer(SyntheticTask().model(0), functional.mse_loss, x, x.square().sum(1, keepdim=True), plan, "a")


def test_one_silo_that_exchanges_after_every_step_is_plain_adam_of_the_same_betas(monkeypatch):
    plan = replace(PLAN, num_rounds=PLAN.total_steps)
    together = run(ScaffoldAdam(momentum=0.0), plan, silos(40))[-1].models["federated"]
    monkeypatch.setattr("ray_fed.learning.steps.BETA_2", COMMON_BETA_2)
    alone = run(FedAvg(), plan, silos(40))[-1].models["federated"]
    np.testing.assert_allclose(together, alone, rtol=1e-4, atol=1e-6)


def test_silos_that_exchange_after_every_full_batch_step_take_the_step_of_the_pooled_gradient():
    """Silos of equal rows: d is the pooled gradient at each, but for the first moment's one new gradient."""
    plan = asked(TrainingPlan(0, 3, 1, 3, learning_rate=0.01))
    parts, pooled = [trainer(plan, slice(start, 24, 2)) for start in (0, 1)], trainer(replace(PLAN, decay="none"))
    x = initial_vector(SyntheticTask().model(0))
    strategy = ScaffoldAdam(momentum=0.0)
    state, gradient = strategy.start(x, ["a", "b"]), np.zeros(len(x))
    first = 0.0
    for step in range(3):
        pooled.load(state["federated"])
        pooled.step(pooled.features, pooled.targets)
        gradient = pooled.flat_gradient.numpy().copy()
        first = 0.9 * first + 0.1 * gradient
        vector = strategy.dispatch(state, ["a"])["a"]
        answers = [each.fit(vector, range(step, step + 1))[0] for each in parts]
        updates = [Update(name, "s", 1, answer, 12, 1, 0.0) for name, answer in zip("ab", answers, strict=True)]
        state = strategy.aggregate(state, updates)
        np.testing.assert_allclose(state[CONTROL], first, rtol=1e-3, atol=1e-6)
    assert (state[SECOND] >= 0).all()
    assert state[SECOND].max() > 0


def test_it_reaches_the_optimum_that_fed_avg_misses():
    """Two silos whose points do not agree on a line: ten local steps a round pull FedAvg off the optimum."""
    specs = [SiloSpec("a", ((1.0, 0.0), 1.0, 3.0)), SiloSpec("b", ((1.0, 2.0), 0.2, 3.0))]
    plan = TrainingPlan(0, 1500, 1, 150, learning_rate=0.1, decay="cosine")
    optimum, errors = LineTask().optimum([spec.source for spec in specs]), {}
    for name, strategy in (("avg", FedAvg()), ("common", ScaffoldAdam())):
        model = run(strategy, plan, specs, LineTask())[-1].models["federated"]
        errors[name] = float(np.abs(model - optimum).max())
    assert errors["common"] < 1e-3 < 0.05 < errors["avg"]


class LineTask(SyntheticTask):
    """y = w x + b with silos whose points disagree: weighted least squares has a closed form."""

    standardises = False

    def model(self, seed):  # noqa: ARG002
        module = torch.nn.Linear(1, 1)
        torch.nn.init.zeros_(module.weight)
        torch.nn.init.zeros_(module.bias)
        return module

    def load(self, spec):
        x, y = points(spec.source)
        return LocalRows(x, y, x[:0], y[:0], {}, {}, self.agreement())

    def optimum(self, sources):
        x, y = (np.concatenate(parts) for parts in zip(*map(points, sources), strict=True))
        return np.linalg.lstsq(np.hstack([x, np.ones_like(x)]), y, rcond=None)[0]


def points(source):
    places, slope, level = source
    x = np.array(places)[:, None]
    return x, slope * x[:, 0] + level * x[:, 0] ** 2


def test_the_server_takes_the_means_computed_by_hand():
    """Two of three silos, 1 and 3 rows: means of (1, 2, 6) and (5, 6, 2) are (4, 5, 3); c = 0 + 2/3 (3 - 0) = 2.
    Nesterov, mu = 1/2: the first move, 4, goes half as far again, to 6; the second, -2, has u = 0 and goes to 4."""
    strategy = ScaffoldAdam(momentum=0.5)
    state = strategy.start(np.zeros(1, np.float32), ["a", "b", "c"])
    answers = [([1, 2, 6], 1), ([5, 6, 2], 3)]
    updates = [Update(f"silo-{i}", "s", 1, np.array(v, np.float32), n, 1, 0.0) for i, (v, n) in enumerate(answers)]
    after = strategy.aggregate(state, updates)
    assert [after[key].tolist() for key in ("federated", SECOND, CONTROL)] == [[6.0], [5.0], [2.0]]
    assert strategy.dispatch(after, ["b"])["b"].tolist() == [6.0, 5.0, 2.0]
    assert strategy.models(after).keys() == {"federated"}
    again = strategy.aggregate(after, updates)
    assert again["federated"].tolist() == [4.0]


def test_a_state_written_before_there_was_momentum_begins_with_none():
    strategy = ScaffoldAdam(momentum=0.5)
    state = strategy.start(np.zeros(1, np.float32), ["a"])
    update = Update("a", "s", 1, np.array([4, 5, 3], np.float32), 1, 1, 0.0)
    old = {key: value for key, value in state.items() if key != "server.momentum"}
    assert strategy.aggregate(old, [update])["federated"] == strategy.aggregate(state, [update])["federated"] == 6.0


def test_running_statistics_are_averaged_and_not_pushed_along():
    strategy = ScaffoldAdam(momentum=0.5)
    state = {**strategy.start(np.zeros(2, np.float32), ["a"]), "server.num_learned": np.array([1])}
    update = Update("a", "s", 1, np.array([4, 4, 0, 0, 0, 0], np.float32), 1, 1, 0.0)
    assert strategy.aggregate(state, [update])["federated"].tolist() == [6.0, 4.0]


@given(st.permutations(range(4)))
def test_it_has_the_same_bits_for_every_order_of_arrival(order):
    random = np.random.default_rng(0)
    updates = [Update(f"silo-{i}", "s", 1, random.normal(size=9).astype(np.float32), i + 1, 1, 0.0) for i in range(4)]
    strategy = ScaffoldAdam()
    state = strategy.start(np.zeros(3, np.float32), [update.silo for update in updates])
    want, got = strategy.aggregate(state, updates), strategy.aggregate(state, [updates[i] for i in order])
    assert all(want[key].tobytes() == got[key].tobytes() for key in want)


def test_under_masks_it_has_the_bits_that_it_has_without():
    specs = silos(40, 60, 25, held_out=10)
    plain, masked = run(ScaffoldAdam(), specs=specs), run(ScaffoldAdam(), specs=specs, threshold=2)
    assert all(plain[-1].state[key].tobytes() == masked[-1].state[key].tobytes() for key in plain[-1].state)


def test_a_silo_asked_again_or_restored_answers_with_the_same_bits(tmp_path):
    task, plan = SyntheticTask(), asked(replace(PLAN, keep_local=("2.bias",)))
    session = SessionSpec("s", plan, 0, Layout.of(task.model(0)).digest)
    silo = Silo(SiloSpec("silo-1", DrawnRows(40), state_folder=str(tmp_path)), task)
    silo.open()
    silo.prepare(None)
    silo.open_session(session)
    initial = initial_vector(task.model(0))
    first = silo.fit("s", 1, np.concatenate([initial, np.zeros(2 * len(initial), np.float32)]))
    second = silo.fit("s", 2, first.vector)
    assert silo.fit("s", 2, first.vector).vector.tobytes() == second.vector.tobytes()
    restored = Silo(silo.spec, task)
    restored.restore(None, [session])
    assert restored.fit("s", 2, first.vector).vector.tobytes() == second.vector.tobytes()


def test_a_silo_that_lost_its_control_variate_corrects_nothing_for_a_round():
    plan = asked()
    fresh, other = trainer(plan), trainer(plan)
    size = fresh.layout.size
    common = np.full(size, 0.25, np.float32)
    vector = np.concatenate([initial_vector(SyntheticTask().model(0)), np.full(size, 0.1, np.float32), common])
    other.control.own.copy_(torch.from_numpy(common))
    other.control.known.fill_(1)
    assert fresh.fit(vector, range(4, 8))[0].tobytes() == other.fit(vector, range(4, 8))[0].tobytes()


def test_a_rate_that_decays_falls_to_nothing_over_the_whole_run_whatever_the_exchanges():
    rates = [PLAN.rate(step) for step in range(PLAN.total_steps + 1)]
    assert rates[0] == PLAN.learning_rate
    assert rates[-1] == 0
    assert rates == sorted(rates, reverse=True)
    assert PLAN.rate(PLAN.total_steps // 2) == pytest.approx(PLAN.learning_rate / 2)
    assert replace(PLAN, decay="none").rate(7) == PLAN.learning_rate


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"optimizer": "sgd"}, "scaffold_adam is made for adam"),
        ({"optimizer_state": "average"}, "optimizer_state=average has no meaning with scaffold_adam"),
    ],
)
def test_what_does_not_go_with_it_is_said(change, said):
    with pytest.raises(ConfigError, match=said):
        asked(replace(PLAN, **change))


def test_the_plan_refuses_an_unknown_decay_and_common_moments_without_control_variates():
    with pytest.raises(ConfigError, match="decay='x' must be one of none, cosine"):
        replace(PLAN, decay="x")
    with pytest.raises(ConfigError, match="optimizer_state=common is ScaffoldAdam's"):
        replace(PLAN, optimizer_state="common")


# ---- how unlike silos are


def moved(name, move, rows=1):
    return Update(name, "s", 1, np.array(move, np.float32), rows, 1, 0.0)


def diversity(*updates):
    sent = {update.silo: np.zeros(len(update.vector), np.float32) for update in updates}
    measured = Diversity(sent, 2)
    assert len(list(measured.noted(updates))) == len(updates)
    return measured.value()


def test_diversity_is_that_computed_by_hand_and_looks_at_parameters_alone():
    """Moves (2, 0) of 3 rows and (0, 2) of 1: mean square 4, mean (1.5, 0.5) of square 2.5."""
    assert diversity(moved("a", [2, 0, 9], 3), moved("b", [0, 2, -9], 1)) == pytest.approx(4 / 2.5)
    assert diversity(moved("a", [1, 2]), moved("b", [1, 2])) == 1
    assert diversity(moved("a", [1, 2])) is None
    assert diversity(moved("a", [1, 2]), moved("b", [-1, -2])) is None, "no common move to measure by"


@given(st.permutations(range(4)))
def test_diversity_has_the_same_bits_for_every_order_of_arrival(order):
    random = np.random.default_rng(1)
    updates = [moved(f"silo-{i}", random.normal(size=2), i + 1) for i in range(4)]
    assert diversity(*updates) == diversity(*[updates[i] for i in order])


def test_the_first_round_says_how_unlike_silos_are_where_single_moves_are_seen():
    alike, masked = run(FedAvg()), run(FedAvg(), specs=silos(40, 60, 25, held_out=10), threshold=2)
    assert 1 <= alike[1].metrics[DIVERSITY] < UNLIKE
    assert not any(DIVERSITY in record.metrics for record in (*alike[2:], *masked))
    often = run(FedAvg(), replace(PLAN, num_rounds=PLAN.total_steps))
    assert not any(DIVERSITY in record.metrics for record in often), "steps of few rows are unlike by chance"


@given(st.integers(1, 400), st.integers(1, 100), st.sampled_from(["none", "cosine"]))
def test_rounds_cover_every_step_once_and_none_is_empty(steps, rounds, decay):
    rounds = min(rounds, steps)
    plan = TrainingPlan(0, 1, steps, rounds, decay=decay)
    dealt = [plan.steps_of_round(number) for number in range(1, rounds + 1)]
    assert [step for each in dealt for step in each] == list(range(steps))
    assert 1 <= min(map(len, dealt)) <= max(map(len, dealt)) <= plan.most_steps


def test_rounds_get_shorter_as_the_rate_falls():
    lengths = [len(TrainingPlan(0, 100, 20, 25, decay="cosine").steps_of_round(number)) for number in range(1, 26)]
    assert lengths[0] > 1.8 * 80
    assert lengths[-1] < 0.7 * 80
    assert all(later <= earlier + 1 for earlier, later in itertools.pairwise(lengths))
