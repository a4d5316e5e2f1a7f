"""Four real databases as four silos: OQMD, Materials Project, JARVIS and experiment disagree by about 0.15 eV/atom.

Composition features only (`guo65`). Every database holds out the same 20 % of formulas, so no formula is in a training
set of one and a test set of another. Each model is marked on the held-out rows of each database. Rows beyond 5 eV/atom
(17 broken OQMD entries) are dropped; `--rows` bounds each database by a seeded choice.

    python benchmarks/four_databases.py --data formation_energy.parquet [--rows 20000] [--epochs 20] [--repeats 3]
"""

import argparse
import platform
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from math import ceil
from pathlib import Path
from statistics import mean, stdev

import pandas as pd

from ray_fed.federation.cohort import LocalCohort
from ray_fed.federation.coordinator import Coordinator
from ray_fed.federation.messages import SessionSpec, SiloDescription
from ray_fed.federation.rounds.job import Job, RoundRecord, local_job
from ray_fed.federation.strategies import make_strategy
from ray_fed.federation.task import SiloSpec
from ray_fed.learning.trainer import TrainingPlan
from ray_fed.materials.databases.source import Source
from ray_fed.materials.property_task import CrystalRows, PropertyTask

DATABASES = ("OQMD", "MP", "JARVIS", "EXPT")
POOLED, BATCH, HOLD_OUT = "pooled", 200, 0.2
VARIANTS: dict[str, tuple[str, dict, dict]] = {
    "FedAvg": ("fed_avg", {}, {}),
    "FedAvg, personal bias": ("fed_avg", {}, {"keep_local": ("4.bias",)}),
    "FedProx, mu 0.01": ("fed_avg", {}, {"proximal_mu": 0.01}),
    "SCAFFOLD": ("scaffold", {}, {}),
    "SCAFFOLD, SGD lr 0.02": ("scaffold", {}, {"optimizer": "sgd", "learning_rate": 0.02}),
    "FedAvg, SGD lr 0.02": ("fed_avg", {}, {"optimizer": "sgd", "learning_rate": 0.02}),
    "FedAdam, eta 0.01": ("fed_adam", {"eta": 0.01}, {}),
    "FedAvgM, eta 1, beta 0.9": ("fed_avg_m", {}, {}),
    "coordinate median": ("median", {}, {}),
}


def tables(data: str, rows: int | None, folder: Path) -> list[SiloSpec]:
    """Write one table per database, and all of them as one, into `folder`; return the silos that open them."""
    table = pd.read_parquet(data)
    table = table[table["formation_energy_per_atom"].abs() <= 5]
    parts = {name: table[table["source"] == name] for name in DATABASES}
    parts = {name: part.sample(min(rows or len(part), len(part)), random_state=0) for name, part in parts.items()}
    parts[POOLED] = pd.concat(parts.values())
    for name, part in parts.items():
        part.to_parquet(folder / f"{name}.parquet")
    sources = {name: Source(str(folder / f"{name}.parquet")) for name in parts}
    return [SiloSpec(name, CrystalRows(source, test_fraction=HOLD_OUT)) for name, source in sources.items()]


def plan(examples: int, seed: int, options: argparse.Namespace) -> TrainingPlan:
    return TrainingPlan(seed, options.epochs, ceil(examples / BATCH), options.rounds)


def own_errors(record: RoundRecord) -> dict[str, float]:
    """Database -> MAE on its held-out rows, of the model it would use."""
    return {name: record.metrics[f"silo.{name}.mae"] for name in DATABASES if f"silo.{name}.mae" in record.metrics}


def pooled_errors(coordinator: Coordinator, job: Job) -> dict[str, float]:
    """Train on all rows in one place; return database -> MAE on its held-out rows."""
    models = list(coordinator.run(job))[-1].models
    specs = {name: SessionSpec("mark", job.plans[POOLED], 0, coordinator.layout.digest) for name in DATABASES}
    coordinator.cohort.open_session(specs)
    marked = coordinator.cohort.evaluate("mark", DATABASES, models or {})
    return {name: next(iter(marked[name].values())).held_out.mae for name in DATABASES}


def results(
    coordinator: Coordinator, silos: Mapping[str, SiloDescription], seed: int, options: argparse.Namespace
) -> dict[str, dict[str, float]]:
    """Return model -> database -> MAE for one seed."""
    shared = plan(sum(silos[name].num_examples for name in DATABASES), seed, options)
    fed_avg = Job("fed_avg", DATABASES, dict.fromkeys(DATABASES, shared), seed, evaluate_every=options.rounds)
    alone = {name: plan(silos[name].num_examples, seed, options) for name in DATABASES}
    found = {"each database alone": own_errors(list(coordinator.run(local_job(fed_avg, alone, "local")))[-1])}
    found["pooled"] = pooled_errors(
        coordinator, replace(fed_avg, name="pooled", silos=(POOLED,), plans={POOLED: shared}, evaluate_silos=False)
    )
    for name, (strategy, strategy_options, changes) in VARIANTS.items():
        plans = dict.fromkeys(DATABASES, replace(shared, **changes))
        job = replace(fed_avg, name=name, plans=plans, strategy=make_strategy(strategy, **strategy_options))
        found[name] = own_errors(list(coordinator.run(job))[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        task = PropertyTask("guo65")
        coordinator = Coordinator(LocalCohort(tables(options.data, options.rows, Path(folder)), task), task, DATABASES)
        silos = coordinator.agree().silos
        runs = [results(coordinator, silos, seed, options) for seed in range(options.repeats)]
    print(f"{options.epochs} epochs, {options.rounds} rounds, {options.repeats} seeds, {platform.platform()}\n")
    sizes = (f"{name} ({silos[name].num_examples:,} / {silos[name].num_held_out:,})" for name in DATABASES)
    print(f"| MAE in eV/atom on held-out rows (training / held-out) | {' | '.join(sizes)} |\n|---|---|---|---|---|")
    for model in runs[0]:
        cells = ([run[model][name] for run in runs] for name in DATABASES)
        shown = (f"{mean(cell):.3f} ± {stdev(cell) if len(cell) > 1 else 0.0:.3f}" for cell in cells)
        print(f"| {model} | {' | '.join(shown)} |")


if __name__ == "__main__":
    main()
