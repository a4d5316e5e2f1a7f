"""Experiments with attacks as jobs: each is a plain value, and running it anywhere gives the same rows."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np
import torch

from ray_fed.errors import FedError
from ray_fed.leakage.attacks import Attack
from ray_fed.leakage.defences import parse_defence
from ray_fed.leakage.fidelity import SUCCESS, mean_squared_errors, psnr, ssim
from ray_fed.leakage.images import ImageSet, load_images
from ray_fed.leakage.observation import AttackObservation, Knowledge, observe
from ray_fed.leakage.reconstruction import Reconstruction, with_restarts
from ray_fed.leakage.targets import make_target
from ray_fed.randomness import derived_seed

FAR = 1.0
"""Mean squared error (inputs in [0, 1]) above which a run counts as diverged: worse than black for white."""
SHOWN = 4
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
    local_rate: float = 0.1
    """Learning rate of the local steps, if there are more than one."""
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
    record = AttackRecorder(truth, job.budget * job.restarts, job.snapshots)
    seeds = [derived_seed(job.seed, "attack", job.data, number) for number in job.problems]
    found = with_restarts(observations, job.attack, job.budget, seeds, job.restarts, record)
    errors = mean_squared_errors(found.inputs, truth)
    rows = [_row(job, i, found, truth, labels, errors[i], record) for i in range(len(job.problems))]
    shown = {"truth": truth[:SHOWN].cpu().numpy(), "found": found.inputs[:SHOWN].cpu().numpy()}
    arrays = {"mse": record.mse, "loss": record.loss, "snapshots": record.pictures, **shown}
    return AttackResult(job.key, rows, arrays)


@lru_cache(maxsize=8)
def drawn_images(data: str, count: int, seed: int) -> ImageSet:
    """Return the images of a study: the same `count` for every job."""
    return load_images(data).sample(count, seed)


def observations_of(job: AttackJob, device: str = "cpu") -> tuple[list[AttackObservation], torch.Tensor, torch.Tensor]:
    """Return what is seen of each problem, the true inputs [n, samples, ...] and labels [n, samples, ...]."""
    images = drawn_images(job.data, job.images, job.seed)
    size, steps = job.batch_size, job.local_steps
    rate = job.local_rate if steps > 1 else None
    num_classes = 2 if job.model == "unet" else images.num_classes
    knows = Knowledge(images.shape, num_classes, size, steps, rate)
    inputs = torch.from_numpy(images.images).to(device)
    labels = masks(inputs) if job.model == "unet" else torch.from_numpy(images.labels).to(device)
    seen, truth, true_labels = [], [], []
    for number in job.problems:
        chosen = slice(number * size, (number + 1) * size)
        weights_seed = derived_seed(job.seed, "network under attack", number)
        network = make_target(job.model, images.shape, num_classes, weights_seed, job.output_bias).to(device)
        one = observe(network, inputs[chosen], labels[chosen], knows)
        for text in filter(None, job.defence.split("+")):
            one = parse_defence(text).on(one, derived_seed(job.seed, "defence", number))
        seen.append(one)
        truth.append(inputs[chosen])
        true_labels.append(labels[chosen])
    return seen, torch.stack(truth), torch.stack(true_labels)


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
        self.mse, self.loss = np.full((n, budget), np.nan, np.float32), np.full((n, budget), np.nan, np.float32)
        self.pictures = np.full((min(n, SHOWN), len(self.snapshots), *truth.shape[1:]), np.nan, np.float32)
        self._best = torch.full((n,), torch.inf, device=truth.device)
        self._error = torch.full((n,), torch.inf, device=truth.device)
        self._inputs = torch.full_like(truth, torch.nan)
        self._last = 0

    def __call__(self, evaluation: int, index: torch.Tensor, values: torch.Tensor, inputs: torch.Tensor) -> None:
        better = values < self._best[index]
        rising = index[better]
        self._best[rising], self._inputs[rising] = values[better], inputs[better]
        if len(rising):
            self._error[rising] = mean_squared_errors(inputs[better], self.truth[rising]).mean(1).to(self._error.device)
        # What has stopped keeps its last value: the curves of all problems have the same length.
        self.mse[:, evaluation - 1 :] = self._error.cpu().numpy()[:, None]
        self.loss[:, evaluation - 1 :] = self._best.cpu().numpy()[:, None]
        for place, wanted in enumerate(self.snapshots):
            if self._last < wanted and evaluation <= wanted:
                self.pictures[:, place] = self._inputs[: len(self.pictures)].cpu().numpy()
        self._last = evaluation

    def evaluations_to(self, threshold: float) -> np.ndarray:
        """Return after how many evaluations each error first lay below `threshold` [n]; 0 where it never did."""
        below = self.mse < threshold
        return np.where(below.any(1), below.argmax(1) + 1, 0)


def _row_head(job: AttackJob, number: int) -> dict[str, object]:
    return {
        "job": job.key, "group": job.group, "data": job.data, "model": job.model, "attack": job.attack.name,
        "problem": number, "batch_size": job.batch_size, "local_steps": job.local_steps, "defence": job.defence,
        "learning_rate": job.attack.learning_rate,
    }  # fmt: skip


def _row(
    job: AttackJob, i: int, found: Reconstruction, truth: torch.Tensor, labels: torch.Tensor, errors: torch.Tensor,
    record: AttackRecorder,
) -> dict[str, object]:  # fmt: skip
    guessed, true = found.labels[i].flatten().sort().values, labels[i].flatten().sort().values
    mse = float(errors.mean())
    reached = {f"evaluations_to_{limit:g}": int(record.evaluations_to(limit)[i]) for limit in SUCCESS}
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
        "diverged": bool(found.diverged[i]) or not mse < FAR,
        "objective": float(found.objective[i]),
        **reached,
    }
