"""What a member would do alone, and what all rows in one place would give, against the federation.

Four silos (1,000 / 2,000 / 3,000 / 4,000 rows) of the embedded crystals, or of a table with structures, and 2,897 test
rows whose formulas no silo has; all in proportion with fewer --rows. Network, random forest and gradient boosting on
the rows of the smallest silo, of the largest and of all together; the federated network over 25 communications.

    python benchmarks/alone_or_together.py [--data mp_structures.parquet] [--features guo73] [--rows 6000] [--repeats 1]
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from pipelines.training.config import FormationEnergyConfig
from pipelines.training.setup import Setup, resolve
from ray_fed.federation.task import SiloSpec
from ray_fed.materials.best_alone import Candidate, Questions, badness, candidates, predictions
from ray_fed.materials.learners import BOOSTED_TREES, NUM_TREES, Columns, TreeLearner

PARTS = ("silo-1", "silo-4", "pooled")


def options_of(given: argparse.Namespace) -> dict[str, str]:
    return {"data": given.data, "rows": str(given.rows), "features": given.features}


def networks(given: argparse.Namespace, *more: str) -> dict[str, float]:
    """Return the summary of the pipeline: federated, and the same network alone and pooled."""
    with tempfile.TemporaryDirectory() as folder:
        words = [word for name, value in options_of(given).items() for word in (f"--{name}", value)]
        command = [sys.executable, "-m", "pipelines.cli", "formation-energy", "--cohort", "local", *words, *more]
        out = Path(folder) / "run"
        subprocess.run([*command, "--repeats", str(given.repeats), "--out", str(out)], check=True, capture_output=True)
        return json.loads((out / "summary.json").read_text())


def trees(setup: Setup, spec: SiloSpec, repeats: int) -> dict[str, float]:
    """Return learner -> MAE on the test set, mean over seeds, of trees on one silo's rows."""
    task, rows = setup.task, setup.task.load(spec)
    test, found = task.published_test(spec), {}
    assert test is not None
    for name, lengths in (("random_forest", (NUM_TREES,)), ("gradient_boosting", BOOSTED_TREES)):
        errors = []
        for seed in range(repeats):
            learner = TreeLearner(task, Columns(rows.features, *task.tree_targets(rows.targets), seed), name, lengths)
            chosen = chosen_length(learner, Questions(task, rows.targets, rows.groups, seed))
            predicted = predictions(chosen, len(rows.features), test.features)
            errors.append(badness(task, task.score(test.targets, predicted)))
        found[name] = float(np.mean(errors))
    return found


def chosen_length(learner: TreeLearner, asked: Questions) -> Candidate:
    """Return the learner at the length that its own folds choose; a forest has one only."""
    if len(learner.lengths) > 1:
        return candidates([learner], asked)[0]
    nothing = asked.task.score(asked.targets[:0], np.empty((0, 1)))
    return Candidate(learner, learner.lengths[-1], nothing, True, np.nan)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="embedded")
    parser.add_argument("--features", default="guo73")
    parser.add_argument("--rows", type=int, default=6000)
    parser.add_argument("--repeats", type=int, default=1)
    given = parser.parse_args()
    plain = networks(given)
    stopped = networks(given, "--early-stopping", "baselines")
    setup = resolve({**options_of(given), "rows": given.rows}, (), FormationEnergyConfig.PIPELINE)
    print(
        f"\n{Path(given.data).name}, {given.rows:,} rows, {given.features}, {given.repeats} seeds; federated {plain['federated.mae']:.4f}"
    )
    print("\n| rows of | network | network, stopped early | random forest | gradient boosting |\n|---|---|---|---|---|")
    for name in PARTS:
        key = name if name == "pooled" else f"silo.{name}"
        spec = next(each for each in (*setup.silos, setup.pooled) if each and each.name == name)
        found = trees(setup, spec, given.repeats)
        cells = (plain[f"{key}.mae"], stopped[f"{key}.mae"], found["random_forest"], found["gradient_boosting"])
        print(f"| {name} | " + " | ".join(f"{cell:.4f}" for cell in cells) + " |", flush=True)


if __name__ == "__main__":
    main()
