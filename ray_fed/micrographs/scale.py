"""How large a pixel is: what files say of it, what can be true, and images brought to another pixel size.

A network knows grains at the size in pixels it has learnt them at. Silos' images are therefore resampled to one pixel
size for training, the model's card carries it, and new images are brought to it before they are segmented.

    file                  where the edge of a pixel stands
    TIFF by ImageJ        XResolution (pixels per unit), unit in the description
    TIFF by FEI, Thermo   [Scan] PixelWidth, metres (tag 34682)
    TIFF by Zeiss         "Image Pixel Size" with its unit (tag 34118)
    OME-TIFF              PhysicalSizeX, PhysicalSizeXUnit

A plain ResolutionUnit of inch or centimetre is how large a picture is to be printed; it says nothing of the specimen.
"""

import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn import functional

from ray_fed.errors import ConfigError, DataError
from ray_fed.micrographs.line_widths import line_width, widened
from ray_fed.reading import open_regular

if TYPE_CHECKING:
    from tifffile import TiffFile

SMALLEST_UM, LARGEST_UM = 1e-5, 100.0
"""Pixels of an atomically resolved image, and of a photograph of a macro-etched section, micrometres."""
UNITS_UM = {
    "pm": 1e-6, "nm": 1e-3, "um": 1.0, "µm": 1.0, "μm": 1.0, "micron": 1.0, "microns": 1.0, "micrometer": 1.0,
    "micrometre": 1.0, "mm": 1e3, "cm": 1e4, "m": 1e6, "\\u00b5m": 1.0,
}  # fmt: skip
"""Unit -> micrometres."""
SQUARE_WITHIN = 0.01
"""Largest relative difference between a pixel's sides that is taken for rounding."""
SAME_WITHIN = 0.02
"""Relative difference of pixel sizes below which nothing is resampled."""
CONTRADICTION = 30.0
"""Factor between what was typed and what the file says that is a mistaken unit rather than a correction."""
LEAST_LINE_PX = 2.0
"""Lines of masks are made at least so wide before an image shrinks, so that they do not break."""
LARGEST_FACTOR = 16.0
"""Enlarging further makes up more than it shows; shrinking further leaves no grain."""


def require_plausible(pixel_size_um: float, what: str) -> float:
    """Return the size; ConfigError names `what` for one that no micrograph has: a mistaken unit, most likely."""
    if not SMALLEST_UM <= pixel_size_um <= LARGEST_UM:
        raise ConfigError(
            f"{what}={pixel_size_um:g} micrometres is no pixel of a micrograph ({SMALLEST_UM:g} to {LARGEST_UM:g}); "
            f"if it is in nanometres, say {pixel_size_um / 1000:g}"
        )
    return pixel_size_um


def pixel_size_in(path: Path, who: str) -> float | None:
    """Return the edge of a pixel that a file states, micrometres; None where it states none.

    DataError for a statement that cannot be true, or pixels that are not square.
    """
    if path.suffix.lower() not in (".tif", ".tiff"):
        return None
    import tifffile

    try:
        with open_regular(path) as file, tifffile.TiffFile(file, name=path.name) as tiff:
            sides = _of_imagej(tiff) or _of_fei(tiff) or _of_zeiss(tiff) or _of_ome(tiff)
    except Exception as error:  # tifffile raises whatever it meets
        raise DataError(
            f"{who}: {path}: its TIFF tags cannot be read ({type(error).__name__}); save it again"
        ) from error
    if sides is None:
        return None
    across, down = sides
    if not SMALLEST_UM <= across <= LARGEST_UM:
        raise DataError(
            f"{who}: {path} says that its pixels are {across:g} micrometres wide, which no micrograph has; give the "
            "pixel size yourself"
        )
    if abs(across - down) > SQUARE_WITHIN * across:
        raise DataError(
            f"{who}: {path} says that its pixels are {across:g} x {down:g} micrometres; resample it to square ones"
        )
    return across


def agreed(given: float | None, stated: float | None, path: Path, who: str) -> float | None:
    """Return the pixel size of a file: what was given counts more than what the file states.

    DataError where they are so far apart that one has another unit.
    """
    if given and stated and not 1 / CONTRADICTION < given / stated < CONTRADICTION:
        raise DataError(
            f"{who}: a pixel of {given:g} micrometres was given, {path} states {stated:g}; one of them has another unit"
        )
    return given or stated


def _of_imagej(tiff: "TiffFile") -> tuple[float, float] | None:
    unit = str((tiff.imagej_metadata or {}).get("unit", "")).strip().lower()
    if unit not in UNITS_UM:
        return None
    return _pixels_per_unit(tiff, UNITS_UM[unit])


