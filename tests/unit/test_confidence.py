"""Chances calibrated from counts: as often right as they say."""

import numpy as np
import pytest

from ray_fed.learning.confidence import Sureness, counted_odds, sureness_of


def overconfident(rng, num_rows, num_classes, factor):
    """Chances of a network whose logits are `factor` times too large, and the labels."""
    logits = rng.normal(size=(num_rows, num_classes)) * 1.5
    true = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    labels = (rng.random(num_rows)[:, None] > np.cumsum(true, axis=1)).sum(axis=1).astype(float)
    said = np.exp(factor * logits)
    return said / said.sum(axis=1, keepdims=True), labels


@pytest.mark.parametrize("factor", [0.5, 1.0, 3.0])
def test_the_sureness_of_two_classes_is_how_much_too_sure_the_network_was(factor):
    rng = np.random.default_rng(0)
    silos = [overconfident(rng, n, 2, factor) for n in (200, 800, 3000)]
    found = sureness_of(sum(counted_odds(*silo, 5) for silo in silos))
    assert found.slope == pytest.approx(1 / factor, rel=0.15)
    assert found.offset == pytest.approx(0, abs=0.15)
    assert found.num_rows == 4000


@pytest.mark.parametrize("num_classes", [2, 4])
def test_calibrated_chances_are_right_as_often_as_they_say(num_classes):
    rng = np.random.default_rng(1)
    sureness = sureness_of(counted_odds(*overconfident(rng, 3000, num_classes, 3.0), 5))
    chances, labels = overconfident(rng, 20_000, num_classes, 3.0)
    accuracy = (chances.argmax(axis=1) == labels).mean()
    assert chances.max(axis=1).mean() - accuracy > 0.1
    calibrated = sureness.applied(chances)
    assert calibrated.max(axis=1).mean() == pytest.approx(accuracy, abs=0.02)
    np.testing.assert_allclose(calibrated.sum(axis=1), 1)
    assert (np.take_along_axis(calibrated, chances.argmax(axis=1)[:, None], 1)[:, 0] >= calibrated.max(1) - 1e-9).all()


def test_a_sureness_of_one_changes_nothing():
    chances = np.array([[0.2, 0.7, 0.1], [1.0, 0.0, 0.0]])
    np.testing.assert_allclose(Sureness().applied(chances), chances, atol=1e-12)


def test_too_few_wrong_predictions_leave_the_chances_as_they_are():
    chances = np.array([[0.9, 0.1]] * 50)
    assert sureness_of(counted_odds(chances, np.zeros(50), 5)).num_rows == 0


def test_rows_without_a_label_count_nowhere():
    chances = np.array([[0.9, 0.1]] * 30)
    labels = np.array([0.0] * 10 + [np.nan] * 20)
    assert counted_odds(chances, labels, 5).sum() == 10
