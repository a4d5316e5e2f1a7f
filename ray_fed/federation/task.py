"""What is trained: samples, a network, a loss. A silo opens its samples through its task, inside its own process."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import isfinite
from typing import Any

import numpy as np
import torch
from torch import nn

from ray_fed.config import at_home, require, require_gpus
from ray_fed.federation.messages import SessionSpec, Vector
from ray_fed.learning.early_stopping import StoppingTrainer
from ray_fed.learning.layout import BufferPolicy, Layout, floating_buffers
from ray_fed.learning.standardisation import ColumnMoments, Standardizer
from ray_fed.learning.steps import Loss
from ray_fed.learning.trainer import LocalTrainer, Trainer, TrainingPlan, copy_blocks, portions
from ray_fed.metrics import Metric, RegressionSums, Scores, regression_metrics, secret_of

Predictor = Callable[[Vector, Any], np.ndarray]
"""(vector, inputs) -> outputs [rows, ...] of the model at that vector."""
Counting = Callable[..., tuple[int, np.ndarray]]
"""(samples, care, *what was given with the question) -> (rows counted, counts int64 [n]); see `Task.countings`."""


FOLDERS = ("state_folder", "ledger_folder", "log_folder", "personal_folder")
"""Of a silo's specification, on its own disk."""


@dataclass(frozen=True)
class SiloSpec:
    """Everything needed to put a silo somewhere and let it open its own data there."""

    name: str
    """Name in every message, figure and error."""
    source: object
    """Where the silo finds its rows, in the terms of its task; opened by the silo, never by the driver."""
    num_gpus: float | None = None
    """GPUs reserved for the silo's actor: 1 pins it to one, 0.25 shares one among four, 0 trains on CPU; None takes an
    even share of what its site has, at most 1."""
    num_cpus: float = 1.0
    """CPUs reserved for it."""
    site: str = ""
    """Value of the node label `site` the silo must stand on; empty: anywhere."""
    state_folder: str = ""
    """Folder on the silo's own disk for its optimiser state, so that a restarted silo redoes a round exactly; empty: a
    restarted silo begins with fresh moments."""
    run: str = ""
    """Name of the run, for the file of the silo's ledger."""
    ledger_folder: str = ""
    """Folder on the silo's own disk for its ledger and its log, where its owner's site file names none; empty: it keeps
    no ledger."""
    log_folder: str = ""
    """Folder on the silo's own disk for its log, where it has none for a ledger; empty: among temporary files."""
    personal_folder: str = ""
    """Folder on the silo's own disk for what of the final model is its own alone; empty: it is not kept."""
    possession: str = ""
    """What `Task.possession` gave for a test set's source where it is asked for, if it is there, too: who shows that it
    has the same rows may see them."""
    dataset: str = ""
    """Name of the data set in its owner's file: what the owner's book counts by; empty: all rows of the machine are
    one."""
    memory_gb: float = 0.0
    """GB of main memory that Ray sets aside for it on its node; bookkeeping, as with shares of a GPU."""

    def __post_init__(self) -> None:
        """ConfigError for what no node can give one process."""
        require_gpus(self.num_gpus, f"silo '{self.name}': num_gpus")
        for name in ("num_cpus", "memory_gb"):
            value = getattr(self, name)
            fits = isfinite(value) and value >= 0
            require(fits, f"silo '{self.name}': {name}={value} must be a finite number, 0 or more")

    def at_home(self) -> "SiloSpec":
        """Return the spec with `~` in its folders as the home of the account that this process runs under."""
        folders = {name: getattr(self, name) for name in FOLDERS}
        return replace(self, **{name: str(at_home(folder)) if folder else "" for name, folder in folders.items()})


@dataclass(frozen=True)
class LocalRows:
    """A silo's own samples as it read them. Never leaves the process that made it.

    Arrays whose first axis counts samples, or, where the task's trainer knows what to do with them, any sequence with
    one entry per sample (graphs of different sizes); what is no array tells by `arrays()`, name -> real numbers, what
    the gate must know again.
    """

    features: Any = field(repr=False)
    """[num_examples, ...]; float64 [num_examples, num_features], finite, where the task standardises columns."""
    targets: Any = field(repr=False)
    """[num_examples, ...]: numbers, classes or masks, as the task's loss wants them."""
    held_out_features: Any = field(repr=False)
    """[num_held_out, ...]: samples to evaluate on, perhaps none."""
    held_out_targets: Any = field(repr=False)
    """[num_held_out, ...]."""
    unreadable: Mapping[str, int]
    """Kind of reason -> number of rows that cannot be used; kinds carry no value of any row."""
    fingerprint: Mapping[str, object]
    """Hash, rows and columns of the source, for the record of the run; leaves the silo."""
    agreement: Mapping[str, str]
    """What this silo has of what all must agree on: compared with `Task.agreement`; leaves the silo."""
    notes: Mapping[str, int] = field(default_factory=dict, kw_only=True)
    """Kind of note -> number of rows of which something is odd, used all the same; no value of any row."""
    remarks: tuple[str, ...] = field(default=(), repr=False, kw_only=True)
    """Reasons and notes in whole, with values: for the owner's log alone."""
    groups: Sequence[str] = field(default=(), repr=False, kw_only=True)
    """Of each training sample the group that no split may cut, such as its reduced formula; none where there are
    none."""
    held_out_groups: Sequence[str] = field(default=(), repr=False, kw_only=True)
    """The same of the held-out samples."""
    names: Sequence[str] = field(default=(), repr=False, kw_only=True)
    """What the owner calls each training sample, for the owner's own log; perhaps none."""
    held_out_names: Sequence[str] = field(default=(), repr=False, kw_only=True)
    """The same of the held-out samples."""

    def __repr__(self) -> str:  # no value of a row: this may end in a log
        return f"{type(self).__name__}({len(self.features)} samples, {len(self.held_out_features)} held out)"


