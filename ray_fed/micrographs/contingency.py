"""How often each predicted grain meets each true grain: the one table all agreement metrics are read from."""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

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
