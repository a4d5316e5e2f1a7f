"""Silos and networks that are not as usual: taken as they are, or refused in one line, never changed in silence."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from pipelines import Training, federate
from ray_fed import ConfigError, DataError, SiloSpec, TorchTask
from ray_fed.errors import QuorumLost
from tests.boundaries import cohort_behind_boundaries

SILOS = [SiloSpec("a", 1), SiloSpec("b", 2)]


def rows(seed, num=40):
    x = np.random.default_rng(seed).normal(size=(num + 20, 4)).astype(np.float32)
    y = (x[:, 0] > 0).astype(np.int64)
    return x[20:], y[20:], x[:20], y[:20]


def linear():
    return nn.Linear(4, 2)


class Complex(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.randn(4, 2, dtype=torch.cfloat))


TASK = TorchTask(linear, functional.cross_entropy, rows)


def train(task=TASK, training=Training(rounds=2, epochs=2, batch_size=16)):  # noqa: B008
    return federate(task, SILOS, training, cohort="local")


NETWORKS = {
    "double": (lambda: linear().double(), "weight is float64; models travel and train as float32"),
    "bfloat16": (lambda: linear().bfloat16(), "weight is bfloat16; models travel and train as float32"),
    "complex": (Complex, "w is complex64; models travel and train as float32"),
    "lazy": (lambda: nn.LazyLinear(2), "weight has no shape yet"),
    "without parameters": (nn.Flatten, "it has no parameters"),
}


@pytest.mark.parametrize("kind", NETWORKS)
def test_a_network_that_would_be_changed_in_silence_is_refused(kind):
    network, said = NETWORKS[kind]
    with pytest.raises(ConfigError, match=f"network: {said}"):
        train(replace(TASK, network=network))


@pytest.mark.parametrize("standardises", [False, True])
def test_a_silo_without_samples_takes_no_part_and_is_named(standardises, capsys):
    task = replace(TASK, samples=lambda seed: rows(seed, 0 if seed == 2 else 40), standardises=standardises)
    result = train(task)
    assert result.records[1].participants == ("a",)
    assert all(not record.failures for record in result.records)
    assert (
        "note: silo 'b' has no training samples, or fewer than its owner's min_examples, and takes no part"
        in capsys.readouterr().err
    )
    with pytest.raises(DataError, match="no silo has a training sample"):
        train(replace(TASK, samples=lambda seed: rows(seed, 0)))


@pytest.mark.parametrize("num", [0, 1, 2])
def test_a_silo_with_fewer_rows_than_its_owner_lets_out_anything_about_opens_as_one_without(num):
    task = replace(TASK, samples=lambda seed: tuple(part[:num] if seed == 2 else part for part in rows(seed)))
    cohort = cohort_behind_boundaries(SILOS, task)
    said = cohort.open()
    assert (said["b"].num_examples, said["b"].num_held_out, said["b"].fingerprint) == (0, 0, {})
    assert said["a"].num_examples == 40
    cohort.prepare(None)


def test_a_loss_that_is_a_sum_over_its_rows_is_refused():
    with pytest.raises(QuorumLost, match="loss grows with its rows; return their mean"):
        train(replace(TASK, loss=partial(functional.cross_entropy, reduction="sum")))
    for loss in (functional.cross_entropy, nn.CrossEntropyLoss(weight=torch.tensor([0.2, 0.8])), vanishing):
        assert np.isfinite(train(replace(TASK, loss=loss)).metrics["federated.loss"])


def vanishing(out, y):
    return out.sum() * 0.0 + 0.0 * len(y)


def test_models_that_nobody_can_mark_on_samples_of_their_own_are_said_to_be(capsys):
    task = replace(TASK, samples=lambda seed: rows(seed)[:2])
    train(task)
    assert "no silo has held-out samples, and there is no test=" in capsys.readouterr().err
    with pytest.raises(ConfigError, match=r"so federated\.loss is told in no round: choose by train_loss"):
        federate(task, SILOS, Training(rounds=2, epochs=2), cohort="local", select="loss")
    assert federate(task, SILOS, Training(rounds=2, epochs=2), cohort="local", select="train_loss").best_round


def test_a_silo_of_one_sample_trains_with_batch_norm_too():
    """One value has no variance: it is normalised with the running statistics, which stay as they were received."""
    one = replace(TASK, samples=lambda seed: rows(seed, 1 if seed == 2 else 40))
    assert train(one).records[-1].participants == ("a", "b")
    normalised = replace(one, network=lambda: nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2)))
    result = train(normalised)
    assert result.records[-1].participants == ("a", "b")
    assert not any(record.failures for record in result.records)
    assert result.module.training is False
    without = replace(one, network=lambda: nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8, track_running_stats=False)))
    failures = train(without).records[-1].failures
    assert [silo for silo, _ in failures] == ["b"]
    assert "Expected more than 1 value per channel" in failures[0][1]


def test_a_last_batch_of_one_is_dealt_out_among_the_others():
    norm = replace(TASK, network=lambda: nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2)))
    result = train(replace(norm, samples=lambda seed: rows(seed, 33)), Training(rounds=2, epochs=2, batch_size=32))
    assert not result.records[-1].failures


def test_in_a_round_without_a_step_of_its_own_a_silo_is_not_asked():
    result = train(training=Training(rounds=50, epochs=1, batch_size=32))
    taken = [record.participants for record in result.records[1:]]
    assert [each for each in taken if each] == [("a", "b")] * 2
    assert len(taken) == 50
    assert all(not record.failures for record in result.records)
    both = train(training=Training(rounds=2, epochs=1, batch_size=32))
    assert all(torch.equal(a, b) for a, b in zip(result.module.parameters(), both.module.parameters(), strict=True))
    uneven = train(replace(TASK, samples=lambda seed: rows(seed, 8 * seed)), Training(rounds=2, epochs=1, batch_size=8))
    assert [record.participants for record in uneven.records[1:]] == [("b",), ("a", "b")]
