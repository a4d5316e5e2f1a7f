"""Samples of any form, indexed as a tensor is along its first axis: several arrays per sample, Datasets, lists, graphs.

    rows[3:7], rows.index_select(0, index), rows.split(100), len(rows), rows.to(device)

`rows.batch()` is what a network takes: a tensor; a tuple, which becomes positional arguments; a dictionary, which
becomes arguments by name; or an object of the user's own, such as a batch of graphs.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import default_collate

from ray_fed.learning.trainer import PORTION_VALUES

PORTION_ROWS = 256
"""Samples of an unknown size that go through a network at once outside of training."""
SHOWN_VALUES = 1 << 24
"""Real numbers of samples that the gate is shown, of each kind: it draws from them."""
Collate = Callable[[list[Any]], Any]
Targets = Any
"""What the loss compares outputs with: a tensor, or a tuple or dictionary of tensors; None where the network's own
loss knows."""


@dataclass(frozen=True)
class SampleRows:
    """Samples [n], all or some of those that were read."""

    items: Any
    """Either samples, a sequence with one entry each, or, with `is_columns`, a pair (inputs, targets) of tensors, or
    tuples and dictionaries of tensors, whose first axis counts samples."""
    index: np.ndarray
    """int64 [n]: which of them."""
    is_columns: bool = False
    collate: Collate = default_collate
    """Makes a batch of samples."""
    target: str = ""
    """Key or attribute of the target in a batch; empty: the last part of a tuple is the target."""
    device: torch.device | str = "cpu"

    def __len__(self) -> int:
        return len(self.index)

    def __repr__(self) -> str:  # no value of a sample: this may end in a log
        return f"SampleRows({len(self)} samples)"

    def numel(self) -> int:
        """Return a number of values that makes portions of PORTION_ROWS samples."""
        return len(self) * PORTION_VALUES // PORTION_ROWS

    def to(self, device: torch.device | str) -> "SampleRows":
        items = moved(self.items, device) if self.is_columns else self.items
        return replace(self, items=items, device=device)

    def split(self, size: int) -> tuple["SampleRows", ...]:
        return tuple(self[start : start + size] for start in range(0, len(self), size)) or (self,)

    def __getitem__(self, rows: slice | np.ndarray | torch.Tensor) -> "SampleRows":
        return replace(self, index=self.index[rows if isinstance(rows, slice) else np.asarray(rows)])

    def index_select(self, axis: int, index: torch.Tensor) -> "SampleRows":
        assert axis == 0
        return self[index.cpu().numpy()]

    def batch(self) -> Any:
        """Return all of these samples as one batch on the device."""
        if self.is_columns:
            chosen = torch.from_numpy(self.index).to(self.device)
            return mapped(self.items, lambda column: column.index_select(0, chosen))
        return moved(self.collate([self.items[at] for at in self.index.tolist()]), self.device)

    def inputs_and_targets(self, batch: Any) -> tuple[Any, Targets]:
        """Return what of a batch the network takes, and what its outputs are compared with."""
        if self.target:
            if isinstance(batch, Mapping):
                return {name: value for name, value in batch.items() if name != self.target}, batch[self.target]
            return batch, getattr(batch, self.target)
        if isinstance(batch, tuple | list) and len(batch) > 1:
            return (batch[0] if len(batch) == 2 else tuple(batch[:-1])), batch[-1]
        return batch, None

    def leaves(self) -> Iterator[tuple[str, np.ndarray]]:
        """Yield the numbers in the samples, by their place: whole columns, or those of each sample."""
        if self.is_columns:
            for name, column in leaves_of(self.items):
                yield name, column[self.index]
        else:
            for at in self.index.tolist():
                yield from leaves_of(self.items[at])

    def digest(self) -> str:
        """Return a hash of all numbers and texts in the samples; all of them are read."""
        digest = hashlib.sha256()
        for name, values in self.leaves():
            digest.update(f"{name} {values.dtype} {values.shape}".encode())
            digest.update(np.ascontiguousarray(values).tobytes())
        return digest.hexdigest()[:16]

    def arrays(self) -> dict[str, np.ndarray]:
        """Return real numbers that the samples are made of: what the gate must know when it sees them again."""
        found: dict[str, list[np.ndarray]] = {}
        sizes: dict[str, int] = {}
        for name, values in self.leaves():
            if np.issubdtype(values.dtype, np.floating) and sizes.get(name, 0) < SHOWN_VALUES:
                found.setdefault(name, []).append(values.reshape(-1))
                sizes[name] = sizes.get(name, 0) + values.size
        whole = {name: np.concatenate(parts) for name, parts in found.items()}
        widths = {name: _width(parts) if not self.is_columns else 1 for name, parts in found.items()}
        return {name: values.reshape(-1, widths[name]) for name, values in whole.items() if values.size}


def _width(parts: Sequence[np.ndarray]) -> int:
    """Return the values of a sample, 1 where samples have different numbers of them."""
    sizes = {part.size for part in parts}
    return sizes.pop() if len(sizes) == 1 else 1


# ---- made of what a user has


def column_rows(inputs: Any, targets: Any) -> SampleRows:
    """Return samples that are tuples or dictionaries of arrays. ValueError for arrays of different lengths."""
    items = (mapped(inputs, _input), mapped(targets, _target))
    lengths = {len(column) for _, column in leaves_of(items)}
    if len(lengths) != 1:
        raise ValueError(f"arrays of {', '.join(map(str, sorted(lengths)))} samples; all must have the same number")
    return SampleRows(items, np.arange(lengths.pop()), is_columns=True)


def item_rows(samples: Any, collate: Collate | None, target: str) -> SampleRows:
    """Return the samples of a Dataset, a DataLoader, a list or any iterable; what has no index is read into memory."""
    if isinstance(samples, torch.utils.data.DataLoader):
        collate, samples = collate or samples.collate_fn, samples.dataset
    is_indexed = hasattr(samples, "__getitem__") and hasattr(samples, "__len__")
    items = samples if is_indexed else list(samples)
    return SampleRows(items, np.arange(len(items)), collate=collate or default_collate, target=target)


def _input(values: Any) -> torch.Tensor:
    tensor = torch.as_tensor(values)
    return tensor.float() if tensor.is_floating_point() else tensor


def _target(values: Any) -> torch.Tensor:
    tensor = torch.as_tensor(values)
    if not tensor.is_floating_point():
        return tensor
    return tensor.float()[:, None] if tensor.ndim == 1 else tensor.float()


# ---- trees of tensors


def mapped(tree: Any, change: Callable[[Any], Any]) -> Any:
    """Return a tuple, list or dictionary with its leaves changed."""
    if isinstance(tree, Mapping):
        return {name: mapped(value, change) for name, value in tree.items()}
    if isinstance(tree, tuple | list):
        parts = [mapped(value, change) for value in tree]
        return type(tree)(*parts) if hasattr(tree, "_fields") else type(tree)(parts)
    return change(tree)


def moved(tree: Any, device: torch.device | str) -> Any:
    """Return a batch on a device, its real numbers as float32; an object of the user's own moves itself."""
    if not isinstance(tree, Mapping | tuple | list | torch.Tensor) and hasattr(tree, "to"):
        return tree.to(device)
    return mapped(tree, lambda leaf: _moved(leaf, device))


