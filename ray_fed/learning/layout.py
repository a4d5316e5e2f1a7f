"""A model as one flat float32 vector, and the layout that gives its parts their names and shapes.

Parameters come first, then those buffers that travel. Integer buffers (BatchNorm's counter of batches) never do: they
have no mean, stay integers and stay with the silo.
"""

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Literal

import numpy as np
import torch
from torch import nn

BufferPolicy = Literal["average", "local", "recompute"]
"""What happens to floating-point buffers (BatchNorm's running statistics): averaged like parameters; kept by each silo
(FedBN, Li et al. 2021); or computed anew from the silo's own rows whenever a model is evaluated there."""


@dataclass(frozen=True)
class Layout:
    """Names and shapes of the tensors that lie one after another in a flat vector.

    Agreed once per session: silos and coordinator compare `digest`, afterwards only the vector travels.
    """

    names: tuple[str, ...]
    """Names of the tensors, in their order: parameters, then buffers."""
    shapes: tuple[tuple[int, ...], ...]
    """Their shapes."""
    num_buffers: int = 0
    """How many of the last tensors are buffers."""

    @classmethod
    def of(cls, module: nn.Module, buffers: BufferPolicy = "average") -> "Layout":
        """Return the layout of `module.named_parameters()`, in their order, and of the buffers that travel."""
        travelling = floating_buffers(module) if buffers == "average" else {}
        named = [*module.named_parameters(), *travelling.items()]
        return cls(tuple(name for name, _ in named), tuple(tuple(tensor.shape) for _, tensor in named), len(travelling))

    def __repr__(self) -> str:
        return f"Layout({self.size} values in {len(self.names)} tensors, {self.num_buffers} of them buffers)"

    @cached_property
    def size(self) -> int:
        """Length of the vector."""
        return sum(prod(shape) for shape in self.shapes)

    @cached_property
    def num_parameters(self) -> int:
        """Number of learned values: the first part of the vector."""
        return sum(prod(shape) for shape in self.shapes[: len(self.shapes) - self.num_buffers])

    @cached_property
    def digest(self) -> str:
        """sha256 over names and shapes, hexadecimal."""
        return hashlib.sha256(json.dumps([self.names, self.shapes, self.num_buffers]).encode()).hexdigest()

    def part(self, names: Collection[str]) -> "Layout":
        """Return the layout of some of the tensors, in the order that they have here."""
        kept = [at for at, name in enumerate(self.names) if name in names]
        first_buffer = len(self.names) - self.num_buffers
        chosen = tuple(self.names[at] for at in kept), tuple(self.shapes[at] for at in kept)
        return Layout(*chosen, sum(at >= first_buffer for at in kept))

    def is_in_part(self, names: Collection[str]) -> np.ndarray:
        """Return bool [size]: which values are of the named tensors."""
        sizes = [prod(shape) for shape in self.shapes]
        return np.repeat([name in names for name in self.names], sizes)

    @torch.no_grad()
    def load(self, module: nn.Module, vector: np.ndarray) -> nn.Module:
        """Write a vector [size] into the module's tensors of these names; returns the module."""
        tensors = dict(module.named_parameters()) | dict(module.named_buffers())
        for name, values in self.unflatten(np.array(vector[: self.size], np.float32)).items():
            tensors[name].copy_(torch.from_numpy(values))
        return module

    def views(self, flat: torch.Tensor) -> list[torch.Tensor]:
        """Return tensors of the layout's shapes that share memory with `flat` [size]; RuntimeError for another size."""
        sizes = [prod(shape) for shape in self.shapes]
        return [part.view(shape) for part, shape in zip(flat.split(sizes), self.shapes, strict=True)]

    def unflatten(self, vector: np.ndarray) -> dict[str, np.ndarray]:
        """Return name -> copy of its part of `vector` [size], in its shape, for files."""
        parts = np.split(np.asarray(vector), np.cumsum([prod(shape) for shape in self.shapes])[:-1])
        return {
            name: part.reshape(shape).copy() for name, part, shape in zip(self.names, parts, self.shapes, strict=True)
        }

    def flatten(self, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return the flat float32 vector [size]; KeyError or ValueError when names or shapes differ."""
        parts = []
        for name, shape in zip(self.names, self.shapes, strict=True):
            if arrays[name].shape != shape:
                raise ValueError(f"{name} has shape {arrays[name].shape}, the layout says {shape}")
            parts.append(np.asarray(arrays[name], np.float32).ravel())
        return np.concatenate(parts)


def floating_buffers(module: nn.Module) -> dict[str, torch.Tensor]:
    """Return name -> buffer of the buffers that have a mean."""
    return {name: buffer for name, buffer in module.named_buffers() if buffer.is_floating_point()}


def integer_buffers(module: nn.Module) -> dict[str, torch.Tensor]:
    """Return name -> buffer of the counters, flags and tables."""
    return {name: buffer for name, buffer in module.named_buffers() if not buffer.is_floating_point()}


def initial_vector(module: nn.Module, buffers: BufferPolicy = "average") -> np.ndarray:
    """Return the module's values as the flat float32 vector of `Layout.of(module, buffers)`."""
    named = {**dict(module.named_parameters()), **floating_buffers(module)}
    return Layout.of(module, buffers).flatten(
        {name: tensor.detach().cpu().float().numpy() for name, tensor in named.items()}
    )


def bind(module: nn.Module, device: torch.device | str = "cpu") -> tuple[torch.Tensor, torch.Tensor]:
    """Move `module` to `device` and make its parameters and gradients views of two flat float32 vectors.

    Returns (flat, flat_gradient), both [num_parameters]. Writing into `flat` changes the module; autograd accumulates
    into `flat_gradient`. One vector means one optimiser kernel, one copy per message and no per-tensor bookkeeping.
    """
    module.to(device=device, dtype=torch.float32)
    parameters = list(module.parameters())
    flat = _flattened(parameters, device)
    gradient = torch.zeros_like(flat)
    for parameter, view, grad in zip(parameters, _like(flat, parameters), _like(gradient, parameters), strict=True):
        parameter.data = view
        parameter.grad = grad
    flat.grad = gradient
    return flat, gradient


def bind_buffers(module: nn.Module) -> torch.Tensor:
    """Make the floating buffers of a bound module views of one flat float32 vector, and return it."""
    buffers = list(floating_buffers(module).values())
    flat = _flattened(buffers, next(module.parameters()).device)
    for buffer, view in zip(buffers, _like(flat, buffers), strict=True):
        buffer.data = view
    return flat


def load_vector(module: nn.Module, vector: np.ndarray) -> nn.Module:
    """Write a vector of `Layout.of(module)` [size], or its parameters alone [num_parameters], into the module; returns
    the module."""
    values = torch.from_numpy(np.array(vector, np.float32))
    tensors = [*module.parameters(), *floating_buffers(module).values()]
    with torch.no_grad():
        for tensor in tensors:
            if len(values) == 0:
                break
            part, values = values[: tensor.numel()], values[tensor.numel() :]
            tensor.copy_(part.reshape(tensor.shape))
    return module


def _flattened(tensors: Sequence[torch.Tensor], device: torch.device | str) -> torch.Tensor:
    parts = [tensor.detach().reshape(-1) for tensor in tensors]
    return torch.cat(parts) if parts else torch.zeros(0, device=device)


def _like(flat: torch.Tensor, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Return views of `flat` in the tensors' shapes."""
    parts = flat.split([tensor.numel() for tensor in tensors]) if tensors else ()
    return [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]
