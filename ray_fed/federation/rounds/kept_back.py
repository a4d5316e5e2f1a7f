"""Rows that silos keep back from all training: after a round they count how wrong the model is there, and the rounds
end where that gets no better (`best_round`)."""

from collections.abc import Callable, Sequence
from typing import Protocol

from ray_fed.config import require
from ray_fed.federation.counted_rows import CountedRows
from ray_fed.federation.messages import Vector
from ray_fed.federation.strategies import Models

KEPT_BACK, KEPT_ROUND = "kept_back.loss", "kept_back.best_round"
"""Metrics: of an evaluated round how wrong its model is on these rows; of the last one, whose model is the outcome."""
Ask = Callable[[str, tuple], CountedRows]


class KeptBack(Protocol):
    """What is asked about rows kept back."""

    def asks(self, vector: Vector) -> Sequence[tuple[str, tuple]]:
        """Return (question of the task's countings, what is given with it) about a model."""
        ...

    def loss(self, answers: Sequence[CountedRows]) -> float:
        """Return how wrong the model is; NaN where nothing was counted."""
        ...


def asked(rows: KeptBack, ask: Ask, models: Models, size: int) -> tuple[dict[str, float], dict[str, str]]:
    """Return the metric of a round's one model, of whose vector the first `size` values are the network; and silo ->
    why of those that tell nothing of their rows. ConfigError where none tells anything."""
    require(len(models) == 1, "early_stopping: this strategy makes a model for each silo; give --early-stopping no")
    (vector,) = models.values()
    answers = [ask(*question) for question in rows.asks(vector[:size])]
    missing = {silo: why for answer in answers for silo, why in answer.missing.items()}
    loss = rows.loss(answers)
    why = "; ".join(f"silo '{silo}': {reason}" for silo, reason in missing.items()) or "too few rows in each silo"
    require(loss == loss, f"early_stopping: nothing is told of rows kept back: {why}; give --early-stopping no")
    return {KEPT_BACK: loss}, {silo: f"early stopping: {why}" for silo, why in missing.items()}
