"""Who was trained on, from losses."""

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from ray_fed.leakage.membership import exposure_bits, membership, row_losses
from ray_fed.learning.models import seeded_mlp
from ray_fed.materials.property_task import PropertyTask


def test_the_auc_is_that_of_the_library_with_ties_too():
    random = np.random.default_rng(0)
    members, others = random.integers(0, 9, 40), random.integers(2, 12, 70)
    found = membership("a", "model", members, others)
    labels = np.repeat([1, 0], [40, 70])
    assert found.auc == pytest.approx(roc_auc_score(labels, -np.concatenate([members, others])))
    low, high = found.interval
    assert 0.5 < low < found.auc < high < 1


def test_a_record_is_exposed_by_as_many_bits_as_halve_the_others():
    others = np.arange(1.0, 16.0)
    np.testing.assert_allclose(exposure_bits(np.array([0.0, 1.0, 7.5, 99.0]), others), [4, 3, 1, 0])


def test_chance_is_no_leak_and_a_model_that_learned_its_rows_by_heart_is_one():
    torch.manual_seed(0)
    rows, targets = torch.randn(1000, 8), torch.randn(1000, 1)
    network, task = seeded_mlp(8, (64, 64), 0), PropertyTask()
    outsiders = membership("a", "fresh", *_losses(task, network, rows, targets))
    assert outsiders.auc == pytest.approx(0.5, abs=0.06)
    assert outsiders.share == max(0.0, 2 * outsiders.auc - 1) * (outsiders.interval[0] > 0.5)
    rows, targets = rows[:120], targets[:120]
    optimizer = torch.optim.Adam(network.parameters(), 1e-2)
    for _ in range(200):
        optimizer.zero_grad()
        task.loss(network(rows[::2]), targets[::2]).backward()
        optimizer.step()
    learned = membership("a", "trained", *_losses(task, network, rows, targets))
    assert learned.share > 0.8


def _losses(task, network, rows, targets):
    with torch.no_grad():
        losses, mean = row_losses(task, network(rows), targets), float(task.loss(network(rows), targets))
    assert losses.shape == (len(rows),)
    assert losses.mean() == pytest.approx(mean, rel=1e-5)
    return losses[::2], losses[1::2]
