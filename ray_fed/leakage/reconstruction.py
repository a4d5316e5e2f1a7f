"""Runs one attack on many observations at once: one batched evaluation a step, whatever stage each problem is in."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from ray_fed.config import require
from ray_fed.errors import ConfigError
from ray_fed.leakage.attacks import Attack
from ray_fed.leakage.distances import Distance, make_distance, total_variation
from ray_fed.leakage.labels import infer_labels
from ray_fed.leakage.layer_inversion import invert_layers, why_no_chain
from ray_fed.leakage.observation import AttackObservation, StackedNetwork, stack
from ray_fed.leakage.optimizers import Adam, Descent, Lbfgs, NoOptimizer, Optimizer
from ray_fed.leakage.patches import invert_patches, why_no_patches
from ray_fed.leakage.recursive import first_layer_ratio, recursive_inputs, why_no_ratio
from ray_fed.randomness import derived_seed

SPREAD, BATCH_SPREAD = 0.02, 0.2
"""Standard deviation of a grey start, of one image and of each of a batch: images that start together stay together."""


Method = Callable[[Sequence[AttackObservation]], torch.Tensor]
ALGEBRA: dict[str, tuple[Callable[[AttackObservation], str], Method]] = {
    "layers": (why_no_chain, invert_layers),
    "recursive": (why_no_chain, recursive_inputs),
    "ratio": (why_no_ratio, first_layer_ratio),
    "patches": (why_no_patches, invert_patches),
}
"""Name of a start -> (why it cannot be computed, empty where it can; how)."""
TRIED = ("layers", "patches")
"""The algebra that a start of `layers` tries before it turns to grey."""


def start_inputs(observations: Sequence[AttackObservation], attack: Attack, seeds: Sequence[int]) -> list[torch.Tensor]:
    """Return candidates for the start, each [n, samples, *input_shape]; the attack begins at the better one.

    Equal seeds give equal guesses whatever else is in the batch. ConfigError, with the reason, for an attack that is
    algebra alone and does not apply.
    """
    like = observations[0].parameters[0]
    noise = torch.stack([_noise(one, attack, seed) for one, seed in zip(observations, seeds, strict=True)]).to(like)
    if attack.start not in ALGEBRA:
        return [noise]
    names = (attack.start,) if attack.is_algebra else TRIED
    why = [ALGEBRA[name][0](observations[0]) for name in names]
    found = [
        one for name, reason in zip(names, why, strict=True) if not reason
        for one in _solved(ALGEBRA[name][1], observations, noise)
    ]  # fmt: skip
    if attack.is_algebra:
        require(bool(found), f"attack {attack.name}: {why[0] or 'its linear systems have no solution'}")
        return found
    return [*found, noise]


def _solved(method: Method, observations: Sequence[AttackObservation], otherwise: torch.Tensor) -> list[torch.Tensor]:
    """Return the inputs that algebra finds, where they are finite; nothing where the linear algebra breaks down, as it
    does for a message without an output bias's gradient."""
    try:
        return [_finite(method(observations).to(otherwise), otherwise)]
    except torch.linalg.LinAlgError:  # pyright: ignore[reportPrivateImportUsage]
        return []


def _noise(observation: AttackObservation, attack: Attack, seed: int) -> torch.Tensor:
    knows = observation.knows
    draw = torch.Generator().manual_seed(derived_seed(seed, "start of an attack"))
    noise = torch.randn(knows.batch_size, *knows.input_shape, generator=draw)
    if attack.start == "normal":
        return noise
    return 0.5 + (SPREAD if knows.batch_size == 1 else BATCH_SPREAD) * noise


def _finite(wanted: torch.Tensor, otherwise: torch.Tensor) -> torch.Tensor:
    usable = torch.isfinite(wanted).flatten(1).all(1)
    return torch.where(usable.reshape(-1, *[1 for _ in wanted.shape[1:]]), wanted, otherwise)


