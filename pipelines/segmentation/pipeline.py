"""`ray-fed segment`: masks, overlays and tables of grains from micrographs."""

import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pipelines.segmentation.config import SegmentConfig
from ray_fed.errors import ConfigError, DataError
from ray_fed.micrographs.grain_sizes import GrainSizes, grain_sizes
from ray_fed.micrographs.image_files import SUFFIXES, read_grey
from ray_fed.micrographs.model_file import SegmenterCard, load_segmenter
from ray_fed.micrographs.polycrystals import boundary_mask
from ray_fed.micrographs.segmenting import boundary_logits, overlay
from ray_fed.micrographs.unet import UNet
from ray_fed.reporting.run_directory import RunDirectory
from ray_fed.reporting.tensorboard_log import EventLog, global_tag
from ray_fed.reporting.terminal import aligned
from ray_fed.reporting.writing import to_json, write_atomically

USUAL_MODEL = "fedtransfer"
MOST_PICTURES = 20
"""Images that TensorBoard shows; the folder has them all."""
SCALE_TOLERANCE = 1.5
"""Above this ratio of pixel sizes grains look to the network unlike any it has learnt from."""


@dataclass(frozen=True)
class Field:
    """One segmented image."""

    name: str
    image: np.ndarray
    """uint8 [H, W]."""
    mask: np.ndarray
    """uint8 [H, W], 1 = boundary: what the network says."""
    sizes: GrainSizes


def run(options: dict[str, Any], _command_line: Sequence[str]) -> int:
    """Segment all images, then write everything; returns 0. Nothing is written when an image cannot be used."""
    run_directory, images = options.pop("run_directory"), options.pop("images")
    config = SegmentConfig(**options)
    out = _new_folder(config.out)
    network, card = load_segmenter(_model_path(run_directory, config.model))
    overlap = _overlap(config, card)
    pictures = {name: read_grey(path, "segment", config.bits) for name, path in _named(images).items()}
    _warn_of_scale(config, card)
    fields = [_segmented(network, name, image, card, overlap, config) for name, image in pictures.items()]
    _warn_of_nothing_found(fields)
    for field in fields:
        _write_pictures(out, field)
    write_atomically(out / "grains.csv", grain_table(fields, config.pixel_size_um).to_csv(index=False).encode())
    table = field_table(fields, config.pixel_size_um)
    write_atomically(out / "fields.csv", table.to_csv(index=False).encode())
    _log(out, config, fields, table)
    write_atomically(out / "summary.json", to_json(summary_of(table)))
    print(aligned([list(table.columns), *[_cells(row) for row in table.itertuples(index=False)]], rule=True))
    print(f"{sum(len(f.sizes.area_px) for f in fields)} grains of {len(fields)} images in {out}/grains.csv")
    return 0


def grain_table(fields: Iterable[Field], pixel_size_um: float | None) -> pd.DataFrame:
    """Return one line per grain; sizes in micrometres and ASTM numbers only where the pixel size is known."""
    return pd.concat([_grains(field, pixel_size_um) for field in fields], ignore_index=True)


def field_table(fields: Iterable[Field], pixel_size_um: float | None) -> pd.DataFrame:
    """Return one line per image: grains counted as ASTM E112 counts them, mean size, grain-size number."""
    return pd.DataFrame([_field_row(field, pixel_size_um) for field in fields])


def summary_of(table: pd.DataFrame) -> dict[str, str | float]:
    """Return the number of images and the mean over them of each number of `field_table`."""
    means = {f"mean.{name}": float(value) for name, value in table.select_dtypes("number").mean().items()}
    return {"status": "completed", "images": len(table), **means}


def _grains(field: Field, pixel_size_um: float | None) -> pd.DataFrame:
    sizes = field.sizes
    columns: dict[str, object] = {
        "image": field.name,
        "grain": np.arange(1, len(sizes.area_px) + 1),
        "row_px": sizes.row.round(2),
        "column_px": sizes.column.round(2),
        "touches_frame": sizes.touches_frame,
        "area_px": sizes.area_px,
        "equivalent_diameter_px": sizes.equivalent_diameter_px.round(3),
    }
    if pixel_size_um:
        columns["area_um2"] = _significant(sizes.area_px * pixel_size_um**2)
        columns["equivalent_diameter_um"] = _significant(sizes.equivalent_diameter_px * pixel_size_um)
        columns["astm_g"] = sizes.astm_g_of_each(pixel_size_um).round(2)
    return pd.DataFrame(columns)


def _significant(values: np.ndarray) -> list[float]:
    """Return values to 5 digits: a micrograph measures no finer, whatever the unit."""
    return [float(f"{value:.5g}") for value in values]


