"""A task from three things that every PyTorch user has: a network, a loss, and a way to get samples."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from ray_fed.config import require
from ray_fed.errors import ConfigError, DataError, Trouble, failure_of
from ray_fed.federation.messages import SessionSpec, Vector
from ray_fed.federation.task import LocalRows, Predictor, Samples, SiloSpec, Task, target_tensor
from ray_fed.learning.layout import load_vector
from ray_fed.learning.open_trainer import LocalWork, OpenTrainer, Said, TrainingStep, joined, one_number, said_of
from ray_fed.learning.own_loop import OwnLoop, OwnLoopTrainer
from ray_fed.learning.partial_exchange import Exchange, exchanged_names, innermost
from ray_fed.learning.recipe import Recipe
from ray_fed.learning.sample_rows import Collate, SampleRows, column_rows, item_rows, tensors_of
from ray_fed.learning.standardisation import Standardizer
from ray_fed.learning.steps import Loss
from ray_fed.learning.trainer import Trainer
from ray_fed.metrics import LOSS, MeanScores, Metric, Scores
from ray_fed.randomness import derived_seed

Array = np.ndarray | torch.Tensor
SampleScore = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""(outputs [samples, ...], targets [samples, ...]) -> one value per sample [samples]."""

FEW, SAME = 4, 1e-3
"""Rows on which it is tried whether a loss is a mean, and how near to twice its value is twice."""


