"""Noise on the sums of boosted trees: each silo adds its own, of the size that one row can change, and the account
counts every round."""

from dataclasses import replace

import numpy as np
import pytest

from pipelines.cli import main
from ray_fed.errors import ConfigError
from ray_fed.federation.cohort import LocalCohort
from ray_fed.federation.coordinator import Coordinator
from ray_fed.federation.messages import SessionSpec
from ray_fed.federation.rounds.job import Job
from ray_fed.federation.silo import Silo
from ray_fed.federation.strategies.boosting import BoostedTrees
from ray_fed.learning.layout import Layout
from ray_fed.learning.private_steps import PrivateSteps
from ray_fed.learning.trainer import TrainingPlan
from ray_fed.privacy.accounting import composed_epsilon
from ray_fed.privacy.noise import NoiseSource
from ray_fed.randomness import generator
from ray_fed.reporting.run_directory import RunDirectory
from ray_fed.trees.growth import Grower, Growth
from ray_fed.trees.member import Member
from ray_fed.trees.noise import SumNoise
from ray_fed.trees.question import Step
from ray_fed.trees.settings import TreeSettings
from tests.synthetic import SyntheticForest, silos

LOSSES = ("squared", "log", "quantile:0.2")
SETTINGS = TreeSettings(trees=3, depth=3, leaves=6, bins=8, min_rows=5, losses=LOSSES)


class Seen(SumNoise):
    """Adds nothing, and remembers the groups of the last answer."""

    def added(self, groups):
        self.__dict__["groups"] = groups
        return [numbers for numbers, _ in groups]


def table(rows: int):
    random = generator(0, "private rows")
    x = random.normal(size=(rows, 4))
    x[random.random(x.shape) < 0.1] = np.nan
    y = random.normal(size=(rows, 3)) * [1, 1, 1000]
    y[:, 1] = y[:, 1] > 0
    return x, y


def members(drop: int, rows: int = 60):
    x, y = table(rows)
    keep = np.arange(rows) != drop
    noise = [Seen(1.0, rows, NoiseSource.secret()) for _ in range(2)]
    return Member(x, y, SETTINGS, noise=noise[0]), Member(x[keep], y[keep], SETTINGS, noise=noise[1])


@pytest.mark.parametrize("drop", [0, 17, 59])
def test_one_row_moves_each_group_of_numbers_by_no_more_than_its_sensitivity(drop):
    whole, without = members(drop)
    grower, growth, steps = Grower(SETTINGS, 4, noise=1e-9), Growth.begin(4), set()
    while growth.at is not Step.DONE:
        question = grower.question(growth)
        answer, other = whole.answer(question), without.answer(question)
        assert len(answer) == len(other) == question.form.num_values
        for (numbers, sensitivity), (others, _) in zip(whole.noise.groups, without.noise.groups, strict=True):
            assert np.linalg.norm(numbers - others) <= sensitivity * (1 + 1e-9), question.step
        steps.add(question.step)
        growth = grower.after(growth, answer)
    assert steps == {Step.COUNT, Step.ROOT, Step.LEVEL, Step.LEAF}
    assert whole.num_rows == without.num_rows == 60, "the number of rows is the public one"


def test_the_noise_has_the_size_that_the_account_counts_and_each_silo_has_its_own():
    numbers, noise = np.zeros(20_000, np.int64), SumNoise(3.0, 10, NoiseSource.repeatable(0, "north"))
    first, second = noise.added([(numbers, 2.0), (numbers, 100.0)])
    assert np.std(first) == pytest.approx(3 * 2**0.5 * 2, rel=0.03)
    assert np.std(second) == pytest.approx(3 * 2**0.5 * 100, rel=0.03)
    other = SumNoise(3.0, 10, NoiseSource.repeatable(0, "south")).added([(numbers, 2.0)])[0]
    assert abs(np.corrcoef(first, other)[0, 1]) < 0.05


def private_run(secure: int = 0):
    task, specs = SyntheticForest(TreeSettings(trees=3, depth=2, bins=4, min_rows=5)), silos(40, 60, 25, held_out=12)
    names = tuple(spec.name for spec in specs)
    strategy = BoostedTrees(task.trees, task.num_features, noise=0.01 * 3**0.5)
    plan = TrainingPlan(0, strategy.num_rounds, 1, strategy.num_rounds, private=PrivateSteps(0.01))
    coordinator = Coordinator(LocalCohort(specs, task), task, names)
    coordinator.agree(secure)
    job = Job("federated", names, dict.fromkeys(names, plan), 0, strategy, secure_threshold=secure)
    return list(coordinator.run(job)), strategy


@pytest.mark.parametrize("secure", [0, 2])
def test_a_run_with_noise_makes_a_whole_forest_and_tells_no_loss(secure):
    records, strategy = private_run(secure)
    assert records[-1].server_round <= strategy.num_rounds == strategy.grower.most_rounds()
    assert not any("loss" in name for record in records for name in record.metrics)
    assert np.isfinite(records[-1].models["federated"]).all()


def test_a_silo_counts_each_round_and_stops_where_its_budget_ends():
    task, spec = SyntheticForest(), silos(40, held_out=12)[0]
    silo = Silo(spec, task)
    silo.open()
    silo.prepare(None)
    plan = TrainingPlan(0, 20, 1, 20, sums=10**6, private=PrivateSteps(1.0, most_steps=2, public_examples=40))
    silo.open_session(SessionSpec("s", plan, 0, Layout.of(task.model(0)).digest))
    question = Grower(task.trees, task.num_features, noise=1.0).question(Growth.begin(task.num_features)).vector()
    first, again = (silo.fit("s", number, question) for number in (1, 2))
    assert not np.array_equal(first.vector, again.vector), "fresh noise"
    assert first.loss == 0
    with pytest.raises(Exception, match="budget is spent"):
        silo.fit("s", 3, question)


def test_the_command_reports_the_epsilon_of_all_rounds(tmp_path):
    options = ["--model", "boosted_trees", "--features", "guo65", "--cohort", "local", "--rows", "500"]
    options += ["--silos", "120,200", "--baselines", "no", "--dp-noise-multiplier", "2", "--dp-budget", "90"]
    small = "trees=3,depth=2,bins=4,feature_fraction=0.1,min_rows=20"
    assert main(["train", *options, "--tree-options", small, "--out", str(tmp_path / "run")]) == 0
    summary = RunDirectory(tmp_path / "run").read_summary()
    rounds = len((tmp_path / "run" / "history.jsonl").read_text().splitlines()) - 1
    assert summary["privacy.epsilon"] == pytest.approx(composed_epsilon({(2.0, 1.0): rounds}, 1e-5))
    assert "scaler" not in summary["privacy.not_covered"]


def test_a_budget_that_ends_before_the_forest_is_refused_before_training(tmp_path, capsys):
    options = ["--model", "boosted_trees", "--features", "guo65", "--cohort", "local", "--rows", "500"]
    options += ["--silos", "120,200", "--baselines", "no", "--dp-noise-multiplier", "1", "--dp-budget", "9"]
    assert main(["train", *options, "--tree-options", "trees=30", "--out", str(tmp_path / "run")]) != 0
    assert "fewer trees" in capsys.readouterr().err


def test_noise_and_rows_to_stop_by_do_not_go_together():
    x, y = table(30)
    stopping = replace(SETTINGS, patience=2)
    with pytest.raises(ConfigError, match="patience"):
        Member(x, y, stopping, noise=SumNoise(1.0, 30, NoiseSource.secret()))
