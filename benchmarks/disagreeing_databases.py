"""What each of four databases that disagree gains by joining: its personal model against the best it can do alone.

OQMD, Materials Project, JARVIS and experiment, by composition, as they are; `--rows` bounds each one by a seeded
choice, and rows beyond 5 eV/atom (broken entries) are dropped. Every database holds out the same 20 % of formulas, on
which all models are marked and nothing is chosen, and another 10 % that only weights are chosen on. Each seed draws
rows, formulas and initial weights anew.

    python benchmarks/disagreeing_databases.py --data formation_energy.parquet [--rows 2000] [--seeds 0,1,2]
"""

import argparse
import json
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev

import numpy as np
import pandas as pd
import yaml

from pipelines.launching import CoordinatorLike, FederationSpec, launched
from pipelines.training.alone import ask_alone
from pipelines.training.members import ask_members, gains
from pipelines.training.setup import Setup, jobs, resolve
from ray_fed.federation.rounds.job import Job, RoundRecord
from ray_fed.materials.personal import METHODS

DATABASES = ("OQMD", "MP", "JARVIS", "EXPT")
LARGEST = 5.0
"""eV/atom."""
HEADS: Mapping[str, tuple[str, ...]] = {
    "network, personal bias": ("4.bias",),
    "network, personal head (FedRep)": ("4.weight", "4.bias"),
}
"""Federated networks of which each silo keeps some parameters while training -> which."""
Errors = dict[str, dict[str, float]]
"""Method -> database -> MAE in eV/atom on its held-out rows."""


def federation(data: str, rows: int, seed: int, folder: Path) -> Path:
    """Write a table for each database and the file of a federation of them; return the file's path."""
    table = pd.read_parquet(data)
    table = table[table["formation_energy_per_atom"].abs() <= LARGEST]
    for name in DATABASES:
        part = pd.DataFrame(table[table["source"] == name])
        part.sample(min(rows, len(part)), random_state=seed).to_parquet(folder / f"{name}.parquet")
    path = folder / "four.yaml"
    path.write_text(yaml.safe_dump({"silos": [{"name": name, "data": f"{name}.parquet"} for name in DATABASES]}))
    return path


def setup_of(path: Path, seed: int, **more: object) -> Setup:
    given = {
        "federation": str(path), "target": ("formation_energy_per_atom",), "unit": ("eV/atom",), "features": "rich",
        "cohort": "local", "seed": seed, **more,
    }  # fmt: skip
    return resolve(given, (), "train")


def last(coordinator: CoordinatorLike, job: Job) -> RoundRecord:
    *_, record = coordinator.run(replace(job, evaluate_every=10**6))
    return record


def own_errors(record: RoundRecord) -> dict[str, float]:
    return {name: record.metrics[f"silo.{name}.mae"] for name in DATABASES}


def of_model(setup: Setup, seed: int, kind: str, is_first: bool, options: argparse.Namespace) -> Errors:
    """Return the errors of all methods that build on one kind of federated model, and of what is done alone."""
    found: Errors = {}
    members = FederationSpec(setup.members, setup.task, None, setup.training)
    with launched(members, "local") as (coordinator, _):
        agreement = coordinator.agree()
        federated, *alone = jobs(setup, dict(agreement.silos), seed)
        record = last(coordinator, federated)
        assert record.models is not None
        models, networks = dict(record.models), dict[str, float]()
        found[f"federated {kind}"] = own_errors(record)
        if is_first:
            local = last(coordinator, alone[0])
            assert local.models is not None
            models |= local.models
            networks = own_errors(local)
            found["alone: best of three learners"] = best_alone(coordinator, setup, seed, networks)
            for name, kept in HEADS.items():
                plans = {silo: replace(plan, keep_local=kept) for silo, plan in federated.plans.items()}
                found[f"federated {name}"] = own_errors(last(coordinator, replace(federated, name=name, plans=plans)))
        metric = setup.task.metrics[0]
        for method in options.methods.split(","):
            chosen = replace(setup, config=replace(setup.config, personal=method))
            answers = ask_members(coordinator, chosen, DATABASES, seed, models, agreement.layout.size)
            if answers.silent:
                raise SystemExit(f"{method}: {answers.silent}")
            found[f"{kind}: {method}"] = {gain.silo: gain.personal for gain in gains([answers], {}, metric)}
            found[f"alone: mixture of its own models{'' if is_first else ' (no network)'}"] = {
                gain.silo: gain.alone for gain in gains([answers], {}, metric)
            }
    return found


def best_alone(
    coordinator: CoordinatorLike, setup: Setup, seed: int, networks: Mapping[str, float]
) -> dict[str, float]:
    told = ask_alone(coordinator, setup, DATABASES, seed)
    return {name: told.results[name].unseen.get("mae", networks[name]) for name in DATABASES}


def of_seed(seed: int, options: argparse.Namespace) -> Errors:
    with tempfile.TemporaryDirectory() as folder:
        path = federation(options.data, options.rows, seed, Path(folder))
        network = of_model(setup_of(path, seed, epochs=options.epochs), seed, "network", True, options)
        trees = setup_of(path, seed, model="boosted_trees", tree_options=(f"trees={options.trees}",))
        return {**network, **of_model(trees, seed, "trees", False, options)}


def printed(runs: list[Errors]) -> str:
    """Return the table: mean and spread over seeds, and in how many seeds a method beats the best alone."""
    alone = "alone: best of three learners"
    lines = [f"| MAE (eV/atom) | {' | '.join(DATABASES)} | better than alone |", f"|:--|{'---:|' * 5}"]
    for method in runs[0]:
        cells = {name: [run[method][name] for run in runs] for name in DATABASES}
        wins = sum(run[method][name] < run[alone][name] for run in runs for name in DATABASES)
        told = f"{wins} of {len(runs) * len(DATABASES)}" if method != alone else ""
        lines.append(f"| {method} | {' | '.join(map(shown, cells.values()))} | {told} |")
    return "\n".join(lines)


def shown(values: list[float]) -> str:
    return f"{mean(values):.4f}" + (f" ± {stdev(values):.4f}" if len(values) > 1 else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--trees", type=int, default=300)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--methods", default=",".join(METHODS), help="of --personal")
    parser.add_argument("--out", default=None, help="JSON file with every number, written seed by seed")
    options = parser.parse_args()
    runs = []
    for seed in map(int, options.seeds.split(",")):
        runs.append(of_seed(seed, options))
        if options.out:
            Path(options.out).write_text(json.dumps(runs, indent=1))
        print(f"after {len(runs)} seeds\n\n{printed(runs)}\n", flush=True)
    changes = [
        {name: run["trees: mixture"][name] / run["alone: best of three learners"][name] - 1 for name in DATABASES}
        for run in runs
    ]
    told = {name: f"{100 * np.mean([change[name] for change in changes]):+.1f} %" for name in DATABASES}
    print(f"mixture on federated trees against the best alone: {told}")


if __name__ == "__main__":
    main()