@dataclass(frozen=True)
class TorchTask(Task):
    """Federate any `torch.nn.Module`.

        task = TorchTask(network=Net, loss=functional.cross_entropy, samples=read_my_file)

    `samples(source)` runs inside the silo's own process with the source of its SiloSpec (a path, say) and returns

    - (x, y) or (x, y, held_out_x, held_out_y): arrays or tensors whose first axis counts samples, or tuples and
      dictionaries of such. Real-valued targets with one number per sample reach the loss as a column [samples, 1];
      everything else as it is.
    - a Dataset, a DataLoader, a list of samples or any iterable, or two of them, the second held out. A sample is a
      tuple whose last part is the target, or has the target by name (`target`); `collate` makes batches, of graphs,
      say. What has no index is read into memory.

    A network takes its input; of a tuple, positional arguments; of a dictionary, arguments by name.
    """

    network: Callable[[], nn.Module]
    """Makes the network; called under a seed, so that equal seeds give equal weights."""
    loss: Loss | None  # type: ignore[assignment]
    """(outputs, targets) -> mean loss, a 0-d tensor. None: the network's outputs have one of their own, `outputs.loss`,
    as those of Hugging Face have."""
    samples: Callable[[Any], Any]
    """Reads what a silo's source names, see above."""
    scores: Mapping[Any, SampleScore] = field(default_factory=dict)
    """More metrics besides the loss, each a mean over samples: {"accuracy": lambda out, y: out.argmax(1) == y}. A name
    alone is a pure number of which more is better; a `Metric` says its unit, direction and label."""
    name: str = "torch"
    """What all silos must agree on; silos with another name are refused."""
    standardises: bool = False  # type: ignore[assignment]
    """Standardise the columns of x [samples, columns] over all silos before training."""
    may_be_empty: ClassVar[bool] = True  # type: ignore[misc]
    """A silo without a row says so and takes no part."""
    exchange: Exchange | None = None
    """Which tensors of the network travel: patterns of their names, "!" before those that stay: "trunk.*", or
    ["!head.*"], or ["*lora*"]; or a function of name and tensor: lambda name, tensor: tensor.requires_grad. The rest is
    each silo's own and stays there: each has its head, or all have what `network` makes, frozen. None: everything."""
    training_step: TrainingStep | None = None
    """(network, batch) -> mean loss, in place of network and loss; the loss that models are marked with, too."""
    fit: OwnLoop | None = None
    """(network, training samples, context) -> None or what happened: a whole loop of your own in place of steps; see
    ray_fed/learning/own_loop.py."""
    collate: Collate | None = None
    """Makes a batch of a list of samples; None: a DataLoader's own, else PyTorch's."""
    target: str = ""
    """Key or attribute of the target in a batch, where samples are no tuples."""
    recipe: Recipe = field(default_factory=Recipe)
    """How steps are taken; `federate` sets it from its Training."""

    def __post_init__(self) -> None:
        names = [metric.name for metric in self.metrics]
        twice = sorted({name for name in names if names.count(name) > 1})
        require(not twice, f"scores: metrics {twice} are there twice ('{LOSS.name}' is the task's loss); rename them")
        said = "fit is a whole loop, training_step a part of one; give one of them"
        require(self.fit is None or self.training_step is None, said)

    def load(self, spec: SiloSpec) -> LocalRows:
        """Call `samples`; DataError names the silo when what it returns cannot be used."""
        try:
            found = self.samples(spec.source)
        except (OSError, ValueError, KeyError) as error:
            text = f"silo '{spec.name}': {type(error).__name__}: {' '.join(str(error).split())}"
            raise DataError(text, failure=failure_of(error)) from error
        x, y, held_out_x, held_out_y = self._four_parts(found, spec.name)
        fingerprint = _fingerprint(x, y)
        return LocalRows(x, y, held_out_x, held_out_y, {}, fingerprint, self.agreement())

    def _four_parts(self, found: Any, silo: str) -> tuple[Any, ...]:
        """Return (x, y, held_out_x, held_out_y); of samples that are no arrays, x holds the targets, too."""
        form = form_of(found)
        if form == "arrays":
            try:
                return _four_arrays(found, silo)
            except RaggedSamples as error:
                if self.collate is None:
                    text = f"silo '{silo}': samples of different sizes need TorchTask(collate=), which makes a batch"
                    raise DataError(text, failure=Trouble.WRONG_SHAPE) from error
                form = "pairs"
        require(not self.standardises, f"silo '{silo}': standardises wants arrays x [samples, columns]")
        try:
            if form == "columns":
                rows = [column_rows(*found[at : at + 2]) for at in range(0, len(found), 2)]
            else:
                if form == "pairs":
                    found = [
                        list(zip(*found[at : at + 2], strict=True)) for at in range(0, len(found), 2)
                    ]  # fmt: skip
                parts = (found,) if form == "one set" else found
                rows = [item_rows(part, self.collate, self.target) for part in parts]
        except (ValueError, TypeError) as error:
            text = f"silo '{silo}': samples(): {' '.join(str(error).split())}"
            raise DataError(text, failure=Trouble.WRONG_SHAPE) from error
        train, held_out = rows[0], rows[1] if len(rows) > 1 else rows[0][:0]
        for part in (train, held_out):
            _require_finite(part, silo)
        return train, train.stand_in(), held_out, held_out.stand_in()

    def model(self, seed: int) -> nn.Module:
        """Return `network()`, made under `seed`; torch's global generator is left as it was. ConfigError for a network
        that cannot be trained as it is: without parameters, with lazy ones, or with others than float32."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derived_seed(seed, "initial weights"))
            return _trainable(self.network())

    # ---- training

    def with_recipe(self, recipe: Recipe) -> "TorchTask":
        """Return the task with steps as a recipe says. ConfigError for an optimiser that cannot be made."""
        if not recipe.has_flat_optimizer:
            recipe.make_optimizer(self.model(0), 1e-3)
        return replace(self, recipe=recipe)

    def prepare(self, rows: LocalRows, standardizer: Standardizer | None, device: str) -> Samples:
        """Return the samples on the device."""
        if not isinstance(rows.features, SampleRows):
            return super().prepare(rows, standardizer, device)
        features, held_out = rows.features.to(device), rows.held_out_features.to(device)
        return Samples(rows, features, target_tensor(rows.targets, device), held_out)

    def trainer(self, samples: Samples, session: SessionSpec, silo: SiloSpec) -> Trainer:
        """Return steps on the network, or the loop of one's own."""
        module, plan = self.model(session.model_seed), session.plan
        if plan.validation_share:
            return super().trainer(samples, session, silo)
        given = samples.features, samples.targets, plan, silo.name
        if self.fit:
            return OwnLoopTrainer(module, self.fit, self.recipe, *given)
        return OpenTrainer(module, self._work, *given)

    @property
    def _work(self) -> LocalWork:
        return LocalWork(self.loss, self.training_step, self.recipe)

    def evaluate(self, trainer: Trainer, samples: Samples, vector: Vector) -> tuple[Scores, Scores]:
        """Return the scores of the model at `vector` on the silo's training and held-out samples."""
        inner = innermost(trainer)
        if not isinstance(inner, OpenTrainer | OwnLoopTrainer):
            return super().evaluate(trainer, samples, vector)
        rows = samples.rows
        shown = 0 if trainer.plan.private else len(samples.features)

        def scored(targets: np.ndarray, features: Any) -> Scores:
            outputs = trainer.predict(features, vector)
            return self._scores(inner.module, inner.said, targets, outputs)

        return (
            scored(rows.targets[:shown], samples.features[:shown]),
            scored(rows.held_out_targets, samples.held_out_features),
        )

    def predictor(self) -> Predictor:
        """Return what predicts on a test set; of outputs that are no single tensor the columns of all."""
        return lambda vector, inputs: self._said_at(vector, inputs)[1].float().numpy()

    def test_scores(self, predict: Predictor, samples: Samples, vector: Vector) -> tuple[Scores, np.ndarray]:  # noqa: ARG002
        """Return the scores of the model at `vector` on a common test set, and its outputs [rows, ...] there."""
        said, outputs, module = self._said_at(vector, samples.features)
        return self._scores(module, said, samples.rows.targets, outputs), outputs.float().numpy()

    def _said_at(self, vector: Vector, inputs: Any) -> tuple[list[Said], torch.Tensor, nn.Module]:
        module = load_vector(self.model(0), vector).eval()
        said = list(said_of(module, inputs))
        return said, joined(said), module

    def _scores(self, module: nn.Module, said: Sequence[Said], targets: np.ndarray, outputs: torch.Tensor) -> Scores:
        """Return the scores of what a network said; `outputs` are all portions' together."""
        if self.loss and not self.training_step and all(_is_table(one) for one in said):
            return self.score(targets, outputs.float().cpu().numpy())
        total, start = self.score(targets[:0], np.zeros((0, 1), np.float32)), 0
        for one in said:
            own = one if one.rows is not None else _with_targets(one, targets[start : start + one.num_rows])
            total, start = total + self._scores_of(module, own), start + one.num_rows
        return total

    @torch.no_grad()
    def _scores_of(self, module: nn.Module, said: Said) -> MeanScores:
        if self.training_step:
            loss = one_number("training_step", self.training_step(module, said.batch))
        else:
            loss = self._work.own_loss(said.outputs, said.targets)
        names = [metric.name for metric in self.metrics[1:]]
        scored = {
            name: _per_sample(name, score(said.outputs, said.targets), said.num_rows)
            for name, score in zip(names, self.scores.values(), strict=True)
        }
        others = MeanScores.of({LOSS.name: np.zeros(said.num_rows), **scored})
        return MeanScores(said.num_rows, {**others.sums, LOSS.name: float(loss) * said.num_rows})

    def _require_mean(self, outputs: torch.Tensor, targets: torch.Tensor) -> None:
        """Raise ConfigError for a loss that is a sum over its rows: of the same rows twice it is twice as large."""
        once = float(self._work.own_loss(outputs, targets))
        twice = float(self._work.own_loss(torch.cat([outputs, outputs]), torch.cat([targets, targets])))
        is_sum = once != 0 and abs(twice / once - 2) < SAME
        require(not is_sum, "loss grows with its rows; return their mean, as torch's losses do with reduction='mean'")

    def exchanged(self, module: nn.Module) -> tuple[str, ...] | None:
        """Return the names that `exchange` chooses; ConfigError for a pattern that fits none."""
        return None if self.exchange is None else exchanged_names(module, self.exchange)

    def agreement(self) -> Mapping[str, str]:
        """Return the name of the task."""
        return {"task": self.name}

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """The loss, then `scores`."""
        return (LOSS, *(key if isinstance(key, Metric) else Metric(key, "", True, 4) for key in self.scores))

    def score(self, targets: np.ndarray, outputs: np.ndarray) -> MeanScores:
        """Return the mean loss and the means of `scores`; sums over samples leave the silo, no sample does."""
        loss_name, *names = (metric.name for metric in self.metrics)
        if len(targets) == 0:
            return MeanScores(0, dict.fromkeys([loss_name, *names], 0.0))
        y, predicted = target_tensor(targets, "cpu"), torch.from_numpy(outputs)
        loss = float(self._work.own_loss(predicted, y)) * len(targets)
        self._require_mean(predicted[:FEW], y[:FEW])
        scored = zip(names, self.scores.values(), strict=True)
        others = MeanScores.of({name: _per_sample(name, score(predicted, y), len(y)) for name, score in scored})
        return MeanScores(len(targets), {loss_name: loss, **others.sums})


