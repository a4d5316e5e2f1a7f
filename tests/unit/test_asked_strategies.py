"""What a strategy may do, and what is its own error: statistics are never stepped, wrong output is named at once."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from pipelines import Training, federate
from ray_fed import FedAvg, RoundRules, SiloSpec, TorchTask, make_strategy
from ray_fed.errors import CallbackFailed, QuorumLost, StrategyFailed

SILOS = [SiloSpec(name, seed) for seed, name in enumerate("abcd", 1)]
STEPPING = {
    "fed_avg_m": {},
    "fed_adam": {"eta": 0.3},
    "fed_yogi": {"eta": 0.3},
    "fed_adagrad": {},
    "scaffold": {"eta": 1.5},
    "fed_nova": {},
    "fed_buff": {"eta": 1.5},
}


def rows(seed):
    """Inputs with little spread, so that variances are near zero."""
    x = np.random.default_rng(seed).normal(size=(80, 8)).astype(np.float32) * 0.05
    y = (x[:, 0] + x[:, 1] > 0).astype(np.int64)
    return x[20:], y[20:], x[:20], y[:20]


def network():
    return nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 2))


TASK = TorchTask(network, functional.cross_entropy, rows)
LINEAR = replace(TASK, network=lambda: nn.Linear(8, 2))


def train(strategy, task=TASK, training=Training(rounds=12, epochs=12), **options):  # noqa: B008
    return federate(task, SILOS, training, cohort="local", strategy=strategy, tensorboard=False, **options)


@pytest.mark.parametrize("name", STEPPING)
def test_running_statistics_are_averaged_and_never_stepped(name):
    result = train(make_strategy(name, **STEPPING[name]))
    assert all(np.isfinite(record.metrics["federated.loss"]) for record in result.records)
    norm = result.module[1]  # type: ignore[index]
    assert float(norm.running_var.min()) > 0  # type: ignore[union-attr, operator]
    assert bool(torch.isfinite(result.module(torch.randn(5, 8))).all())


@pytest.mark.parametrize("name", ["fed_avg_m", "fed_adam", "scaffold", "fed_nova"])
def test_the_statistics_of_a_round_are_those_of_the_plain_mean(name):
    training = Training(rounds=1, epochs=1, optimizer="sgd")
    stepped, mean = (train(make_strategy(each), training=training) for each in (name, "fed_avg"))
    for buffer in ("running_mean", "running_var"):
        assert torch.allclose(getattr(stepped.module[1], buffer), getattr(mean.module[1], buffer), atol=1e-7)  # type: ignore[index]


def test_averaged_moments_of_the_silos_are_not_stepped_either():
    result = train(make_strategy("fed_avg_m"), training=Training(rounds=12, epochs=12, optimizer_state="average"))
    assert np.isfinite(result.metrics["federated.loss"])


# ---- wrong output


@dataclass(frozen=True)
class Mine(FedAvg):
    def of(self, mean):
        return mean

    def aggregate(self, state, updates):
        return {self.name: self.of(super().aggregate(state, updates)[self.name])}


class Float64(Mine):
    def of(self, mean):
        return mean.astype(np.float64)


class Shorter(Mine):
    def of(self, mean):
        return mean[:-1]


class NotFinite(Mine):
    def of(self, mean):
        return mean * np.float32("nan")


class Negative(Mine):
    def of(self, mean):
        return -np.abs(mean)


class Raises(Mine):
    def of(self, mean):
        raise RuntimeError(f"my bug of {len(mean)}")


class ReadsNothing(FedAvg):
    def aggregate(self, state, updates):  # noqa: ARG002
        return state


class Returns(FedAvg):
    def aggregate(self, state, updates):
        super().aggregate(state, updates)


class ToNobody(FedAvg):
    def dispatch(self, state, silos):  # noqa: ARG002
        return {}


class ToStrangers(FedAvg):
    def dispatch(self, state, silos):
        return {**super().dispatch(state, silos), "z": state[self.name]}


class Lists(FedAvg):
    def dispatch(self, state, silos):
        return {silo: state[self.name].tolist() for silo in silos}


WRONG = {
    Float64: r"its model 'federated' is float64 \[242\], not float32 \[242\]",
    Shorter: r"its model 'federated' is float32 \[241\], not float32 \[242\]",
    NotFinite: "its model 'federated' has 242 values that are not finite",
    Negative: "has 16 negative variances, in 1.running_var",
    Raises: "aggregate raised RuntimeError: my bug of 242",
    ReadsNothing: "aggregate returned before it had read all updates",
    Returns: "aggregate must return named arrays, not NoneType",
    ToNobody: "dispatch chose no silo",
    ToStrangers: r"dispatch names \['z'\], which are no silos; there are: a, b, c, d",
    Lists: r"dispatch: the vector of 'a' is list, not float32 \[n\]",
}


@pytest.mark.parametrize("strategy", WRONG, ids=lambda cls: cls.__name__)
def test_wrong_output_is_the_strategy_s_error_in_its_first_round(strategy):
    with pytest.raises(StrategyFailed, match=rf"strategy {strategy.__name__}, round 1: .*{WRONG[strategy]}"):
        train(strategy())


def test_what_goes_wrong_in_a_round_is_not_said_of_the_strategy():
    def ends(out, y):
        raise ZeroDivisionError(f"{len(out)}, {len(y)}")

    with pytest.raises(QuorumLost):
        train(Mine(), replace(LINEAR, loss=ends), rules=RoundRules(accept_failures=False))


# ---- a strategy that chooses


@dataclass(frozen=True)
class WorstTwo(FedAvg):
    """Sends the model to the two silos with the largest loss of the last evaluation."""

    def start(self, initial, silos):
        return {**super().start(initial, silos), "losses": np.zeros(len(silos))}

    def observed(self, state, metrics):
        return {**state, "losses": np.array([metrics[f"silo.{name}.loss"] for name in "abcd"])}

    def dispatch(self, state, silos):
        worst = np.argsort(-state["losses"], kind="stable")[:2]
        return {silos[at]: state[self.name] for at in sorted(worst)}

    def aggregate(self, state, updates):
        return {**state, **super().aggregate(state, updates)}

    def models(self, state):
        return {self.name: state[self.name]}


def test_a_strategy_chooses_who_takes_part_by_what_the_silos_tell(tmp_path):
    result = train(WorstTwo(), LINEAR)
    for before, record in zip(result.records, result.records[1:], strict=False):
        worst = sorted("abcd", key=lambda name: -before.metrics[f"silo.{name}.loss"])[:2]
        assert set(record.participants) == set(worst)
        assert not record.failures

    def ends(record):
        if record.server_round == 5:
            raise ValueError

    with pytest.raises(CallbackFailed):
        train(WorstTwo(), LINEAR, out=tmp_path / "run", callbacks=[ends])
    assert train(WorstTwo(), LINEAR, out=tmp_path / "run", resume=True).records == result.records
