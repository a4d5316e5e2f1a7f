"""A PyTorch Lightning module as it is: its own `training_step` and `configure_optimizers`, by Lightning's own Trainer.

    task = TorchTask(MyLightningModule, functional.cross_entropy, samples, fit=LightningLoop())

needs `pip install ray-fed[lightning]`. The network's `forward` is what is marked, with the task's loss and scores. A
round is one epoch of Lightning over the plan's mini-batches; optimisers and schedulers go on where the silo's last
round left them, counters (`global_step`, `current_epoch`) begin anew.
"""

import logging
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from ray_fed.learning.own_loop import FitContext

QUIET = {
    "logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False,
    "num_sanity_val_steps": 0, "limit_val_batches": 0, "max_epochs": 1,
}  # fmt: skip

EVERY_ROUND = (".*does not have many workers", ".*is smaller than the logging interval", ".*`train_dataloader` yielded")
"""Advice on loaders and loggers, which a round of the plan's mini-batches has not."""


@dataclass(frozen=True)
class LightningLoop:
    """An `OwnLoop` that Lightning runs."""

    options: Mapping[str, Any] = field(default_factory=dict)
    """Of `pytorch_lightning.Trainer`: gradient_clip_val, accumulate_grad_batches, precision, callbacks, loggers."""

    def __call__(self, network: nn.Module, data: Any, context: FitContext) -> Mapping[str, Any]:
        """Train one round; the network must be a LightningModule."""
        import pytorch_lightning as lightning  # type: ignore[import-not-found]

        logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)  # it greets in every round
        memory = _memory(lightning.Callback, context)
        where = {"accelerator": "gpu" if context.device.type == "cuda" else "cpu", "devices": 1}
        own = list(self.options.get("callbacks", ()))
        trainer = lightning.Trainer(**{**QUIET, **where, **self.options, "callbacks": [*own, memory]})
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", category=UserWarning, module="pytorch_lightning"
            )  # of workers, of logging
            trainer.fit(network, _Batches(data, context))  # type: ignore[arg-type]
        network.trainer = None  # type: ignore[assignment]
        return {"loss": memory.loss_sum / max(1, memory.num_batches), "num_steps": trainer.global_step}


@dataclass
class _Batches:
    """The round's mini-batches, as a loader."""

    data: Any
    context: FitContext

    def __len__(self) -> int:
        return self.context.num_steps

    def __iter__(self) -> Iterator[Any]:
        return self.context.batches(self.data)


def _memory(base: type, context: FitContext) -> Any:
    """Return a callback that brings optimisers and schedulers back, keeps them, and adds up losses."""

    class Memory(base):
        loss_sum, num_batches = 0.0, 0

        def on_train_start(self, trainer: Any, pl_module: Any) -> None:  # noqa: ARG002
            for one, state in zip(_keepers(trainer), context.state.get("lightning", ()), strict=False):
                one.load_state_dict(state)

        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:  # noqa: ARG002
            loss = outputs["loss"] if isinstance(outputs, Mapping) else outputs
            self.loss_sum += 0.0 if loss is None else float(loss)
            self.num_batches += 1

        def on_train_end(self, trainer: Any, pl_module: Any) -> None:  # noqa: ARG002
            context.state["lightning"] = [one.state_dict() for one in _keepers(trainer)]

    return Memory()


def _keepers(trainer: Any) -> list[Any]:
    return [*trainer.optimizers, *(one.scheduler for one in trainer.lr_scheduler_configs)]
