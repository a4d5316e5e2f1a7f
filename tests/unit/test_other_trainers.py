"""Lightning's Trainer and that of Hugging Face as a silo's loop; skipped where the packages are not there."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional

from tests.unit.test_own_steps import (
    PLAN,
    TASK,
    bits,
    broken_off_and_resumed,
    network,
    train,
    two_sets,
)

pytestmark = pytest.mark.filterwarnings("ignore")  # theirs, not ours


def lightning_task():
    lightning = pytest.importorskip("pytorch_lightning", reason="needs the extra: pip install ray-fed[lightning]")
    from ray_fed.learning.lightning_loop import LightningLoop

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.body = network()

        def forward(self, x):
            return self.body(x)

        def training_step(self, batch, batch_idx):  # noqa: ARG002
            loss = functional.cross_entropy(self(batch[0]), batch[1])
            self.log("train_loss", loss)
            return loss

        def configure_optimizers(self):
            optimizer = torch.optim.AdamW(self.parameters(), lr=0.05, weight_decay=0.1)
            return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 2)]

    return replace(TASK, network=Module, fit=LightningLoop({"gradient_clip_val": 1.0}))


def test_a_lightning_module_learns_and_resumes_to_the_same_bytes(tmp_path):
    task = lightning_task()
    whole = train(task)
    assert whole.metrics["federated.accuracy"] > 0.8
    assert whole.records[-1].metrics["train_loss"] < whole.records[1].metrics["train_loss"]
    resumed = broken_off_and_resumed(tmp_path / "run", task=task)
    assert bits(resumed) == bits(whole)
    assert resumed.records == whole.records


def transformers_task():
    transformers = pytest.importorskip("transformers", reason="needs the extra: pip install ray-fed[transformers]")
    pytest.importorskip("accelerate", reason="needs the extra: pip install ray-fed[transformers]")
    from ray_fed.learning.transformers_loop import TransformersLoop

    def made():
        config = transformers.BertConfig(
            vocab_size=20,
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            num_labels=2,
        )
        return transformers.BertForSequenceClassification(config)

    def tokens(x, y):
        ids = np.clip((x * 3 + 10).astype(np.int64), 0, 19)
        return [{"input_ids": a, "labels": b} for a, b in zip(ids, y, strict=True)]

    return replace(
        TASK, network=made, loss=None, samples=two_sets(tokens), fit=TransformersLoop({"weight_decay": 0.01}), scores={}
    )


def test_a_network_of_hugging_face_learns_by_its_own_trainer_and_resumes_to_the_same_bytes(tmp_path):
    task, plan = transformers_task(), replace(PLAN, learning_rate=0.005)
    whole = train(task, plan)
    assert whole.metrics["federated.loss"] < whole.records[0].metrics["federated.loss"]
    resumed = broken_off_and_resumed(tmp_path / "run", task=task, plan=plan)
    assert bits(resumed) == bits(whole)
    assert resumed.records == whole.records


def test_the_steps_of_a_plan_train_a_network_of_hugging_face_too():
    task = replace(transformers_task(), fit=None)
    result = train(task, replace(PLAN, optimizer="adamw", learning_rate=0.005))
    assert result.metrics["federated.loss"] < result.records[0].metrics["federated.loss"]
