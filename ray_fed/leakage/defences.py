"""What a silo can do to a message before it leaves, and what the attacker then sees.

A defence is a function of one message (a tensor per parameter) and a seed. Larger batches and more local steps are
defences too, but of training, not of the message: see `Knowledge`.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from ray_fed.config import require, unknown_name
from ray_fed.leakage.observation import AttackObservation
from ray_fed.leakage.layer_inversion import trace_of
from ray_fed.leakage.targets import trainable
from ray_fed.randomness import derived_seed

Message = Sequence[torch.Tensor]


def clip(message: Message, norm: float, seed: int = 0) -> list[torch.Tensor]:  # noqa: ARG001
    """Scale the message so that its 2-norm is at most `norm`. Directions survive: clipping alone hides nothing."""
    total = torch.stack([part.square().sum() for part in message]).sum().sqrt()
    factor = (norm / total.clamp_min(torch.finfo(total.dtype).tiny)).clamp_max(1.0)
    return [part * factor for part in message]


def noise(message: Message, share: float, seed: int = 0) -> list[torch.Tensor]:
    """Add Gaussian noise; its standard deviation is `share` of the message's root mean square."""
    numbers = sum(part.numel() for part in message)
    scale = share * (torch.stack([part.square().sum() for part in message]).sum() / numbers).sqrt()
    draw = torch.Generator().manual_seed(derived_seed(seed, "noise on a message"))
    return [part + scale * torch.randn(part.shape, generator=draw).to(part) for part in message]


def prune(message: Message, share: float, seed: int = 0) -> list[torch.Tensor]:  # noqa: ARG001
    """Set the `share` of entries that are smallest in size to zero (top-k sparsification)."""
    sizes = torch.cat([part.abs().flatten() for part in message])
    dropped = int(share * len(sizes))
    if dropped == 0:
        return list(message)
    limit = sizes.kthvalue(dropped).values
    return [torch.where(part.abs() > limit, part, 0) for part in message]


def half(message: Message, strength: float = 0, seed: int = 0) -> list[torch.Tensor]:  # noqa: ARG001
    """Send float16."""
    return [part.half().to(part) for part in message]


def int8(message: Message, strength: float = 0, seed: int = 0) -> list[torch.Tensor]:  # noqa: ARG001
    """Send 8-bit integers, one scale per tensor."""
    scales = [part.abs().amax().clamp_min(torch.finfo(part.dtype).tiny) / 127 for part in message]
    return [(part / scale).round() * scale for part, scale in zip(message, scales, strict=True)]


def private(message: Message, multiplier: float, seed: int = 0) -> list[torch.Tensor]:
    """Clip to CLIPPED_TO and add Gaussian noise of `multiplier` times that norm: the Gaussian mechanism."""
    draw = torch.Generator().manual_seed(derived_seed(seed, "private noise"))
    scale = multiplier * CLIPPED_TO
    return [part + scale * torch.randn(part.shape, generator=draw).to(part) for part in clip(message, CLIPPED_TO)]


def noise_multiplier(epsilon: float, delta: float, releases: int) -> float:
    """Return the noise, in units of the clipping norm, with which `releases` messages are (epsilon, delta)-private
    together: exact for Gaussian noise (Dong, Roth & Su 2022, Corollary 1 and Sec. 3.2).

        delta = Phi(-epsilon/mu + mu/2) - exp(epsilon) Phi(-epsilon/mu - mu/2),   mu = sqrt(releases) / multiplier
    """
    low, high = 1e-6, 1e6  # of mu: delta grows with it
    for _ in range(200):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if _delta(epsilon, middle) < delta else (low, middle)
    return math.sqrt(releases) / low


def _delta(epsilon: float, mu: float) -> float:
    second = _normal_cdf(-epsilon / mu - mu / 2)
    grown = math.exp(epsilon + math.log(second)) if second > 0 else 0.0
    return _normal_cdf(-epsilon / mu + mu / 2) - grown


def _normal_cdf(value: float) -> float:
    return math.erfc(-value / math.sqrt(2)) / 2  # erfc keeps its digits in the tail


DEFENCES: dict[str, Callable[[Message, float, int], list[torch.Tensor]]] = {
    "clip": clip,
    "noise": noise,
    "prune": prune,
    "fp16": half,
    "int8": int8,
}
WITHOUT_STRENGTH = ("fp16", "int8", "no_output_bias")
CLIPPED_TO, DELTA = 1.0, 1e-5
"""Norm to which silo_dp clips a message, and the delta of its guarantee."""


@dataclass(frozen=True)
class Defence:
    """A defence and its strength: `noise:0.1`, `prune:0.9`, `clip:1`, `silo_dp:8`, `fp16`, `int8`, `no_output_bias`."""

    name: str
    strength: float = 0.0
    releases: int = 1
    """Messages of one sender over which silo_dp spends its epsilon."""

    def __str__(self) -> str:
        return self.name if self.name in WITHOUT_STRENGTH else f"{self.name}:{self.strength:g}"

    def on_message(self, message: Message, seed: int = 0) -> list[torch.Tensor]:
        """Return what is sent instead of `message`."""
        if self.name == "silo_dp":
            return private(message, noise_multiplier(self.strength, DELTA, self.releases), seed)
        return DEFENCES[self.name](message, self.strength, seed)

    def on(self, observation: AttackObservation, seed: int = 0) -> AttackObservation:
        """Return what the attacker sees of a silo that defends itself."""
        if self.name == "no_output_bias":
            return observation.with_message(_without_bias(observation), str(self))
        return observation.with_message(self.on_message(observation.message, seed), str(self))


def parse_defence(text: str) -> Defence:
    """Return the defence written as NAME or NAME:STRENGTH; ConfigError when there is no such."""
    name, _, strength = text.partition(":")
    known = [*DEFENCES, "silo_dp", "no_output_bias"]
    if name not in known:
        raise unknown_name("defence", name, known)
    if name in WITHOUT_STRENGTH:
        require(not strength, f"defence {text!r}: {name} takes no strength")
        return Defence(name)
    try:
        value = float(strength)
    except ValueError:
        value = -1.0
    require(0 < value < float("inf"), f"defence {text!r} must be {name}:NUMBER with a positive number")
    require(name != "prune" or value < 1, f"defence {text!r}: the share pruned must be below 1")
    return Defence(name, value)


def _without_bias(observation: AttackObservation) -> list[torch.Tensor]:
    """Keep the output bias's gradient back: the label rule of the paper has nothing to read."""
    output = trace_of(observation).output
    names = trainable(observation.network)
    require(output is not None and output.bias in names, "defence no_output_bias: the layer that makes the outputs has "
            "no bias to keep back")  # fmt: skip
    assert output is not None
    withheld = output.bias
    return [
        torch.zeros_like(part) if name == withheld else part
        for name, part in zip(names, observation.message, strict=True)
    ]
