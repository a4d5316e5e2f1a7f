"""What files of models say: names of arrays, and the entries of a card for a task's targets and a forest's form."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Protocol

import numpy as np

from ray_fed.learning.standardisation import Standardizer
from ray_fed.materials.targets import Target
from ray_fed.reporting.writing import Plain
from ray_fed.trees.settings import TreeSettings

SCALER = ("scaler.mean", "scaler.scale")
TARGET_SCALER = ("target.mean", "target.scale")
SAME = "identity"
"""What a card calls the transform that does nothing."""
FOREST = "boosted_trees"
"""Type of a forest's architecture."""
CRYSTAL_GRAPH = "crystal_graph"
"""Type of a network on graphs."""
CHGNET = "chgnet"
"""Type of a pretrained potential that was fine-tuned."""
OWN = "own network"
"""Type of a network that is a user's code."""
PERSONAL = "personal"
"""Type of the architecture of a silo's personal model (personal_file.py)."""
Arrays = Mapping[str, np.ndarray]


class DescribedTask(Protocol):
    """What is read of a property task."""

    @property
    def targets(self) -> tuple[Target, ...]: ...
    @property
    def num_features(self) -> int: ...
    @property
    def standardise_target(self) -> bool: ...
    def scalers(self, standardizer: Standardizer) -> tuple[Standardizer, Standardizer | None]: ...


def scaler_arrays(task: DescribedTask, standardizer: Standardizer | None) -> dict[str, np.ndarray]:
    """Return the scalers of features [num_features] and, if there is one, of regression targets [R], by their names; of
    a forest, which has none, one that does nothing."""
    if standardizer is None:
        return dict(zip(SCALER, (np.zeros(task.num_features), np.ones(task.num_features)), strict=True))
    parts = zip((SCALER, TARGET_SCALER), task.scalers(standardizer), strict=True)
    arrays: dict[str, np.ndarray] = {}
    for (mean, scale), scaler in parts:
        arrays |= {} if scaler is None else {mean: scaler.mean, scale: scaler.scale}
    return arrays


def card_entries(task: DescribedTask) -> dict[str, Any]:
    """Return what a card says of a task's targets, as arguments of ModelCard."""
    targets = task.targets
    told: list[dict[str, Plain]] = [
        {"name": one.name, "unit": one.unit, "transform": one.transform, "classes": list(one.classes)}
        for one in targets
    ]
    is_plain = len(targets) == 1 and not targets[0].classes and not task.standardise_target
    transforms = ["classes" if one.classes else SAME if one.transform == "none" else one.transform for one in targets]
    return {
        "property": ", ".join(one.name for one in targets),
        "unit": ", ".join("1" if one.classes else one.unit for one in targets),
        "target_transform": ", ".join(transforms),
        "targets": () if is_plain and targets[0].transform == "none" else tuple(told),
        "target_tensors": TARGET_SCALER if task.standardise_target else (),
    }


def forest_entries(settings: TreeSettings) -> dict[str, Plain]:
    """Return what a card says of a forest's form."""
    return {"type": FOREST, "trees": settings.trees, "depth": settings.depth, "losses": list(settings.losses)}


def network_entries(task: Any) -> dict[str, Plain]:
    """Return what a card says of a network's form: of one on graphs, which has settings of them, of a user's own, or of
    an MLP."""
    graphs = {"graphs": task.graph_version} if hasattr(task, "graph_version") else {}
    for kind, settings in ((CRYSTAL_GRAPH, "graph"), (CHGNET, "chgnet")):
        if hasattr(task, settings):
            return {"type": kind, **asdict(getattr(task, settings)), **graphs}
    if hasattr(task, "network_name"):
        own = {"network": task.network_name, "options": dict(task.network_options), "source": task.source}
        return {"type": OWN, **own, **graphs}
    return {"type": "mlp", "hidden": list(task.hidden), "activation": "relu"}


def tree_entries(settings: TreeSettings) -> dict[str, Plain]:
    """Return what a card says of how a forest was grown."""
    return {name: value for name, value in asdict(settings).items() if name not in ("trees", "depth", "losses")}
