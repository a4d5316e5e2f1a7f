"""Where trials report, and what a config of theirs may hold."""

import pytest
from torch import nn
from torch.nn import functional

from pipelines import Training
from pipelines.tuning.rungs import common_rungs, rounds_at, rounds_of_rungs, rung_steps
from pipelines.tuning.trial_plans import OwnExperiment, PipelineExperiment, strategy_of
from ray_fed import ConfigError, RoundRules, SiloSpec, TorchTask
from ray_fed.federation.coordinator import is_evaluated
from ray_fed.federation.rounds.job import Job


def job(rounds, epochs=20, num_examples=40):
    plan = Training(rounds=rounds, epochs=epochs, batch_size=10).plan(num_examples)
    return Job("trial", ("a",), {"a": plan}, 0)


@pytest.mark.parametrize("rounds", [5, 10, 20, 80])
def test_trials_that_exchange_at_all_rungs_report_on_one_grid(rounds):
    made = job(rounds)
    found = rounds_of_rungs(made, 5)
    assert [made.any_plan.steps_of_round(each).stop for each in found] == [16, 32, 48, 64, 80]
    assert list(found.values()) == [(1, 16), (2, 32), (3, 48), (4, 64), (5, 80)]


def test_rare_exchanges_report_the_last_rung_that_they_reach_and_only_evaluated_rounds_are():
    made = job(2)
    assert rounds_of_rungs(made, 4) == {1: (2, 40), 2: (4, 80)}
    assert [is_evaluated(made, each) for each in (0, 1, 2)] == [True, True, True]


def test_rungs_may_be_steps_and_the_end_is_one():
    assert rung_steps(80, [10, 30, 100]) == [10, 30, 80]
    assert rung_steps(3, 10) == [1, 2, 3]
    for wrong in ([], [3, 3], [0], 0):
        with pytest.raises(ConfigError, match="rungs="):
            rung_steps(80, wrong)


def test_trials_of_a_sweep_are_compared_where_all_of_them_exchange():
    frequencies = [job(5), job(10), job(80)]
    rungs = common_rungs(frequencies, 10)
    assert rungs == [16, 32, 48, 64, 80]
    for each in frequencies:
        assert [each.any_plan.steps_of_round(one).stop for one in rounds_at(each, rungs)] == rungs
    assert len(common_rungs([job(80), job(40)], 4)) == 4
    assert common_rungs([job(4), job(3)], 10) == [80]


def test_only_rounds_of_a_list_are_evaluated_besides_the_first_and_last():
    from dataclasses import replace

    made = replace(job(10), evaluate_at=(3, 7))
    assert [each for each in range(11) if is_evaluated(made, each)] == [0, 3, 7, 10]


def test_keys_that_are_none_are_refused_with_the_nearest_name():
    task = TorchTask(lambda: nn.Linear(4, 2), functional.cross_entropy, lambda _: ())
    made = OwnExperiment(task, (SiloSpec("a", 1),), None, Training(), "fed_avg", RoundRules())
    with pytest.raises(ConfigError, match="learning_rate"):
        made.plan({"learningrate": 1})
    with pytest.raises(ConfigError, match="given twice"):
        made.plan({"seed": 1, "training": {"seed": 2}})
    with pytest.raises(ConfigError, match="hidden"):
        PipelineExperiment.of("train", {"hiden": (8,)})
    with pytest.raises(ConfigError, match="has no 'name'"):
        strategy_of({"beta": 0.5})
    assert strategy_of({"name": "fed_avg_m", "beta": 0.5}).beta == 0.5
