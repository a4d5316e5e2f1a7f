"""Experiments with attacks as jobs: each is a plain value, and running it anywhere gives the same rows."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from ray_fed.errors import ConfigError, DataError, FedError
from ray_fed.leakage.attacks import Attack
from ray_fed.leakage.defences import parse_defence
from ray_fed.leakage.fidelity import SUCCESS, mean_squared_errors, psnr, ssim
from ray_fed.leakage.images import ImageSet, load_images
from ray_fed.leakage.observation import AttackObservation, Knowledge, observe
from ray_fed.leakage.own_network import OwnNetwork
from ray_fed.leakage.reconstruction import Reconstruction, with_restarts
from ray_fed.leakage.targets import attackable, make_target, plain_attention
from ray_fed.leakage.tokens import recover_tokens
from ray_fed.randomness import derived_seed

FAR = 1.0
"""Mean squared error (inputs in [0, 1]) above which a run counts as diverged: worse than black for white, and
worse than its start."""
SHOWN = 16
"""Attacks of a job whose images are kept for the figures."""


@dataclass(frozen=True)
class AttackJob:
    """One attack on some images, as one batch. Problem i has network seed and start seed of its own, the same for
    every attack."""

    key: str
    """Name of the job: unique in a study."""
    group: str
    """The experiment it belongs to, e.g. compare, learning_rate, batch, defence."""
    data: str
    """Name of an embedded set, or a path."""
    model: str
    """Name of a target network."""
    attack: Attack
    problems: tuple[int, ...]
    """Numbers of the problems; problem i attacks images [i * samples, (i + 1) * samples) of the drawn set."""
    images: int
    """Images drawn from the data."""
    budget: int
    """Gradient evaluations per problem."""
    seed: int = 0
    batch_size: int = 1
    local_steps: int = 1
    minibatch: int = 0
    """Samples per local step; 0: the whole batch."""
    local_optimizer: Literal["sgd", "adam"] = "sgd"
    local_rate: float = 0.1
    """Learning rate of the local steps, where the message is no gradient."""
    statistics: Literal["stored", "unknown"] = "stored"
    """Running statistics of BatchNorm: known to the attacker, or the silo's own."""
    own: OwnNetwork | None = None
    """A network of the user's in the place of `model`."""
    trained: int = 0
    """Steps of Adam on the set's other images before the message."""
    defence: str = ""
    """Defences joined by '+', e.g. clip:1+noise:0.01; empty: none."""
    restarts: int = 1
    """Starts per problem, each with the whole budget."""
    output_bias: bool = True
    snapshots: tuple[int, ...] = ()
    """Evaluations after which the pictures are kept."""


@dataclass(frozen=True)
class AttackResult:
    """What a job came to. A job that failed has rows with a reason and no arrays."""

    key: str
    rows: list[dict[str, object]]
    """One per problem, plain values."""
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    """mse, loss [problems, budget]: of the best point so far; truth, found, snapshots: pictures of the first few."""
    seconds: float = 0.0
    """Computing time on CPU, elapsed time on a GPU."""


def run_job(job: AttackJob, device: str = "cpu") -> AttackResult:
    """Attack; an attack that fails (no label rule, no convergence of a decomposition) becomes rows that say why."""
    clock = time.process_time if device == "cpu" else time.perf_counter  # a busy machine makes no attack slower
    started = clock()
    try:
        result = _run(job, device)
    except (FedError, RuntimeError) as error:
        return failed(job, str(error))
    return replace(result, seconds=clock() - started)


def failed(job: AttackJob, reason: str) -> AttackResult:
    """Return the rows of a job that could not be carried out."""
    reason = " ".join(reason.split())
    return AttackResult(job.key, [{**_row_head(job, number), "failed": reason} for number in job.problems])


