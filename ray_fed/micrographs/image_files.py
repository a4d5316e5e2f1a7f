"""A folder of micrographs and masks as a `MicrographSet`, and as the source of a silo.

folder/images/a.png   folder/labels/a.png   folder/index.csv (optional: name, source_image)
"""

import csv
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ray_fed.errors import DataError
from ray_fed.micrographs.image_reading import SUFFIXES, read_grey, read_values
from ray_fed.micrographs.mask_meaning import MaskMeaning
from ray_fed.micrographs.micrograph_set import MicrographSet
from ray_fed.micrographs.tile_source import SiloTiles

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


@dataclass(frozen=True)
class FolderTileSource:
    """`SiloSpec.source`: a folder, split by micrograph into training, validation and test tiles.

    The same seed gives a silo and the evaluator of its test tiles the same split.
    """

    folder: MicrographFolder
    validation: float = 0.15
    """Share of the tiles that choose the round."""
    test: float = 0.2
    """Share of the tiles that are only looked at in the end; with folds, 1 / folds."""
    folds: int = 0
    """k-fold cross-validation over micrographs when above 0."""
    fold: int = 0
    """Which fold is the test set: 0..folds - 1."""
    seed: int = 0
    is_test: bool = False
    """Hand out the test tiles (as training rows, for an evaluator) instead of the silo's."""

    def open(self, silo: str) -> SiloTiles:
        train, validation, test = self.parts(silo)
        return SiloTiles(test, test.subset([])) if self.is_test else SiloTiles(train, validation)

    def parts(self, silo: str) -> tuple[MicrographSet, MicrographSet, MicrographSet]:
        """Return (train, validation, test); no micrograph is in two of them. DataError when there are too few."""
        everything = self.folder.read(silo)
        if not self.folds:
            return everything.train_validation_test(self.validation, self.test, self.seed)
        rest, test = everything.folds(self.folds, self.seed)[self.fold]
        train, validation, _ = rest.train_validation_test(self.validation, 0.0, self.seed)
        return train, validation, test


def _files(folder: Path, given: str, usual: Sequence[str], who: str, what: str) -> dict[str, Path]:
    """Return stem -> file of the image files in a subfolder, sorted by name."""
    if not folder.is_dir():
        raise DataError(f"{who}: {folder} is not a folder; it should hold {' and '.join(('images/', 'labels/'))}")
    there = [folder / name for name in ([given] if given else usual) if (folder / name).is_dir()]
    if not there:
        raise DataError(f"{who}: {folder} has no subfolder {given or ' or '.join(usual)}; name it with {what}=")
    files = sorted(path for path in there[0].iterdir() if path.suffix.lower() in SUFFIXES)
    if not files:
        raise DataError(f"{who}: {there[0]} holds no image files ({', '.join(SUFFIXES)})")
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
        raise DataError(f"{who}: {index} needs the columns name and source_image")
    known = {row["name"]: row["source_image"] for row in rows}
    missing = [stem for stem in stems if stem not in known]
    if missing:
        raise DataError(f"{who}: {index} has no line for '{missing[0]}' ({len(missing)} such images); add them")
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
