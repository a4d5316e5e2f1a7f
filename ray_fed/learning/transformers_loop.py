"""A network of Hugging Face by its own Trainer.

    task = TorchTask(make_model, None, samples, fit=TransformersLoop({"weight_decay": 0.01}))

needs `pip install ray-fed[transformers]`. `samples` gives a set of dictionaries, or two, the second held out, with what
the network takes by name, labels among it; loss=None marks models with the network's own loss. A round is
`max_steps` of the plan; the optimiser goes on where the silo's last round left it.
"""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from ray_fed.learning.own_loop import FitContext, samples_of


@dataclass(frozen=True)
class TransformersLoop:
    """An `OwnLoop` that the Trainer of Hugging Face runs."""

    arguments: Mapping[str, Any] = field(default_factory=dict)
    """Of `transformers.TrainingArguments`: weight_decay, max_grad_norm, gradient_accumulation_steps, bf16, ..."""

    def __call__(self, network: nn.Module, data: Any, context: FitContext) -> Mapping[str, Any]:
        """Train one round."""
        import transformers  # type: ignore[import-not-found]

        rows = samples_of(data)
        with tempfile.TemporaryDirectory() as folder:  # it wants one even where it writes nothing
            plain = {
                "output_dir": folder, "per_device_train_batch_size": context.batch_size,
                "max_steps": context.num_steps, "learning_rate": context.learning_rate, "seed": context.seed % 2**31,
                "lr_scheduler_type": "constant", "save_strategy": "no", "logging_strategy": "no", "report_to": [],
                "disable_tqdm": True, "use_cpu": context.device.type == "cpu", "dataloader_pin_memory": False,
            }  # fmt: skip
            trainer = transformers.Trainer(
                model=network,  # type: ignore[arg-type]
                args=transformers.TrainingArguments(**{**plain, **self.arguments}),
                train_dataset=data,
                data_collator=rows.collate if rows is not None and not rows.is_columns else None,
            )
            optimizer = trainer.create_optimizer()
            if "optimizer" in context.state:
                optimizer.load_state_dict(context.state["optimizer"])
            found = trainer.train()
        context.keep(optimizer)
        return {"loss": float(found.training_loss), "num_steps": int(found.global_step)}
