"""What an evaluation of a model comes to: metrics, sums over samples that add up across silos, and how exactly these
are told."""

from ray_fed.metrics.classification import ClassificationSums, classification_metrics
from ray_fed.metrics.metric import (
    LOSS,
    METRIC_NAME,
    RESERVED,
    TRAIN_LOSS,
    Metric,
    in_one_line,
    reported,
)
from ray_fed.metrics.scores import (
    FEWEST_ROWS,
    MeanScores,
    RegressionSums,
    Resolution,
    Scores,
    coin_of,
    merged,
    on_grid,
    regression_metrics,
    secret_of,
)
from ray_fed.metrics.several import SeveralScores, metrics_of_targets

__all__ = [
    "FEWEST_ROWS", "LOSS", "METRIC_NAME", "RESERVED", "TRAIN_LOSS", "ClassificationSums", "MeanScores", "Metric",
    "RegressionSums", "Resolution", "Scores", "SeveralScores", "classification_metrics", "coin_of", "in_one_line",
    "merged", "metrics_of_targets", "on_grid", "regression_metrics", "reported", "secret_of",
]  # fmt: skip
