"""Local training as people write it: optimisers, schedules, clipping, accumulation, samples of any form, own loops."""

import random
from collections import OrderedDict
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from pipelines import Training, federate
from ray_fed import ConfigError, DataError, SiloSpec, TorchTask
from ray_fed.errors import CallbackFailed, QuorumLost
from ray_fed.learning.kept_values import KeptValues, decoded, encoded
from ray_fed.learning.recipe import Progress, Recipe

SILOS = [SiloSpec(name, seed) for name, seed in (("a", 1), ("b", 2))]
PLAN = Training(rounds=4, epochs=4, batch_size=16, learning_rate=0.05)


def rows(seed):
    x = np.random.default_rng(seed).normal(size=(60, 4)).astype(np.float32)
    y = (x[:, 0] + x[:, 1] > 0).astype(np.int64)
    return x[20:], y[20:], x[:20], y[:20]


def network():
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))


def hit(out, y):
    return out.argmax(1) == y


TASK = TorchTask(network, functional.cross_entropy, rows, {"accuracy": hit})


def train(task=TASK, plan=PLAN, **options):
    return federate(task, SILOS, plan, **{"cohort": "local", "tensorboard": False} | options)


def bits(result):
    return b"".join(tensor.numpy().tobytes() for tensor in result.module.state_dict().values())


def broken_off_and_resumed(folder, at=2, **options):
    def ends(record):
        if record.server_round == at:
            raise ValueError

    with pytest.raises(CallbackFailed):
        train(**options, out=folder, callbacks=[ends])
    return train(**options, out=folder, resume=True)


# ---- optimisers and schedules


def groups(module):
    weights, others = [], []
    for parameter in module.parameters():
        (weights if parameter.ndim > 1 else others).append(parameter)
    given = [{"params": weights, "weight_decay": 0.1}, {"params": others, "lr": 0.01}]
    return torch.optim.AdamW(given, lr=0.05)


def falling(at):
    assert at.step < at.total_steps == 12
    return 0.5 ** (at.server_round - 1)


def one_cycle(optimizer, total_steps):
    return torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps)


RECIPES = {
    "adamw": {"optimizer": "adamw", "optimizer_options": {"weight_decay": 0.1}},
    "momentum": {"optimizer": "sgd", "optimizer_options": {"momentum": 0.9, "nesterov": True}},
    "groups": {"optimizer": groups, "schedule": "cosine"},
    "a class, rounds": {"optimizer": torch.optim.RMSprop, "schedule": falling, "learning_rate": 0.01},
    "one cycle": {"optimizer": "adam", "scheduler": one_cycle},
    "warm up": {"optimizer": "radam", "warmup_steps": 3, "schedule": "linear", "schedule_by": "round"},
    "clipped": {"clip_norm": 0.1, "clip_value": 0.05},
    "accumulated": {"accumulate": 2, "optimizer": "nadam"},
    "bfloat16": {"autocast": "bfloat16", "optimizer": "adamw"},
    "float16": {"autocast": "float16", "optimizer": "adamw"},
}


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_learns_and_resumes_to_the_same_bytes(name, tmp_path):
    plan = replace(PLAN, **RECIPES[name])
    whole = train(plan=plan)
    assert whole.metrics["federated.loss"] < whole.records[0].metrics["federated.loss"]
    assert bits(whole) != bits(train())
    assert all(tensor.dtype != torch.bfloat16 for tensor in whole.module.state_dict().values())
    resumed = broken_off_and_resumed(tmp_path / "run", plan=plan)
    assert bits(resumed) == bits(whole)
    assert resumed.records == whole.records


