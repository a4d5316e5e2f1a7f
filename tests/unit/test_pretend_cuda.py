"""What computes on a GPU, on one that is not there: no tensors of two devices meet, and captured steps are steps."""

import gc
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from ray_fed.federation.messages import SessionSpec
from ray_fed.federation.silo import Silo
from ray_fed.leakage.attacks import DLG, OURS
from ray_fed.leakage.study import AttackJob, run_job
from ray_fed.learning.layout import Layout, initial_vector
from ray_fed.learning.trainer import LocalTrainer, TrainingPlan
from ray_fed.style_transfer.training import PRESETS, GeneratorTraining, Pairs
from tests.pretend_cuda import pretend_cuda
from tests.synthetic import SyntheticTask, silos
from tests.unit.test_style_training import TINY, stripes

PLAN = TrainingPlan(seed=0, epochs=3, steps_per_epoch=4, num_rounds=3, learning_rate=0.01)


def net(*parts):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), *(parts or (nn.ReLU(),)), nn.Linear(8, 1))


def trained(device, module=net, loss=functional.mse_loss, plan=PLAN):
    draw = np.random.default_rng(0)
    x, y = torch.tensor(draw.normal(size=(18, 5))).float(), torch.tensor(draw.normal(size=(18, 1))).float()
    trainer = LocalTrainer(module(), loss, x.to(device), y.to(device), plan, "a")
    vector = trainer.vector()
    losses = []
    for server_round in range(1, plan.num_rounds + 1):
        vector, result = trainer.fit_round(vector, server_round)
        losses.append(result.mean_loss)
    predicted = trainer.predict(trainer.features, vector)
    return vector, losses, predicted.cpu().numpy(), trainer


def test_the_pretence_refuses_what_a_gpu_refuses():
    with pretend_cuda() as pretence:
        here, there = torch.ones(3), torch.ones(3, device="cuda")
        assert (here.device.type, there.device.type, (2 * there).device.type) == ("cpu", "cuda", "cuda")
        with pytest.raises(RuntimeError, match="same device: add"):
            here + there
        with pytest.raises(TypeError, match="numpy"):
            there.numpy()
        assert (there + torch.tensor(1.0)).cpu().tolist() == [2, 2, 2]
        before = pretence.num_synchronisations
        assert float(there.sum()) == 3
        assert pretence.num_synchronisations == before + 1


PLANS = {
    "plain": PLAN,
    "cosine": replace(PLAN, decay="cosine"),
    "averaged moments": replace(PLAN, optimizer_state="average"),
    "proximal, own bias": replace(PLAN, proximal_mu=0.1, keep_local=("2.bias",)),
    "control variates": replace(PLAN, control_variates=True, optimizer="sgd"),
}


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_captured_steps_are_the_steps_bit_for_bit(plan, monkeypatch):
    with pretend_cuda():
        graphed = trained("cuda", plan=plan)
        assert sorted(graphed[3]._cuda_graphs.graphs) == [4, 5]
        monkeypatch.setenv("RAY_FED_CUDA_GRAPHS", "off")
        eager = trained("cuda", plan=plan)
        assert eager[3]._cuda_graphs is None
    assert graphed[0].tobytes() == eager[0].tobytes()
    assert graphed[1] == eager[1]
    np.testing.assert_allclose(graphed[0], trained("cpu", plan=plan)[0], rtol=1e-4, atol=1e-6)


def branching(outputs, y):
    loss = functional.mse_loss(outputs, y)
    return loss if loss.item() > 0.5 else 2 * loss


def masked(outputs, y):
    return functional.mse_loss(outputs[y > 0], y[y > 0])


@pytest.mark.parametrize(
    ("loss", "parts"),
    [(branching, ()), (masked, ()), (functional.mse_loss, (nn.BatchNorm1d(8, momentum=None), nn.ReLU()))],
    ids=["item", "mask", "batch norm without momentum"],
)
def test_a_step_that_reads_a_number_back_is_taken_by_itself_and_the_log_says_so_once(loss, parts, capsys):
    plan = replace(PLAN, optimizer="sgd")  # Adam makes steps of rounding errors, at biases before a BatchNorm

    def module():
        return net(*(type(part)(8, momentum=None) if isinstance(part, nn.BatchNorm1d) else part for part in parts))

    with pretend_cuda():
        vector, losses, _, trainer = trained("cuda", module, loss, plan)
    assert not trainer._cuda_graphs.can_capture
    assert capsys.readouterr().err.count("silo 'a': its training step cannot be captured as a CUDA graph") == 1
    expected = trained("cpu", module, loss, plan)
    np.testing.assert_allclose(vector, expected[0], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(losses, expected[1], rtol=1e-4)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_trainer_is_freed_without_the_garbage_collector(device):
    gc.disable()
    try:
        with pretend_cuda():
            trainer = trained(device)[3]
            gone = weakref.ref(trainer)
            del trainer
        assert gone() is None
    finally:
        gc.enable()


def test_a_silo_trains_and_evaluates_on_its_device():
    (spec,), task = silos(30, held_out=8), SyntheticTask()
    answers = {}
    for device in ("cpu", "cuda"):
        with pretend_cuda():
            silo = Silo(spec, task, device)
            silo.open()
            silo.prepare(None)
            module = task.model(0)
            silo.open_session(SessionSpec("s", PLAN, 0, Layout.of(module).digest))
            update = silo.fit("s", 1, initial_vector(module))
            answers[device] = update.vector, set(silo.evaluate("s", {"m": update.vector}))
    np.testing.assert_allclose(answers["cuda"][0], answers["cpu"][0], rtol=1e-4, atol=1e-6)
    assert answers["cuda"][1] == {"m"}


@pytest.mark.parametrize("attack", [OURS, DLG], ids=lambda attack: attack.name)
def test_attacks_reconstruct_on_their_device(attack):
    job = AttackJob("one", "compare", "digits", "lenet", attack, (0, 1), 3, 3)
    with pretend_cuda():
        assert [row["failed"] for row in run_job(job, "cuda").rows if "failed" in row] == []


@pytest.mark.parametrize("preset", PRESETS)
def test_style_generators_train_on_their_device(preset):
    images, masks = stripes(2)
    small = replace(PRESETS[preset], generator=TINY, discriminator_width=4, epochs=1, low_precision=False)
    with pretend_cuda():
        training = GeneratorTraining(Pairs.of(images, masks, "cuda"), small, 0)
        assert training.run()[1]
