"""Who gets which row: test sets, and shares of one source for several silos.

Every function here is deterministic: the same frame and seed give the same rows on every machine. Rows are positions in
the frame (int64, ascending), and only usable ones are dealt (`reason == ""`).
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd

from ray_fed.errors import ConfigError
from ray_fed.materials.chemical_groups import anion_classes, chemical_systems, composition_keys
from ray_fed.randomness import generator

PARTITIONS = ("size", "anion", "chemical_system", "sorted_target", "dirichlet", "dirichlet:anion", "column:NAME")
TARGET_BINS = 10
"""Quantile bins of the target that stand for classes in the Dirichlet partition."""


def usable_rows(frame: pd.DataFrame) -> np.ndarray:
    """Return the positions of the usable rows of a crystal frame."""
    return np.flatnonzero((frame["reason"] == "").to_numpy(bool))


def select_rows(frame: pd.DataFrame, num_rows: int, seed: int) -> np.ndarray:
    """Return `num_rows` usable rows, chosen by the seed; ConfigError where there are fewer."""
    rows = usable_rows(frame)
    if not 1 <= num_rows <= len(rows):
        raise ConfigError(f"rows={num_rows} must lie between 1 and {len(rows)}, the number of usable rows")
    return np.sort(generator(seed, "select rows").permutation(rows)[:num_rows])


# Test sets


GROUPS: Mapping[str, Callable[[Sequence[str]], list[str]]] = {
    "formula": composition_keys, "chemical_system": chemical_systems,
}  # fmt: skip
"""What no split may cut: all polymorphs of a formula, or all compounds of the same elements."""


def split_rows(
    frame: pd.DataFrame, test_rows: int, how: str = "grouped", seed: int = 0, group: str = "formula"
) -> tuple[np.ndarray, np.ndarray]:
    """Return (train, test): all usable rows, divided.

    grouped  all rows of one group (GROUPS; of a reduced formula its polymorphs) on one side. The test set has exactly
             `test_rows` rows, or as near to it as whole groups allow; of two as near, the smaller one.
    random   rows one by one, as in Guo et al. 2022; always exact.

    ConfigError unless both sides get a row.
    """
    rows = usable_rows(frame)
    if not 0 < test_rows < len(rows):
        raise ConfigError(f"test_rows={test_rows} leaves no row for one side; there are {len(rows)} usable rows")
    random = generator(seed, "split", how)
    if how == "random":
        order = random.permutation(len(rows))
        chosen = np.isin(np.arange(len(rows)), order[:test_rows])
    elif how == "grouped":
        groups = _numbered(GROUPS[group](frame["formula"].iloc[rows].tolist()))
        chosen = choose_groups(np.bincount(groups), test_rows, random)[groups]
    else:
        raise ConfigError(f"split={how!r} must be grouped or random")
    return rows[~chosen], rows[chosen]


MATBENCH_FOLDS, MATBENCH_SEED = 5, 18012019
"""Dunn et al. 2020, doi:10.1038/s41524-020-00406-3: scikit-learn's KFold, of classes StratifiedKFold, over all rows in
the order of the file."""


def matbench_fold(frame: pd.DataFrame, fold: int, is_stratified: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Return (train, test) of matbench's fold 1 to 5, without rows that cannot be used; which fold a row is in depends
    on all rows."""
    from sklearn.model_selection import KFold, StratifiedKFold

    kind = StratifiedKFold if is_stratified else KFold
    folds = kind(MATBENCH_FOLDS, shuffle=True, random_state=MATBENCH_SEED)
    labels = frame["target"].to_numpy() if is_stratified else None
    train, test = list(folds.split(np.zeros(len(frame)), labels))[fold - 1]  # type: ignore[arg-type]
    usable = usable_rows(frame)
    return np.intersect1d(train, usable), np.intersect1d(test, usable)