def _run(job: AttackJob, device: str) -> AttackResult:
    observations, truth, labels = observations_of(job, device)
    if observations[0].knows.is_tokens:
        return AttackResult(job.key, [_token_row(job, i, observations[i], truth[i]) for i in range(len(observations))])
    record = AttackRecorder(truth, job.budget * job.restarts, job.snapshots)
    seeds = [derived_seed(job.seed, "attack", job.data, number) for number in job.problems]
    found = with_restarts(observations, job.attack, job.budget, seeds, job.restarts, record)
    errors = mean_squared_errors(found.inputs, truth)
    curve = record.mse
    reached = {f"evaluations_to_{limit:g}": first_below(curve, limit) for limit in SUCCESS}
    far = np.maximum(np.nan_to_num(curve[:, 0]), FAR)
    rows = [_row(job, i, found, truth, labels, errors[i], reached, float(far[i])) for i in range(len(job.problems))]
    shown = {"truth": truth[:SHOWN].cpu().numpy(), "found": found.inputs[:SHOWN].cpu().numpy()}
    arrays = {"mse": curve, "loss": record.loss, "snapshots": record.pictures, **shown}
    return AttackResult(job.key, rows, arrays)


@lru_cache(maxsize=8)
def drawn_images(data: str, count: int, seed: int) -> ImageSet:
    """Return the images of a study: the same `count` for every job."""
    return load_images(data, count=count, seed=seed)


def observations_of(job: AttackJob, device: str = "cpu") -> tuple[list[AttackObservation], torch.Tensor, torch.Tensor]:
    """Return what is seen of each problem, the true inputs [n, samples, ...] and labels [n, samples, ...]."""
    images = drawn_images(job.data, job.images, job.seed)
    size, network = job.batch_size, network_of(job, job.problems[0])
    knows, loss = knowledge_of(job, network, images)
    inputs = torch.from_numpy(images.images).to(device)
    dtype = next(network.parameters()).dtype
    inputs = inputs if knows.is_tokens else inputs.to(dtype)
    labels = _labels(network, inputs, images, loss)
    seen, truth, true_labels = [], [], []
    for number in job.problems:
        chosen = slice(number * size, (number + 1) * size)
        network = network_of(job, number).to(device)
        one = observe(network, inputs[chosen], labels[chosen], knows, loss)
        for text in filter(None, job.defence.split("+")):
            one = parse_defence(text).on(one, derived_seed(job.seed, "defence", number))
        seen.append(one)
        truth.append(inputs[chosen])
        true_labels.append(labels[chosen])
    return seen, torch.stack(truth), torch.stack(true_labels)


def network_of(job: AttackJob, number: int) -> nn.Module:
    """Return the network of one problem."""
    images = drawn_images(job.data, job.images, job.seed)
    seed = derived_seed(job.seed, "network under attack", number)
    if job.own is not None:
        network = job.own.build(images.shape, images.num_classes, seed)
    else:
        num_classes = 2 if job.model == "unet" else images.num_classes
        network = make_target(job.model, images.shape, num_classes, seed, job.output_bias)
    if job.trained:
        weights, _ = trained_weights(job.model, job.data, job.images, job.seed, job.trained, number, job.output_bias)
        network.load_state_dict(weights)
    return network


def knowledge_of(job: AttackJob, network: nn.Module, images: ImageSet) -> tuple[Knowledge, str]:
    """Return what the attacker knows, and the loss: squared error for a network of one output. DataError for images
    that the network does not take, or more classes than it tells apart."""
    outputs = _outputs(network, images)
    num_classes = outputs.shape[1] if outputs.dim() > 1 else 1
    loss = "mse" if num_classes == 1 else "cross_entropy"
    if loss == "cross_entropy" and outputs.dim() == 2 and num_classes < images.num_classes:
        raise DataError(f"the network tells {num_classes} classes apart, data={images.name} has {images.num_classes}")
    is_update = job.local_steps > 1 or job.minibatch or job.local_optimizer != "sgd"
    return Knowledge(
        images.shape, num_classes, job.batch_size, job.local_steps, job.local_rate if is_update else None,
        job.minibatch, job.local_optimizer, vocabulary=images.vocabulary, statistics=job.statistics,
    ), loss  # fmt: skip


def _outputs(network: nn.Module, images: ImageSet) -> torch.Tensor:
    """Return the outputs for one image."""
    first = torch.from_numpy(images.images[:1])
    first = first if images.vocabulary else first.to(next(network.parameters()).dtype)
    try:
        with torch.no_grad(), plain_attention():
            outputs = attackable(network).eval()(first)
    except ConfigError:
        raise
    except Exception as error:  # a user's module raises what it likes
        said = " ".join(str(error).split())[:200]
        raise DataError(
            f"the network cannot take an input of shape {images.shape}: {said}; crop or resize it"
        ) from error
    if not isinstance(outputs, torch.Tensor) or outputs.dim() not in (2, 4):
        said = tuple(outputs.shape) if isinstance(outputs, torch.Tensor) else type(outputs).__name__
        raise DataError(f"the network returns {said} for one sample: these attacks know classes [batch, classes], a "
                        "number [batch, 1] and classes of pixels [batch, classes, height, width]")  # fmt: skip
    return outputs


