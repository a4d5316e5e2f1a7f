"""One image file as an array: PNG, TIFF or JPEG, 8 or 16 bit, grey or RGB."""

from pathlib import Path

import numpy as np

from ray_fed.errors import DataError

SUFFIXES = (".png", ".tif", ".tiff", ".jpg", ".jpeg", ".bmp")
COLOUR_SPACES = ("CMYK", "YCbCr", "LAB", "HSV")
"""Pillow's modes whose channels are not red, green and blue."""


def read_grey(path: Path, who: str, bits: int | None = None) -> np.ndarray:
    """Return an image as grey levels uint8 [H, W]; `who` begins every error, e.g. "silo 'mit'".

    Colour becomes luminance (ITU-R 601: .299 R + .587 G + .114 B). More than 8 bits are scaled by the full range of
    `bits`; None: of the file's type. DataError when the file cannot be read, or holds so little of its range that it
    must come from a camera of fewer bits.
    """
    pixels = _grey(_pixels(path, who), path, who)
    if pixels.dtype == np.uint8 and bits in (None, 8):
        return pixels
    if not np.issubdtype(pixels.dtype, np.integer):
        raise DataError(f"{who}: {path} holds {pixels.dtype} values; save it as an image of 8 or 16 bits")
    full = 2 ** (bits or 8 * pixels.dtype.itemsize) - 1
    if pixels.max() > full:
        raise DataError(f"{who}: {path} holds the value {pixels.max()}, more than bits={bits} allow ({full})")
    if bits is None and pixels.max() < full // 16 + 1:
        raise DataError(
            f"{who}: {path} uses values up to {pixels.max()} of {full}: a camera of fewer bits? say so, e.g. bits=12"
        )
    return np.round(pixels * (255 / full)).astype(np.uint8)


def read_values(path: Path, who: str) -> np.ndarray:
    """Return a mask's own numbers, int64 [H, W]: classes, or grey levels; a palette's indices, not its colours.

    DataError for a coloured mask: which colour means what is not ours to guess.
    """
    pixels = _pixels(path, who, keep_palette=True)
    if pixels.ndim == 3:
        pixels = pixels[..., :3] if pixels.shape[2] in (3, 4) else pixels[..., :1]
        if (pixels != pixels[..., :1]).any():
            raise DataError(f"{who}: mask {path} is coloured; save it as one channel of class numbers")
        pixels = pixels[..., 0]
    if not (np.issubdtype(pixels.dtype, np.integer) or pixels.dtype == bool):
        raise DataError(f"{who}: mask {path} holds {pixels.dtype} values; save it as whole numbers")
    return pixels.astype(np.int64)


def _pixels(path: Path, who: str, keep_palette: bool = False) -> np.ndarray:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            frames = getattr(image, "n_frames", 1)
            converted = image.mode in COLOUR_SPACES or (image.mode in ("P", "PA") and not keep_palette)
            pixels = np.asarray(image.convert("RGB") if converted else image)
    except UnidentifiedImageError as error:
        return _tiff(path, who, error)
    except (OSError, ValueError, SyntaxError) as error:
        raise DataError(f"{who}: {path} cannot be read as an image ({' '.join(str(error).split())})") from error
    if frames > 1:
        raise DataError(f"{who}: {path} holds {frames} images; save each as a file of its own")
    return pixels


def _tiff(path: Path, who: str, refusal: Exception) -> np.ndarray:
    """Read what Pillow has no mode for, such as RGB of 16 bits."""
    if path.suffix.lower() not in (".tif", ".tiff"):
        raise DataError(f"{who}: {path} is no image that can be read; save it again as PNG or TIFF") from refusal
    import tifffile

    try:
        pixels = tifffile.imread(path)
    except Exception as error:  # tifffile raises whatever its codecs raise
        raise DataError(f"{who}: {path} is no image that can be read ({' '.join(str(error).split())})") from refusal
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
    # Pillow's weights in 16-bit fixed point, so that an RGB file gives what its "L" copy gives.
    red, green, blue = (pixels[..., channel].astype(np.int64) for channel in range(3))
    return ((red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16).astype(pixels.dtype)
