"""Single image files as grey levels or as a mask's numbers.

PNG, TIFF, JPEG, BMP or WebP; 8, 16 or 32 bit or floating point; grey, RGB, palette, with transparency. What is done to
a picture that its owner may not expect is noted beside it.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ray_fed.errors import DataError, Trouble
from ray_fed.micrographs.data_bar import data_bar_height
from ray_fed.reading import open_picture, open_regular, require_few_pixels

SUFFIXES = (".png", ".tif", ".tiff", ".jpg", ".jpeg", ".bmp", ".webp")
COLOUR_SPACES = ("CMYK", "YCbCr", "LAB", "HSV")
"""Pillow's modes whose channels are not red, green and blue."""
LEAST_SHARE_OF_RANGE = 1 / 16
"""A picture that uses less of its type's range comes from a camera of fewer bits."""


@dataclass(frozen=True)
class Picture:
    """A micrograph as it is used."""

    grey: np.ndarray
    """uint8 [H, W]."""
    notes: tuple[str, ...] = ()
    """What was done to it, or is unusual in it."""
    bar_rows: int = 0
    """Rows of a data bar that were cut off at the bottom."""


@dataclass(frozen=True)
class ReadingRules:
    """What an owner says of image files; None and 0 where nothing needs to be said."""

    bits: int | None = None
    """Bits of the camera where they are fewer than the file's, e.g. 12."""
    page: int | None = None
    """Which page of a file of several is meant, from 1."""
    data_bar: int | None = None
    """Rows at the bottom that are no micrograph; 0: none; None: a bar is looked for."""


def read_picture(path: Path, who: str, rules: ReadingRules = ReadingRules()) -> Picture:
    """Return an image as grey levels without its data bar; `who` begins every error, e.g. "silo 'mit'".

    Colour becomes luminance (ITU-R 601: .299 R + .587 G + .114 B). More than 8 bits are scaled by the full range of
    `bits`; None: of the file's type. Floating-point values must lie between 0 and 1, or 0 and 255. DataError when the
    file cannot be read, or holds so little of its range that it must come from a camera of fewer bits.
    """
    pixels, notes = _pixels(path, who, rules.page)
    grey = _as_bytes(_grey(pixels, path, who), path, who, rules.bits)
    if grey.min() == grey.max():
        notes.append("it shows one grey level and nothing else")
    rows = data_bar_height(grey) if rules.data_bar is None else rules.data_bar
    if not rows:
        return Picture(grey, tuple(notes))
    if rows >= len(grey):
        raise DataError(f"{who}: {path} has {len(grey)} rows, a data bar of {rows} leaves none")
    if rules.data_bar is None:
        notes.append(f"the lowest {rows} of {len(grey)} rows look like a data bar and were cut off")
    return Picture(grey[:-rows], tuple(notes), rows)


def require_readable(path: Path, who: str) -> None:
    """DataError for what is no image file at all; of the pixels nothing is read."""
    from PIL import UnidentifiedImageError

    try:
        with open_picture(path):
            return
    except UnidentifiedImageError as error:
        if path.suffix.lower() not in (".tif", ".tiff"):
            raise DataError(
                f"{who}: {path} is no image that can be read; save it again as PNG or TIFF",
                failure=Trouble.FILE_DAMAGED,
            ) from error
    except Exception as error:  # Pillow raises whatever its codecs raise
        reason = f"{who}: {path} cannot be read as an image ({_in_a_line(error)})"
        raise DataError(reason, failure=Trouble.FILE_DAMAGED) from error


def read_grey(path: Path, who: str, bits: int | None = None) -> np.ndarray:
    """Return an image as grey levels uint8 [H, W], all of its rows; see `read_picture`."""
    return read_picture(path, who, ReadingRules(bits, data_bar=0)).grey


