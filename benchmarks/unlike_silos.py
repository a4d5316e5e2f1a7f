"""Federated networks on silos that are unlike each other, against the same network on all rows in one place.

Every strategy on every partition, at several numbers of exchanges and seeds, with the options of `ray-fed train` and
none of any partition's own. Results are appended to a file as they come; the tables are made of all that is in it.

    python benchmarks/unlike_silos.py --data mp_structures.parquet --out unlike_silos.jsonl
    python benchmarks/unlike_silos.py --out unlike_silos.jsonl --partitions none     # tables alone
"""

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import replace
from math import ceil
from pathlib import Path
from statistics import mean

from pipelines.training.setup import Setup, resolve
from ray_fed.federation.cohort import LocalCohort
from ray_fed.federation.coordinator import Coordinator
from ray_fed.federation.diversity import DIVERSITY
from ray_fed.federation.rounds.job import Job, local_job
from ray_fed.federation.strategies import make_strategy
from ray_fed.learning.trainer import TrainingPlan

EPOCHS, BATCH = 100, 200
TODAY: dict[str, object] = {"learning_rate": 1e-3, "decay": "none"}
DECAYING: dict[str, object] = {"learning_rate": 1.5e-3, "decay": "cosine"}
WAYS: dict[str, tuple[str, dict[str, object]]] = {
    "scaffold_adam (default)": ("scaffold_adam", DECAYING),
    "scaffold_adam, no momentum, 2e-3": ("scaffold_adam", {**DECAYING, "learning_rate": 2e-3, "momentum": 0.0}),
    "fed_avg, Adam kept, constant rate": ("fed_avg", TODAY),
    "fed_avg, Adam kept, cosine": ("fed_avg", DECAYING),
    "fed_avg, Adam averaged, cosine": ("fed_avg", {**DECAYING, "optimizer_state": "average"}),
    "fed_avg, Adam reset, cosine": ("fed_avg", {**DECAYING, "optimizer_state": "reset"}),
    "scaffold, SGD 0.1, cosine": ("scaffold", {"learning_rate": 0.1, "decay": "cosine", "optimizer": "sgd"}),
    "fed_prox, Adam kept, cosine": ("fed_prox", DECAYING),
    "fed_avg_m, Adam reset, cosine": ("fed_avg_m", {**DECAYING, "optimizer_state": "reset"}),
    "fed_adam, Adam reset, cosine": ("fed_adam", {**DECAYING, "optimizer_state": "reset"}),
    "fed_yogi, Adam reset, cosine": ("fed_yogi", {**DECAYING, "optimizer_state": "reset"}),
}
"""Row of the table -> strategy, and what it asks of the plan."""
Opened = tuple[Setup, Coordinator, dict[str, int]]
"""What is trained, who trains it, and the rows of each silo."""
POOLED = "pooled, cosine"
POOLED_TODAY = "pooled, constant rate"
POOLED_FASTER = "pooled, rate 2e-3, cosine"
ALL_POOLED: dict[str, dict[str, object]] = {
    POOLED: DECAYING, POOLED_TODAY: TODAY, POOLED_FASTER: {**DECAYING, "learning_rate": 2e-3},
}  # fmt: skip


def main() -> None:
    given = arguments()
    done = {key_of(line) for line in lines(given.out)}
    for partition in (name for name in given.partitions if name != "none"):
        for line in measured(given, partition, done):
            with given.out.open("a") as file:
                file.write(json.dumps(line) + "\n")
            print(json.dumps(line), flush=True)
    print("\n".join(tables(lines(given.out))))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="embedded")
    parser.add_argument("--target", default="formation_energy_per_atom")
    parser.add_argument("--features", default="guo73")
    parser.add_argument("--rows", type=int, default=6400)
    parser.add_argument("--silos", default="1500,1500,1500", help="rows of each; scaled in proportion")
    parser.add_argument("--partitions", nargs="*", default=[
        "size", "chemical_system", "anion", "dirichlet", "sorted_target",
    ])  # fmt: skip
    parser.add_argument("--exchanges", nargs="*", type=int, default=[25, 100])
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1])
    parser.add_argument("--ways", nargs="*", default=list(WAYS), help="rows of the table")
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args()


