"""kill -9 at any instant, then `ray-fed resume`, of a run in one process."""

import random
import time

import pytest

from tests.commands import finished, wait_until
from tests.integration.broken_runs import assert_same, lines, lines_at, start, start_resuming


@pytest.mark.parametrize("number", [1, 3])
def test_a_run_killed_at_random_instants_again_and_again_ends_with_the_same_bytes(tmp_path, unbroken, number):
    chance = random.Random(number)
    process = start(tmp_path, "local")
    for _ in range(1 + number):
        target = lines_at(chance, tmp_path, unbroken)
        wait_until(lambda target=target: lines(tmp_path) >= target, process)
        time.sleep(chance.random() * 0.02)
        process.kill()
        process.communicate()
        process = start_resuming(tmp_path)
    done = finished(process)
    assert done.returncode == 0, done.stderr
    assert_same(tmp_path, unbroken)
