"""What is added up under masks besides updates: the moments of columns, and metrics. As whole numbers, so that the sum
of what silos say has the bits that it would have without masks."""

from collections.abc import Mapping, Sequence
from fractions import Fraction
from math import isfinite

import numpy as np

from ray_fed.federation.messages import Metrics
from ray_fed.learning.standardisation import SQUARE_DIGITS, SUM_DIGITS, ColumnMoments, carried
from ray_fed.metrics import ClassificationSums, MeanScores, RegressionSums, Scores, SeveralScores
from ray_fed.metrics.classification import num_bins, num_tables

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
CLASSES = "classes/"
"""Before the number of classes: stands for the names of `ClassificationSums`."""
OF = ": "
"""Between a target and the names of its sums; in no name of a metric."""


def numbers_of_moments(moments: ColumnMoments) -> list[int]:
    return moments.digits.ravel().tolist()


def moments_of(numbers: Sequence[int], num_examples: int) -> ColumnMoments:
    """Return the moments whose numbers were added up."""
    digits = np.array(numbers, np.int64).reshape(-1, SUM_DIGITS + SQUARE_DIGITS)
    return ColumnMoments(num_examples, carried(digits))


def names_of(by_model: Mapping[str, Metrics]) -> list[str]:
    """Return the names of the sums that scores are made of, in order."""
    return _names(next(iter(by_model.values())).held_out)


def _names(scores: Scores) -> list[str]:
    match scores:
        case MeanScores():
            return sorted(scores.sums)
        case ClassificationSums():
            return [f"{CLASSES}{scores.num_classes}"]
        case SeveralScores():
            return [f"{target}{OF}{name}" for target, part in scores.parts.items() for name in _names(part)]
    return [REGRESSION]


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
    size = _size(names)
    parts = [_scores(numbers[start : start + size], names) for start in range(0, len(numbers), size)]
    return {model: (parts[2 * place], parts[2 * place + 1]) for place, model in enumerate(models)}


def _by_target(names: Sequence[str]) -> dict[str, list[str]]:
    """Return target -> names of its sums; empty where there is but one target, which has no name."""
    found: dict[str, list[str]] = {}
    for target, is_named, name in (each.partition(OF) for each in names):
        if is_named:
            found.setdefault(target, []).append(name)
    return found


def _size(names: Sequence[str]) -> int:
    """Return how many numbers scores have whose sums have these names."""
    if by_target := _by_target(names):
        return 1 + sum(map(_size, by_target.values()))
    first = names[0] if names else ""
    if first.startswith(CLASSES):
        k = int(first.removeprefix(CLASSES))
        return 2 + k * k + 2 * num_tables(k) * num_bins(k)
    return 1 + (SUMS_OF_REGRESSION if list(names) == [REGRESSION] else len(names))


def _numbers(scores: Scores) -> list[int]:
    match scores:
        case ClassificationSums():
            shown = scores if scores.is_marked else ClassificationSums.none(scores.num_classes)
            return [shown.num_examples, shown.log_loss_steps, *shown.confusion, *shown.histograms]
        case SeveralScores():
            parts = [_numbers(part) for part in scores.parts.values()]
            return [scores.num_examples, *(number for part in parts for number in part)]
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
    if by_target := _by_target(names):
        return _several(numbers, by_target)
    if names and names[0].startswith(CLASSES):
        return _classification(numbers, int(names[0].removeprefix(CLASSES)))
    n, sums = numbers[0], [Fraction(number, UNIT) for number in numbers[1:]]
    if list(names) != [REGRESSION]:
        return MeanScores(n, {name: float(value) for name, value in zip(names, sums, strict=True)})
    absolute, squared, total, squares = sums
    mean = total / n if n else Fraction(0)
    return RegressionSums(n, float(absolute), float(squared), float(mean), float(max(squares - mean * total, 0)))


def _several(numbers: Sequence[int], by_target: Mapping[str, list[str]]) -> SeveralScores:
    parts, start = {}, 1
    for target, names in by_target.items():
        end = start + _size(names)
        parts[target], start = _scores(numbers[start:end], names), end
    return SeveralScores(numbers[0], parts)


def _classification(numbers: Sequence[int], k: int) -> ClassificationSums:
    rows, loss, *counts = numbers
    return ClassificationSums(rows, k, tuple(counts[: k * k]), tuple(counts[k * k :]), loss)
