"""Evaluations of models are no oracle for the rows they are marked on: attacks with all the evaluations there are."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import nn
from torch.nn import functional

from ray_fed.errors import PerimeterRefused
from ray_fed.federation.messages import SessionSpec
from ray_fed.federation.silo import Evaluator, Scoring, Silo, num_changed, num_groups
from ray_fed.federation.task import LocalRows, SiloSpec
from ray_fed.federation.torch_task import TorchTask
from ray_fed.learning.layout import Layout
from ray_fed.learning.trainer import TrainingPlan
from ray_fed.metrics import (
    ClassificationSums,
    MeanScores,
    RegressionSums,
    Resolution,
    classification_metrics,
    coin_of,
    on_grid,
    secret_of,
)
from ray_fed.perimeter.guarded_evaluator import GuardedEvaluator
from ray_fed.perimeter.guarded_silo import GuardedSilo
from ray_fed.perimeter.policy import Policy
from tests.boundaries import write_site

EXACT = Resolution(1, 45, 45)
POLICY = Policy()


def network():
    return nn.Linear(4, 1)


def drawn(source):
    random = np.random.default_rng(source)
    x = random.normal(size=(200, 4))
    y = x.sum(axis=1) + 0.1 * random.normal(size=200)
    return x[50:], y[50:], x[:50], y[:50]


@dataclass(frozen=True)
class Regression(TorchTask):
    """Its errors are told as `RegressionSums`."""

    def score(self, targets, outputs):
        return RegressionSums.of(targets, outputs[:, 0])


TASKS = {
    "mean absolute error": Regression(network, functional.mse_loss, drawn),
    "a loss of one's own": TorchTask(network, functional.l1_loss, drawn),
}
TRUTH = np.sort(drawn(1)[1])
SPREAD = TRUTH.std()


@pytest.fixture(autouse=True)
def site(tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_FED_SITE", str(tmp_path / "site"))
    return tmp_path / "site"


class Oracle:
    """What a coordinator learns of models c + tilt * x from a silo behind its gate."""

    def __init__(self, task, resolution=None, **spec):
        made = SiloSpec("a", 1, **spec)
        self.boundary = GuardedSilo(made, lambda: task.silo(made) if hasattr(task, "silo") else Silo(made, task))
        self.boundary.open(), self.boundary.prepare(None)
        if resolution:
            self.boundary.silo.resolution = self.boundary.gate.resolution = resolution
        digest = Layout.of(task.model(0)).digest
        self.boundary.open_session(SessionSpec("s", TrainingPlan(0, 4, 2, 4), 0, digest))
        self.asked = 0

    def metrics(self, *vectors):
        self.asked += len(vectors)
        models = {f"m{number}": np.asarray(vector, np.float32) for number, vector in enumerate(vectors)}
        return [one.train for one in self.boundary.evaluate("s", models).values()]

    def errors(self, constants, tilt=1e-3):
        """The sum of |target - c| over the training rows for each c, by models that are nearly constant."""
        found = []
        for number, c in enumerate(constants):
            scores = self.metrics([tilt, tilt * (1 + 1e-4 * number), tilt, -tilt, c])[0]
            found.append(scores.sums["loss"] if isinstance(scores, MeanScores) else scores.sum_absolute_error)
        return np.array(found)


def solved_for(constants, sums, count):
    """The sorted targets that explain sums of |target - c| best, from a normal guess on: what an attacker computes."""
    mean, spread = TRUTH.mean(), SPREAD  # told by the moments anyway
    guess = stats.norm.ppf((np.arange(count) + 0.5) / count) * spread + mean

    x, c, told = torch.tensor(guess, requires_grad=True), torch.tensor(constants), torch.tensor(sums)
    optimizer = torch.optim.LBFGS([x], max_iter=150, history_size=50, line_search_fn="strong_wolfe")

    def misfit():
        optimizer.zero_grad()
        gap = x[:, None] - c[None]
        loss = (((functional.softplus(400 * gap) / 200 - gap).sum(0) / told - 1) ** 2).sum()
        loss.backward()
        return loss

    optimizer.step(misfit)
    return np.sort(x.detach().numpy()), guess


def solve(oracle, num_evaluations):
    constants = np.linspace(TRUTH.mean() - 3 * SPREAD, TRUTH.mean() + 3 * SPREAD, num_evaluations)
    found, guess = solved_for(constants, oracle.errors(constants), len(TRUTH))
    return np.abs(found - TRUTH) / SPREAD, np.abs(guess - TRUTH) / SPREAD


# ---- the attacks


@pytest.mark.parametrize("task", TASKS)
def test_constant_models_give_no_number_at_all(task):
    oracle = Oracle(TASKS[task])
    told = [list(oracle.metrics([0, 0, 0, 0, c])[0].values().values()) for c in np.linspace(-9, 9, 40)]
    assert np.isnan(told).all()


@dataclass(frozen=True)
class Classification(TorchTask):
    """Which rows have a positive sum, told as `ClassificationSums`."""

    def score(self, targets, outputs):
        return ClassificationSums.of((targets > 0).astype(int), 1 / (1 + np.exp(-outputs[:, 0].astype(float))))


def test_classes_are_not_marked_by_constant_models_and_else_told_in_groups():
    named = {metric: lambda out, _: out for metric in classification_metrics(2)}
    oracle = Oracle(Classification(network, functional.mse_loss, drawn, named))
    assert not any(oracle.metrics([0, 0, 0, 0, c])[0].is_marked for c in np.linspace(-3, 3, 20))
    told = [oracle.metrics([1, 1, 1, 1 + 0.01 * n, 0])[0] for n in range(40)]
    assert all(one.is_marked and one.num_examples == 150 for one in told)
    assert not any(count % POLICY.min_examples for one in told for count in (*one.confusion, *one.histograms))
    assert len({tuple(one.matrix.sum(1)) for one in told}) == 1  # asking on tells no more of how many rows a class has
    assert len({one.confusion for one in told}) >= 3


def test_the_attack_of_this_file_finds_the_targets_where_evaluations_are_exact():
    """Else the next test would prove nothing."""
    misses, guesses = solve(Oracle(TASKS["mean absolute error"], EXACT), 400)
    assert np.median(misses) < 0.002 < 0.03 < np.median(guesses)


@pytest.mark.parametrize("task", TASKS)
def test_all_evaluations_of_a_run_on_nearly_constant_models_give_no_target(task):
    oracle = Oracle(TASKS[task])
    misses, guesses = solve(oracle, POLICY.max_evaluations_per_run)
    assert np.median(misses) > 0.015  # of the spread of the targets; a normal distribution, told anyway, misses by 0.04
    assert (misses < 1e-3).sum() <= 5  # of 150, by chance
    assert np.median(guesses) < 0.1
    with pytest.raises(PerimeterRefused, match="models in one run; max_evaluations_per_run=1000; evaluate less often"):
        oracle.metrics([1, 1, 1, 1, 0])


def test_there_is_no_place_where_a_rounded_number_jumps():
    """Plain rounding jumps once, and thirty halvings find where: there the sum is known to its last digit."""
    constants = TRUTH.mean() + np.linspace(1.0, 1.6, 200)
    exact = Oracle(TASKS["mean absolute error"], EXACT).errors(constants)
    plain = np.array([Resolution().released(RegressionSums(150, x, x, 0.0, 1.0)).sum_absolute_error for x in exact])
    told = Oracle(TASKS["mean absolute error"]).errors(constants)
    assert (np.diff(plain) != 0).sum() <= 5
    assert (np.diff(told) != 0).sum() > 30
    assert told.mean() == pytest.approx(exact.mean(), rel=0.01)


def test_the_largest_target_is_hidden_from_all_evaluations_of_all_runs():
    """The best case for an attacker, who knows the other targets: the kink of the last one, all coins averaged."""
    rest, largest = TRUTH[:-1], TRUTH[-1]
    secret, resolution, random = secret_of([TRUTH]), Resolution(), np.random.default_rng(0)
    constants = random.uniform(rest[-1], largest, POLICY.max_evaluations_per_dataset)
    found = []
    for c in constants:
        true = MeanScores(150, {"mae": float(np.abs(TRUTH - c).sum())})
        told = resolution.released(true, coin_of(secret, np.array([c]), "train"), of_numbers=True)
        found.append(told.sums["mae"] - np.abs(rest - c).sum() + c)
    assert abs(np.mean(found[: POLICY.max_evaluations_per_run]) - largest) > 1e-3 * SPREAD
    assert np.std(found) > SPREAD  # of one evaluation: it says nothing
    assert np.std(found) / len(found) ** 0.5 > 0.01 * SPREAD  # of all that a data set allows


def test_steps_between_two_values_are_not_marked():
    random = np.random.default_rng(0)
    rows = random.normal(size=(150, 4))
    for cut in (-1.0, 0.0, 1.0):
        assert num_groups((rows[:, 0] > cut).astype(np.float32) + 1e-8 * rows[:, 1].astype(np.float32)) < 5
    assert num_groups(rows[:, 0].astype(np.float32)) > 100
    assert num_groups(np.full(9, np.nan, np.float32)) == 1


class Bumps(nn.Module):
    """x w + b, and a bump of a chosen height at one row."""

    def __init__(self):
        super().__init__()
        self.line, self.height = nn.Linear(4, 1), nn.Parameter(torch.zeros(1))
        self.row = torch.from_numpy(drawn(1)[0][17].astype(np.float32))

    def forward(self, x):
        near = torch.exp(-1e4 * (x - self.row).square().sum(1, keepdim=True))
        return self.line(x) + self.height * near


class BumpTask(Regression):
    def model(self, seed):
        torch.manual_seed(seed)
        return Bumps()


def test_a_model_that_differs_in_one_row_from_one_marked_before_is_not_marked():
    oracle = Oracle(BumpTask(Bumps, functional.mse_loss, drawn))
    names = [name for name, _ in Bumps().named_parameters()]
    assert names == ["height", "line.weight", "line.bias"]
    line = [0.9, 1.0, 1.1, 1.0, 0.0]
    first, again, bump = oracle.metrics([0.0, *line], [0.0, *line], [2.0, *line])
    assert first == again
    assert np.isfinite(first.mae)
    assert np.isnan(bump.mae)
    tilted = oracle.metrics([2.0, 0.9 + 1e-6, *line[1:]])[0]  # and a little everywhere
    assert np.isnan(tilted.mae)
    assert np.isfinite(oracle.metrics([2.0, *(1.2 * np.array(line))])[0].mae)


def test_rows_that_change_are_counted_against_the_largest_change():
    old = np.zeros(10, np.float32)
    assert num_changed(old, old) == 0
    assert num_changed(old, np.array([1, 1, 1, *[1e-3] * 7], np.float32)) == 3
    assert num_changed(old, np.linspace(0.1, 1, 10, dtype=np.float32)) == 10


# ---- test sets


def evaluator():
    made, task = SiloSpec("test", 1), TASKS["mean absolute error"]
    guarded = GuardedEvaluator(made, lambda: Evaluator(made, task))
    guarded.open(), guarded.prepare(None)
    return guarded


def test_a_test_set_that_is_not_public_is_no_oracle_either(site):
    hidden, steps = evaluator(), np.linspace(-2, 2, 40)
    constant, line = np.array([0, 0, 0, 0, 1], np.float32), np.array([1, 1, 1, 1, 0], np.float32)
    assert np.isnan(hidden.evaluate({"m": constant})["m"].mae)
    told = {hidden.evaluate({"m": line + np.float32(1e-3 * step)})["m"].mae for step in steps}
    assert len(told) < 10
    with pytest.raises(PerimeterRefused, match="max_evaluations_per_run=1000"):
        hidden.evaluate({f"m{number}": line for number in range(POLICY.max_evaluations_per_run)})
    plain = Evaluator(SiloSpec("test", 1), TASKS["mean absolute error"])
    plain.open(), plain.prepare(None)
    assert plain.evaluate({"m": line})["m"] == evaluator().evaluate({"m": line})["m"]  # as in every cohort
    write_site(site, "silos: {test: {test_set: public}}")
    public = evaluator()
    exact = [public.evaluate({"m": line + np.float32(1e-3 * step)})["m"].mae for step in steps]
    assert len(set(exact)) == 40
    assert np.isfinite(public.evaluate({"m": constant})["m"].mae)


# ---- how many


def test_evaluations_of_a_data_set_are_counted_over_runs_where_its_owner_keeps_a_book(site):
    write_site(site, f"ledger: {site}/kept\nperimeter: {{max_evaluations_per_run: 3, max_evaluations_per_dataset: 5}}")
    models = [[1, 1, 1, 1, c] for c in range(3)]
    Oracle(TASKS["mean absolute error"], run="1").metrics(*models)
    with pytest.raises(PerimeterRefused, match="max_evaluations_per_run=3"):  # a process that was started again
        Oracle(TASKS["mean absolute error"], run="1").metrics(models[0])
    Oracle(TASKS["mean absolute error"], run="2").metrics(*models[:2])
    with pytest.raises(PerimeterRefused, match="max_evaluations_per_dataset=5"):
        Oracle(TASKS["mean absolute error"], run="3").metrics(models[0])


# ---- the digits


@given(
    st.floats(-1e30, 1e30, allow_subnormal=False).filter(lambda x: abs(x) > 1e-290 or x == 0),
    st.integers(1, 40),
    st.floats(0, 1, exclude_max=True),
)
def test_what_is_told_is_within_a_step_of_the_truth_and_stays_as_it_is_when_rounded_again(value, bits, up):
    told = on_grid(value, bits, up)
    assert abs(told - value) <= abs(value) * 2.0**-bits
    assert on_grid(told, bits, 0.5) == told


def test_the_mean_of_many_coins_is_right():
    coins = np.random.default_rng(0).random(20_000)
    told = [on_grid(0.1802, 3, up) for up in coins]
    assert len(set(told)) == 2
    assert np.mean(told) == pytest.approx(0.1802, rel=1e-3)


@given(st.lists(st.floats(-50, 50), min_size=5, max_size=40), st.integers(0, 5))
def test_scores_told_once_are_told_again_as_they_are(values, seed):
    truth = np.array(values)
    scores = RegressionSums.of(truth, truth + np.random.default_rng(seed).normal(size=len(truth)))
    coin = coin_of(secret_of([truth]), truth, "train")
    told = Resolution().released(scores, coin)
    assert Resolution().released(told) == told
    assert told.num_examples == scores.num_examples


def test_steps_are_the_share_of_the_fewest_rows():
    resolution = Resolution(fewest_rows=5)
    for num_rows in (80, 1000, 12_897, 10**6):
        assert 0.5 * num_rows < 5 * 2 ** resolution.bits(num_rows, True) <= num_rows
    assert resolution.bits(10, True) == 3
    assert resolution.bits(10, False) == 7


def test_a_share_of_one_is_never_told_as_more():
    for n in (1, 7, 1001):
        told = Resolution().released(MeanScores(n, {"accuracy": float(n)}), lambda _: 0.999)
        assert told.values()["accuracy"] == 1.0


def test_the_coins_of_one_model_are_the_same_wherever_its_rows_are_and_secret_elsewhere():
    x, y, *held_out = drawn(1)
    rows = LocalRows(x, y, *held_out, {}, {}, {})
    vector = np.ones(5, np.float32)
    coins = [coin_of(Scoring(one)._secret, vector, "train")("mae") for one in (rows, replace(rows, targets=y.copy()))]
    assert coins[0] == coins[1]
    other = replace(rows, targets=y + 1e-9)
    assert coin_of(Scoring(other)._secret, vector, "train")("mae") != coins[0]
    assert coin_of(Scoring(rows)._secret, vector * 1.0000002, "train")("mae") != coins[0]
