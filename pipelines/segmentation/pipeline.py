"""`ray-fed segment`: masks, overlays, outlines and tables of grains from micrographs, one image after another.

What is done of an image is written before the next one is opened, its line in `parts/` last: that line stands for the
image, and a segmentation that was broken off goes on after it.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.segmentation.config import SegmentConfig
from pipelines.segmentation.measuring import Field, field_row, grain_table
from pipelines.segmentation.outcome import finish
from ray_fed.errors import ConfigError, DataError
from ray_fed.micrographs.drawn_labels import grain_outlines, roi_zip
from ray_fed.micrographs.grain_sizes import grain_sizes
from ray_fed.micrographs.image_files import SUFFIXES, ReadingRules, read_picture, require_readable
from ray_fed.micrographs.model_file import SegmenterCard, load_segmenter
from ray_fed.micrographs.polycrystals import boundary_mask
from ray_fed.micrographs.scale import agreed, factor_between, pixel_size_in, require_plausible
from ray_fed.micrographs.segmenting import boundaries, overlay
from ray_fed.micrographs.unet import UNet
from ray_fed.reading import read_json
from ray_fed.reporting.run_directory import RunDirectory
from ray_fed.reporting.terminal import RoundProgress, aligned
from ray_fed.reporting.writing import to_json, to_plain, write_atomically

USUAL_MODEL = "fedtransfer"
COARSE = 2.0
"""Images that must be enlarged by more lack the detail that the model has learnt boundaries from."""
SHOWN_LINES = 40
PRINTED = ("image", "grains", "cut_by_frame", "mean_area_px", "mean_area_um2", "astm_g", "astm_g_intercept")


@dataclass(frozen=True)
class Segmenter:
    """A model and how it is used."""

    network: UNet
    card: SegmenterCard
    config: SegmentConfig
    overlap: int

    @property
    def pixel_size_um(self) -> float | None:
        return self.config.model_pixel_size_um or self.card.pixel_size_um

    def field(self, name: str, path: Path) -> Field:
        """Return an image with what was found in it; DataError for one that cannot be used."""
        config, who = self.config, "segment"
        picture = read_picture(path, who, ReadingRules(config.bits, config.page, config.data_bar))
        pixel = agreed(config.pixel_size_um, pixel_size_in(path, who), path, who)
        factor = (
            factor_between(pixel, self.pixel_size_um, f"{who}: {path.name}") if pixel and self.pixel_size_um else 1.0
        )
        try:
            mask = boundaries(self.network, picture.grey, self.card.tile_size, self.overlap, factor)
        except ValueError as error:
            raise DataError(f"{who}: {path} at the model's scale: {error}") from error
        notes = [*picture.notes, *_scale_notes(factor, pixel, config.pixel_size_um)]
        sizes = grain_sizes(mask, config.min_grain_pixels)
        return Field(
            name, path.absolute().parent.name, picture.grey, mask, sizes, pixel, self.pixel_size_um, tuple(notes)
        )


def run(options: dict[str, Any], command: Sequence[str]) -> int:
    """Segment all images; returns 0, or 1 where some could not be used. Nothing is written when an image cannot even
    be opened, or a choice is wrong."""
    run_directory, images = options.pop("run_directory"), options.pop("images")
    config = SegmentConfig(**options)
    named = _named(images)
    for path in named.values():
        require_readable(path, "segment")
    model = _model_path(run_directory, config.model)
    network, card = load_segmenter(model)
    segmenter = Segmenter(network, card, config, _overlap(config, card))
    for what in ("pixel_size_um", "model_pixel_size_um"):
        if getattr(config, what):
            require_plausible(getattr(config, what), what)
    directory = _directory(config, card)
    rows, failed = _segment_all(segmenter, named, directory)
    found = finish(directory, config, rows, failed, _parts(directory), command)
    _print(directory, rows, failed, [text for specimen in found for text in specimen.sentences()])
    return 1 if failed else 0


def _segment_all(
    segmenter: Segmenter, named: Mapping[str, Path], directory: RunDirectory
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Return the lines of the images, and image -> reason for those that could not be used."""
    rows, failed = [], {}
    with RoundProgress(step="image") as progress:
        progress.start(len(named), "segment")
        for name, path in named.items():
            done = _parts(directory) / f"{name}.json"
            if done.is_file():
                rows.append(read_json(done, "remove it, and the image is segmented again"))
            else:
                try:
                    rows.append(_segment(segmenter, name, path, directory))
                    _say(progress, rows[-1])
                except DataError as error:
                    failed[name] = str(error)
                    progress.note(f"not segmented: {error}")
            progress.advance({})
    return rows, failed


