"""How fast MAP, VI and ARI of one 400x400 image are: a plain loop over pairs of grains, libraries, and ours."""

import statistics
import time
import tracemalloc
from collections.abc import Callable

import numpy as np
from scipy import ndimage
from skimage.metrics import contingency_table, variation_of_information
from sklearn.metrics import adjusted_rand_score

from ray_fed.micrographs.agreement import (
    adjusted_rand_index,
    agreement,
    agreement_of,
    contingency,
    mean_average_precision,
)
from ray_fed.micrographs.agreement import variation_of_information as our_variation
from ray_fed.micrographs.polycrystals import polycrystal_set

THRESHOLDS = [0.5 + 0.05 * step for step in range(10)]
REPEATS = 15


def labels_of(mask: np.ndarray) -> np.ndarray:
    return ndimage.label(mask == 0)[0]


def loop_map(predicted: np.ndarray, true: np.ndarray) -> float:
    """MAP by looking at every pair of grains that meet, pixel by pixel of the whole image."""
    p, t = labels_of(predicted), labels_of(true)
    ious = []
    for grain in range(1, t.max() + 1):
        inside = t == grain
        for other in np.unique(p[inside]):
            if other:
                there = p == other
                ious.append(np.count_nonzero(inside & there) / np.count_nonzero(inside | there))
    scores = []
    for threshold in THRESHOLDS:
        matches = sum(iou > threshold for iou in ious)
        scores.append(matches / (p.max() + t.max() - matches))
    return float(np.mean(scores))


def loop_variation(predicted: np.ndarray, true: np.ndarray) -> float:
    """VI by looping over the pairs of grains that meet."""
    p, t = labels_of(predicted), labels_of(true)
    both = (p > 0) & (t > 0)
    p, t, total = p[both], t[both], np.count_nonzero(both)
    result = 0.0
    for grain in np.unique(t):
        inside = p[t == grain]
        for other in np.unique(inside):
            joint = np.count_nonzero(inside == other)
            result -= joint / total * np.log2(joint**2 / (len(inside) * np.count_nonzero(p == other)))
    return result


def loop_rand(predicted: np.ndarray, true: np.ndarray) -> float:
    """ARI by looping over the segments, boundary included."""
    p, t = labels_of(predicted), labels_of(true)

    def pairs(number: int) -> float:
        return number * (number - 1) / 2

    together = 0.0
    for grain in np.unique(t):
        inside = p[t == grain]
        together += sum(pairs(np.count_nonzero(inside == other)) for other in np.unique(inside))
    a = sum(pairs(np.count_nonzero(p == other)) for other in np.unique(p))
    b = sum(pairs(np.count_nonzero(t == grain)) for grain in np.unique(t))
    expected = a * b / pairs(p.size)
    return (together - expected) / ((a + b) / 2 - expected)


def library_variation(predicted: np.ndarray, true: np.ndarray) -> float:
    p, t = labels_of(predicted), labels_of(true)
    both = (p > 0) & (t > 0)
    return float(variation_of_information(t[both][None], p[both][None]).sum())


def library_rand(predicted: np.ndarray, true: np.ndarray) -> float:
    return float(adjusted_rand_score(labels_of(true).ravel(), labels_of(predicted).ravel()))


def milliseconds(work: Callable[[], object]) -> tuple[float, float]:
    """Return (median, interquartile range) of CPU milliseconds."""
    work()
    found = []
    for _ in range(REPEATS):
        start = time.process_time()
        work()
        found.append(1e3 * (time.process_time() - start))
    low, middle, high = statistics.quantiles(found, n=4)
    return middle, high - low


def peak_megabytes(work: Callable[[], object]) -> float:
    tracemalloc.start()
    work()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak / 1e6


def pair() -> tuple[np.ndarray, np.ndarray]:
    """Return a predicted and a true mask [400, 400]: the prediction has lost 10 % of its boundary in patches."""
    true = polycrystal_set("iron", 0, 1, size=400, spacing=34).masks[0]
    rng = np.random.default_rng(0)
    predicted = true.copy()
    predicted[ndimage.zoom(rng.random((50, 50)), 8, order=0) < 0.03] = 0
    predicted[200] = 1
    return predicted, true


def report(what: str, work: Callable[[], object]) -> float:
    middle, spread = milliseconds(work)
    print(f"| {what} | {middle:.2f} | {spread:.2f} |", flush=True)
    return middle


def main() -> None:
    predicted, true = pair()
    table = contingency(predicted, true)
    found = agreement(predicted, true)
    print(f"{table.num_predicted} against {table.num_true} grains: {found}")
    assert np.isclose(found.map, loop_map(predicted, true))
    assert np.isclose(found.vi, loop_variation(predicted, true))
    assert np.isclose(found.vi, library_variation(predicted, true))
    assert np.isclose(found.ari, loop_rand(predicted, true))
    assert np.isclose(found.ari, library_rand(predicted, true))
    print("| 400x400 | CPU ms | IQR |\n|---|---|---|")
    loops = [
        report(f"loop: {f.__name__[5:]}", lambda f=f: f(predicted, true)) for f in (loop_map, loop_variation, loop_rand)
    ]
    report("scikit-image: VI", lambda: library_variation(predicted, true))
    report("scikit-learn: ARI", lambda: library_rand(predicted, true))
    report("scikit-image: contingency_table", lambda: contingency_table(labels_of(true), labels_of(predicted)))
    report("ours: labelling and table", lambda: contingency(predicted, true))
    for work in (mean_average_precision, our_variation, adjusted_rand_index):
        report(f"ours: {work.__name__} of the table", lambda work=work: work(table))
    ours = report("ours: all of it", lambda: agreement(predicted, true))
    print(f"loop / ours: {sum(loops) / ours:.0f}")

    rng = np.random.default_rng(0)
    noise, other = rng.integers(0, 2, (2, 400, 400)).astype(np.uint8)
    table = contingency(noise, other)
    print(f"noise: {table.num_predicted} against {table.num_true} islands, {len(table.count)} cells occur")
    print("| noise | CPU ms | IQR |\n|---|---|---|")
    report("ours", lambda: agreement(noise, other))
    report("ours, counting all cells", lambda: agreement_of(contingency(noise, other, sparse=False)))
    for sparse in (None, False):
        peak = peak_megabytes(lambda sparse=sparse: contingency(noise, other, sparse=sparse))
        print(f"sparse={sparse}: {peak:.0f} MB at most")


if __name__ == "__main__":
    main()
