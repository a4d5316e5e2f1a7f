"""Federated boosted trees against pooled ones: accuracy, seconds, exchanges, bytes, and what histograms show of rows.

python benchmarks/trees.py [--data mp_structures.parquet] [--trees 600]
"""

import argparse
import hashlib
import os
import time
import warnings
from dataclasses import dataclass, replace

os.environ.setdefault("OMP_NUM_THREADS", "1")

import lightgbm
import numpy as np
from sklearn.ensemble import HistGradientBoostingRegressor

from pipelines.training.setup import Setup, jobs, resolve
from ray_fed.federation.cohort import LocalCohort
from ray_fed.federation.coordinator import Coordinator
from ray_fed.federation.rounds.job import RoundRecord
from ray_fed.leakage.tree_sums import Exposure, exposures
from ray_fed.materials.boosted_property_task import BoostedPropertyTask
from ray_fed.privacy.compression import Compression
from ray_fed.trees.bins import as_float32
from ray_fed.trees.forest import Forest, ForestPredictor
from ray_fed.trees.growth import Grower
from ray_fed.trees.member import Member
from ray_fed.trees.settings import TreeSettings
from ray_fed.trees.together import grown

PARTITIONS = ("size", "sorted_target")


@dataclass(frozen=True)
class Rows:
    """Features and targets of all training rows, and of the test rows."""

    x: np.ndarray
    y: np.ndarray
    new: np.ndarray
    true: np.ndarray

    def error(self, predicted: np.ndarray) -> float:
        return float(np.abs(predicted - self.true).mean())


def setup_of(data: str, trees: int, partition: str, more: tuple[str, ...] = ()) -> Setup:
    options: dict[str, object] = {
        "model": "boosted_trees", "tree_options": (f"trees={trees}", *more), "features": "guo73", "cohort": "local",
        "data": data, "partition": partition, "target": ("formation_energy_per_atom",), "rows": 12_897,
        "calibration_fraction": 0.0,
    }  # fmt: skip
    return resolve(options, pipeline="train")


def settings_of(setup: Setup) -> TreeSettings:
    assert isinstance(setup.task, BoostedPropertyTask)
    return setup.task.trees


def rows_of(setup: Setup) -> Rows:
    assert setup.pooled is not None
    assert setup.test is not None
    train, test = (setup.task.load(spec) for spec in (setup.pooled, setup.test))
    return Rows(train.features, train.targets, test.features, test.targets)


def federated(setup: Setup, name: str, coded: bool = False) -> tuple[np.ndarray, float, list[RoundRecord]]:
    """Return the forest's vector, processor seconds of the rounds without evaluation, and the records."""
    assert setup.pooled is not None
    task, silos = setup.task, setup.silos if name == "federated" else (setup.pooled,)
    names = tuple(spec.name for spec in silos)
    coordinator = Coordinator(LocalCohort(silos, task), task, names)
    described = dict(coordinator.agree().silos)
    job = jobs(replace(setup, pooled=None), dict.fromkeys(setup.training, described[names[0]]), 0)[0]
    plan = replace(job.any_plan, compression=Compression() if coded else None)
    job = replace(
        job, silos=names, plans=dict.fromkeys(names, plan), evaluate_every=10**9, evaluate_silos=False, kind="baseline"
    )
    start, spent, records = time.process_time(), 0.0, []
    for record in coordinator.run(job):
        records.append(record)
        spent = time.process_time() - start if record.models is None else spent  # the last one evaluates, too
    return records[-1].models["federated"], spent, records


def predicted(setup: Setup, vector: np.ndarray, rows: Rows) -> np.ndarray:
    trees = settings_of(setup)
    return ForestPredictor(trees).scores(Forest.of(vector, trees), as_float32(rows.new))[0]


def peers(rows: Rows, trees: int) -> dict[str, tuple[float, float]]:
    """Return name -> (MAE, processor seconds) of pooled libraries with the same trees, leaves, bins and rate."""
    same = {"n_estimators": trees, "learning_rate": 0.06, "num_leaves": 31, "max_bin": 63, "n_jobs": 1, "verbose": -1}
    half = {"feature_fraction": 0.5, "feature_fraction_seed": 0}
    quantised = {"use_quantized_grad": True, "num_grad_quant_bins": 64, "quant_train_renew_leaf": True}
    models = {
        "LightGBM": lightgbm.LGBMRegressor(**same),
        "LightGBM, half of the features": lightgbm.LGBMRegressor(**same, **half),
        "LightGBM, 64 gradient levels": lightgbm.LGBMRegressor(**same, **quantised),
        "LightGBM, 64 levels, half of the features": lightgbm.LGBMRegressor(**same, **quantised, **half),
        "scikit-learn's HistGradientBoosting": HistGradientBoostingRegressor(
            max_iter=trees,
            learning_rate=0.06,
            max_leaf_nodes=31,
            max_bins=63,
            early_stopping=False,  # type: ignore[arg-type]  (the stubs know its text only)
        ),
    }
    found = {}
    for name, model in models.items():
        start = time.process_time()
        model.fit(rows.x, rows.y)
        spent = time.process_time() - start
        found[name] = rows.error(model.predict(rows.new)), spent
    return found