@dataclass(frozen=True)
class Samples:
    """A silo's samples as its trainers take them: standardised, on the silo's device. Shared by all its sessions."""

    rows: LocalRows
    """The samples as they were read."""
    features: Any = field(repr=False)
    """Tensor [num_examples, ...] on the device, or what the task's own trainer takes."""
    targets: Any = field(repr=False)
    """The same of the targets, as `target_tensor` makes them."""
    held_out_features: Any = field(repr=False)
    """Like `features`, of the held-out samples."""
    standardizer: Standardizer | None = field(default=None, kw_only=True, repr=False)
    """What the columns were standardised with; None where the task has no scaler."""
    undo: Callable[[np.ndarray], np.ndarray] | None = field(default=None, kw_only=True, repr=False)
    """From outputs of the network [rows, ...] to what they say in the user's terms, where that is something else:
    `Task.predicted` with the standardizer."""

    def said(self, outputs: np.ndarray) -> np.ndarray:
        """Return what outputs [rows, ...] say in the user's terms, for scores and for people."""
        return outputs if self.undo is None else self.undo(outputs)


@dataclass(frozen=True)
class Care:
    """What whoever counts rows has to mind."""

    fewest: int
    """Rows that a count must have; below it is 0."""
    is_probe: Callable[[str, np.ndarray], bool]
    """(part of the rows, outputs [rows, ...] of a model there) -> whether the model is made to tell rows apart: its
    errors are then not counted."""


