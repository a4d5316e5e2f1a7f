"""Parameters as one flat float32 vector, and the layout that gives its parts their names and shapes."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod

import numpy as np
import torch
from torch import nn


@dataclass(frozen=True)
class Layout:
    """Names and shapes of the tensors that lie one after another in a flat vector.

    Agreed once per session: silos and coordinator compare `digest`, afterwards only the vector travels.
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, module: nn.Module) -> "Layout":
        """Return the layout of `module.named_parameters()`, in their order."""
        named = list(module.named_parameters())
        return cls(tuple(name for name, _ in named), tuple(tuple(p.shape) for _, p in named))

    @cached_property
    def num_parameters(self) -> int:
        return sum(prod(shape) for shape in self.shapes)

    @cached_property
    def digest(self) -> str:
        """sha256 over names and shapes, hexadecimal."""
        return hashlib.sha256(json.dumps([self.names, self.shapes]).encode()).hexdigest()

    def views(self, flat: torch.Tensor) -> list[torch.Tensor]:
        """Return tensors of the layout's shapes that share memory with `flat` [num_parameters]."""
        sizes = [prod(shape) for shape in self.shapes]
        return [part.view(shape) for part, shape in zip(flat.split(sizes), self.shapes, strict=True)]

    def unflatten(self, vector: np.ndarray) -> dict[str, np.ndarray]:
        """Return a name -> array mapping of copies, for files."""
        parts = np.split(np.asarray(vector), np.cumsum([prod(shape) for shape in self.shapes])[:-1])
        return {
            name: part.reshape(shape).copy() for name, part, shape in zip(self.names, parts, self.shapes, strict=True)
        }

    def flatten(self, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return the flat float32 vector [num_parameters]; KeyError or ValueError when names or shapes differ."""
        parts = []
        for name, shape in zip(self.names, self.shapes, strict=True):
            if arrays[name].shape != shape:
                raise ValueError(f"{name} has shape {arrays[name].shape}, the layout says {shape}")
            parts.append(np.asarray(arrays[name], np.float32).ravel())
        return np.concatenate(parts)


def bind(module: nn.Module, device: torch.device | str = "cpu") -> tuple[torch.Tensor, torch.Tensor]:
    """Move `module` to `device` and make its parameters and gradients views of two flat float32 vectors.

    Returns (flat, flat_gradient), both [num_parameters]. Writing into `flat` changes the module; autograd accumulates
    into `flat_gradient`. One vector means one optimiser kernel, one copy per message and no per-tensor bookkeeping.
    """
    module.to(device=device, dtype=torch.float32)
    parameters = list(module.parameters())
    flat = torch.cat([p.detach().reshape(-1) for p in parameters])
    gradient = torch.zeros_like(flat)
    layout = Layout.of(module)
    for parameter, view, grad in zip(parameters, layout.views(flat), layout.views(gradient), strict=True):
        parameter.data = view
        parameter.grad = grad
    flat.grad = gradient
    return flat, gradient
