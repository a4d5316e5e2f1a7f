"""A trained property network as a file has it: arrays with the scalers of inputs and outputs, targets in its card."""

from collections.abc import Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn

from ray_fed.config import require
from ray_fed.errors import ConfigError, DataError
from ray_fed.learning.layout import Layout, bind, floating_buffers
from ray_fed.learning.models import mlp
from ray_fed.learning.standardisation import Standardizer
from ray_fed.learning.trainer import portions
from ray_fed.materials.card_entries import CHGNET, FOREST, OWN, PERSONAL, Arrays
from ray_fed.materials.crystal import CrystalSites
from ray_fed.materials.graphs.chgnet_network import ChgnetSettings, chgnet_network
from ray_fed.materials.graphs.chgnet_task import chgnet_version, with_states
from ray_fed.materials.graphs.crystal_graph_network import CrystalNetwork, GraphSettings
from ray_fed.materials.graphs.graph_rows import GraphRows
from ray_fed.materials.graphs.graph_task import with_graphs
from ray_fed.materials.graphs.neighbours import GRAPH_VERSION
from ray_fed.materials.own_network import own_network
from ray_fed.materials.personal import FEDERATED
from ray_fed.materials.personal_file import PersonalArrays, personal_values
from ray_fed.materials.targets import Target, predicted_values
from ray_fed.reporting.model_files import ModelCard
from ray_fed.trees.bins import as_float32
from ray_fed.trees.forest import Forest, ForestPredictor
from ray_fed.trees.settings import TreeSettings
from ray_fed.trees.trainer import outputs_of

Form = TypeVar("Form")


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


def predict(
    features: Any, arrays: Arrays, card: ModelCard, formulas: Sequence[str] = (),
    network: type[nn.Module] | None = None,
) -> np.ndarray:  # fmt: skip
    """Return what a model says of raw features [rows, num_features]: [rows, W], numbers in the targets' units and
    chances of classes, in the order of `targets_of`. formulas: of each row, for a silo's personal model. network: the
    user's own, of a model that is such a one."""
    if is_personal(card):
        of_trees = partial(predicted_values, targets=targets_of(card), scaler=None)
        return personal_values(
            features, formulas, PersonalArrays(arrays, card), partial(predict, network=network), of_trees
        )
    outputs, of_targets = raw_outputs(features, arrays, card, network), scalers_of(arrays, card)[1]
    return predicted_values(outputs, targets_of(card), of_targets)


def raw_outputs(features: Any, arrays: Arrays, card: ModelCard, network: type[nn.Module] | None = None) -> np.ndarray:
    """Return the outputs of a model's network or forest for raw features [rows, num_features], or GraphRows of them,
    float32 [rows, O]. network: the user's own, of a model that is such a one."""
    if is_forest(card):
        return _forest_outputs(features, arrays, card)
    of_features, _ = scalers_of(arrays, card)
    if is_own(card) or is_on_graphs(card):
        return _outputs(_network(arrays, card, len(of_features.mean), network), features, of_features)
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
    form = _form_of(card)
    graphs = form.get("graphs")  # the library's own networks on graphs say nothing there
    if graphs is None:
        return False
    here = chgnet_version() if form.get("type") == CHGNET else GRAPH_VERSION
    if graphs != here:
        remedy = f"install ray-fed {card.software.get('ray-fed', 'of that time')} and what it came with"
        raise DataError(f"model '{card.name}': its graphs are '{graphs}', here they are '{here}'; {remedy}")
    return True


def _form_of(card: ModelCard) -> Any:
    """Return the form of a model's network; of a personal model, of the federated one in it."""
    return card.architecture[FEDERATED] if is_personal(card) else card.architecture


def is_chgnet(card: ModelCard) -> bool:
    """Whether a model is a pretrained potential."""
    return _form_of(card).get("type") == CHGNET


def graph_rows(
    table: np.ndarray,
    reasons: Sequence[str],
    sites: Sequence[CrystalSites | None],
    card: ModelCard,
    folder: Path | None,
) -> tuple[GraphRows, list[str]]:
    """Return crystals with a table [n, d] as a model on graphs takes them, and a reason per row, the given one
    first."""
    if is_chgnet(card):
        return with_states(table, reasons, sites, _form(ChgnetSettings, card), folder)
    return with_graphs(table, reasons, sites, folder)


def _form(kind: type[Form], card: ModelCard) -> Form:
    """Return the settings of a network as its card has them."""
    told = _form_of(card)
    return kind(**{one.name: told[one.name] for one in fields(kind)})  # type: ignore[arg-type]


def is_own(card: ModelCard) -> bool:
    """Whether a model's network is a user's code."""
    return _form_of(card).get("type") == OWN


def require_named(card: ModelCard, name: str | None) -> type[nn.Module] | None:
    """Return the network of a model that is a user's code, where the user names it, too: a model's card may come from
    somebody else. ConfigError where he does not, or names another one."""
    if not is_own(card):
        return None
    own = _form_of(card)["network"]
    said = f"model '{card.name}': its network {own} is code that is not ray-fed's"
    require(name == own, f"{said}; if it is yours, say so: --network {own}")
    return own_network(str(own))


def _network(arrays: Arrays, card: ModelCard, num_columns: int, own: type[nn.Module] | None) -> nn.Module:
    form = _form_of(card)
    num_outputs = sum(target.num_outputs for target in targets_of(card))
    require(own is not None or not is_own(card), f"model '{card.name}': its network is code; give it with --network")
    try:
        if own is not None:
            return loaded(own(num_columns, num_outputs, **form["options"]), arrays)
        if is_chgnet(card):
            return loaded(chgnet_network(_form(ChgnetSettings, card), num_outputs), arrays)
        return loaded(CrystalNetwork(_form(GraphSettings, card), num_columns, num_outputs), arrays)
    except (KeyError, ValueError, TypeError, RuntimeError, ConfigError) as error:
        raise DataError(f"model '{card.name}': file and card are of different networks; get the model again") from error


def loaded(network: nn.Module, arrays: Arrays) -> nn.Module:
    """Return a network with the values of a model's file, to predict. KeyError where one is missing, RuntimeError where
    its shape is another."""
    named = {**dict(network.named_parameters()), **floating_buffers(network)}
    network.load_state_dict({name: torch.from_numpy(np.array(arrays[name])) for name in named}, strict=False)
    return network.eval()


def _outputs(network: nn.Module, features: Any, scaler: Standardizer) -> np.ndarray:
    table = features.table.numpy() if isinstance(features, GraphRows) else features
    scaled = torch.from_numpy(np.asarray(scaler(table), np.float32))
    inputs = features.with_table(scaled) if isinstance(features, GraphRows) else scaled
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
