"""Properties learned by networks on crystal graphs: a property task whose features are graphs beside descriptors."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd
from torch import nn
from torch.nn import functional

from ray_fed.errors import DataError
from ray_fed.federation.task import LocalRows, SiloSpec
from ray_fed.learning.models import seeded
from ray_fed.learning.standardisation import Standardizer
from ray_fed.learning.steps import Loss
from ray_fed.materials.crystal import CrystalSites
from ray_fed.materials.databases.crystal_batches import packed_sites
from ray_fed.materials.databases.database import SITES
from ray_fed.materials.databases.feature_cache import Arrays, cached, content_key, pack_texts, unpack_texts
from ray_fed.materials.databases.source import Source
from ray_fed.materials.graphs.crystal_graph_network import CrystalNetwork, GraphSettings
from ray_fed.materials.graphs.graph_rows import NO_NEIGHBOURS, GraphRows
from ray_fed.materials.graphs.neighbours import GRAPH_VERSION, Neighbours, neighbours
from ray_fed.materials.property_task import JointPropertyTask, PropertyTask

BATCH_ROWS = 1000
"""Crystals whose graphs are kept in one entry of the cache."""
NO_SITES = (
    "the places of its atoms are not known; a crystal graph needs a structure (CIF, POSCAR, atoms with coordinates)"
)
_PARTS = ("degrees", "sources", "vectors", "weights")


@dataclass(frozen=True)
class GraphTask(PropertyTask):
    """A property task whose features are graphs beside descriptors (GraphRows). Derived classes bring the network."""

    @property
    def graph_version(self) -> str:
        """What a graph depends on beside the crystal."""
        return GRAPH_VERSION

    def agreement(self) -> dict[str, str]:
        """What a property task agrees on, and how graphs are made."""
        return {**super().agreement(), "graphs": self.graph_version}

    def load(self, spec: SiloSpec) -> LocalRows:
        rows = super().load(spec)
        return replace(rows, agreement={**rows.agreement, "graphs": self.graph_version})

    def as_read(self, source: Source) -> Source:
        """With the atoms of standardised primitive cells: the smallest graph that says the same."""
        return with_sites(super().as_read(source))

    def features_of(self, frame: pd.DataFrame, folder: Path | None) -> tuple[GraphRows, list[str]]:
        table, reasons = self._table_of(frame, folder)
        return with_graphs(table, reasons, frame[SITES].tolist(), folder)

    def described(self, features: GraphRows) -> np.ndarray:
        return features.table.cpu().numpy()

    def changed(self, features: GraphRows, table: np.ndarray) -> GraphRows:
        return features.with_table(table)

    def inputs(self, features: GraphRows, standardizer: Standardizer | None, device: str = "cpu") -> GraphRows:
        table = super().inputs(self.described(features), standardizer)
        return features.with_table(table).to(device)


@dataclass(frozen=True)
class CrystalGraphTask(GraphTask):
    """Predict one property per crystal from its graph, and from its descriptors if they are wanted."""

    graph: GraphSettings = field(default_factory=GraphSettings)
    """Form of the network."""

    loss = staticmethod(functional.l1_loss)

    def agreement(self) -> dict[str, str]:
        return {**super().agreement(), "network": str(self.graph)}

    def load(self, spec: SiloSpec) -> LocalRows:
        rows = super().load(spec)
        return replace(rows, agreement={**rows.agreement, "network": str(self.graph)})

    def model(self, seed: int) -> nn.Module:
        num_outputs = sum(target.num_outputs for target in self.targets)
        return seeded(lambda: CrystalNetwork(self.graph, self.num_features, num_outputs), seed)


@dataclass(frozen=True)
class CrystalGraphJointTask(CrystalGraphTask, JointPropertyTask):
    """Predict several properties, or classes, with one crystal-graph network."""

    @property
    def loss(self) -> Loss:  # type: ignore[override]
        return JointPropertyTask.loss.fget(self)  # type: ignore[attr-defined]


def on_graphs(task: PropertyTask, graph: GraphSettings) -> CrystalGraphTask:
    """Return the task with a crystal-graph network instead of its own."""
    kind = CrystalGraphJointTask if isinstance(task, JointPropertyTask) else CrystalGraphTask
    return kind(
        task.features, task.feature_options, task.hidden, task.targets, task.standardise_target, graph=graph
    )  # fmt: skip


def with_sites(source: Source) -> Source:
    """Return a source that is read with the atoms of standardised primitive cells."""
    return replace(source, cell="standard", sites=True)


def with_graphs(
    table: np.ndarray, reasons: Sequence[str], sites: Sequence[CrystalSites | None], folder: Path | None
) -> tuple[GraphRows, list[str]]:
    """Return crystals with a table [n, d] and their graphs, and a reason per row: the given one first."""
    numbers: list[np.ndarray] = []
    edges: list[Neighbours] = []
    found: list[str] = []
    for start in range(0, len(sites), BATCH_ROWS):
        batch = [
            None if reason else one
            for one, reason in zip(sites[start : start + BATCH_ROWS], reasons[start : start + BATCH_ROWS], strict=True)
        ]
        arrays = cached(_key(batch), lambda batch=batch: _packed(batch), folder)
        told = unpack_texts(arrays["reasons"])
        found += told
        numbers += [
            np.empty(0, np.int64) if one is None or why else one.numbers for one, why in zip(batch, told, strict=True)
        ]
        edges += _unpacked(arrays, [len(one) for one in numbers[start:]])
    return GraphRows.of(table, numbers, edges), [given or own for given, own in zip(reasons, found, strict=True)]


def _key(sites: Sequence[CrystalSites | None]) -> str:
    return content_key(GRAPH_VERSION, *packed_sites(sites).values())


def _packed(batch: Sequence[CrystalSites | None]) -> Arrays:
    """Return the neighbours of many crystals as arrays, with a reason for each that has none."""
    edges, reasons = [], []
    for sites in batch:
        try:
            if sites is None:
                raise DataError(NO_SITES)
            edges.append(neighbours(sites))
            reasons.append("")
        except DataError as error:
            edges.append(NO_NEIGHBOURS)
            reasons.append(str(error))
    arrays = {name: np.concatenate([getattr(one, name) for one in edges]) for name in _PARTS}
    return {**arrays, "reasons": pack_texts(reasons)}


def _unpacked(arrays: Arrays, sizes: Sequence[int]) -> list[Neighbours]:
    """Return the neighbours of crystals with so many atoms each."""
    found, atom, edge = [], 0, 0
    for size in sizes:
        degrees = arrays["degrees"][atom : atom + size]
        edges = slice(edge, edge + int(degrees.sum()))
        found.append(Neighbours(degrees, *(arrays[name][edges] for name in _PARTS[1:])))
        atom, edge = atom + size, edges.stop
    return found
