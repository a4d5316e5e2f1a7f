"""One local step on flat vectors: the gradient, what a strategy adds to it, the optimiser.

All tensors are [num_parameters] and keep their place, so that a captured CUDA graph stays valid.
"""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import nn
from torch.nn import functional
from torch.optim.adam import adam
from torch.optim.sgd import sgd

# ---- gradients: in closed form for plain MLPs, by autograd for all else

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class Gradient(Protocol):
    def __call__(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Overwrite the flat gradient with that of the mean loss on (x, y); return the loss, a 0-d tensor."""
        ...


class AutogradGradient:
    """Any module, any loss."""

    def __init__(self, module: nn.Module, loss: Loss, flat_gradient: torch.Tensor):
        self.module, self.loss, self.flat_gradient = module, loss, flat_gradient

    def __call__(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        self.flat_gradient.zero_()
        loss = self.loss(self.module(x), y)
        loss.backward()
        return loss.detach()


class DenseReluMseGradient:
    """Back-propagation written out for Linear-ReLU-...-Linear(1) with the mean squared error.

    Each product lands directly in its slice of the flat gradient, so nothing is zeroed, recorded or accumulated;
    at the sizes of Guo et al. 2022 this is about twice as fast as autograd on a CPU core.

        symbol   code       shape
        h_l      inputs[l]  [batch, width_l], h_0 = x
        W_l, b_l layer      [width_l+1, width_l], [width_l+1]
        delta_l  delta      [batch, width_l+1], dLoss / d(pre-activation of layer l)
        dLoss/dW_l = delta_l^T h_l,  dLoss/db_l = sum_batch delta_l,  delta_l-1 = (delta_l W_l) * (h_l > 0)
    """

    def __init__(self, module: nn.Sequential):
        layers = [layer for layer in module if isinstance(layer, nn.Linear)]
        # Plain lists of detached views: looking parameters up in modules costs more than a small matrix product.
        self.weights = [layer.weight.detach() for layer in layers]
        self.transposed = [weight.t() for weight in self.weights]
        self.biases = [layer.bias.detach() for layer in layers]
        self.weight_gradients = [layer.weight.grad for layer in layers]
        self.bias_gradients = [layer.bias.grad for layer in layers]
        self.last = len(layers) - 1

    @staticmethod
    def fits(module: nn.Module, loss: Loss) -> bool:
        """Whether `module` is Linear-ReLU-...-Linear(1) with biases, and `loss` the mean squared error."""
        if loss is not functional.mse_loss or not isinstance(module, nn.Sequential) or len(module) % 2 == 0:
            return False
        layers = list(module)
        linear = all(isinstance(layer, nn.Linear) and layer.bias is not None for layer in layers[::2])
        one_output = isinstance(layers[-1], nn.Linear) and layers[-1].out_features == 1
        return linear and one_output and all(isinstance(layer, nn.ReLU) for layer in layers[1::2])

    @torch.no_grad()
    def __call__(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        inputs = self.forward(x)
        error = inputs.pop().sub_(y)
        delta = error * (2.0 / len(x))
        for layer in range(self.last, -1, -1):
            torch.mm(delta.t(), inputs[layer], out=self.weight_gradients[layer])
            torch.sum(delta, 0, out=self.bias_gradients[layer])
            if layer:
                delta = torch.mm(delta, self.weights[layer])
                delta = torch.ops.aten.threshold_backward(delta, inputs[layer], 0)
        error = error.view(-1)
        return torch.dot(error, error) / len(x)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Return the input of each layer and, last, the output."""
        values = [x]
        for layer in range(self.last):
            values.append(torch.addmm(self.biases[layer], values[-1], self.transposed[layer]).relu_())
        values.append(torch.addmm(self.biases[self.last], values[-1], self.transposed[self.last]))
        return values


def gradient_for(module: nn.Module, loss: Loss, flat_gradient: torch.Tensor) -> Gradient:
    """Return the fastest exact gradient for this module and loss; the module must be bound (layout.bind)."""
    if DenseReluMseGradient.fits(module, loss):
        return DenseReluMseGradient(module)  # type: ignore[arg-type]
    return AutogradGradient(module, loss, flat_gradient)


# ---- what a strategy adds to the gradient of every local step


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


class CommonMomentum(ControlVariate):
    """The silo's half of ScaffoldAdam (strategies/common_moments.py): control variates that are first moments of Adam.

    With a = beta_1^K, K the steps of a round, c_i+ = a c_i + (1 - a) mean(g_i): where a round is one step, Adam's own
    first moment of the silo's gradients, and the mean over the round where it is many. The answer is c_i+ itself, so
    that the server's mean of all is right whatever any silo forgot. One that has no c_i takes c: it corrects nothing
    for a round.
    """

    def __init__(self, flat: torch.Tensor):
        super().__init__(flat)
        self.known = torch.zeros(())
        """1 once `own` is this silo's."""

    def start(self) -> None:
        if not self.known:
            self.own.copy_(self.common)
        super().start()

    def finish(self, num_steps: int) -> None:
        """Renew c_i, which is also the answer in `common`."""
        if num_steps:
            self.own.lerp_(self.total / num_steps, 1 - BETA_1**num_steps)
            self.known.fill_(1)
        self.common.copy_(self.own)


# ---- optimisers: PyTorch's own fused kernels without the per-step bookkeeping of its classes

BETA_1, BETA_2 = 0.9, 0.999
COMMON_BETA_2 = 0.99
"""Of a second moment that all silos share: it has to follow the corrected gradients from one exchange to the next."""


class FlatOptimizer(Protocol):
    moments: list[torch.Tensor]
    """State that can be averaged like parameters; each [num_parameters]."""
    learning_rate: float | torch.Tensor
    """Of the next step; a tensor on a GPU, where a captured graph reads it."""

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
    """Adam (Kingma & Ba 2015, Algorithm 1), beta_1 = 0.9, epsilon = 1e-8, beta_2 as given.

    paper   code                    shape
    theta   flat                    float32 [num_parameters]
    m, v    moments[0], moments[1]  float32 [num_parameters]
    t       steps                   scalar
    """

    def __init__(self, flat: torch.Tensor, gradient: torch.Tensor, learning_rate: float):
        self.flat, self.gradient, self.learning_rate = flat, gradient, _rate(learning_rate, flat.device)
        self.beta_2 = BETA_2
        self.moments = [torch.zeros_like(flat), torch.zeros_like(flat)]
        self.steps = torch.zeros((), dtype=torch.float32, device=flat.device)
        self.capturable = flat.device.type == "cuda"

    @torch.no_grad()
    def step(self) -> None:
        adam(
            [self.flat], [self.gradient], [self.moments[0]], [self.moments[1]], [], [self.steps],
            fused=True, capturable=self.capturable, amsgrad=False, beta1=BETA_1, beta2=self.beta_2,
            lr=self.learning_rate, weight_decay=0.0, eps=1e-8, maximize=False,
        )  # fmt: skip

    def begin(self, steps: int, first: torch.Tensor) -> None:
        """Go on after `steps` steps, with `first` as first moment."""
        self.moments[0].copy_(first)
        self.steps.fill_(steps)

    def reset(self) -> None:
        for tensor in self.state().values():
            tensor.zero_()

    def state(self) -> dict[str, torch.Tensor]:
        return {"m": self.moments[0], "v": self.moments[1], "t": self.steps}


class FlatSgd:
    """Plain stochastic gradient descent: theta <- theta - lr * g."""

    def __init__(self, flat: torch.Tensor, gradient: torch.Tensor, learning_rate: float):
        self.flat, self.gradient, self.learning_rate = flat, gradient, _rate(learning_rate, flat.device)
        self.moments: list[torch.Tensor] = []

    @torch.no_grad()
    def step(self) -> None:
        sgd(
            [self.flat], [self.gradient], [None], fused=True, weight_decay=0.0, momentum=0.0,
            lr=self.learning_rate,
            dampening=0.0, nesterov=False, maximize=False,
        )  # fmt: skip

    def reset(self) -> None:
        """Nothing to forget."""

    def state(self) -> dict[str, torch.Tensor]:
        return {}


def _rate(learning_rate: float, device: torch.device) -> float | torch.Tensor:
    return torch.tensor(learning_rate, device=device) if device.type == "cuda" else learning_rate


def set_rate(optimizer: FlatOptimizer, learning_rate: float) -> None:
    """Set the learning rate of the next steps, in place where a captured graph reads it."""
    if isinstance(optimizer.learning_rate, torch.Tensor):
        optimizer.learning_rate.fill_(learning_rate)
    else:
        optimizer.learning_rate = learning_rate


def flat_optimizer(name: str, flat: torch.Tensor, gradient: torch.Tensor, learning_rate: float) -> FlatOptimizer:
    """Return "adam" or "sgd" on `flat`; ValueError for another name."""
    kinds = {"adam": FlatAdam, "sgd": FlatSgd}
    if name not in kinds:
        raise ValueError(f"optimizer={name!r} must be one of {', '.join(kinds)}")
    return kinds[name](flat, gradient, learning_rate)
