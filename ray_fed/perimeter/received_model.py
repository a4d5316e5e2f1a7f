"""The final model of a run as a file of a silo's owner (Guo et al. 2022, Algorithm 2, line 11).

What comes from a coordinator is checked before a byte of it is kept, and its name is made here: nothing of the other
side chooses where a file stands. `load_model` and `ray-fed predict` read what is kept.
"""

import hashlib
import logging
import os
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load

from ray_fed.config import require
from ray_fed.errors import ConfigError, DataError
from ray_fed.perimeter.owner_file import check_own_folder
from ray_fed.reading import parse_json
from ray_fed.reporting.model_files import ModelCard, model_paths
from ray_fed.reporting.writing import write_atomically

_log = logging.getLogger(__name__)

MOST_WEIGHT_BYTES = 1 << 32
MOST_CARD_BYTES = 1 << 22
MOST_MODELS = 200
"""In one folder; a coordinator must not fill an owner's disk."""


def keep_model(folder: Path, weights: np.ndarray, card: np.ndarray) -> Path:
    """Write a model and its card into the owner's folder, readable by the owner alone; return the path of the weights.

    weights, card: uint8 [n], the bytes of a .safetensors file and of its card. DataError for what is no model that its
    card describes; ConfigError for a folder that others can write, or that is full.
    """
    described = _described(_bytes(weights, "weights", MOST_WEIGHT_BYTES), _bytes(card, "card", MOST_CARD_BYTES))
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    check_own_folder(folder.absolute())
    kept = len(list(folder.glob("*.safetensors")))
    require(kept < MOST_MODELS, f"{folder}: holds {kept} models, and that is the most; move some elsewhere")
    stem = f"model-{datetime.now(UTC):%Y%m%d-%H%M%S}-{described.id[:12]}"
    weights_path, card_path = model_paths(folder / stem)
    _write(weights_path, weights.tobytes())
    _write(card_path, card.tobytes())  # last: a crash between the two leaves weights without a card
    _log.info("the final model of a run is kept as %s", weights_path)
    return weights_path


def _bytes(array: np.ndarray, what: str, most: int) -> bytes:
    fits = type(array) is np.ndarray and array.dtype == np.uint8 and array.ndim == 1 and len(array) <= most
    if not fits:
        raise DataError(f"the model's {what} must be at most {most} bytes")
    return array.tobytes()


def _described(weights: bytes, card: bytes) -> ModelCard:
    """Return the card; DataError where it is none, or is of other weights."""
    try:
        found = ModelCard.from_mapping(parse_json(card, "the model's card"))
        digest = found.digest()
    except (ConfigError, AttributeError, TypeError, ValueError) as error:
        raise DataError(f"the model's card cannot be read ({type(error).__name__})") from error
    same = digest == found.id and hashlib.sha256(weights).hexdigest() == found.weights_sha256
    if not same:
        raise DataError("the model's card is not the one of these weights")
    try:
        arrays = load(weights)
    except SafetensorError as error:
        raise DataError("the model's weights are no safetensors file") from error
    if not all(np.isfinite(array).all() for array in arrays.values() if array.dtype.kind == "f"):
        raise DataError("the model has weights that are not finite")
    return found


def _write(path: Path, content: bytes) -> None:
    write_atomically(path, content)
    os.chmod(path, 0o600)  # noqa: PTH101 (its folder is the owner's alone already)
