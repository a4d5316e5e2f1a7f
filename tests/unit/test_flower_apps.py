"""Apps written for Flower, of both generations, run as they are; in this process. Needs Flower itself."""

import contextlib
from pathlib import Path

import numpy as np
import pytest

from pipelines import run_flower_app
from ray_fed import ConfigError, DataError, SiloSpec
from ray_fed.errors import QuorumLost

pytest.importorskip("flwr.serverapp", reason="flwr is not installed: constraints-flower.txt says how")
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg

from tests.flower_apps import batchnorm_app, messages_app, sklearn_app, strategy_app

pytestmark = pytest.mark.filterwarnings("default")  # Flower's own, and those of what apps use
FOLDER = Path(__file__).parents[1] / "flower_apps" / "torch_folder"


def run(app, silos=3, rounds=3, **options):
    given = {"run_config": {"rounds": rounds}, "silos": silos, "cohort": "local", **options}
    return run_flower_app(server_app=app.server_app, client_app=app.client_app, **given)


def test_a_folder_is_run_with_its_own_config_and_number_of_nodes():
    done = run_flower_app(FOLDER, cohort="local")
    assert [(record.server_round, len(record.participants)) for record in done.records] == [
        (0, 3), (1, 3), (2, 3), (3, 3),
    ]  # fmt: skip
    history = done.history()
    assert history["train.rounds_seen"].dropna().tolist() == [1, 2, 3]
    assert history["federated.accuracy"].iloc[-1] > 0.85
    assert done.metrics["central.accuracy"] == done.result.evaluate_metrics_serverapp[3]["accuracy"]
    assert history["query.classes.0"].iloc[0] + history["query.classes.1"].iloc[0] == pytest.approx(60)
    assert set(done.arrays) == {"0.weight", "0.bias", "2.weight", "2.bias"}


def test_values_of_the_run_config_are_replaced_and_unknown_ones_refused():
    done = run_flower_app(FOLDER, cohort="local", run_config={"num-server-rounds": 1, "optimizer.lr": 0.1})
    assert done.records[-1].server_round == 1
    with pytest.raises(ConfigError, match=r"run_config has no 'lr'; .*optimizer.lr"):
        run_flower_app(FOLDER, cohort="local", run_config={"lr": 1})


def test_scikit_learn_clients_of_the_older_generation():
    done = run(sklearn_app)
    assert done.metrics["federated.accuracy"] > 0.85
    [(_, told), *_] = done.result.metrics_distributed["accuracy"][-1:]
    assert told == pytest.approx(done.metrics["federated.accuracy"])
    assert done.result.metrics_distributed_fit["accuracy"]
    assert [array.shape for array in done.arrays.values()] == [(1, 4), (1,)]


def test_boosted_trees_travel_as_bytes():
    pytest.importorskip("xgboost", reason="xgboost is not installed")
    from tests.flower_apps import xgboost_app

    done = run(xgboost_app)
    assert done.metrics["federated.auc"] > done.records[0].metrics["federated.auc"] > 0.7
    model = xgboost_app.xgb.Booster()
    model.load_model(bytearray(done.arrays["0"].tobytes()))
    assert model.num_boosted_rounds() == 9


def test_lightning_modules_train_as_they_are():
    pytest.importorskip("lightning", reason="lightning is not installed")
    from tests.flower_apps import lightning_app

    done = run(lightning_app)
    assert done.metrics["federated.loss"] < done.records[0].metrics["federated.loss"]


def test_batch_norm_stays_with_each_client_and_is_known_again():
    done = run(batchnorm_app)
    means = [done.metrics[f"silo.silo-{number}.own_mean"] for number in range(3)]
    assert means == sorted(means)
    assert means[2] - means[0] > 1  # each partition's own, never averaged
    assert [array.shape for array in done.arrays.values()] == [(2, 4), (2,)]
    assert done.metrics["federated.loss"] < done.records[1].metrics["federated.loss"]


