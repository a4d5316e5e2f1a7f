"""Early stopping of the federation: by counts of rows kept back, with the best exchange as the result."""

import json
from dataclasses import replace

import numpy as np
import pytest

from pipelines.cli import main
from pipelines.training.setup import jobs, resolve
from ray_fed.errors import ConfigError
from ray_fed.federation.cohort import LocalCohort
from ray_fed.federation.coordinator import Coordinator
from ray_fed.federation.counted_rows import CountedRows
from ray_fed.federation.messages import Raised
from ray_fed.federation.rounds.job import Job
from ray_fed.federation.rounds.kept_back import KEPT_BACK, KEPT_ROUND
from ray_fed.materials.model_crystals.crystals import make_model_crystals
from ray_fed.materials.row_counts import PARTS

OPTIONS = {
    "cohort": "local", "rows": 400, "silos": (100, 150), "epochs": 60, "rounds": 30, "hidden": (32,), "seed": 1,
    "features": "rich", "learning_rate": 0.02, "baselines": False, "analysis": False, "validation_share": 0.3,
    "calibration_fraction": 0.0, "task": "regression",
    "optimizer_state": "reset",
}  # fmt: skip


def opened(**options: object) -> tuple[Coordinator, Job]:
    setup = resolve({**OPTIONS, "early_stopping": "all", **options}, (), "train")
    coordinator = Coordinator(LocalCohort(setup.members, setup.task, setup.test), setup.task, setup.training)
    agreement = coordinator.agree(setup.config.threshold(len(setup.training)))
    return coordinator, jobs(setup, dict(agreement.silos), setup.config.seed)[0]


@pytest.fixture(scope="module")
def records():
    coordinator, job = opened()
    job = replace(job, best_round=replace(job.best_round, patience=3))  # type: ignore[type-var]
    return list(coordinator.run(job))


def test_rows_kept_back_are_in_no_other_part():
    coordinator, _ = opened(calibration_fraction=0.2)
    for name in ("silo-1", "silo-2"):
        rows = coordinator.cohort.silos[name].rows  # type: ignore[attr-defined]
        parts = [set(rows.formulas[part]) for part in PARTS]
        assert parts[0]
        assert parts[3]
        assert sum(map(len, parts)) == len(set.union(*parts))
        assert len(rows.validation_targets) == len(rows.formulas["validation"])


def test_rounds_end_when_the_rows_kept_back_get_no_better_and_the_best_exchange_is_the_result(records):
    last = records[-1]
    assert 3 < last.server_round == last.num_rounds < OPTIONS["rounds"]
    losses = {record.server_round: record.metrics[KEPT_BACK] for record in records[1:-1]}
    best = min(losses, key=losses.__getitem__)
    assert last.metrics[KEPT_ROUND] == best == last.server_round - 3
    np.testing.assert_array_equal(last.models["federated"], records[best].state["federated"])
    for name in ("federated.mae", "silo.silo-1.mae", KEPT_BACK):
        assert last.metrics[name] == records[best].metrics[name]
    assert all(KEPT_ROUND not in record.metrics for record in records[:-1])


@pytest.mark.parametrize("after", [1, 4])
def test_a_run_that_goes_on_from_any_round_stops_at_the_same_one(records, after):
    coordinator, job = opened()
    job = replace(job, best_round=replace(job.best_round, patience=3))  # type: ignore[type-var]
    again = list(coordinator.run(job, after, records[after].state))
    assert [record.metrics for record in again] == [record.metrics for record in records[after + 1 :]]
    np.testing.assert_array_equal(again[-1].models["federated"], records[-1].models["federated"])


def test_counts_under_masks_stop_at_the_same_exchange(records):
    coordinator, job = opened(secure_aggregation=True)
    job = replace(job, best_round=replace(job.best_round, patience=3))  # type: ignore[type-var]
    last = list(coordinator.run(job))[-1]
    assert last.metrics[KEPT_ROUND] == records[-1].metrics[KEPT_ROUND]
    np.testing.assert_array_equal(last.models["federated"], records[-1].models["federated"])


def test_without_it_nothing_is_kept_back_and_no_round_is_left_out():
    for early_stopping in ("no", "baselines"):
        coordinator, job = opened(early_stopping=early_stopping)
        assert (job.kept_back, job.best_round) == (None, None)
        assert not coordinator.cohort.silos["silo-1"].rows.formulas["validation"]  # type: ignore[attr-defined]


def test_silos_that_tell_no_counts_are_named_and_without_any_it_is_refused():
    coordinator, job = opened(rounds=2)
    count = coordinator.cohort.count
    refused = {"silo-2"}

    def refusing(question, given):
        answers = count(question, given)
        return {silo: Raised(silo, 0, "its owner's 'counts' are none") if silo in refused else answer
                for silo, answer in answers.items()}  # fmt: skip

    coordinator.cohort.count = refusing  # type: ignore[method-assign]
    last = list(coordinator.run(job))[-1]
    assert last.failures == (("silo-2", "early stopping: its owner's 'counts' are none"),)
    assert last.participants == ("silo-1", "silo-2")
    refused.add("silo-1")
    with pytest.raises(
        ConfigError, match="early_stopping: nothing is told of rows kept back: silo 'silo-1': its owner"
    ):
        list(coordinator.run(replace(job, name="again")))


def test_several_targets_and_classes_are_looked_at_together(tmp_path):
    frame = make_model_crystals(500).rename(columns={"target": "energy"})
    frame["stable"] = frame["energy"] < frame["energy"].median()
    frame[["formula", "energy", "stable"]].to_csv(tmp_path / "rows.csv", index=False)
    more = {
        "data": str(tmp_path / "rows.csv"),
        "target": ("energy", "stable"),
        "task": "auto",
        "rounds": 3,
        "epochs": 6,
    }
    coordinator, job = opened(**more, rows=None)
    assert len(job.kept_back.asks(np.zeros(3, np.float32))) == 2  # type: ignore[union-attr]
    losses = [record.metrics[KEPT_BACK] for record in coordinator.run(job) if KEPT_BACK in record.metrics]
    assert len(losses) == 3
    assert losses[-1] < losses[0]
    nothing = CountedRows(0, np.zeros(0, np.int64))
    assert np.isnan(job.kept_back.loss([nothing, nothing]))  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strategy": "fed_buff"}, "fed_buff has none"),
        ({"model": "boosted_trees", "learning_rate": 1e-3}, "trees stop by --tree-options patience"),
        ({"dp_noise_multiplier": 1.0}, "which have no noise"),
        ({"calibration_fraction": 0.5, "validation_share": 0.5}, "leave no rows to train on"),
    ],
)
def test_what_it_does_not_go_with_is_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        opened(**options)


def test_the_command_says_which_exchange_is_kept(tmp_path, capsys):
    told = "--rows 400 --silos 100,150 --epochs 60 --rounds 30 --hidden 32 --features rich --learning-rate 0.02"
    told += " --seed 1 --baselines no --analysis no --early-stopping all --validation-share 0.3 --cohort local"
    told += " --strategy-options momentum=0"  # with it this small run does not overfit
    assert main(["train", *told.split(), "--out", str(tmp_path / "run")]) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["rounds"] < 30
    assert summary["kept_back.best_round"] <= summary["rounds"] - 8
    kept = f"early stopping after {summary['rounds']} exchanges; exchange {summary['kept_back.best_round']:.0f} is"
    assert kept in capsys.readouterr().err