Observer = Callable[[int, torch.Tensor, torch.Tensor, torch.Tensor], None]
"""observer(evaluation, index [k], objective [k], inputs [k, samples, ...]): sees what was evaluated."""

DIVERGED = 10.0
"""A last objective above this multiple of the first counts as diverged, as does one that is not finite."""
SMOOTHED_BATCH = 8
"""Samples of a message from which smoothing first helps to separate them; fewer are found sooner without."""


@dataclass(frozen=True)
class Reconstruction:
    """What an attack came to; the first axis counts problems."""

    inputs: torch.Tensor
    """[n, samples, *input_shape]: the evaluated point with the lowest objective."""
    labels: torch.Tensor
    """[n, samples, ...]: classes, or regression targets."""
    objective: torch.Tensor
    """[n]: the lowest objective."""
    evaluations: torch.Tensor
    """[n]: gradient evaluations until the attack ended by itself, or the budget."""
    diverged: torch.Tensor
    """[n], bool: the last objective is not finite, or far above the first."""
    misfit: torch.Tensor
    """[n]: the lowest objective as a share of that of a message of zeros: what an attacker sees of its own success."""

    def outcome(self, problem: int) -> str:
        """Say how an attack ended, as far as the attacker can see."""
        share = float(self.misfit[problem])
        if bool(self.diverged[problem]):
            return f"diverged: what it ends with is worse than its start; its best point leaves {share:.1e} of the message"
        if not share < UNEXPLAINED:
            return f"did not converge: its best point leaves {share:.1e} of the message unexplained"
        return f"explains the message up to {share:.1e}"


UNEXPLAINED = 1e-2
"""Share of a message that an attack may leave unexplained before it has plainly not found the samples."""