def _say(progress: RoundProgress, row: Mapping[str, Any]) -> None:
    for text in (row["no_g_because"], row["notes"]):
        if text:
            progress.note(f"note: {row['image']}: {text}")
    if row["grains"] < 2:
        found = "no boundary" if row["grains"] else "nothing but boundary"
        progress.note(f"note: {found} in '{row['image']}': the model may not know images of this kind")


def _segment(segmenter: Segmenter, name: str, path: Path, directory: RunDirectory) -> dict[str, Any]:
    field = segmenter.field(name, path)
    _write_png(directory.path / f"{name}.mask.png", field.mask * np.uint8(255))
    _write_png(directory.path / f"{name}.overlay.png", overlay(field.image, boundary_mask(field.sizes.labels)))
    if segmenter.config.rois and len(field.sizes.area_px):
        write_atomically(directory.path / f"{name}.rois.zip", roi_zip(grain_outlines(field.sizes.labels)))
    write_atomically(_parts(directory) / f"{name}.grains.csv", grain_table(field).to_csv(index=False).encode())
    row: dict[str, Any] = dict(to_plain(field_row(field)))  # type: ignore[arg-type]
    write_atomically(_parts(directory) / f"{name}.json", to_json(row, indent=2) + b"\n")
    return row


def _print(
    directory: RunDirectory, rows: Sequence[Mapping[str, Any]], failed: Mapping[str, str], said: Sequence[str]
) -> None:
    lines = [["" if row[name] is None else str(row[name]) for name in PRINTED] for row in rows[:SHOWN_LINES]]
    print(aligned([list(PRINTED), *lines], right=range(1, len(PRINTED)), rule=True))
    if len(rows) > SHOWN_LINES:
        print(f"... and {len(rows) - SHOWN_LINES} more")
    for text in said:
        print(text)
    count = sum(row["grains"] for row in rows)
    print(f"{count} grains of {len(rows)} images in {directory.path}/grains.csv, report in {directory.report_path}")
    for name, reason in failed.items():
        print(f"not segmented: {name}: {reason}", file=sys.stderr)


def _scale_notes(factor: float, pixel: float | None, given: float | None) -> list[str]:
    notes = [f"pixel size {pixel:g} um as the file states"] if pixel and not given else []
    if factor != 1:
        notes.append(f"segmented at {factor:.3g} times its pixels, the model's scale")
    if factor > COARSE:
        notes.append("its pixels are much coarser than the model's: fine grains may be lost")
    return notes


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
    inside = sorted(each for each in path.iterdir() if not each.name.startswith("."))
    found = [each for each in inside if each.suffix.lower() in SUFFIXES and not each.is_dir()]
    if not found:
        raise DataError(f"{path} holds no image files ({', '.join(SUFFIXES)})")
    if len(found) < len(inside):
        other = [each.name for each in inside if each not in found]
        print(
            f"note: {len(other)} entries of {path} are no image files and were skipped: {', '.join(other[:5])}",
            file=sys.stderr,
        )
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


def _parts(directory: RunDirectory) -> Path:
    """Return the folder of what is done, a line and a table per image."""
    return directory.path / "parts"


def _directory(config: SegmentConfig, card: SegmenterCard) -> RunDirectory:
    """Return the folder, new or of a segmentation with the same model and options that was broken off or grows."""
    settings: Any = to_plain({**asdict(config), "weights_sha256": card.weights_sha256, "pipeline": "segment"})
    path = Path(config.out)
    if (path / "config.yaml").is_file():
        there = RunDirectory.open(path).read_config()
        changed = [key for key in settings if settings[key] != there.get(key)]
        if changed:
            raise ConfigError(
                f"out={config.out} holds a segmentation with another {changed[0]} ({there.get(changed[0])}, not "
                f"{settings[changed[0]]}); give another --out"
            )
        return RunDirectory.open(path)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ConfigError(f"out={config.out} is not an empty folder; give another one")
    directory = RunDirectory.create(path, "segment")
    directory.write_config(settings)
    directory.write_environment({})
    return directory


def _overlap(config: SegmentConfig, card: SegmenterCard) -> int:
    overlap = card.tile_size // 4 if config.overlap is None else config.overlap
    if overlap >= card.tile_size:
        raise ConfigError(f"overlap={overlap} must be less than the model's tile of {card.tile_size} pixels")
    return overlap
