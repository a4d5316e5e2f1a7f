"""For tests that start no Ray."""

import pytest
import torch

from ray_fed.privacy.noise import TEST_NOISE


@pytest.fixture(autouse=True)
def fresh_noise(monkeypatch):
    """A worker that has also collected the tests with Ray has repeatable noise for the processes of their cluster."""
    monkeypatch.delenv(TEST_NOISE, raising=False)


@pytest.fixture
def one_thread():
    """Sums of tensors in one order, and no threads that wait for each other on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