def _as_bytes(pixels: np.ndarray, path: Path, who: str, bits: int | None) -> np.ndarray:
    if np.issubdtype(pixels.dtype, np.floating):
        return _of_floats(pixels, path, who)
    if pixels.dtype == np.uint8 and bits in (None, 8):
        return pixels
    if not np.issubdtype(pixels.dtype, np.unsignedinteger) and pixels.min() < 0:
        raise DataError(f"{who}: {path} holds values down to {pixels.min()}; save it as an image of 8 or 16 bits")
    full = 2 ** (bits or 8 * pixels.dtype.itemsize) - 1
    if pixels.max() > full:
        raise DataError(f"{who}: {path} holds the value {pixels.max()}, more than bits={bits} allow ({full})")
    if bits is None and pixels.max() < full * LEAST_SHARE_OF_RANGE + 1:
        raise DataError(
            f"{who}: {path} uses values up to {pixels.max()} of {full}: a camera of fewer bits? say so, e.g. bits=12"
        )
    return np.round(pixels * (255 / full)).astype(np.uint8)


def _of_floats(pixels: np.ndarray, path: Path, who: str) -> np.ndarray:
    if not np.isfinite(pixels).all():
        raise DataError(
            f"{who}: {path} holds {int((~np.isfinite(pixels)).sum())} values that are no numbers; fill them"
        )
    low, high = float(pixels.min()), float(pixels.max())
    full = 1.0 if high <= 1 else 255.0
    if low < 0 or high > full or high < full * LEAST_SHARE_OF_RANGE:
        raise DataError(
            f"{who}: {path} holds floating-point values from {low:g} to {high:g}; scale them to 0..1 or 0..255, the "
            "same for all images"
        )
    return np.round(pixels * (255 / full)).astype(np.uint8)


def read_values(path: Path, who: str, page: int | None = None) -> np.ndarray:
    """Return a mask's own numbers, int64 [H, W]: classes, or grey levels; a palette's indices, not its colours.

    DataError for a coloured mask: which colour means what is not ours to guess.
    """
    pixels, _ = _pixels(path, who, page, keep_palette=True)
    if pixels.ndim == 3:
        _refuse_drawn_in_alpha(pixels, path, who)
        pixels = pixels[..., :3] if pixels.shape[2] in (3, 4) else pixels[..., :1]
        if (pixels != pixels[..., :1]).any():
            raise DataError(f"{who}: mask {path} is coloured; save it as one channel of class numbers")
        pixels = pixels[..., 0]
    if not (
        np.issubdtype(pixels.dtype, np.integer) or np.issubdtype(pixels.dtype, np.floating) or pixels.dtype == bool
    ):
        raise DataError(f"{who}: mask {path} holds {pixels.dtype} values; save it as whole numbers")
    if np.issubdtype(pixels.dtype, np.floating) and (pixels != np.round(pixels)).any():
        raise DataError(f"{who}: mask {path} holds fractions; save it as whole numbers")
    return pixels.astype(np.int64)


def _refuse_drawn_in_alpha(pixels: np.ndarray, path: Path, who: str) -> None:
    if pixels.shape[2] not in (2, 4):
        return
    colours, alpha = pixels[..., :-1], pixels[..., -1]
    if (colours == colours[:1, :1]).all() and alpha.min() != alpha.max():
        raise DataError(f"{who}: mask {path} has one colour and is drawn in its transparency; save it without")


def _pixels(path: Path, who: str, page: int | None, keep_palette: bool = False) -> tuple[np.ndarray, list[str]]:
    """Return the pixels [H, W] or [H, W, channels] and notes about them."""
    from PIL import UnidentifiedImageError

    try:
        with open_picture(path) as image:
            _seek(image, page, f"{who}: {path}")
            turned, notes = _upright(image)
            converted = image.mode in COLOUR_SPACES or (image.mode in ("P", "PA") and not keep_palette)
            pixels = np.asarray(turned.convert("RGB") if converted else turned)
        if pixels.dtype == np.int32 and path.suffix.lower() in (".tif", ".tiff"):
            # Pillow's one mode for 32 bits has a sign, whether the file's numbers have one or not.
            pixels = _tiff(path, who, page, ValueError("32 bits"))
        return pixels, [*notes, *_transparent(pixels, image.mode)]
    except UnidentifiedImageError as error:
        return _tiff(path, who, page, error), []
    except DataError:
        raise
    except Exception as error:  # Pillow raises whatever its codecs raise
        reason = f"{who}: {path} cannot be read as an image ({_in_a_line(error)})"
        raise DataError(reason, failure=Trouble.FILE_DAMAGED) from error


