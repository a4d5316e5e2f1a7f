"""What the attacks' rows say together: rates with intervals, evaluations to a threshold, time."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from statistics import median

from ray_fed.leakage.attacks import WDLG_FAMILY
from ray_fed.leakage.fidelity import wilson_interval

Row = Mapping[str, object]
NEAR, EXACT = "0.01", "0.001"


@dataclass(frozen=True)
class MethodResult:
    """One attack under one condition, over all its problems."""

    attack: str
    attacks: int
    """Attacks that ran."""
    samples: int
    near: int
    """Samples with a mean squared error below 1e-2."""
    exact: int
    """Samples with a mean squared error below 1e-3."""
    median_mse: float
    to_near: float | None
    """Median number of evaluations until the error is below 1e-2. Attacks that never get there count as infinite;
    None when the median is one of them."""
    to_exact: float | None
    labels_right: float
    diverged: int
    median_psnr: float
    seconds: float
    """Per attack, on one core."""


def select(rows: Iterable[Row], **wanted: object) -> list[Row]:
    """Return the rows whose fields equal `wanted`."""
    return [row for row in rows if all(row.get(key) == value for key, value in wanted.items())]


def summarise(rows: Sequence[Row], seconds: Mapping[str, float]) -> MethodResult:
    """Sum up rows of one attack; `seconds` are those of each job, by key."""
    ran = [row for row in rows if "failed" not in row]
    jobs = {str(row["job"]) for row in rows}
    spent = sum(seconds.get(job, 0.0) for job in jobs)
    return MethodResult(
        str(rows[0]["attack"]), len(ran),
        sum(int(number(row, "samples")) for row in ran),
        sum(int(number(row, "near")) for row in ran),
        sum(int(number(row, "exact")) for row in ran),
        median([number(row, "mse") for row in ran] or [float("nan")]),
        _median_to(ran, NEAR), _median_to(ran, EXACT),
        sum(number(row, "labels_right") for row in ran) / max(1, len(ran)),
        sum(bool(row["diverged"]) for row in ran),
        median([number(row, "psnr") for row in ran] or [float("nan")]),
        spent / max(1, len(rows)),
    )  # fmt: skip


def number(row: Row, key: str) -> float:
    """Return a numeric field; one that JSON had to write as null was not finite."""
    value = row[key]
    return float("nan") if value is None else float(value)  # type: ignore[arg-type]


def _median_to(rows: Sequence[Row], limit: str) -> float | None:
    counts = sorted(number(row, f"evaluations_to_{limit}") or float("inf") for row in rows)
    middle = median(counts) if counts else float("inf")
    return None if middle == float("inf") else middle


def best_reading(methods: Mapping[str, MethodResult]) -> str:
    """Return the reading of WDLG that found most here, chosen on the very images it is judged on: in its favour."""
    tried = [name for name in READINGS if name in methods and methods[name].attacks]
    return max(tried, key=lambda name: _found(methods[name]), default="")


def _found(result: MethodResult) -> tuple[int, int, float]:
    return result.exact, result.near, -result.median_mse if isfinite(result.median_mse) else float("-inf")


READINGS = tuple(one.name for one in WDLG_FAMILY)


def table_cells(result: MethodResult) -> list[str]:
    """Return a line of the comparison as text."""
    if result.attacks == 0:
        return [result.attack, "could not run", *["–"] * 8]
    return [
        result.attack, _rate(result.near, result.samples), _rate(result.exact, result.samples),
        f"{result.median_mse:.0e}",
        _count(result.to_near), _count(result.to_exact), f"{result.labels_right:.0%}",
        f"{result.diverged / result.attacks:.0%}", f"{result.median_psnr:.1f}", f"{result.seconds:.2f}",
    ]  # fmt: skip


HEADER = ["attack", "< 1e-2", "< 1e-3", "median", "ev. 1e-2", "ev. 1e-3", "labels", "diverged", "PSNR", "s/attack"]
HEADER_SAYS = (
    "< 1e-2, < 1e-3: images with a mean squared error below it, in brackets the 95 % interval (Wilson) in per cent; "
    "median: of the mean squared error; ev.: median gradient evaluations to that error over all images; labels: right "
    "ones; PSNR: median in dB; s/attack: on one core"
)


def _rate(successes: int, trials: int) -> str:
    low, high = wilson_interval(successes, trials)
    return f"{successes}/{trials} [{100 * low:.0f},{100 * high:.0f}]"


def _count(value: float | None) -> str:
    return "–" if value is None else f"{value:.0f}"
