"""Grains that were drawn as outlines: COCO and LabelMe JSON, ImageJ ROIs; as maps of grain numbers, 0 between grains.

ImageJ's file format (one outline): 64 bytes of header, big-endian: "Iout", version, type at byte 6, top, left, bottom,
right from byte 8 on, number of points at byte 16; then the points' columns and rows, int16, relative to left and top;
with the option 128 at byte 50 followed by the same as float32, absolute.
A .zip holds one such file per grain.
"""

import struct
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from ray_fed.errors import DataError, Trouble
from ray_fed.reading import read_at_most, read_bounded, read_json

Outline = np.ndarray
"""float64 [points, 2], row and column."""

ROI_SUFFIXES = (".roi", ".zip")
POLYGON, RECTANGLE, FREEHAND, TRACED = 0, 1, 7, 8
SUB_PIXEL = 128
HEADER_BYTES = 64
MAX_ROI_BYTES = 1 << 24
MOST_ROIS = 100_000
ROI_VERSION = 227
TO_CORNERS = 0.5
"""ImageJ counts from a pixel's upper left corner; outlines here count from its centre."""


def drawn(outlines: Iterable[Outline], shape: tuple[int, int]) -> np.ndarray:
    """Return a map of grain numbers int64 [H, W]; later outlines cover earlier ones."""
    from skimage.draw import polygon

    numbers = np.zeros(shape, np.int64)
    for number, outline in enumerate(outlines, 1):
        rows, columns = polygon(outline[:, 0], outline[:, 1], shape)
        numbers[rows, columns] = number
    return numbers


def labelme_outlines(path: Path, who: str) -> list[Outline]:
    """Return the polygons of a LabelMe file; DataError for shapes of another kind."""
    found: Any = read_json(path, "export it again")
    shapes = found.get("shapes") if isinstance(found, dict) else None
    if not isinstance(shapes, list):
        raise DataError(f"{who}: {path} is no LabelMe file: it has no list 'shapes'", failure=Trouble.FILE_DAMAGED)
    other = [shape.get("shape_type") for shape in shapes if shape.get("shape_type", "polygon") != "polygon"]
    if other:
        raise DataError(f"{who}: {path} holds a shape of type {other[0]!r}; draw grains as polygons")
    return [_outline(np.asarray(shape["points"], float)[:, ::-1], path, who) for shape in shapes]


def coco_outlines(path: Path, who: str) -> dict[str, list[Outline]]:
    """Return stem of the image's file -> polygons, of a COCO file; DataError for masks that are run-length coded."""
    found: Any = read_json(path, "export it again")
    if not isinstance(found, dict) or not {"images", "annotations"} <= set(found):
        raise DataError(
            f"{who}: {path} is no COCO file: it needs 'images' and 'annotations'", failure=Trouble.FILE_DAMAGED
        )
    stems = {image["id"]: Path(image["file_name"]).stem for image in found["images"]}
    outlines: dict[str, list[Outline]] = {stem: [] for stem in stems.values()}
    for annotation in found["annotations"]:
        parts = annotation["segmentation"]
        if not isinstance(parts, list):
            raise DataError(f"{who}: {path} holds run-length coded masks; export polygons")
        points = [np.asarray(part, float).reshape(-1, 2)[:, ::-1] for part in parts]
        outlines[stems[annotation["image_id"]]] += [_outline(each, path, who) for each in points]
    return outlines


def roi_outlines(path: Path, who: str) -> list[Outline]:
    """Return the outlines of an ImageJ .roi file or of the .zip that its ROI manager writes."""
    try:
        contents = _unzipped(path) if path.suffix.lower() == ".zip" else [read_bounded(path, MAX_ROI_BYTES)]
        return [_outline(_roi_points(content), path, who) for content in contents]
    except (ValueError, OSError, struct.error, zipfile.BadZipFile) as error:
        reason = f"{who}: {path} cannot be read as ImageJ ROIs ({error})"
        raise DataError(reason, failure=Trouble.FILE_DAMAGED) from error


def _unzipped(path: Path) -> list[bytes]:
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if name.lower().endswith(".roi")]
        if len(names) > MOST_ROIS:
            raise ValueError(f"it holds {len(names):,} ROIs, more than {MOST_ROIS:,}")
        contents = []
        for name in names:
            with archive.open(name) as file:
                contents.append(read_at_most(file, MAX_ROI_BYTES))
        return contents


def _roi_points(content: bytes) -> np.ndarray:
    if content[:4] != b"Iout" or len(content) < HEADER_BYTES:
        raise ValueError("it is no ROI")
    kind = content[6]
    top, left, bottom, right, count = struct.unpack(">hhhhH", content[8:18])
    if kind == RECTANGLE:
        return np.array([[top, left], [top, right], [bottom, right], [bottom, left]], float) - TO_CORNERS
    if kind not in (POLYGON, FREEHAND, TRACED):
        raise ValueError(f"a ROI of type {kind} is no closed outline")
    (options,) = struct.unpack(">H", content[50:52])
    whole = np.frombuffer(content, ">i2", 2 * count, HEADER_BYTES).reshape(2, count).T[:, ::-1].astype(float)
    if not options & SUB_PIXEL:
        return whole + np.array([top, left]) - TO_CORNERS
    exact = np.frombuffer(content, ">f4", 2 * count, HEADER_BYTES + 4 * count)
    return exact.reshape(2, count).T[:, ::-1].astype(float) - TO_CORNERS


def _outline(points: np.ndarray, path: Path, who: str) -> Outline:
    if points.ndim != 2 or points.shape[1] != 2 or len(points) < 3 or not np.isfinite(points).all():
        raise DataError(f"{who}: {path} holds an outline of {len(points)} points; a grain needs at least 3")
    return points


# ---- written


def grain_outlines(labels: np.ndarray) -> dict[int, Outline]:
    """Return grain number -> its longest outline, of a map of grain numbers int [H, W] from 0 on."""
    from scipy import ndimage
    from skimage.measure import find_contours

    found: dict[int, Outline] = {}
    for number, window in enumerate(ndimage.find_objects(labels + 1)):
        if window is None:
            continue
        grain = np.pad(labels[window] == number, 1)
        contours = find_contours(grain.astype(np.float32), 0.5)
        corner = np.array([window[0].start - 1, window[1].start - 1])
        found[number] = max(contours, key=len) + corner
    return found


def roi_zip(outlines: Mapping[int, Outline]) -> bytes:
    """Return the .zip of ImageJ's ROI manager: one outline per grain, named by its number from 1 on."""
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for number, outline in outlines.items():
            archive.writestr(zipfile.ZipInfo(f"{number + 1:05d}.roi"), _roi(outline))
    return buffer.getvalue()


def _roi(outline: Sequence | np.ndarray) -> bytes:
    points = np.asarray(outline)[:-1] + TO_CORNERS
    whole = np.floor(points).astype(int)
    top, left = whole.min(0)
    bottom, right = np.ceil(points.max(0)).astype(int)
    header = bytearray(HEADER_BYTES)
    header[:4] = b"Iout"
    struct.pack_into(">hBx", header, 4, ROI_VERSION, POLYGON)
    struct.pack_into(">hhhhH", header, 8, top, left, bottom, right, len(points))
    struct.pack_into(">H", header, 50, SUB_PIXEL)
    relative = (whole - [top, left]).T[::-1].astype(">i2")
    return bytes(header) + relative.tobytes() + points.T[::-1].astype(">f4").tobytes()
