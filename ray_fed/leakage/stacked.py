"""Many networks of one structure, each with its own weights and inputs, as one batched computation."""

from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch.func import functional_call, vmap

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

        labels: classes [n, batch, ...], soft classes [n, batch, num_classes, ...] or targets, as the loss wants them.
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
