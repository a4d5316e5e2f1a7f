"""Adam and SGD on one flat vector: PyTorch's own fused kernels without the per-step bookkeeping of its classes."""

from typing import Protocol

import torch
from torch.optim.adam import adam
from torch.optim.sgd import sgd


class FlatOptimizer(Protocol):
    moments: list[torch.Tensor]
    """State that can be averaged like parameters; each [num_parameters]."""

    def step(self) -> None:
        """Move the parameters by the gradient."""
        ...

    def reset(self) -> None:
        """Forget the state, in place: a captured CUDA graph keeps pointing at it."""
        ...

    def state(self) -> dict[str, torch.Tensor]:
        """Return the tensors that make up the state, by name; writing into them restores a state."""
        ...


class FlatAdam:
    """Adam (Kingma & Ba 2015, Algorithm 1), beta_1 = 0.9, beta_2 = 0.999, epsilon = 1e-8.

    paper   code                    shape
    theta   flat                    float32 [num_parameters]
    m, v    moments[0], moments[1]  float32 [num_parameters]
    t       steps                   scalar
    """

    def __init__(self, flat: torch.Tensor, gradient: torch.Tensor, learning_rate: float):
        self.flat, self.gradient, self.learning_rate = flat, gradient, learning_rate
        self.moments = [torch.zeros_like(flat), torch.zeros_like(flat)]
        self.steps = torch.zeros((), dtype=torch.float32, device=flat.device)
        self.capturable = flat.device.type == "cuda"

    @torch.no_grad()
    def step(self) -> None:
        adam(
            [self.flat], [self.gradient], [self.moments[0]], [self.moments[1]], [], [self.steps],
            fused=True, capturable=self.capturable, amsgrad=False, beta1=0.9, beta2=0.999, lr=self.learning_rate,
            weight_decay=0.0, eps=1e-8, maximize=False,
        )  # fmt: skip

    def reset(self) -> None:
        for tensor in self.state().values():
            tensor.zero_()

    def state(self) -> dict[str, torch.Tensor]:
        return {"m": self.moments[0], "v": self.moments[1], "t": self.steps}


class FlatSgd:
    """Plain stochastic gradient descent: theta <- theta - lr * g."""

    def __init__(self, flat: torch.Tensor, gradient: torch.Tensor, learning_rate: float):
        self.flat, self.gradient, self.learning_rate = flat, gradient, learning_rate
        self.moments: list[torch.Tensor] = []

    @torch.no_grad()
    def step(self) -> None:
        sgd(
            [self.flat], [self.gradient], [None], fused=True, weight_decay=0.0, momentum=0.0, lr=self.learning_rate,
            dampening=0.0, nesterov=False, maximize=False,
        )  # fmt: skip

    def reset(self) -> None:
        """Nothing to forget."""

    def state(self) -> dict[str, torch.Tensor]:
        return {}


def flat_optimizer(name: str, flat: torch.Tensor, gradient: torch.Tensor, learning_rate: float) -> FlatOptimizer:
    """Return "adam" or "sgd" on `flat`; ValueError for another name."""
    kinds = {"adam": FlatAdam, "sgd": FlatSgd}
    if name not in kinds:
        raise ValueError(f"optimizer={name!r} must be one of {', '.join(kinds)}")
    return kinds[name](flat, gradient, learning_rate)
