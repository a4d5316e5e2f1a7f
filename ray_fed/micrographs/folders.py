"""A folder of micrographs and masks as a `MicrographSet`.

folder/images/a.png   folder/labels/a.png   folder/index.csv (optional: name, source_image, pixel_size_um)

Other layouts are named by patterns with one *, which stands for the name that an image shares with its mask:
images="scans/*.tif", masks="drawn/*_mask.png". Masks may also be outlines: one COCO file (masks="coco.json"), or a
LabelMe or ImageJ file per image (masks="drawn/*.json", "drawn/*.zip").
"""

import csv
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ray_fed.errors import DataError, Trouble
from ray_fed.micrographs.drawn_labels import ROI_SUFFIXES, coco_outlines, drawn, labelme_outlines, roi_outlines
from ray_fed.micrographs.image_files import SUFFIXES, Picture, ReadingRules, read_picture, read_values
from ray_fed.micrographs.mask_meaning import MaskMeaning
from ray_fed.micrographs.micrograph_set import MicrographSet
from ray_fed.micrographs.scale import (
    agreed,
    factor_between,
    pixel_size_in,
    resampled,
    resampled_mask,
    scaled_shape,
)

IMAGE_FOLDERS = ("images", "images_gray", "images_grey")
MASK_FOLDERS = ("labels", "masks")
MASK_SUFFIXES = (*SUFFIXES, ".json", *ROI_SUFFIXES)
MOST_TILES = 4000
"""Tiles a silo keeps if nothing else is said: 4000 of 400 pixels are 1.3 GB with their masks."""
SHOWN_NAMES = 5