def _trainable(module: nn.Module) -> nn.Module:
    tensors = dict(module.named_parameters())
    require(len(tensors) > 0, "network: it has no parameters, so there is nothing to train")
    tensors |= dict(module.named_buffers())
    for name, tensor in tensors.items():
        lazy = nn.parameter.is_lazy(tensor)
        require(not lazy, f"network: {name} has no shape yet; let `network` run one batch through its lazy layers")
        is_real = tensor.is_floating_point() or tensor.is_complex()
        kind = str(tensor.dtype).removeprefix("torch.")
        said = f"network: {name} is {kind}; models travel and train as float32, so make it float32"
        require(not is_real or tensor.dtype == torch.float32, f"{said} (torch.autocast inside of it is fine)")
    return module


def _four_arrays(found: object, silo: str) -> tuple[np.ndarray, ...]:
    if not isinstance(found, tuple) or len(found) not in (2, 4):
        raise DataError(
            f"silo '{silo}': samples() must return (x, y) or (x, y, held_out_x, held_out_y), not {_kind(found)}",
            failure=Trouble.WRONG_SHAPE,
        )
    arrays = [_array(part) for part in found]
    arrays += [array[:0] for array in arrays[: 4 - len(arrays)]]
    for x, y in (arrays[:2], arrays[2:]):
        if len(x) != len(y):
            raise DataError(
                f"silo '{silo}': samples() returned {len(x)} inputs for {len(y)} targets",
                failure=Trouble.WRONG_SHAPE,
            )
    for array in arrays:
        bad = int((~np.isfinite(array)).sum()) if np.issubdtype(array.dtype, np.floating) else 0
        if bad:
            raise DataError(
                f"silo '{silo}': samples() returned {bad} values that are not finite", failure=Trouble.NOT_FINITE
            )
    return tuple(arrays)


