"""Scores of a model with several targets: those of each, under the target's name."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from ray_fed.metrics.classification import ClassificationSums
from ray_fed.metrics.metric import Metric, in_one_line
from ray_fed.metrics.scores import Coin, RegressionSums, Resolution

TargetScores = RegressionSums | ClassificationSums


def metrics_of_targets(by_target: Mapping[str, tuple[Metric, ...]]) -> tuple[Metric, ...]:
    """Return the metrics of all targets, "<target>.<metric>"; of one target alone as they are."""
    if len(by_target) == 1:
        return next(iter(by_target.values()))
    return tuple(
        replace(metric, name=f"{target}.{metric.name}", label=f"{metric.title} of {target}")
        for target, metrics in by_target.items()
        for metric in metrics
    )


@dataclass(frozen=True)
class SeveralScores:
    """Law: of(A ++ B) == of(A) + of(B) as its parts have it, for any split of the rows."""

    num_examples: int
    """Rows, whichever of their targets are known."""
    parts: Mapping[str, TargetScores]
    """Target -> scores over the rows that have it."""

    def __repr__(self) -> str:
        return f"SeveralScores({self.num_examples} rows: {in_one_line(self.values())})"

    def values(self) -> dict[str, float]:
        """Return "<target>.<metric>" -> value; NaN of a target that no row has."""
        return {
            f"{target}.{name}": value
            for target, scores in self.parts.items()
            for name, value in scores.values().items()
        }

    def undefined(self) -> dict[str, str]:
        """Return "<target>.<metric>" -> why it is not defined, of classes."""
        return {
            f"{target}.{name}": reason
            for target, scores in self.parts.items()
            if isinstance(scores, ClassificationSums)
            for name, reason in scores.undefined().items()
        }

    def __add__(self, other: "SeveralScores") -> "SeveralScores":
        if self.parts.keys() != other.parts.keys():
            raise ValueError("scores of different targets do not add up")
        parts = {target: scores + other.parts[target] for target, scores in self.parts.items()}  # type: ignore[operator]
        return SeveralScores(self.num_examples + other.num_examples, parts)

    def released(self, resolution: Resolution, coin: Coin) -> "SeveralScores":
        """Return what a silo tells: of each target what it would tell of it alone."""
        parts = {target: resolution.released(part, _within(coin, target)) for target, part in self.parts.items()}
        return SeveralScores(self.num_examples, parts)  # type: ignore[arg-type]


def _within(coin: Coin, target: str) -> Coin:
    return lambda name: coin(f"{target}.{name}")
