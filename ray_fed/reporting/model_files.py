"""A trained model on disk: arrays as safetensors, everything one must know to use them as a JSON card. No pickle.

The card carries the hash of the weights and its own: weights and card that do not belong together are not loaded.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from ray_fed.errors import ConfigError, DataError
from ray_fed.reading import parse_json, readable
from ray_fed.reporting.environment import software_versions
from ray_fed.reporting.writing import Plain, to_json, to_plain, write_atomically

WEIGHTS_SUFFIX, CARD_SUFFIX = ".safetensors", ".card.json"

MAX_WEIGHTS_BYTES, MAX_CARD_BYTES = 1 << 31, 1 << 24
"""Longer files are not read: the largest network here has a hundred megabytes."""

ADDED_LATER = ("targets", "target_tensors", "limits")
"""Fields that older cards lack: hashed only where they say something."""
NOT_HASHED = ("id", "created")
"""`id` is the hash; `created` is a clock: one model made twice is one model."""


@dataclass(frozen=True)
class ModelCard:
    """What a reader, a transfer study or `ray-fed predict` must know about a model. All values are plain data."""

    name: str
    """Short name, e.g. "federated"."""
    property: str
    """What is predicted, e.g. "formation_energy_per_atom"."""
    unit: str
    """Unit of the prediction, e.g. "eV/atom"; "1" for a pure number."""
    descriptor: Mapping[str, Plain]
    """{"name": "guo73", "table_hash": sha256, "options": {...}}: equal hashes mean equal inputs."""
    feature_names: tuple[str, ...]
    """Names of the input columns, in order; [num_features]."""
    architecture: Mapping[str, Plain]
    """Network type and sizes, e.g. {"type": "mlp", "hidden": [200, 200], "activation": "relu"}."""
    hyperparameters: Mapping[str, Plain]
    """Optimiser, learning rate, batch size, epochs, ..."""
    seed: int
    """Seed from which initial weights and batches derive."""
    data: tuple[Mapping[str, Plain], ...]
    """One fingerprint per source: name, version or licence where known, hash, rows, columns."""
    split: Mapping[str, Plain]
    """How training and test rows were divided: {"how": "grouped", "test_rows": 2897, "seed": 0}."""
    metrics: Mapping[str, Mapping[str, Plain]]
    """Split -> {name of a metric: value, ..., "n": rows}."""
    federation: Mapping[str, Plain] = field(default_factory=lambda: {"privacy": "none"})
    """{"silos": [...], "weights": {silo: n_c/n}, "rounds": 25, "strategy": "fed_avg", "privacy": "none"}."""
    target_transform: str = "identity"
    """What was done to the target before training: "identity", "log10", ...; the prediction is its inverse."""
    scaler_tensors: tuple[str, str] = ("scaler.mean", "scaler.scale")
    """Names of the arrays with which inputs are standardised, (x - mean) / scale; float64 [num_features]."""
    targets: tuple[Mapping[str, Plain], ...] = ()
    """What each output means: {"name": ..., "unit": ..., "transform": "log10", "classes": []}; empty for one number as
    it is."""
    limits: Mapping[str, Plain] = field(default_factory=dict)
    """How far the predictions can be trusted: tables of intervals by target, how sure chances of classes are, what the
    silos' rows were like, and what all this does not promise (ray_fed/materials/limits.py); empty where it was not
    measured."""
    target_tensors: tuple[str, ...] = ()
    """Names of the arrays with which outputs of regression targets are undone, x * scale + mean, before the transform;
    float64, one value per target. Empty where the network gives the numbers themselves."""
    training_history: str = ""
    """Where the course of training is, relative to the card, e.g. "../history.jsonl"."""
    parent: str = ""
    """`id` of the model this one was trained from; empty: from random weights."""
    licence: str = "unspecified"
    """Licence of the weights; the licences of the data bind it."""
    citation: str = ""
    """What to cite with a result of this model."""
    software: Mapping[str, str] = field(default_factory=software_versions)
    """Package -> version at training."""
    created: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    """ISO 8601, UTC."""
    weights_sha256: str = ""
    """Hash of the .safetensors file; filled in by `save_model`."""
    id: str = ""
    """Hash of weights and card, without `created`; filled in by `save_model`."""

    def __repr__(self) -> str:
        made = f"{self.architecture.get('type')} on {self.descriptor.get('name')}"
        return f"ModelCard({self.name}: {self.property} [{self.unit}], {made}, id {self.id[:12] or 'not saved'})"

    @classmethod
    def from_mapping(cls, values: Mapping[str, object]) -> "ModelCard":
        """Read a card; ConfigError names missing and unknown fields."""
        known = {item.name for item in fields(cls)}
        required = {item.name for item in fields(cls) if item.default is item.default_factory is MISSING}
        unknown, missing = sorted(set(values) - known), sorted(required - set(values))
        if unknown or missing:
            raise ConfigError(f"model card: unknown fields {unknown}, missing fields {missing}; see ModelCard")
        tuples = {"feature_names", "data", "scaler_tensors", "targets", "target_tensors"}
        return cls(**{key: tuple(value) if key in tuples else value for key, value in values.items()})  # type: ignore

    def to_mapping(self) -> dict[str, Plain]:
        """Return the card as JSON knows it."""
        plain = to_plain(asdict(self))
        assert isinstance(plain, dict)
        return plain

    def digest(self) -> str:
        """Return the id this card should have."""
        told = self.to_mapping()
        content = {key: told[key] for key in told if key not in NOT_HASHED and (told[key] or key not in ADDED_LATER)}
        return hashlib.sha256(to_json(content)).hexdigest()


def save_model(path: Path | str, arrays: Mapping[str, np.ndarray], card: ModelCard | Mapping[str, object]) -> ModelCard:
    """Write `<path>.safetensors` and `<path>.card.json`; return the card with its hashes.

    `arrays` hold the parameters and the two scaler arrays the card names. ConfigError when the scaler is missing,
    does not fit the feature names, or is not finite.
    """
    card = card if isinstance(card, ModelCard) else ModelCard.from_mapping(card)
    _check_scaler(arrays, card)
    weights, card_path = model_paths(path)
    content = serialised(arrays)
    card = replace(card, weights_sha256=hashlib.sha256(content).hexdigest(), id="")
    card = replace(card, id=card.digest())
    write_atomically(weights, content)
    # Last: a crash between the two leaves weights without a card, and loading reports it.
    write_atomically(card_path, to_json(card.to_mapping(), indent=2) + b"\n")
    return card


def load_model(path: Path | str) -> tuple[dict[str, np.ndarray], ModelCard]:
    """Read a model by its path without suffix, its weights file or its card; arrays are writable copies.

    DataError when a file is missing, damaged, or not the one the card describes.
    """
    weights, card_path = model_paths(path)
    content, card = read_model_file(weights), read_card(read_model_file(card_path), card_path)
    found = hashlib.sha256(content).hexdigest()
    if found != card.weights_sha256:
        raise DataError(
            f"{weights}: sha256 is {found[:16]}..., its card says {card.weights_sha256[:16]}...; "
            "the weights were changed or cut: get the file again from where the card came"
        )
    return tensors_of(content, weights), card


def model_paths(path: Path | str) -> tuple[Path, Path]:
    """Return (weights, card) of a model named by either file or by their common stem."""
    stem = str(path).removesuffix(WEIGHTS_SUFFIX).removesuffix(CARD_SUFFIX)
    return Path(stem + WEIGHTS_SUFFIX), Path(stem + CARD_SUFFIX)


def _check_scaler(arrays: Mapping[str, np.ndarray], card: ModelCard) -> None:
    wanted = (len(card.feature_names),)
    for name in card.scaler_tensors:
        if name not in arrays:
            raise ConfigError(f"model '{card.name}': array {name!r} is missing; it has: {', '.join(sorted(arrays))}")
        if np.shape(arrays[name]) != wanted:
            raise ConfigError(
                f"model '{card.name}': {name} has shape {np.shape(arrays[name])}, feature_names needs {wanted}"
            )
        if not np.isfinite(arrays[name]).all():
            raise ConfigError(f"model '{card.name}': {name} holds NaN or infinity; it cannot standardise an input")


def serialised(arrays: Mapping[str, np.ndarray]) -> bytes:
    """Return arrays as the bytes of a .safetensors file."""
    from safetensors.numpy import save

    # safetensors reads raw memory: a transposed or strided view would be saved scrambled, without an error.
    return save({name: np.array(array, order="C") for name, array in arrays.items()})


def tensors_of(content: bytes, where: object) -> dict[str, np.ndarray]:
    """Return the arrays in the bytes of a .safetensors file, as writable copies; DataError says where they are from."""
    from safetensors.numpy import load

    try:
        # Copies: some versions return read-only views of the file's bytes, and torch warns of read-only memory.
        return {name: array.copy() for name, array in load(content).items()}
    except Exception as error:  # besides its own errors: KeyError for a dtype that NumPy lacks, ValueError for a shape
        said = " ".join(str(error).split())[:200]
        raise DataError(f"{where} is not a safetensors file ({said}); get the model again") from error


def read_model_file(path: Path) -> bytes:
    """Return the bytes of weights or card; DataError names the file."""
    pair = f"a model is a pair of <name>{WEIGHTS_SUFFIX} and <name>{CARD_SUFFIX} in one folder"
    return readable(path, pair, MAX_CARD_BYTES if path.name.endswith(CARD_SUFFIX) else MAX_WEIGHTS_BYTES)


def _digest_of_read(values: Mapping[str, Plain]) -> str:
    """Return `ModelCard.digest` of a card with all fields as they stand in its file: plain, so that nothing is copied.
    The index of a large library is made again from thousands of them."""
    told = {key: value for key, value in values.items() if key not in NOT_HASHED and (value or key not in ADDED_LATER)}
    text = json.dumps(told, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()


def read_card(content: bytes, where: object) -> ModelCard:
    """Return the card in the bytes of its file; DataError when it is none, or was changed after it was written."""
    try:
        values = parse_json(content, where)
        card = ModelCard.from_mapping(values)
        digest = _digest_of_read(values) if len(values) == len(fields(ModelCard)) else card.digest()
    except (ConfigError, ValueError, AttributeError, TypeError) as error:
        raise DataError(f"{where} is not a model card ({' '.join(str(error).split())}); get the model again") from error
    if digest != card.id:
        told = f"its hash is not its id, {str(card.id)[:16]}..."
        raise DataError(f"{where}: the card was changed after it was written ({told}); get it again")
    return card