class RaggedSamples(Exception):
    """What should be an array has parts of different sizes."""


def _array(part: Any) -> np.ndarray:
    if isinstance(part, torch.Tensor):
        return part.detach().cpu().numpy()
    try:
        return np.asarray(part)
    except ValueError as error:
        raise RaggedSamples(str(error)) from error


def _kind(found: object) -> str:
    return f"{len(found)} things" if isinstance(found, tuple) else type(found).__name__


def _fingerprint(x: Any, y: Any) -> dict[str, object]:
    if isinstance(x, SampleRows):
        return {"rows": len(x), "hash": y[:1].tobytes().hex()[:16]}
    return {"rows": len(x), "sample": list(x.shape[1:]), "hash": _digest(x, y)}


def _require_finite(rows: SampleRows, silo: str) -> None:
    bad = sum(
        int((~np.isfinite(values)).sum()) for _, values in rows.leaves() if np.issubdtype(values.dtype, np.floating)
    )
    if bad:
        text = f"silo '{silo}': samples() returned {bad} values that are not finite"
        raise DataError(text, failure=Trouble.NOT_FINITE)


def _per_sample(name: str, values: Any, num_rows: int) -> np.ndarray:
    """Return a score's values [samples]; ConfigError for anything else."""
    array = values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else values
    if not isinstance(array, np.ndarray) or array.shape != (num_rows,):
        shape = f"{list(array.shape)}" if isinstance(array, np.ndarray) else f"a {type(values).__name__}"
        raise ConfigError(f"score '{name}' must return one value per sample, [{num_rows}], not {shape}")
    return array


def _is_table(said: Said) -> bool:
    return said.rows is None and isinstance(said.outputs, torch.Tensor)


def _with_targets(said: Said, targets: np.ndarray) -> Said:
    device = next((leaf.device for leaf in tensors_of(said.outputs)), "cpu")
    true = target_tensor(targets, str(device))
    return replace(said, targets=true, batch=(said.inputs, true))


def form_of(found: object) -> str:
    """Return what a task's `samples` gave: arrays | columns (tuples and dictionaries of arrays) | two sets | one set of
    samples. What is none of these is "arrays", whose reading says what is wrong."""
    if isinstance(found, tuple) and len(found) == 2 and all(map(_is_set, found)):
        return "two sets"
    if isinstance(found, tuple):
        inputs, is_pairs = found[::2], len(found) in (2, 4)
        has_parts = any(isinstance(part, Mapping | tuple) for part in found)
        return "columns" if inputs and is_pairs and has_parts else "arrays"
    return "one set" if _is_set(found) else "arrays"


def _is_set(found: object) -> bool:
    """Tell whether something is a set of samples: a Dataset or the like, or a list of tuples, dictionaries, objects."""
    if isinstance(found, str | bytes | Mapping | tuple | np.ndarray | torch.Tensor) or not hasattr(found, "__iter__"):
        return isinstance(found, torch.utils.data.Dataset)
    if isinstance(found, list):
        return all(isinstance(one, tuple | Mapping) or hasattr(one, "__dict__") for one in found) and bool(found)
    return True


def _digest(*arrays: np.ndarray) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:16]
