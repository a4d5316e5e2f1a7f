"""A trained property network as a file has it: arrays with the scalers of inputs and outputs, targets in its card."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from ray_fed.errors import ConfigError, DataError
from ray_fed.learning.layout import Layout, bind
from ray_fed.learning.models import mlp
from ray_fed.learning.standardisation import Standardizer
from ray_fed.learning.trainer import portions
from ray_fed.materials.card_entries import CRYSTAL_GRAPH, FOREST, PERSONAL, Arrays
from ray_fed.materials.graphs.graph_rows import GraphRows
from ray_fed.materials.graphs.graph_task import graph_network
from ray_fed.materials.graphs.neighbours import GRAPH_VERSION
from ray_fed.materials.personal import FEDERATED
from ray_fed.materials.personal_file import PersonalArrays, personal_values
from ray_fed.materials.targets import Target, predicted_values
from ray_fed.reporting.model_files import ModelCard
from ray_fed.trees.bins import as_float32
from ray_fed.trees.forest import Forest, ForestPredictor
from ray_fed.trees.settings import TreeSettings
from ray_fed.trees.trainer import outputs_of


def targets_of(card: ModelCard) -> tuple[Target, ...]:
    """Return the targets of a model; cards of one plain number, as all were once, have no list of them."""
    if not card.targets:
        return (Target(card.property, card.unit),)
    told: list[Any] = [dict(one) for one in card.targets]
    return tuple(Target(one["name"], one["unit"], one["transform"], tuple(one["classes"])) for one in told)


def standardizer_of(arrays: Arrays, card: ModelCard) -> Standardizer:
    """Return the scaler that the silos agreed on, of features and targets."""
    of_features, of_targets = scalers_of(arrays, card)
    return of_features if of_targets is None else of_features.beside(of_targets)


def scalers_of(arrays: Arrays, card: ModelCard) -> tuple[Standardizer, Standardizer | None]:
    """Return the scaler of a model's inputs, and that of its regression targets, where it has one. DataError where the
    file lacks an array that its card names."""
    missing = sorted({*card.scaler_tensors, *card.target_tensors} - set(arrays))
    if missing:
        raise DataError(f"model '{card.name}': its file has no array {missing[0]!r}; get the model again")
    of_features = Standardizer(*(arrays[name] for name in card.scaler_tensors))
    return of_features, Standardizer(*(arrays[name] for name in card.target_tensors)) if card.target_tensors else None


def is_personal(card: ModelCard) -> bool:
    """Whether a model is one silo's own mixture."""
    return card.architecture.get("type") == PERSONAL


def predict(features: Any, arrays: Arrays, card: ModelCard, formulas: Sequence[str] = ()) -> np.ndarray:
    """Return what a model says of raw features [rows, num_features]: [rows, W], numbers in the targets' units and
    chances of classes, in the order of `targets_of`. formulas: of each row, for a silo's personal model."""
    if is_personal(card):
        of_trees = partial(predicted_values, targets=targets_of(card), scaler=None)
        return personal_values(features, formulas, PersonalArrays(arrays, card), predict, of_trees)
    outputs, of_targets = raw_outputs(features, arrays, card), scalers_of(arrays, card)[1]
    return predicted_values(outputs, targets_of(card), of_targets)


def raw_outputs(features: Any, arrays: Arrays, card: ModelCard) -> np.ndarray:
    """Return the outputs of a model's network or forest for raw features [rows, num_features], or GraphRows of them,
    float32 [rows, O]."""
    if is_forest(card):
        return _forest_outputs(features, arrays, card)
    of_features, _ = scalers_of(arrays, card)
    if is_on_graphs(card):
        return _graph_outputs(features, of_features, arrays, card)
    targets, hidden = targets_of(card), card.architecture["hidden"]
    assert isinstance(hidden, list)
    num_outputs = sum(target.num_outputs for target in targets)
    module = mlp(len(of_features.mean), [int(str(width)) for width in hidden], num_outputs)
    flat, _ = bind(module)
    np.copyto(flat.numpy(), Layout.of(module).flatten(arrays))
    with torch.no_grad():
        return module(torch.from_numpy(of_features(features))).numpy()


def is_forest(card: ModelCard) -> bool:
    """Whether a model is boosted trees, which have no scaler."""
    return card.architecture.get("type") == FOREST


def is_on_graphs(card: ModelCard) -> bool:
    """Whether a model takes the atoms of a crystal and their neighbours. DataError where this version has others."""
    form: Any = card.architecture[FEDERATED] if is_personal(card) else card.architecture
    if form.get("type") != CRYSTAL_GRAPH:
        return False
    if form.get("graphs") != GRAPH_VERSION:
        version = card.software.get("ray-fed", "of that time")
        raise DataError(f"model '{card.name}': its graphs are '{form.get('graphs')}'; install ray-fed {version}")
    return True


def _graph_outputs(rows: GraphRows, of_features: Standardizer, arrays: Arrays, card: ModelCard) -> np.ndarray:
    num_outputs = sum(target.num_outputs for target in targets_of(card))
    try:
        network = graph_network(arrays, card.architecture, len(of_features.mean), num_outputs)
    except (KeyError, ValueError, TypeError, ConfigError) as error:
        raise DataError(f"model '{card.name}': file and card are of different networks; get the model again") from error
    inputs = rows.with_table(np.asarray(of_features(rows.table.numpy()), np.float32))
    with torch.no_grad():
        return torch.cat([network(part) for part in portions(inputs)]).numpy()


def _forest_outputs(features: np.ndarray, arrays: Arrays, card: ModelCard) -> np.ndarray:
    """Return a forest's outputs, float32 [rows, outputs]. DataError where file and card do not fit."""
    form: Any = card.architecture
    try:
        settings = TreeSettings(trees=form["trees"], depth=form["depth"], losses=tuple(form["losses"]))
        forest = Forest.of_arrays(arrays, settings)
    except (KeyError, ValueError, TypeError, ConfigError) as error:
        raise DataError(f"model '{card.name}': file and card are of different forests; get the model again") from error
    return outputs_of(ForestPredictor(settings), forest.vector, as_float32(features))
