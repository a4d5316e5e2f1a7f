"""Labels in closed form: read from the last layer's gradient, without reconstructing anything.

For cross-entropy on softmax outputs p and one-hot labels y, averaged over a batch of B:

    dL/db_i = mean_j (p_ji - [i = y_j])                 WDLG, Eq. (3); for B = 1 negative only for i = y
    dL/dW_i = mean_j (p_ji - [i = y_j]) a_j             iDLG, Eq. (4); the same sign where features a_j >= 0

    paper   code         shape
    b       bias         [num_classes]
    W       rows         [num_classes, num_features]
    C, n    num_classes, num_features
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.func import functional_call

from ray_fed.config import require
from ray_fed.errors import ConfigError
from ray_fed.leakage.layer_inversion import trace_of
from ray_fed.leakage.observation import AttackObservation
from ray_fed.leakage.targets import attackable, trainable

RULES = ("bias_sign", "row_sign", "closed_form")
NUM_SURROGATES = 32
"""Guessed inputs from which the mean output is estimated."""


@dataclass(frozen=True)
class OutputGradients:
    """The part of a message that belongs to the output layer."""

    rows: torch.Tensor
    """[n, num_classes, num_features]"""
    bias: torch.Tensor | None
    """[n, num_classes]; None where the layer has no bias, or its gradient was kept back."""
    layer: str


def output_gradients(observations: Sequence[AttackObservation]) -> OutputGradients:
    """Return the gradients of the layer that makes the outputs; ConfigError, with the reason, where no labels can be
    read from them."""
    first = observations[0]
    output = trace_of(first).output
    require(output is not None, "no layer with weights makes the network's outputs alone, so no labels can be read")
    assert output is not None
    layer = output.weight.rpartition(".")[0] or output.weight
    names = trainable(first.network)
    require(output.is_logits, f"the outputs are not those of layer '{layer}' itself: something that is no change of "
            "shape comes after it, so the signs of its gradient are not those of the labels")  # fmt: skip
    require(output.weight in names, f"the output layer '{layer}' is not trained: its gradient is not in the message")
    rows = torch.stack([one.message[names.index(output.weight)] for one in observations])
    require(rows.shape[1] == first.knows.num_classes, f"the output layer '{layer}' has {rows.shape[1]} outputs for "
            f"{first.knows.num_classes} classes")  # fmt: skip
    bias = None
    if output.bias in names:
        bias = torch.stack([one.message[names.index(output.bias)] for one in observations])
    return OutputGradients(rows.flatten(2), bias if bias is not None and bool(bias.any()) else None, layer)


def infer_labels(observations: Sequence[AttackObservation], rule: str = "closed_form") -> torch.Tensor:
    """Return the labels behind each message [n, samples], ascending; a class that occurs twice is named twice.

    bias_sign: the class of the negative output-bias gradient (WDLG). row_sign: the class whose row of the last weight
    gradient has a negative sum (iDLG). closed_form: bias_sign where there is a bias, else row_sign. For more than one
    sample, counts per class are estimated (`label_counts`).
    ConfigError for bias_sign without an output bias, or a loss other than cross-entropy.
    """
    first = observations[0]
    require(rule in RULES, f"label rule {rule!r} must be one of {', '.join(RULES)}")
    require(first.loss == "cross_entropy", f"label rule {rule} needs loss=cross_entropy, not {first.loss}")
    gradients = output_gradients(observations)
    if rule == "bias_sign" and gradients.bias is None:
        raise ConfigError(
            f"label rule bias_sign needs a bias in the output layer '{gradients.layer}', and its gradient in the "
            "message; there is none: use row_sign (iDLG) or closed_form"
        )
    if first.knows.batch_size == 1:
        signed = gradients.rows.sum(2) if gradients.bias is None or rule == "row_sign" else gradients.bias
        return signed.argmin(1, keepdim=True)
    return _classes_of_counts(label_counts(observations, rule), first.knows.batch_size)


def label_steps(num_classes: int, num_features: int) -> dict[str, int]:
    """Return how many entries each rule looks at (the paper's Table 1): C for the bias, C x n for the rows."""
    return {"bias_sign": num_classes, "row_sign": num_classes * num_features}


def label_counts(observations: Sequence[AttackObservation], rule: str = "closed_form") -> torch.Tensor:
    """Return the estimated number of samples of each class [n, num_classes]; rows sum to the number of samples.

    From the bias gradient: count_i = B (mean p_i - dL/db_i). The mean output p is not known; that of inputs around the
    middle of the value range is taken instead (Wainakh et al. 2022 estimate it in the same way). Negative entries name
    classes that are surely there; the rest goes one by one to the class that is short of most.
    """
    first, gradients = observations[0], output_gradients(observations)
    samples, steps = first.knows.batch_size, first.knows.local_steps
    expected, features = _surrogate_outputs(observations)
    if gradients.bias is not None and rule != "row_sign":
        slope, certain = gradients.bias / steps, gradients.bias < 0
    else:
        slope, certain = gradients.rows.sum(2) / features[:, None] / steps, gradients.rows.sum(2) < 0
    if first.knows.optimizer == "adam":  # a step of Adam keeps signs, and no sizes
        return _rounded(expected + certain, certain, samples)
    return _rounded(samples * (expected - slope), certain, samples)


def _surrogate_outputs(observations: Sequence[AttackObservation]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean softmax output [n, num_classes] and mean sum of last features [n] for inputs around the middle."""
    knows = observations[0].knows
    if knows.is_tokens:
        even = observations[0].parameters[0].new_full((len(observations), knows.num_classes), 1 / knows.num_classes)
        return even, torch.ones_like(even[:, 0])
    draw = torch.Generator().manual_seed(0)
    # Nearly constant inputs of different brightness: what an image looks like to a first guess.
    brightness = torch.rand(NUM_SURROGATES, *[1 for _ in knows.input_shape], generator=draw)
    noise = torch.rand(NUM_SURROGATES, *knows.input_shape, generator=draw)
    inputs = (0.75 * brightness + 0.25 * noise).to(observations[0].parameters[0])
    found = [_outputs_and_features(one, inputs) for one in observations]
    return torch.stack([mean for mean, _ in found]), torch.stack([total for _, total in found])


@torch.no_grad()
def _outputs_and_features(observation: AttackObservation, inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the mean softmax output [num_classes] and the mean sum of the output layer's inputs (0-d)."""
    totals: list[torch.Tensor] = []
    output = trace_of(observation).output
    assert output is not None
    network = attackable(observation.network)
    layer = network.get_submodule(output.weight.rpartition(".")[0])
    hook = layer.register_forward_pre_hook(lambda _, args: totals.append(args[0].flatten(1).sum(1).mean()))
    named = dict(zip(trainable(observation.network), observation.parameters, strict=True))
    try:
        outputs = functional_call(network, {**observation.constants, **named}, (inputs,))
    finally:
        hook.remove()
    return outputs.softmax(1).mean(0), totals[0]


def _rounded(estimate: torch.Tensor, certain: torch.Tensor, samples: int) -> torch.Tensor:
    counts = certain.long()
    for problem in range(len(counts)):
        row, wanted = counts[problem], estimate[problem]
        while int(row.sum()) > samples:  # more negative entries than samples: noise; drop the least certain
            row[torch.where(row > 0, wanted, torch.inf).argmin()] = 0
        while int(row.sum()) < samples:
            row[(wanted - row).argmax()] += 1
    return counts


def _classes_of_counts(counts: torch.Tensor, samples: int) -> torch.Tensor:
    classes = torch.arange(counts.shape[1], device=counts.device)
    return torch.stack([classes.repeat_interleave(row) for row in counts]).reshape(len(counts), samples)
