"""What an attacker sees and knows, the only thing an attack may look at; many observations as one batch."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import nn
from torch.func import functional_call, vmap
from torch.nn import functional

from ray_fed.config import require
from ray_fed.errors import ConfigError, DataError
from ray_fed.leakage.targets import attackable, plain_attention, trainable

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
Tensors = tuple[torch.Tensor, ...]
FIRST_DECAY, SECOND_DECAY, ADAM_EPSILON = 0.9, 0.999, 1e-8
"""Of Adam (Kingma & Ba 2015), torch's defaults."""


@dataclass(frozen=True)
class LocalPlan:
    """What a silo does with its batch before it sends, as the federation agreed."""

    steps: int = 1
    minibatch: int = 0
    """Samples per step, in the order of the batch and then from its start again; 0: all of them."""
    optimizer: str = "sgd"
    """sgd | adam"""
    learning_rate: float | None = None

    def parts(self, samples: int) -> Iterator[slice]:
        """Yield the samples of each step."""
        size = self.minibatch or samples
        starts = range(0, samples, size)
        for step in range(self.steps):
            start = starts[step % len(starts)]
            yield slice(start, min(samples, start + size))


class StackedNetwork:
    """`n` networks: parameters [n, ...] each. Problems never mix, so one backward pass serves all of them.

    constants: frozen parameters and running statistics by name, [n, ...] each; those of `network` where there are none.
    """

    def __init__(
        self, network: nn.Module, parameters: Sequence[torch.Tensor], loss: Loss,
        constants: Mapping[str, torch.Tensor] | None = None,
    ):  # fmt: skip
        self.network, self.loss = attackable(network), loss
        self.names = trainable(network)
        self.parameters = [parameter.detach().requires_grad_() for parameter in parameters]
        self.constants = dict(constants or {})

    def __len__(self) -> int:
        return len(self.parameters[0])

    def select(self, index: torch.Tensor) -> "StackedNetwork":
        """Return the networks `index` [k] alone."""
        constants = {name: value[index] for name, value in self.constants.items()}
        return StackedNetwork(self.network, [parameter[index] for parameter in self.parameters], self.loss, constants)

    def with_constants(self, constants: Mapping[str, torch.Tensor]) -> "StackedNetwork":
        """Return the same networks with other constants, e.g. statistics that an attacker has to find."""
        changed = StackedNetwork(self.network, self.parameters, self.loss, {**self.constants, **constants})
        changed.parameters = self.parameters
        return changed

    def outputs(self, inputs: torch.Tensor, parameters: Sequence[torch.Tensor] | None = None) -> torch.Tensor:
        """Return outputs [n, batch, ...] for inputs [n, batch, ...]."""
        named = dict(zip(self.names, self.parameters if parameters is None else parameters, strict=True))
        with plain_attention():
            call = lambda values, x: functional_call(self.network, values, (x,))  # noqa: E731
            return vmap(call)({**self.constants, **named}, inputs)

    def gradients(
        self,
        inputs: torch.Tensor,
        labels: torch.Tensor,
        create_graph: bool = False,
        parameters: Sequence[torch.Tensor] | None = None,
    ) -> tuple[torch.Tensor, ...]:
        """Return dL/dW [n, ...] per parameter of each network's mean loss over its batch; zeros for a parameter that
        the loss does not depend on.

        labels: classes [n, batch, ...], soft classes [n, batch, num_classes, ...] or targets, as the loss takes them.
        """
        weights = self.parameters if parameters is None else parameters
        with plain_attention():
            losses = vmap(self.loss)(self.outputs(inputs, weights), labels)
            return torch.autograd.grad(
                losses.sum(), list(weights), create_graph=create_graph, allow_unused=True, materialize_grads=True
            )

    def message(
        self, inputs: torch.Tensor, labels: torch.Tensor, plan: LocalPlan | None = None, create_graph: bool = False
    ) -> list[torch.Tensor]:
        """Return what is sent: the gradient, or (w_before - w_after) / learning_rate after the plan's local steps.

        With `create_graph` steps of SGD are unrolled and can be differentiated (Geiping et al. 2020, Sec. 6). Adam sends
        little but signs, which cannot: then the sum of the gradients along its way is returned, whose direction counts.
        """
        plan = plan or LocalPlan()
        if plan.steps == 1 and plan.optimizer == "sgd" and not plan.minibatch:
            return list(self.gradients(inputs, labels, create_graph))
        assert plan.learning_rate is not None
        weights, total = list(self.parameters), [torch.zeros_like(parameter) for parameter in self.parameters]
        adam = _AdamSteps() if plan.optimizer == "adam" else None
        for part in plan.parts(inputs.shape[1]):
            step = self.gradients(inputs[:, part], labels[:, part], create_graph, weights)
            moves = adam.moves([one.detach() for one in step]) if adam else step
            sent = moves if adam and not create_graph else step
            total = [so_far + one for so_far, one in zip(total, sent, strict=True)]
            weights = [weight - plan.learning_rate * one for weight, one in zip(weights, moves, strict=True)]
            if not create_graph:
                weights = [weight.detach().requires_grad_() for weight in weights]
        return total