def key_of(line: dict) -> tuple:
    return line["partition"], line["silos"], line["way"], line["exchanges"], line["seed"]


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def measured(given: argparse.Namespace, partition: str, done: set[tuple]) -> Iterator[dict]:
    """Yield a line for each model that is not there yet: of each seed the rows are dealt and split anew."""
    for seed in given.seeds:
        wanted = [
            (way, exchanges) for exchanges in given.exchanges for way in given.ways
            if (partition, given.silos, way, exchanges, seed) not in done
        ]  # fmt: skip
        if not wanted:
            continue
        there = opened(given, partition, seed)
        for way in ALL_POOLED:
            if (partition, given.silos, way, 1, seed) not in done:
                yield line_of(given, partition, way, 1, seed, there)
        for way, exchanges in wanted:
            yield line_of(given, partition, way, exchanges, seed, there)


def opened(given: argparse.Namespace, partition: str, seed: int) -> Opened:
    options: dict[str, object] = {
        "data": given.data, "target": (given.target,), "features": given.features, "rows": given.rows, "seed": seed,
        "silos": tuple(map(int, given.silos.split(","))), "partition": partition, "alpha": 0.1,
        "calibration_fraction": 0.0, "cohort": "local",
    }  # fmt: skip
    setup = resolve(options, (), "train")
    ours = Coordinator(LocalCohort(setup.members, setup.task, setup.test), setup.task, setup.training)
    return setup, ours, {name: silo.num_examples for name, silo in ours.agree().silos.items()}


def line_of(given: argparse.Namespace, partition: str, way: str, exchanges: int, seed: int, there: Opened) -> dict:
    start = time.process_time()
    records = list(there[1].run(job_of(way, exchanges, seed, there)))
    name = "pooled" if way in ALL_POOLED else "federated"
    return {
        "partition": partition, "silos": given.silos, "way": way, "exchanges": exchanges, "seed": seed,
        "mae": records[-1].metrics[f"{name}.mae"], "diversity": records[1].metrics.get(DIVERSITY),
        "bytes": sum(record.bytes_sent for record in records), "seconds": round(time.process_time() - start, 1),
    }  # fmt: skip


def job_of(way: str, exchanges: int, seed: int, there: Opened) -> Job:
    setup, _, rows = there
    steps = ceil(sum(rows[name] for name in setup.training) / BATCH)
    strategy, changes = WAYS.get(way, ("fed_avg", ALL_POOLED.get(way, {})))
    options = {"momentum": changes["momentum"]} if "momentum" in changes else {}
    plan = replace(
        TrainingPlan(seed, EPOCHS, steps, exchanges), **{k: v for k, v in changes.items() if k not in options}
    )  # type: ignore[arg-type]
    job = Job(
        "job", setup.training, dict.fromkeys(setup.training, plan), seed, make_strategy(strategy, **options),
        evaluate_every=exchanges, evaluate_silos=False,
    )  # fmt: skip
    if way not in ALL_POOLED:
        return job
    return replace(local_job(job, {"pooled": plan}, "job"), evaluate_every=1)


# ---- tables


def tables(found: list[dict]) -> Iterator[str]:
    for silos in sorted({line["silos"] for line in found}):
        here = [line for line in found if line["silos"] == silos]
        partitions = list(dict.fromkeys(line["partition"] for line in here))
        for exchanges in sorted({line["exchanges"] for line in here} - {1}):
            yield f"\n{exchanges} exchanges, silos of {silos} rows\n"
            yield f"| | {' | '.join(partitions)} |"
            yield "|:--" * (len(partitions) + 1) + "|"
            ways = [*ALL_POOLED, *WAYS]
            for way in ways:
                cells = [cell(here, partition, way, exchanges) for partition in partitions]
                if any(cells):
                    yield f"| {way} | {' | '.join(cells)} |"


def cell(found: list[dict], partition: str, way: str, exchanges: int) -> str:
    """Return mean MAE, its range over seeds, and how far it is from pooled training on the same rows."""
    at = 1 if way in ALL_POOLED else exchanges
    ours = {x["seed"]: x["mae"] for x in found if (x["partition"], x["way"], x["exchanges"]) == (partition, way, at)}
    pooled = {x["seed"]: x["mae"] for x in found if (x["partition"], x["way"]) == (partition, POOLED)}
    if not ours:
        return ""
    gap = mean(ours[seed] / pooled[seed] - 1 for seed in ours)
    spread = f" ({min(ours.values()):.3f} to {max(ours.values()):.3f})" if len(ours) > 1 else ""
    return f"{mean(ours.values()):.3f}{spread}" + ("" if way == POOLED else f" **{gap:+.0%}**")


if __name__ == "__main__":
    main()
