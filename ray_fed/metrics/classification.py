"""Scores of a classifier: ROC AUC, balanced accuracy, F1, accuracy, log loss and calibration, from whole numbers that
add up across silos exactly.

Let k be a class, p_k its predicted probability. Kept are: of each true class the rows by predicted class (confusion),
of each class k the rows of k and the rows of other classes by the bin into which p_k falls (the score histograms: all
that ROC curve, ROC AUC and reliability need), and the log loss in steps of 2^-20.

Bins are even in asinh of the log odds, counted from those of 1/K: narrow where a model that has learned little keeps
all its probabilities, wide where they are near 0 and 1. Rows of one bin count as ties, one half; the error of the ROC
AUC is at most half the share of pairs (a row of k, another row) in one bin.
"""

import math
from dataclasses import dataclass

import numpy as np

from ray_fed.metrics.metric import Metric, in_one_line
from ray_fed.metrics.scores import Coin, Resolution

MISSING = -1
"""Label of a row without one."""
MOST_CLASSES = 64
MOST_BINS, FEWEST_BINS = 512, 32
BINS_OF_ALL_CLASSES = 1024
LARGEST_LOG_ODDS = 12.0
"""Odds beyond e^12 from those of 1/K are in the last bin."""
LOSS_STEP = 2.0**-20
"""Nats: a row's log loss is counted in such steps."""
LEAST_PROBABILITY = float(np.finfo(np.float64).eps)
"""A probability below counts as this one in the log loss, as in scikit-learn."""
ONE_CLASS = "all its rows with a label are of one class"
NO_POSITIVE = "no row is, or is predicted as, the positive class"
NO_ROWS = "no row has a label"
NOT_MARKED = "the model was not marked"


def classification_metrics(num_classes: int) -> tuple[Metric, ...]:
    """Return what `ClassificationSums` tells. F1 is that of class 1 of two, the mean over classes of more."""
    averaged = "" if num_classes == 2 else ", macro"
    return (
        Metric("roc_auc", "", True, 4, f"ROC AUC{averaged}"),
        Metric("balanced_accuracy", "", True, 4, "Balanced accuracy"),
        Metric("f1", "", True, 4, f"F1{averaged}"),
        Metric("accuracy", "", True, 4, "Accuracy", is_detail=True),
        Metric("log_loss", "nat", False, 4, "Log loss", is_detail=True),
    )


def num_tables(num_classes: int) -> int:
    """Return how many classes have score histograms: of two, only class 1 needs one."""
    return 1 if num_classes == 2 else num_classes


