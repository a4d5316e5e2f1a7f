"""Images to attack: sets that need no download, and the user's own files."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ray_fed.config import require, unknown_name
from ray_fed.errors import DataError
from ray_fed.randomness import generator
from ray_fed.reading import MAX_ARRAY_BYTES, open_picture, open_regular, read_arrays, readable

PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket", "retina", "immunohistochemistry", "hubble_deep_field")
"""scikit-image's own colour photographs that come with the package; the class of a crop is its photograph."""
PHOTO_SIDE = 32
CROPS_PER_PHOTO = 32
PICTURES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")


@dataclass(frozen=True)
class ImageSet:
    """Images with class labels, or rows of tokens with them."""

    name: str
    images: np.ndarray
    """float32 [num, channels, height, width] in [0, 1]; of tokens int64 [num, length]."""
    labels: np.ndarray
    """int64 [num]"""
    num_classes: int
    about: str = ""
    vocabulary: int = 0
    """Of tokens: one more than the largest; 0 for images."""

    def __len__(self) -> int:
        return len(self.images)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one image: (channels, height, width)."""
        return self.images.shape[1:]

    def sample(self, count: int, seed: int) -> "ImageSet":
        """Return `count` images drawn without replacement, in the order drawn: fewer images are the first of more.

        ConfigError when there are fewer than `count`.
        """
        return self._only(drawn_order(self.name, len(self), count, seed)[:count])

    def after(self, count: int, seed: int) -> "ImageSet":
        """Return the images that `sample` leaves; ConfigError when there is none."""
        rest = drawn_order(self.name, len(self), count, seed)[count:]
        require(len(rest) > 0, f"images={count}: data={self.name} has no other images to train on")
        return self._only(rest)

    def _only(self, chosen: np.ndarray) -> "ImageSet":
        return replace(self, images=self.images[chosen], labels=self.labels[chosen])


def drawn_order(name: str, held: int, count: int, seed: int) -> np.ndarray:
    """Return the seeded order of a set of `held` images; ConfigError when there are fewer than `count`."""
    require(0 < count <= held, f"images={count}: data={name} holds {held} images")
    return generator(seed, "images to attack", name).permutation(held)


def load_images(data: str, side: int = PHOTO_SIDE, count: int | None = None, seed: int = 0) -> ImageSet:
    """Return an embedded set by name, or the user's files; `count` images of it, if given (see `ImageSet.sample`).

    Files: an .npz with arrays images or tokens, and labels; SVHN's .mat; the .bin of CIFAR-10 and CIFAR-100; a folder
    whose subfolders are classes (LFW's is one): its pictures are cropped to a square and shrunk to `side` pixels, and
    only those that are drawn are read. DataError names the file and what is wrong; ConfigError an unknown name.
    """
    path = Path(data).expanduser()
    if data not in EMBEDDED and path.is_dir():
        return _folder(path, side, count, seed)
    found = EMBEDDED[data]() if data in EMBEDDED else _file(path, data)
    return found if count is None else found.sample(count, seed)


def _file(path: Path, data: str) -> ImageSet:
    if path.is_file():
        reader = READERS.get(path.suffix.lower())
        if reader is None:
            raise DataError(f"data={data}: give {', '.join(READERS)} or a folder of pictures")
        return reader(path)
    if path.suffix or "/" in data:
        raise DataError(f"data={data}: no such file or folder; embedded sets are {', '.join(EMBEDDED)}")
    raise unknown_name("data", data, EMBEDDED)


def _digits() -> ImageSet:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = (bunch.images[:, None] / 16).astype(np.float32)  # type: ignore[union-attr]
    labels = bunch.target.astype(np.int64)  # type: ignore[union-attr]
    return ImageSet("digits", images, labels, 10, "scikit-learn's handwritten digits, 8x8 grey (UCI, CC BY 4.0)")


def _faces() -> ImageSet:
    from skimage import data

    images = data.lfw_subset()[:, None].astype(np.float32)
    labels = (np.arange(len(images)) >= len(images) // 2).astype(np.int64)
    return ImageSet("faces", images, labels, 2, "scikit-image's subset of LFW: 100 faces, 100 patches, 25x25 grey")


def _photos() -> ImageSet:
    from skimage import data

    images, labels = [], []
    for label, name in enumerate(PHOTOGRAPHS):
        picture = np.asarray(getattr(data, name)())[..., :3]
        rng = generator(0, "crops of photographs", name)
        for _ in range(CROPS_PER_PHOTO):
            images.append(_shrunk(_window(picture, rng), PHOTO_SIDE))
            labels.append(label)
    about = "windows of scikit-image's photographs, 32x32 colour"
    return ImageSet("photos", np.stack(images), np.array(labels, np.int64), len(PHOTOGRAPHS), about)


EMBEDDED: dict[str, Callable[[], ImageSet]] = {"digits": _digits, "faces": _faces, "photos": _photos}


def _window(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return a random square of a third to two thirds of the picture's shorter side."""
    shorter = min(picture.shape[:2])
    side = int(rng.integers(shorter // 3, 2 * shorter // 3))
    top, left = (int(rng.integers(0, size - side + 1)) for size in picture.shape[:2])
    return picture[top : top + side, left : left + side]


def _shrunk(picture: np.ndarray, side: int) -> np.ndarray:
    """Return a uint8 picture [height, width, 3] or [height, width], or a float32 one in [0, 1] without colours, as
    float32 [channels, side, side] in [0, 1]."""
    from PIL import Image

    if picture.dtype == np.float32:
        return np.asarray(Image.fromarray(picture).resize((side, side), Image.Resampling.BOX))[None]
    resized = Image.fromarray(picture).resize((side, side), Image.Resampling.BOX)
    values = np.asarray(resized, np.float32) / 255
    return values[None] if values.ndim == 2 else values.transpose(2, 0, 1)


def _npz(path: Path) -> ImageSet:
    try:
        content = read_arrays(path)
    except (OSError, ValueError) as error:
        raise DataError(f"data={path}: not an .npz file of numbers: {' '.join(str(error).split())}") from error
    if "tokens" in content:
        return _tokens(content, path)
    for name in ("images", "labels"):
        if name not in content:
            raise DataError(f"data={path}: array {name!r} is missing; it has: {', '.join(content) or 'none'}")
    images, labels = _channels_first(content["images"], path), np.asarray(content["labels"])
    num_classes = _num_classes(labels, content.get("class_names"), len(images), path)
    return ImageSet(path.stem, images, labels.astype(np.int64), num_classes, str(path.name))


def _num_classes(labels: np.ndarray, names: np.ndarray | None, held: int, path: Path) -> int:
    """Return the number of classes; DataError for labels that do not fit `held` samples."""
    if labels.shape != (held,) or not np.issubdtype(labels.dtype, np.integer):
        raise DataError(f"data={path}: labels must be {held} whole numbers, not {labels.dtype} {labels.shape}")
    if len(labels) and labels.min() < 0:
        raise DataError(f"data={path}: label {labels.min()} is out of range; labels count from 0")
    num_classes = int(labels.max(initial=0)) + 1 if names is None else len(names)
    if len(labels) and labels.max() >= num_classes:
        raise DataError(f"data={path}: label {labels.max()} is out of range; class_names has {num_classes} names")
    return num_classes


def _tokens(content: dict[str, np.ndarray], path: Path) -> ImageSet:
    tokens = content["tokens"]
    if tokens.ndim != 2 or not np.issubdtype(tokens.dtype, np.integer) or 0 in tokens.shape or tokens.min() < 0:
        raise DataError(
            f"data={path}: tokens {tokens.dtype} {tokens.shape} must be whole numbers from 0, [num, length]"
        )
    if "labels" not in content:
        raise DataError(f"data={path}: array 'labels' is missing; it has: {', '.join(content)}")
    labels = content["labels"]
    num_classes = _num_classes(labels, content.get("class_names"), len(tokens), path)
    kept = tokens.astype(np.int64), labels.astype(np.int64)
    return ImageSet(path.stem, *kept, num_classes, path.name, int(tokens.max()) + 1)


def _svhn(path: Path) -> ImageSet:
    """SVHN's cropped digits (train_32x32.mat, ...): X [32, 32, 3, num], y [num, 1], where 10 stands for the digit 0."""
    from scipy.io import loadmat

    try:
        with open_regular(path) as file:
            content = loadmat(file, variable_names=["X", "y"])
        pictures, labels = content["X"], content["y"].ravel().astype(np.int64) % 10
        images = _channels_first(pictures.transpose(3, 0, 1, 2), path)
    except Exception as error:  # scipy raises many kinds, some of its own
        said = " ".join(str(error).split())[:200]
        raise DataError(f"data={path}: no .mat file of SVHN's cropped digits (X, y): {said}") from error
    return ImageSet(path.stem, images, labels, 10, f"SVHN's {path.name}, 32x32 colour")


CIFAR_PIXELS = 3 * 32 * 32


def _cifar(path: Path) -> ImageSet:
    """CIFAR's binary files: rows of one label byte (CIFAR-10) or two, coarse and fine (CIFAR-100), and 3,072 pixels."""
    content = np.frombuffer(readable(path, "get it again from where it came", MAX_ARRAY_BYTES), np.uint8)
    before = next((size for size in (2, 1) if content.size and content.size % (CIFAR_PIXELS + size) == 0), None)
    if before is None:
        raise DataError(
            f"data={path}: {content.size:,} bytes are no whole rows of CIFAR-10 (3,073) or CIFAR-100 (3,074)"
        )
    rows = content.reshape(-1, CIFAR_PIXELS + before)
    labels, num_classes = rows[:, before - 1].astype(np.int64), 100 if before == 2 else 10
    if labels.max() >= num_classes:
        raise DataError(f"data={path}: label {labels.max()} in a file of {num_classes} classes; is it another kind?")
    images = rows[:, before:].reshape(-1, 3, 32, 32).astype(np.float32) / 255
    return ImageSet(path.stem, images, labels, num_classes, f"CIFAR-{num_classes}'s {path.name}, 32x32 colour")


def _channels_first(images: np.ndarray, path: Path) -> np.ndarray:
    """Return images [num, height, width(, channels)] as float32 [num, channels, height, width] in [0, 1]."""
    if images.ndim not in (3, 4) or 0 in images.shape:
        raise DataError(
            f"data={path}: images {images.shape} must be [num, height, width] or [num, height, width, channels]"
        )
    if images.dtype.kind not in "buif":
        raise DataError(f"data={path}: images of {images.dtype} are no numbers; give uint8, or floats in 0..1")
    if images.ndim == 3:
        images = images[..., None]
    if images.shape[-1] not in (1, 3):
        raise DataError(f"data={path}: images have {images.shape[-1]} channels in the last axis; give 1 or 3")
    white = {np.dtype(np.uint8): 255, np.dtype(np.uint16): MOST_16_BIT}.get(images.dtype, 1)
    values = images.astype(np.float32) / np.float32(white)
    broken = np.flatnonzero(~np.isfinite(values).all((1, 2, 3)))
    if len(broken):
        raise DataError(f"data={path}: image {broken[0]} has values that are not finite")
    if values.min() < 0 or values.max() > 1:
        raise DataError(f"data={path}: values must lie in 0..1, or be uint8 or uint16")
    return np.ascontiguousarray(values.transpose(0, 3, 1, 2))


READERS: dict[str, Callable[[Path], ImageSet]] = {".npz": _npz, ".mat": _svhn, ".bin": _cifar}


def _folder(path: Path, side: int, count: int | None, seed: int) -> ImageSet:
    files = sorted(file for file in path.rglob("*") if file.suffix.lower() in PICTURES)
    if not files:
        raise DataError(f"data={path}: no picture ({', '.join(PICTURES)}) in this folder")
    classes = {
        name: number for number, name in enumerate(sorted({str(file.parent.relative_to(path)) for file in files}))
    }
    if count is not None:
        files = [files[place] for place in drawn_order(path.name, len(files), count, seed)[:count]]
    images = [_shrunk(_square(file), side) for file in files]
    if len({image.shape for image in images}) > 1:
        images = [np.broadcast_to(image, (3, side, side)) for image in images]
    labels = np.array([classes[str(file.parent.relative_to(path))] for file in files], np.int64)
    return ImageSet(path.name, np.stack(images).astype(np.float32), labels, max(2, len(classes)), f"folder {path.name}")


def _square(file: Path) -> np.ndarray:
    """Return the middle of a picture: uint8, or float32 in [0, 1] of one with more than 8 bits a value."""
    try:
        with open_picture(file) as picture:
            deep = picture.mode in DEEP or picture.mode.startswith("I;16")
            pixels = np.asarray(picture if deep else picture.convert("L" if picture.mode in ("1", "L") else "RGB"))
    except Exception as error:  # Pillow raises whatever its codecs raise
        said = " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError(f"data: {file} cannot be read as a picture: {said}") from error
    pixels = _of_range(pixels, file) if deep else pixels
    side = min(pixels.shape[:2])
    top, left = ((size - side) // 2 for size in pixels.shape[:2])
    return pixels[top : top + side, left : left + side]


DEEP = ("I", "F")
"""Pillow's modes of pictures with 32 bits a value; those with 16 begin with I;16."""
MOST_16_BIT = 65535


def _of_range(pixels: np.ndarray, file: Path) -> np.ndarray:
    """Return values of 16 bits as shares of 65535, and numbers that lie in [0, 1] as they are; DataError for others,
    whose white nobody said."""
    most = 1.0 if pixels.dtype.kind == "f" else MOST_16_BIT
    if not np.isfinite(pixels).all() or pixels.min() < 0 or pixels.max() > most:
        raise DataError(f"data: {file} has values between {pixels.min():g} and {pixels.max():g}: which is white? Scale "
                        "it to 0..1, or to 16 bits")  # fmt: skip
    return pixels.astype(np.float32) / np.float32(most)
