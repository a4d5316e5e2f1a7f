"""Train thousands of pyramid networks on one table at once, each with its own learning rate and early stopping."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ray_fed.errors import DataError
from ray_fed.model_library.stacked_networks import Pyramid, StackedNetworks, stack_order, unpadded
from ray_fed.randomness import generator

STACK_PARAMETERS = {"cpu": 250_000, "cuda": 100_000_000}
"""Parameters of one stack: on a CPU a stack and its optimiser should stay in the cache, on a GPU it should fill it."""

KEEP_SHARE = 0.7
"""A stack is rebuilt without its finished networks when fewer than this share still learn."""


@dataclass(frozen=True)
class TrainingRows:
    """Standardised rows: inputs [rows, D] and targets [rows], to learn from and to stop by. All finite."""

    inputs: np.ndarray
    targets: np.ndarray
    validation_inputs: np.ndarray
    validation_targets: np.ndarray

    def __post_init__(self) -> None:
        for name, values in vars(self).items():
            if not np.isfinite(values).all():
                raise DataError(f"training rows: {name} holds NaN or infinity; drop those rows first")
        if len(self.targets) < 2 or not len(self.validation_targets):
            raise DataError(
                f"{len(self.targets)} training and {len(self.validation_targets)} validation rows; need 2 and 1"
            )


@dataclass(frozen=True)
class Schedule:
    """What all networks of a call share."""

    batch_size: int = 32
    """Rows of a mini-batch."""
    patience: int = 15
    """Epochs without a better validation error after which a network stops."""
    seed: int = 0
    """Seed of the order of rows; the same for every network, so that a network never depends on its neighbours."""
    device: str = "cpu"
    """"cpu" or "cuda"."""


@dataclass(frozen=True)
class TrainedPyramid:
    """A network at its best validation error."""

    pyramid: Pyramid
    arrays: dict[str, np.ndarray]
    """Parameters under the names of `ray_fed.learning.models.mlp`, float32."""
    best_epoch: int
    """Epoch with the lowest validation error, from 1."""
    epochs: int
    """Epochs it was trained for."""
    validation_loss: float
    """Mean squared error at `best_epoch`, in units of the standardised target. NaN where training diverged."""


def train_pyramids(rows: TrainingRows, pyramids: Sequence[Pyramid], schedule: Schedule) -> list[TrainedPyramid]:
    """Return the trained networks in the order of `pyramids`.

    Every network ends as it would alone, up to rounding: same initial weights, same mini-batches, same optimiser, same
    stopping rule.
    """
    data, budget = _Tensors(rows, schedule), STACK_PARAMETERS[torch.device(schedule.device).type]
    trained: list[TrainedPyramid | None] = [None] * len(pyramids)
    with torch.no_grad():
        for stack in stacks(pyramids, rows.inputs.shape[1], budget):
            results = _train_stack([pyramids[at] for at in stack], data, schedule)
            for at, result in zip(stack, results, strict=True):
                trained[at] = result
    return [result for result in trained if result is not None]


def stacks(pyramids: Sequence[Pyramid], num_features: int, budget: int) -> Iterator[list[int]]:
    """Yield positions of networks of one depth and similar widths, padded within `budget` parameters together."""
    stack: list[int] = []
    for at in stack_order(pyramids):
        if stack and (
            len(pyramids[stack[0]].hidden) != len(pyramids[at].hidden)
            or (len(stack) + 1) * _padded_size([pyramids[i] for i in (*stack, at)], num_features) > budget
        ):
            yield stack
            stack = []
        stack.append(at)
    if stack:
        yield stack


def _padded_size(pyramids: Sequence[Pyramid], num_features: int) -> int:
    hidden = tuple(max(widths) for widths in zip(*(pyramid.hidden for pyramid in pyramids), strict=True))
    return Pyramid(hidden, 1.0, 1, 0).num_parameters(num_features)


class _Tensors:
    """The rows on the schedule's device, float32; targets [rows, 1]."""

    def __init__(self, rows: TrainingRows, schedule: Schedule):
        values = (torch.tensor(part, dtype=torch.float32, device=schedule.device) for part in vars(rows).values())
        self.inputs, targets, self.validation_inputs, validation_targets = values
        self.targets, self.validation_targets = targets[:, None], validation_targets[:, None]

    def batches(self, schedule: Schedule, epoch: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield the mini-batches of an epoch: every row once."""
        order = generator(schedule.seed, "library batches", epoch).permutation(len(self.inputs))
        chosen = torch.from_numpy(order).to(self.inputs.device)
        inputs, targets = self.inputs[chosen], self.targets[chosen]
        yield from zip(inputs.split(schedule.batch_size), targets.split(schedule.batch_size), strict=True)


class _Progress:
    """How far each network of a stack has come; arrays over the networks the stack began with."""

    def __init__(self, networks: StackedNetworks):
        count = len(networks)
        self.best = [tensor.clone() for tensor in networks.tensors(networks.parameters)]
        self.best_loss, self.best_epoch = np.full(count, np.inf), np.zeros(count, int)
        self.last_epoch = np.zeros(count, int)
        self.most = np.array([pyramid.epochs for pyramid in networks.pyramids])
        self.remaining = np.arange(count)
        """Number of the network at each position of the stack."""

    def update(self, networks: StackedNetworks, losses: np.ndarray, epoch: int) -> None:
        """Keep the parameters of the networks that are better than before and have not stopped."""
        learning = self.last_epoch[self.remaining] == epoch - 1
        better = np.flatnonzero(learning & (losses < self.best_loss[self.remaining]))
        self.last_epoch[self.remaining[learning]] = epoch
        self.best_loss[self.remaining[better]], self.best_epoch[self.remaining[better]] = losses[better], epoch
        source = torch.from_numpy(better).to(networks.device)
        place = torch.from_numpy(self.remaining[better]).to(networks.device)
        for best, now in zip(self.best, networks.tensors(networks.parameters), strict=True):
            best.index_copy_(0, place, now.index_select(0, source))

    def still_learning(self, epoch: int, patience: int) -> np.ndarray:
        """Return bool [networks in the stack now]: which of them still learn after `epoch`."""
        remaining = self.remaining
        waited = epoch - self.best_epoch[remaining]
        return (self.last_epoch[remaining] == epoch) & (epoch < self.most[remaining]) & (waited < patience)


def _train_stack(pyramids: Sequence[Pyramid], data: _Tensors, schedule: Schedule) -> list[TrainedPyramid]:
    networks = StackedNetworks(pyramids, data.inputs.shape[1], schedule.device)
    progress = _Progress(networks)
    learning = np.ones(len(pyramids), bool)
    epoch = 0
    while learning.any():
        if learning.mean() < KEEP_SHARE:
            networks.keep(torch.from_numpy(np.flatnonzero(learning)).to(networks.device))
            progress.remaining = progress.remaining[learning]
        epoch += 1
        for inputs, targets in data.batches(schedule, epoch):
            networks.step(inputs, targets)
        progress.update(networks, _validation_losses(networks, data), epoch)
        learning = progress.still_learning(epoch, schedule.patience)
        # A network that has stopped must not start again while it waits to be dropped.
        progress.most[progress.remaining[~learning]] = 0
    return [_trained(progress, at, pyramid) for at, pyramid in enumerate(pyramids)]


def _validation_losses(networks: StackedNetworks, data: _Tensors) -> np.ndarray:
    """Return the mean squared error of each network, float64 [M]; a diverged network has NaN and never improves."""
    outputs = networks.forward(data.validation_inputs)[-1]
    return (outputs - data.validation_targets).square().mean(dim=(1, 2)).double().cpu().numpy()


def _trained(progress: _Progress, at: int, pyramid: Pyramid) -> TrainedPyramid:
    loss = float(progress.best_loss[at])
    return TrainedPyramid(
        pyramid,
        unpadded(progress.best, at, pyramid),
        int(progress.best_epoch[at]),
        int(progress.last_epoch[at]),
        loss if np.isfinite(loss) else float("nan"),
    )
