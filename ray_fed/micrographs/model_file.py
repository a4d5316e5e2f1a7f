"""A trained segmentation network on disk: weights as safetensors, a JSON card with them. No pickle."""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ray_fed.config import from_mapping
from ray_fed.errors import ConfigError, DataError
from ray_fed.learning.layout import Layout, load_vector
from ray_fed.micrographs.unet import UNet, UNetDesign, seeded_unet
from ray_fed.reading import parse_json
from ray_fed.reporting.environment import software_versions
from ray_fed.reporting.model_files import model_paths, read_model_file, serialised, tensors_of
from ray_fed.reporting.writing import to_json, write_atomically

KIND = "grain boundary segmenter"


@dataclass(frozen=True)
class SegmenterCard:
    """What one must know to use a segmentation network."""

    name: str
    """The model's name in its run, e.g. "fedtransfer"."""
    design: UNetDesign
    tile_size: int
    """Edge of the tiles it was trained on, pixels; GroupNorm in particular needs windows of this size."""
    pixel_size_um: float | None = None
    """Edge of a training pixel, micrometres; None: not known."""
    trained_on: tuple[str, ...] = ()
    """Silos whose tiles it has learnt from."""
    metrics: Mapping[str, Any] = field(default_factory=dict)
    """What it scored on the test sets: name -> values."""
    kind: str = KIND
    weights_sha256: str = ""
    software: Mapping[str, str] = field(default_factory=dict)


def save_segmenter(path: Path | str, vector: np.ndarray, card: SegmenterCard) -> SegmenterCard:
    """Write `<path>.safetensors` and `<path>.card.json`; return the card with the hash of the weights.

    vector: float32 [Layout.of(network).size], parameters and averaged buffers as they travel with buffers="average".
    ConfigError when the vector does not fit the design.
    """
    layout = Layout.of(seeded_unet(card.design, 0))
    if vector.shape != (layout.size,):
        raise ConfigError(f"model '{card.name}': {vector.shape} values given, its design has {layout.size}")
    weights, card_path = model_paths(path)
    content = serialised({name: np.asarray(part, np.float32) for name, part in layout.unflatten(vector).items()})
    card = replace(card, weights_sha256=hashlib.sha256(content).hexdigest(), software=software_versions())
    write_atomically(weights, content)
    # Last: a crash between the two leaves weights without a card, and loading reports it.
    write_atomically(card_path, to_json(asdict(card), indent=2) + b"\n")
    return card


def load_segmenter(path: Path | str) -> tuple[UNet, SegmenterCard]:
    """Return the network, ready for evaluation, and its card, by path without suffix or of either file.

    DataError when a file is missing, damaged, of another kind, not finite, or not what the card describes.
    """
    weights, card_path = model_paths(path)
    card = _read_card(card_path)
    content = read_model_file(weights)
    if hashlib.sha256(content).hexdigest() != card.weights_sha256:
        raise DataError(f"{weights}: the weights are not those its card describes (sha256 differs); copy both again")
    network = seeded_unet(card.design, 0)
    return load_vector(network, _vector(weights, content, Layout.of(network))).eval(), card  # type: ignore[return-value]


def _vector(path: Path, content: bytes, layout: Layout) -> np.ndarray:
    arrays = tensors_of(content, path)
    try:
        vector = layout.flatten(arrays)
    except (KeyError, ValueError, TypeError) as error:
        raise DataError(f"{path} does not hold the network its card describes ({error})") from error
    if not np.isfinite(vector).all():
        raise DataError(f"{path} holds {int((~np.isfinite(vector)).sum())} values that are not finite; train it again")
    return vector


def _read_card(path: Path) -> SegmenterCard:
    content = read_model_file(path)
    try:
        found = parse_json(content, path)
        design = from_mapping(UNetDesign, found.pop("design"), "design")
        card = SegmenterCard(**(found | {"design": design, "trained_on": tuple(found["trained_on"])}))
    except (ConfigError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataError(f"{path} is not the card of a segmentation model ({error})") from error
    if card.kind != KIND:
        raise DataError(f"{path} is the card of a {card.kind}, not of a {KIND}")
    return card
