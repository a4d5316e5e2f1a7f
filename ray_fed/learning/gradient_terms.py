"""What a strategy adds to the gradient of every local step. All tensors are [num_parameters] and keep their place, so
that a captured CUDA graph stays valid."""

from typing import Protocol

import torch


class GradientTerm(Protocol):
    def start(self) -> None:
        """Begin a round: the parameters are those received."""
        ...

    def __call__(self, gradient: torch.Tensor) -> None:
        """Change the gradient of one step, in place."""
        ...

    def finish(self, num_steps: int) -> None:
        """End a round of `num_steps` steps."""
        ...


class ProximalPull:
    """FedProx (Li et al. 2020, Eq. 2): h(w) = F(w) + mu/2 |w - w_t|^2, so g <- g + mu (w - w_t).

    paper  code         unit
    w      flat         unit of the parameters
    w_t    anchor       unit of the parameters
    mu     proximal_mu  1 / unit of the learning rate
    """

    def __init__(self, flat: torch.Tensor, proximal_mu: float):
        self.flat, self.proximal_mu = flat, proximal_mu
        self.anchor = flat.clone()

    def start(self) -> None:
        self.anchor.copy_(self.flat)

    def __call__(self, gradient: torch.Tensor) -> None:
        gradient.add_(self.flat - self.anchor, alpha=self.proximal_mu)

    def finish(self, num_steps: int) -> None:
        """Nothing is kept between rounds."""


class ControlVariate:
    """The silo's half of SCAFFOLD (Karimireddy et al. 2020, Algorithm 1, lines 10-13).

        paper  code      meaning
        g_i    gradient  gradient of a mini-batch
        c      common    the server's control variate, received each round
        c_i    own       the silo's, kept between rounds

    Line 10: y <- y - eta_l (g_i(y) - c_i + c). Line 12, option II: c_i+ = c_i - c + (x - y) / (K eta_l), which for SGD
    is exactly the mean of the g_i over the round's K steps. We take that mean as the definition: the two agree for SGD,
    and the mean is also right for Adam, whose steps are not proportional to gradients.
    """

    def __init__(self, flat: torch.Tensor):
        self.common, self.own, self.total = (torch.zeros_like(flat) for _ in range(3))
        self.correction = torch.zeros_like(flat)

    def start(self) -> None:
        torch.sub(self.common, self.own, out=self.correction)
        self.total.zero_()

    def __call__(self, gradient: torch.Tensor) -> None:
        self.total.add_(gradient)
        gradient.add_(self.correction)

    def finish(self, num_steps: int) -> None:
        """Renew c_i; `common` becomes the answer c + (c_i+ - c_i), so that the server sees the move it expects."""
        if num_steps:
            mean = self.total / num_steps
            self.common.add_(mean - self.own)
            self.own.copy_(mean)