def reconstruct(
    observations: Sequence[AttackObservation],
    attack: Attack,
    budget: int,
    seeds: Sequence[int],
    observer: Observer | None = None,
) -> Reconstruction:
    """Attack observations that share network structure and knowledge; the result of one does not depend on the others.

    budget: gradient evaluations per problem. seeds: of the starts, one per observation. ConfigError for a label rule
    the network does not support.
    """
    require(budget >= 1, f"budget={budget} must be at least 1 gradient evaluation")
    require(len(seeds) == len(observations) > 0, f"{len(seeds)} seeds for {len(observations)} observations")
    knows = observations[0].knows
    if knows.is_tokens:
        raise ConfigError(
            "the inputs are whole numbers, which no descent moves: tokens are read from the rows of the table's gradient "
            "(tokens.py), which `ray-fed leakage` does"
        )
    is_smoothed = knows.batch_size >= SMOOTHED_BATCH and len(knows.input_shape) == 3
    weight = attack.batch_total_variation if is_smoothed else 0.0
    exact = _suited(replace(attack, batch_total_variation=0.0), observations[0])
    if not weight or budget < 2:
        return _stage(observations, exact, budget, seeds, observer).result()
    smooth = _stage(observations, replace(exact, total_variation=weight), budget // 2, seeds, observer)
    spent = int(smooth.evaluations.max())
    later = (lambda evaluation, *values: observer(spent + evaluation, *values)) if observer else None
    run = _stage(observations, exact, budget - spent, seeds, later, smooth.variables)
    return replace(run.result(), evaluations=smooth.evaluations + run.evaluations)


def _stage(
    observations: Sequence[AttackObservation],
    attack: Attack,
    budget: int,
    seeds: Sequence[int],
    observer: Observer | None,
    begin: torch.Tensor | None = None,
) -> "_Run":
    """Drive one attack to its end, from `begin` [n, size] or from its own start."""
    problem = Problem(observations, attack)
    run = _Run(problem, budget, observer)
    if begin is None:
        begin = problem.encode(run.best_of(start_inputs(observations, attack, seeds), seeds), seeds)
    run.drive(_optimizer(attack, begin, budget, problem))
    return run


def _suited(attack: Attack, observation: AttackObservation) -> Attack:
    """A clipped message has lost its length: an attack that may fits it. Adam's steps have signs alone: what can be
    compared is a direction."""
    if observation.knows.optimizer == "adam":
        return replace(attack, distance="cosine")
    clipped = any(name.startswith("clip") for name in observation.defences)
    return replace(attack, distance="scaled") if attack.fits_scale and clipped else attack


def with_restarts(
    observations: Sequence[AttackObservation],
    attack: Attack,
    budget: int,
    seeds: Sequence[int],
    restarts: int,
    observer: Observer | None = None,
) -> Reconstruction:
    """Attack each observation `restarts` times from different starts, each with the whole budget; keep the lowest
    objective, which the attacker can see. ConfigError for restarts < 1."""
    require(restarts >= 1, f"restarts={restarts} must be at least 1")
    repeated = [one for one in observations for _ in range(restarts)]
    each = [derived_seed(seed, "restart", i) if i else seed for seed in seeds for i in range(restarts)]
    found = reconstruct(repeated, attack, budget, each, _in_turn(observer, restarts) if observer else None)
    tries = found.objective.reshape(-1, restarts)
    chosen = tries.argmin(1) + restarts * torch.arange(len(tries), device=tries.device)
    spent = found.evaluations.reshape(-1, restarts).sum(1)
    diverged = found.diverged.reshape(-1, restarts).all(1)
    return Reconstruction(
        found.inputs[chosen], found.labels[chosen], found.objective[chosen], spent, diverged, found.misfit[chosen]
    )


def _in_turn(observer: Observer, restarts: int) -> Observer:
    """Count the evaluations of an observation's restarts as if they took turns."""

    def forward(evaluation: int, index: torch.Tensor, values: torch.Tensor, inputs: torch.Tensor) -> None:
        for turn in range(restarts):
            mine = index % restarts == turn
            spent = (evaluation - 1) * restarts + turn + 1
            observer(spent, index[mine] // restarts, values[mine], inputs[mine])

    return forward


class Problem:
    """The objective of an attack over flat variables [n, size]: inputs, then label logits if they are optimised."""

    def __init__(self, observations: Sequence[AttackObservation], attack: Attack):
        self.attack, self.knows, self.loss = attack, observations[0].knows, observations[0].loss
        self.network, self.seen = stack(observations)
        self.distance: Distance = make_distance(attack.distance, attack.sinkhorn)
        self.output_shape = self._output_shape()
        self.joint, self.labels, self.why_joint = self._labels(observations)
        nothing = [torch.zeros_like(part) for part in self.seen]
        self.nothing = self.distance(nothing, self.seen)
        self.enough = (attack.tolerance * self.nothing).clamp_min(attack.stop_below)
        self.inputs_shape = (self.knows.batch_size, *self.knows.input_shape)
        self.size = int(torch.Size(self.inputs_shape).numel())
        self.statistics = self._statistics()
        """Names of running statistics that the attacker does not know, and finds with the inputs."""

    def _labels(self, observations: Sequence[AttackObservation]) -> tuple[bool, torch.Tensor | None, str]:
        """Return whether labels are optimised with the inputs, those that are not, and why they are.

        Labels per pixel (segmentation) and regression targets have no closed form here. An attack that asks for a rule
        by its name is refused where the rule does not hold; `closed_form` falls back.
        """
        if self.attack.labels == "joint" or self.loss == "mse" or len(self.output_shape) > 2:
            return True, None, ""
        try:
            return False, infer_labels(observations, self.attack.labels), ""
        except ConfigError as reason:
            if self.attack.labels != "closed_form":
                raise
            return True, None, str(reason)

    def _statistics(self) -> list[str]:
        if self.knows.statistics == "stored":
            return []
        names = [name for name in self.network.constants if name.endswith(("running_mean", "running_var"))]
        require(bool(names), "statistics=unknown, but the network has no running statistics: no BatchNorm in eval mode")
        return names

    def __len__(self) -> int:
        return len(self.network)

    def _output_shape(self) -> tuple[int, ...]:
        like = self.network.parameters[0]
        with torch.no_grad():
            zeros = like.new_zeros(1, self.knows.batch_size, *self.knows.input_shape)
            return tuple(self.network.select(torch.tensor([0], device=like.device)).outputs(zeros).shape[1:])

    def encode(self, inputs: torch.Tensor, seeds: Sequence[int]) -> torch.Tensor:
        """Return variables [n, size] for first guesses of the inputs; label logits start as N(0, 1) (DLG)."""
        flat = inputs.flatten(1)
        shape = self.output_shape
        draws = [torch.Generator().manual_seed(derived_seed(seed, "start of the labels")) for seed in seeds]
        parts = [flat]
        if self.joint:
            logits = torch.stack([torch.randn(shape, generator=draw).flatten() for draw in draws]).to(flat)
            # A network whose outputs say nothing about its labels yet: grey starts give every class the same share.
            parts.append(logits if self.attack.start == "normal" else 0 * logits)
        # Means start at 0 and variances at 1, as in a network that has seen nothing; found as logarithms.
        parts += [flat.new_zeros(len(flat), self.network.constants[name][0].numel()) for name in self.statistics]
        return torch.cat(parts, dim=1)

    def decode(self, variables: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return inputs [k, samples, ...] and, if optimised, labels as soft classes or targets [k, samples, ...]."""
        inputs = variables[:, : self.size].reshape(-1, *self.inputs_shape)
        if not self.joint:
            return inputs, None
        free = variables[:, self.size : self.size + self._label_size].reshape(len(variables), *self.output_shape)
        return inputs, free if self.loss == "mse" else free.softmax(2)

    @property
    def _label_size(self) -> int:
        return int(torch.Size(self.output_shape).numel()) if self.joint else 0

    def _with_statistics(self, variables: torch.Tensor, network: StackedNetwork) -> StackedNetwork:
        """Return the networks with the running statistics that the variables stand for."""
        place, found = self.size + self._label_size, {}
        for name in self.statistics:
            size = network.constants[name][0].numel()
            value = variables[:, place : place + size].reshape(network.constants[name].shape)
            found[name] = value if name.endswith("running_mean") else value.exp()
            place += size
        return network.with_constants(found) if found else network

    def objective(
        self, variables: torch.Tensor, labels: torch.Tensor | None, network: StackedNetwork, seen: list[torch.Tensor]
    ) -> torch.Tensor:
        """Return the objective [k] of variables [k, size] for the problems of `network` and `seen`."""
        inputs, free = self.decode(variables)
        chosen = free if labels is None else labels
        assert chosen is not None
        network = self._with_statistics(variables, network)
        virtual = network.message(inputs, chosen, self.knows.plan, create_graph=True)
        value = self.distance(virtual, seen)
        smooth = self.attack.total_variation if len(self.knows.input_shape) == 3 else 0.0
        return value + smooth * total_variation(inputs) if smooth else value


class _Run:
    """One batch of problems under attack: evaluates those that still run, keeps each one's best point."""

    def __init__(self, problem: Problem, budget: int, observer: Observer | None):
        self.problem, self.budget, self.observer = problem, budget, observer
        self.active = torch.arange(len(problem), device=problem.network.parameters[0].device)
        self.network, self.seen, self.labels = problem.network, problem.seen, problem.labels
        like = problem.network.parameters[0].detach()
        self.best = torch.full((len(problem),), torch.inf, device=like.device, dtype=like.dtype)
        self.first = self.last = self.best
        self.variables: torch.Tensor | None = None
        self.evaluations = torch.zeros_like(self.active)

    def best_of(self, candidates: Sequence[torch.Tensor], seeds: Sequence[int]) -> torch.Tensor:
        """Return the candidate start [n, ...] of lowest objective per problem; comparing costs one evaluation each."""
        if len(candidates) == 1:
            return candidates[0]
        values = torch.stack([self._evaluate(self.problem.encode(one, seeds))[0] for one in candidates])
        self.evaluations += len(candidates) - 1  # the one that is chosen is evaluated again as the first point
        chosen = torch.nan_to_num(values, nan=torch.inf).argmin(0)
        return torch.stack(list(candidates))[chosen, torch.arange(len(chosen), device=chosen.device)]

    def drive(self, optimizer: Optimizer) -> None:
        """Evaluate until every problem has finished or spent the budget."""
        values = torch.zeros_like(self.best)
        gradients = torch.zeros_like(optimizer.points)
        self.variables = optimizer.points.clone()
        while True:
            self._narrow(~optimizer.finished & (self.evaluations < self.budget))
            if len(self.active) == 0:
                return
            points = optimizer.points[self.active]
            values[self.active], gradients[self.active] = self._evaluate(points)
            self._remember(points, values[self.active])
            optimizer.tell(values, gradients)
            optimizer.finished |= self.best < self.problem.enough

    def _narrow(self, running: torch.Tensor) -> None:
        """Stop computing problems that are over."""
        if int(running.sum()) != len(self.active):
            self.active = torch.nonzero(running).squeeze(1)
            self.network = self.problem.network.select(self.active)
            self.seen = [part[self.active] for part in self.problem.seen]
            self.labels = None if self.problem.labels is None else self.problem.labels[self.active]

    def _evaluate(self, points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        points = points.detach().requires_grad_()
        values = self.problem.objective(points, self.labels, self.network, self.seen)
        (gradients,) = torch.autograd.grad(values.sum(), points)
        return values.detach(), gradients

    def _remember(self, points: torch.Tensor, values: torch.Tensor) -> None:
        assert self.variables is not None
        self.evaluations[self.active] += 1
        self.last = self.last.index_copy(0, self.active, values)
        self.first = torch.where(torch.isinf(self.first), self.last, self.first)
        better = values < self.best[self.active]
        improved = self.active[better]
        self.best[improved] = values[better]
        self.variables[improved] = points[better]
        if self.observer:
            inputs = self.problem.decode(points)[0].detach()
            self.observer(int(self.evaluations[self.active].max()), self.active, values, inputs)

    def result(self) -> Reconstruction:
        assert self.variables is not None
        inputs, free = self.problem.decode(self.variables)
        labels = self.problem.labels
        if labels is None:
            assert free is not None
            labels = free if self.problem.loss == "mse" else free.argmax(2)
        diverged = ~torch.isfinite(self.last) | (self.last > DIVERGED * self.first)
        misfit = self.best / self.problem.nothing
        return Reconstruction(inputs, labels, self.best, self.evaluations, diverged, misfit)


def _optimizer(attack: Attack, start: torch.Tensor, budget: int, problem: Problem) -> Optimizer:
    if attack.is_algebra:
        return NoOptimizer(start)
    if attack.optimizer == "descent":
        return Descent(start, attack.learning_rate)
    if attack.optimizer in ("lbfgs", "lbfgs_wolfe"):
        tolerances = TORCH_TOLERANCES if attack.stops_as_torch else None
        return Lbfgs(start, attack.learning_rate, attack.history, attack.optimizer == "lbfgs_wolfe", tolerances)
    clamp = (0.0, 1.0) if attack.clamp and not problem.joint else None
    decays = budget if attack.optimizer == "signed_adam" else 0
    return Adam(start, attack.learning_rate, attack.optimizer == "signed_adam", decays, clamp)


TORCH_TOLERANCES = (1e-7, 1e-9)
"""Of torch.optim.LBFGS by default: the published loops call it again, and it returns at once."""
