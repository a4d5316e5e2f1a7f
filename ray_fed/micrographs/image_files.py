"""A folder of micrographs and masks as a `MicrographSet`.

folder/images/a.png   folder/labels/a.png   folder/index.csv (optional: name, source_image)

Images are PNG, TIFF or JPEG, 8 or 16 bit, grey or RGB. Which numbers of a mask file mean boundary is stated by the
owner or beyond doubt; never guessed.
"""

import csv
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ray_fed.errors import DataError, Trouble
from ray_fed.micrographs.micrograph_set import MicrographSet
from ray_fed.micrographs.polycrystals import boundary_mask
from ray_fed.reading import open_picture, open_regular, require_few_pixels

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
    from PIL import UnidentifiedImageError

    try:
        with open_picture(path) as image:
            _require_one_image(getattr(image, "n_frames", 1), f"{who}: {path}")
            converted = image.mode in COLOUR_SPACES or (image.mode in ("P", "PA") and not keep_palette)
            return np.asarray(image.convert("RGB") if converted else image)
    except UnidentifiedImageError as error:
        return _tiff(path, who, error)
    except DataError:
        raise
    except Exception as error:  # Pillow raises whatever its codecs raise
        reason = f"{who}: {path} cannot be read as an image ({_in_a_line(error)})"
        raise DataError(reason, failure=Trouble.FILE_DAMAGED) from error


def _require_one_image(frames: int, where: str) -> None:
    if frames > 1:
        raise DataError(f"{where} holds {frames} images; save each as a file of its own")


def _in_a_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _tiff(path: Path, who: str, refusal: Exception) -> np.ndarray:
    """Read what Pillow has no mode for, such as RGB of 16 bits."""
    if path.suffix.lower() not in (".tif", ".tiff"):
        raise DataError(
            f"{who}: {path} is no image that can be read; save it again as PNG or TIFF",
            failure=Trouble.FILE_DAMAGED,
        ) from refusal
    import tifffile

    try:
        with open_regular(path) as file, tifffile.TiffFile(file) as tiff:
            _require_one_image(len(tiff.pages), f"{who}: {path}")
            require_few_pixels(tiff.pages.first.shape[:2])
            pixels = tiff.asarray()
    except DataError:
        raise
    except Exception as error:  # tifffile raises whatever its codecs raise
        reason = f"{who}: {path} is no image that can be read ({_in_a_line(error)})"
        raise DataError(reason, failure=Trouble.FILE_DAMAGED) from refusal
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


PLAIN_PAIRS = ((0, 1), (0, 255), (0, 65535))
JPEG_HINT = "a JPEG smears masks: save PNG, or give threshold=127 (--masks NAME=threshold:127)"


@dataclass(frozen=True)
class MaskMeaning:
    """How the numbers of a silo's masks become boundary (1) and grain (0)."""

    boundary: tuple[int, ...] = ()
    """Numbers that mean boundary. Empty: masks of 0 and 1, or of 0 and 255, in which the greater one is the boundary;
    anything else must be stated."""
    between_classes: bool = False
    """The boundaries are where the class changes: lines 3 pixels wide are drawn there. For masks of phases."""
    threshold: int | None = None
    """For masks smeared by JPEG: numbers above this are boundary."""

    def apply(self, masks: Mapping[str, np.ndarray], who: str) -> dict[str, np.ndarray]:
        """Return file -> uint8 mask [H, W] of file -> numbers; DataError names the silo, the file and the numbers."""
        if self.between_classes:
            found = {file: boundary_mask(mask) for file, mask in masks.items()}
        elif self.threshold is not None:
            found = {file: (mask > self.threshold).astype(np.uint8) for file, mask in masks.items()}
        else:
            boundary = self.boundary or (_greater_of_pair(masks, who),)
            found = {file: np.isin(mask, boundary).astype(np.uint8) for file, mask in masks.items()}
        for file, mask in found.items():
            _refuse_uniform(mask, file, who)
        if not (self.boundary or self.between_classes):
            _refuse_inverted(found, who)
        return found


