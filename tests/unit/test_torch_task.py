"""Any network, loss and samples: the task, and the one call that federates it."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from pipelines import Training, federate
from ray_fed import ConfigError, DataError, MeanScores, Metric, SiloSpec, TorchTask
from ray_fed.metrics import LOSS, merged


def circles(source):
    """Points inside or outside a circle; `source` is (seed, number)."""
    seed, num = source
    random = np.random.default_rng(seed)
    x = random.normal(size=(num + 50, 2))
    y = (np.square(x).sum(1) > 1.4).astype(np.int64)
    return x[:num], y[:num], x[num:], y[num:]


def classifier():
    return nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Dropout(0.05), nn.Linear(16, 2))


def hit(out, y):
    return out.argmax(1) == y


TASK = TorchTask(classifier, functional.cross_entropy, circles, {"accuracy": hit})
SILOS = [SiloSpec("north", (0, 100)), SiloSpec("south", (1, 300))]
TRAINING = Training(rounds=5, epochs=30, learning_rate=0.02)


def train(task=TASK, silos=SILOS, training=TRAINING, **options):
    return federate(task, silos, training, cohort="local", **options)


def test_a_classifier_is_federated_and_marked_on_all_held_out_samples():
    heard = []
    result = train(callbacks=[heard.append])
    assert len(heard) == len(result.records) == 6
    assert result.metrics["federated.accuracy"] > 0.85 > result.records[0].metrics["federated.accuracy"]
    both = (result.metrics["silo.north.loss"] + result.metrics["silo.south.loss"]) / 2
    assert result.metrics["federated.loss"] == pytest.approx(both)


def test_a_score_may_say_its_unit_and_direction_and_one_that_does_not_is_better_the_higher_it_is():
    misses = Metric("misses", "%", False, 1)
    task = replace(TASK, scores={"accuracy": hit, misses: lambda out, y: 100 * ~hit(out, y)})
    assert task.metrics == (LOSS, Metric("accuracy", "", True, 4), misses)
    result = train(task)
    assert result.metrics["federated.misses"] == pytest.approx(100 * (1 - result.metrics["federated.accuracy"]))
    assert {"train_loss", "silo.north.train_loss"} <= set(result.metrics)


def test_the_module_that_comes_back_is_the_one_that_was_marked():
    result = train()
    x, y = (np.concatenate(parts) for parts in zip(*(circles(spec.source)[2:] for spec in SILOS), strict=True))
    with torch.no_grad():
        outputs = result.module(torch.from_numpy(x.astype(np.float32)))
    assert float((outputs.argmax(1).numpy() == y).mean()) == pytest.approx(result.metrics["federated.accuracy"])


def test_the_history_is_a_table_with_a_row_per_round():
    history = train().history()
    assert list(history.index) == [0, 1, 2, 3, 4, 5]
    assert history["num_participants"].tolist() == [0, 2, 2, 2, 2, 2]
    assert history["silo.north.loss"].notna().all()


def test_equal_seeds_give_equal_bits_and_other_seeds_others():
    states = [train(training=replace(TRAINING, seed=seed)).module.state_dict()["0.weight"] for seed in (0, 0, 1)]
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


@pytest.mark.parametrize("strategy", ["fed_prox", "scaffold", "fed_buff", "fed_adam", "median"])
def test_every_kind_of_strategy_trains_it(strategy):
    result = train(strategy=strategy)
    assert result.metrics["federated.loss"] < result.records[0].metrics["federated.loss"]


def test_images_masks_and_atomic_numbers_reach_the_network_as_they_are():
    def samples(source):  # noqa: ARG001
        return torch.arange(6).reshape(3, 2), torch.ones(3, 4, dtype=torch.int64)

    task = TorchTask(lambda: nn.Embedding(9, 5), lambda out, y: (out.sum() - y.sum()) ** 2, samples)
    rows = task.load(SiloSpec("a", None))
    assert (rows.features.dtype, rows.targets.dtype) == (np.int64, np.int64)
    assert (rows.features.shape, rows.targets.shape, rows.held_out_features.shape) == ((3, 2), (3, 4), (0, 2))


def test_columns_can_be_standardised_over_all_silos():
    def shifted(source):
        x, y, *held_out = circles(source)
        return 1000.0 + 50.0 * x, y, 1000.0 + 50.0 * held_out[0], held_out[1]

    plain = train(replace(TASK, samples=shifted)).metrics["federated.accuracy"]
    scaled = train(replace(TASK, samples=shifted, standardises=True)).metrics["federated.accuracy"]
    assert scaled > 0.85
    assert np.isnan(plain) or plain < 0.85  # all outputs alike: not marked


def _raises(source):  # noqa: ARG001
    raise FileNotFoundError("no such file: crystals.npz")


WRONG = {
    "raises": (_raises, "FileNotFoundError: no such file: crystals.npz"),
    "three things": (lambda _: (np.zeros(3),) * 3, "must return .* not 3 things"),
    "a list": (lambda _: [1, 2], "not list"),
    "unequal": (lambda _: (np.zeros((3, 2)), np.zeros(4)), "3 inputs for 4 targets"),
    "nan": (lambda _: (np.full((3, 2), np.nan), np.zeros(3)), "6 values that are not finite"),
}


@pytest.mark.parametrize("what", WRONG)
def test_samples_that_cannot_be_used_are_refused_by_the_silos_name(what):
    samples, said = WRONG[what]
    with pytest.raises(DataError, match=f"silo 'north': .*{said}"):
        train(replace(TASK, samples=samples))


def test_silos_need_names_of_their_own():
    with pytest.raises(ConfigError, match="must differ"):
        train(silos=[SILOS[0], SILOS[0]])
    with pytest.raises(ConfigError, match="silos is empty"):
        train(silos=[])


def test_a_score_named_as_another_metric_is_refused_because_it_would_stand_in_its_place():
    for scores in ({"loss": hit}, {"hits": hit, Metric("hits", "%", True, 1): hit}):
        with pytest.raises(ConfigError, match=f"'{next(iter(scores))}'.* are there twice"):
            replace(TASK, scores=scores)


def test_mean_scores_of_parts_add_up_to_those_of_the_whole():
    values = np.random.default_rng(0).normal(size=30)
    parts = [MeanScores.of({"loss": values[:7]}), MeanScores.of({"loss": values[7:]})]
    assert merged(parts).values()["loss"] == pytest.approx(values.mean())
    assert np.isnan(MeanScores(0, {"loss": 0.0}).values()["loss"])
    with pytest.raises(ValueError, match="one value per sample"):
        MeanScores.of({"a": values[:3], "b": values[:4]})
