"""A user's own training loop as a silo's trainer: `fit(network, data, context)`.

The network comes with the values that were received; whatever it has when the loop returns is sent. Everything random
begins anew in each round from (seed, silo, round): torch's, NumPy's and Python's global generators are lent for it. So
a round that is done twice comes out the same, as long as what the loop remembers is in `context.state`.
"""

import contextlib
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import TensorDataset

from ray_fed.config import require
from ray_fed.errors import SiloFailed
from ray_fed.learning.kept_values import decoded, encoded
from ray_fed.learning.layout import Layout
from ray_fed.learning.open_trainer import Said, joined, said_of
from ray_fed.learning.recipe import Recipe
from ray_fed.learning.sample_rows import SampleRows, mapped
from ray_fed.learning.trainer import FitResult, TrainingPlan, normalise_single_samples
from ray_fed.randomness import derived_seed, generator


@dataclass
class FitContext:
    """What a loop is told, and what it may keep."""

    silo: str
    server_round: int
    """From 1."""
    num_rounds: int
    num_steps: int
    """Mini-batches that the plan has for this silo in this round; the loop may take others."""
    batch_size: int
    learning_rate: float
    seed: int
    """Of this silo and round; the global generators begin with it."""
    device: torch.device
    state: dict[str, Any]
    """Kept between rounds, and through a restart: tensors, arrays, numbers, texts, and lists, tuples and dictionaries
    of them, such as the `state_dict()` of an optimiser. Empty in the first round."""
    received: Mapping[str, torch.Tensor]
    """The network's parameters as they were received."""
    recipe: Recipe
    """Options of the optimiser that the run was asked for; what a loop makes of them is its own affair."""
    draw: Callable[[], Iterator[np.ndarray]]
    config: Mapping[str, float]
    """What the strategy gives this silo in this round (`Strategy.configure`)."""

    def batches(self, data: Any) -> Iterator[Any]:
        """Yield the plan's mini-batches of the round: the silo's samples, shuffled anew in each pass, on the device."""
        for index in self.draw():
            if isinstance(data, _Items):
                yield data.rows[index].batch()
            else:
                yield tuple(tensor[torch.from_numpy(index).to(self.device)] for tensor in data.tensors)

    def optimizer(self, network: nn.Module) -> torch.optim.Optimizer:
        """Return the optimiser that the run was asked for, in the state that it had after the silo's last round."""
        made = self.recipe.make_optimizer(network, self.learning_rate)
        if "optimizer" in self.state:
            made.load_state_dict(self.state["optimizer"])
        return made

    def keep(self, optimizer: torch.optim.Optimizer) -> None:
        """Keep an optimiser's state for the next round."""
        self.state["optimizer"] = optimizer.state_dict()


OwnLoop = Callable[[nn.Module, Any, FitContext], Mapping[str, Any] | None]
"""(network, training samples, context) -> None, or some of: loss (mean over the round), num_examples (samples seen),
num_steps, and the numbers that the strategy reads (`Strategy.metric_names`). Samples: what the task's `samples` gave
for training; of arrays a TensorDataset."""
ANSWERS = ("loss", "num_examples", "num_steps")


class _Items(torch.utils.data.Dataset):
    """Samples as a Dataset, with what makes batches of them."""

    def __init__(self, rows: SampleRows):
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, at: int) -> Any:
        rows = self.rows
        if rows.is_columns:
            return mapped(rows[at : at + 1].batch(), lambda column: column[0])
        return rows.items[int(rows.index[at])]


def samples_of(data: Any) -> SampleRows | None:
    """Return what a loop's training samples are made from; None of a TensorDataset."""
    return data.rows if isinstance(data, _Items) else None


