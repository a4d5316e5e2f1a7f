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


def noisy_rows() -> tuple[torch.Tensor, torch.Tensor]:
    """Few rows, much noise: a network learns them by heart."""
    random = np.random.default_rng(1)
    features = random.normal(size=(60, 8)).astype(np.float32)
    return torch.from_numpy(features), torch.from_numpy(
        features[:, :1] + random.normal(size=(60, 1)).astype(np.float32)
    )


def trained(plan: TrainingPlan, groups=GROUPS) -> tuple[list[np.ndarray], list[int], StoppingTrainer]:
    trainer = StoppingTrainer(network(), functional.mse_loss, *noisy_rows(), plan, "silo", groups)
    vector, vectors, steps = initial_vector(network(), "average"), [], []
    for server_round in range(1, plan.num_rounds + 1):
        vector, result = trainer.fit_round(vector, server_round)
        vectors.append(vector)
        steps.append(result.num_steps)
    return vectors, steps, trainer


def loss_on_rows_kept_back(trainer: StoppingTrainer, vector: np.ndarray) -> float:
    features, targets = noisy_rows()
    kept = torch.from_numpy(kept_back(GROUPS, trainer.plan, "silo"))
    return float(functional.mse_loss(trainer.predict(features[kept], vector), targets[kept]))


def test_training_stops_and_ends_with_the_best_parameters_seen():
    vectors, steps, trainer = trained(PLAN)
    num_trained = sum(step > 0 for step in steps)
    assert PATIENCE < num_trained < ROUNDS
    assert steps[num_trained:] == [0] * (ROUNDS - num_trained)
    losses = [loss_on_rows_kept_back(trainer, vector) for vector in vectors]
    assert losses[-1] == min(losses)
    assert int(np.argmin(losses)) == num_trained - 1 - PATIENCE
    np.testing.assert_array_equal(vectors[-1], vectors[num_trained - 1 - PATIENCE])


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
    plain = LocalTrainer(network(), functional.mse_loss, *noisy_rows(), plan, "silo")
    vector = initial_vector(network(), "average")
    for server_round in range(1, 5):
        vector, _ = plain.fit_round(vector, server_round)
    assert steps == [2] * 4
    np.testing.assert_array_equal(vectors[-1], vector)


def test_a_share_that_leaves_nothing_to_train_on_is_refused():
    for share in (-0.1, 0.6):
        with pytest.raises(ConfigError, match="validation_share"):
            TrainingPlan(0, 1, 1, 1, validation_share=share)
