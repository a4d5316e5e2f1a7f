"""For tests that start no Ray."""

import pytest

from ray_fed.privacy.noise import TEST_NOISE


@pytest.fixture(autouse=True)
def fresh_noise(monkeypatch):
    """A worker that has also collected the tests with Ray has repeatable noise for the processes of their cluster."""
    monkeypatch.delenv(TEST_NOISE, raising=False)
