"""Local training that stops where rows kept back say so."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from ray_fed.errors import ConfigError
from ray_fed.learning.early_stopping import PATIENCE, StoppingTrainer, kept_back
from ray_fed.learning.layout import initial_vector
from ray_fed.learning.trainer import LocalTrainer, TrainingPlan

ROUNDS = 60
PLAN = TrainingPlan(0, ROUNDS, 2, ROUNDS, learning_rate=0.02, validation_share=0.3)
GROUPS = [f"group {row % 20}" for row in range(60)]


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 1))


def noisy_rows(noise: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Few rows, much noise: a network learns them by heart."""
    random = np.random.default_rng(1)
    features = random.normal(size=(60, 8)).astype(np.float32)
    return torch.from_numpy(features), torch.from_numpy(
        features[:, :1] + noise * random.normal(size=(60, 1)).astype(np.float32)
    )


def trained(
    plan: TrainingPlan, groups=GROUPS, noise: float = 1.0
) -> tuple[list[np.ndarray], list[int], StoppingTrainer]:
    trainer = StoppingTrainer(network(), functional.mse_loss, *noisy_rows(noise), plan, "silo", groups)
    vector, vectors, steps = initial_vector(network(), "average"), [], []
    for server_round in range(1, plan.num_rounds + 1):
        vector, result = trainer.fit_round(vector, server_round)
        vectors.append(vector)
        steps.append(result.num_steps)
    return vectors, steps, trainer


def plainly_trained(plan: TrainingPlan, num_rounds: int, noise: float = 1.0) -> np.ndarray:
    """The parameters after training on all rows."""
    plain = LocalTrainer(network(), functional.mse_loss, *noisy_rows(noise), plan, "silo")
    vector = initial_vector(network(), "average")
    for server_round in range(1, num_rounds + 1):
        vector, _ = plain.fit_round(vector, server_round)
    return vector


def loss_on_rows_kept_back(trainer: StoppingTrainer, vector: np.ndarray) -> float:
    features, targets = noisy_rows()
    kept = torch.from_numpy(kept_back(GROUPS, trainer.plan, "silo"))
    return float(functional.mse_loss(trainer.predict(features[kept], vector), targets[kept]))


def test_training_is_tried_until_it_does_not_get_better_and_then_done_on_all_rows_for_as_long_as_was_best():
    vectors, steps, trainer = trained(PLAN)
    num_tried = sum(step > 0 for step in steps[:-1])
    assert PATIENCE < num_tried < ROUNDS - 1
    assert steps[num_tried:-1] == [0] * (ROUNDS - 1 - num_tried)
    losses = [loss_on_rows_kept_back(trainer, vector) for vector in vectors[:-1]]
    best_round = int(np.argmin(losses)) + 1
    assert best_round == num_tried - PATIENCE
    assert steps[-1] == 2 * best_round
    np.testing.assert_array_equal(vectors[-1], plainly_trained(PLAN, best_round))


def test_where_longer_is_always_better_it_is_plain_training_bit_for_bit():
    plan = replace(PLAN, epochs=6, num_rounds=6, learning_rate=1e-3)
    np.testing.assert_array_equal(trained(plan, noise=0.0)[0][-1], plainly_trained(plan, 6, noise=0.0))


def test_rows_kept_back_are_whole_groups_and_are_not_trained_on():
    kept = kept_back(GROUPS, PLAN, "silo")
    assert 0 < kept.sum() < 60
    for group in set(GROUPS):
        assert len({bool(kept[row]) for row in range(60) if GROUPS[row] == group}) == 1
    _, _, trainer = trained(PLAN)
    assert len(trainer.features) == int((~kept).sum())
    assert (kept_back(GROUPS, PLAN, "another") != kept).any()


def test_a_round_that_is_done_again_from_its_local_state_ends_as_it_did():
    whole, _, _ = trained(PLAN)
    first = StoppingTrainer(network(), functional.mse_loss, *noisy_rows(), PLAN, "silo", GROUPS)
    vector = initial_vector(network(), "average")
    for server_round in range(1, 11):
        vector, _ = first.fit_round(vector, server_round)
    state = {name: tensor.clone() for name, tensor in first.local_state().items()}
    again = StoppingTrainer(network(), functional.mse_loss, *noisy_rows(), PLAN, "silo", GROUPS)
    for name, tensor in again.local_state().items():
        tensor.copy_(state[name])
    for server_round in range(11, ROUNDS + 1):
        vector, _ = again.fit_round(vector, server_round)
    np.testing.assert_array_equal(vector, whole[-1])
    again.forget()
    assert float(again.local_state()["looks"][0]) == float("inf")


def test_with_few_groups_every_round_is_trained_on_all_rows():
    plan = replace(PLAN, num_rounds=4, epochs=4)
    vectors, steps, _ = trained(plan, ["one"] * 30 + ["other"] * 30)
    assert steps == [2] * 4
    np.testing.assert_array_equal(vectors[-1], plainly_trained(plan, 4))


def test_a_share_that_leaves_nothing_to_train_on_is_refused():
    for share in (-0.1, 0.6):
        with pytest.raises(ConfigError, match="validation_share"):
            TrainingPlan(0, 1, 1, 1, validation_share=share)
