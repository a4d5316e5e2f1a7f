"""The rows everyone asks for first: each silo alone, pooled, federated. One source for terminal, report and figures."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ray_fed.reporting.writing import to_plain

KINDS = ("silo", "other", "pooled", "federated")
"""In the order of a table."""


@dataclass(frozen=True)
class ResultRow:
    """One model on the common test set."""

    name: str
    kind: str
    """silo (one silo's rows alone) | pooled | federated | other"""
    mae: float | None
    """In the target's unit."""
    r2: float | None
    mae_std: float | None = None
    """Spread over seeds; None with one seed."""
    r2_std: float | None = None
    num_examples: int | None = None
    """Rows the model was trained on."""

    @property
    def label(self) -> str:
        """How the model is called in tables: "mit alone", "pooled", "federated"."""
        return f"{self.name} alone" if self.kind == "silo" else self.name


def results_from_summary(summary: Mapping[str, object]) -> list[ResultRow]:
    """Return one row per `<model>.mae` of a summary: silos in natural order, then pooled, then federated.

    Keys read: `<model>.mae`, `.r2`, `.mae_std`, `.r2_std`, `.num_examples`; <model> is "federated", "pooled" or
    "silo.<name>", and a name may have dots.
    """
    models = [key.removesuffix(".mae") for key in summary if key.endswith(".mae")]
    rows = [_row(model, summary) for model in models]
    return sorted(rows, key=lambda row: (KINDS.index(row.kind), natural_order(row.name)))


def natural_order(name: str) -> list[tuple[int, int, str]]:
    """Return a sort key with which silo_2 comes before silo_10."""
    parts = re.split(r"([0-9]+)", name)
    return [(0, int(part), part) if index % 2 else (1, 0, part) for index, part in enumerate(parts)]


def comparison(rows: Sequence[ResultRow]) -> str:
    """Say in one sentence how federated training did against pooled and against the best silo; empty without it."""
    best = {kind: _lowest(rows, kind) for kind in ("federated", "pooled", "silo")}
    if best["federated"] is None:
        return ""
    against = [("pooled training", best["pooled"]), ("the best silo alone", best["silo"])]
    parts = [_relation(best["federated"], other, name) for name, other in against if other]
    return f"Federated MAE is {' and '.join(parts)}." if parts else ""


def number(value: object, digits: int = 4) -> str:
    """Return a number with fixed decimals so that columns line up; "-" for None and NaN."""
    if value is None or not isinstance(value, int | float) or not math.isfinite(value):
        return "-"
    return f"{value:.{digits}f}" if abs(value) < 1e5 else f"{value:.{digits}g}"


def has_spread(rows: Sequence[ResultRow]) -> bool:
    """Whether any row was repeated over seeds."""
    return any(_finite(row.mae_std) is not None or _finite(row.r2_std) is not None for row in rows)


def result_header(unit: str, spread: bool) -> list[str]:
    """Return the titles of the result columns."""
    mae, r2 = [f"MAE ({unit})", *(["± std"] if spread else [])], ["R²", *(["± std"] if spread else [])]
    return ["model", "training rows", *mae, *r2]


def result_cells(row: ResultRow, spread: bool) -> list[str]:
    """Return one row under `result_header`."""
    count = "-" if row.num_examples is None else f"{row.num_examples:,}"
    mae, r2 = [number(row.mae)], [number(row.r2)]
    if spread:
        mae, r2 = [*mae, number(row.mae_std)], [*r2, number(row.r2_std)]
    return [row.label, count, *mae, *r2]


def _row(model: str, summary: Mapping[str, object]) -> ResultRow:
    def found(field: str) -> Any:
        return to_plain(summary.get(f"{model}.{field}"))

    kind = "silo" if model.startswith("silo.") else model if model in KINDS else "other"
    return ResultRow(
        model.removeprefix("silo."), kind, found("mae"), found("r2"), found("mae_std"), found("r2_std"),
        found("num_examples"),
    )  # fmt: skip


def _lowest(rows: Sequence[ResultRow], kind: str) -> float | None:
    values = [_finite(row.mae) for row in rows if row.kind == kind]
    return min((value for value in values if value is not None), default=None)


def _finite(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _relation(federated: float, other: float, name: str) -> str:
    percent = 100 * (federated / other - 1)
    if abs(percent) < 0.05:
        return f"equal to that of {name}"
    return f"{abs(percent):.1f} % {'above' if percent > 0 else 'below'} that of {name}"