def _greater_of_pair(masks: Mapping[str, np.ndarray], who: str) -> int:
    seen: set[int] = set()
    for file, mask in masks.items():
        here = set(np.unique(mask).tolist())
        if not any((seen | here) <= set(pair) for pair in PLAIN_PAIRS):
            shown = ", ".join(map(str, sorted(here)[:6])) + (", ..." if len(here) > 6 else "")
            smeared = len(here) > 16 or file.lower().endswith((".jpg", ".jpeg"))
            hint = JPEG_HINT if smeared else _classes_hint(here)
            raise DataError(f"{who}: mask {file} holds {shown}, not just 0 and 1 or 0 and 255; {hint}")
        seen |= here
    return max(max(seen), 1)


def _classes_hint(values: set[int]) -> str:
    number = max(values)
    return f"say which are boundary, e.g. boundary={number} (--masks NAME=boundary:{number}), or between_classes"


def _refuse_uniform(mask: np.ndarray, file: str, who: str) -> None:
    if not mask.any():
        raise DataError(f"{who}: mask {file} is empty: no pixel of it is a boundary; remove the image or label it")
    if mask.all():
        raise DataError(
            f"{who}: mask {file} has no grain: every pixel of it is a boundary; remove the image or label it"
        )


def _refuse_inverted(masks: Mapping[str, np.ndarray], who: str) -> None:
    share = sum(int(mask.sum()) for mask in masks.values()) / sum(mask.size for mask in masks.values())
    if share > 0.5:
        raise DataError(
            f"{who}: {share:.0%} of the mask pixels would be boundary; if 0 marks the boundaries say boundary=0 "
            "(--masks NAME=boundary:0), if this is right name the boundary's number"
        )


IMAGE_FOLDERS = ("images", "images_gray", "images_grey")
MASK_FOLDERS = ("labels", "masks")


@dataclass(frozen=True)
class MicrographFolder:
    """Where a silo's micrographs and masks are, and what the files mean."""

    folder: str
    images: str = ""
    """Subfolder of the images; empty: images or images_gray."""
    masks: str = ""
    """Subfolder of the masks, whose files have the images' names (any suffix); empty: labels or masks."""
    meaning: MaskMeaning = field(default_factory=MaskMeaning)
    tile: int | None = None
    """Edge of the square tiles the images are cut into, pixels; None: the images are tiles already."""
    bits: int | None = None
    """Bits of the camera where they are fewer than the file's, e.g. 12."""
    source_pattern: str = ""
    """Regular expression whose first group is the micrograph an image was cut from, e.g. "(.+)_[0-9]+". Empty: column
    `source_image` of index.csv where there is one, else every file is a micrograph of its own."""
    pixel_size_um: float | None = None
    """Edge of a pixel, micrometres."""

    def read(self, silo: str) -> MicrographSet:
        """Return the tiles; DataError names the silo and the file for whatever is wrong with it."""
        who, folder = f"silo '{silo}'", Path(self.folder).expanduser()
        images = _files(folder, self.images, IMAGE_FOLDERS, who, "images")
        masks = _files(folder, self.masks, MASK_FOLDERS, who, "masks")
        lonely = sorted(set(images) - set(masks))
        if lonely:
            raise DataError(
                f"{who}: {images[lonely[0]]} has no mask of its name ({len(lonely)} such); remove or label it"
            )
        sources = _sources(folder, list(images), self.source_pattern, who)
        greys = {stem: read_grey(path, who, self.bits) for stem, path in images.items()}
        numbers = {stem: read_values(masks[stem], who) for stem in images}
        for stem, grey in greys.items():
            _same_size(grey, numbers[stem], images[stem], masks[stem], who)
        meant = self.meaning.apply({masks[stem].name: mask for stem, mask in numbers.items()}, who)
        pairs = {stem: np.stack([greys[stem], meant[masks[stem].name]]) for stem in images}
        return self._set(silo, pairs, sources, images)

    def _set(
        self, silo: str, pairs: Mapping[str, np.ndarray], sources: Mapping[str, str], images: Mapping[str, Path]
    ) -> MicrographSet:
        """Return the set of image-and-mask pairs [2, H, W], cut into tiles where asked."""
        if self.tile is None:
            _one_size(pairs, images, f"silo '{silo}'")
            tiles = {stem: pair[None] for stem, pair in pairs.items()}
        else:
            tiles = {stem: _cut(pair, self.tile, images[stem], f"silo '{silo}'") for stem, pair in pairs.items()}
        all_tiles = np.concatenate(list(tiles.values()))
        owners = tuple(sources[stem] for stem, cut in tiles.items() for _ in cut)
        return MicrographSet(silo, all_tiles[:, 0].copy(), all_tiles[:, 1].copy(), owners, self.pixel_size_um)