@dataclass(frozen=True)
class MicrographFolder:
    """Where a silo's micrographs and masks are, and what the files mean."""

    folder: str
    images: str = ""
    """Subfolder or pattern of the images; empty: images or images_gray."""
    masks: str = ""
    """Subfolder or pattern of the masks, or one COCO file; empty: labels or masks. Masks in a subfolder have the
    images' names (any suffix)."""
    meaning: MaskMeaning = field(default_factory=MaskMeaning)
    tile: int | None = None
    """Edge of the square tiles the images are cut into, pixels; None: the images are tiles already."""
    rules: ReadingRules = field(default_factory=ReadingRules)
    """How image files are read: bits of the camera, page, data bar."""
    source_pattern: str = ""
    """Regular expression whose first group is the micrograph an image was cut from, e.g. "(.+)_[0-9]+". Empty: column
    `source_image` of index.csv where there is one, else every file is a micrograph of its own, which is refused where
    names end in coordinates."""
    pixel_size_um: float | None = None
    """Edge of a pixel, micrometres, of all images; None: column `pixel_size_um` of index.csv, or what TIFF files
    state."""
    training_pixel_size_um: float | None = None
    """Pixel size that images and masks are brought to; None: they stay as they are."""
    most_tiles: int = MOST_TILES
    """Of more tiles, so many spread evenly over all are kept."""

    def read(self, silo: str) -> MicrographSet:
        """Return the tiles; DataError names the silo and the file for whatever is wrong with it."""
        who, folder = f"silo '{silo}'", Path(self.folder).expanduser()
        images, labels, notes = self._files(folder, who)
        sources, told = _sources(folder, list(images), self.source_pattern, who)
        sizes = self.pixel_sizes(silo, images)
        pictures = {name: read_picture(path, who, self.rules) for name, path in images.items()}
        pairs = self._pairs(pictures, images, labels, who)
        pairs = {name: self._at_scale(pair, sizes[name], images[name], who) for name, pair in pairs.items()}
        notes += [*told, *_picture_notes(pictures)]
        return self._set(silo, pairs, sources, images, self.training_pixel_size_um or _only(sizes, who), notes)

    def pixel_size(self, silo: str) -> float | None:
        """Return the largest pixel size of the images, micrometres; reads nothing but index.csv and TIFF headers."""
        images, _, _ = self._files(Path(self.folder).expanduser(), f"silo '{silo}'")
        sizes = [size for size in self.pixel_sizes(silo, images).values() if size]
        return max(sizes, default=None)

    def pixel_sizes(self, silo: str, images: Mapping[str, Path]) -> dict[str, float | None]:
        """Return name -> pixel size; DataError where only some images have one."""
        who, folder = f"silo '{silo}'", Path(self.folder).expanduser()
        listed = _listed_sizes(folder, who)
        found = {
            name: agreed(self.pixel_size_um or listed.get(name), pixel_size_in(path, who), path, who)
            for name, path in images.items()
        }
        unknown = [name for name, size in found.items() if not size]
        if unknown and len(unknown) < len(found):
            raise DataError(
                f"{who}: the pixel size of {len(unknown)} of {len(found)} images is not known, e.g. of "
                f"{images[unknown[0]].name}; add the column pixel_size_um to {folder / 'index.csv'}, or give one "
                "pixel size for all"
            )
        return found

    # ---- inside

    def _files(self, folder: Path, who: str) -> tuple[dict[str, Path], dict[str, Path], list[str]]:
        """Return images and masks by name, and notes about what was left out."""
        if not folder.is_dir():
            raise DataError(
                f"{who}: {folder} is not a folder; it should hold {' and '.join(('images/', 'labels/'))}",
                failure=Trouble.FILE_MISSING,
            )
        image_pattern = _pattern(folder, self.images, IMAGE_FOLDERS, who, "images")
        mask_pattern = _pattern(folder, self.masks, MASK_FOLDERS, who, "masks")
        images, skipped = _matching(folder, image_pattern, SUFFIXES, who)
        if self.masks.lower().endswith(".json") and "*" not in self.masks:
            masks, extra = dict.fromkeys(images, folder / self.masks), []
        else:
            masks, extra = _matching(folder, mask_pattern, MASK_SUFFIXES, who)
            # Images and masks may lie in one folder: *.tif and *_mask.tif.
            as_masks = set(masks.values())
            images = {name: path for name, path in images.items() if path not in as_masks}
        return self._paired(images, masks, [*skipped, *extra], who)

    @staticmethod
    def _paired(
        images: dict[str, Path], masks: dict[str, Path], skipped: Sequence[str], who: str
    ) -> tuple[dict[str, Path], dict[str, Path], list[str]]:
        lonely = [name for name in images if name not in masks]
        if lonely:
            near = f"; masks are called like {next(iter(masks.values())).name}" if masks else ""
            raise DataError(
                f"{who}: {images[lonely[0]]} has no mask of its name ({len(lonely)} such); remove or label it, or name "
                f"the masks by a pattern, e.g. masks='labels/*_mask.png'{near}"
            )
        unused = [path.name for name, path in masks.items() if name not in images]
        notes = [f"{len(unused)} masks have no image: {_some(unused)}"] if unused else []
        return images, masks, [*notes, *skipped]

    def _pairs(
        self, pictures: Mapping[str, Picture], images: Mapping[str, Path], labels: Mapping[str, Path], who: str
    ) -> dict[str, np.ndarray]:
        """Return name -> image and mask, uint8 [2, H, W], without data bars."""
        numbers, drawings = {}, self._outlines(labels, who)
        for name, picture in pictures.items():
            full = (picture.grey.shape[0] + picture.bar_rows, picture.grey.shape[1])
            found = drawn(drawings[name], full) if name in drawings else read_values(labels[name], who, self.rules.page)
            if picture.bar_rows and found.shape == full:
                found = found[: -picture.bar_rows]
            _same_size(picture.grey, found, images[name], labels[name], who)
            numbers[name] = found
        meaning = MaskMeaning(instances=True) if drawings else self.meaning
        meant = meaning.apply({f"{name}{labels[name].suffix}": mask for name, mask in numbers.items()}, who)
        return {name: np.stack([pictures[name].grey, meant[f"{name}{labels[name].suffix}"]]) for name in pictures}

    @staticmethod
    def _outlines(labels: Mapping[str, Path], who: str) -> dict[str, list[np.ndarray]]:
        """Return name -> outlines of the masks that are drawn, none where masks are pictures."""
        kinds = {path.suffix.lower() for path in labels.values()}
        if not kinds & {".json", *ROI_SUFFIXES}:
            return {}
        if kinds & set(SUFFIXES):
            raise DataError(f"{who}: some masks are pictures and some are outlines; use one kind")
        if (len(set(labels.values())) == 1 and len(labels) > 1) or _is_coco(next(iter(labels.values()))):
            found = coco_outlines(next(iter(labels.values())), who)
            lacking = [name for name in labels if not found.get(name)]
            if lacking:
                raise DataError(f"{who}: the COCO file has no outline for image '{lacking[0]}' ({len(lacking)} such)")
            return found
        return {
            name: (roi_outlines if path.suffix.lower() in ROI_SUFFIXES else labelme_outlines)(path, who)
            for name, path in labels.items()
        }

    def _at_scale(self, pair: np.ndarray, size: float | None, path: Path, who: str) -> np.ndarray:
        if not (size and self.training_pixel_size_um):
            return pair
        factor = factor_between(size, self.training_pixel_size_um, f"{who}: {path.name}")
        shape = scaled_shape(pair.shape[1:], factor)
        return np.stack([resampled(pair[0], shape), resampled_mask(pair[1], shape)])

    def _set(
        self,
        silo: str,
        pairs: Mapping[str, np.ndarray],
        sources: Mapping[str, str],
        images: Mapping[str, Path],
        pixel_size_um: float | None,
        notes: list[str],
    ) -> MicrographSet:
        """Return the set of image-and-mask pairs [2, H, W], cut into tiles where asked."""
        if self.tile is None:
            _one_size(pairs, images, f"silo '{silo}'")
            tiles = {name: pair[None] for name, pair in pairs.items()}
        else:
            tiles = {name: _cut(pair, self.tile, images[name], f"silo '{silo}'") for name, pair in pairs.items()}
        owners = [sources[name] for name, cut in tiles.items() for _ in cut]
        kept = np.unique(np.linspace(0, len(owners) - 1, min(len(owners), self.most_tiles)).round().astype(int))
        all_tiles = np.concatenate(list(tiles.values()))[kept]
        if len(kept) < len(owners):
            notes.append(f"{len(kept)} of {len(owners)} tiles are used (most_tiles), spread evenly over all images")
        where = tuple(owners[place] for place in kept)
        return MicrographSet(
            silo, all_tiles[:, 0].copy(), all_tiles[:, 1].copy(), where, pixel_size_um, tuple(notes)
        )  # fmt: skip