def shown(rows: Rows, settings: TreeSettings, parts: list[np.ndarray], trees: int) -> list[Exposure]:
    """Return what the sums of the first trees show of the first part's rows: in its own sums, and in those of all."""
    members = {str(number): Member(rows.x[part], rows.y[part], settings) for number, part in enumerate(parts)}
    return exposures(members, Grower(replace(settings, trees=trees), rows.x.shape[1]))[:2]


def masked_bytes(setup: Setup) -> float:
    """Return the bytes of one silo, both ways, under masks, with keys and shares."""
    names = tuple(spec.name for spec in setup.silos)
    coordinator = Coordinator(LocalCohort(setup.silos, setup.task), setup.task, names)
    described = dict(coordinator.agree(3).silos)
    job = jobs(replace(setup, pooled=None), dict.fromkeys(setup.training, described[names[0]]), 0)[0]
    job = replace(job, evaluate_every=10**9, evaluate_silos=False, kind="baseline", secure_threshold=3)
    return sum(record.bytes_sent for record in coordinator.run(job)) / len(names)


def main() -> None:
    warnings.filterwarnings("ignore")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="embedded")
    parser.add_argument("--trees", type=int, default=600)
    options = parser.parse_args()
    setups = {name: setup_of(options.data, options.trees, name) for name in PARTITIONS}
    rows = rows_of(setups["size"])
    print(f"{len(rows.x):,} training rows, {len(rows.new):,} test rows, {rows.x.shape[1]} features\n")
    print("| model | silos | MAE, eV/atom | sha256 of the model | processor s |\n|:--|:--|---:|:--|---:|")
    forests = {"all rows in one place": federated(setups["size"], "pooled")}
    forests |= {f"four, by {name}": federated(setup, "federated") for name, setup in setups.items()}
    for name, (vector, spent, _) in forests.items():
        mae, digest = rows.error(predicted(setups["size"], vector, rows)), hashlib.sha256(vector.tobytes()).hexdigest()
        print(f"| ray-fed | {name} | {mae:.4f} | {digest[:16]} | {spent:.1f} |")
    known = peers(rows, options.trees)
    for name, (mae, spent) in known.items():
        print(f"| {name} | all rows in one place | {mae:.4f} | | {spent:.1f} |")
    whole = setup_of(options.data, options.trees, "size", ("feature_fraction=1",))
    vector, spent, _ = federated(whole, "pooled")
    mae = rows.error(predicted(whole, vector, rows))
    print(f"| ray-fed, all features | all rows in one place | {mae:.4f} | | {spent:.1f} |")
    x, y = _largest(setups["size"])
    alone = Member(x, y, settings_of(setups["size"]))
    grower = Grower(settings_of(setups["size"]), rows.x.shape[1])
    vector = grower.forest(grown(grower, [alone])).vector
    print(f"| ray-fed | silo-4 alone | {rows.error(predicted(setups['size'], vector, rows)):.4f} | | |")
    _, _, records = federated(setups["size"], "federated", coded=True)
    plain = forests["four, by size"][2]
    sent, raw = (sum(record.bytes_sent for record in each) / 4e6 for each in (records, plain))
    print(f"\nexchanges: {records[-1].server_round}, {records[-1].server_round / options.trees:.2f} a tree")
    masked = masked_bytes(setups["size"]) / 1e6
    print(f"bytes of a silo, both ways: {sent:.1f} MB coded, {raw:.1f} MB as float32, {masked:.0f} MB masked")
    order = np.random.default_rng(0).permutation(len(rows.x))
    parts = np.split(order, [len(order) // 10, 3 * len(order) // 10, 6 * len(order) // 10])
    print(
        "\n| bins | depth | least rows in a leaf | trees | seen in | alone in a bin | alone in a leaf | target within |"
    )
    print("|---:|---:|---:|---:|:--|---:|---:|---:|")
    base = settings_of(setups["size"])
    for bins, depth, least in ((63, 7, 20), (63, 7, 500), (8, 3, 500)):
        settings = replace(base, bins=bins, depth=depth, min_rows=least)
        for trees in (1, 10):
            for each in shown(rows, settings, parts, trees):
                numbers = f"{each.share_in_bins:.1%} | {each.share_in_leaves:.1%} | {each.error:.3g}"
                print(f"| {bins} | {depth} | {least} | {trees} | {each.seen_in} | {numbers} |", flush=True)


def _largest(setup: Setup) -> tuple[np.ndarray, np.ndarray]:
    found = setup.task.load(setup.silos[-1])
    return found.features, found.targets


if __name__ == "__main__":
    main()
