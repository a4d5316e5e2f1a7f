"""Crystals as rows of graphs: what silos, trainers and models take where others have a table.

    rows.table        [n, d]         descriptors of each crystal, as a property task has them
    rows.numbers      int64 [A]      atomic numbers of all atoms, crystal after crystal
    rows.sizes        int64 [n]      atoms of each crystal
    rows.degrees      int64 [A]      edges that end at each atom
    rows.sources      int64 [E]      the atom that each edge comes from, counted within its crystal
    rows.vectors      float32 [E, 3] Å, from the atom that an edge ends at to the one it comes from
    rows.weights      float32 [E]    (0, 1]: how much of the edge counts

    rows.states     float32 [A, k]   of a pretrained trunk, what it says of each atom; else None
    rows.crystals   n graphs as a package of another's has them, where its whole network is trained

It is indexed as a tensor is along its first axis: rows[3:7], rows[mask], rows.index_select(0, index), rows.split(100).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch

from ray_fed.materials.graphs.neighbours import Neighbours

VALUES_PER_EDGE = 256
"""That a network holds at a time for each edge, about: says how many crystals go through it at once."""

_TENSORS = ("table", "numbers", "sizes", "degrees", "sources", "vectors", "weights", "states")


@dataclass(frozen=True)
class GraphRows:
    """Crystals, see above."""

    table: torch.Tensor
    numbers: torch.Tensor
    sizes: torch.Tensor
    degrees: torch.Tensor
    sources: torch.Tensor
    vectors: torch.Tensor
    weights: torch.Tensor
    states: torch.Tensor | None = None
    crystals: tuple[Any, ...] = ()

    # ---- as a tensor

    def __len__(self) -> int:
        return len(self.sizes)

    @property
    def device(self) -> torch.device:
        return self.sizes.device

    def to(self, device: torch.device | str) -> "GraphRows":
        tensors: dict[str, Any] = {name: getattr(self, name) for name in _TENSORS}
        moved = {name: value.to(device) for name, value in tensors.items() if value is not None}
        return replace(self, **moved, crystals=tuple(one.to(device) for one in self.crystals))

    def numel(self) -> int:
        """About how many values a network holds for these rows."""
        num_edges = len(self.sources) + sum(len(one.directed2undirected) for one in self.crystals)
        return VALUES_PER_EDGE * (num_edges + len(self.numbers)) + self.table.numel()

    def split(self, size: int) -> tuple["GraphRows", ...]:
        return tuple(self[start : start + size] for start in range(0, len(self), size)) or (self,)

    def index_select(self, axis: int, index: torch.Tensor) -> "GraphRows":
        """Return the crystals of these numbers, in this order."""
        assert axis == 0
        sizes = self.sizes[index]
        atoms = _ranges(self._starts[index], sizes)
        degrees = self.degrees[atoms]
        edges = _ranges(self._edge_starts[index], self._num_edges[index])
        return GraphRows(
            self.table[index], self.numbers[atoms], sizes, degrees, self.sources[edges], self.vectors[edges],
            self.weights[edges], None if self.states is None else self.states[atoms],
            tuple(self.crystals[at] for at in index.tolist()) if self.crystals else (),
        )  # fmt: skip

    def __getitem__(self, rows: slice | np.ndarray | torch.Tensor) -> "GraphRows":
        everything = torch.arange(len(self), device=self.device)
        chosen = rows if isinstance(rows, slice) else torch.as_tensor(rows, device=self.device)
        return self.index_select(0, everything[chosen])

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the real numbers that make up the rows: what the gate must know when it sees it again."""
        states = {} if self.states is None else {"states": self.states.cpu().numpy()}
        return {"table": self.table.cpu().numpy(), "edges": self.vectors.cpu().numpy(), **states}

    # ---- as a graph

    @cached_property
    def _starts(self) -> torch.Tensor:
        """First atom of each crystal, int64 [n]."""
        return self.sizes.cumsum(0) - self.sizes

    @cached_property
    def _num_edges(self) -> torch.Tensor:
        """int64 [n]"""
        ends = torch.cat([self.degrees.new_zeros(1), self.degrees.cumsum(0)])
        return ends[self._starts + self.sizes] - ends[self._starts]

    @cached_property
    def _edge_starts(self) -> torch.Tensor:
        return self._num_edges.cumsum(0) - self._num_edges

    @cached_property
    def crystal_of_atom(self) -> torch.Tensor:
        """Number of each atom's crystal, int64 [A]."""
        return torch.repeat_interleave(self.sizes)

    @cached_property
    def ends(self) -> torch.Tensor:
        """The atom that each edge ends at, among all atoms, int64 [E]; it never falls."""
        return torch.repeat_interleave(self.degrees)

    @cached_property
    def begins(self) -> torch.Tensor:
        """The atom that each edge comes from, among all atoms, int64 [E]."""
        return self.sources + torch.repeat_interleave(self._starts, self._num_edges)

    @cached_property
    def distances(self) -> torch.Tensor:
        """Length of each edge in Å, float32 [E]."""
        return self.vectors.square().sum(1).sqrt()

    # ---- made

    def with_table(self, table: np.ndarray | torch.Tensor) -> "GraphRows":
        """Return the same graphs beside another table [n, d]."""
        return replace(self, table=torch.as_tensor(table))

    @classmethod
    def of(cls, table: np.ndarray, numbers: Sequence[np.ndarray], edges: Sequence[Neighbours]) -> "GraphRows":
        """Return the rows of crystals; one without atoms where a row cannot be used."""
        whole = {
            "numbers": np.concatenate([[], *numbers]),
            "sizes": [len(one) for one in numbers],
            "degrees": np.concatenate([[], *(one.degrees for one in edges)]),
            "sources": np.concatenate([[], *(one.sources for one in edges)]),
        }
        vectors = np.concatenate([np.empty((0, 3), np.float32), *(one.vectors for one in edges)])
        weights = np.concatenate([np.empty(0, np.float32), *(one.weights for one in edges)])
        tensors = {name: torch.from_numpy(np.asarray(part, np.int64)) for name, part in whole.items()}
        return cls(
            torch.as_tensor(table), tensors["numbers"], tensors["sizes"], tensors["degrees"], tensors["sources"],
            torch.from_numpy(vectors), torch.from_numpy(weights),
        )  # fmt: skip


