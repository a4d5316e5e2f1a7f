"""`federated_trainable` in a Tuner of one's own: search, schedulers, going on, models, on silos that stand."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from torch import nn
from torch.nn import functional

from pipelines import Federated, Training, federate, federated_trainable
from ray_fed import SiloSpec, TorchTask, make_strategy
from tests.events import EventAccumulator, hyperparameters

ray_tune = pytest.importorskip("ray.tune")
pytestmark = [pytest.mark.usefixtures("ray_session"), pytest.mark.filterwarnings("default")]
SILOS = [SiloSpec("a", 1), SiloSpec("b", 2)]
TRAINING = Training(rounds=4, epochs=4, batch_size=16)


def rows(seed):
    drawn = np.random.default_rng(seed)
    features = drawn.normal(size=(60, 4)).astype("f4")
    classes = (features[:, 0] + features[:, 1] > 0).astype("i8")
    return features[20:], classes[20:], features[:20], classes[:20]


def task(config):
    hidden = config["net"]["hidden"]
    return TorchTask(
        lambda: nn.Sequential(nn.Linear(4, hidden), nn.ReLU(), nn.Linear(hidden, 2)), functional.cross_entropy, rows
    )


def fitted(trainable, space, folder, **config):
    settled = {"metric": "loss", "mode": "min", "max_concurrent_trials": 2, **config}
    tuner = ray_tune.Tuner(
        trainable, param_space=space, tune_config=ray_tune.TuneConfig(**settled),
        run_config=ray_tune.RunConfig(name="tuned", storage_path=str(folder), verbose=0),
    )  # fmt: skip
    return tuner.fit()


def test_a_nested_space_is_searched_and_each_model_is_that_of_the_same_single_run(tmp_path):
    space = {"training": {"learning_rate": ray_tune.grid_search([0.001, 0.05])}, "seed": 3, "net": {"hidden": 6},
             "strategy": {"name": "fed_avg_m", "beta": 0.5}}  # fmt: skip
    with federated_trainable(task, SILOS, TRAINING, rungs=2) as trainable:
        found = fitted(trainable, space, tmp_path)
        assert not found.errors
        best = found.get_best_result()
        loaded = trainable.load(best.checkpoint, best.config)
    assert best.config["training"]["learning_rate"] == 0.05
    assert set(found.get_dataframe()["local_steps"]) == {12}
    alone = federate(
        task(best.config), SILOS, Training(rounds=4, epochs=4, batch_size=16, learning_rate=0.05, seed=3),
        strategy=make_strategy("fed_avg_m", beta=0.5), cohort="local",
    )  # fmt: skip
    ours, theirs = ([part.detach().numpy().tobytes() for part in one.module.parameters()] for one in (loaded, alone))
    assert ours == theirs
    assert isinstance(loaded, Federated)
    assert best.metrics["loss"] == alone.metrics["federated.loss"]
    tables = [hyperparameters(EventAccumulator(result.path).Reload())[0] for result in found]
    assert sorted(table["training/learning_rate"] for table in tables) == [0.001, 0.05]


def test_asha_compares_at_rungs_and_population_based_training_takes_over_models(tmp_path):
    from ray.tune.schedulers import ASHAScheduler, PopulationBasedTraining

    asha = ASHAScheduler(time_attr="rung", max_t=4, grace_period=1, reduction_factor=2)
    space = {"learning_rate": ray_tune.grid_search([0.05, 1e-6]), "net": {"hidden": 4}}
    with federated_trainable(task, SILOS, TRAINING, rungs=4) as trainable:
        found = fitted(trainable, space, tmp_path / "asha", scheduler=asha, max_concurrent_trials=1)
        rungs = {result.config["learning_rate"]: result.metrics["rung"] for result in found}
        assert rungs == {0.05: 4, 1e-6: 1}
        pbt = PopulationBasedTraining(
            time_attr="rung",
            perturbation_interval=2,
            hyperparam_mutations={"learning_rate": [0.05, 0.02]},
            quantile_fraction=0.5,
            synch=True,
        )
        found = fitted(trainable, space, tmp_path / "pbt", scheduler=pbt)
        assert not found.errors
        assert all(result.config["learning_rate"] > 1e-3 for result in found)


@pytest.mark.parametrize("library", ["optuna", "hyperopt"])
def test_search_algorithms_draw_from_the_space(library, tmp_path):
    pytest.importorskip(library, reason=f"{library} is not installed")
    from ray.tune.search.hyperopt import HyperOptSearch
    from ray.tune.search.optuna import OptunaSearch

    search = OptunaSearch(seed=0) if library == "optuna" else HyperOptSearch(random_state_seed=0)
    space = {"learning_rate": ray_tune.loguniform(1e-3, 1e-1), "net": {"hidden": ray_tune.choice([3, 4])}}
    with federated_trainable(task, SILOS, TRAINING, rungs=1) as trainable:
        found = fitted(trainable, space, tmp_path, search_alg=search, num_samples=3)
    assert len({result.config["learning_rate"] for result in found}) == 3
    assert not found.errors


def test_a_search_that_was_broken_off_is_restored_from_its_checkpoints(tmp_path):
    mark = tmp_path / "broken"
    mark.touch()

    def breaking(config):
        made, broken = task(config), str(mark)

        def score(outputs, targets):
            if Path(broken).exists() and breaking_now(broken):
                raise RuntimeError("no power")
            return (outputs.argmax(1) == targets).float()

        return replace(made, scores={"accuracy": score})

    def breaking_now(broken):
        with Path(broken).open("a") as file:
            file.write("x")
        return Path(broken).stat().st_size > 9

    space = {"learning_rate": 0.05, "net": {"hidden": 4}, "accept_failures": False}
    with federated_trainable(breaking, SILOS, TRAINING, rungs=4) as trainable:
        found = fitted(trainable, space, tmp_path)
        assert len(found.errors) == 1
        assert "failed while evaluating: its code failed (RuntimeError)" in str(found.errors[0])
        before = found[0].metrics["rung"]
        mark.unlink()
        again = ray_tune.Tuner.restore(str(tmp_path / "tuned"), trainable, resume_errored=True).fit()
        assert not again.errors
        assert again[0].metrics["rung"] == 4 > before
        loaded = trainable.load(again[0].checkpoint, again[0].config)
    assert [record.server_round for record in loaded.records] == [0, 1, 2, 3, 4]


def test_fields_of_a_pipeline_are_a_space_those_of_the_data_among_them(tmp_path):
    options = {"rows": 300, "silos": (60, 120), "epochs": 4, "rounds": 2, "batch_size": 60}
    space = {"net": {"hidden": (8,)}, "features": ray_tune.grid_search(["guo73_literal", "rich"]), "seed": 1}
    with federated_trainable("formation-energy", options=options, rungs=2) as trainable:
        found = fitted(trainable, space, tmp_path, metric="mae")
        assert not found.errors
        models = [trainable.load(result.checkpoint, result.config) for result in found]
    assert len({next(model.module.parameters()).shape for model in models}) == 2
