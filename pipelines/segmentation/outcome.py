"""What a segmentation leaves behind once all images are done: tables, figures, report, TensorBoard."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pipelines.segmentation.config import SegmentConfig
from pipelines.segmentation.measuring import COLUMNS, Specimen, specimens
from ray_fed.reporting.figure_style import FEDERATED, LABEL_SIZE, SILO, dress, new_figure, save_figure
from ray_fed.reporting.report import Figure, Paragraph, Section, Table, write_report
from ray_fed.reporting.run_directory import RunDirectory
from ray_fed.reporting.tensorboard_log import EventLog, global_tag
from ray_fed.reporting.writing import write_atomically

MOST_PICTURES = 20
"""Images that TensorBoard shows; the folder has them all."""
REPORT_OVERLAYS = 6
LEAST_SHOWN = 2
SHOWN_FIELDS = 200
METHOD = (
    "ASTM E112: planimetric (grains inside, half of those cut by the frame, one for the corners) and by intercepts "
    "with all rows and columns of pixels; G of a specimen is that of the mean over its fields, with Student's 95 % "
    "interval and relative accuracy (%RA). The intercept number of structures less even than the standard's is up to "
    "0.4 higher."
)
MEANS = ("grains", "grains_in_field", "mean_area_px", "mean_area_um2", "boundary_share", "astm_g", "astm_g_intercept")
"""Means over all images, by which runs are compared."""
NUMBERS = ["grains", "cut_by_frame", "grains_in_field", "mean_area_px", "astm_g", "astm_g_intercept"]


def finish(
    directory: RunDirectory, config: SegmentConfig, rows: Sequence[Mapping[str, Any]], failed: Mapping[str, str],
    parts: Path, command: Sequence[str],
) -> list[Specimen]:  # fmt: skip
    """Write tables, report and TensorBoard of all images; return the specimens."""
    table = pd.DataFrame(list(rows), columns=list(COLUMNS))
    write_atomically(directory.path / "fields.csv", table.to_csv(index=False).encode())
    grains = _all_grains(directory, rows, parts)
    found = specimens(rows)
    summary = _summary(rows, failed, found)
    figures = _figures(directory, grains)
    sections = _sections(directory, rows, failed, found, figures)
    write_report(
        directory, "Grains", summary, sections,
        subtitle=f"{len(rows)} micrographs segmented", command=shlex.join(command),
    )  # fmt: skip
    directory.write_summary(summary)  # type: ignore[arg-type]
    _log(directory, config, rows, figures)
    return found


def _all_grains(directory: RunDirectory, rows: Sequence[Mapping[str, Any]], parts: Path) -> pd.DataFrame:
    """Join the images' tables into grains.csv; return diameters and areas, all that figures need of them."""
    kept = []
    path = directory.path / "grains.csv"
    with path.with_suffix(".part").open("w", encoding="utf-8") as file:
        for place, row in enumerate(rows):
            table = pd.read_csv(parts / f"{row['image']}.grains.csv")
            table.to_csv(file, index=False, header=place == 0)
            kept.append(table[["touches_frame", "area_um2", "equivalent_diameter_um", "equivalent_diameter_px"]])
    path.with_suffix(".part").replace(path)
    return pd.concat(kept, ignore_index=True) if kept else pd.DataFrame()


def _summary(
    rows: Sequence[Mapping[str, Any]], failed: Mapping[str, str], found: Sequence[Specimen]
) -> dict[str, object]:
    summary: dict[str, object] = {
        "status": "completed",
        "images": len(rows),
        "images_failed": len(failed),
        "grains": sum(row["grains"] for row in rows),
    }
    for name in MEANS:
        values = [row[name] for row in rows if row[name] is not None]
        if values:
            summary[f"mean.{name}"] = float(np.mean(values))
    for specimen in found:
        summary |= {
            f"{specimen.name}.astm_g": specimen.g,
            f"{specimen.name}.astm_g_interval": specimen.g_interval,
            f"{specimen.name}.relative_accuracy_percent": specimen.density.relative_accuracy,
            f"{specimen.name}.astm_g_intercept": specimen.g_intercept,
            f"{specimen.name}.fields": specimen.density.num_fields,
        }
    return summary


