"""What the sums of boosted trees show of single rows: of each silo's own sums, and of the sum of all.

A bin or leaf with one row of whose sum it is shows that row's residual: in a bin to half a level of the scale, in a
leaf to the last of 30 bits. With the forest's prediction, which an observer has who knows the row's features, that is
its target; in the first tree the prediction is one number for all, and everybody can take it off.

With a list of suspects every count is a linear equation: the rows in a bin are those of the listed records that fall
into it. All bins of all questions together name the records (`CountedSuspects`), however many rows are in a bin.

    h = A^T z      h [bins]: counts      A [listed, bins]: 0 or 1, where a listed record falls      z [listed]: 0 or 1
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
from scipy import linalg, sparse

from ray_fed.leakage.listed_records import Named, named
from ray_fed.trees.bins import as_float32
from ray_fed.trees.growth import Grower
from ray_fed.trees.member import ROW_WEIGHT, Member
from ray_fed.trees.question import CountedChild, Step, TreeQuestion
from ray_fed.trees.settings import TreeSettings
from ray_fed.trees.together import grown

SUM = "sum of all"
BINS_OF_A_FEATURE = 64
ROUNDING = 1e-10
"""Of eigenvalues, in units of the largest."""


@dataclass
class Exposure:
    """How much of a silo's rows is shown by some sums, of all trees that were looked at."""

    silo: str
    seen_in: str
    """Its own sums, or `SUM`."""
    num_rows: int
    alone_in_a_bin: set[int] = field(default_factory=set)
    """Rows that were, at any time, the only one in a bin."""
    alone_in_a_leaf: set[int] = field(default_factory=set)
    errors: list[float] = field(default_factory=list)
    """Of targets as they are read off bins with one row in the first tree, in the unit of the target."""
    named: Named | None = None
    """Rows named from a list of suspects; None without one."""

    @property
    def share_in_bins(self) -> float:
        return len(self.alone_in_a_bin) / max(1, self.num_rows)

    @property
    def share_in_leaves(self) -> float:
        return len(self.alone_in_a_leaf) / max(1, self.num_rows)

    @property
    def error(self) -> float:
        """Median of the errors; NaN where no target can be read."""
        return float(np.median(self.errors)) if self.errors else float("nan")


class CountedSuspects:
    """A list of suspected rows [listed, features], and what the counts in bins say of each."""

    def __init__(self, rows: np.ndarray, settings: TreeSettings):
        self.rows = np.unique(as_float32(rows), axis=0)
        self.member = Member(self.rows, np.zeros(len(self.rows)), settings)
        self._alike = np.zeros((len(self.rows), len(self.rows)))
        self._counted: dict[str, np.ndarray] = {}

    def see(self, question: TreeQuestion, slots_of: Mapping[str, np.ndarray], output: int) -> None:
        """Take in the counts of a question's bins: who -> the slots of their rows, int64 [rows, features]."""
        own = bins_of_rows(self.member, question, output)
        places = {name: slots[slots >= 0] for name, slots in slots_of.items()}
        size = 1 + max(int(part.max(initial=0)) for part in (own, *places.values()))
        row = np.repeat(np.arange(len(own)), (own >= 0).sum(1))
        falls = sparse.csr_matrix((np.ones(len(row)), (row, own[own >= 0])), (len(own), size))
        self._alike += (falls @ falls.T).toarray()
        for name, part in places.items():
            told = falls @ np.bincount(part, minlength=size)
            self._counted[name] = self._counted[name] + told if name in self._counted else told

    def named(self, seen: str, behind: np.ndarray, mine: np.ndarray) -> Named:
        """Return how many of the rows `mine` are named among those `behind` the counts of `seen`; [rows, features]."""
        values, vectors = linalg.eigh(self._alike)
        kept = values > ROUNDING * values[-1]
        inside = vectors[:, kept]
        strengths = inside @ ((inside.T @ self._counted[seen]) / values[kept])
        return named(strengths, self._positions(behind), self._positions(mine))[0]

    def _positions(self, rows: np.ndarray) -> np.ndarray:
        known = {row.tobytes(): number for number, row in enumerate(self.rows)}
        found = (known.get(row.tobytes()) for row in as_float32(rows))
        return np.array(sorted({place for place in found if place is not None}), np.intp)