def _field_row(field: Field, pixel_size_um: float | None) -> dict[str, object]:
    sizes = field.sizes
    counted = sizes.grains_in_field()
    mean_area = sizes.labels.size / counted if counted else float("nan")
    row: dict[str, object] = {
        "image": field.name,
        "grains": len(sizes.area_px),
        "cut_by_frame": int(sizes.touches_frame.sum()),
        "grains_in_field": counted,
        "mean_area_px": round(mean_area, 1),
    }
    if pixel_size_um:
        row["mean_area_um2"] = round(mean_area * pixel_size_um**2, 3)
        row["astm_g"] = round(sizes.astm_g(pixel_size_um), 2)
    return row


def _segmented(
    network: UNet, name: str, image: np.ndarray, card: SegmenterCard, overlap: int, config: SegmentConfig
) -> Field:
    mask = (boundary_logits(network, image, card.tile_size, overlap) > 0).astype(np.uint8)
    return Field(name, image, mask, grain_sizes(mask, config.min_grain_pixels))


def _write_pictures(out: Path, field: Field) -> None:
    """Write the network's mask (255 = boundary) and the boundaries of the measured grains over the image."""
    _write_png(out / f"{field.name}.mask.png", field.mask * np.uint8(255))
    _write_png(out / f"{field.name}.overlay.png", overlay(field.image, boundary_mask(field.sizes.labels)))


def _log(out: Path, config: SegmentConfig, fields: Sequence[Field], table: pd.DataFrame) -> None:
    """Show in TensorBoard what was found, image after image: numbers by image, boundaries over each picture."""
    numbers = table.select_dtypes("number")
    with EventLog(out / "tensorboard") as log:
        log.hyperparameters({"pipeline": "segment", **asdict(config)}, out.name)
        for step, row in enumerate(numbers.to_dict("records")):
            log.scalars({global_tag(str(name)): float(value) for name, value in row.items()}, step)
        pictures = [out / f"{field.name}.overlay.png" for field in fields[:MOST_PICTURES]]
        log.outcome({str(name): float(value) for name, value in numbers.mean().items()}, pictures)


def _write_png(path: Path, pixels: np.ndarray) -> None:
    from PIL import Image

    content = BytesIO()
    Image.fromarray(pixels).save(content, "PNG")
    write_atomically(path, content.getvalue())


def _named(images: Sequence[str]) -> dict[str, Path]:
    """Return name -> file; a folder stands for the image files in it. DataError for nothing, or one name twice."""
    paths = [path for given in images for path in _files(Path(given))]
    found: dict[str, Path] = {}
    for path in paths:
        if path.stem in found:
            raise DataError(f"{found[path.stem]} and {path} would both be written as '{path.stem}'; rename one")
        found[path.stem] = path
    return found


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    found = sorted(each for each in path.iterdir() if each.suffix.lower() in SUFFIXES)
    if not found:
        raise DataError(f"{path} holds no image files ({', '.join(SUFFIXES)})")
    return found


def _model_path(run_directory: str, model: str) -> Path:
    if run_directory.endswith(".safetensors"):
        return Path(run_directory)
    folder = RunDirectory.open(run_directory).models
    there = sorted(path.stem for path in folder.glob("*.safetensors"))
    chosen = model or (USUAL_MODEL if USUAL_MODEL in there else there[0] if len(there) == 1 else "")
    if chosen not in there:
        raise ConfigError(f"model={chosen!r} is not in {folder}; there is: {', '.join(there) or 'none'}")
    return folder / f"{chosen}.safetensors"


def _new_folder(out: str) -> Path:
    path = Path(out)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ConfigError(f"out={out} is not an empty folder; give another one")
    return path


def _overlap(config: SegmentConfig, card: SegmenterCard) -> int:
    overlap = card.tile_size // 4 if config.overlap is None else config.overlap
    if overlap >= card.tile_size:
        raise ConfigError(f"overlap={overlap} must be less than the model's tile of {card.tile_size} pixels")
    return overlap


def _warn_of_scale(config: SegmentConfig, card: SegmenterCard) -> None:
    if not (config.pixel_size_um and card.pixel_size_um):
        return
    ratio = config.pixel_size_um / card.pixel_size_um
    if not 1 / SCALE_TOLERANCE <= ratio <= SCALE_TOLERANCE:
        print(
            f"note: pixels of {config.pixel_size_um} um, the model learnt from {card.pixel_size_um} um: resample the "
            "images for reliable boundaries",
            file=sys.stderr,
        )


def _warn_of_nothing_found(fields: Iterable[Field]) -> None:
    for field in fields:
        if len(field.sizes.area_px) < 2:
            found = "no boundary" if len(field.sizes.area_px) else "nothing but boundary"
            print(f"note: {found} in '{field.name}': the model may not know images of this kind", file=sys.stderr)


def _cells(row: Iterable[object]) -> list[str]:
    return [str(value) for value in row]
