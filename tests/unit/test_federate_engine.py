"""`federate` as an engine: a folder, a way on after any end, callbacks, a chosen model, and the way back from disk."""

import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from pipelines import Callback, EarlyStopping, Federated, StopTraining, Training, federate
from ray_fed import ConfigError, DataError, SiloSpec, TorchTask
from ray_fed.errors import CallbackFailed
from ray_fed.federation.rounds.machine import RoundRules
from tests.commands import REPOSITORY, start_module

SILOS = [SiloSpec(name, seed) for name, seed in (("a", 1), ("b", 2), ("c", 3))]
TRAINING = Training(rounds=6, epochs=6, batch_size=16, learning_rate=0.05)
LONG = replace(TRAINING, rounds=24, epochs=12)


def rows(seed):
    x = np.random.default_rng(seed).normal(size=(60, 4)).astype(np.float32)
    y = (x[:, 0] + x[:, 1] > 0).astype(np.int64)
    return x[20:], y[20:], x[:20], y[:20]


def network():
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))


def hit(out, y):
    return out.argmax(1) == y


TASK = TorchTask(network, functional.cross_entropy, rows, {"accuracy": hit})


def train(**options):
    given = {"task": TASK, "silos": SILOS, "training": TRAINING, "cohort": "local", "tensorboard": False} | options
    return federate(**given)


def bits(result):
    return b"".join(tensor.numpy().tobytes() for tensor in result.module.state_dict().values())


class Ends(Callback):
    def __init__(self, at, error):
        self.at, self.error, self.heard = at, error, []

    def on_round_begin(self, server_round):
        self.heard.append(("begin", server_round))

    def on_evaluation(self, record):
        self.heard.append(("evaluation", record.server_round))

    def on_round_end(self, record):
        self.heard.append(("end", record.server_round))
        if record.server_round == self.at:
            raise self.error

    def on_stop(self, reason):
        self.heard.append(("stop", reason))


def test_a_run_in_a_folder_is_the_one_without_and_comes_back_from_disk(tmp_path):
    plain, kept = train(), train(out=tmp_path / "run")
    assert bits(plain) == bits(kept)
    assert kept.records == plain.records
    for back in (Federated.load(tmp_path / "run", TASK), train(out=tmp_path / "run", resume=True)):
        assert bits(back) == bits(kept)
        assert back.metrics == kept.metrics
        assert back.records == kept.records
        assert repr(back) == repr(kept)
    assert not (tmp_path / "run" / "checkpoint").exists()


def test_it_saves_loads_predicts_and_makes_a_table(tmp_path):
    task = replace(TASK, standardises=True)
    result = train(task=task)
    back = Federated.load(result.save(tmp_path / "saved"), task)
    x = rows(9)[0]
    said = result.predict(x)
    assert said.shape == (40, 2)
    assert np.array_equal(said, back.predict(torch.from_numpy(x)))
    assert back.history().equals(result.history())
    with pytest.raises(ConfigError, match="is not empty"):
        result.save(tmp_path / "saved")
    with pytest.raises(DataError, match="of another network"):
        Federated.load(tmp_path / "saved", replace(task, network=lambda: nn.Linear(4, 2)))


def test_the_predictions_are_those_that_were_marked():
    result = train(task=replace(TASK, standardises=True))
    right = [(result.predict(rows(seed)[2]).argmax(1) == rows(seed)[3]).mean() for seed in (1, 2, 3)]
    assert np.mean(right) == pytest.approx(result.metrics["federated.accuracy"], abs=0.005)


def test_callbacks_hear_everything_in_order():
    watch = Ends(None, None)
    train(callbacks=[watch], evaluate_every=3)
    rounds = [[("begin", n), *([("evaluation", n)] if n % 3 == 0 else []), ("end", n)] for n in range(1, 7)]
    assert watch.heard == [("evaluation", 0), ("end", 0), *(each for one in rounds for each in one), ("stop", "")]


