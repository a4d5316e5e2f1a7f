"""What an attacker sees and knows, the only thing an attack may look at; many observations as one batch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn
from torch.func import functional_call, vmap
from torch.nn import functional

from ray_fed.config import require
from ray_fed.errors import DataError

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class StackedNetwork:
    """`n` networks: parameters [n, ...] each. Problems never mix, so one backward pass serves all of them."""

    def __init__(self, network: nn.Module, parameters: Sequence[torch.Tensor], loss: Loss):
        self.network, self.loss = network, loss
        self.names = [name for name, _ in network.named_parameters()]
        self.parameters = [parameter.detach().requires_grad_() for parameter in parameters]

    def __len__(self) -> int:
        return len(self.parameters[0])

    def select(self, index: torch.Tensor) -> "StackedNetwork":
        """Return the networks `index` [k] alone."""
        return StackedNetwork(self.network, [parameter[index] for parameter in self.parameters], self.loss)

    def outputs(self, inputs: torch.Tensor, parameters: Sequence[torch.Tensor] | None = None) -> torch.Tensor:
        """Return outputs [n, batch, ...] for inputs [n, batch, ...]."""
        named = dict(zip(self.names, self.parameters if parameters is None else parameters, strict=True))
        return vmap(lambda values, x: functional_call(self.network, values, (x,)))(named, inputs)

    def gradients(
        self,
        inputs: torch.Tensor,
        labels: torch.Tensor,
        create_graph: bool = False,
        parameters: Sequence[torch.Tensor] | None = None,
    ) -> tuple[torch.Tensor, ...]:
        """Return dL/dW [n, ...] per parameter of each network's mean loss over its batch.

        labels: classes [n, batch, ...], soft classes [n, batch, num_classes, ...] or targets, as the loss takes them.
        """
        weights = self.parameters if parameters is None else parameters
        losses = vmap(self.loss)(self.outputs(inputs, weights), labels)
        return torch.autograd.grad(losses.sum(), list(weights), create_graph=create_graph)

    def message(
        self,
        inputs: torch.Tensor,
        labels: torch.Tensor,
        local_steps: int = 1,
        learning_rate: float | None = None,
        create_graph: bool = False,
    ) -> list[torch.Tensor]:
        """Return what is sent: the gradient, or (w_before - w_after) / learning_rate after `local_steps` SGD steps.

        With `create_graph` the steps are unrolled and can be differentiated (Geiping et al. 2020, Sec. 6).
        """
        if local_steps == 1:
            return list(self.gradients(inputs, labels, create_graph))
        assert learning_rate is not None
        weights, total = list(self.parameters), [torch.zeros_like(parameter) for parameter in self.parameters]
        for _ in range(local_steps):
            step = self.gradients(inputs, labels, create_graph, weights)
            total = [so_far + part for so_far, part in zip(total, step, strict=True)]
            weights = [weight - learning_rate * part for weight, part in zip(weights, step, strict=True)]
            if not create_graph:
                weights = [weight.detach().requires_grad_() for weight in weights]
        return total


Tensors = tuple[torch.Tensor, ...]

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
    """Local steps E between the parameters sent and those returned; each step sees the whole batch."""
    learning_rate: float | None = None
    """Of the local SGD steps; None: the message is a gradient."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "local_steps"):
            require(getattr(self, name) >= 1, f"{name}={getattr(self, name)} must be at least 1")
        require(self.local_steps == 1 or self.learning_rate is not None, "local_steps > 1 needs learning_rate")


@dataclass(frozen=True)
class AttackObservation:
    """A message as the coordinator receives it, with the parameters it had sent.

    message: one tensor per parameter, in the order of `network.named_parameters()`: the gradient of the mean loss over
    the batch, or (w_before - w_after) / learning_rate of a FedAvg update, which for one step is the same.
    """

    network: nn.Module
    """Structure only: its own weights are not used."""
    parameters: Tensors
    message: Tensors
    knows: Knowledge
    loss: str = "cross_entropy"
    defences: tuple[str, ...] = ()
    """Names of what the silo did to the message, as far as the attacker knows (assumed public)."""

    def __post_init__(self) -> None:
        for (name, _), sent, got in zip(self.network.named_parameters(), self.parameters, self.message, strict=True):
            require(sent.shape == got.shape, f"{name}: message {tuple(got.shape)}, parameters {tuple(sent.shape)}")
            if not bool(torch.isfinite(got).all()):
                raise DataError(f"the message is not finite in {name}; nothing can be reconstructed from it")

    @property
    def threat_model(self) -> str:
        """Return the threat model in one sentence."""
        knows = self.knows
        sent = "one gradient" if knows.learning_rate is None else f"an update after {knows.local_steps} local SGD steps"
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
    parameters = tuple(parameter.detach().clone() for parameter in network.parameters())
    stacked = StackedNetwork(network, [parameter[None] for parameter in parameters], LOSSES[loss])
    message = stacked.message(inputs[None], labels[None], knows.local_steps, knows.learning_rate)
    return AttackObservation(network, parameters, tuple(part[0].detach() for part in message), knows, loss)


def check_samples(inputs: torch.Tensor, labels: torch.Tensor, knows: Knowledge, loss: str) -> None:
    """Raise a ConfigError or DataError that names what does not fit."""
    require(loss in LOSSES, f"loss={loss!r} must be one of {', '.join(LOSSES)}")
    shape, wanted = tuple(inputs.shape[1:]), knows.input_shape
    if shape != wanted:
        raise DataError(f"image of size {shape}, the network takes {wanted}; crop or resize it")
    require(len(inputs) == len(labels) == knows.batch_size, f"{len(inputs)} images, {len(labels)} labels, batch of "
            f"{knows.batch_size}: the three must agree")  # fmt: skip
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
    return StackedNetwork(first.network, parameters, LOSSES[first.loss]), message
