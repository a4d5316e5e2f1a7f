"""Parts of a model: what travels between the silos, and what stays with each of them.

A trainer always works on its whole vector. Around it stands `PartialExchange`, which lets only named tensors through,
and keeps the rest in the silo: a personal head, a frozen trunk below adapters. What does not travel is a federation of
one silo: its values, its running statistics and its share of control variates go on from where this silo left them.
"""

from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import torch
from torch import nn

from ray_fed.config import require
from ray_fed.learning.kept_values import KeepsValues
from ray_fed.learning.layout import floating_buffers
from ray_fed.learning.trainer import FitResult, Trainer

Exchange = str | Sequence[str] | Callable[[str, torch.Tensor], bool]
"""Which tensors travel: patterns of names, as of files, one that begins with "!" taking away; or a function of name and
tensor."""


def exchanged_names(module: nn.Module, exchange: Exchange) -> tuple[str, ...]:
    """Return the names of the parameters and floating-point buffers that travel, in the network's order. ConfigError
    for a pattern that no name fits, and where nothing would travel."""
    tensors = dict(module.named_parameters()) | floating_buffers(module)
    if callable(exchange):
        chosen = tuple(name for name, tensor in tensors.items() if exchange(name, tensor))
    else:
        patterns = [exchange] if isinstance(exchange, str) else list(exchange)
        for pattern in patterns:
            fits = any(fnmatchcase(name, pattern.removeprefix("!")) for name in tensors)
            require(fits, f"exchange={pattern!r} fits no tensor; there are: {', '.join(tensors)}")
        chosen = tuple(name for name in tensors if _is_chosen(name, patterns))
    require(len(chosen) > 0, f"exchange={exchange!r} lets nothing travel; there are: {', '.join(tensors)}")
    return chosen


def _is_chosen(name: str, patterns: Sequence[str]) -> bool:
    """The last pattern that fits decides; where the first one takes away, all others are there."""
    decided = patterns[0].startswith("!")
    for pattern in patterns:
        if fnmatchcase(name, pattern.removeprefix("!")):
            decided = not pattern.startswith("!")
    return decided


def innermost(trainer: Trainer) -> Trainer:
    """Return what trains, where only parts of it travel."""
    return trainer.trainer if isinstance(trainer, PartialExchange) else trainer


class PartialExchange:
    """A `Trainer` of which some tensors travel."""

    def __init__(self, trainer: Trainer, names: Sequence[str], first: np.ndarray, silo: str):
        """names: of what travels, as the trainer's layout has them. first: the initial values of the whole layout.
        ConfigError for a plan under which parts of a model cannot travel."""
        plan = trainer.plan
        require(plan.compression is None, f"silo '{silo}': compression codes whole models; leave it or exchange= out")
        averages = plan.optimizer_state == "average"
        require(not averages, f"silo '{silo}': optimizer_state=average sends moments of all; choose keep or reset")
        self.trainer, self.plan = trainer, plan
        self.layout = trainer.layout.part(names)
        # SCAFFOLD's vectors are several blocks of the layout's size.
        blocks = 1 + plan.control_variates + (plan.optimizer_state == "common")
        chosen = np.tile(trainer.layout.is_in_part(names), blocks)
        self._travels, self._stays = np.flatnonzero(chosen), np.flatnonzero(~chosen)
        whole = np.zeros(len(chosen), np.float32)
        whole[: len(first)] = first
        self._first = torch.from_numpy(whole[self._stays])
        self.own = self._first.clone()
        """Values that stay, float32 [len(stays)]."""

    def _whole(self, vector: np.ndarray) -> np.ndarray:
        """Return the trainer's vector: what travels from the vector given, the rest from here. ValueError for one of
        another length or type."""
        part, most = self.layout.size, len(self._travels)
        if vector.ndim != 1 or vector.dtype != np.float32 or len(vector) not in range(part, most + 1, part):
            raise ValueError(f"expected float32 [{most}], got {vector.dtype} {list(vector.shape)}")
        blocks = len(vector) // part
        stays = self._stays[: blocks * len(self._stays) * part // most]
        whole = np.empty(len(vector) + len(stays), np.float32)
        whole[self._travels[: len(vector)]], whole[stays] = vector, self.own.numpy()[: len(stays)]
        return whole

    def fit_round(self, vector: np.ndarray, server_round: int) -> tuple[np.ndarray, FitResult]:
        moved, result = self.trainer.fit_round(self._whole(vector), server_round)
        self.own.copy_(torch.from_numpy(moved[self._stays]))
        return moved[self._travels], result

    def predict(self, features: Any, vector: np.ndarray) -> torch.Tensor:
        return self.trainer.predict(features, self._whole(vector))

    def compress(self, received: np.ndarray, vector: np.ndarray) -> None:  # noqa: ARG002
        return None

    def local_state(self) -> dict[str, torch.Tensor]:
        return self.trainer.local_state() | {"stays": self.own}

    def kept(self) -> dict[str, Any]:
        return self.trainer.kept() if isinstance(self.trainer, KeepsValues) else {}

    def restore(self, kept: dict[str, Any]) -> None:
        assert isinstance(self.trainer, KeepsValues)
        self.trainer.restore(kept)

    def forget(self) -> None:
        self.trainer.forget()
        self.own.copy_(self._first)