@pytest.mark.parametrize("error", [StopTraining("enough"), StopIteration("enough")])
def test_a_callback_that_stops_the_run_leaves_the_model_of_that_round(error, tmp_path):
    watch = Ends(2, error)
    result = train(callbacks=[watch], out=tmp_path / "run")
    seen = []
    train(callbacks=[lambda record: seen.append(record)])
    assert result.stopped == "enough"
    assert [record.server_round for record in result.records] == [0, 1, 2]
    assert result.records[2].metrics == seen[2].metrics
    assert watch.heard[-1] == ("stop", "enough")
    accuracy = np.mean([(result.predict(rows(seed)[2]).argmax(1) == rows(seed)[3]).mean() for seed in (1, 2, 3)])
    assert accuracy == pytest.approx(seen[2].metrics["federated.accuracy"], abs=0.005)
    assert train(out=tmp_path / "run", resume=True).stopped == "enough"


def test_a_callback_that_raises_ends_the_run_with_what_was_done_and_it_can_be_gone_on_with(tmp_path):
    with pytest.raises(CallbackFailed, match="callback Ends, round 3: ValueError: my bug") as raised:
        train(callbacks=[Ends(3, ValueError("my bug"))], out=tmp_path / "run")
    assert [record.server_round for record in raised.value.result.records] == [0, 1, 2, 3]
    assert "resume=True goes on with it" in raised.value.__notes__[0]
    watch = Ends(None, None)
    resumed = train(callbacks=[watch], out=tmp_path / "run", resume=True)
    assert watch.heard[0] == ("begin", 4)
    assert bits(resumed) == bits(train())


def test_the_model_that_comes_back_is_the_best_round_s_wherever_the_run_is_broken_off(tmp_path):
    options = {"select": "loss", "training": replace(TRAINING, rounds=5, epochs=5, learning_rate=0.3)}
    result = train(**options)
    losses = result.history()["federated.loss"]
    assert result.best_round == int(losses.to_numpy().argmin())
    assert result.best_round in range(1, 5)
    assert result.metrics["federated.loss"] == losses.min()
    told = np.mean([float(functional.cross_entropy(torch.from_numpy(result.predict(x)), torch.from_numpy(y)))
                    for _, _, x, y in map(rows, (1, 2, 3))])  # fmt: skip
    assert told == pytest.approx(losses.min(), abs=0.02)  # silos tell few digits
    for at in (1, 4):
        with pytest.raises(CallbackFailed):
            train(**options, callbacks=[Ends(at, ValueError())], out=tmp_path / f"run-{at}")
        resumed = train(**options, out=tmp_path / f"run-{at}", resume=True)
        assert bits(resumed) == bits(result)
        assert resumed.best_round == result.best_round


def test_a_run_ends_early_when_its_metric_gets_no_better(tmp_path):
    options = {"training": Training(rounds=20, epochs=20, batch_size=16, learning_rate=0.3)}
    result = train(early_stopping=EarlyStopping("loss", patience=2), out=tmp_path / "run", **options)
    done = result.records[-1].server_round
    assert done < 20
    assert result.best_round == done - 2
    assert "federated.loss was not better in 2 evaluations" in result.stopped
    assert bits(result) == bits(
        train(select="loss", training=replace(options["training"]), callbacks=[Ends(done, StopTraining())])
    )
    assert Federated.load(tmp_path / "run", TASK).best_round == result.best_round


def test_a_function_beside_the_silos_marks_the_model_and_can_choose_it():
    def worse_and_worse(server_round, module):
        assert not module.training
        return {"score": float(-server_round)}

    best = EarlyStopping("central.score", patience=3, higher_is_better=True)
    result = train(evaluate_fn=worse_and_worse, early_stopping=best)
    assert result.history()["central.score"].tolist() == [0.0, -1.0, -2.0, -3.0]
    assert result.best_round == 0
    with pytest.raises(CallbackFailed, match="callback evaluate_fn, round 0: it must return a dictionary"):
        train(evaluate_fn=lambda *_: 0.5)
    with pytest.raises(CallbackFailed, match="evaluate_fn, round 0: KeyError: 'x'"):
        train(evaluate_fn=lambda *_: {}["x"])
    with pytest.raises(ConfigError, match=r"say of 'central.score' whether more of it is better"):
        train(evaluate_fn=worse_and_worse, select="central.score")
    with pytest.raises(ConfigError, match="metric 'acuracy' is none of loss, accuracy, train_loss"):
        train(select="acuracy")


