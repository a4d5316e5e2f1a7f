"""Networks trained in stacks are the networks one would get alone."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_fed.errors import ConfigError, DataError
from ray_fed.learning.models import seeded_mlp
from ray_fed.model_library.batched_training import Schedule, TrainingRows, stacks, train_pyramids
from ray_fed.model_library.stacked_networks import Pyramid, PyramidRanges, StackedNetworks, random_pyramids, unpadded
from ray_fed.randomness import generator


@pytest.fixture(scope="module")
def rows() -> TrainingRows:
    draw = np.random.default_rng(3)
    inputs = draw.normal(size=(130, 6))
    targets = np.tanh(inputs[:, 0]) + 0.3 * inputs[:, 1] ** 2
    return TrainingRows(inputs[:100], targets[:100], inputs[100:], targets[100:])


def trained_alone(rows: TrainingRows, pyramid: Pyramid, schedule: Schedule) -> tuple[torch.nn.Module, int, float]:
    """The usual loop, written independently: nn.Module, autograd, torch.optim.Adam, early stopping."""
    network = seeded_mlp(rows.inputs.shape[1], pyramid.hidden, pyramid.seed)
    optimizer = torch.optim.Adam(network.parameters(), lr=pyramid.learning_rate)
    x, y = torch.tensor(rows.inputs, dtype=torch.float32), torch.tensor(rows.targets, dtype=torch.float32)
    vx = torch.tensor(rows.validation_inputs, dtype=torch.float32)
    vy = torch.tensor(rows.validation_targets, dtype=torch.float32)
    best, best_epoch, kept = float("inf"), 0, None
    for epoch in range(1, pyramid.epochs + 1):
        order = torch.from_numpy(generator(schedule.seed, "library batches", epoch).permutation(len(x)))
        for chosen in order.split(schedule.batch_size):
            optimizer.zero_grad()
            torch.nn.functional.mse_loss(network(x[chosen]).squeeze(1), y[chosen]).backward()
            optimizer.step()
        with torch.no_grad():
            loss = float((network(vx).squeeze(1) - vy).square().mean())
        if loss < best:
            best, best_epoch = loss, epoch
            kept = {name: tensor.clone() for name, tensor in network.state_dict().items()}
        if epoch - best_epoch >= schedule.patience:
            break
    network.load_state_dict(kept)
    return network, best_epoch, best


def test_a_stack_of_unequal_networks_gives_what_each_gives_alone(rows):
    pyramids = [
        Pyramid((9, 4), 3e-3, 6, 1), Pyramid((5, 5), 1e-2, 4, 2), Pyramid((7, 3), 1e-3, 6, 3), Pyramid((8,), 5e-3, 5, 4)
    ]  # fmt: skip
    schedule = Schedule(batch_size=16, patience=50, seed=7)
    for pyramid, result in zip(pyramids, train_pyramids(rows, pyramids, schedule), strict=True):
        network, best_epoch, best = trained_alone(rows, pyramid, schedule)
        assert result.best_epoch == best_epoch
        assert result.validation_loss == pytest.approx(best, rel=1e-4)
        for name, tensor in network.state_dict().items():
            np.testing.assert_allclose(result.arrays[name], tensor.numpy(), rtol=2e-3, atol=2e-4)


def test_each_network_stops_early_by_itself_and_dropping_it_disturbs_no_other(rows):
    fast, slow = Pyramid((8, 4), 8e-2, 60, 5), Pyramid((8, 4), 5e-4, 25, 6)
    schedule = Schedule(batch_size=20, patience=4, seed=1)
    together = train_pyramids(rows, [fast, slow, fast, fast], schedule)
    alone = train_pyramids(rows, [slow], schedule)[0]
    assert together[0].epochs == together[0].best_epoch + 4 < 60
    assert together[1].epochs == alone.epochs > together[0].epochs
    for name, array in alone.arrays.items():
        np.testing.assert_allclose(together[1].arrays[name], array, rtol=1e-3, atol=1e-5)


def test_padding_stays_exactly_zero(rows):
    networks = StackedNetworks([Pyramid((9, 2), 1e-2, 1, 0), Pyramid((3, 3), 1e-2, 1, 1)], 6)
    with torch.no_grad():
        for _ in range(5):
            networks.step(torch.tensor(rows.inputs[:20]).float(), torch.tensor(rows.targets[:20]).float()[:, None])
    weight = networks.weights[0]
    assert weight[1, 3:].abs().max() == 0
    assert weight[1, :3].abs().min() > 0
    assert networks.biases[1][0, 2:].abs().max() == 0


def test_unpadded_arrays_are_those_of_the_seeded_network():
    pyramid = Pyramid((5, 3), 1e-3, 1, 11)
    networks = StackedNetworks([Pyramid((8, 8), 1e-3, 1, 0), pyramid], 4)
    arrays = unpadded(networks.tensors(networks.parameters), 1, pyramid)
    for name, tensor in seeded_mlp(4, (5, 3), 11).state_dict().items():
        np.testing.assert_array_equal(arrays[name], tensor.numpy())


def test_a_diverged_network_is_reported_and_harms_no_other(rows):
    wild, calm = Pyramid((8, 4), 1e30, 3, 0), Pyramid((8, 4), 1e-3, 3, 1)
    result = train_pyramids(rows, [wild, calm], Schedule())
    assert np.isnan(result[0].validation_loss)
    assert np.isfinite(result[1].validation_loss)


@settings(max_examples=25)
@given(count=st.integers(1, 60), budget=st.integers(100, 30_000))
def test_stacks_hold_every_network_once_and_one_depth_each(count, budget):
    pyramids = random_pyramids(count, PyramidRanges(), 0, "law")
    found = list(stacks(pyramids, 10, budget))
    assert sorted(at for stack in found for at in stack) == list(range(count))
    assert all(len({len(pyramids[at].hidden) for at in stack}) == 1 for stack in found)


def test_random_pyramids_fall_and_the_first_do_not_depend_on_how_many_are_asked_for():
    many = random_pyramids(40, PyramidRanges(), 5, "x")
    assert random_pyramids(13, PyramidRanges(), 5, "x") == many[:13]
    assert all(list(pyramid.hidden) == sorted(pyramid.hidden, reverse=True) for pyramid in many)
    assert all(3 <= len(pyramid.hidden) <= 6 for pyramid in many)
    assert len({pyramid.seed for pyramid in many}) == 40


def test_wrong_hyperparameters_and_unusable_rows_are_refused(rows):
    with pytest.raises(ConfigError, match="learning_rate=-1"):
        Pyramid((3,), -1, 1, 0)
    with pytest.raises(ConfigError, match="depth=3,2"):
        PyramidRanges(depth=(3, 2))
    with pytest.raises(DataError, match="inputs holds NaN"):
        TrainingRows(rows.inputs * np.nan, rows.targets, rows.inputs, rows.targets)
