"""Parts of a model: only what is named travels, is averaged, checked and written down; the rest stays and resumes."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from pipelines import Federated, Training, federate
from ray_fed import ConfigError, SiloSpec, TorchTask
from ray_fed.errors import CallbackFailed
from ray_fed.federation.cohort import LocalCohort
from ray_fed.federation.coordinator import Coordinator
from ray_fed.federation.messages import SessionSpec
from ray_fed.federation.silo import Silo
from ray_fed.learning.partial_exchange import exchanged_names
from ray_fed.learning.trainer import TrainingPlan

SILOS = [SiloSpec(name, seed) for name, seed in (("a", 1), ("b", 2), ("c", 3))]
TRAINING = Training(rounds=6, epochs=6, batch_size=16, learning_rate=0.05)


class TrunkAndHead(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU())
        self.head = nn.Linear(8, 2)

    def forward(self, x):
        return self.head(self.trunk(x))


class Adapted(nn.Module):
    """A frozen trunk, adapters of low rank beside it."""

    def __init__(self):
        super().__init__()
        self.base = nn.Linear(4, 2).requires_grad_(False)
        self.lora_a, self.lora_b = nn.Parameter(torch.randn(4, 2)), nn.Parameter(torch.zeros(2, 2))

    def forward(self, x):
        return self.base(x) + x @ self.lora_a @ self.lora_b


def rows(seed):
    """Silos that agree on what matters and call it by opposite names."""
    x = np.random.default_rng(seed).normal(size=(60, 4)).astype(np.float32)
    y = (x[:, 0] + x[:, 1] > 0).astype(np.int64)
    y = 1 - y if seed == 2 else y
    return x[20:], y[20:], x[:20], y[:20]


def hit(out, y):
    return out.argmax(1) == y


PERSONAL = TorchTask(TrunkAndHead, functional.cross_entropy, rows, {"accuracy": hit}, exchange="trunk.*")
ADAPTERS = replace(PERSONAL, network=Adapted, exchange=lambda _, tensor: tensor.requires_grad)


def train(task=PERSONAL, **options):
    return federate(task, SILOS, TRAINING, **{"cohort": "local", "tensorboard": False} | options)


@pytest.mark.parametrize("exchange", ["trunk.*", ["!head.*"], ["*", "!head.*"], lambda name, _: name[0] == "t"])
def test_patterns_and_functions_name_the_same_tensors(exchange):
    trunk = ("trunk.0.weight", "trunk.0.bias", "trunk.1.weight", "trunk.1.bias")
    statistics = ("trunk.1.running_mean", "trunk.1.running_var")
    assert exchanged_names(TrunkAndHead(), exchange) == (*trunk, *statistics)


def test_a_pattern_that_fits_nothing_is_refused():
    with pytest.raises(ConfigError, match=r"exchange='had.\*' fits no tensor; there are: trunk.0.weight"):
        train(replace(PERSONAL, exchange="had.*"))
    with pytest.raises(ConfigError, match="lets nothing travel"):
        train(replace(PERSONAL, exchange=lambda *_: False))


def test_a_silo_s_own_head_learns_what_one_for_all_cannot_and_sends_no_byte_of_itself():
    own, common = train(), train(replace(PERSONAL, exchange=None))
    assert own.metrics["federated.accuracy"] > 0.85 > common.metrics["federated.accuracy"]
    num_values = 4 * 8 + 8 + 2 * 8 + 2 * 8
    assert own.agreement.layout.size == num_values
    assert own.records[-1].bytes_sent == 3 * 2 * 4 * num_values
    first = PERSONAL.model(0)
    assert torch.equal(own.module.head.weight, first.head.weight)
    assert not torch.equal(own.module.trunk[0].weight, first.trunk[0].weight)


@pytest.mark.parametrize("strategy", ["fed_avg", "fed_adam", "scaffold", "fed_prox", "median"])
def test_every_kind_of_strategy_exchanges_parts(strategy):
    result = train(strategy=strategy)
    assert result.metrics["federated.loss"] < result.records[0].metrics["federated.loss"]


def test_adapters_travel_and_the_frozen_trunk_does_not(tmp_path):
    result = train(ADAPTERS, out=tmp_path / "run")
    assert result.agreement.layout.names == ("lora_a", "lora_b")
    assert torch.equal(result.module.base.weight, ADAPTERS.model(0).base.weight)
    assert not torch.equal(result.module.lora_b, ADAPTERS.model(0).lora_b)
    back = Federated.load(tmp_path / "run", ADAPTERS)
    x = rows(5)[0]
    assert np.array_equal(back.predict(x), result.predict(x))
    everything = replace(ADAPTERS, exchange=None)
    for name, tensor in train(everything).module.state_dict().items():
        assert torch.equal(tensor, result.module.state_dict()[name])
    other = Adapted().state_dict()
    with pytest.raises(ConfigError, match=r"initial: base.weight does not travel"):
        train(ADAPTERS, initial=other)


def test_the_answer_to_a_whole_exchange_is_the_part_of_it_where_nothing_else_is_trained():
    def session(task, exchange):
        task = replace(task, exchange=exchange)
        silo = Silo(SiloSpec("a", 1), task)
        silo.open()
        silo.prepare(None)
        plan = TrainingPlan(0, 2, 3, 2)
        silo.open_session(SessionSpec("s", plan, 0, task.layout(task.model(0)).digest))
        return silo, Coordinator(LocalCohort([], task), task, [])._part(
            np.concatenate([p.detach().numpy().ravel() for p in task.model(0).parameters()]), task.model(0), plan
        )

    whole, all_values = session(ADAPTERS, None)
    part, some_values = session(ADAPTERS, ADAPTERS.exchange)
    expected = whole.fit("s", 1, all_values).vector[:12]
    assert np.array_equal(part.fit("s", 1, some_values).vector, expected)
    assert np.array_equal(part.fit("s", 1, some_values).vector, expected)  # asked again


def test_what_stays_with_the_silos_resumes_with_them(tmp_path):
    def ends(record):
        if record.server_round == 3:
            raise ValueError

    with pytest.raises(CallbackFailed):
        train(out=tmp_path / "run", callbacks=[ends])
    resumed, whole = train(out=tmp_path / "run", resume=True), train()
    assert resumed.records == whole.records
    for name, tensor in resumed.module.state_dict().items():
        assert torch.equal(tensor, whole.module.state_dict()[name])


def test_what_parts_do_not_go_with_is_refused():
    with pytest.raises(ConfigError, match="optimizer_state=average sends moments of all"):
        federate(PERSONAL, SILOS, replace(TRAINING, optimizer_state="average"), cohort="local")