NO_NEIGHBOURS = Neighbours(
    np.empty(0, np.int64), np.empty(0, np.int64), np.empty((0, 3), np.float32), np.empty(0, np.float32)
)
"""Of a crystal without atoms."""


def _ranges(starts: torch.Tensor, sizes: torch.Tensor) -> torch.Tensor:
    """Return starts[0], starts[0] + 1, ... sizes[0] of them, then those of the next, int64 [sum of sizes]."""
    before = sizes.cumsum(0) - sizes
    return torch.repeat_interleave(starts - before, sizes) + torch.arange(int(sizes.sum()), device=sizes.device)


# ---- sums over graphs, whose order does not depend on threads: a round may be done twice


def picked(values: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Return values[index], [E, width]. On a GPU the gradient of index_select is added up in any order, that of plain
    indexing in a fixed one."""
    return values[index] if values.is_cuda else values.index_select(0, index)


def sum_of_atoms(edges: torch.Tensor, rows: GraphRows) -> torch.Tensor:
    """Return the sum over the edges that end at each atom, [A, width]; 0 of an atom without any."""
    return torch.segment_reduce(edges, "sum", lengths=rows.degrees, unsafe=True, initial=0.0)


def mean_of_crystals(atoms: torch.Tensor, rows: GraphRows) -> torch.Tensor:
    """Return the mean over the atoms of each crystal, [n, width]."""
    total = torch.segment_reduce(atoms, "sum", lengths=rows.sizes, unsafe=True, initial=0.0)
    return total / rows.sizes.clamp(min=1)[:, None]