def test_steps_are_those_of_a_plain_loop():
    """One silo, one round: what everybody writes, with decay, cosine, clipping and accumulation, comes out the same."""
    task = replace(TASK, network=lambda: nn.Linear(4, 2))
    plan = Training(
        rounds=1, epochs=2, batch_size=10, learning_rate=0.1, optimizer="adamw",
        optimizer_options={"weight_decay": 0.1}, schedule="cosine", clip_norm=0.2, accumulate=2,
    )  # fmt: skip
    result = federate(task, SILOS[:1], plan, cohort="local")
    module, (x, y) = task.model(0), map(torch.from_numpy, rows(1)[:2])
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.1, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 4)
    from ray_fed.randomness import generator

    for epoch in range(2):
        order = generator(0, "shuffle", epoch, "a").permutation(40)
        for first in (0, 20):
            optimizer.zero_grad()
            for start in (first, first + 10):
                index = torch.from_numpy(order[start : start + 10])
                (functional.cross_entropy(module(x[index]), y[index]) / 2).backward()
            nn.utils.clip_grad_norm_(module.parameters(), 0.2)
            optimizer.step()
            schedule.step()
    for mine, theirs in zip(result.module.parameters(), module.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)


def test_frozen_parameters_do_not_decay():
    def frozen():
        made = network()
        made[0].requires_grad_(False)
        return made

    task = replace(TASK, network=frozen)
    result = train(task, replace(PLAN, **RECIPES["adamw"]))
    assert torch.equal(result.module[0].weight, task.model(0)[0].weight)


@pytest.mark.parametrize("strategy", ["fed_prox", "scaffold", "fed_bn", "fed_adam", "fed_nova"])
def test_recipes_go_with_strategies(strategy):
    result = train(plan=replace(PLAN, **RECIPES["adamw"]), strategy=strategy)
    assert result.metrics["federated.loss"] < result.records[0].metrics["federated.loss"]


def test_a_round_shorter_than_what_is_accumulated_takes_one_step_of_what_there_is():
    result = train(plan=replace(PLAN, accumulate=50))
    assert not any(record.failures for record in result.records)
    assert result.metrics["federated.loss"] < result.records[0].metrics["federated.loss"]


WRONG = {
    "optimizer='adamx' must be one of": {"optimizer": "adamx"},
    "optimizer=adamw, {'momentum': 0.9}: .*momentum": {
        "optimizer": "adamw",
        "optimizer_options": {"momentum": 0.9},
    },
    "optimizer=LBFGS asks for the loss again": {"optimizer": torch.optim.LBFGS},
    "made a int, not a torch.optim": {"optimizer": lambda _: 3},
    "schedule='cosin' must be one of": {"schedule": "cosin"},
    "leave schedule and warmup_steps out": {"schedule": "cosine", "scheduler": one_cycle},
    "clip_norm=0 must be positive": {"clip_norm": 0},
    "accumulate=0 must be": {"accumulate": 0},
    "autocast='fp8' must be": {"autocast": "fp8"},
    "needs plain adam; choose keep or reset": {"optimizer": "adamw", "optimizer_state": "average"},
}


@pytest.mark.parametrize("said", WRONG)
def test_what_pytorch_does_not_have_is_refused(said):
    with pytest.raises(ConfigError, match=said):
        train(plan=replace(PLAN, **WRONG[said]))


def test_a_resumed_run_must_ask_for_the_same_recipe(tmp_path):
    train(plan=replace(PLAN, clip_norm=1.0), out=tmp_path / "run")
    with pytest.raises(ConfigError, match=r"clip_norm=2.0, the run in .* began with 1.0"):
        train(plan=replace(PLAN, clip_norm=2.0), out=tmp_path / "run", resume=True)
    assert "autocast" in (tmp_path / "run" / "config.yaml").read_text()


def test_a_schedule_says_where_it_stands():
    recipe = Recipe(schedule="linear", warmup_steps=2)
    assert [recipe.factor(Progress(step, 4, 1, 2)) for step in range(4)] == [0.5, 0.75, 0.5, 0.25]
    by_round = Recipe(schedule="cosine", schedule_by="round")
    assert [round(by_round.factor(Progress(0, 9, number, 2)), 3) for number in (1, 2)] == [1.0, 0.5]


# ---- samples of any form


class Rows(Dataset):
    def __init__(self, x, y):
        self.x, self.y = x, y

    def __len__(self):
        return len(self.x)

    def __getitem__(self, at):
        return self.x[at], self.y[at]


class Stream(IterableDataset):
    def __init__(self, x, y):
        self.pairs = list(zip(x, y, strict=True))

    def __iter__(self):
        return iter(self.pairs)