def test_training_starts_from_what_is_given(tmp_path):
    first = train()
    for initial in (first, first.module, first.module.state_dict(), first.save(tmp_path / "first")):
        again = train(initial=initial, training=replace(TRAINING, rounds=1, epochs=1))
        assert again.records[0].metrics["federated.loss"] == first.metrics["federated.loss"]
    with pytest.raises(ConfigError, match=r"initial: 0.weight is of shape \(2, 4\); the network wants \(8, 4\)"):
        train(initial={"0.weight": np.zeros((2, 4))})
    with pytest.raises(ConfigError, match=r"initial: 0.bias is missing"):
        train(initial={"0.weight": np.zeros((8, 4))})


def test_a_resumed_call_must_ask_for_the_same_and_a_folder_in_use_is_left_alone(tmp_path):
    with pytest.raises(CallbackFailed):
        train(callbacks=[Ends(1, ValueError())], out=tmp_path / "run")
    with pytest.raises(ConfigError, match=r"rounds=7, the run in .* began with 6"):
        train(out=tmp_path / "run", resume=True, training=replace(TRAINING, rounds=7))
    with pytest.raises(ConfigError, match=r"strategy=.*FedProx"):
        train(out=tmp_path / "run", resume=True, strategy="fed_prox")
    with pytest.raises(ConfigError, match="holds a run; resume=True goes on with it"):
        train(out=tmp_path / "run")
    with pytest.raises(DataError, match="silo 'a': its data changed since the run began"):
        train(out=tmp_path / "run", resume=True, silos=[replace(SILOS[0], source=9), *SILOS[1:]])
    with pytest.raises(ConfigError, match="give it as out="):
        train(resume=True)


def test_a_share_of_the_silos_takes_part_in_each_round_the_same_after_a_resume(tmp_path):
    rules = RoundRules(fraction_fit=0.6)
    result = train(rules=rules)
    taken = [record.participants for record in result.records[1:]]
    assert {len(each) for each in taken} == {2}
    assert len(set(taken)) > 1
    with pytest.raises(CallbackFailed):
        train(rules=rules, callbacks=[Ends(3, ValueError())], out=tmp_path / "run")
    resumed = train(rules=rules, out=tmp_path / "run", resume=True)
    assert resumed.records == result.records
    assert bits(resumed) == bits(result)


class Slowly(Callback):
    def on_round_end(self, record):  # noqa: ARG002
        time.sleep(0.02)


def test_a_program_that_is_killed_again_and_again_comes_to_the_same_bytes(tmp_path):
    out = tmp_path / "run"
    random, history, kills = np.random.default_rng(0), out / "history.jsonl", 0
    while kills < 5:
        process = start_module("tests.unit.test_federate_engine", str(out), folder=REPOSITORY)
        lines = history.read_bytes().count(b"\n") if history.exists() else 0
        while not history.exists() or history.read_bytes().count(b"\n") < min(25, lines + 3):
            assert process.poll() in (None, 0), process.stderr.read()
            time.sleep(0.002)
        time.sleep(random.uniform(0, 0.05))
        process.kill()
        process.communicate()
        kills += 1
    resumed = train(training=LONG, out=tmp_path / "run", resume=True, select="loss")
    whole = train(training=LONG, out=tmp_path / "whole", select="loss")
    assert history.read_bytes() == (tmp_path / "whole" / "history.jsonl").read_bytes()
    files = [tmp_path / name / "models" / "federated.safetensors" for name in ("run", "whole")]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert bits(resumed) == bits(whole)


if __name__ == "__main__":
    train(training=LONG, out=sys.argv[1], resume=True, callbacks=[Slowly()], select="loss")