class Task(ABC):
    """What silos and coordinator have in common: how samples become arrays, which network, which loss.

    Derived classes are frozen dataclasses: a task is pickled and travels to every silo.

    The four abstract methods are enough for a network that is trained by gradients on arrays. `prepare`, `trainer`,
    `evaluate` and `predictor` are there to be overridden by what is not: trees, graphs, a training loop of one's own.
    A task whose silos answer further queries also has a method `silo(spec, device) -> Silo`.
    """

    loss: Loss
    """(outputs, targets) -> mean loss, a 0-d tensor."""
    unit: str = ""
    """Unit of the target, where it has one."""
    standardises: bool = True
    """Whether the features are columns of a table that the federation standardises together before training."""
    may_be_empty: bool = False
    """Whether a silo with no row, or with fewer than its owner lets out anything about, opens all the same: it then
    says that it has none, and takes no part. Otherwise it is refused."""
    knows_rows: bool = True
    """Whether silos know how many rows they have; False where a client of the user's own keeps them to itself."""

    @abstractmethod
    def load(self, spec: SiloSpec) -> LocalRows:
        """Open the silo's samples; DataError names the silo."""

    @abstractmethod
    def model(self, seed: int) -> nn.Module:
        """Return the network with initial weights that depend on `seed` alone; for another kind of model, a module that
        holds the numbers that travel."""

    @abstractmethod
    def agreement(self) -> Mapping[str, str]:
        """Return what every silo's samples must agree with."""

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """Whatever `score` may tell, at least one; tables, figures and comparisons begin with the first. A silo says
        these names when it opens its data, and no other ones leave it. Default: those of the default `score`."""
        return regression_metrics(self.unit)

    def score(self, targets: np.ndarray, outputs: np.ndarray) -> Scores:
        """Return what an evaluation tells: sums over samples, none of them alone; outputs are as `Samples.said` tells
        them. Default: MAE, R² and MSE of one output [rows, 1] against targets [rows], in the target's unit."""
        return RegressionSums.of(targets, outputs[:, 0])

    def moment_columns(self, rows: LocalRows) -> np.ndarray:
        """Return the columns [num_examples, k] that the federation standardises together, each without a gap. Default:
        the features."""
        return rows.features

    def standardizer(self, moments: ColumnMoments) -> Standardizer:
        """Return the scaler that the moments of all silos' `moment_columns` make. Default: one mean and one standard
        deviation per column."""
        return Standardizer.from_moments(moments)

    def predicted(self, outputs: np.ndarray, standardizer: Standardizer | None) -> np.ndarray:  # noqa: ARG002
        """Return what outputs of the network [rows, ...] say in the user's terms, for `score` and for people. Default:
        as they are."""
        return outputs

    def countings(self) -> Mapping[str, Counting]:
        """Return the questions that a silo, or who holds a test set, answers with counts of rows: name, beginning with
        `count_`, -> what counts. Default: none."""
        return {}

    def possession(self, source: object) -> str:
        """Return what only somebody can know who has the samples of a source, "" where that is not shown: whoever says
        it of a test set may see single predictions. Default: a hash over its targets, where they can be read here."""
        try:
            targets = self.load(SiloSpec("test", source)).targets
        except Exception:  # whoever cannot read them has not shown that they are there; the evaluator says why
            return ""
        return secret_of([targets]).hex() if isinstance(targets, np.ndarray) and targets.dtype != object else ""

    def prepare(self, rows: LocalRows, standardizer: Standardizer | None, device: str) -> Samples:
        """Return the rows as a trainer takes them. Default: tensors on the device."""
        features, held_out = (
            feature_tensor(part, standardizer, device) for part in (rows.features, rows.held_out_features)
        )
        return Samples(rows, features, target_tensor(rows.targets, device), held_out, standardizer=standardizer)

    def exchanged(self, module: nn.Module) -> tuple[str, ...] | None:  # noqa: ARG002
        """Return the names of the parameters and floating-point buffers that travel; what does not stays with each
        silo, and is not known to the coordinator. Default: None, all of them."""
        return None

    def layout(self, module: nn.Module, buffers: BufferPolicy = "average") -> Layout:
        """Return the layout of what travels."""
        whole, names = Layout.of(module, buffers), self.exchanged(module)
        return whole if names is None else whole.part(names)

    def trainer(self, samples: Samples, session: SessionSpec, silo: SiloSpec) -> Trainer:
        """Return what trains in a session of a silo. Default: mini-batch steps on `model(session.model_seed)`."""
        module, plan = self.model(session.model_seed), session.plan
        given = module, self.loss, samples.features, samples.targets, plan, silo.name
        return StoppingTrainer(*given, samples.rows.groups) if plan.validation_share else LocalTrainer(*given)

    def most_examples(self, num_examples: int, plan: TrainingPlan) -> int:
        """Return the most rows that a silo which told so many can count in one round: its weight in the mean. An update
        that claims more is refused. Default: every row once in each pass that the round begins; under privacy the
        number that the plan says, as a silo's own is not told."""
        steps = plan.most_steps
        if plan.private:
            return max(1, plan.private.num_examples * steps // plan.steps_per_epoch)
        return num_examples * -(-steps // plan.steps_per_epoch)

    def evaluate(self, trainer: Trainer, samples: Samples, vector: Vector) -> tuple[Scores, Scores]:
        """Return the scores of the model at `vector` on the silo's training and held-out samples."""
        rows = samples.rows
        shown = 0 if trainer.plan.private else len(samples.features)  # exact errors on private rows would tell of them

        def scored(targets: np.ndarray, features: Any) -> Scores:
            outputs = trainer.predict(features, vector).cpu().numpy()
            return self.score(targets, samples.said(outputs))

        return (
            scored(rows.targets[:shown], samples.features[:shown]),
            scored(rows.held_out_targets, samples.held_out_features),
        )

    def predictor(self) -> Predictor:
        """Return what predicts on a test set, where there is no trainer. Default: `model(0)` with the vector in it."""
        module = self.model(0).eval()
        blocks = [tensor.detach().view(-1) for tensor in (*module.parameters(), *floating_buffers(module).values())]

        @torch.no_grad()
        def predict(vector: Vector, inputs: torch.Tensor) -> np.ndarray:
            copy_blocks(blocks, vector)
            return torch.cat([module(part) for part in portions(inputs)]).numpy()

        return predict

    def test_scores(self, predict: Predictor, samples: Samples, vector: Vector) -> tuple[Scores, np.ndarray]:
        """Return the scores of the model at `vector` on a common test set, and its outputs [rows, ...] there."""
        outputs = predict(vector, samples.features)
        return self.score(samples.rows.targets, samples.said(outputs)), outputs


def feature_tensor(values: np.ndarray, standardizer: Standardizer | None, device: str) -> torch.Tensor:
    """Return network inputs: columns standardised where there is a scaler; real numbers as float32, whole ones (atomic
    numbers, tokens) as they are."""
    if standardizer is not None:
        values = standardizer(values)
    elif np.issubdtype(values.dtype, np.floating):
        values = np.asarray(values, np.float32)
    return torch.from_numpy(np.ascontiguousarray(values)).to(device)


def target_tensor(values: np.ndarray, device: str) -> torch.Tensor:
    """Return what the loss compares with: real numbers as float32, one per row as a column [rows, 1]; classes and masks
    as they are."""
    if np.issubdtype(values.dtype, np.floating):
        values = np.asarray(values, np.float32)
        values = values[:, None] if values.ndim == 1 else values
    return torch.from_numpy(np.ascontiguousarray(values)).to(device)