class Two(nn.Module):
    """Two inputs, by position or by name; a tuple or a dictionary out of it."""

    def __init__(self, kind="plain"):
        super().__init__()
        self.body, self.kind = network(), kind

    def forward(self, left, right):
        logits = self.body(torch.cat([left, right], 1))
        return {"plain": logits, "tuple": (logits, logits.sum(1)), "dict": {"logits": logits}}[self.kind]


class WithLoss(Two):
    """As networks of Hugging Face: told the labels, it says the loss."""

    def forward(self, left, right, labels):
        logits = super().forward(left, right)
        return OrderedDict(loss=functional.cross_entropy(logits, labels), logits=logits)


def halves(x):
    return x[:, :2], x[:, 2:]


def by_position(seed):
    x, y, held_out_x, held_out_y = rows(seed)
    return halves(x), y, halves(held_out_x), held_out_y


def by_name(seed):
    return tuple(dict(zip(("left", "right"), part, strict=True)) if isinstance(part, tuple) else part
                 for part in by_position(seed))  # fmt: skip


def two_sets(make):
    def samples(seed):
        x, y, held_out_x, held_out_y = rows(seed)
        return make(x, y), make(held_out_x, held_out_y)

    return samples


def dictionaries(x, y):
    return [{"left": a[:2], "right": a[2:], "labels": b} for a, b in zip(x, y, strict=True)]


def graphs(x, y):
    return [SimpleNamespace(atoms=a, y=int(b)) for a, b in zip(x, y, strict=True)]


class GraphBatch(SimpleNamespace):
    def to(self, device):
        return GraphBatch(atoms=self.atoms.to(device), y=self.y.to(device))


def joined(graphs):
    atoms = torch.from_numpy(np.stack([graph.atoms for graph in graphs]))
    return GraphBatch(atoms=atoms, y=torch.tensor([graph.y for graph in graphs]))