def test_a_strategy_of_ones_own_with_its_hooks():
    done = run_flower_app(
        server_app=strategy_app.strategy(), num_rounds=3, client_app=strategy_app.client_fn, silos=4, cohort="local"
    )
    fitted = done.result.metrics_distributed_fit
    assert [value for _, value in fitted["steps"]] == [12, 12, 12]  # two clients of 2 steps, two of 4
    assert [value for _, value in fitted["clients"]] == [4, 4, 4]
    assert len(done.result.losses_centralized) == 4
    assert done.metrics["central.is_finite"] == 1
    assert done.metrics["federated.loss"] < done.records[1].metrics["federated.loss"]


def test_each_node_gets_the_config_that_its_message_has():
    done = run(messages_app)
    rates = [done.metrics[f"silo.silo-{number}.train.rate"] for number in range(3)]
    assert sorted(rates) == [0.1, 0.2, 0.3]
    np.testing.assert_allclose(done.arrays["0"], 1 - 3 * 0.2)


def test_two_runs_have_the_same_bytes_and_another_seed_has_others():
    first, again, other = (run_flower_app(FOLDER, cohort="local", seed=seed) for seed in (0, 0, 1))
    assert all(first.arrays[name].tobytes() == again.arrays[name].tobytes() for name in first.arrays)
    assert first.history().equals(again.history())
    assert not np.array_equal(first.arrays["0.weight"], other.arrays["0.weight"])


def test_silos_of_ones_own_have_names_and_node_configs():
    silos = [SiloSpec(f"institute-{number}", {"partition-id": 5 + number, "db": "x"}) for number in range(2)]
    done = run(messages_app, silos=silos)
    assert done.metrics["silo.institute-1.partition"] == 6


# ---- failures


def failing(where, kind="train"):
    app = ClientApp()

    @app.train()
    def fit(message, context):
        if kind == "train" and where(context.node_config["partition-id"], message.content["config"]["server-round"]):
            raise RuntimeError("no power")
        arrays = message.content["arrays"].to_numpy_ndarrays()
        if kind == "nan" and where(context.node_config["partition-id"], 1):
            arrays = [array * np.nan for array in arrays]
        told = MetricRecord({"num-examples": 10})
        return Message(RecordDict({"arrays": ArrayRecord(arrays), "metrics": told}), reply_to=message)

    @app.evaluate()
    def mark(message, context):  # noqa: ARG001
        return Message(RecordDict({"metrics": MetricRecord({"loss": 1.0, "num-examples": 10})}), reply_to=message)

    return app


def served(rounds=2):
    app = ServerApp()

    @app.main()
    def main(grid, context):  # noqa: ARG001
        FedAvg(fraction_train=1.0, fraction_evaluate=1.0).start(grid, ArrayRecord([np.zeros(3)]), rounds)

    return app


def federated(client_app, **options):
    return run_flower_app(server_app=served(), client_app=client_app, silos=3, cohort="local", **options)


def test_a_client_that_raises_is_a_failure_of_its_round_and_said_once(capsys):
    done = federated(failing(lambda partition, _: partition == 1))
    assert [dict(record.failures).keys() for record in done.records] == [{"silo-1"}] * 2
    assert "RuntimeError: no power" in dict(done.records[0].failures)["silo-1"]
    assert capsys.readouterr().err.count("silo 'silo-1' does not take part") == 1


def test_what_is_not_finite_does_not_leave_a_silo():
    done = federated(failing(lambda partition, _: partition == 1, "nan"))
    assert "not finite; did the training diverge?" in dict(done.records[0].failures)["silo-1"]
    assert np.isfinite(done.arrays["0"]).all()


def test_where_nobody_answers_the_run_ends_and_names_silo_and_cause():
    with pytest.raises(QuorumLost, match=r"no silo answers 'train': silo 'silo-0': .*RuntimeError: no power"):
        federated(failing(lambda *_: True))