def _labels(network: nn.Module, inputs: torch.Tensor, images: ImageSet, loss: str) -> torch.Tensor:
    """Return the labels of the images as the network's loss takes them; of pixels, whether each is bright."""
    labels = torch.from_numpy(images.labels).to(inputs.device)
    if _outputs(network, images).dim() == 4:
        return masks(inputs)
    return labels[:, None].to(inputs) if loss == "mse" else labels


@lru_cache(maxsize=64)
def trained_weights(
    model: str, data: str, images: int, seed: int, steps: int, number: int, output_bias: bool
) -> tuple[dict[str, torch.Tensor], float]:
    """Return the weights of a problem's network after `steps` of Adam (rate 0.003, batches of 64) on the set's images
    that are not attacked, and its accuracy on those that are."""
    attacked, rest = drawn_images(data, images, seed), load_images(data).after(images, seed)
    own_seed = derived_seed(seed, "network under attack", number)
    network = make_target(model, rest.shape, rest.num_classes, own_seed, output_bias)
    inputs, labels = torch.from_numpy(rest.images), torch.from_numpy(rest.labels)
    draw = torch.Generator().manual_seed(derived_seed(own_seed, "training before the message"))
    optimizer = torch.optim.Adam(network.parameters(), 0.003)
    for _ in range(steps):
        chosen = torch.randint(len(inputs), (64,), generator=draw)
        optimizer.zero_grad()
        functional.cross_entropy(network(inputs[chosen]), labels[chosen]).backward()
        optimizer.step()
    with torch.no_grad():
        right = network(torch.from_numpy(attacked.images)).argmax(1) == torch.from_numpy(attacked.labels)
    return network.state_dict(), float(right.float().mean())


def masks(images: torch.Tensor) -> torch.Tensor:
    """Return segmentation labels [num, height, width]: whether a pixel is brighter than its image's mean."""
    grey = images.mean(1)
    return (grey > grey.mean((1, 2), keepdim=True)).long()


class AttackRecorder:
    """Follows a batch of attacks: error and objective of the best point so far, pictures at chosen evaluations.

    It is no part of the attack: it knows the truth, which the attack does not.
    """

    def __init__(self, truth: torch.Tensor, budget: int, snapshots: Sequence[int]):
        n = len(truth)
        self.truth, self.snapshots = truth, tuple(snapshots)
        self.budget = budget
        self._mse: list[tuple[int, torch.Tensor]] = []
        self._loss: list[tuple[int, torch.Tensor]] = []
        self.pictures = np.full((min(n, SHOWN), len(self.snapshots), *truth.shape[1:]), np.nan, np.float32)
        kind = {"dtype": truth.dtype if truth.is_floating_point() else torch.float32, "device": truth.device}
        self._best = torch.full((n,), torch.inf, **kind)
        self._error = torch.full((n,), torch.inf, **kind)
        self._inputs = torch.full_like(truth, torch.nan)
        self._last = 0

    def __call__(self, evaluation: int, index: torch.Tensor, values: torch.Tensor, inputs: torch.Tensor) -> None:
        better = values < self._best[index]
        rising = index[better]
        self._best[rising], self._inputs[rising] = values[better], inputs[better]
        if len(rising):
            self._error[rising] = mean_squared_errors(inputs[better], self.truth[rising]).mean(1).to(self._error)
        self._mse.append((evaluation, self._error.clone()))
        self._loss.append((evaluation, self._best.clone()))
        for place, wanted in enumerate(self.snapshots):
            if self._last < wanted and evaluation <= wanted:
                self.pictures[:, place] = self._inputs[: len(self.pictures)].cpu().numpy()
        self._last = evaluation

    @property
    def mse(self) -> np.ndarray:
        """Errors of the best points so far [n, budget]; NaN before the first evaluation."""
        return self._curve(self._mse)

    @property
    def loss(self) -> np.ndarray:
        """Objectives of the best points so far [n, budget]."""
        return self._curve(self._loss)

    def _curve(self, told: list[tuple[int, torch.Tensor]]) -> np.ndarray:
        curve = np.full((len(self.truth), self.budget), np.nan, np.float32)
        if told:
            # What has stopped keeps its last value: the curves of all problems have the same length.
            numbers = [evaluation for evaluation, _ in told]
            values = torch.stack([value for _, value in told], 1).cpu().numpy()
            places = np.searchsorted(numbers, np.arange(numbers[0], self.budget + 1), side="right") - 1
            curve[:, numbers[0] - 1 :] = values[:, places]
        return curve

    def evaluations_to(self, threshold: float) -> np.ndarray:
        """Return after how many evaluations each error first lay below `threshold` [n]; 0 where it never did."""
        return first_below(self.mse, threshold)