def exposures(members: Mapping[str, Member], grower: Grower, suspects: np.ndarray | None = None) -> list[Exposure]:
    """Return what the sums of a forest show of each silo's rows: in its own sums, then in those of all silos.

    suspects: rows [listed, features] among which those of the silos stand; not tried without.
    """
    found = [Exposure(name, where, each.num_rows) for name, each in members.items() for where in ("its own sums", SUM)]
    listed = None if suspects is None else CountedSuspects(suspects, grower.settings)

    def look(question: TreeQuestion, _: list[np.ndarray]) -> None:
        if question.step in (Step.COUNT, Step.DONE):
            return
        if listed:
            listed.member.answer(question)  # to bring it where the question stands
        for output in range(grower.settings.outputs):
            _look(question, members, found, output, listed)

    grown(grower, list(members.values()), look)
    if listed:
        whole = np.concatenate([member.features for member in members.values()])
        for one in found:
            mine = members[one.silo].features
            is_sum = one.seen_in == SUM
            one.named = listed.named(SUM if is_sum else one.silo, whole if is_sum else mine, mine)
    return found


def _look(
    question: TreeQuestion, members: Mapping[str, Member], found: list[Exposure], output: int,
    listed: CountedSuspects | None,
) -> None:  # fmt: skip
    is_leaf = question.step is Step.LEAF
    of_silos = [_leaves(each, output) if is_leaf else bins_of_rows(each, question, output) for each in members.values()]
    if listed and not is_leaf:
        listed.see(question, {**dict(zip(members, of_silos, strict=True)), SUM: np.concatenate(of_silos)}, output)
    single_in_all = _single(np.concatenate(of_silos))
    slots_of_all = np.concatenate(of_silos)[single_in_all]
    for place, (member, slots) in enumerate(zip(members.values(), of_silos, strict=True)):
        own = _single(slots)
        for exposure, is_single in zip(found[2 * place :], (own, own & np.isin(slots, slots_of_all)), strict=False):
            rows = np.flatnonzero(is_single.any(axis=1))
            (exposure.alone_in_a_leaf if is_leaf else exposure.alone_in_a_bin).update(rows.tolist())
            if question.step is Step.ROOT and question.iteration == 0:
                exposure.errors.extend(_errors(member, question, output, rows))


def _single(slots: np.ndarray) -> np.ndarray:
    """Return which entries are alone in their slot, bool like `slots`; -1 is no slot."""
    _, inverse, counts = np.unique(slots, return_inverse=True, return_counts=True)
    return (counts[inverse].reshape(slots.shape) == 1) & (slots >= 0)


def _leaves(member: Member, output: int) -> np.ndarray:
    """Return the leaf of each row, [rows, 1]; -1 of a row that is not fitted."""
    return np.where(member.is_fitted[output], member._bottom()[output], -1)[:, None]


def bins_of_rows(member: Member, question: TreeQuestion, output: int = 0) -> np.ndarray:
    """Return in which bins of the histograms asked for each row is, int64 [rows, features]; -1: in none."""
    chosen = member._chosen
    codes, fitted = member._codes[:, chosen].astype(np.int64), member.is_fitted[output]
    place, asked = np.zeros(len(codes), np.int64), fitted
    if question.step is Step.LEVEL:
        splits = question.split_table()
        splits = splits[(splits[:, 0] == output) & (splits[:, 1] == question.number - 1)]
        splits = splits[splits[:, 6] != CountedChild.NEITHER]
        place = member.places[output]
        asked = fitted & np.isin(place, 2 * splits[:, 2] + (splits[:, 6] == CountedChild.RIGHT))
    slots = (place[:, None] * len(chosen) + np.arange(len(chosen))) * BINS_OF_A_FEATURE + codes
    return np.where(asked[:, None], slots, -1)


def _errors(member: Member, question: TreeQuestion, output: int, rows: np.ndarray) -> Iterator[float]:
    """Yield how far the targets that a bin of one row gives are from the true ones."""
    levels = member._weights[output][rows] - ROW_WEIGHT
    told = question.start[output] + levels / member.settings.levels * 2.0 ** float(question.scales[output])
    yield from np.abs(told - member.targets[output][rows]).tolist()