def test_what_cannot_be_run_is_said_in_one_line(tmp_path):
    with pytest.raises(ConfigError, match=r"is no Flower app: it has no pyproject\.toml"):
        run_flower_app(tmp_path, cohort="local")
    (tmp_path / "pyproject.toml").write_text("[tool.flwr.app.components]\nserverapp = 'nowhere_to_be:app'\n")
    with pytest.raises(ConfigError, match="does not name clientapp"):
        run_flower_app(tmp_path, cohort="local")
    with pytest.raises(ConfigError, match=r"server_app is a int; give a ServerApp, or a strategy of flwr\.server"):
        run_flower_app(server_app=3, client_app=failing(lambda *_: False))
    with pytest.raises(ConfigError, match="give num_rounds with a strategy"):
        run_flower_app(server_app=strategy_app.strategy(), client_app=strategy_app.client_fn)


# ---- folders of runs


def test_a_run_that_was_broken_off_goes_on_to_the_same_bytes_and_asks_no_silo_twice(tmp_path):
    whole = run_flower_app(FOLDER, cohort="local")
    answered = []

    def broken_at(number):
        from lines import client_app as theirs

        inner = theirs.app

        class Counting(ClientApp):
            def __call__(self, message, context):
                answered.append(message.metadata.message_type)
                if len(answered) == number:
                    raise KeyboardInterrupt
                return inner(message, context)

        return Counting()

    from lines import server_app as server

    config = {"num-server-rounds": 3, "optimizer.lr": 0.5, "local-epochs": 2}
    options = {"server_app": server.app, "silos": 3, "cohort": "local", "run_config": config, "out": tmp_path / "run"}
    with pytest.raises(KeyboardInterrupt):
        run_flower_app(client_app=broken_at(11), **options)
    assert (tmp_path / "run" / "summary.json").read_text().count('"interrupted"') == 1
    with pytest.raises(ConfigError, match="resume=True goes on with it"):
        run_flower_app(client_app=broken_at(0), **options)
    done = run_flower_app(client_app=broken_at(0), resume=True, **options)
    assert len(answered) == 21 + 2  # 3 queries, 9 trainings and 9 evaluations; two were not written down yet
    assert all(done.arrays[name].tobytes() == whole.arrays[name].tobytes() for name in whole.arrays)
    assert done.history().equals(whole.history())
    assert not (tmp_path / "run" / "unfinished").exists()
    read = run_flower_app(client_app=broken_at(0), resume=True, **options)
    assert len(answered) == 23
    assert read.arrays["0.bias"].tobytes() == done.arrays["0.bias"].tobytes()
    assert read.metrics == done.metrics


def test_a_server_that_says_something_else_when_run_again_is_found_out(tmp_path):
    app, calls = ServerApp(), []

    @app.main()
    def main(grid, context):  # noqa: ARG001
        calls.append(1)
        FedAvg(fraction_train=1.0, fraction_evaluate=0.0).start(grid, ArrayRecord([np.full(2, float(len(calls)))]), 2)

    options = {"server_app": app, "silos": 2, "cohort": "local", "out": tmp_path / "run"}
    broken = failing(lambda partition, server_round: _stop() if (partition, server_round) == (1, 2) else False)
    with pytest.raises(KeyboardInterrupt):
        run_flower_app(client_app=broken, **options)
    with pytest.raises(DataError, match="depends on a clock or an unseeded generator; begin a new run"):
        run_flower_app(client_app=failing(lambda *_: False), resume=True, **options)


def _stop():
    raise KeyboardInterrupt


def test_the_command_prints_a_table(capsys):
    from pipelines.cli import main

    assert main(["flower", str(FOLDER), "--cohort", "local", "--run-config", "num-server-rounds=1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:3] for line in lines if line[:1].isdigit()] == [["0", "3", "0"], ["1", "3", "0"]]
    with contextlib.suppress(SystemExit):
        assert main(["flower", str(FOLDER), "--run-config", "nothing=1"]) == 2