def _only(sizes: Mapping[str, float | None], who: str) -> float | None:
    found = {size for size in sizes.values() if size}
    if len(found) > 1:
        raise DataError(
            f"{who}: images have {len(found)} pixel sizes from {min(found):g} to {max(found):g} micrometres; give the "
            "one to bring them to, training_pixel_size_um"
        )
    return found.pop() if found else None


def _pattern(folder: Path, given: str, usual: Sequence[str], who: str, what: str) -> str:
    """Return a pattern with one * in its last part."""
    if given.count("*") > 1:
        raise DataError(f"{who}: {what}={given} has more than one *; one stands for the name of image and mask")
    if "*" in given:
        return given
    there = [name for name in ([given] if given else usual) if (folder / name).is_dir()]
    if there:
        return f"{there[0]}/*"
    if given.lower().endswith(".json") and (folder / given).is_file():
        return given
    raise DataError(
        f"{who}: {folder} has no subfolder {given or ' or '.join(usual)}; name it with {what}=",
        failure=Trouble.FILE_MISSING,
    )


def _matching(folder: Path, pattern: str, suffixes: Sequence[str], who: str) -> tuple[dict[str, Path], list[str]]:
    """Return name -> file of the files of a kind that a pattern finds, sorted by name, and notes about the others."""
    place = (folder / pattern).parent
    before, _, after = (folder / pattern).name.partition("*")
    if not place.is_dir():
        raise DataError(f"{who}: {place} is not a folder", failure=Trouble.FILE_MISSING)
    found: dict[str, Path] = {}
    other: list[str] = []
    for path in sorted(place.iterdir()):
        name = _name_in(path.name, before, after)
        if path.is_dir() or path.name.startswith(".") or path.suffix.lower() not in suffixes:
            other.append(path.name)
        elif name is not None:
            if name in found:
                raise DataError(f"{who}: {found[name].name} and {path.name} in {place} have one name; rename one")
            found[name] = path
    if not found:
        inner = [path.name for path in place.iterdir() if path.is_dir()]
        hint = f"; there are folders in it, e.g. {inner[0]}: name one" if inner else ""
        raise DataError(
            f"{who}: {place} holds no image files ({', '.join(suffixes)}) that {pattern} finds{hint}",
            failure=Trouble.FILE_EMPTY,
        )
    return found, [
        f"{len(other)} entries of {place.name}/ were skipped, no file of a kind known: {_some(other)}"
    ] * bool(other)


def _name_in(file: str, before: str, after: str) -> str | None:
    """Return what * stands for in a file's name, composed the same way for every file system; None for no match."""
    file, before, after = (unicodedata.normalize("NFC", text) for text in (file, before, after))
    for text in (file, Path(file).stem):
        if text.startswith(before) and text.endswith(after) and len(text) > len(before) + len(after):
            name = text[len(before) : len(text) - len(after)]
            return Path(name).stem if text == file and not after else name
    return None


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(sorted(names)[:SHOWN_NAMES])
    return shown + (", ..." if len(names) > SHOWN_NAMES else "")


def _picture_notes(pictures: Mapping[str, Picture]) -> list[str]:
    said: dict[str, list[str]] = {}
    for name, picture in pictures.items():
        for note in picture.notes:
            said.setdefault(note, []).append(name)
    return [f"{len(names)} images ({_some(names)}): {note}" for note, names in said.items()]


def _index(folder: Path, who: str) -> list[dict[str, str]]:
    path = folder / "index.csv"
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    if not rows or "name" not in rows[0]:
        raise DataError(f"{who}: {path} needs the columns name and source_image", failure=Trouble.COLUMN_MISSING)
    return rows


