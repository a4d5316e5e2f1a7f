"""A task from three things that every PyTorch user has: a network, a loss, and a way to get samples."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from ray_fed.config import require
from ray_fed.errors import DataError, Trouble, failure_of
from ray_fed.federation.task import LocalRows, SiloSpec, Task, target_tensor
from ray_fed.learning.partial_exchange import Exchange, exchanged_names
from ray_fed.learning.steps import Loss
from ray_fed.metrics import LOSS, MeanScores, Metric
from ray_fed.randomness import derived_seed

Array = np.ndarray | torch.Tensor
SampleScore = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""(outputs [samples, ...], targets [samples, ...]) -> one value per sample [samples]."""


@dataclass(frozen=True)
class TorchTask(Task):
    """Federate any `torch.nn.Module`.

        task = TorchTask(network=Net, loss=functional.cross_entropy, samples=read_my_file)

    `samples(source)` runs inside the silo's own process with the source of its SiloSpec (a path, say) and returns
    (x, y) or (x, y, held_out_x, held_out_y): arrays or tensors whose first axis counts samples. Real-valued targets
    with one number per sample reach the loss as a column [samples, 1]; everything else as it is.
    """

    network: Callable[[], nn.Module]
    """Makes the network; called under a seed, so that equal seeds give equal weights."""
    loss: Loss  # type: ignore[assignment]
    """(outputs, targets) -> mean loss, a 0-d tensor."""
    samples: Callable[[Any], tuple[Array, ...]]
    """Reads what a silo's source names: (x, y) or (x, y, held_out_x, held_out_y), each [samples, ...]."""
    scores: Mapping[Any, SampleScore] = field(default_factory=dict)
    """More metrics besides the loss, each a mean over samples: {"accuracy": lambda out, y: out.argmax(1) == y}. A name
    alone is a pure number of which more is better; a `Metric` says its unit, direction and label."""
    name: str = "torch"
    """What all silos must agree on; silos with another name are refused."""
    standardises: bool = False  # type: ignore[assignment]
    """Standardise the columns of x [samples, columns] over all silos before training."""
    exchange: Exchange | None = None
    """Which tensors of the network travel: patterns of their names, "!" before those that stay: "trunk.*", or
    ["!head.*"], or ["*lora*"]; or a function of name and tensor: lambda name, tensor: tensor.requires_grad. The rest is
    each silo's own and stays there: each has its head, or all have what `network` makes, frozen. None: everything."""

    def __post_init__(self) -> None:
        names = [metric.name for metric in self.metrics]
        twice = sorted({name for name in names if names.count(name) > 1})
        require(not twice, f"scores: metrics {twice} are there twice ('{LOSS.name}' is the task's loss); rename them")

    def load(self, spec: SiloSpec) -> LocalRows:
        """Call `samples`; DataError names the silo when what it returns cannot be used."""
        try:
            found = self.samples(spec.source)
        except (OSError, ValueError, KeyError) as error:
            text = f"silo '{spec.name}': {type(error).__name__}: {' '.join(str(error).split())}"
            raise DataError(text, failure=failure_of(error)) from error
        x, y, held_out_x, held_out_y = _four_arrays(found, spec.name)
        fingerprint = {"rows": len(x), "sample": list(x.shape[1:]), "hash": _digest(x, y)}
        return LocalRows(x, y, held_out_x, held_out_y, {}, fingerprint, self.agreement())

    def model(self, seed: int) -> nn.Module:
        """Return `network()`, made under `seed`; torch's global generator is left as it was. ConfigError for a network
        that cannot be trained as it is: without parameters, with lazy ones, or with others than float32."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derived_seed(seed, "initial weights"))
            return _trainable(self.network())

    def exchanged(self, module: nn.Module) -> tuple[str, ...] | None:
        """Return the names that `exchange` chooses; ConfigError for a pattern that fits none."""
        return None if self.exchange is None else exchanged_names(module, self.exchange)

    def agreement(self) -> Mapping[str, str]:
        """Return the name of the task."""
        return {"task": self.name}

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """The loss, then `scores`."""
        return (LOSS, *(key if isinstance(key, Metric) else Metric(key, "", True, 4) for key in self.scores))

    def score(self, targets: np.ndarray, outputs: np.ndarray) -> MeanScores:
        """Return the mean loss and the means of `scores`; sums over samples leave the silo, no sample does."""
        loss_name, *names = (metric.name for metric in self.metrics)
        if len(targets) == 0:
            return MeanScores(0, dict.fromkeys([loss_name, *names], 0.0))
        y, predicted = target_tensor(targets, "cpu"), torch.from_numpy(outputs)
        loss = float(self.loss(predicted, y)) * len(targets)
        scored = zip(names, self.scores.values(), strict=True)
        others = MeanScores.of({name: score(predicted, y).numpy() for name, score in scored})
        return MeanScores(len(targets), {loss_name: loss, **others.sums})


def _trainable(module: nn.Module) -> nn.Module:
    tensors = dict(module.named_parameters())
    require(len(tensors) > 0, "network: it has no parameters, so there is nothing to train")
    tensors |= dict(module.named_buffers())
    for name, tensor in tensors.items():
        lazy = nn.parameter.is_lazy(tensor)
        require(not lazy, f"network: {name} has no shape yet; let `network` run one batch through its lazy layers")
        is_real = tensor.is_floating_point() or tensor.is_complex()
        kind = str(tensor.dtype).removeprefix("torch.")
        said = f"network: {name} is {kind}; models travel and train as float32, so make it float32"
        require(not is_real or tensor.dtype == torch.float32, f"{said} (torch.autocast inside of it is fine)")
    return module


def _four_arrays(found: object, silo: str) -> tuple[np.ndarray, ...]:
    if not isinstance(found, tuple) or len(found) not in (2, 4):
        raise DataError(
            f"silo '{silo}': samples() must return (x, y) or (x, y, held_out_x, held_out_y), not {_kind(found)}",
            failure=Trouble.WRONG_SHAPE,
        )
    arrays = [part.detach().cpu().numpy() if isinstance(part, torch.Tensor) else np.asarray(part) for part in found]
    arrays += [array[:0] for array in arrays[: 4 - len(arrays)]]
    for x, y in (arrays[:2], arrays[2:]):
        if len(x) != len(y):
            raise DataError(
                f"silo '{silo}': samples() returned {len(x)} inputs for {len(y)} targets",
                failure=Trouble.WRONG_SHAPE,
            )
    for array in arrays:
        bad = int((~np.isfinite(array)).sum()) if np.issubdtype(array.dtype, np.floating) else 0
        if bad:
            raise DataError(
                f"silo '{silo}': samples() returned {bad} values that are not finite", failure=Trouble.NOT_FINITE
            )
    return tuple(arrays)


def _kind(found: object) -> str:
    return f"{len(found)} things" if isinstance(found, tuple) else type(found).__name__


def _digest(*arrays: np.ndarray) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:16]
