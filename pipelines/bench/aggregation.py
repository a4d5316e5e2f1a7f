"""The exact weighted mean of updates against the plain one: what it costs that arrival order changes no bit."""

import statistics
import time
from collections.abc import Callable

import numpy as np

from pipelines.bench.measurement import Measurement
from ray_fed.exact_sum import ExactWeightedSum

SILOS = 4


def measured(repeats: int) -> list[Measurement]:
    """Return the rates for a small and a large model, in million parameters averaged per second."""
    return [one for parameters in (55_201, 5_000_000) for one in _of(parameters, repeats)]


def _of(parameters: int, repeats: int) -> list[Measurement]:
    drawn = np.random.default_rng(0)
    vectors = [drawn.normal(size=parameters).astype(np.float32) for _ in range(SILOS)]
    weights = [1000 * number for number in range(1, SILOS + 1)]

    def exact() -> np.ndarray:
        total = ExactWeightedSum(parameters)
        for vector, weight in zip(vectors, weights, strict=True):
            total.add(vector, weight)
        return total.mean()

    def plain() -> np.ndarray:
        pairs = zip(vectors, weights, strict=True)
        return sum(vector * np.float32(weight / sum(weights)) for vector, weight in pairs)  # type: ignore[return-value]

    rates = {way: SILOS * parameters / 1e6 / _seconds(work, repeats) for way, work in (("a", plain), ("b", exact))}
    what, unit = f"average {SILOS} silos, {parameters:,} parameters", "M parameters/s"
    return [
        Measurement(what, "sum of float32 products", rates["a"], unit, rates["a"]),
        Measurement(what, "exact sum, any order of arrival", rates["b"], unit, rates["a"]),
    ]


def _seconds(work: Callable[[], object], repeats: int) -> float:
    timings = []
    for _ in range(repeats + 1):  # the first one warms up
        start = time.perf_counter()
        work()
        timings.append(time.perf_counter() - start)
    return statistics.median(timings[1:])