def _moved(leaf: Any, device: torch.device | str) -> Any:
    if isinstance(leaf, torch.Tensor):
        return leaf.to(device, torch.float32 if leaf.dtype == torch.float64 else None)
    return leaf


def leaves_of(tree: Any, name: str = "") -> Iterator[tuple[str, np.ndarray]]:
    """Yield (place, array) of the numbers and texts in a sample; objects are looked into."""
    if isinstance(tree, torch.Tensor):
        shown = tree.detach().cpu()
        yield name, (shown.float() if shown.dtype == torch.bfloat16 else shown).numpy()
    elif isinstance(tree, np.ndarray | np.generic | bool | int | float | complex | str | bytes):
        yield name, np.asarray(tree)
    elif isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from leaves_of(value, f"{name}.{key}")
    elif isinstance(tree, tuple | list):
        for number, value in enumerate(tree):
            yield from leaves_of(value, f"{name}.{number}")
    elif hasattr(tree, "to_dict"):
        yield from leaves_of(tree.to_dict(), name)
    elif hasattr(tree, "__dict__"):
        yield from leaves_of(vars(tree), name)


# ---- through a network


def called(module: nn.Module, inputs: Any) -> Any:
    """Return what a network says of inputs: one, positional or by name."""
    if isinstance(inputs, Mapping):
        return module(**inputs)
    if isinstance(inputs, tuple | list):
        return module(*inputs)
    return module(inputs)


def table_of(outputs: Any, num_rows: int) -> torch.Tensor:
    """Return all outputs that have one entry per sample as columns, float32 [rows, columns]."""
    per_row = [part for part in tensors_of(outputs) if part.ndim and len(part) == num_rows]
    columns = [part.detach().float().reshape(num_rows, -1) for part in per_row]
    return torch.cat(columns, 1) if columns else torch.zeros(num_rows, 1)


def tensors_of(outputs: Any) -> Iterator[torch.Tensor]:
    """Yield all tensors in what a network says."""
    if isinstance(outputs, torch.Tensor):
        yield outputs
    elif isinstance(outputs, Mapping):
        for value in outputs.values():
            yield from tensors_of(value)
    elif isinstance(outputs, tuple | list):
        for value in outputs:
            yield from tensors_of(value)


def stacked(tables: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return tables [rows, columns] one below the other; where they differ in width, with zeros beside them."""
    width = max(table.shape[1] for table in tables)
    return torch.cat([nn.functional.pad(table, (0, width - table.shape[1])) for table in tables])
