"""The clipped sum of single examples' gradients of a plain MLP, without ever holding one of them.

The gradient of one example in a layer is an outer product, so its length is the product of two lengths (Goodfellow
2015, "Efficient per-example gradient computations"): with h_l the layer's input and delta_l the back-propagated error,

    |g(x)|^2 = sum_l |delta_l|^2 (|h_l|^2 + 1)
    sum_x s(x) g(x) = (s * delta_l)^T h_l for weights, s^T delta_l for biases

so clipping costs one more matrix product per layer, where gradients of single examples would cost one per example.
"""

import torch

from ray_fed.learning.steps import DenseReluMseGradient


class DenseClippedSum:
    """For networks that `DenseReluMseGradient.fits`, bound (layout.bind) to `flat_gradient`, which is overwritten."""

    def __init__(self, dense: DenseReluMseGradient, flat_gradient: torch.Tensor):
        self.dense, self.flat_gradient = dense, flat_gradient

    @torch.no_grad()
    def __call__(self, x: torch.Tensor, y: torch.Tensor, clip: float) -> torch.Tensor:
        """Return sum_x g(x) min(1, clip / |g(x)|), [num_parameters]; g of each example's own squared error."""
        inputs = self.dense.forward(x)
        deltas = self._deltas(inputs, 2.0 * (inputs.pop() - y))
        lengths = sum(
            delta.square().sum(1) * (given.square().sum(1) + 1) for delta, given in zip(deltas, inputs, strict=True)
        )
        scale = clipping_scale(torch.as_tensor(lengths).sqrt(), clip)[:, None]
        usable = scale > 0
        for layer, delta in enumerate(deltas):
            scaled = torch.where(usable, delta * scale, 0.0)
            given = torch.where(usable, inputs[layer], 0.0)
            torch.mm(scaled.t(), given, out=self.dense.weight_gradients[layer])
            torch.sum(scaled, 0, out=self.dense.bias_gradients[layer])
        return self.flat_gradient.clone()

    def _deltas(self, inputs: list[torch.Tensor], error: torch.Tensor) -> list[torch.Tensor]:
        deltas = [error]
        for layer in range(self.dense.last, 0, -1):
            back = torch.mm(deltas[0], self.dense.weights[layer])
            deltas.insert(0, torch.ops.aten.threshold_backward(back, inputs[layer], 0))
        return deltas


def clipping_scale(lengths: torch.Tensor, clip: float) -> torch.Tensor:
    """Return min(1, clip / length), and 0 for a length that is not finite: an overflowing gradient must not take the
    others with it, nor leave with a length of its own choice."""
    return torch.where(lengths.isfinite(), (clip / lengths.clamp_min(1e-30)).clamp_max(1.0), 0.0)