def grouped_fold(
    frame: pd.DataFrame, num_folds: int, fold: int, group: str = "formula", seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Return (train, test) of fold 1 to `num_folds`: usable rows, groups whole. ConfigError for fewer groups than
    folds."""
    rows = usable_rows(frame)
    folds = grouped_folds(GROUPS[group](frame["formula"].iloc[rows].tolist()), num_folds, seed)
    if len(folds) < num_folds:
        raise ConfigError(f"folds={num_folds} need as many groups ({group}), there are {len(folds)}; use fewer folds")
    chosen = np.zeros(len(rows), bool)
    chosen[folds[fold - 1]] = True
    return rows[~chosen], rows[chosen]


def grouped_folds(groups: Sequence[str], most: int, seed: int) -> list[np.ndarray]:
    """Return row numbers of `most` folds of about equal size, groups whole; fewer where there are fewer groups."""
    numbered = _numbered(groups)
    sizes, random = np.bincount(numbered), generator(seed, "folds")
    filled, chosen = np.zeros(min(most, len(sizes)), np.int64), np.empty(len(sizes), np.int64)
    order = random.permutation(len(sizes))
    for number in order[np.argsort(-sizes[order], kind="stable")]:  # large groups first: folds come out even
        chosen[number] = filled.argmin()
        filled[chosen[number]] += sizes[number]
    return [np.flatnonzero(chosen[numbered] == fold) for fold in range(len(filled))]


def choose_groups(sizes: np.ndarray, wanted: int, random: np.random.Generator) -> np.ndarray:
    """Return bool [num_groups]: groups whose sizes sum to `wanted`, or as near to it as any choice of groups comes.

    Each class of equally large groups first gets its fair share, rounded at random, so that a test set has as many
    formulas with many polymorphs as the rest; smaller classes make up for what larger ones cannot hit.
    ConfigError where there is one group only.
    """
    if len(sizes) < 2:
        raise ConfigError("a grouped split needs at least two different formulas; use split=random")
    classes = sorted(set(sizes.tolist()), reverse=True)
    members = {size: random.permutation(np.flatnonzero(sizes == size)) for size in classes}
    reachable = _reachable_sums(classes, members)
    remaining = _nearest_bit(reachable[0], wanted, int(sizes.sum()))
    share = remaining / int(sizes.sum())
    chosen = np.zeros(len(sizes), bool)
    for size, after in zip(classes, reachable[1:], strict=True):
        fair = int(share * len(members[size]) + random.random())
        counts = sorted(range(len(members[size]) + 1), key=lambda count: abs(count - fair))
        count = next(c for c in counts if c * size <= remaining and after >> (remaining - c * size) & 1)
        chosen[members[size][:count]] = True
        remaining -= count * size
    return chosen


def _reachable_sums(classes: Sequence[int], members: Mapping[int, np.ndarray]) -> list[int]:
    """Return for each class, and for the end, an integer whose bit s says that it and later ones can sum to s."""
    reachable = [1]
    for size in reversed(classes):
        bits, left, step = reachable[-1], len(members[size]), 1
        # Shifts by 1, 2, 4, ... groups make every number of groups from 0 to all of them.
        while left:
            step = min(step, left)
            bits |= bits << (step * size)
            left -= step
            step *= 2
        reachable.append(bits)
    return reachable[::-1]


def _nearest_bit(bits: int, wanted: int, total: int) -> int:
    """Return the set bit nearest to `wanted`, neither 0 nor `total`; the lower one of two."""
    for distance in range(total):
        for place in (wanted - distance, wanted + distance):
            if 0 < place < total and bits >> place & 1:
                return place
    raise AssertionError("two groups or more always have a sum between nothing and everything")


def hash_split(formulas: Sequence[str], test_fraction: float, seed: int) -> np.ndarray:
    """Return bool [n], True for test rows: about `test_fraction` of all formulas, by sha256(seed, reduced formula).

    Sites that never talk hold out the same formulas, whatever order or spelling they have them in.
    """
    if not 0 <= test_fraction <= 1:
        raise ConfigError(f"test_fraction={test_fraction} must lie between 0 and 1")
    keys = composition_keys(formulas)
    drawn = {key: _uniform(seed, key) for key in set(keys)}
    return np.array([drawn[key] < test_fraction for key in keys], bool)


def _uniform(seed: int, key: str) -> float:
    """Return a number in [0, 1) that depends on the seed and the text only."""
    digest = hashlib.sha256(f"ray-fed split\x1f{int(seed)}\x1f{key}".encode()).digest()
    return (int.from_bytes(digest[:8], "big") >> 11) / 2.0**53


# Partitions


def partition_rows(
    frame: pd.DataFrame,
    train_index: np.ndarray,
    how: str,
    sizes: Sequence[int],
    seed: int = 0,
    alpha: float = 0.5,
) -> dict[str, np.ndarray]:
    """Deal the rows `train_index` to silos of these sizes: {"silo-1": rows, "silo-2": ...}, disjoint.

    how               who gets what                                                          `sizes` are met
    size              any row, at random                                                     exactly
    sorted_target     a stretch of the rows sorted by target; silo-1 the lowest              exactly
    dirichlet         rows by target quantile, each silo with its own mixture ~ Dir(alpha)   exactly
    dirichlet:anion   the same with classes of anions                                        exactly
    chemical_system   whole chemical systems (all oxides of Sr and Ti together)              as near as systems allow
    anion             whole classes: oxide, halide, chalcogenide, pnictide, other            not at all: see below
    column:NAME       rows with one value of a column, e.g. the database they come from      not at all: see below

    The last two deal all rows by what they are; of `sizes` only their number counts. The largest group goes to silo-1.
    With more groups than silos the two smallest are joined until they fit; with fewer it is a ConfigError.
    Rows that sizes leave over stay with nobody. ConfigError where sizes sum to more than there are rows.
    """
    rows = _checked_rows(frame, train_index)
    sizes = _checked_sizes(len(rows), sizes)
    random = generator(seed, "partition", how)
    silo_of_row = _silo_of_each_row(frame.iloc[rows], how, sizes, alpha, random)
    parts = {f"silo-{silo + 1}": rows[silo_of_row == silo] for silo in range(len(sizes))}
    empty = [name for name, part in parts.items() if not len(part)]
    if empty:
        raise ConfigError(f"partition={how!r} leaves no row for {empty[0]}; use fewer silos or another partition")
    return parts


def _checked_rows(frame: pd.DataFrame, train_index: np.ndarray) -> np.ndarray:
    rows = np.sort(np.asarray(train_index, np.int64))
    assert len(np.unique(rows)) == len(rows), "a row was given twice"
    assert (frame["reason"].iloc[rows] == "").all(), "unusable rows cannot be dealt"
    return rows


def _checked_sizes(num_rows: int, sizes: Sequence[int]) -> tuple[int, ...]:
    listed = ", ".join(map(str, sizes))
    if not sizes or min(sizes) < 1:
        raise ConfigError(f"sizes={listed or 'none'}: every silo needs 1 row or more; use fewer silos or more data")
    if sum(sizes) > num_rows:
        raise ConfigError(f"sizes={listed} sum to {sum(sizes)} rows, but only {num_rows} training rows are available")
    return tuple(int(size) for size in sizes)


NO_SILO = -1


def _silo_of_each_row(
    frame: pd.DataFrame, how: str, sizes: Sequence[int], alpha: float, random: np.random.Generator
) -> np.ndarray:
    """Return the silo of each row of `frame`, int64 [n], from 0; -1 for nobody."""
    formulas = frame["formula"].tolist()
    if how == "size":
        return _dealt(random.permutation(len(frame)), sizes)
    if how == "sorted_target":
        return _dealt(_sorted_by_target(frame, sizes, random), sizes)
    if how == "dirichlet":
        return _by_mixtures(_target_bins(frame), sizes, alpha, random)
    if how == "dirichlet:anion":
        return _by_mixtures(_numbered(anion_classes(formulas)), sizes, alpha, random)
    if how == "chemical_system":
        return _by_whole_groups(_numbered(chemical_systems(formulas)), sizes, random)
    if how == "anion":
        return _one_silo_per_group(anion_classes(formulas), how, sizes)
    if how.startswith("column:"):
        return _one_silo_per_group(_values_of(frame, how), how, sizes)
    raise ConfigError(f"partition={how!r} must be one of {', '.join(PARTITIONS)}")


def _values_of(frame: pd.DataFrame, how: str) -> list[str]:
    name = how.removeprefix("column:")
    if name not in frame:
        raise ConfigError(f"partition={how!r}: the frame has no column {name!r}; it has: {', '.join(frame.columns)}")
    return frame[name].astype(str).tolist()


def _dealt(order: np.ndarray, sizes: Sequence[int]) -> np.ndarray:
    """Deal rows to silos in the given order, silo-1 first."""
    silos = np.full(len(order), NO_SILO)
    silos[order[: sum(sizes)]] = np.repeat(np.arange(len(sizes)), sizes)
    return silos


def _sorted_by_target(frame: pd.DataFrame, sizes: Sequence[int], random: np.random.Generator) -> np.ndarray:
    """Return the rows by ascending target; spare rows, drawn at random from all, come last."""
    drawn, num_spare = random.permutation(len(frame)), len(frame) - sum(sizes)
    spare, used = np.sort(drawn[:num_spare]), np.sort(drawn[num_spare:])
    by_target = np.argsort(frame["target"].to_numpy(np.float64)[used], kind="stable")
    return np.concatenate((used[by_target], spare))


def _target_bins(frame: pd.DataFrame) -> np.ndarray:
    """Return the quantile bin of each row's target, int64 [n], bins of equal count."""
    ranks = np.argsort(np.argsort(frame["target"].to_numpy(np.float64), kind="stable"), kind="stable")
    return ranks * min(TARGET_BINS, len(frame)) // len(frame)


def _by_mixtures(classes: np.ndarray, sizes: Sequence[int], alpha: float, random: np.random.Generator) -> np.ndarray:
    """Deal rows so that silo k draws them from the classes in proportions q_k ~ Dir(alpha, ..., alpha).

    Hsu, Qi and Brown, arXiv 1909.06335 (2019), with a uniform prior: no row is dealt twice; a class that is used up
    leaves the mixtures, and a silo whose classes are all used up takes what is left, in the ratio in which it is left.
    Small alpha: few classes per silo; large alpha: all alike.
    """
    if not (np.isfinite(alpha) and alpha > 0):
        raise ConfigError(f"alpha={alpha} must be positive and finite")
    piles = [random.permutation(np.flatnonzero(classes == one)).tolist() for one in range(int(classes.max()) + 1)]
    mixtures = random.dirichlet(np.full(len(piles), alpha), size=len(sizes))
    silos = np.full(len(classes), NO_SILO)
    # The silo that draws last gets what others left, so who is last is drawn too.
    for silo in random.permutation(len(sizes)).tolist():
        for pile, count in zip(piles, _drawn_counts(piles, mixtures[silo], sizes[silo], random), strict=True):
            silos[pile[len(pile) - count :]] = silo
            del pile[len(pile) - count :]
    return silos


def _drawn_counts(
    piles: Sequence[Sequence[int]], mixture: np.ndarray, num_rows: int, random: np.random.Generator
) -> list[int]:
    """Return how many rows to take from each pile: a multinomial draw, repeated for what used-up piles owe."""
    left = np.array([len(pile) for pile in piles])
    taken = np.zeros(len(piles), np.int64)
    while (missing := num_rows - int(taken.sum())) > 0:
        weights = np.where(left > taken, mixture, 0.0)
        # Far below 1 a weight is rounding, not a choice: 1e-300 of a mixture would come out as all of it.
        weights = weights if weights.sum() > 1e-9 else (left - taken).astype(float)
        taken += np.minimum(random.multinomial(missing, weights / weights.sum()), left - taken)
    return taken.tolist()


def _by_whole_groups(groups: np.ndarray, sizes: Sequence[int], random: np.random.Generator) -> np.ndarray:
    """Give whole groups, the largest first, each to the silo that still lacks most rows; "nobody" is one more silo."""
    counts = np.bincount(groups)
    order = random.permutation(len(counts))
    order = order[np.argsort(-counts[order], kind="stable")]
    lacking = np.array([*sizes, len(groups) - sum(sizes)], np.int64)
    silo_of_group = np.empty(len(counts), np.int64)
    for group in order.tolist():
        silo = int(np.argmax(lacking))
        silo_of_group[group] = silo if silo < len(sizes) else NO_SILO
        lacking[silo] -= counts[group]
    return silo_of_group[groups]


def _one_silo_per_group(labels: Sequence[str], how: str, sizes: Sequence[int]) -> np.ndarray:
    """Give each group of equal labels one silo, the largest first; join the two smallest while they are too many."""
    names, counts = np.unique(np.array(labels, dtype=str), return_counts=True)
    if len(names) < len(sizes):
        listed = ", ".join(f"{name} ({count})" for name, count in zip(names, counts, strict=True))
        raise ConfigError(
            f"partition={how!r} finds {len(names)} groups ({listed}) for {len(sizes)} silos; "
            f"use at most {len(names)} silos"
        )
    merged = [(int(count), [name]) for name, count in zip(names.tolist(), counts, strict=True)]
    while True:
        merged.sort(key=lambda group: (-group[0], group[1]))
        if len(merged) == len(sizes):
            break
        (small, joined), (smaller, more) = merged.pop(), merged.pop()
        merged.append((small + smaller, sorted(joined + more)))
    silo_of_label = {name: silo for silo, (_, group) in enumerate(merged) for name in group}
    return np.array([silo_of_label[label] for label in labels], np.int64)


def _numbered(labels: Sequence[str]) -> np.ndarray:
    """Return labels as numbers from 0 in the order of their text, int64 [n]."""
    return np.unique(np.array(labels, dtype=str), return_inverse=True)[1].astype(np.int64)