def _files(folder: Path, given: str, usual: Sequence[str], who: str, what: str) -> dict[str, Path]:
    """Return stem -> file of the image files in a subfolder, sorted by name."""
    if not folder.is_dir():
        raise DataError(
            f"{who}: {folder} is not a folder; it should hold {' and '.join(('images/', 'labels/'))}",
            failure=Trouble.FILE_MISSING,
        )
    there = [folder / name for name in ([given] if given else usual) if (folder / name).is_dir()]
    if not there:
        raise DataError(
            f"{who}: {folder} has no subfolder {given or ' or '.join(usual)}; name it with {what}=",
            failure=Trouble.FILE_MISSING,
        )
    files = sorted(path for path in there[0].iterdir() if path.suffix.lower() in SUFFIXES)
    if not files:
        raise DataError(f"{who}: {there[0]} holds no image files ({', '.join(SUFFIXES)})", failure=Trouble.FILE_EMPTY)
    found: dict[str, Path] = {}
    for path in files:
        if path.stem in found:
            raise DataError(f"{who}: {found[path.stem].name} and {path.name} in {there[0]} have one name; rename one")
        found[path.stem] = path
    return found


def _sources(folder: Path, stems: Sequence[str], pattern: str, who: str) -> dict[str, str]:
    index = folder / "index.csv"
    if pattern:
        return {stem: _source_in(stem, pattern, who) for stem in stems}
    if not index.is_file():
        return {stem: stem for stem in stems}
    with index.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    if not rows or not {"name", "source_image"} <= set(rows[0]):
        raise DataError(f"{who}: {index} needs the columns name and source_image", failure=Trouble.COLUMN_MISSING)
    known = {row["name"]: row["source_image"] for row in rows}
    missing = [stem for stem in stems if stem not in known]
    if missing:
        raise DataError(
            f"{who}: {index} has no line for '{missing[0]}' ({len(missing)} such images); add them",
            failure=Trouble.COLUMN_MISSING,
        )
    return {stem: known[stem] for stem in stems}


def _source_in(stem: str, pattern: str, who: str) -> str:
    found = re.fullmatch(pattern, stem)
    if not found or not found.groups():
        raise DataError(f"{who}: source_pattern={pattern!r} finds no micrograph in the name '{stem}'")
    return found[1]


def _same_size(grey: np.ndarray, mask: np.ndarray, image_path: Path, mask_path: Path, who: str) -> None:
    if grey.shape != mask.shape:
        raise DataError(
            f"{who}: {image_path.name} is {grey.shape[0]}x{grey.shape[1]} pixels but its mask {mask_path} is "
            f"{mask.shape[0]}x{mask.shape[1]}; export both at one size"
        )


def _one_size(pairs: Mapping[str, np.ndarray], images: Mapping[str, Path], who: str) -> None:
    first = next(iter(pairs))
    for stem, pair in pairs.items():
        if pair.shape != pairs[first].shape:
            raise DataError(
                f"{who}: {images[stem].name} is {pair.shape[1]}x{pair.shape[2]} pixels, {images[first].name} is "
                f"{pairs[first].shape[1]}x{pairs[first].shape[2]}; cut them to one size with tile="
            )


def _cut(pair: np.ndarray, tile: int, path: Path, who: str) -> np.ndarray:
    """Return the tiles [n, 2, tile, tile] of a pair [2, H, W]: side by side, the remainder left over at all edges."""
    _, height, width = pair.shape
    rows, columns = height // tile, width // tile
    if rows == 0 or columns == 0:
        raise DataError(
            f"{who}: {path.name} is {height}x{width} pixels, smaller than tile={tile}; choose a smaller tile"
        )
    top, left = (height - rows * tile) // 2, (width - columns * tile) // 2
    middle = pair[:, top : top + rows * tile, left : left + columns * tile]
    return middle.reshape(2, rows, tile, columns, tile).transpose(1, 3, 0, 2, 4).reshape(-1, 2, tile, tile)
