"""What is measured in one segmented image, and in all images of a specimen: the lines of the tables."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from ray_fed.micrographs.grain_sizes import (
    FEW_GRAINS,
    LEAST_GRAINS,
    GrainSizes,
    MeanOverFields,
    astm_grain_size_number,
    intercept_grain_size_number,
    mean_over_fields,
    smallest_resolvable_px,
)
from ray_fed.micrographs.line_widths import line_width

MODEL_UNKNOWN = (
    "the model does not say at which pixel size it has learnt (give --model-pixel-size-um), so that it may be "
    "looking at another scale"
)
IMAGE_UNKNOWN = "the pixel size of the image is not known (give --pixel-size-um)"


@dataclass(frozen=True)
class Field:
    """One segmented image."""

    name: str
    specimen: str
    """The folder its file lies in: the fields of one specimen are averaged."""
    image: np.ndarray
    """uint8 [H, W], without the data bar."""
    mask: np.ndarray
    """uint8 [H, W], 1 = boundary: what the network says."""
    sizes: GrainSizes
    pixel_size_um: float | None = None
    model_pixel_size_um: float | None = None
    notes: tuple[str, ...] = field(default=())

    @property
    def why_no_number(self) -> str:
        """Why no grain-size number is told; empty where one is."""
        if len(self.sizes.area_px) < LEAST_GRAINS:
            return self.sizes.why_no_number(self.pixel_size_um)
        if not self.pixel_size_um:
            return IMAGE_UNKNOWN
        if not self.model_pixel_size_um:
            return MODEL_UNKNOWN
        return self.sizes.why_no_number(self.pixel_size_um)

    @property
    def says_sizes(self) -> bool:
        """Whether micrometres may be told."""
        return not self.why_no_number


def grain_table(field: Field) -> pd.DataFrame:
    """Return one line per grain; sizes in micrometres and ASTM numbers only where they may be told."""
    sizes, pixel = field.sizes, field.pixel_size_um if field.says_sizes else None
    columns: dict[str, object] = {
        "image": field.name,
        "grain": np.arange(1, len(sizes.area_px) + 1),
        "row_px": sizes.row.round(2),
        "column_px": sizes.column.round(2),
        "touches_frame": sizes.touches_frame,
        "area_px": sizes.area_px,
        "equivalent_diameter_px": sizes.equivalent_diameter_px.round(3),
    }
    empty = np.full(len(sizes.area_px), np.nan)
    columns["area_um2"] = significant(sizes.area_px * pixel**2) if pixel else empty
    columns["equivalent_diameter_um"] = significant(sizes.equivalent_diameter_px * pixel) if pixel else empty
    columns["astm_g"] = sizes.astm_g_of_each(pixel).round(2) if pixel else empty
    return pd.DataFrame(columns)


def significant(values: np.ndarray) -> list[float]:
    """Return values to 5 digits: a micrograph measures no finer, whatever the unit."""
    return [float(f"{value:.5g}") for value in values]


COLUMNS = (
    "image", "specimen", "grains", "cut_by_frame", "grains_in_field", "mean_area_px", "mean_intercept_px",
    "boundary_share", "islands_removed", "pixel_size_um", "grains_per_mm2", "mean_area_um2", "mean_intercept_um",
    "smallest_resolvable_um2", "astm_g", "astm_g_intercept", "no_g_because", "notes",
)  # fmt: skip
"""Of fields.csv: what `field_row` returns."""


def field_row(field: Field) -> dict[str, Any]:
    """Return the line of an image: grains counted as ASTM E112 counts them, mean size, grain-size numbers or why there
    are none."""
    sizes, pixel = field.sizes, field.pixel_size_um
    counted = sizes.grains_in_field()
    mean_area = sizes.labels.size / counted if counted else math.nan
    told = pixel if field.says_sizes else None
    least = smallest_resolvable_px(line_width(field.mask[None]))
    return {
        "image": field.name,
        "specimen": field.specimen,
        "grains": len(sizes.area_px),
        "cut_by_frame": int(sizes.touches_frame.sum()),
        "grains_in_field": counted,
        "mean_area_px": round(mean_area, 1),
        "mean_intercept_px": round(sizes.mean_intercept_px(), 2),
        "boundary_share": round(sizes.line_share, 3),
        "islands_removed": sizes.num_islands,
        "pixel_size_um": pixel,
        "grains_per_mm2": _five(sizes.grains_per_square_mm(told)) if told else None,
        "mean_area_um2": _five(mean_area * told**2) if told else None,
        "mean_intercept_um": _five(sizes.mean_intercept_px() * told) if told else None,
        "smallest_resolvable_um2": _five(least * pixel**2) if pixel else None,
        "astm_g": _rounded(sizes.astm_g(told)) if told else None,
        "astm_g_intercept": _rounded(sizes.astm_g_of_intercepts(told)) if told else None,
        "no_g_because": field.why_no_number,
        "notes": "; ".join(field.notes),
    }


def _five(value: float) -> float | None:
    return float(f"{value:.5g}") if math.isfinite(value) else None


def _rounded(value: float) -> float | None:
    return round(value, 2) if math.isfinite(value) else None


@dataclass(frozen=True)
class Specimen:
    """The grain size of a specimen over its fields, as ASTM E112 reports it."""

    name: str
    num_fields: int
    """All fields, also those without a number."""
    density: MeanOverFields
    """N_A, grains per mm2."""
    intercept: MeanOverFields
    """Mean lineal intercept, micrometres."""
    grains_counted: float

    @property
    def g(self) -> float:
        """Planimetric: of the mean density, as E112 asks, not the mean of the fields' numbers."""
        return float(astm_grain_size_number(self.density.mean)) if self.density.num_fields else math.nan

    @property
    def g_interval(self) -> float:
        """Half of the 95 % interval of G."""
        return _half_in_g(self.density, lambda value: float(astm_grain_size_number(value)))

    @property
    def g_intercept(self) -> float:
        mean = self.intercept.mean
        return intercept_grain_size_number(mean / 1000) if self.intercept.num_fields else math.nan

    @property
    def g_intercept_interval(self) -> float:
        return _half_in_g(self.intercept, lambda value: intercept_grain_size_number(value / 1000))

    def sentences(self) -> list[str]:
        """Say the result as a laboratory reports it, or why there is none."""
        n, all_fields = self.density.num_fields, self.num_fields
        if not n:
            return [f"{self.name}: no grain-size number of {all_fields} field(s); see no_g_because in fields.csv"]
        left_out = f", {all_fields - n} more field(s) without a number" if all_fields > n else ""
        if n < 2:
            said = [f"{self.name}: ASTM G {self.g:.2f} of one field: no confidence interval{left_out}"]
        else:
            said = [
                f"{self.name}: ASTM G {self.g:.2f} ± {self.g_interval:.2f} (95 % confidence, {n} fields, "
                f"{self.density.relative_accuracy:.0f} %RA, planimetric){left_out}"
            ]
        if self.intercept.num_fields:
            said.append(f"{self.name}: ASTM G by intercepts {self.g_intercept:.2f}" + self._interval_of_intercepts())
        if self.grains_counted < FEW_GRAINS * n:
            said.append(
                f"note: {self.name} has {self.grains_counted / n:.0f} grains a field; ASTM E112 counts {FEW_GRAINS} "
                "or more"
            )
        return said

    def _interval_of_intercepts(self) -> str:
        if self.intercept.num_fields < 2:
            return ""
        return f" ± {self.g_intercept_interval:.2f} ({self.intercept.relative_accuracy:.0f} %RA)"


def _half_in_g(mean: MeanOverFields, number) -> float:
    if mean.num_fields < 2 or mean.half_interval >= mean.mean:
        return math.nan
    ends = [number(mean.mean + sign * mean.half_interval) for sign in (-1, 1)]
    return abs(ends[1] - ends[0]) / 2


def specimens(rows: Sequence[Mapping[str, Any]]) -> list[Specimen]:
    """Return the specimens of the fields' lines, by name."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        found.setdefault(str(row["specimen"]), []).append(row)
    return [_specimen(name, some) for name, some in sorted(found.items())]


def _specimen(name: str, rows: Sequence[Mapping[str, Any]]) -> Specimen:
    told = [row for row in rows if row["astm_g"] is not None]
    by_intercepts = [row for row in rows if row["astm_g_intercept"] is not None]
    return Specimen(
        name,
        len(rows),
        mean_over_fields([row["grains_per_mm2"] for row in told]),
        mean_over_fields([row["mean_intercept_um"] for row in by_intercepts]),
        sum(row["grains_in_field"] for row in told),
    )
