"""A pretrained potential fine-tuned over silos: graphs of its own, or states of atoms that are made once."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.nn import functional

from ray_fed.errors import DataError
from ray_fed.federation.messages import SessionSpec
from ray_fed.federation.task import LocalRows, Samples, SiloSpec
from ray_fed.learning.early_stopping import StoppingTrainer
from ray_fed.learning.models import seeded
from ray_fed.learning.steps import Loss
from ray_fed.learning.trainer import FitResult, LocalTrainer, Trainer
from ray_fed.materials.crystal import CrystalSites
from ray_fed.materials.databases.crystal_batches import packed_sites
from ray_fed.materials.databases.database import SITES
from ray_fed.materials.databases.feature_cache import Arrays, cached, content_key, pack_texts, unpack_texts
from ray_fed.materials.graphs.chgnet_network import (
    NUM_REFERENCES,
    STATE,
    WEIGHTS,
    ChgnetSettings,
    chgnet_network,
    crystal_graph_of,
    states_of,
    weights_digest,
)
from ray_fed.materials.graphs.graph_rows import NO_NEIGHBOURS, GraphRows
from ray_fed.materials.graphs.graph_task import NO_SITES, GraphTask
from ray_fed.materials.property_task import JointPropertyTask, PropertyTask

BATCH_ROWS = 200
"""Crystals whose states are kept in one entry of the cache: 15 seconds of work."""
RIDGE = 0.1
"""Of the fit of references: crystals of one element whose error would be 0. Rare elements stay near 0."""
PRETRAINED_ID = re.compile(r"(?:mp|mvc)-\d+\b")
PRETRAINED_NOTE = "id of the Materials Project, on whose relaxations chgnet was trained: no fair test of it"


@dataclass(frozen=True)
class ChgnetTask(GraphTask):
    """Predict one property per crystal with a pretrained potential."""

    chgnet: ChgnetSettings = field(default_factory=ChgnetSettings)

    loss = staticmethod(functional.l1_loss)

    @property
    def graph_version(self) -> str:
        return chgnet_version()

    def agreement(self) -> dict[str, str]:
        return {**super().agreement(), "network": str(self.chgnet)}

    def load(self, spec: SiloSpec) -> LocalRows:
        """Rows with an id of the database that the potential was trained on are noted, and used."""
        rows = super().load(spec)
        known = sum(bool(PRETRAINED_ID.match(str(name))) for name in (*rows.names, *rows.held_out_names))
        notes = {PRETRAINED_NOTE: known} if known else {}
        agreed = {**rows.agreement, "network": str(self.chgnet)}
        return replace(rows, agreement=agreed, notes={**rows.notes, **notes})

    def features_of(self, frame: pd.DataFrame, folder: Path | None) -> tuple[GraphRows, list[str]]:
        table, reasons = self._table_of(frame, folder)
        return with_states(table, reasons, frame[SITES].tolist(), self.chgnet, folder)

    def model(self, seed: int) -> nn.Module:
        num_outputs = sum(target.num_outputs for target in self.targets)
        return seeded(lambda: chgnet_network(self.chgnet, num_outputs), seed)

    def trainer(self, samples: Samples, session: SessionSpec, silo: SiloSpec) -> Trainer:
        module, plan = self.model(session.model_seed), session.plan
        given = module, self.loss, samples.features, samples.targets, plan, silo.name
        return StoppingFromReferences(*given, samples.rows.groups) if plan.validation_share else FromReferences(*given)


@dataclass(frozen=True)
class ChgnetJointTask(ChgnetTask, JointPropertyTask):
    """The same with several targets, or classes."""

    @property
    def loss(self) -> Loss:  # type: ignore[override]
        return JointPropertyTask.loss.fget(self)  # type: ignore[attr-defined]


def with_chgnet(task: PropertyTask, settings: ChgnetSettings) -> ChgnetTask:
    """Return the task with the potential instead of its own network. ConfigError where it is not installed."""
    kind = ChgnetJointTask if isinstance(task, JointPropertyTask) else ChgnetTask
    weights_digest()
    return kind(
        task.features, task.feature_options, task.hidden, task.targets, task.standardise_target, chgnet=settings
    )  # fmt: skip


def chgnet_version() -> str:
    """Return what states and graphs depend on beside the crystal."""
    return f"chgnet {WEIGHTS}, weights {weights_digest()}"


class FromReferences(LocalTrainer):
    """Begins its first round from energies of elements that are fitted to its own rows.

    References that each silo keeps (`plan.keep_local`) leave it as zeros.
    """

    def fit_round(self, vector: np.ndarray, server_round: int) -> tuple[np.ndarray, FitResult]:
        if server_round == 1 and hasattr(self.module, "reference") and self.targets.shape[1] == 1:
            vector = self._with_references(vector)
        return super().fit_round(vector, server_round)

    def vector(self) -> np.ndarray:
        found, start = super().vector(), 0
        own = self._own.cpu().numpy()
        for block in self._blocks():  # what it has of them beside parameters, moments and control variates, stays, too
            if block.numel() == len(self.flat):
                found[start + own] = 0.0
            start += block.numel()
        return found

    @torch.no_grad()
    def _with_references(self, vector: np.ndarray) -> np.ndarray:
        """Return the vector with gain, bias and references that fit the rows best."""
        rows: Any = self.features
        starts = self._starts()
        outputs = self.predict(rows, vector)[:, 0].double().cpu().numpy()  # references are zeros yet
        energies = (outputs - vector[starts["bias"]]) / vector[starts["gain"]]
        line = fitted_line(energies, shares(rows), self.targets[:, 0].double().cpu().numpy())
        changed = vector.copy()
        changed[starts["gain"]], changed[starts["bias"]] = line[0], line[1]
        changed[starts["reference"] : starts["reference"] + NUM_REFERENCES] = line[2:]
        if self.plan.keep_local:
            self.own_values.copy_(torch.from_numpy(line[2:].astype(np.float32)))
        return changed

    def _starts(self) -> dict[str, int]:
        """Return name of a parameter -> where it begins in the vector."""
        sizes = [parameter.numel() for parameter in self.module.parameters()]
        names = [name for name, _ in self.module.named_parameters()]
        return dict(zip(names, [0, *np.cumsum(sizes[:-1]).tolist()], strict=True))


class StoppingFromReferences(FromReferences, StoppingTrainer):
    """See both."""


def shares(rows: GraphRows) -> np.ndarray:
    """Return the share of each element among the atoms of crystals, float64 [n, NUM_REFERENCES]."""
    found = np.zeros((len(rows), NUM_REFERENCES))
    np.add.at(found, (rows.crystal_of_atom.cpu().numpy(), rows.numbers.cpu().numpy()), 1.0)
    return found / np.maximum(rows.sizes.cpu().numpy(), 1)[:, None]


def fitted_line(energies: np.ndarray, composition: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Return (gain, bias, references), float64 [2 + NUM_REFERENCES], of the best line: ridge regression.

    energies, targets [n]; composition [n, NUM_REFERENCES]
    """
    columns = np.column_stack([energies, np.ones(len(energies)), composition])
    ridge = np.full(columns.shape[1], RIDGE)
    # Towards the potential as it is: gain 1 of as many rows as an element has, and no bias.
    wanted = columns.T @ targets + ridge * np.eye(1, columns.shape[1])[0]
    return np.linalg.solve(columns.T @ columns + np.diag(ridge), wanted)


