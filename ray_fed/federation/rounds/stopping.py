"""Early stopping of a federation: after an exchange the silos count how wrong the model is on rows kept back from all
training; where it has not become better for some looks, the rounds end, and the best exchange is the result (Prechelt
1998).

    Stopping.asks(vector)  -> questions that silos answer with counts (Task.countings)
    Stopping.loss(answers) -> how wrong the model is, by the sums of all silos' counts
    begun / looked / is_over: what is remembered, as part of the state of a round: a run that is gone on with ends alike
"""

import math
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from ray_fed.federation.counted_rows import CountedRows
from ray_fed.federation.messages import Vector
from ray_fed.federation.strategies import State

LOOKS, BEST = "early_stopping.looks", "early_stopping.best"
LOSS, BEST_ROUND = "early_stopping.loss", "early_stopping.best_round"
"""Metrics of a record: at each look, and of the last one."""
Memory = dict[str, np.ndarray]
"""{LOOKS: [least loss, its round, looks since, last loss], BEST: the vector of that round}"""


class Stopping(Protocol):
    """When a federation stops."""

    @property
    def patience(self) -> int:
        """Looks without a better one after which it stops."""
        ...

    def asks(self, vector: Vector) -> Sequence[tuple[str, tuple]]:
        """Return (question, what is given with it) about a model."""
        ...

    def loss(self, answers: Sequence[CountedRows]) -> float:
        """Return how wrong the model is; NaN where nothing was counted."""
        ...


def begun(vector: Vector) -> Memory:
    return {LOOKS: np.array([math.inf, 0.0, 0.0, math.inf]), BEST: vector.copy()}


def looked(memory: Memory, loss: float, server_round: int, vector: Vector) -> Memory:
    """Return what is remembered after a look at the vector of a round."""
    least, best_round, since, _ = memory[LOOKS].tolist()
    if loss < least:
        return {LOOKS: np.array([loss, float(server_round), 0.0, loss]), BEST: vector.copy()}
    return {LOOKS: np.array([least, best_round, since + 1, loss]), BEST: memory[BEST]}


def is_over(memory: Memory, rule: Stopping) -> bool:
    return bool(memory[LOOKS][2] >= rule.patience)


def told(memory: Memory, is_last: bool) -> dict[str, float]:
    """Return the metrics of a record: the loss at the last look and, in the end, which round is kept."""
    if not math.isfinite(memory[LOOKS][3]):
        return {}
    _, best_round, _, loss = memory[LOOKS].tolist()
    return {LOSS: loss, **({BEST_ROUND: best_round} if is_last else {})}


def parted(state: State | None) -> tuple[State | None, Memory]:
    """Return a checkpoint's state as the strategy has it, and what is remembered."""
    if state is None or LOOKS not in state:
        return state, {}
    return {name: value for name, value in state.items() if name not in (LOOKS, BEST)}, {
        name: state[name] for name in (LOOKS, BEST)
    }
