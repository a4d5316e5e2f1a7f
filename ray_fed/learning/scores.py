"""What an evaluation of a model comes to: sums over samples that add up across silos."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Protocol, TypeVar

import numpy as np

Own = TypeVar("Own", bound="Scores")


class Scores(Protocol):
    """Law: of(A ++ B) == of(A) + of(B) up to rounding, for any split of the samples."""

    @property
    def num_examples(self) -> int: ...

    def values(self) -> dict[str, float]:
        """Return the metrics by name."""
        ...

    def __add__(self: Own, other: Own, /) -> Own: ...


@dataclass(frozen=True)
class MeanScores:
    """Metrics that are means over samples: loss, accuracy, intersection over union per image."""

    num_examples: int
    sums: Mapping[str, float]

    @classmethod
    def of(cls, per_sample: Mapping[str, np.ndarray]) -> "MeanScores":
        """Add up arrays [samples]; all must have the same length."""
        lengths = {name: len(values) for name, values in per_sample.items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"scores must have one value per sample, got {lengths}")
        sums = {name: float(np.asarray(values, np.float64).sum()) for name, values in per_sample.items()}
        return cls(next(iter(lengths.values()), 0), sums)

    def values(self) -> dict[str, float]:
        n = self.num_examples
        return {name: total / n if n else float("nan") for name, total in self.sums.items()}

    def __add__(self, other: "MeanScores") -> "MeanScores":
        sums = {name: total + other.sums[name] for name, total in self.sums.items()}
        return MeanScores(self.num_examples + other.num_examples, sums)


def merged(parts: Iterable[Own]) -> Own:
    """Return the scores of the union, merged in the order given; ValueError without any."""
    found = list(parts)
    if not found:
        raise ValueError("no scores to merge")
    return reduce(add, found)
