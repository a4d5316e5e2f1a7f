"""A verdict per claim of the paper, from this run's numbers."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from pipelines.leakage.label_study import LabelResult
from pipelines.leakage.margins import Margin
from pipelines.leakage.results import MethodResult, best_reading
from ray_fed.leakage.fidelity import difference_interval

Results = Mapping[str, Mapping[str, MethodResult]]
"""data -> attack -> result"""
HOLDS, PARTLY, NOT = "holds", "holds only with these settings", "does not hold"
STEADIER = "holds for steadiness alone"


@dataclass(frozen=True)
class ClaimVerdict:
    """What was claimed, and what this run says."""

    claim: str
    verdict: str
    because: str


def verdicts(
    compared: Results, labels: Sequence[LabelResult], rates: Mapping[tuple[str, float], MethodResult],
    margins: Sequence[Margin],
) -> list[ClaimVerdict]:  # fmt: skip
    """Return a verdict for each claim that the run has numbers for. A rate counts as higher than another where the 95 %
    interval of their difference lies above zero."""
    return [*_labels(labels), *_against_l2(compared), *_stability(compared), *_rates(rates), *_ours(margins)]


def _labels(labels: Sequence[LabelResult]) -> Iterator[ClaimVerdict]:
    single = [one for one in labels if one.condition == "batch 1" and one.rule == "bias_sign"]
    if not single:
        return
    right = all(one.right == 1.0 for one in single)
    broken = [one for one in labels if one.rule == "bias_sign" and one.condition != "batch 1" and one.right < 1]
    ends = "; ".join(f"{one.condition}: {one.right:.0%}" for one in broken[:5])
    said = f"{sum(one.messages for one in single)} messages, " + ("all right" if right else "not all right")
    yield ClaimVerdict(
        "Labels from the sign of the output bias's gradient are right in 100 % of cases (Sec. 3.1, Table 1)",
        (PARTLY if broken else HOLDS) if right else NOT,
        f"batch 1: {said}" + (f". It ends with: {ends}" if ends else ""),
    )
    rows = {one.rule: one.steps for one in labels if one.data == single[0].data}
    if len(rows) == 2:
        yield ClaimVerdict(
            "The bias rule needs C steps where iDLG needs C x n (Sec. 4.1)",
            HOLDS,
            f"{rows['bias_sign']:,} against {rows['row_sign']:,} entries; both take microseconds",
        )


def _against_l2(compared: Results) -> Iterator[ClaimVerdict]:
    """The literal reading against iDLG, both by L-BFGS; the literal one by plain descent against iDLG by the same; and
    the best reading of each set against squared error with the start and the line search that it has itself."""
    for name, rival, what in (
        ("wdlg", "idlg", "literal, by L-BFGS as DLG's, against iDLG"),
        ("wdlg_descent", "idlg_descent", "literal, by plain descent as Algorithm 1, against iDLG by the same"),
        ("", "l2_grey", "the best reading of each set, against L2 with the same start and line search"),
    ):
        pairs = _beside(compared, name, rival)
        if pairs:
            wins = [data for data, (_, a, b) in pairs.items() if _is_higher(_exact(a), _exact(b))]
            losses = [data for data, (_, a, b) in pairs.items() if _is_higher(_exact(b), _exact(a))]
            said = "; ".join(_side_by_side(data, *pair, named=not name) for data, pair in pairs.items())
            even = ". None of these differences is beyond chance" if not wins and not losses else ""
            yield ClaimVerdict(
                f"The Wasserstein distance raises the success rate over L2 ({what}; Sec. 4.2)",
                _degree(wins, pairs),
                said + even,
            )


def _side_by_side(data: str, name: str, a: MethodResult, b: MethodResult, named: bool) -> str:
    reading = f" ({name})" if named else ""
    return f"{data}{reading}: {a.exact} : {b.exact} of {a.samples} below 1e-3, {a.near} : {b.near} below 1e-2"


def _stability(compared: Results) -> Iterator[ClaimVerdict]:
    for name, rival, by in (("wdlg", "idlg", "L-BFGS"), ("wdlg_descent", "idlg_descent", "plain descent")):
        pairs = _beside(compared, name, rival)
        if pairs:
            calmer = [data for data, (_, a, b) in pairs.items() if _is_higher(_diverged(b), _diverged(a))]
            said = "diverged, WDLG : iDLG; " + "; ".join(
                f"{data}: {a.diverged} : {b.diverged} of {a.attacks}" for data, (_, a, b) in pairs.items()
            )
            yield ClaimVerdict(
                f"The Wasserstein distance solves the exploding gradient (by {by}; Sec. 4.2)",
                _degree(calmer, pairs),
                said,
            )


def _beside(compared: Results, name: str, rival: str) -> dict[str, tuple[str, MethodResult, MethodResult]]:
    """Return data -> (name, results of an attack, those of its rival) where both ran; no name: the best reading."""
    found = {}
    for data, methods in compared.items():
        chosen = name or best_reading(methods)
        if {chosen, rival} <= methods.keys() and methods[chosen].attacks and methods[rival].attacks:
            found[data] = (chosen, methods[chosen], methods[rival])
    return found


def _exact(result: MethodResult) -> tuple[int, int]:
    return result.exact, result.samples


def _diverged(result: MethodResult) -> tuple[int, int]:
    return result.diverged, result.attacks


def _is_higher(first: tuple[int, int], second: tuple[int, int]) -> bool:
    """Whether the 95 % interval of the difference of two rates lies above zero."""
    return difference_interval(first, second)[0] > 0


def _rates(rates: Mapping[tuple[str, float], MethodResult]) -> Iterator[ClaimVerdict]:
    for name, rival, by in (("wdlg", "idlg", "L-BFGS"), ("wdlg_descent", "idlg_descent", "plain descent")):
        shared = sorted(rate for one, rate in rates if one == name and (rival, rate) in rates)
        if shared:
            yield _large_rates(name, rival, by, shared[1:] or shared, rates)


def _large_rates(
    name: str, rival: str, by: str, large: Sequence[float], rates: Mapping[tuple[str, float], MethodResult]
) -> ClaimVerdict:
    """Judge success over all step sizes but the smallest together, and steadiness at each of them."""
    pairs = [(rate, rates[name, rate], rates[rival, rate]) for rate in large]
    near = [(sum(one.near for one in side), sum(one.samples for one in side))
            for side in ([a for _, a, _ in pairs], [b for _, _, b in pairs])]  # fmt: skip
    finds = near[0][0] > near[0][1] / 2 and _is_higher(near[0], near[1])
    steadier = [f"{rate:g}" for rate, a, b in pairs if _is_higher(_diverged(b), _diverged(a))]
    wilder = [f"{rate:g}" for rate, a, b in pairs if _is_higher(_diverged(a), _diverged(b))]
    turned = f", and the other way round at {', '.join(wilder)}" if wilder else ""
    each = "; ".join(
        f"{rate:g}: below 1e-2 {a.near} : {b.near} of {a.samples}, diverged {a.diverged} : {b.diverged}"
        for rate, a, b in pairs
    )
    return ClaimVerdict(
        f"WDLG supports large learning rates where DLG and iDLG fail (by {by}; Sec. 4.3, Fig. 5)",
        HOLDS if finds else f"{STEADIER}, at {', '.join(steadier)}{turned}" if steadier else NOT,
        f"WDLG : iDLG at step sizes {each}",
    )


def _ours(margins: Sequence[Margin]) -> Iterator[ClaimVerdict]:
    for mine, kind in (("ours", "algebraic"), ("l2_grey", "iterative")):
        rivals = [one for one in margins if one.mine == mine]
        if not rivals:
            continue
        sets = list(dict.fromkeys(one.data for one in rivals))
        wins = [data for data in sets if all(one.is_ahead for one in rivals if one.data == data)]
        yield ClaimVerdict(
            f"Ours ({mine}) finds no fewer images than any other {kind} attack, and most of them in fewer evaluations",
            _degree(wins, dict.fromkeys(sets)),
            "; ".join(_nearest(data, [one for one in rivals if one.data == data]) for data in sets),
        )


def _nearest(data: str, margins: Sequence[Margin]) -> str:
    """Say how far the best of the others is behind."""
    best = max(margins, key=lambda one: (one.theirs.exact, -(one.theirs.to_exact or float("inf"))))
    a, b = best.ours, best.theirs
    low, high = best.interval
    return (
        f"{data}: {a.exact}/{a.samples} after {_evaluations(a)}, best other ({best.rival}) {b.exact}/{b.samples} after "
        f"{_evaluations(b)}: {100 * best.gain:+.0f} points [{100 * low:+.0f}, {100 * high:+.0f}]"
    )


def _evaluations(result: MethodResult) -> str:
    return "more than the budget" if result.to_exact is None else f"{result.to_exact:.0f} evaluations"


def _degree(won: Sequence[str], of: Mapping[str, object]) -> str:
    if len(won) == len(of):
        return HOLDS
    return f"{PARTLY}: {', '.join(won)}" if won else NOT
