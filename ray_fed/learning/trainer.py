"""Local training inside a silo: mini-batch steps on a flat parameter vector.

Paper (Guo et al. 2022, Algorithm 2): UpdateParameters(w_c); TrainModel(); w_c = GetParameters(). The paper names
neither its optimiser nor its scaling; Adam is ours (facts in decisions/0003).
"""

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from math import cos, isqrt, pi
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from ray_fed.config import require
from ray_fed.learning.cuda_graphs import GraphedSteps, wants_graphs
from ray_fed.learning.layout import BufferPolicy, Layout, bind, bind_buffers, integer_buffers
from ray_fed.learning.private_steps import PrivateGradient, PrivateSteps, chosen_rows
from ray_fed.learning.steps import (
    COMMON_BETA_2,
    CommonMomentum,
    ControlVariate,
    DenseReluMseGradient,
    FlatAdam,
    FlatOptimizer,
    Gradient,
    GradientTerm,
    Loss,
    ProximalPull,
    flat_optimizer,
    gradient_for,
    set_rate,
)
from ray_fed.privacy.compression import Compression, decode
from ray_fed.privacy.noise import NoiseSource
from ray_fed.randomness import derived_seed, generator

DECAYS = ("none", "cosine")
NUMBER_NAME, MOST_NUMBERS = re.compile(r"[A-Za-z]\w{0,63}", re.ASCII), 64
PORTION_VALUES = 1 << 22
"""Input values that go through a network at once outside of training."""


