"""Which point to take, and why."""

import math
from collections.abc import Sequence
from statistics import mean, stdev

from pipelines.sweep.outcomes import PointSummary, best_of, cost_and_worth
from ray_fed.reporting.results import number

SAME_WITHIN = 0.01
"""Guo et al. 2022 call two models the same when their R² differ by less than 1 %."""


def recommendation(points: Sequence[PointSummary]) -> list[str]:
    """Return sentences: what to take, against what it was weighed, and what can be saved beyond that.

    Taken is the point with the fewest bytes that cannot be told from the best one: over the seeds that both have, it is
    on average less than one standard error of that difference worse than the best (the one-standard-error rule,
    Breiman et al. 1984, on paired runs). Points of which no run came to its end do not count.
    """
    known, best = [point for point in points if point.reached], best_of(points)
    if best is None:
        return ["No trial ran to its end; nothing can be recommended."]
    chosen = _cheapest([point for point in known if _is_as_good(point, best)])
    said = [f"Take {_described(chosen)}.", _against(chosen, best)]
    saving = _cheapest([point for point in known if best.gain_over(point) <= SAME_WITHIN * abs(best.mean)])
    if saving.megabytes < chosen.megabytes:
        bar = f"1 % of {best.objective.title} may be given up (the paper's bar for the same accuracy)"
        said.append(f"Where {bar}, {_described(saving)} will do.")
    if max(len(point.reached) for point in known) < 3:
        said.append(
            "With fewer than three repeats the spread is hardly known; repeat with --repeats 5 before relying on it."
        )
    return [text for text in said if text]


def _is_as_good(point: PointSummary, best: PointSummary) -> bool:
    """Whether a point lies within one standard error of the best, seed by seed where they share seeds."""
    shared = sorted(set(point.reached) & set(best.reached))
    if len(shared) > 1:
        lost = [best.objective.gain(best.reached[seed], point.reached[seed]) for seed in shared]
        return mean(lost) <= stdev(lost) / math.sqrt(len(lost))
    return point.gain_over(best) >= 0


def _cheapest(points: Sequence[PointSummary]) -> PointSummary:
    return min(points, key=cost_and_worth)


def _described(point: PointSummary) -> str:
    metric = point.objective
    spread = f" ± {number(point.std, metric.digits)}" if len(point.reached) > 1 else ""
    reached = " ".join(filter(None, [metric.title, number(point.mean, metric.digits) + spread, metric.unit]))
    compute, communicate = point.spent["seconds_compute"], point.spent["seconds_communicate"]
    share = 100 * communicate / (compute + communicate) if compute + communicate > 0 else 0.0
    return f"{point.label} ({reached}, {point.megabytes:.1f} MB, {share:.1f} % of the time communicating)"


def _against(chosen: PointSummary, best: PointSummary) -> str:
    if chosen.label == best.label:
        title = best.objective.title
        return f"It has the best mean {title}, and nothing with fewer bytes comes within one standard error of it."
    times = best.megabytes / chosen.megabytes
    return (
        f"The best mean has {_described(best)}: no more than one standard error better, seed by seed, for "
        f"{times:.3g} times the bytes."
    )
