"""How well two grain maps agree: MAP, VI with its two parts, ARI, from one contingency table.

Ma et al., "Data privacy protection in microscopic image analysis", Eq. (1)-(4). The paper leaves the edge cases and
the logarithm open; they follow the reference implementation its authors publish (base 2), with two exceptions that it
leaves undefined: see `vi_undefined`, and MAP of two maps without grains.

    paper          code                      meaning
    A, B           predicted, true           sets of pixels of one grain
    IoU(A, B)      count / union             in [0, 1]
    TP, FP, FN     matches, the rest of the predicted, of the true grains
    H(S|T)         vi_under                  bits; what the prediction merges
    H(T|S)         vi_over                   bits; what the prediction splits
"""

from dataclasses import asdict, dataclass

import numpy as np
from scipy import ndimage

from ray_fed.metrics import Metric

DENSE_CELLS = 4_000_000
"""Above this many possible cells only those that occur are counted: an untrained net leaves 10 000 islands, and a dense
table of 10 000 x 10 000 is 800 MB."""


@dataclass(frozen=True)
class Contingency:
    """The cells that occur: `count[i]` pixels lie in predicted segment `predicted[i]` and true segment `true[i]`.

    Segment 0 is the boundary on either side; segments 1..num_* are grains.
    """

    predicted: np.ndarray
    """int64 [num_cells]."""
    true: np.ndarray
    """int64 [num_cells]."""
    count: np.ndarray
    """int64 [num_cells], all positive."""
    num_predicted: int
    """Grains in the prediction."""
    num_true: int
    """Grains in the truth."""

    def sizes(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the pixels of each predicted and each true segment, boundary first: [num_* + 1] int64."""
        return (
            _sums(self.predicted, self.count, self.num_predicted + 1),
            _sums(self.true, self.count, self.num_true + 1),
        )

    def common_grains(self) -> "Contingency":
        """Return the cells of pixels that are grain on both sides."""
        inside = (self.predicted > 0) & (self.true > 0)
        return Contingency(
            self.predicted[inside], self.true[inside], self.count[inside], self.num_predicted, self.num_true
        )


def contingency(predicted_mask: np.ndarray, true_mask: np.ndarray, sparse: bool | None = None) -> Contingency:
    """Return the table of two boundary masks [H, W] (1 = boundary).

    Grains are the 4-connected components of 0, whatever their size; those cut by the frame count. `sparse` None picks
    the cheaper way of counting; both give the same table. ValueError when the shapes differ.
    """
    if predicted_mask.shape != true_mask.shape:
        raise ValueError(f"masks of shapes {predicted_mask.shape} and {true_mask.shape} cannot be compared")
    predicted, num_predicted = _grains(predicted_mask)
    true, num_true = _grains(true_mask)
    return segment_contingency(predicted, true, num_predicted, num_true, sparse)


def segment_contingency(
    predicted: np.ndarray, true: np.ndarray, num_predicted: int, num_true: int, sparse: bool | None = None
) -> Contingency:
    """Return the table of two label maps [H, W] with labels 0 (boundary), 1..num_*."""
    cells = (num_predicted + 1) * (num_true + 1)
    key = predicted.ravel().astype(np.int64)
    key *= num_true + 1
    key += true.ravel()
    if cells > DENSE_CELLS if sparse is None else sparse:
        found, count = np.unique(key, return_counts=True)
    else:
        table = np.bincount(key, minlength=cells)
        found = np.flatnonzero(table)
        count = table[found]
    rows, columns = np.divmod(found.astype(np.int64), num_true + 1)
    return Contingency(rows, columns, count.astype(np.int64), num_predicted, num_true)


def _grains(mask: np.ndarray) -> tuple[np.ndarray, int]:
    labels, count = ndimage.label(mask == 0)  # type: ignore[misc]
    return labels, int(count)


def _sums(index: np.ndarray, count: np.ndarray, length: int) -> np.ndarray:
    # Pixel counts are far below 2**53, so the float sums of bincount are exact.
    return np.bincount(index, weights=count, minlength=length).astype(np.int64)


NO_COMMON_GRAIN_BITS = 5.0
"""Each part of VI when no pixel is grain in both maps."""

METRICS = (
    Metric("map", "", True, 3, "MAP"),
    Metric("vi", "bits", False, 3, "MVI"),
    Metric("ari", "", True, 3, "ARI"),
    Metric("vi_under", "bits", False, 3, "under", is_detail=True),
    Metric("vi_over", "bits", False, 3, "over", is_detail=True),
    Metric("vi_undefined", "", False, 3, "VI undefined", is_detail=True),
)
"""Of `SegmentationScores`, as means over images."""


@dataclass(frozen=True)
class SegmentationScores:
    """Metrics of one image."""

    map: float
    """Mean average precision over IoU > 0.50, 0.55, ..., 0.95 (strictly): 0..1, higher is better."""
    vi: float
    """Variation of information, bits, over pixels that are grain in both maps: lower is better. Blind to where
    boundaries lie by a pixel or two, and to predictions that are all boundary."""
    vi_under: float
    """Its under-segmentation part, H(true | predicted): grains merged."""
    vi_over: float
    """Its over-segmentation part, H(predicted | true): grains split."""
    ari: float
    """Adjusted Rand index over all pixels, the boundary being one cluster: 1 is equal, 0 is chance."""
    vi_undefined: float
    """1 when no pixel is grain in both maps; VI is then 10 by convention (5 + 5)."""

    def values(self) -> dict[str, float]:
        return asdict(self)


def agreement(predicted_mask: np.ndarray, true_mask: np.ndarray) -> SegmentationScores:
    """Return the metrics of a predicted against a true boundary mask, both [H, W], 1 = boundary, 0 = grain.

    ValueError when the shapes differ.
    """
    return agreement_of(contingency(predicted_mask, true_mask))


def agreement_of(table: Contingency) -> SegmentationScores:
    """Return the metrics of two maps from their contingency table."""
    under, over, undefined = variation_of_information(table)
    return SegmentationScores(
        map=mean_average_precision(table),
        vi=under + over,
        vi_under=under,
        vi_over=over,
        ari=adjusted_rand_index(table),
        vi_undefined=float(undefined),
    )


def mean_average_precision(table: Contingency) -> float:
    """Return mean over t of TP / (TP + FP + FN), a match being IoU > t, t = 0.50, 0.55, ..., 0.95. Eq. (1), (2).

    Two grains with IoU > 0.5 are each other's only match, so counting cells is matching. Compared in whole numbers:
    20 * intersection > (10 + i) * union, because 0.55 and its like have no exact binary form. No grains on either
    side: 1; on one side: 0.
    """
    grains = table.num_predicted + table.num_true
    if min(table.num_predicted, table.num_true) == 0:
        return 1.0 if grains == 0 else 0.0
    predicted_size, true_size = table.sizes()
    common = table.common_grains()
    union = predicted_size[common.predicted] + true_size[common.true] - common.count
    likely = 2 * common.count > union
    matches = (20 * common.count[likely, None] > np.arange(10, 20) * union[likely, None]).sum(0)
    return float((matches / (grains - matches)).mean())


def variation_of_information(table: Contingency) -> tuple[float, float, bool]:
    """Return (H(true | predicted), H(predicted | true), undefined), bits. Eq. (3).

    Over pixels that are grain in both maps; where there are none, 5 bits each and undefined = True.
    """
    common = table.common_grains()
    if len(common.count) == 0:
        return NO_COMMON_GRAIN_BITS, NO_COMMON_GRAIN_BITS, True
    predicted_size, true_size = common.sizes()
    joint = _entropy(common.count)
    # Rounding may leave -1e-16 where a part is exactly 0.
    return max(0.0, joint - _entropy(predicted_size)), max(0.0, joint - _entropy(true_size)), False


def adjusted_rand_index(table: Contingency) -> float:
    """Return the index of Hubert & Arabie 1985 over all pixels, boundary included. Eq. (4).

    1 where it is 0/0: both maps a single segment, or every pixel its own.
    """
    predicted_size, true_size = table.sizes()
    together = _pairs(table.count)
    predicted, true, everything = _pairs(predicted_size), _pairs(true_size), _pairs(table.count.sum(keepdims=True))
    expected = predicted * true / everything if everything else 0.0
    spread = (predicted + true) / 2 - expected
    return float((together - expected) / spread) if spread else 1.0


def _pairs(count: np.ndarray) -> float:
    """Return the number of pairs inside segments of these sizes."""
    sizes = count.astype(np.float64)
    return float((sizes * (sizes - 1)).sum() / 2)


def _entropy(count: np.ndarray) -> float:
    """Return the entropy, bits, of the distribution proportional to whole numbers; zeros contribute nothing."""
    count = count[count > 0].astype(np.float64)
    total = count.sum()
    return float(np.log2(total) - (count * np.log2(count)).sum() / total)