def with_states(
    table: np.ndarray, reasons: Sequence[str], sites: Sequence[CrystalSites | None], settings: ChgnetSettings,
    folder: Path | None,
) -> tuple[GraphRows, list[str]]:  # fmt: skip
    """Return crystals as the potential takes them, and a reason per row: the given one first. Graphs for the training
    of all layers are made anew each time (10 ms a crystal); states are kept."""
    there = [None if reason else one for one, reason in zip(sites, reasons, strict=True)]
    states, found, graphs = [], [], []
    for start in range(0, len(there), BATCH_ROWS):
        batch = there[start : start + BATCH_ROWS]
        if settings.train == "all":
            made, told = _graphs(batch)
            graphs += made
        else:
            key = content_key(chgnet_version(), *packed_sites(batch).values())
            arrays = cached(key, lambda batch=batch: _packed(batch), folder)
            told = unpack_texts(arrays["reasons"])
            states.append(arrays["states"])
        found += told
    numbers = [
        np.empty(0, np.int64) if one is None or why else one.numbers for one, why in zip(there, found, strict=True)
    ]
    rows = GraphRows.of(table, numbers, [replace(NO_NEIGHBOURS, degrees=np.zeros(len(one), int)) for one in numbers])
    told = [given or own for given, own in zip(reasons, found, strict=True)]
    if settings.train == "all":
        return replace(rows, crystals=tuple(graphs)), told
    return replace(rows, states=torch.from_numpy(np.concatenate([np.empty((0, STATE), np.float32), *states]))), told


def _graphs(batch: Sequence[CrystalSites | None]) -> tuple[list, list[str]]:
    graphs, reasons = [], []
    for sites in batch:
        try:
            if sites is None:
                raise DataError(NO_SITES)
            graphs.append(crystal_graph_of(sites))
            reasons.append("")
        except DataError as error:
            graphs.append(None)
            reasons.append(str(error))
    return graphs, reasons


def _packed(batch: Sequence[CrystalSites | None]) -> Arrays:
    graphs, reasons = _graphs(batch)
    states = [states_of(graph) for graph in graphs if graph is not None]
    return {"states": np.concatenate([np.empty((0, STATE), np.float32), *states]), "reasons": pack_texts(reasons)}