@dataclass(frozen=True)
class TrainingPlan:
    """How one silo works through one training run: everything its steps depend on besides data and parameters.
    ConfigError for options that do not go together."""

    seed: int
    """Seed of the shuffles."""
    epochs: int
    """Passes over the silo's rows in the whole run."""
    steps_per_epoch: int
    """Mini-batches per pass; the rows are dealt into this many batches of equal size (+-1)."""
    num_rounds: int
    """Exchanges in the whole run; the steps are dealt over them (`steps_of_round`)."""
    learning_rate: float = 1e-3
    """Of the silo's own optimiser."""
    optimizer: str = "adam"
    """adam | sgd"""
    optimizer_state: str = "keep"
    """keep | reset | average | common: what happens to Adam's moments when new global parameters arrive. common: the
    second is averaged, the first begins as the common control variate."""
    proximal_mu: float = 0.0
    """FedProx pull towards the received parameters (Li et al. 2020); 0 is FedAvg."""
    keep_local: tuple[str, ...] = ()
    """Names of parameters that every silo keeps for itself, e.g. the output bias, which absorbs the reference energy of
    its database (the idea of FedBN, Li et al. 2021, applied to other parameters)."""
    buffers: BufferPolicy = "average"
    """average | local | recompute: what happens to BatchNorm's running statistics and other floating buffers."""
    control_variates: bool = False
    """SCAFFOLD: correct each gradient by the difference of the server's and the silo's control variates."""
    private: PrivateSteps | None = None
    """Example-level differential privacy of every step: clipped gradients of single examples, noise, secret batches."""
    compression: Compression | None = None
    """How a silo codes its move for the way to the coordinator; none sends it as float32."""
    validation_share: float = 0.0
    """Share of the rows, at most half, that is kept back to end the training where it is best on them
    (early_stopping.py); 0 trains on all to the end. For models that no others take part in."""
    sums: int = 0
    """Most values of an answer, where silos answer sums of whole numbers that are added up (boosted trees). Such an
    answer has as many values as the first number of the received vector says. 0: parameters, which are averaged."""
    all_sums: int = 0
    """Most values of all such answers together."""

    decay: str = "none"
    """none | cosine: how the learning rate falls over the steps of the run, to 0."""
    config: tuple[str, ...] = ()
    """Names of numbers that this silo is given in each round, behind the vector that it starts from."""
    told: tuple[str, ...] = ()
    """Names of numbers that it tells of its training in each round, behind the vector that it answers with."""

    def __post_init__(self) -> None:
        self._check_numbers()
        require(self.decay in DECAYS, f"decay={self.decay!r} must be one of {', '.join(DECAYS)}")
        is_common, alone = self.optimizer_state == "common", "optimizer_state=common is ScaffoldAdam's, with Adam"
        require(not is_common or (self.control_variates and self.optimizer == "adam"), alone)
        both = self.control_variates and self.optimizer_state == "average"
        require(not both, "optimizer_state=average does not go with SCAFFOLD: choose keep or reset")
        share = self.validation_share
        require(0 <= share <= 0.5, f"validation_share={share} must lie between 0 and 0.5")
        require(not share or self.private is None, "validation_share: private steps may not look at rows kept back")
        averages = self.optimizer_state == "average" or self.control_variates
        reason = "a coded second moment can turn negative, and control variates must be exact"
        require(self.compression is None or not averages, f"compression sends parameters alone: {reason}")

    def _check_numbers(self) -> None:
        for names in (self.config, self.told):
            fits = len(set(names)) == len(names) <= MOST_NUMBERS and all(map(NUMBER_NAME.fullmatch, names))
            said = f"must be up to {MOST_NUMBERS} different names of letters, digits and '_'"
            require(fits, f"names of numbers {list(names)} {said}")
        if self.num_beside:
            said = "numbers of single silos beside the parameters do not go with"
            require(self.private is None, f"{said} noise in every step: they have none")
            require(self.compression is None and not self.sums, f"{said} coded updates, or with sums")

    @property
    def num_beside(self) -> int:
        """Numbers behind a vector, `config` and then `told`, both ways."""
        return len(self.config) + len(self.told)

    @property
    def total_steps(self) -> int:
        """Steps of the silo in the whole run."""
        return self.epochs * self.steps_per_epoch

    def steps_of_round(self, server_round: int) -> range:
        """Return the global step numbers of round 1..num_rounds; the rounds together cover every step once."""
        return range(self._steps_until(server_round - 1), self._steps_until(server_round))

    @property
    def most_steps(self) -> int:
        """No round has more steps: the first is the longest, to a rounding."""
        mean = -(-self.total_steps // self.num_rounds)
        return max(mean, self._steps_until(1) + 1) if self.decay != "none" else mean

    def _steps_until(self, server_round: int) -> int:
        """Return the steps of a round and those before it. Where the rate decays, rounds get shorter, from twice to two
        thirds of their mean: small steps undo what silos' own ways have left, if they meet often enough then. With u
        the share of the steps, u (1 + u) / 2 of the exchanges are over; whole numbers, so that all machines agree."""
        steps, rounds, server_round = self.total_steps, self.num_rounds, max(server_round, 0)
        if self.decay == "none" or steps < 2 * rounds:
            return server_round * steps // rounds
        return (isqrt(steps * steps * (rounds + 8 * server_round) // rounds) - steps) // 2

    def rate(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0."""
        falls = (1 + cos(pi * min(step, self.total_steps) / self.total_steps)) / 2 if self.decay == "cosine" else 1.0
        return self.learning_rate * falls


@dataclass(frozen=True)
class FitResult:
    """What a stretch of local steps came to."""

    num_steps: int
    """Optimiser steps taken."""
    num_examples: int
    """Rows seen, counted once per step they took part in."""
    mean_loss: float
    """Mean training loss over the steps: of squared errors, in the square of what the network learns."""


class Trainer(Protocol):
    """What trains in one session of a silo: a network's mini-batch steps, a tree builder, a user's own loop.

    Law: from equal vectors and equal local states, `fit_round` returns equal bits: a round may be done twice.
    """

    plan: TrainingPlan
    layout: Layout
    """Names, shapes and types of what travels; must be the coordinator's."""

    def fit_round(self, vector: np.ndarray, server_round: int) -> tuple[np.ndarray, FitResult]:
        """Train one round from `vector` (float32, read-only); return a new vector, what happened."""
        ...

    def predict(self, features: Any, vector: np.ndarray) -> torch.Tensor:
        """Return the outputs [rows, ...] of the model at `vector`; nothing is changed."""
        ...

    def compress(self, received: np.ndarray, vector: np.ndarray) -> np.ndarray | None:
        """Return the move from `received` to `vector` in fewer bytes, uint8; None: the vector itself travels."""
        ...

    def local_state(self) -> dict[str, torch.Tensor]:
        """Return what stays with the silo between rounds, by name; writing into the tensors restores a state."""
        ...

    def forget(self) -> None:
        """Bring the local state back to what it was before the first round."""
        ...


class TakesNumbers(Protocol):
    """A trainer that silos' own numbers of a round mean something to."""

    def check_numbers(self, config: Sequence[str], told: Sequence[str]) -> None:
        """Raise ConfigError for a name that means nothing."""
        ...

    def take(self, config: Mapping[str, float]) -> None:
        """Take the numbers of the round that comes."""
        ...

    def tell(self) -> Mapping[str, float]:
        """Return what is told of the round that was trained, by name."""
        ...


STEP_NUMBERS = ("learning_rate", "num_steps")
"""What a strategy may give a silo that trains in steps: the rate of the round, and the most steps of it."""


class LocalTrainer:
    """A bound model, its optimiser and the silo's rows on one device.

    `features` [rows, ...] and `targets` [rows, ...] are tensors on `device`. The vector that travels is a row of
    blocks, P parameters and B travelling buffers long:

        parameters [P]   buffers [B]   Adam's moments [2P], if averaged; of common ones the second [P] and B zeros
        control variate [P] and B zeros, in SCAFFOLD
    """

    def __init__(
        self,
        module: nn.Module,
        loss: Loss,
        features: torch.Tensor,
        targets: torch.Tensor,
        plan: TrainingPlan,
        silo: str,
    ):
        self.plan, self.silo, self.loss = plan, silo, loss
        self.rate_factor, self.most_steps = 1.0, None
        self.features, self.targets = features, targets
        self.layout = Layout.of(module, plan.buffers)
        self.module = module
        self.flat, self.flat_gradient = bind(module, features.device)
        self.buffers, self.integers = bind_buffers(module), integer_buffers(module)
        self.optimizer = self._optimizer()
        self.control = control_variate(plan, self.flat)
        if plan.optimizer_state == "common":
            assert isinstance(self.optimizer, FlatAdam)
            self.optimizer.beta_2 = COMMON_BETA_2
        self.terms: list[GradientTerm] = [ProximalPull(self.flat, plan.proximal_mu)] if plan.proximal_mu else []
        self.terms += [self.control] if self.control else []
        gradient = self._gradient()
        self.gradient, self._cuda_graphs = gradient, self._graphs_of_steps()
        # Dropout and other noise inside a module draw from the global generator, which we lend it for a round.
        self._draws = not isinstance(gradient, DenseReluMseGradient)
        self._own = _mask(module, plan.keep_local, self.flat.device)
        self.own_values = self.flat[self._own].clone()
        """The silo's own values of `plan.keep_local`; what it receives for them is ignored."""
        self.left_out = torch.zeros(sum(block.numel() for block in self._blocks()) if plan.compression else 0)
        """What the codes sent so far left out of the silo's moves."""
        self._first_state = {name: tensor.clone() for name, tensor in self.own_state().items()}
        if len(features) < 2 * plan.steps_per_epoch and plan.private is None:
            normalise_single_samples(module)

    def _optimizer(self) -> FlatOptimizer:
        return flat_optimizer(self.plan.optimizer, self.flat, self.flat_gradient, self.plan.learning_rate)

    def _gradient(self) -> Gradient:
        if self.plan.private is None:
            return gradient_for(self.module, self.loss, self.flat_gradient)
        self._noise = NoiseSource.of_process(self.silo)
        batch = self.plan.private.num_examples / self.plan.steps_per_epoch
        return PrivateGradient(self.module, self.loss, self.flat_gradient, self.plan.private, batch, self._noise)

    # ---- numbers of this silo's own, in each round

    def check_numbers(self, config: Sequence[str], told: Sequence[str]) -> None:
        """See TakesNumbers."""
        own = sorted({*config} - {*STEP_NUMBERS})
        remedy = "a loop of your own, TorchTask(fit=), has others in context.config"
        require(not own, f"steps know {' and '.join(STEP_NUMBERS)}, and no {', '.join(own)}; {remedy}")
        remedy = "loss, num_steps and num_examples are in every update; others come from a loop of your own"
        require(not told, f"steps tell no {', '.join(told)}: {remedy}")

    def take(self, config: Mapping[str, float]) -> None:
        """ConfigError for a rate or a number of steps that is not positive."""
        rate, most = config.get("learning_rate", self.plan.learning_rate), config.get("num_steps")
        said = "must be positive; leave a silo out by not sending it a vector"
        require(rate > 0, f"learning_rate={rate:g} of silo '{self.silo}' {said}")
        require(most is None or most >= 1, f"num_steps={most} of silo '{self.silo}' {said}")
        self.rate_factor, self.most_steps = rate / self.plan.learning_rate, None if most is None else int(most)

    def tell(self) -> Mapping[str, float]:
        return {}

    def steps_of(self, server_round: int) -> range:
        """Return the steps of a round, as far as the strategy lets this silo take them."""
        return self.plan.steps_of_round(server_round)[: self.most_steps]

    def fit_round(self, vector: np.ndarray, server_round: int) -> tuple[np.ndarray, FitResult]:
        return self.fit(vector, self.steps_of(server_round))

    def fit(self, vector: np.ndarray, steps: range) -> tuple[np.ndarray, FitResult]:
        """Load `vector`, take `steps`, return the new vector (a fresh array) and what happened.

        The received array is copied, never written to: it may be the shared memory of every silo on this host.
        """
        self.load(vector)
        self._begin(steps)
        self.module.train()
        num_examples, loss_sum = 0, torch.zeros((), device=self.flat.device)
        with self._lent_generator(steps.start):
            for step, (x, y) in zip(steps, self._batches(steps), strict=True):
                if self.plan.decay != "none" or self.plan.config:
                    set_rate(self.optimizer, self.plan.rate(step) * self.rate_factor)
                num_examples += len(y)  # of graphs, x has a row per atom
                loss_sum += self.step(x, y)
        for term in self.terms:
            term.finish(len(steps))
        if self.plan.private:  # how many rows chance took is as secret as which, and as how many there are
            num_examples = max(1, self.plan.private.num_examples * len(steps) // self.plan.steps_per_epoch)
        mean_loss = float(loss_sum) / max(1, len(steps))
        self.own_values.copy_(self.flat[self._own])
        return self.vector(), FitResult(len(steps), num_examples, mean_loss)

    def _begin(self, steps: range) -> None:
        """Bring what steps build on to where it stands before the first of them."""
        if self.control and self.plan.keep_local:  # of what is its own, a silo has no common gradient to follow
            self.control.common[self._own] = self.control.own[self._own]
        for term in self.terms:
            term.start()
        if self.plan.optimizer_state == "common":
            assert self.control is not None
            assert isinstance(self.optimizer, FlatAdam)
            self.optimizer.begin(steps.start, self.control.common)

    def compress(self, received: np.ndarray, vector: np.ndarray) -> np.ndarray | None:
        """Return the code of the move from `received` to `vector` and of what was left out before, uint8; None where
        the plan does not compress."""
        if self.plan.compression is None:
            return None
        move = vector - received + self.left_out.numpy()
        code = self.plan.compression.encode(move)
        if np.isfinite(move).all():  # else the guard refuses the update, and nothing of it must stay
            self.left_out.copy_(torch.from_numpy(move - decode(code, len(move))))
        return code

    def load(self, vector: np.ndarray) -> None:
        """Set the travelling blocks from a received vector, by the plan's optimiser-state and buffer policies."""
        blocks = self._blocks()
        expected = sum(block.numel() for block in blocks)
        if vector.shape != (expected,) or vector.dtype != np.float32:
            raise ValueError(f"expected float32 [{expected}], got {vector.dtype} {list(vector.shape)}")
        copy_blocks(blocks, vector)
        self._restore_own()
        if self.plan.optimizer_state == "reset":
            self.optimizer.reset()

    def vector(self) -> np.ndarray:
        """Return a copy of the travelling blocks as one float32 array."""
        return np.concatenate([block.cpu().numpy() for block in self._blocks()])

    def local_state(self) -> dict[str, torch.Tensor]:
        """Return the tensors that stay with the silo between rounds, by name; writing into them restores a state."""
        moments = self.optimizer.state() if self.plan.optimizer_state == "keep" else {}
        return moments | self.own_state()

    def forget(self) -> None:
        """Bring the local state back to what it was before the first round."""
        self.optimizer.reset()
        for name, tensor in self.own_state().items():
            tensor.copy_(self._first_state[name])

    def own_state(self) -> dict[str, torch.Tensor]:
        """Return the local state besides the optimiser's: what makes up the silo's own part of a model."""
        state = {"own": self.own_values} if self.plan.keep_local else {}
        state |= {"control": self.control.own} if self.control else {}
        state |= {"has_control": self.control.known} if isinstance(self.control, CommonMomentum) else {}
        state |= {"left_out": self.left_out} if self.plan.compression else {}
        state |= {"buffers": self.buffers} if self.plan.buffers != "average" and len(self.buffers) else {}
        return state | {f"integers.{name}": buffer for name, buffer in self.integers.items()}

    @torch.no_grad()
    def predict(self, features: torch.Tensor, vector: np.ndarray) -> torch.Tensor:
        """Return the outputs [rows, ...] of the model at `vector`, with the silo's own values where it keeps some; the
        trainer's parameters and buffers are untouched."""
        with self.at(vector):
            return torch.cat([self.module(part) for part in portions(features)])

    @contextmanager
    def at(self, vector: np.ndarray) -> Iterator[None]:
        """Lend the network with the model at `vector`, ready to predict."""
        model = [self.flat, self.buffers, *self.integers.values()]
        kept = [tensor.clone() for tensor in model]
        copy_blocks(self._blocks()[:2], vector[: self.layout.size])
        self._restore_own()
        try:
            if self.plan.buffers == "recompute":
                self._recompute_buffers()
            self.module.eval()
            yield
        finally:
            for tensor, before in zip(model, kept, strict=True):
                tensor.copy_(before)

    def _blocks(self) -> list[torch.Tensor]:
        travelling = self.buffers if self.plan.buffers == "average" else self.buffers[:0]
        moments = self.optimizer.moments if self.plan.optimizer_state == "average" else []
        none = torch.zeros_like(travelling)
        moments = [self.optimizer.moments[1], none] if self.plan.optimizer_state == "common" else moments
        control = [self.control.common, none] if self.control else []
        return [self.flat, travelling, *moments, *control]

    def _restore_own(self) -> None:
        if self.plan.keep_local:
            self.flat[self._own] = self.own_values

    def _recompute_buffers(self) -> None:
        """Average the normalisation statistics of the silo's own rows under the current parameters."""
        with self._lent_generator(0):
            torch.optim.swa_utils.update_bn(portions(self.features), self.module)

    def _lent_generator(self, step: int) -> AbstractContextManager:
        """Seed torch's global generator from (seed, silo, step) for a while, and give it back as it was."""
        if not self._draws:
            return nullcontext()
        return _seeded(derived_seed(self.plan.seed, "noise in the network", self.silo, step), self.flat.device)

    def _batches(self, steps: range) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield (x, y) of each step; the shuffle of an epoch depends on (seed, epoch, silo) alone."""
        if self.plan.private:
            yield from (self._chosen() for _ in steps)
            return
        for index in self._drawn(steps):
            yield self.features.index_select(0, index), self.targets.index_select(0, index)

    def _drawn(self, steps: range) -> Iterator[torch.Tensor]:
        """Yield the numbers of the rows of each step, int64 [batch]."""
        epoch, batches = -1, []
        for step in steps:
            if step // self.plan.steps_per_epoch != epoch:
                epoch = step // self.plan.steps_per_epoch
                batches = self._shuffled(epoch)
            yield batches[step % self.plan.steps_per_epoch]

    def _chosen(self) -> tuple[torch.Tensor, torch.Tensor]:
        index = chosen_rows(self._noise, len(self.features), 1 / self.plan.steps_per_epoch).to(self.features.device)
        return self.features.index_select(0, index), self.targets.index_select(0, index)

    def _shuffled(self, epoch: int) -> list[torch.Tensor]:
        order = generator(self.plan.seed, "shuffle", epoch, self.silo).permutation(len(self.features))
        index = torch.from_numpy(order).to(self.features.device)
        bounds = [batch * len(order) // self.plan.steps_per_epoch for batch in range(self.plan.steps_per_epoch + 1)]
        return [index[start:stop] for start, stop in itertools.pairwise(bounds)]

    def step(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """One optimiser step on one mini-batch; returns the loss before the step (0-d)."""
        return self._cuda_graphs(self._take_step, x, y) if self._cuda_graphs else self._take_step(x, y)

    def _take_step(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        loss = self.gradient(x, y)
        for term in self.terms:
            term(self.flat_gradient)
        self.optimizer.step()
        return loss

    def _graphs_of_steps(self) -> GraphedSteps | None:
        """Private batches differ in length, and graphs in size: no two steps of them are the same."""
        has_one_size = self.plan.private is None and isinstance(self.features, torch.Tensor)
        return GraphedSteps(f"silo '{self.silo}'") if has_one_size and wants_graphs(self.flat.device) else None


def normalise_single_samples(module: nn.Module) -> None:
    """Let BatchNorm layers use their running statistics where a batch has one value per channel: it has no variance,
    and a silo of one sample, or a batch of one, would be an error."""
    for layer in module.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer.track_running_stats:
            layer.register_forward_pre_hook(_lend_statistics)
            layer.register_forward_hook(_give_back, always_call=True)


def _lend_statistics(layer: nn.Module, given: tuple[torch.Tensor, ...]) -> None:
    (values,) = given
    if layer.training and values.numel() == values.shape[1]:
        layer.training = False
        layer._was_training = True  # type: ignore[assignment]


def _give_back(layer: nn.Module, *_: object) -> None:
    if layer.__dict__.pop("_was_training", False):
        layer.training = True


def control_variate(plan: TrainingPlan, flat: torch.Tensor) -> ControlVariate | None:
    """Return what corrects the gradients of a plan's steps, None where nothing does."""
    if not plan.control_variates:
        return None
    return CommonMomentum(flat) if plan.optimizer_state == "common" else ControlVariate(flat)


def _mask(module: nn.Module, names: Sequence[str], device: torch.device) -> torch.Tensor:
    """Return the positions of the named parameters in the flat vector; ConfigError for a name that is not there."""
    sizes = {name: parameter.numel() for name, parameter in module.named_parameters()}
    unknown = sorted(set(names) - set(sizes))
    require(not unknown, f"keep_local={unknown} are not parameters; there are: {', '.join(sizes)}")
    positions = torch.arange(sum(sizes.values()), device=device).split(list(sizes.values()))
    own = [part for name, part in zip(sizes, positions, strict=True) if name in names]
    return torch.cat(own) if own else torch.zeros(0, dtype=torch.int64, device=device)


def copy_blocks(blocks: Sequence[torch.Tensor], vector: np.ndarray) -> None:
    """Fill flat tensors one after another from a vector; what is left of it is left."""
    start = 0
    for block in blocks:
        part, start = vector[start : start + block.numel()], start + block.numel()
        if block.device.type == "cpu":
            np.copyto(block.numpy(), part)
        else:
            block.copy_(torch.from_numpy(part.copy()))


def portions(features: Any) -> tuple[Any, ...]:
    """Split rows so that a network's activations fit into memory: images come in dozens, table rows all at once.

    features: a tensor, or what is split and measured (`numel`) as one is.
    """
    row = max(1, features.numel() // max(1, len(features)))
    return features.split(max(1, PORTION_VALUES // row)) if len(features) else (features,)


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