class _AdamSteps:
    """The directions of Adam for many parameters, one call a step."""

    def __init__(self) -> None:
        self.first: list[torch.Tensor] = []
        self.second: list[torch.Tensor] = []
        self.steps = 0

    def moves(self, gradients: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Return m / (sqrt(v) + eps), both corrected for their start at zero."""
        self.first = self.first or [torch.zeros_like(one) for one in gradients]
        self.second = self.second or [torch.zeros_like(one) for one in gradients]
        self.steps += 1
        self.first = [m.lerp(g, 1 - FIRST_DECAY) for m, g in zip(self.first, gradients, strict=True)]
        self.second = [v.lerp(g.square(), 1 - SECOND_DECAY) for v, g in zip(self.second, gradients, strict=True)]
        a, b = 1 - FIRST_DECAY**self.steps, 1 - SECOND_DECAY**self.steps
        return [m / a / ((v / b).sqrt() + ADAM_EPSILON) for m, v in zip(self.first, self.second, strict=True)]


LOSSES = {"cross_entropy": functional.cross_entropy, "mse": functional.mse_loss}


@dataclass(frozen=True)
class Knowledge:
    """What the attacker knows besides the message. Nothing else about the samples reaches an attack."""

    input_shape: tuple[int, ...]
    """Of one sample, e.g. (1, 28, 28); its values lie in [0, 1]."""
    num_classes: int
    """Size of the label space; 1 for regression."""
    batch_size: int = 1
    """Samples behind the message."""
    local_steps: int = 1
    """Local steps E between the parameters sent and those returned."""
    learning_rate: float | None = None
    """Of the local steps; None: the message is a gradient."""
    minibatch: int = 0
    """Samples per local step, one part of the batch after another, in the same order in each epoch; 0: each step sees
    the whole batch."""
    optimizer: Literal["sgd", "adam"] = "sgd"
    """Of the local steps."""
    vocabulary: int = 0
    """Inputs are whole numbers below it; 0: inputs are numbers in [0, 1]."""
    statistics: Literal["stored", "unknown"] = "stored"
    """Running statistics of BatchNorm: stored in the network that the attacker has, or kept by the silo."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "local_steps"):
            require(getattr(self, name) >= 1, f"{name}={getattr(self, name)} must be at least 1")
        require(self.minibatch >= 0, f"minibatch={self.minibatch} must not be negative; 0 is the whole batch")
        require(self.optimizer in ("sgd", "adam"), f"optimizer={self.optimizer!r} must be sgd or adam")
        is_update = self.local_steps > 1 or self.minibatch > 0 or self.optimizer != "sgd"
        require(not is_update or self.learning_rate is not None, "local_steps > 1, minibatch and optimizer=adam need "
                "learning_rate, the rate of the local steps")  # fmt: skip

    @property
    def plan(self) -> LocalPlan:
        """What the silo does between the parameters it gets and those it sends."""
        return LocalPlan(self.local_steps, self.minibatch, self.optimizer, self.learning_rate)

    @property
    def is_tokens(self) -> bool:
        """Whether an input is a row of whole numbers that a table is asked for."""
        return self.vocabulary > 0


@dataclass(frozen=True)
class AttackObservation:
    """A message as the coordinator receives it, with the parameters it had sent.

    message: one tensor per parameter that is trained, in the order of `trainable(network)`: the gradient of the mean loss over
    the batch, or (w_before - w_after) / learning_rate of a FedAvg update, which for one step is the same.
    """

    network: nn.Module
    """Structure only: its own weights are not used."""
    parameters: Tensors
    message: Tensors
    knows: Knowledge
    loss: str = "cross_entropy"
    constants: Mapping[str, torch.Tensor] = field(default_factory=dict)
    """Frozen parameters and running statistics by name, where they are not those of `network`."""
    defences: tuple[str, ...] = ()
    """Names of what the silo did to the message, as far as the attacker knows (assumed public)."""

    def __post_init__(self) -> None:
        names = trainable(self.network)
        require(len(names) == len(self.parameters) == len(self.message), f"{len(names)} parameters are trained, "
                f"{len(self.parameters)} sent, {len(self.message)} returned: the three must agree")  # fmt: skip
        for name, sent, got in zip(names, self.parameters, self.message, strict=True):
            require(sent.shape == got.shape, f"{name}: message {tuple(got.shape)}, parameters {tuple(sent.shape)}")
            if not bool(torch.isfinite(got).all()):
                raise DataError(f"the message is not finite in {name}; nothing can be reconstructed from it")

    @property
    def threat_model(self) -> str:
        """Return the threat model in one sentence."""
        knows = self.knows
        steps = f"{knows.local_steps} local {knows.optimizer.upper() if knows.optimizer == 'sgd' else 'Adam'} steps"
        steps += f" on parts of {knows.minibatch}" if knows.minibatch else ""
        sent = "one gradient" if knows.learning_rate is None else f"an update after {steps}"
        defended = f", defended by {' + '.join(self.defences)}" if self.defences else ""
        return (
            f"honest-but-curious coordinator: sees {sent} (batch of {knows.batch_size}{defended}) and the "
            f"parameters it sent; knows network, loss, input shape {knows.input_shape}, label space "
            f"{knows.num_classes} and batch size; sees no sample, label or statistics"
        )

    def with_message(self, message: Sequence[torch.Tensor], defence: str) -> "AttackObservation":
        return replace(self, message=tuple(message), defences=(*self.defences, defence))


def observe(
    network: nn.Module, inputs: torch.Tensor, labels: torch.Tensor, knows: Knowledge, loss: str = "cross_entropy"
) -> AttackObservation:
    """Return what a coordinator sees of one training message of `network` on inputs [batch, ...], labels [batch, ...].

    ConfigError or DataError for inputs of the wrong size, labels out of range, or a gradient that is not finite.
    """
    check_samples(inputs, labels, knows, loss)
    names = trainable(network)
    parameters = tuple(network.get_parameter(name).detach().clone() for name in names)
    constants = constants_of(network)
    stacked = StackedNetwork(
        network, [one[None] for one in parameters], LOSSES[loss], {name: one[None] for name, one in constants.items()}
    )
    message = tuple(part[0].detach() for part in stacked.message(inputs[None], labels[None], knows.plan))
    return AttackObservation(network, parameters, message, knows, loss, constants)


def constants_of(network: nn.Module) -> dict[str, torch.Tensor]:
    """Return what the network computes with and does not train: frozen parameters and buffers of numbers, by name."""
    frozen = ((name, one) for name, one in network.named_parameters() if not one.requires_grad)
    kept = {id(one) for layer in network.modules() for name, one in layer.named_buffers(recurse=False)
            if name in layer._non_persistent_buffers_set}  # fmt: skip
    buffers = ((name, one) for name, one in network.named_buffers() if one.is_floating_point() and id(one) not in kept)
    return {name: one.detach().clone() for name, one in (*frozen, *buffers)}


def check_samples(inputs: torch.Tensor, labels: torch.Tensor, knows: Knowledge, loss: str) -> None:
    """Raise a ConfigError or DataError that names what does not fit."""
    require(loss in LOSSES, f"loss={loss!r} must be one of {', '.join(LOSSES)}")
    require(knows.is_tokens or inputs.is_floating_point(), "the inputs are whole numbers: give Knowledge vocabulary=, "
            "the size of the table that they are looked up in, or numbers in [0, 1]")  # fmt: skip
    shape, wanted = tuple(inputs.shape[1:]), knows.input_shape
    if shape != wanted:
        raise DataError(f"image of size {shape}, the network takes {wanted}; crop or resize it")
    require(len(inputs) == len(labels) == knows.batch_size, f"{len(inputs)} images, {len(labels)} labels, batch of "
            f"{knows.batch_size}: the three must agree")  # fmt: skip
    if knows.minibatch > knows.batch_size:
        raise ConfigError(f"minibatch={knows.minibatch} is more than the batch of {knows.batch_size}")
    if loss == "cross_entropy" and not bool(((labels >= 0) & (labels < knows.num_classes)).all()):
        raise DataError(
            f"label {int(labels.max() if labels.max() >= knows.num_classes else labels.min())} is out of range; "
            f"labels lie between 0 and {knows.num_classes - 1}"
        )


def stack(observations: Sequence[AttackObservation]) -> tuple[StackedNetwork, list[torch.Tensor]]:
    """Return many observations of one network structure as one stacked network and messages [n, ...] per parameter."""
    first = observations[0]
    for other in observations:
        require(other.knows == first.knows and other.loss == first.loss, "one batch of attacks needs equal knowledge")
    parameters = [torch.stack(part) for part in zip(*(one.parameters for one in observations), strict=True)]
    message = [torch.stack(part) for part in zip(*(one.message for one in observations), strict=True)]
    constants = {name: torch.stack([one.constants[name] for one in observations]) for name in first.constants}
    return StackedNetwork(first.network, parameters, LOSSES[first.loss], constants), message
