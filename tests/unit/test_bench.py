"""The bench measures the same work in every way, and its table says what it is compared with."""

import numpy as np
import pytest
import torch

from pipelines.bench import aggregation, exchanges, large_model, local_steps
from pipelines.bench.config import BenchConfig
from pipelines.bench.measurement import Measurement, cells
from pipelines.cli import main
from ray_fed.errors import ConfigError
from ray_fed.federation.cohort import LocalCohort
from ray_fed.federation.coordinator import Coordinator


def test_a_group_is_named_once_and_ratios_are_to_its_first_way():
    rows = cells([Measurement("a", "plain", 2.0, "x/s", 2.0), Measurement("a", "ours", 5000.0, "x/s", 2.0)])
    assert rows[1:] == [("a", "plain", "2", "x/s", "1.00"), ("", "ours", "5,000", "x/s", "2500.00")]


def test_every_way_of_a_part_is_measured_against_the_first_one():
    found = local_steps.measured("cpu", steps=2, repeats=1) + aggregation.measured(repeats=1)
    groups = {one.what for one in found}
    assert len(groups) == 6
    for group in groups:
        first, *others = [one for one in found if one.what == group]
        assert first.ratio == 1
        assert others
        assert all(one.rate > 0 and one.ratio == one.rate / first.rate for one in others)


def test_the_plain_loop_and_the_cohort_do_as_many_rounds():
    rounds = 100
    assert list(exchanges.plain_loop(rounds)) == list(range(1, rounds + 1))
    local = Coordinator(
        LocalCohort(exchanges.specs(""), exchanges.TASK, exchanges.TEST), exchanges.TASK, exchanges.NAMES
    )
    local.agree()
    records = list(local.run(exchanges.job("test", rounds, rounds // exchanges.STEPS)))
    assert [record.server_round for record in records if record.server_round] == list(range(1, rounds + 1))


def test_a_large_model_is_exchanged_to_the_values_of_the_plain_loop():
    task = large_model.Wide(30)
    assert list(large_model.plain_loop(task, 3)) == [0, 1, 2, 3]
    local = Coordinator(LocalCohort(large_model.SPECS, task), task, large_model.NAMES)
    local.agree()
    *_, last = local.run(large_model.job(3))
    assert (last.server_round, last.failures, len(last.models["federated"])) == (3, (), 900)


def test_the_three_loops_of_a_local_step_start_from_the_same_network():
    x, y = local_steps.rows("cpu")
    torch.testing.assert_close(y, x.square().mean(1, keepdim=True))
    assert np.isfinite(local_steps.seconds_per_step(local_steps.ours(20, "cpu"), 3, "cpu"))


def test_no_part_and_a_gpu_that_is_not_there_are_refused(capsys):
    with pytest.raises(ConfigError, match="parts is empty"):
        BenchConfig(parts=())
    if not torch.cuda.is_available():
        assert main(["bench", "--device", "cuda", "--parts", "local-step"]) == 2
        assert "torch finds no GPU here" in capsys.readouterr().err
