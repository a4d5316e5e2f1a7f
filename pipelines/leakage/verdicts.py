"""A verdict per claim of the paper, from this run's numbers."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from pipelines.leakage.label_study import LabelResult
from pipelines.leakage.margins import Margin
from pipelines.leakage.results import MethodResult
from ray_fed.leakage.fidelity import difference_interval

Results = Mapping[str, Mapping[str, MethodResult]]
"""data -> attack -> result"""
HOLDS, PARTLY, NOT = "holds", "holds only with these settings", "does not hold"
RIVALS = ("dlg", "idlg", "wdlg", "wdlg_best", "cosine", "sorted")


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
    for name, what in (("wdlg", "as published"), ("wdlg_best", "in the best variant found")):
        pairs = _beside_idlg(compared, name)
        if pairs:
            wins = [data for data, (ours, theirs) in pairs.items() if _is_higher(_exact(ours), _exact(theirs))]
            said = "; ".join(
                f"{data}: {a.exact} : {b.exact} of {a.samples} below 1e-3, {a.near} : {b.near} below 1e-2"
                for data, (a, b) in pairs.items()
            )
            yield ClaimVerdict(
                f"The Wasserstein distance raises the success rate over L2 (WDLG {what} against iDLG; Sec. 4.2)",
                _degree(wins, pairs),
                said,
            )


def _stability(compared: Results) -> Iterator[ClaimVerdict]:
    pairs = _beside_idlg(compared, "wdlg")
    if pairs:
        calmer = [data for data, (a, b) in pairs.items() if _is_higher(_diverged(b), _diverged(a))]
        said = "diverged, WDLG : iDLG; " + "; ".join(
            f"{data}: {a.diverged} : {b.diverged} of {a.attacks}" for data, (a, b) in pairs.items()
        )
        yield ClaimVerdict(
            "The Wasserstein distance solves the exploding gradient (Sec. 4.2)", _degree(calmer, pairs), said
        )


def _beside_idlg(compared: Results, name: str) -> dict[str, tuple[MethodResult, MethodResult]]:
    """Return data -> (results of an attack, of iDLG) where both ran."""
    return {data: (found[name], found["idlg"]) for data, found in compared.items() if {name, "idlg"} <= found.keys()}


def _exact(result: MethodResult) -> tuple[int, int]:
    return result.exact, result.samples


def _diverged(result: MethodResult) -> tuple[int, int]:
    return result.diverged, result.attacks


def _is_higher(first: tuple[int, int], second: tuple[int, int]) -> bool:
    """Whether the 95 % interval of the difference of two rates lies above zero."""
    return difference_interval(first, second)[0] > 0


def _rates(rates: Mapping[tuple[str, float], MethodResult]) -> Iterator[ClaimVerdict]:
    large = max((rate for _, rate in rates), default=None)
    if large is None or ("wdlg", large) not in rates or ("idlg", large) not in rates:
        return
    ours, theirs = rates["wdlg", large], rates["idlg", large]
    better = ours.near > theirs.near
    yield ClaimVerdict(
        "WDLG supports large learning rates where DLG and iDLG fail (Sec. 4.3, Fig. 5)",
        HOLDS if better and ours.near > ours.samples / 2 else NOT,
        f"at step size {large:g}: {ours.near}/{ours.samples} against iDLG's {theirs.near}/{theirs.samples} below 1e-2, "
        f"{ours.diverged} against {theirs.diverged} diverged",
    )


def _ours(margins: Sequence[Margin]) -> Iterator[ClaimVerdict]:
    rivals = [one for one in margins if one.rival in RIVALS]
    if not rivals:
        return
    sets = list(dict.fromkeys(one.data for one in rivals))
    wins = [data for data in sets if all(one.is_ahead for one in rivals if one.data == data)]
    yield ClaimVerdict(
        "Ours finds no fewer images than any other, and most of them in fewer evaluations to 1e-3",
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