def first_below(curves: np.ndarray, threshold: float) -> np.ndarray:
    """Return after how many evaluations each curve [n, budget] first lay below `threshold` [n]; 0: it never did."""
    below = curves < threshold
    return np.where(below.any(1), below.argmax(1) + 1, 0)


def _row_head(job: AttackJob, number: int) -> dict[str, object]:
    return {
        "job": job.key, "group": job.group, "data": job.data, "model": job.model, "attack": job.attack.name,
        "problem": number, "batch_size": job.batch_size, "local_steps": job.local_steps, "defence": job.defence,
        "learning_rate": job.attack.learning_rate, "optimizer": job.attack.optimizer, "budget": job.budget,
        "trained": job.trained, "accuracy": _accuracy(job, number),
    }  # fmt: skip


def _accuracy(job: AttackJob, number: int) -> float | None:
    """Return the share of the attacked images that a network which has learned gets right."""
    if not job.trained:
        return None
    return trained_weights(job.model, job.data, job.images, job.seed, job.trained, number, job.output_bias)[1]


def _token_row(job: AttackJob, i: int, observation: AttackObservation, truth: torch.Tensor) -> dict[str, object]:
    """Return the row of a message about tokens: the error is the share of places that are wrong."""
    guess = recover_tokens(observation)
    true = truth.flatten()
    found = set(guess.tokens.tolist()) == set(true.tolist())
    placed = guess.sequence is not None and bool((guess.sequence == true).all())
    counted = guess.counts is not None and bool(
        (guess.counts == torch.stack([(true == t).sum() for t in guess.tokens])).all()
    )
    known = "right" if counted else "not known"
    order = "in their order" if placed else f"without their order ({guess.why_no_order})"
    return {
        **_row_head(job, job.problems[i]), "mse": 0.0 if placed else 1.0, "exact": int(placed), "near": int(found),
        "samples": 1, "psnr": 0.0, "ssim": None, "labels_right": 0.0, "evaluations": 0, "diverged": False,
        "objective": 0.0, "misfit": 0.0, "evaluations_to_0.01": 0, "evaluations_to_0.001": 0,
        "outcome": f"{'all' if found else 'not all'} tokens named {order}, counts {known}",
    }  # fmt: skip


def _row(
    job: AttackJob, i: int, found: Reconstruction, truth: torch.Tensor, labels: torch.Tensor, errors: torch.Tensor,
    reached: Mapping[str, np.ndarray], far: float,
) -> dict[str, object]:  # fmt: skip
    guessed, true = found.labels[i].flatten().sort().values, labels[i].flatten().sort().values
    mse = float(errors.mean())
    similar = ssim(found.inputs[i, 0].cpu().numpy(), truth[i, 0].cpu().numpy()) if job.batch_size == 1 else None
    return {
        **_row_head(job, job.problems[i]),
        "mse": mse,
        "exact": int((errors < SUCCESS[1]).sum()),
        "near": int((errors < SUCCESS[0]).sum()),
        "samples": len(errors),
        "psnr": float(min(psnr(np.array(mse)), 200.0)),
        "ssim": similar,
        "labels_right": float((guessed == true).float().mean()),
        "evaluations": int(found.evaluations[i]),
        "diverged": bool(found.diverged[i]) or not mse <= far,
        "objective": float(found.objective[i]),
        "misfit": float(found.misfit[i]),
        "outcome": found.outcome(i),
        **{name: int(counts[i]) for name, counts in reached.items()},
    }
