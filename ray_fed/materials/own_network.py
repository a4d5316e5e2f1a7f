"""A user's own network for a property: a torch module of a file of theirs, MODULE:CLASS.

    class Net(nn.Module):
        def __init__(self, num_features: int, num_outputs: int, width: int = 64): ...
        def forward(self, features): ...     # float32 [rows, num_features] -> [rows, num_outputs]

    class OnGraphs(nn.Module):
        graphs = True                        # it wants the atoms, too
        def forward(self, rows): ...         # GraphRows of n crystals -> [n, num_outputs]; features: rows.table

Further arguments of __init__ have defaults and are options (--model-options width=32). Numbers are learned
standardised, with the loss of the task; `loss`, a static method (outputs, targets) -> mean loss of the class, takes its
place where one number is learned. Running statistics of BatchNorm are averaged as parameters are.
"""

import hashlib
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ray_fed.config import coerce, own_class, require, unknown_name
from ray_fed.errors import ConfigError
from ray_fed.federation.task import LocalRows, SiloSpec
from ray_fed.learning.models import seeded
from ray_fed.learning.steps import Loss
from ray_fed.materials.graphs.graph_task import GraphTask
from ray_fed.materials.property_task import JointPropertyTask, PropertyTask

GIVEN = ("num_features", "num_outputs")
"""Arguments that the task gives."""


@dataclass(frozen=True)
class OwnNetworkTask(PropertyTask):
    """A property task with a user's network on its features."""

    network: type[nn.Module] = nn.Module
    network_name: str = ""
    """MODULE:CLASS"""
    network_options: tuple[tuple[str, Any], ...] = ()
    """(name, value) of its own arguments."""

    @property
    def loss(self) -> Loss:  # type: ignore[override]
        """That of the class, if it has one, where one number is learned."""
        own: Loss | None = getattr(self.network, "loss", None)
        if own is not None and self.is_one_number:
            return own
        return super().loss

    def agreement(self) -> dict[str, str]:
        return {**super().agreement(), **self._own_agreement()}

    def load(self, spec: SiloSpec) -> LocalRows:
        rows = super().load(spec)
        return replace(rows, agreement={**rows.agreement, **self._own_agreement()})

    def model(self, seed: int) -> nn.Module:
        num_outputs = sum(target.num_outputs for target in self.targets)
        options = dict(self.network_options)
        return seeded(lambda: self.network(self.num_features, num_outputs, **options), seed)

    @property
    def source(self) -> str:
        """A hash of the code, for the card."""
        return source_digest(self.network)

    def _own_agreement(self) -> dict[str, str]:
        return {"network": f"{self.network_name} {dict(self.network_options)}"}


@dataclass(frozen=True)
class OwnJointTask(OwnNetworkTask, JointPropertyTask):
    """The same with several targets, or classes."""


@dataclass(frozen=True)
class OwnGraphTask(OwnNetworkTask, GraphTask):
    """A property task with a user's network on its graphs."""


@dataclass(frozen=True)
class OwnGraphJointTask(OwnGraphTask, JointPropertyTask):
    """The same with several targets, or classes."""


def with_own_network(task: PropertyTask, name: str, options: Sequence[str]) -> OwnNetworkTask:
    """Return the task with the network MODULE:CLASS. ConfigError where there is none, it takes other arguments, or what
    it returns has another shape."""
    network = own_network(name)
    has_graphs, is_joint = wants_graphs(network), isinstance(task, JointPropertyTask)
    kinds = {(False, False): OwnNetworkTask, (False, True): OwnJointTask, (True, False): OwnGraphTask}
    kind = kinds.get((has_graphs, is_joint), OwnGraphJointTask)
    found = kind(
        task.features, task.feature_options, task.hidden, task.targets, task.standardise_target, network=network,
        network_name=name, network_options=own_options(network, name, options),
    )  # fmt: skip
    _require_outputs(found)
    return found


def own_network(name: str) -> type[nn.Module]:
    """Import a user's own network; the current folder counts as a place of modules."""
    found = own_class("model", name)
    is_network = isinstance(found, type) and issubclass(found, nn.Module)
    require(is_network, f"model={name!r} must be a class of torch.nn.Module")
    missing = [given for given in GIVEN if given not in _arguments(found)]
    require(not missing, f"model={name!r}: its __init__ must take {' and '.join(GIVEN)}; it lacks {', '.join(missing)}")
    return found


def wants_graphs(network: type[nn.Module]) -> bool:
    """Whether a network takes GraphRows."""
    return getattr(network, "graphs", False) is True


def own_options(network: type[nn.Module], name: str, options: Sequence[str]) -> tuple[tuple[str, Any], ...]:
    """Return options NAME=VALUE as the arguments of a network's __init__, in the types of their annotations or
    defaults."""
    known = {key: one for key, one in _arguments(network).items() if key not in (*GIVEN, "self")}
    needed = [key for key, one in known.items() if one.default is one.empty]
    require(not needed, f"model={name!r}: {', '.join(needed)} must have a default; options are --model-options")
    pairs = {key: value for key, _, value in (text.partition("=") for text in options)}
    for key in pairs:
        if key not in known:
            raise unknown_name(f"option of {name}", key, known)
    kinds = {
        key: one.annotation if one.annotation is not one.empty else type(one.default) for key, one in known.items()
    }
    return tuple((key, coerce(value, kinds[key], f"model_options: {key}")) for key, value in pairs.items())


def source_digest(network: type[nn.Module]) -> str:
    """Return a hash of the file that a network stands in, 16 digits: which code a model was trained with."""
    path = getattr(sys.modules.get(network.__module__), "__file__", None)
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16] if path else ""


def _arguments(network: type[nn.Module]) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(network.__init__).parameters


def _require_outputs(task: OwnNetworkTask) -> None:
    """ConfigError where the network cannot be made, has nothing to learn, or, on features, gives another shape."""
    num_outputs = sum(target.num_outputs for target in task.targets)
    network = _tried(task.network_name, "cannot be made", lambda: task.model(0))
    require(any(True for _ in network.parameters()), f"model={task.network_name!r} has no parameters to learn")
    if wants_graphs(task.network):
        return
    rows = torch.zeros(2, task.num_features)
    with torch.no_grad():
        found = _tried(task.network_name, "fails on two rows", lambda: network.eval()(rows))
    fits = isinstance(found, torch.Tensor) and tuple(found.shape) == (2, num_outputs)
    told = tuple(found.shape) if isinstance(found, torch.Tensor) else type(found).__name__
    require(fits, f"model={task.network_name!r} returns {told} for two rows; it must return [rows, {num_outputs}]")


def _tried(name: str, what: str, do: Callable[[], Any]) -> Any:
    try:
        return do()
    except Exception as error:  # whatever a user's code raises is theirs to read
        raise ConfigError(f"model={name!r} {what}: {type(error).__name__}: {error}") from error