def _seek(image, page: int | None, where: str) -> None:
    frames = getattr(image, "n_frames", 1)
    _require_page(frames, page, where)
    if frames > 1:
        image.seek((page or 1) - 1)


def _require_page(frames: int, page: int | None, where: str) -> None:
    if page is None and frames > 1:
        raise DataError(f"{where} holds {frames} images; save each as a file of its own, or choose one with page=1")
    if page is not None and not 1 <= page <= frames:
        raise DataError(f"{where} holds {frames} image(s); page={page} is none of them")


def _upright(image) -> tuple:
    """Return the picture as a viewer shows it: cameras write into EXIF how they were held."""
    from PIL import ImageOps

    turned = ImageOps.exif_transpose(image)
    is_turned = image.getexif().get(0x0112, 1) not in (0, 1)
    return turned, ["turned as its EXIF orientation says"] if is_turned else []


def _transparent(pixels: np.ndarray, mode: str) -> list[str]:
    if mode not in ("RGBA", "LA"):
        return []
    holes = float((pixels[..., -1] == 0).mean())
    return [f"{holes:.1%} of it is transparent; what lies below is taken for image"] if holes else []


def _in_a_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _tiff(path: Path, who: str, page: int | None, refusal: Exception) -> np.ndarray:
    """Read what Pillow has no mode for, such as RGB of 16 bits."""
    if path.suffix.lower() not in (".tif", ".tiff"):
        raise DataError(
            f"{who}: {path} is no image that can be read; save it again as PNG or TIFF",
            failure=Trouble.FILE_DAMAGED,
        ) from refusal
    import tifffile

    try:
        with open_regular(path) as file, tifffile.TiffFile(file, name=path.name) as tiff:
            _require_page(len(tiff.pages), page, f"{who}: {path}")
            require_few_pixels(tiff.pages.first.shape[:2])
            pixels = tiff.asarray(key=(page or 1) - 1)
    except DataError:
        raise
    except Exception as error:  # tifffile raises whatever its codecs raise
        reason = f"{who}: {path} is no image that can be read ({_in_a_line(error)})"
        raise DataError(reason, failure=Trouble.FILE_DAMAGED) from refusal
    if pixels.ndim == 3 and pixels.shape[0] == 3 and pixels.shape[2] not in (3, 4):  # channels one after another
        pixels = np.moveaxis(pixels, 0, -1)
    if pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] in (3, 4)):
        return pixels
    raise DataError(f"{who}: {path} has the shape {pixels.shape}; one image [H, W] or [H, W, 3] is needed")


def _grey(pixels: np.ndarray, path: Path, who: str) -> np.ndarray:
    if pixels.dtype == bool:
        return pixels.astype(np.uint8) * np.uint8(255)
    if pixels.dtype == np.int32:  # Pillow's mode I, in which it opens some files of 16 bits
        if pixels.min() < 0 or pixels.max() > 65535:
            raise DataError(f"{who}: {path} holds values {pixels.min()}..{pixels.max()}; save it as 8 or 16 bits")
        pixels = pixels.astype(np.uint16)
    if pixels.ndim == 2:
        return pixels
    if pixels.shape[2] == 2:  # grey with transparency
        return pixels[..., 0]
    if np.issubdtype(pixels.dtype, np.floating):
        return pixels[..., :3] @ np.array([0.299, 0.587, 0.114])
    # Pillow's weights in 16-bit fixed point, so that an RGB file gives what its "L" copy gives.
    red, green, blue = (pixels[..., channel].astype(np.int64) for channel in range(3))
    return ((red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16).astype(pixels.dtype)
