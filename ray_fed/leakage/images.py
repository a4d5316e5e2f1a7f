"""Images to attack: sets that need no download, and the user's own files."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ray_fed.config import require, unknown_name
from ray_fed.errors import DataError
from ray_fed.randomness import generator
from ray_fed.reading import open_picture, read_arrays

PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket", "retina", "immunohistochemistry", "hubble_deep_field")
"""scikit-image's own colour photographs that come with the package; the class of a crop is its photograph."""
PHOTO_SIDE = 32
CROPS_PER_PHOTO = 32
PICTURES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")


@dataclass(frozen=True)
class ImageSet:
    """Images with class labels."""

    name: str
    images: np.ndarray
    """float32 [num, channels, height, width] in [0, 1]."""
    labels: np.ndarray
    """int64 [num]"""
    num_classes: int
    about: str = ""

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
        require(0 < count <= len(self), f"images={count}: data={self.name} holds {len(self)} images")
        chosen = generator(seed, "images to attack", self.name).permutation(len(self))[:count]
        return ImageSet(self.name, self.images[chosen], self.labels[chosen], self.num_classes, self.about)


def load_images(data: str, side: int = PHOTO_SIDE) -> ImageSet:
    """Return an embedded set by name, an .npz file (arrays images and labels), or a folder of pictures.

    A folder's subfolders are its classes; pictures are cropped to a square and shrunk to `side` pixels. DataError names
    the file and what is wrong; ConfigError an unknown name.
    """
    if data in EMBEDDED:
        return EMBEDDED[data]()
    path = Path(data).expanduser()
    if path.is_dir():
        return _folder(path, side)
    if path.is_file():
        return _npz(path)
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
    """Return a uint8 picture [height, width, 3] or [height, width] as float32 [channels, side, side] in [0, 1]."""
    from PIL import Image

    resized = Image.fromarray(picture).resize((side, side), Image.Resampling.BOX)
    values = np.asarray(resized, np.float32) / 255
    return values[None] if values.ndim == 2 else values.transpose(2, 0, 1)


def _npz(path: Path) -> ImageSet:
    try:
        content = read_arrays(path)
    except (OSError, ValueError) as error:
        raise DataError(f"data={path}: not an .npz file of numbers: {' '.join(str(error).split())}") from error
    for name in ("images", "labels"):
        if name not in content:
            raise DataError(f"data={path}: array {name!r} is missing; it has: {', '.join(content) or 'none'}")
    images, labels = _channels_first(content["images"], path), np.asarray(content["labels"])
    if labels.shape != (len(images),) or not np.issubdtype(labels.dtype, np.integer):
        raise DataError(f"data={path}: labels must be {len(images)} whole numbers, not {labels.dtype} {labels.shape}")
    if len(labels) and labels.min() < 0:
        raise DataError(f"data={path}: label {labels.min()} is out of range; labels count from 0")
    names = content.get("class_names")
    num_classes = int(labels.max(initial=0)) + 1 if names is None else len(names)
    if len(labels) and labels.max() >= num_classes:
        raise DataError(f"data={path}: label {labels.max()} is out of range; class_names has {num_classes} names")
    return ImageSet(path.stem, images, labels.astype(np.int64), num_classes, str(path.name))


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
    values = images.astype(np.float32) / (255 if images.dtype == np.uint8 else 1)
    broken = np.flatnonzero(~np.isfinite(values).all((1, 2, 3)))
    if len(broken):
        raise DataError(f"data={path}: image {broken[0]} has values that are not finite")
    if values.min() < 0 or values.max() > 1:
        raise DataError(f"data={path}: values must lie in 0..1, or be uint8")
    return np.ascontiguousarray(values.transpose(0, 3, 1, 2))


def _folder(path: Path, side: int) -> ImageSet:
    files = sorted(file for file in path.rglob("*") if file.suffix.lower() in PICTURES)
    if not files:
        raise DataError(f"data={path}: no picture ({', '.join(PICTURES)}) in this folder")
    classes = sorted({str(file.parent.relative_to(path)) for file in files})
    images = [_shrunk(_square(file), side) for file in files]
    if len({image.shape for image in images}) > 1:
        images = [np.broadcast_to(image, (3, side, side)) for image in images]
    labels = np.array([classes.index(str(file.parent.relative_to(path))) for file in files], np.int64)
    return ImageSet(path.name, np.stack(images).astype(np.float32), labels, max(2, len(classes)), f"folder {path.name}")


def _square(file: Path) -> np.ndarray:
    try:
        with open_picture(file) as picture:
            pixels = np.asarray(picture.convert("L" if picture.mode in ("1", "L", "I", "F") else "RGB"))
    except Exception as error:  # Pillow raises whatever its codecs raise
        said = " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError(f"data: {file} cannot be read as a picture: {said}") from error
    side = min(pixels.shape[:2])
    top, left = ((size - side) // 2 for size in pixels.shape[:2])
    return pixels[top : top + side, left : left + side]