def num_bins(num_classes: int) -> int:
    """Return the bins of one class's scores: fewer of many classes, which share the size of a message."""
    return min(MOST_BINS, max(FEWEST_BINS, BINS_OF_ALL_CLASSES // num_tables(num_classes)))


def bin_edges(num_classes: int) -> np.ndarray:
    """Return the probabilities between bins, float64 [num_bins + 1], from 0 to 1."""
    widest = math.asinh(LARGEST_LOG_ODDS)
    log_odds = np.sinh(np.linspace(-widest, widest, num_bins(num_classes) + 1)) - math.log(num_classes - 1)
    edges = 1.0 / (1.0 + np.exp(-log_odds))
    edges[0], edges[-1] = 0.0, 1.0
    return edges


def bin_centres(num_classes: int) -> np.ndarray:
    """Return the probability that stands for each bin, float64 [num_bins]."""
    edges = bin_edges(num_classes)
    return (edges[1:] + edges[:-1]) / 2


@dataclass(frozen=True)
class ClassificationSums:
    """Counts of (label, probabilities) pairs.

    Law: sums(A ++ B) == sums(A) + sums(B), exactly, for any split of the rows.

    What a silo tells of it (`Resolution.released`): no count of single rows. Rows of one true class leave in groups of
    the owner's `min_examples`, each group where one row of it is, drawn by a keyed coin; so every count is a multiple
    of it, a class with few rows may be told as none, and the log loss has steps of as many nats. As of all metrics: a
    model that tells fewer groups of rows apart than that (a constant, a step), or that differs from one marked before
    in fewer rows, is not marked. Who knows the features of a silo's rows and has as many different models marked as
    there are rows averages the coins and learns labels; what bounds that is `max_evaluations_per_run`.
    """

    num_examples: int
    """Rows that have a label."""
    num_classes: int
    """K, 2 to 64."""
    confusion: tuple[int, ...]
    """[K * K]: rows by true and, within it, predicted class. Empty: the model was not marked."""
    histograms: tuple[int, ...]
    """[tables * 2 * bins]: of each class (of two, of class 1 only) the other classes' rows, then its own, by the bin of
    its probability. Empty: the model was not marked."""
    log_loss_steps: int
    """Sum over rows of -log p of the true class, in 2^-20 nats."""

    def __repr__(self) -> str:
        return (
            f"ClassificationSums({self.num_examples} rows of {self.num_classes} classes: {in_one_line(self.values())})"
        )

    @classmethod
    def of(cls, labels: np.ndarray, probabilities: np.ndarray) -> "ClassificationSums":
        """Count rows.

        labels: int64 [rows], 0 to K - 1, -1 without one. probabilities: float [rows, K]; of two classes also [rows, 1]
        or [rows], that of class 1. ValueError for other labels and shapes. Probabilities that are no numbers, those of
        a diverged model: as of one that was not marked, NaN for each metric.
        """
        labels, p = _checked(labels, probabilities)
        known = labels != MISSING
        labels, p = labels[known], p[known]
        n, k = p.shape
        if not np.isfinite(p).all():
            return cls(n, k, (), (), 0)
        chosen, true = p.argmax(1), p[np.arange(n), labels]
        # Like scikit-learn: the classes' probabilities add up to 1, whatever rounding of float32 made of them.
        losses = -np.log(np.clip(true / np.maximum(p.sum(1), LEAST_PROBABILITY), LEAST_PROBABILITY, 1.0))
        return cls(
            n,
            k,
            tuple(np.bincount(labels * k + chosen, minlength=k * k).tolist()),
            tuple(_histograms(labels, p).ravel().tolist()),
            int(np.rint(losses / LOSS_STEP).astype(np.int64).sum()),
        )

    @classmethod
    def none(cls, num_classes: int) -> "ClassificationSums":
        """Return the sums over no rows."""
        size = num_tables(num_classes) * 2 * num_bins(num_classes)
        return cls(0, num_classes, (0,) * num_classes**2, (0,) * size, 0)

    def __add__(self, other: "ClassificationSums") -> "ClassificationSums":
        if self.num_classes != other.num_classes:
            raise ValueError(f"scores of {self.num_classes} and of {other.num_classes} classes do not add up")
        n = self.num_examples + other.num_examples
        if any(part.num_examples and not part.is_marked for part in (self, other)):
            return ClassificationSums(n, self.num_classes, (), (), 0)
        if not (self.is_marked and other.is_marked):
            return self if self.is_marked else other
        return ClassificationSums(
            n,
            self.num_classes,
            tuple(map(int.__add__, self.confusion, other.confusion)),
            tuple(map(int.__add__, self.histograms, other.histograms)),
            self.log_loss_steps + other.log_loss_steps,
        )

    @property
    def is_marked(self) -> bool:
        return bool(self.confusion)

    def unmarked(self) -> "ClassificationSums":
        """Return what is told of a model that is not marked: the rows, and no other number."""
        return ClassificationSums(self.num_examples, self.num_classes, (), (), 0)

    def objection(self) -> str:
        """Return what is wrong with the form of sums from elsewhere, in a fixed phrase; "" where nothing is."""
        k = self.num_classes
        if not (_is_count(k) and 2 <= k <= MOST_CLASSES):
            return f"a whole number of classes, 2 to {MOST_CLASSES}, is wanted"
        if not (_is_count(self.num_examples) and _is_count(self.log_loss_steps)):
            return "rows and log loss must be whole numbers, 0 or more"
        tables = (self.confusion, self.histograms)
        if not all(type(table) is tuple and all(map(_is_count, table)) for table in tables):
            return "its counts must be whole numbers, 0 or more"
        if tables == ((), ()):
            return "" if self.log_loss_steps == 0 else "a model that was not marked has no log loss"
        if (len(self.confusion), len(self.histograms)) != (k * k, num_tables(k) * 2 * num_bins(k)):
            return "its counts are not as many as its classes and bins"
        own = self.matrix.sum(1)
        rest, positive = self.scores.sum(2).T
        agrees = np.array_equal(positive, own[-len(positive) :]) and np.array_equal(rest, own.sum() - positive)
        return "" if agrees else "its counts contradict each other"

    def released(self, resolution: Resolution, coin: Coin) -> "ClassificationSums":
        """Return what a silo tells: rows of a class in groups of the fewest rows; the counts of a class agree in both
        tables."""
        fewest = resolution.fewest_rows
        if not self.is_marked:
            return self
        matrix, tables = self.matrix, self.scores
        groups = [math.floor(rows / fewest + coin(f"{k}.class_total")) for k, rows in enumerate(matrix.sum(1).tolist())]
        confusion = [_in_groups(row, groups[k], coin(f"{k}.confusion")) for k, row in enumerate(matrix)]
        first = self.num_classes - len(tables)
        histograms = [
            _in_groups(row, own if is_own else sum(groups) - own, coin(f"{first + k}.{is_own}.scores"))
            for k, (table, own) in enumerate(zip(tables, groups[first:], strict=True))
            for is_own, row in enumerate(table)
        ]
        step = fewest * round(1 / LOSS_STEP)
        losses = (self.log_loss_steps + int(coin("log_loss") * step)) // step * step
        own, scored = (tuple((fewest * np.concatenate(table)).tolist()) for table in (confusion, histograms))
        return ClassificationSums(self.num_examples, self.num_classes, own, scored, losses)

    # ---- the metrics

    @property
    def matrix(self) -> np.ndarray:
        """int64 [K, K]: rows by true class and predicted class; zeros of a model that was not marked."""
        k = self.num_classes
        return np.array(self.confusion or (0,) * k**2, np.int64).reshape(k, k)

    @property
    def scores(self) -> np.ndarray:
        """int64 [tables, 2, bins]: rows of other classes, and of the class, by the bin of the class's probability."""
        shape = num_tables(self.num_classes), 2, num_bins(self.num_classes)
        return np.array(self.histograms or (0,) * math.prod(shape), np.int64).reshape(shape)

    def values(self) -> dict[str, float]:
        """Return the metrics by name, as scikit-learn defines them; NaN where one is not defined (`undefined`)."""
        return {
            "roc_auc": self.roc_auc,
            "balanced_accuracy": self.balanced_accuracy,
            "f1": self.f1,
            "accuracy": self.accuracy,
            "log_loss": self.log_loss,
        }

    def undefined(self) -> dict[str, str]:
        """Return metric -> why it is not defined, of those that are not."""
        absent = [name for name, value in self.values().items() if math.isnan(value)]
        if not absent:
            return {}
        if not self.is_marked or self.matrix.sum() == 0:
            return dict.fromkeys(absent, NO_ROWS if self.is_marked else NOT_MARKED)
        return {name: ONE_CLASS if name == "roc_auc" else NO_POSITIVE for name in absent}

    @property
    def class_aucs(self) -> np.ndarray:
        """float64 [tables]: area under the ROC curve of each class against the rest; NaN without rows of both."""
        rest, own = self.scores[:, 0].astype(np.float64), self.scores[:, 1].astype(np.float64)
        below = np.cumsum(rest, 1) - rest
        pairs = rest.sum(1) * own.sum(1)
        won = (own * (below + rest / 2)).sum(1)
        return np.divide(won, pairs, out=np.full(len(pairs), np.nan), where=pairs > 0)

    @property
    def roc_auc(self) -> float:
        """Area under the ROC curve; of more than two classes the mean of each one against the rest, over those that
        have rows. NaN where all rows are of one class."""
        defined = self.class_aucs[~np.isnan(self.class_aucs)]
        return float(defined.mean()) if len(defined) else math.nan

    @property
    def balanced_accuracy(self) -> float:
        """Mean over the classes that have rows of the share predicted as such."""
        matrix = self.matrix
        rows = matrix.sum(1)
        there = rows > 0
        return float((matrix.diagonal()[there] / rows[there]).mean()) if there.any() else math.nan

    @property
    def f1(self) -> float:
        """2 TP / (2 TP + FP + FN) of class 1 of two, else the mean over the classes that occur, true or predicted."""
        matrix = self.matrix
        hits, size = 2.0 * matrix.diagonal(), matrix.sum(0) + matrix.sum(1)
        shown = size > 0 if self.num_classes > 2 else np.array([False, size[1] > 0])
        return float((hits[shown] / size[shown]).mean()) if shown.any() else math.nan

    @property
    def accuracy(self) -> float:
        total = self.matrix.sum()
        return float(self.matrix.trace() / total) if total else math.nan

    @property
    def log_loss(self) -> float:
        """Mean of -log p of the true class, in nats."""
        return self.log_loss_steps * LOSS_STEP / self.num_examples if self.num_examples and self.is_marked else math.nan

    # ---- for figures

    def roc_curve(self, table: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Return (false positive rate, true positive rate), each [bins + 1] from 0 to 1, of a class against the rest;
        NaN without rows of both."""
        rest, own = self.scores[table, :, ::-1]
        return _share(rest), _share(own)

    def reliability(self, num_groups: int = 10) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return (mean predicted probability, observed share, rows), each [groups that have rows]: of class 1 of two,
        else of all classes together, each against the rest. Groups of even width in probability."""
        centres, (rest, own) = bin_centres(self.num_classes), self.scores.sum(0)
        group = np.minimum((centres * num_groups).astype(int), num_groups - 1)
        rows = np.bincount(group, rest + own, num_groups)
        there = rows > 0
        predicted = np.bincount(group, (rest + own) * centres, num_groups)
        observed = np.bincount(group, own, num_groups)
        return predicted[there] / rows[there], observed[there] / rows[there], rows[there].astype(np.int64)


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**53


def _checked(labels: np.ndarray, probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return int64 [rows] and float64 [rows, K]."""
    labels, p = np.asarray(labels), np.asarray(probabilities, np.float64)
    p = p[:, None] if p.ndim == 1 else p
    p = np.hstack([1.0 - p, p]) if p.ndim == 2 and p.shape[1] == 1 else p
    if p.ndim != 2 or labels.shape != (len(p),):
        raise ValueError(f"labels [rows] and probabilities [rows, classes] are wanted, got {labels.shape}, {p.shape}")
    if not 2 <= p.shape[1] <= MOST_CLASSES:
        raise ValueError(f"{p.shape[1]} classes; 2 to {MOST_CLASSES} can be told apart")
    whole = np.nan_to_num(labels, nan=MISSING).astype(np.int64)
    if len(labels) and not (np.array_equal(whole, labels) and MISSING <= whole.min() <= whole.max() < p.shape[1]):
        raise ValueError(f"labels must be whole numbers from {MISSING} (missing) to {p.shape[1] - 1}")
    return whole, p


def _histograms(labels: np.ndarray, p: np.ndarray) -> np.ndarray:
    """Return int64 [tables, 2, bins] of labels [rows] and probabilities [rows, K]."""
    k = p.shape[1]
    edges, size = bin_edges(k)[1:-1], num_bins(k)
    classes = [1] if k == 2 else range(k)
    return np.array(
        [
            np.bincount(
                (labels == each) * size + np.searchsorted(edges, p[:, each], side="right"), minlength=2 * size
            ).reshape(2, size)
            for each in classes
        ],
        np.int64,
    )


def _share(counts: np.ndarray) -> np.ndarray:
    """Return the cumulative share [len + 1] of counts; NaN of none."""
    total = counts.sum()
    summed = np.concatenate([[0], np.cumsum(counts)])
    return summed / total if total else np.full(len(summed), np.nan)


def _in_groups(counts: np.ndarray, groups: int, up: float) -> np.ndarray:
    """Return how many of so many groups are in each place, int64 [places]: each stands where one of its rows does, one
    every so many rows after a first that `up` draws (systematic sampling)."""
    summed = np.cumsum(counts)
    rows = max(1, int(summed[-1]))
    return np.diff(np.floor(summed * groups / rows + up).astype(np.int64), prepend=0)