def _figures(directory: RunDirectory, grains: pd.DataFrame) -> dict[str, Path]:
    """Draw the distribution of the grains that are whole; those cut by the frame have no size."""
    is_whole = ~grains["touches_frame"].to_numpy(bool) if len(grains) else np.zeros(0, bool)
    for column, unit in (("equivalent_diameter_um", "µm"), ("equivalent_diameter_px", "pixels")):
        values = grains[column].to_numpy(float)[is_whole] if len(grains) else np.zeros(0)
        diameters = values[np.isfinite(values)]
        if len(diameters) >= LEAST_SHOWN:
            return {"sizes": _sizes_figure(directory, diameters, unit)}
    return {}


def _sizes_figure(directory: RunDirectory, diameters: np.ndarray, unit: str) -> Path:
    edges = np.geomspace(max(diameters.min(), 1e-9), diameters.max() * 1.001, 25)
    figure = new_figure(8.4, 3.4)
    by_area = 100 * diameters**2 / (diameters**2).sum()
    looks = ((None, "grains", SILO), (by_area, "area (%)", FEDERATED))
    for axis, (weights, said, colour) in zip(figure.subplots(1, 2), looks, strict=True):
        axis.hist(diameters, edges, weights=weights, color=colour, density=False)
        axis.set_xscale("log")
        axis.set_xlabel(f"equivalent diameter ({unit})", fontsize=LABEL_SIZE)
        axis.set_ylabel(said, fontsize=LABEL_SIZE)
        axis.xaxis.set_major_formatter("{x:g}")
        axis.xaxis.set_minor_formatter("{x:g}")
        dress(axis, "y")
    return save_figure(figure, directory.figures / "sizes.png")


def _sections(
    directory: RunDirectory, rows: Sequence[Mapping[str, Any]], failed: Mapping[str, str],
    found: Sequence[Specimen], figures: Mapping[str, Path],
) -> list[Section]:  # fmt: skip
    said = [Paragraph(text) for specimen in found for text in specimen.sentences()]
    sections = [Section("Grain size", [*said, Paragraph(METHOD)])]
    if "sizes" in figures:
        caption = "Grains that no frame cuts, by number (left) and weighted by their area (right)."
        sections.append(Section("Distribution", [Figure(figures["sizes"], caption)]))
    if failed:
        lines = [[name, reason] for name, reason in failed.items()]
        sections.append(Section("Not segmented", [Table(["image", "reason"], lines)]))
    shown = [[row["image"], *(_cell(row[name]) for name in NUMBERS), row["no_g_because"], row["notes"]] for row in rows]
    caption = "" if len(rows) <= SHOWN_FIELDS else f"The first {SHOWN_FIELDS}; fields.csv has all."
    table = Table(["image", *NUMBERS, "no G because", "notes"], shown[:SHOWN_FIELDS], caption)
    overlays = [
        Figure(directory.path / f"{row['image']}.overlay.png", f"{row['image']}, boundaries of the measured grains.")
        for row in rows[:REPORT_OVERLAYS]
    ]
    return [*sections, Section("Fields", [table]), Section("Overlays", overlays, folded=True)]


def _cell(value: object) -> str:
    return "" if value is None else str(value)


def _log(
    directory: RunDirectory, config: SegmentConfig, rows: Sequence[Mapping[str, Any]], figures: Mapping[str, Path]
) -> None:
    """Show in TensorBoard what was found, image after image: numbers by image, boundaries over each picture."""
    with EventLog(directory.path / "tensorboard") as log:
        log.hyperparameters({"pipeline": "segment", **asdict(config)}, directory.path.name)
        for step, row in enumerate(rows):
            numbers = {name: row[name] for name in NUMBERS if row[name] is not None}
            log.scalars({global_tag(name): float(value) for name, value in numbers.items()}, step)
        pictures = [directory.path / f"{row['image']}.overlay.png" for row in rows[:MOST_PICTURES]]
        means = {name: float(np.mean([row[name] for row in rows if row[name] is not None] or [0])) for name in NUMBERS}
        log.outcome(means, [*pictures, *figures.values()])