class OwnLoopTrainer:
    """A `Trainer` whose rounds are a user's own loop. `features`, `targets`: as those of OpenTrainer."""

    def __init__(
        self, module: nn.Module, loop: OwnLoop, recipe: Recipe, features: Any, targets: torch.Tensor,
        plan: TrainingPlan, silo: str,
    ):  # fmt: skip
        said = "goes into every step, and the steps are those of your own loop: leave it out, or TorchTask(fit=)"
        require(not plan.control_variates, f"SCAFFOLD {said}")
        require(not plan.proximal_mu, f"a proximal pull {said}; context.received has what to be pulled to")
        require(plan.private is None, f"noise for privacy {said}")
        require(plan.compression is None, "compression does not go with a loop of your own; leave it out")
        require(plan.optimizer_state != "average", "optimizer_state=average: a loop's own optimiser has none to send")
        require(plan.buffers != "recompute", "buffers=recompute does not go with a loop of your own; choose local")
        self.plan, self.silo, self.loop, self.recipe = plan, silo, loop, recipe
        self.device = features.device if isinstance(features, torch.Tensor) else torch.device(features.device)
        self.features = features
        self.data: Any = _Items(features) if isinstance(features, SampleRows) else TensorDataset(features, targets)
        self.layout = Layout.of(module, plan.buffers)
        self.module = module.to(self.device)
        normalise_single_samples(module)
        travelling = {*self.layout.names} - {*plan.keep_local}
        self.own = {
            name: tensor.detach().clone()
            for name, tensor in (*module.named_parameters(), *module.named_buffers())
            if name not in travelling
        }
        """What stays: parameters and statistics of the silo's own, counters."""
        self._first = {name: tensor.clone() for name, tensor in self.own.items()}
        self.state: dict[str, Any] = {}
        self.config: Mapping[str, float] = {}
        self.metrics: Mapping[str, float] = {}
        self.said: list[Said] = []

    def fit_round(self, vector: np.ndarray, server_round: int) -> tuple[np.ndarray, FitResult]:
        """Let the loop train. SiloFailed where it returns what it should not."""
        self._load(vector)
        steps = self.plan.steps_of_round(server_round)
        seed = derived_seed(self.plan.seed, "own loop", self.silo, server_round)
        indices = list(self._drawn(steps))
        context = FitContext(
            self.silo, server_round, self.plan.num_rounds, len(steps),
            -(-len(self.features) // self.plan.steps_per_epoch), self.plan.learning_rate, seed, self.device, self.state,
            {name: parameter.detach().clone() for name, parameter in self.module.named_parameters()},
            self.recipe, lambda: iter(indices), self.config,
        )  # fmt: skip
        self.module.train()
        self.module.zero_grad(set_to_none=True)  # what a loop leaves there must not make a difference after a restart
        with _seeded(seed, self.device):
            answer = self.loop(self.module, self.data, context)
        told = self._checked(answer)
        self.metrics = {name: float(told[name]) for name in self.plan.told}
        # As it comes back after a restart, whether or not there is one: what cannot be kept is known at once.
        state = decoded(encoded(context.state, self.silo))
        self.state = state if self.plan.optimizer_state == "keep" else {}
        seen = int(told.get("num_examples", sum(map(len, indices)) or len(self.features)))
        return self._vector(), FitResult(int(told.get("num_steps", len(steps))), seen, float(told.get("loss", 0.0)))

    # ---- numbers of this silo's own, in each round

    def check_numbers(self, config: Sequence[str], told: Sequence[str]) -> None:  # noqa: ARG002
        """What `config` means is the loop's own affair; what it tells must not be what every update has."""
        twice = sorted({*told} & {*ANSWERS})
        require(not twice, f"{', '.join(twice)} is in every update: read it there")

    def take(self, config: Mapping[str, float]) -> None:
        self.config = dict(config)

    def tell(self) -> Mapping[str, float]:
        return self.metrics

    def _checked(self, answer: Any) -> Mapping[str, Any]:
        told, known = {} if answer is None else answer, (*ANSWERS, *self.plan.told)
        numbers = isinstance(told, Mapping) and all(
            name in known and isinstance(value, int | float | np.number | torch.Tensor) for name, value in told.items()
        )
        if not numbers:
            said = f"fit returned {type(answer).__name__} {sorted(told) if isinstance(told, Mapping) else ''}".strip()
            raise SiloFailed(
                self.silo, "calling fit", f"{said}; it must return None, or numbers among {', '.join(known)}"
            )
        if missing := sorted({*self.plan.told} - {*told}):
            raise SiloFailed(self.silo, "calling fit", f"it told no {', '.join(missing)}, which the strategy reads")
        return told

    def _drawn(self, steps: range) -> Iterator[np.ndarray]:
        """Yield the numbers of the rows of each mini-batch, as LocalTrainer deals them."""
        per_epoch, num_rows = self.plan.steps_per_epoch, len(self.features)
        order, drawn_for = np.empty(0, np.int64), -1
        for step in steps:
            epoch, batch = divmod(step, per_epoch)
            if epoch != drawn_for:
                order = generator(self.plan.seed, "shuffle", epoch, self.silo).permutation(num_rows)
                drawn_for = epoch
            yield order[batch * num_rows // per_epoch : (batch + 1) * num_rows // per_epoch]

    # ---- values

    @torch.no_grad()
    def _load(self, vector: np.ndarray) -> None:
        if vector.shape != (self.layout.size,) or vector.dtype != np.float32:
            raise ValueError(f"expected float32 [{self.layout.size}], got {vector.dtype} {list(vector.shape)}")
        self.layout.load(self.module, vector)
        tensors = self._tensors()
        for name, value in self.own.items():
            tensors[name].copy_(value)

    def _vector(self) -> np.ndarray:
        """Return what travels, and keep what does not. SiloFailed where the loop has changed the network's form."""
        tensors = self._tensors()
        shapes = {name: tuple(tensors[name].shape) for name in self.layout.names if name in tensors}
        if shapes != dict(zip(self.layout.names, self.layout.shapes, strict=True)):
            raise SiloFailed(self.silo, "calling fit", "it changed the parameters' names or shapes")
        self.module.to(self.device)  # some loops leave it elsewhere
        for name, value in self.own.items():
            value.copy_(tensors[name])
        return self.layout.flatten(
            {name: tensors[name].detach().cpu().float().numpy() for name in self.layout.names}
        )  # fmt: skip

    def _tensors(self) -> dict[str, torch.Tensor]:
        return {**dict(self.module.named_parameters()), **dict(self.module.named_buffers())}

    @torch.no_grad()
    def predict(self, features: Any, vector: np.ndarray) -> torch.Tensor:
        """See OpenTrainer.predict."""
        kept = {name: tensor.detach().clone() for name, tensor in self._tensors().items()}
        self._load(vector)
        self.module.eval()
        self.said = list(said_of(self.module, features))
        for name, tensor in self._tensors().items():
            tensor.copy_(kept[name])
        return joined(self.said)

    def compress(self, received: np.ndarray, vector: np.ndarray) -> None:  # noqa: ARG002
        return None

    # ---- what stays between rounds

    def local_state(self) -> dict[str, torch.Tensor]:
        return {f"own.{name}": value for name, value in self.own.items()}

    def kept(self) -> dict[str, Any]:
        """Return what the loop remembers."""
        return self.state

    def restore(self, kept: dict[str, Any]) -> None:
        """Go on from what `kept` returned."""
        self.state = dict(kept)

    def forget(self) -> None:
        self.state = {}
        for name, value in self.own.items():
            value.copy_(self._first[name])


@contextlib.contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch's, NumPy's and Python's global generators for a while, and give them back as they were."""
    others = random.getstate(), np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        try:
            yield
        finally:
            random.setstate(others[0])
            np.random.set_state(others[1])  # noqa: NPY002
