"""Which point to take, and why."""

import math
from collections.abc import Sequence
from statistics import mean, stdev

from pipelines.sweep.outcomes import PointSummary
from ray_fed.reporting.results import number

SAME_WITHIN = 0.01
"""Guo et al. 2022 call two models the same when their R2 differ by less than 1 %."""


def recommendation(points: Sequence[PointSummary]) -> list[str]:
    """Return sentences: what to take, against what it was weighed, and what can be saved beyond that.

    Taken is the point with the fewest bytes that cannot be told from the best one: over the seeds that both have, its
    R2 is on average less than one standard error of that difference below the best (the one-standard-error rule,
    Breiman et al. 1984, on paired runs). Points of which no run came to its end do not count.
    """
    known = [point for point in points if point.r2]
    if not known:
        return ["No trial ran to its end; nothing can be recommended."]
    best = max(known, key=lambda point: point.mean_r2)
    chosen = _cheapest([point for point in known if _is_as_good(point, best)])
    said = [f"Take {_described(chosen)}.", _against(chosen, best)]
    saving = _cheapest([point for point in known if point.mean_r2 >= best.mean_r2 - SAME_WITHIN * abs(best.mean_r2)])
    if saving.megabytes < chosen.megabytes:
        said.append(
            f"Where 1 % of R2 may be given up (the paper's bar for the same accuracy), {_described(saving)} will do."
        )
    if max(len(point.r2) for point in known) < 3:
        said.append(
            "With fewer than three repeats the spread is hardly known; repeat with --repeats 5 before relying on it."
        )
    return [text for text in said if text]


def _is_as_good(point: PointSummary, best: PointSummary) -> bool:
    """Whether a point lies within one standard error of the best, seed by seed where they share seeds."""
    shared = sorted(set(point.r2) & set(best.r2))
    if len(shared) > 1:
        lost = [best.r2[seed] - point.r2[seed] for seed in shared]
        return mean(lost) <= stdev(lost) / math.sqrt(len(lost))
    return point.mean_r2 >= best.mean_r2


def _cheapest(points: Sequence[PointSummary]) -> PointSummary:
    return min(points, key=lambda point: (point.spent["bytes_sent"], -point.mean_r2))


def _described(point: PointSummary) -> str:
    spread = f" ± {number(point.std_r2)}" if len(point.r2) > 1 else ""
    compute, communicate = point.spent["seconds_compute"], point.spent["seconds_communicate"]
    share = 100 * communicate / (compute + communicate) if compute + communicate > 0 else 0.0
    return (
        f"{point.label} (R2 {number(point.mean_r2)}{spread}, {point.megabytes:.1f} MB, {share:.1f} % of the time "
        "communicating)"
    )


def _against(chosen: PointSummary, best: PointSummary) -> str:
    if chosen.label == best.label:
        return "It has the best mean R2, and nothing with fewer bytes comes within one standard error of it."
    times = best.megabytes / chosen.megabytes
    return (
        f"The best mean has {_described(best)}: no more than one standard error better, seed by seed, for "
        f"{times:.3g} times the bytes."
    )
