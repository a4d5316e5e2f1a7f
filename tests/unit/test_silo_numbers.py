"""Numbers of single silos: what a strategy gives each for a round, and what each tells it of its training."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
from torch.nn import functional

from pipelines import Training, federate
from ray_fed import ConfigError, FedAvg, FlowerTask, RoundRules, SiloSpec
from ray_fed.errors import CallbackFailed, DataError, PerimeterRefused, QuorumLost, StrategyFailed
from ray_fed.federation.coordinator import Coordinator
from ray_fed.federation.rounds.job import Job
from tests.boundaries import cohort_behind_boundaries, write_site
from tests.unit.test_asked_strategies import LINEAR, SILOS
from tests.unit.test_flower_client import INITIAL, LineClient

NAMES = ("a", "b", "c", "d")
TRAINING = Training(rounds=4, epochs=8, batch_size=20, learning_rate=0.0625)


def train(strategy, task=LINEAR, training=TRAINING, silos=SILOS, **options):
    return federate(task, silos, training, cohort="local", strategy=strategy, tensorboard=False, **options)


def bits(result):
    return b"".join(tensor.numpy().tobytes() for tensor in result.module.state_dict().values())


@dataclass(frozen=True)
class Slower(FedAvg):
    """Each silo has a rate of its own; the first takes one step a round."""

    rates: tuple[float, ...] = (0.0625,) * 4
    most_steps: int = 1000
    config_names = ("learning_rate", "num_steps")

    def configure(self, state, silos):  # noqa: ARG002
        most = {"a": self.most_steps}
        return {
            name: {"learning_rate": self.rates[NAMES.index(name)], "num_steps": most.get(name, 1000)} for name in silos
        }


@pytest.mark.parametrize("optimizer", ["adam", "sgd", "adamw"])
def test_the_rates_and_steps_of_the_plan_change_no_bit_and_others_do(optimizer):
    training = replace(TRAINING, optimizer=optimizer)
    plain = train(FedAvg(), training=training)
    assert bits(train(Slower(), training=training)) == bits(plain)
    assert bits(train(Slower(rates=(0.0625, 0.02, 0.0625, 0.0625)), training=training)) != bits(plain)


def test_a_rate_for_all_is_that_of_the_plan_and_steps_are_not_taken():
    low = (2**-7,) * 4
    assert bits(train(Slower(rates=low))) == bits(train(FedAvg(), training=replace(TRAINING, learning_rate=2**-7)))
    rows = {}

    @dataclass(frozen=True)
    class Counting(Slower):
        def aggregate(self, state, updates):
            kept = list(updates)
            rows.update({update.silo: (update.num_steps, update.num_examples) for update in kept})
            return super().aggregate(state, kept)

    train(Counting(most_steps=2))
    assert rows == {"a": (2, 40), "b": (6, 120), "c": (6, 120), "d": (6, 120)}


def loop(network, data, context):
    """One gradient step as long as the strategy says; tells how large the gradient was."""
    x, y = data.tensors
    loss = functional.cross_entropy(network(x), y)
    loss.backward()
    squares = 0.0
    for parameter in network.parameters():
        squares += float(parameter.grad.square().sum())
        parameter.data -= context.config["step"] * parameter.grad
    return {"loss": loss.item(), "gradient": squares**0.5, "mean_x": float(x.mean())}


LOOP = replace(LINEAR, fit=loop)


@dataclass(frozen=True)
class ByGradient(FedAvg):
    """The two silos with the longest gradients take part in the next round; each steps by one over its length."""

    config_names = ("step",)
    metric_names = ("gradient", "mean_x")

    def start(self, initial, silos):
        return {**super().start(initial, silos), "gradient": np.ones(len(silos))}

    def dispatch(self, state, silos):
        longest = np.argsort(-state["gradient"], kind="stable")[: 2 if state["gradient"].min() < 1 else 4]
        return {silos[at]: state[self.name] for at in sorted(longest)}

    def configure(self, state, silos):
        return {name: {"step": float(0.5 / state["gradient"][NAMES.index(name)])} for name in silos}

    def aggregate(self, state, updates):
        kept, gradient = list(updates), state["gradient"].copy()
        for update in kept:
            gradient[NAMES.index(update.silo)] = update.metrics["gradient"]
        return {**super().aggregate(state, kept), "gradient": gradient}

    def models(self, state):
        return {self.name: state[self.name]}


def test_a_strategy_reads_what_loops_tell_chooses_by_it_and_resumes_to_the_same(tmp_path):
    result = train(ByGradient(), LOOP)
    first, second = result.records[1], result.records[2]
    assert len(first.participants) == 4
    told = {name: first.metrics[f"silo.{name}.train.gradient"] for name in NAMES}
    assert set(second.participants) == set(sorted(NAMES, key=lambda name: -told[name])[:2])
    assert first.metrics["train.gradient"] == pytest.approx(np.mean([*told.values()]))
    assert not any(record.failures for record in result.records)
    parameters = sum(tensor.numel() for tensor in result.module.parameters())
    assert second.bytes_sent == 2 * 2 * 4 * (parameters + 3)

    def ends(record):
        if record.server_round == 2:
            raise ValueError

    with pytest.raises(CallbackFailed):
        train(ByGradient(), LOOP, out=tmp_path / "run", callbacks=[ends])
    resumed = train(ByGradient(), LOOP, out=tmp_path / "run", resume=True)
    assert resumed.records == result.records
    assert bits(resumed) == bits(result)


@dataclass(frozen=True)
class Wrong(Slower):
    what: str = ""

    def configure(self, state, silos):
        given = super().configure(state, silos)
        match self.what:
            case "no mapping":
                return 3
            case "a silo less":
                return {name: given[name] for name in silos[1:]}
            case "another name":
                return {name: {"rate": 1.0} for name in silos}
            case "a text":
                return given | {"b": {"learning_rate": "fast", "num_steps": 3}}
            case "not finite":
                return given | {"b": {"learning_rate": float("nan"), "num_steps": 3}}
            case "too many digits":
                return given | {"b": {"learning_rate": 0.1, "num_steps": 2**24 + 1}}
            case _:
                raise ZeroDivisionError("mine")


WRONG = {
    "no mapping": "configure must give silo 'a' a number for each of",
    "a silo less": "configure must give silo 'a' a number for each of .*, not NoneType",
    "another name": r"configure must give silo 'a' a number .*, not \['rate'\]",
    "a text": "configure gives silo 'b' learning_rate='fast': no finite number that float32 has",
    "not finite": "configure gives silo 'b' learning_rate=nan",
    "too many digits": "configure gives silo 'b' num_steps=16777217: no finite number that float32 has",
    "an error": "configure raised ZeroDivisionError: mine",
}


@pytest.mark.parametrize("what", WRONG)
def test_wrong_numbers_are_the_strategy_s_error_in_its_first_round(what):
    with pytest.raises(StrategyFailed, match=f"strategy Wrong, round 1: {WRONG[what]}"):
        train(Wrong(what=what))


def test_names_that_mean_nothing_to_whoever_trains_are_refused_before_training():
    @dataclass(frozen=True)
    class Unknown(FedAvg):
        config_names = ("temperature",)

    @dataclass(frozen=True)
    class Reads(FedAvg):
        metric_names = ("accuracy",)

    for strategy, said in ((Unknown(), "no temperature; a loop of your own"), (Reads(), "steps tell no accuracy")):
        with pytest.raises((ConfigError, DataError), match=said):
            train(strategy)
    with pytest.raises(QuorumLost, match="it told no accuracy, which the strategy reads"):
        train(Reads(), replace(LINEAR, fit=lambda *_: None), rules=RoundRules(accept_failures=False))
    with pytest.raises(ConfigError, match="names of numbers"):
        train(replace_names(Unknown, ("a b",)))


def replace_names(cls, names):
    return type("Named", (cls,), {"config_names": names})()


def test_clients_of_flower_are_given_a_configuration_each_and_their_metrics_are_read():
    steps, seen = {"site-0": 1, "site-1": 7}, {}

    class Client(LineClient):
        def fit(self, parameters, config):
            moved, count, metrics = super().fit(parameters, config)
            return moved, count, {**metrics, "steps": config["local_steps"]}

    @dataclass(frozen=True)
    class Mine(FedAvg):
        config_names = ("local_steps",)
        metric_names = ("steps", "train_loss")

        def configure(self, state, silos):  # noqa: ARG002
            return {name: {"local_steps": steps[name]} for name in silos}

        def aggregate(self, state, updates):
            kept = list(updates)
            seen.update({update.silo: update.metrics["steps"] for update in kept})
            return super().aggregate(state, kept)

    task = FlowerTask(lambda context: Client(context.node_config["partition-id"]), INITIAL)
    silos = [SiloSpec(f"site-{i}", {"partition-id": i}) for i in range(2)]
    result = train(Mine(), task, Training(rounds=3), silos)
    assert seen == steps
    assert result.records[-1].metrics["silo.site-1.train.steps"] == 7


def test_an_owner_who_keeps_metrics_keeps_these(tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_FED_SITE", str(tmp_path / "site"))
    write_site(tmp_path / "site", "silos: {b: {kinds: [description, moments, update]}}")
    coordinator = Coordinator(cohort_behind_boundaries(SILOS, LOOP), LOOP, NAMES)
    coordinator.agree()
    job = Job("federated", NAMES, dict.fromkeys(NAMES, TRAINING.plan(60)), 0, ByGradient())
    with pytest.raises(PerimeterRefused, match="its owner lets out no metrics"):
        list(coordinator.run(job))
    write_site(tmp_path / "site", "{}")
    coordinator = Coordinator(cohort_behind_boundaries(SILOS, LOOP), LOOP, NAMES)
    coordinator.agree()
    *_, last = coordinator.run(job)
    assert not last.failures
    assert "train.gradient" in last.metrics


def test_under_masks_there_are_no_numbers_of_single_silos():
    from ray_fed.federation.cohort import LocalCohort

    coordinator = Coordinator(LocalCohort(SILOS, LOOP), LOOP, NAMES)
    coordinator.agree()
    job = Job("federated", NAMES, dict.fromkeys(NAMES, TRAINING.plan(60)), 0, ByGradient(), secure_threshold=3)
    with pytest.raises(ConfigError, match="needs each of them"):
        list(coordinator.run(job))