class OfGraphs(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = network()

    def forward(self, batch):
        return self.body(batch.atoms)


def first(loss):
    return lambda out, y: loss(out[0] if isinstance(out, tuple) else out["logits"], y)


FORMS = {
    "a Dataset": replace(TASK, samples=two_sets(Rows)),
    "a TensorDataset": replace(TASK, samples=two_sets(lambda *xy: TensorDataset(*map(torch.from_numpy, xy)))),
    "an iterable Dataset": replace(TASK, samples=two_sets(Stream)),
    "a generator": replace(TASK, samples=two_sets(lambda x, y: (pair for pair in zip(x, y, strict=True)))),
    "a DataLoader": replace(TASK, samples=two_sets(lambda x, y: DataLoader(Rows(x, y), 7))),
    "a list": replace(TASK, samples=two_sets(lambda x, y: list(zip(x, y, strict=True)))),
    "two inputs": replace(TASK, network=Two, samples=by_position),
    "inputs by name": replace(TASK, network=Two, samples=by_name),
    "a tuple out": TorchTask(
        lambda: Two("tuple"), first(functional.cross_entropy), by_position, {"accuracy": first(hit)}
    ),
    "a dictionary out": TorchTask(
        lambda: Two("dict"), first(functional.cross_entropy), by_name, {"accuracy": first(hit)}
    ),
    "dictionaries with a target": replace(TASK, network=Two, samples=two_sets(dictionaries), target="labels"),
    "graphs": replace(TASK, network=OfGraphs, samples=two_sets(graphs), collate=joined, target="y"),
}


@pytest.mark.parametrize("form", FORMS)
def test_samples_of_any_form_come_to_the_model_of_plain_arrays(form):
    plain, result = train(), train(FORMS[form])
    assert bits(result) == bits(plain)
    for name in ("federated.accuracy", "federated.loss"):  # told with few digits
        assert result.metrics[name] == pytest.approx(plain.metrics[name], rel=0.02)


def test_the_network_s_own_loss_and_a_training_step_of_one_s_own():
    samples = two_sets(dictionaries)

    def step(module, batch):
        assert isinstance(batch, dict)
        return module(**batch)["loss"]

    plain = bits(train())
    accuracy = {"accuracy": lambda out, y: out["logits"].argmax(1) > -1 if y is None else None}
    own = TorchTask(WithLoss, None, samples, accuracy)
    for task in (own, replace(own, training_step=step)):
        result = train(task)
        assert bits(result) == plain
        assert result.metrics["federated.accuracy"] == 1.0
        assert result.metrics["federated.loss"] < result.records[0].metrics["federated.loss"]
    pairs = replace(TASK, training_step=lambda module, batch: functional.cross_entropy(module(batch[0]), batch[1]))
    assert bits(train(pairs)) == plain
    assert train(pairs).metrics == pytest.approx(train().metrics, rel=0.1)  # told with few digits


def test_class_weights_of_a_loss_go_where_the_network_is():
    weighted = nn.CrossEntropyLoss(weight=torch.tensor([0.1, 0.9]))
    result = train(replace(TASK, loss=weighted))
    share = [np.mean(train(task).predict(rows(5)[0]).argmax(1)) for task in (replace(TASK, loss=weighted), TASK)]
    assert share[0] > share[1]
    assert not any(record.failures for record in result.records)


UNUSABLE = {
    "arrays of 3, 4 samples": lambda _: ((np.zeros((3, 2)), np.zeros((3, 2))), np.zeros(4)),
    "2 values that are not finite": lambda _: [(np.full(2, np.nan, np.float32), 0)] * 1,
    "not list": lambda _: [1, 2],
}


@pytest.mark.parametrize("said", UNUSABLE)
def test_samples_that_cannot_be_used_are_refused_by_the_silo_s_name(said):
    with pytest.raises(DataError, match=f"silo 'a': .*{said}"):
        train(replace(TASK, samples=UNUSABLE[said]))


def test_what_is_no_mean_or_no_score_is_said_with_what_it_should_be():
    for task, said in (
        (replace(TASK, loss=lambda out, y: functional.cross_entropy(out, y, reduction="none")), r"not \[40\]"),
        (replace(TASK, training_step=lambda *_: 0.5), "training_step must be one number.* not float"),
        (replace(TASK, scores={"top1": lambda out, y: (out.argmax(1) == y).float().mean()}), r"\[40\], not \[\]"),
        (replace(TASK, scores={"top1": lambda *_: None}), "score 'top1' must return one value per sample"),
    ):
        with pytest.raises(QuorumLost, match=f"silo 'a': .*{said}"):
            train(task)


def test_samples_of_different_sizes_need_what_makes_a_batch_of_them():
    def ragged(seed):
        x, y = rows(seed)[:2]
        return [one[: 1 + number % 4] for number, one in enumerate(x)], y

    with pytest.raises(DataError, match="silo 'a': samples of different sizes need TorchTask"):
        train(replace(TASK, samples=ragged))

    def padded(pairs):
        x = torch.stack([functional.pad(torch.from_numpy(one), (0, 4 - len(one))) for one, _ in pairs])
        return x, torch.tensor([y for _, y in pairs])

    assert not train(replace(TASK, samples=ragged, collate=padded)).records[-1].failures


def test_changed_samples_are_noticed_when_a_run_is_gone_on_with(tmp_path):
    asked = []

    def other(seed):
        x, y = rows(seed)[:2]
        asked.append(seed)
        return Rows(x + (asked.count(2) > 1), y)

    with pytest.raises(DataError, match="silo 'b': its data changed"):
        broken_off_and_resumed(tmp_path / "run", task=replace(TASK, samples=other))


# ---- a loop of one's own


def own_loop(module, data, context):
    """Momentum, noise from every generator there is, a counter: all of it must come back after a restart."""
    optimizer = torch.optim.SGD(module.parameters(), lr=context.learning_rate, momentum=0.9)
    if "optimizer" in context.state:
        optimizer.load_state_dict(context.state["optimizer"])
    losses = []
    for x, y in DataLoader(data, batch_size=context.batch_size, shuffle=True):
        noise = 1e-3 * (torch.randn(()).item() + random.random() + np.random.rand())  # noqa: NPY002
        loss = functional.cross_entropy(module(x + noise), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    context.state |= {"optimizer": optimizer.state_dict(), "rounds": context.state.get("rounds", 0) + 1}
    assert context.state["rounds"] == context.server_round
    return {"loss": np.mean(losses), "num_examples": len(data), "num_steps": len(losses)}


def plan_s_batches(module, data, context):
    optimizer = context.optimizer(module)
    for x, y in context.batches(data):
        optimizer.zero_grad()
        functional.cross_entropy(module(x), y).backward()
        optimizer.step()
    context.keep(optimizer)


@pytest.mark.parametrize("task", [TASK, FORMS["a Dataset"]], ids=["arrays", "a Dataset"])
def test_a_loop_of_one_s_own_learns_and_resumes_to_the_same_bytes(task, tmp_path):
    task = replace(task, fit=own_loop)
    state = torch.get_rng_state(), random.getstate()
    whole = train(task)
    assert torch.equal(torch.get_rng_state(), state[0])
    assert random.getstate() == state[1]
    assert whole.metrics["federated.accuracy"] > 0.8
    assert whole.records[-1].metrics["train_loss"] > 0
    resumed = broken_off_and_resumed(tmp_path / "run", task=task)
    assert bits(resumed) == bits(whole)
    assert resumed.records == whole.records


def test_a_loop_over_the_plan_s_batches_is_the_steps_of_the_plan():
    plan = replace(PLAN, **RECIPES["adamw"])
    steps, loop = train(plan=plan), train(replace(TASK, fit=plan_s_batches), plan)
    for name, tensor in steps.module.state_dict().items():
        torch.testing.assert_close(loop.module.state_dict()[name], tensor, rtol=1e-4, atol=1e-5)


def test_a_loop_goes_with_parts_that_stay_and_with_fed_bn(tmp_path):
    personal = replace(TASK, fit=own_loop, exchange=["!3.*"])
    whole = train(personal)
    assert whole.metrics["federated.loss"] < whole.records[0].metrics["federated.loss"]
    assert bits(broken_off_and_resumed(tmp_path / "run", task=personal)) == bits(whole)
    result = train(replace(TASK, fit=own_loop), strategy="fed_bn")
    assert result.metrics["federated.loss"] < result.records[0].metrics["federated.loss"]


def returning(answer):
    return replace(TASK, fit=lambda *_: answer)


def test_what_a_loop_must_not_do_is_said_by_the_silo_s_name():
    def keeps(module, data, context):  # noqa: ARG001
        context.state["model"] = module

    for task, said in (
        (returning({"acc": 1.0}), "silo 'a' failed while calling fit: fit returned dict .'acc'.; it must return None"),
        (returning(3), "fit returned int; it must return None"),
        (replace(TASK, fit=keeps), r"state\['model'\] is a Sequential; keep tensors, arrays"),
    ):
        with pytest.raises(Exception, match=said):
            train(task)
    with pytest.raises(ConfigError, match="SCAFFOLD goes into every step"):
        train(replace(TASK, fit=own_loop), strategy="scaffold")
    with pytest.raises(ConfigError, match="give one of them"):
        replace(TASK, fit=own_loop, training_step=own_loop)


def test_kept_values_come_back_as_they_were_and_only_whole_ones(tmp_path):
    values = {
        "a": torch.arange(3, dtype=torch.bfloat16), "b": [1, 2.5, None, True, "x", b"y", float("inf")],
        ("t", 1): (np.arange(4.0).reshape(2, 2), np.float32(2)), 3: {}, "scalar": torch.tensor(7),
        "big": 2**127,
    }  # fmt: skip
    back = decoded(encoded(values, "a"))
    assert back.keys() == values.keys()
    assert back["b"] == values["b"]
    assert back["big"] == 2**127
    assert torch.equal(back["a"], values["a"])
    assert back["scalar"].shape == ()
    assert np.array_equal(back["t", 1][0], values["t", 1][0])
    kept = KeptValues(str(tmp_path), "a", "s", 2)
    for number in (1, 2, 3):
        kept.remember(number, {"round": number})
    assert kept.recall(9) == {"round": 3}
    assert kept.recall(3) == {"round": 2}
    assert kept.recall(2) is None
    kept.remember(2, {"round": 20})
    assert kept.recall(9) == {"round": 20}
    (tmp_path / "a" / "s.kept" / "2").write_bytes(b"cut")
    with pytest.raises(DataError, match=r"silo 'a': .* is damaged; start a new run"):
        kept.recall(9)