def _pixels_per_unit(tiff: "TiffFile", unit_um: float) -> tuple[float, float] | None:
    tags = tiff.pages.first.tags
    found = [tags[name].value for name in ("XResolution", "YResolution") if name in tags]
    per_unit = [over / under if under else 0.0 for over, under in found]
    if len(per_unit) < 2 or min(per_unit) <= 0:
        return None
    return unit_um / per_unit[0], unit_um / per_unit[1]


def _of_fei(tiff: "TiffFile") -> tuple[float, float] | None:
    scan = (tiff.fei_metadata or {}).get("Scan", {})
    across, down = scan.get("PixelWidth"), scan.get("PixelHeight")
    return (float(across) * 1e6, float(down or across) * 1e6) if across else None


def _of_zeiss(tiff: "TiffFile") -> tuple[float, float] | None:
    told = tiff.sem_metadata or {}
    stated = told.get("ap_image_pixel_size") or told.get("ap_pixel_size")
    if not stated or len(stated) < 3 or str(stated[2]).strip().lower() not in UNITS_UM:
        return None
    size = float(stated[1]) * UNITS_UM[str(stated[2]).strip().lower()]
    return size, size


def _of_ome(tiff: "TiffFile") -> tuple[float, float] | None:
    text = tiff.ome_metadata or ""
    found = [re.search(rf'PhysicalSize{axis}="([0-9.eE+-]+)"', text) for axis in "XY"]
    if not found[0]:
        return None
    units = [re.search(rf'PhysicalSize{axis}Unit="([^"]+)"', text) for axis in "XY"]
    across, down = (
        float((number or found[0])[1]) * UNITS_UM.get(unit[1] if unit else "um", float("nan"))
        for number, unit in zip(found, units, strict=True)
    )
    return (across, down) if np.isfinite([across, down]).all() else None


def common_pixel_size(sizes_um: dict[str, float | None], asked: float | None) -> float | None:
    """Return the pixel size at which all silos' images are used: what was asked for, else the largest of theirs, so
    that nothing is made up. None where no silo knows its own.

    ConfigError when some silos know their scale and others do not.
    """
    known = {silo: size for silo, size in sizes_um.items() if size}
    unknown = [silo for silo in sizes_um if silo not in known]
    if known and unknown:
        raise ConfigError(
            f"the pixel size of {', '.join(known)} is known, that of {', '.join(unknown)} is not, so that they cannot "
            f"be brought to one scale; add --pixel-size-um {unknown[0]}=MICROMETRES"
        )
    if asked and not known:
        raise ConfigError(f"training_pixel_size_um={asked:g}: no silo's pixel size is known; give --pixel-size-um too")
    return asked or max(known.values(), default=None)


def factor_between(own_um: float, wanted_um: float, what: str) -> float:
    """Return by how much an image grows in pixels when it is brought to another pixel size; 1 where they are alike.

    DataError names `what` for a factor that no resampling makes good.
    """
    factor = own_um / wanted_um
    if abs(factor - 1) <= SAME_WITHIN:
        return 1.0
    if not 1 / LARGEST_FACTOR <= factor <= LARGEST_FACTOR:
        raise DataError(
            f"{what}: pixels of {own_um:g} micrometres against {wanted_um:g}, a factor of "
            f"{max(factor, 1 / factor):.3g}; is the unit right? Up to {LARGEST_FACTOR:g} can be resampled"
        )
    return factor


def resampled(image: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Return an image [H, W] at another size, of its own type; what the new pixels cannot show is averaged away."""
    if image.shape == tuple(shape):
        return image
    pixels = torch.from_numpy(np.ascontiguousarray(image, np.float32))[None, None]
    found = functional.interpolate(pixels, tuple(shape), mode="bilinear", align_corners=False, antialias=True)
    values = found[0, 0].numpy()
    return np.round(values).clip(0, 255).astype(np.uint8) if image.dtype == np.uint8 else values.astype(image.dtype)


def scaled_shape(shape: tuple[int, ...], factor: float) -> tuple[int, int]:
    """Return the height and width of an image that grows by `factor`; at least one pixel."""
    height, width = (max(1, round(side * factor)) for side in shape)
    return height, width


def resampled_mask(mask: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Return a boundary mask uint8 [H, W] (1 = boundary) at another size, its lines unbroken."""
    if mask.shape == tuple(shape):
        return mask
    factor = shape[0] / mask.shape[0]
    lacks = LEAST_LINE_PX / factor - line_width(mask[None])
    wide = widened(mask[None], max(0, int(np.ceil(lacks / 2))))[0]
    return (resampled(wide.astype(np.float32), shape) >= 0.5).astype(np.uint8)
