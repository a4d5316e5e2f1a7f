"""A silo's personal model as a file of its owner's: every part that counts, the weights, and a card; no pickle.

scaler.*, target.*        the federation's scalers
federated.*               the federation's network or forest, by the names of its own file
tuned.*, network.*        networks of the same form
boosted.*, stacked.*      forests (own_trees.py)
offsets                   [118] in the target's unit
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ray_fed.config import at_home
from ray_fed.errors import DataError
from ray_fed.learning.layout import Layout
from ray_fed.learning.mixture import mixed
from ray_fed.materials.card_entries import (
    PERSONAL,
    Arrays,
    card_entries,
    forest_entries,
    network_entries,
    scaler_arrays,
)
from ray_fed.materials.element_offsets import ElementOffsets
from ray_fed.materials.own_trees import OwnTrees, loss_of
from ray_fed.materials.personal import (
    BOOSTED,
    FEDERATED,
    NETWORK,
    OFFSETS,
    STACKED,
    TUNED,
    ByVector,
    Personal,
    Trees,
    WithOffsets,
)
from ray_fed.reporting.model_files import ModelCard, save_model
from ray_fed.reporting.writing import Plain

FOLDER = "personal"
"""Of a run, beside its models: one file for each silo."""


def keep_personal(folder: str, silo: str, task: Any, found: Personal, about: Mapping[str, Any]) -> Path:
    """Write `<folder>/<silo>.safetensors` and its card, which only this account may read; return the path.

    about: arguments of ModelCard that the silo knows (seed, split, metrics, hyperparameters).
    """
    place = Path(at_home(folder))
    place.mkdir(parents=True, exist_ok=True, mode=0o700)
    layout = Layout.of(task.model(0))
    arrays = scaler_arrays(task, found.federated.standardizer)
    parts = {**found.chosen.parts, FEDERATED: found.federated}
    for name, part in parts.items():
        arrays |= _arrays(name, part, layout)
    save_model(place / silo, arrays, _card(silo, task, found, about))
    path = place / f"{silo}.safetensors"
    path.chmod(0o600)
    return path


def _arrays(name: str, part: Any, layout: Layout) -> dict[str, np.ndarray]:
    match part:
        case ByVector():
            return {f"{name}.{key}": array for key, array in layout.unflatten(part.vector[: layout.size]).items()}
        case Trees():
            return part.trees.arrays(f"{name}.")
        case WithOffsets():
            return {OFFSETS: part.offsets.values}
    raise AssertionError(name)


def _card(silo: str, task: Any, found: Personal, about: Mapping[str, Any]) -> ModelCard:
    features = task.featurizer()
    form = network_entries(task) if task.has_network else forest_entries(task.trees)
    weights: dict[str, Plain] = dict(found.chosen.weights)
    return ModelCard(
        name=silo, **card_entries(task),
        descriptor={
            "name": task.features, "table_hash": features.fingerprint(), "options": dict(task.feature_options),
        },
        feature_names=tuple(str(name) for name in features.get_feature_names_out()),
        architecture={"type": PERSONAL, "weights": weights, FEDERATED: form}, **about,
    )  # fmt: skip


@dataclass(frozen=True)
class PersonalArrays:
    """A personal model as it was read."""

    arrays: Arrays
    card: ModelCard

    @property
    def federated(self) -> tuple[dict[str, np.ndarray], ModelCard]:
        """The federation's model in it."""
        return self._of_form(FEDERATED)

    def _of_form(self, name: str) -> tuple[dict[str, np.ndarray], ModelCard]:
        """Return a part that has the federation's form, as a model of its own."""
        form: Any = self.card.architecture[FEDERATED]
        scalers = {key: self.arrays[key] for key in (*self.card.scaler_tensors, *self.card.target_tensors)}
        own = _without(name, self.arrays)
        return {**scalers, **own}, replace(self.card, architecture=form)

    def parts(self, predict: Any, features: Any, formulas: Sequence[str]) -> dict[str, np.ndarray]:
        """Return part -> what it says of raw features [rows, d], or GraphRows of them, [rows, W], of those that have a
        weight.

        predict: (features, arrays, card) -> values of a model of the federation's form, or of a forest of outputs.
        """
        whole = predict(features, *self.federated)
        said = {FEDERATED: whole}
        for name in (TUNED, NETWORK):
            if name in self.weights:
                said[name] = predict(features, *self._of_form(name))
        if OFFSETS in self.weights:
            said[OFFSETS] = whole + ElementOffsets(self.arrays[OFFSETS]).of(formulas)[:, None]
        table = features if isinstance(features, np.ndarray) else features.table.cpu().numpy()
        for name, columns in ((BOOSTED, table), (STACKED, np.hstack([table, whole]))):
            if name in self.weights:
                said[name] = self._trees(name).outputs(columns)
        return said

    @property
    def weights(self) -> dict[str, float]:
        told: Any = self.card.architecture["weights"]
        return {str(name): float(weight) for name, weight in told.items()}

    def _trees(self, name: str) -> OwnTrees:
        losses = [loss_of(len(one["classes"])) for one in self.card.targets] or ["squared"]  # type: ignore[arg-type]
        try:
            return OwnTrees.of_arrays(self.arrays, f"{name}.", losses)
        except (KeyError, ValueError) as error:
            raise DataError(f"model '{self.card.name}': its file lacks the trees of {name}; get it again") from error


def personal_values(
    features: Any, formulas: Sequence[str], model: PersonalArrays, predict: Any, of_trees: Any
) -> np.ndarray:
    """Return what a personal model says of raw features, [rows, W].

    predict: see `PersonalArrays.parts`. of_trees: outputs of trees [rows, O] -> values [rows, W].
    """
    said = model.parts(predict, features, formulas)
    parts = [of_trees(said[name]) if name in (BOOSTED, STACKED) else said[name] for name in model.weights]
    return mixed(parts, np.array(list(model.weights.values())))


def _without(prefix: str, arrays: Arrays) -> dict[str, np.ndarray]:
    return {name.removeprefix(f"{prefix}."): each for name, each in arrays.items() if name.startswith(f"{prefix}.")}