def _listed_sizes(folder: Path, who: str) -> dict[str, float]:
    """Return name -> pixel size of index.csv, where it has that column."""
    rows, found = _index(folder, who), {}
    for row in rows:
        text = (row.get("pixel_size_um") or "").strip()
        if not text:
            continue
        try:
            found[row["name"]] = float(text)
        except ValueError:
            raise DataError(f"{who}: {folder / 'index.csv'}: a pixel_size_um is no number; give micrometres") from None
        if not found[row["name"]] > 0:
            raise DataError(f"{who}: {folder / 'index.csv'}: a pixel_size_um is not positive; give micrometres")
    return found


def _sources(folder: Path, names: Sequence[str], pattern: str, who: str) -> tuple[dict[str, str], list[str]]:
    """Return name -> micrograph it was cut from, and notes."""
    if pattern:
        return {name: _source_in(name, pattern, who) for name in names}, []
    rows = _index(folder, who)
    if not rows or ("source_image" not in rows[0] and any(row.get("pixel_size_um") for row in rows)):
        return {name: name for name in names}, _shared_beginnings(names, who)
    if "source_image" not in rows[0]:
        raise DataError(
            f"{who}: {folder / 'index.csv'} needs the columns name and source_image", failure=Trouble.COLUMN_MISSING
        )
    known = {row["name"]: row["source_image"] for row in rows}
    missing = [name for name in names if name not in known]
    if missing:
        raise DataError(
            f"{who}: {folder / 'index.csv'} has no line for '{missing[0]}' ({len(missing)} such images); add them",
            failure=Trouble.COLUMN_MISSING,
        )
    return {name: known[name] for name in names}, []


COORDINATES = re.compile(r"(.+?)[-_ ][a-z]?\d+[-_ ][a-z]?\d+", re.IGNORECASE)
NUMBERED = re.compile(r"(.+?)[-_ ]\(?[a-z]?\d+\)?", re.IGNORECASE)


def _shared_beginnings(names: Sequence[str], who: str) -> list[str]:
    """Refuse names that end in coordinates, as tiles of one micrograph do; return a note for names that are numbered.

    Tiles of one micrograph on both sides of a split make every score too good.
    """
    groups = _groups(names, COORDINATES)
    if len(groups) < len(names) and all(COORDINATES.fullmatch(name) for name in names):
        raise DataError(
            f"{who}: {len(names)} images have names that end in two numbers and {len(groups)} beginnings, like tiles "
            "cut from fewer micrographs; say so with --source-pattern 'NAME=(.+?)[-_][0-9]+[-_][0-9]+' (or index.csv "
            "with name,source_image), or, if each is a micrograph of its own, --source-pattern 'NAME=(.+)'"
        )
    groups = _groups(names, NUMBERED)
    if 1 < len(groups) < len(names):
        return [
            f"{len(names)} images have {len(groups)} beginnings and each is taken for a micrograph of its own; if they "
            "are cut from fewer, scores are too good: say so with --source-pattern"
        ]
    return []


def _groups(names: Sequence[str], pattern: re.Pattern) -> set[str]:
    return {found[1] if (found := pattern.fullmatch(name)) else name for name in names}


def _source_in(name: str, pattern: str, who: str) -> str:
    try:
        found = re.fullmatch(pattern, name)
    except re.error as error:
        raise DataError(f"{who}: source_pattern={pattern!r} is no regular expression ({error})") from error
    if not found or not found.groups():
        raise DataError(f"{who}: source_pattern={pattern!r} finds no micrograph in the name '{name}'")
    return found[1]


def _is_coco(path: Path) -> bool:
    if path.suffix.lower() != ".json":
        return False
    from ray_fed.reading import read_json

    found = read_json(path, "export it again")
    return isinstance(found, dict) and {"images", "annotations"} <= set(found)


def _same_size(grey: np.ndarray, mask: np.ndarray, image_path: Path, mask_path: Path, who: str) -> None:
    if grey.shape != mask.shape:
        raise DataError(
            f"{who}: {image_path.name} is {grey.shape[0]}x{grey.shape[1]} pixels but its mask {mask_path} is "
            f"{mask.shape[0]}x{mask.shape[1]}; export both at one size"
        )


def _one_size(pairs: Mapping[str, np.ndarray], images: Mapping[str, Path], who: str) -> None:
    first = next(iter(pairs))
    for name, pair in pairs.items():
        if pair.shape != pairs[first].shape:
            raise DataError(
                f"{who}: {images[name].name} is {pair.shape[1]}x{pair.shape[2]} pixels, {images[first].name} is "
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
