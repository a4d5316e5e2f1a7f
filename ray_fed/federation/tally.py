"""What is added up under masks besides updates: the moments of columns, and metrics. As whole numbers, so that the sum
of what silos say has the bits that it would have without masks."""

from collections.abc import Mapping, Sequence
from fractions import Fraction
from math import isfinite

import numpy as np

from ray_fed.federation.messages import Metrics
from ray_fed.learning.standardisation import SQUARE_DIGITS, SUM_DIGITS, ColumnMoments, carried
from ray_fed.metrics import MeanScores, RegressionSums, Scores

MOMENTS = "moments"
"""Name under which the moments of all silos are added up; there is no session yet."""
COUNTS = "counts"
"""Name under which counts of all silos' rows are added up."""
METRICS = ".metrics"
"""What follows a session's name where its metrics are added up."""
UNIT = 2**66
LARGEST = 2.0**44
REGRESSION = "regression"
"""Stands for the names of `RegressionSums`, which are not those of metrics."""
SUMS_OF_REGRESSION = 4


def numbers_of_moments(moments: ColumnMoments) -> list[int]:
    return moments.digits.ravel().tolist()


def moments_of(numbers: Sequence[int], num_examples: int) -> ColumnMoments:
    """Return the moments whose numbers were added up."""
    digits = np.array(numbers, np.int64).reshape(-1, SUM_DIGITS + SQUARE_DIGITS)
    return ColumnMoments(num_examples, carried(digits))


def names_of(by_model: Mapping[str, Metrics]) -> list[str]:
    """Return the names of the sums that scores are made of, in order."""
    some = next(iter(by_model.values())).held_out
    return sorted(some.sums) if isinstance(some, MeanScores) else [REGRESSION]


def numbers_of_metrics(by_model: Mapping[str, Metrics]) -> list[int]:
    """Return counts and sums of all models' training and held-out rows; zeros for what was not marked, or is too large
    to be a metric."""
    return [
        number
        for metrics in by_model.values()
        for scores in (metrics.train, metrics.held_out)
        for number in _numbers(scores)
    ]


def metrics_of(numbers: Sequence[int], names: Sequence[str], models: Sequence[str]) -> dict[str, tuple[Scores, Scores]]:
    """Return model -> scores of all training rows, of all held-out rows; the numbers are those that were added up."""
    size = 1 + (SUMS_OF_REGRESSION if list(names) == [REGRESSION] else len(names))
    parts = [_scores(numbers[start : start + size], names) for start in range(0, len(numbers), size)]
    return {model: (parts[2 * place], parts[2 * place + 1]) for place, model in enumerate(models)}


def _numbers(scores: Scores) -> list[int]:
    n, exact = scores.num_examples, _exact_sums(scores)
    return [n, *(round(value * UNIT) for value in exact)] if n and exact else [0] * (1 + _num_sums(scores))


def _num_sums(scores: Scores) -> int:
    return len(scores.sums) if isinstance(scores, MeanScores) else SUMS_OF_REGRESSION


def _exact_sums(scores: Scores) -> list[Fraction]:
    """Return the sums, in the order of `names_of`; none where one is no number that can be added up."""
    if isinstance(scores, MeanScores):
        values = [scores.sums[name] for name in sorted(scores.sums)]
    else:
        assert isinstance(scores, RegressionSums)
        values = [scores.sum_absolute_error, scores.sum_squared_error, scores.mean_target, scores.m2_target]
    if not all(isfinite(value) and abs(value) < LARGEST for value in values):
        return []
    exact = [Fraction(value) for value in values]
    if isinstance(scores, RegressionSums):
        mean, deviations = exact[2:]
        exact[2:] = [scores.num_examples * mean, deviations + scores.num_examples * mean**2]
    return exact if all(abs(value) < LARGEST for value in exact) else []


def _scores(numbers: Sequence[int], names: Sequence[str]) -> Scores:
    n, sums = numbers[0], [Fraction(number, UNIT) for number in numbers[1:]]
    if list(names) != [REGRESSION]:
        return MeanScores(n, {name: float(value) for name, value in zip(names, sums, strict=True)})
    absolute, squared, total, squares = sums
    mean = total / n if n else Fraction(0)
    return RegressionSums(n, float(absolute), float(squared), float(mean), float(max(squares - mean * total, 0)))
