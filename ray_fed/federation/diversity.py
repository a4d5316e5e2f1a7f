"""How unlike the silos are, measured on moves that the coordinator sees anyway: no message more.

Gradient diversity (Yin et al. 2018, Definition 2, weighted by rows) of the silos' moves in the first round, in which
all start from one model that has learned nothing:

    sum_i a_i |w_i - w|^2 / |sum_i a_i (w_i - w)|^2,   a_i the share of the rows

1 where all silos move alike; with mini-batches, and rows dealt at random, a little more.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from math import fsum, isfinite

import numpy as np

from ray_fed.exact_sum import ExactWeightedSum
from ray_fed.federation.messages import SummedUpdate, Update, Vector

DIVERSITY = "diversity"
"""Name of the figure in the metrics of a job's first round."""
UNLIKE = 2.0
"""Above it silos are unlike. Rows dealt at random came to 1.1 to 1.75, more where silos are small and the round long:
so silos below it may be unlike, too. Mixed unevenly they came to 1.6, by anion and sorted by target to 2.2 to 4.0
(benchmarks/unlike_silos.md)."""

MOST_PARAMETERS = 1 << 23
"""That are looked at: of a larger model every second, third, ..., so that its coordinator needs no more room."""


@dataclass
class Diversity:
    """Looks at the updates of one round as they go by; the order in which they come changes no bit."""

    sent: Mapping[str, Vector]
    """What each silo started the round from."""
    num_parameters: int
    """Of the vectors' values those that are parameters: the first ones."""
    squares: dict[str, tuple[int, float]] = field(default_factory=dict, init=False)
    """Silo -> its rows, the square of its move."""
    is_hidden: bool = field(default=False, init=False)
    """Whether sums came, of which single moves are not seen."""

    def __post_init__(self) -> None:
        step = -(-self.num_parameters // MOST_PARAMETERS) or 1
        self._looked_at = slice(0, self.num_parameters, step)
        self._total = ExactWeightedSum(len(range(0, self.num_parameters, step)))

    def noted(self, updates: Iterable[Update]) -> Iterator[Update]:
        for update in updates:
            if isinstance(update, SummedUpdate):
                self.is_hidden = True
            else:
                self._add(update)
            yield update

    def _add(self, update: Update) -> None:
        move = update.vector[self._looked_at] - self.sent[update.silo][self._looked_at]
        if np.isfinite(move).all():  # else the average will say so
            self.squares[update.silo] = update.num_examples, float(np.square(move, dtype=np.float64).sum())
            self._total.add(move, update.num_examples)

    def value(self) -> float | None:
        """Return the diversity; None where single moves are not seen, fewer than two came, or none moved."""
        if self.is_hidden or len(self.squares) < 2:
            return None
        rows = sum(count for count, _ in self.squares.values())
        mean = fsum(count * square / rows for count, square in self.squares.values())
        of_mean = float(np.square(self._total.mean(), dtype=np.float64).sum())
        found = mean / of_mean if of_mean else float("inf")
        return found if isfinite(found) else None
