"""Which intervals around predictions hold what they promise, pooled and in each chemistry, and how wide they are.

A federation is trained on crystals of the Materials Project, once with rows dealt at random and once with a chemistry
for each silo. Each silo keeps a tenth of its formulas from training. Two tables come of it:

    the run itself: intervals calibrated by counts of these rows, as `ray-fed train` does it, on the common test set;
    other ways to scale the intervals, each on rows dealt anew `--deals` times between calibration and test.

    python benchmarks/uncertainty.py --data mp_structures.parquet [--rows 12000] [--epochs 60] [--deals 100]
"""

import argparse
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pipelines.launching import InProcessCoordinator
from pipelines.training.measured_limits import measure
from pipelines.training.setup import Setup, jobs, resolve
from ray_fed.federation.cohort import LocalCohort
from ray_fed.federation.messages import Vector
from ray_fed.learning.counted_quantiles import histogram, median
from ray_fed.learning.intervals import ALL, FLOOR, IntervalScale, counted_errors, intervals_of, scale_of, spread_of
from ray_fed.materials.domain import distances, usual
from ray_fed.materials.limits import ModelLimits
from ray_fed.materials.row_counts import CHEMISTRIES, PARTS, Part
from ray_fed.metrics import FEWEST_ROWS

TARGET = "formation_energy_per_atom"
PARTITIONS = {"at random": ("size", "1,2,3,4"), "a chemistry each": ("anion", "1,1,1,1,1")}
SEEDS = (0, 1, 2)
LEVELS = {"0.5": "50 %", "0.9": "90 %"}


@dataclass(frozen=True)
class Rows:
    """Rows that no model was trained on."""

    chemistries: np.ndarray
    """[rows]"""
    owners: np.ndarray
    """[rows]: which silo has a row, or would have it."""
    errors: np.ndarray
    """[rows], of the federated model of the first seed, in the space of its outputs."""
    spreads: Mapping[str, np.ndarray]
    """What could scale an interval -> [rows]."""

    def taken(self, rows: np.ndarray) -> "Rows":
        spreads = {name: values[rows] for name, values in self.spreads.items()}
        return Rows(self.chemistries[rows], self.owners[rows], self.errors[rows], spreads)


@dataclass(frozen=True)
class Way:
    """A way to scale intervals."""

    spread: str
    """Of what; "" is the same everywhere."""
    by_chemistry: bool
    own_quantiles: bool = False
    """Whether a chemistry with enough rows has quantiles of its own."""
    fewest: int = FEWEST_ROWS
    """Rows that a count must have to be told; 1 tells all."""

    def measured(self, calibration: Rows, test: Rows) -> dict[str, dict[str, float]]:
        """Return level -> name -> share of the test rows inside, of all and of each chemistry, and the mean width."""
        spread, floor = self._spread(calibration), 1.0
        if self.spread:
            floor = FLOOR * median(self._counted(lambda rows: histogram(spread[rows], self.fewest), calibration))
        scale, names = IntervalScale(floor), CHEMISTRIES if self.own_quantiles else ()
        plain = self._errors(calibration, scale)
        if self.by_chemistry:
            scale = scale_of(plain, CHEMISTRIES, floor)
        found = intervals_of(plain[:, : 1 + len(names)], self._errors(calibration, scale), names, scale)
        told = {}
        for level, half in found.halves.items():
            size = half.of(self._spread(test), test.chemistries.tolist())
            inside = np.abs(test.errors) <= size
            shares = {name: float(inside[test.chemistries == name].mean()) for name in np.unique(test.chemistries)}
            told[level] = {ALL: float(inside.mean()), "width": float(2 * size.mean()), **shares}
        return told

    def _spread(self, rows: Rows) -> np.ndarray:
        return rows.spreads[self.spread] if self.spread else np.zeros(len(rows.errors))

    def _errors(self, rows: Rows, scale: IntervalScale) -> np.ndarray:
        sizes, spread = scale.of(self._spread(rows), rows.chemistries.tolist()), rows.errors
        return self._counted(
            lambda own: counted_errors(
                spread[own], sizes[own], rows.chemistries[own].tolist(), CHEMISTRIES, self.fewest
            ),
            rows,
        )

    @staticmethod
    def _counted(count, rows: Rows) -> np.ndarray:
        """Return what all silos count together."""
        return np.sum([count(rows.owners == owner) for owner in np.unique(rows.owners)], axis=0)


WAYS = {
    "one width for all": Way("", False),
    "one width for each chemistry": Way("", True),
    "distance from the mean of all rows": Way("distance", False),
    "three seeds": Way("seeds", False),
    "three seeds, by chemistry": Way("seeds", True),
    "the silos' own models": Way("own models", False),
    "the silos' own models, by chemistry": Way("own models", True),
    "the silos' own models, quantiles of each chemistry (chosen)": Way("own models", True, True),
    "the same, if every row could be told": Way("own models", True, True, 1),
    "one width, quantiles of each chemistry": Way("", True, True),
}


def trained(setup: Setup, coordinator: InProcessCoordinator) -> tuple[ModelLimits, dict[str, Vector]]:
    """Train; return the federated model's limits, and the models: all of the first seed, federated ones of the
    others."""
    agreement = coordinator.agree()
    models: dict[str, Vector] = {}
    for seed in SEEDS:
        for job in jobs(setup, dict(agreement.silos), seed)[: None if seed == SEEDS[0] else 1]:
            last = list(coordinator.run(job))[-1].models or {}
            models |= {name if seed == SEEDS[0] else f"seed {seed}": np.array(vector) for name, vector in last.items()}
    first = {name: vector for name, vector in models.items() if not name.startswith("seed")}
    return measure(coordinator, setup, agreement, first)["federated"], models


def unused_rows(setup: Setup, cohort: LocalCohort, models: Mapping[str, Vector], deal: np.random.Generator) -> Rows:
    """Return all rows for calibration and for test; a test row's owner is one who would have it."""
    places = [(number, cohort.silos[name].samples, "calibration") for number, name in enumerate(setup.training)]
    assert cohort.evaluator is not None
    places.append((-1, cohort.evaluator.samples, "test"))
    parts = [(owner, Part.of(samples, np.array([PARTS.index(name)]), setup.task))
             for owner, samples, name in places]  # fmt: skip
    features, learned = (np.concatenate([getattr(part, name) for _, part in parts]) for name in ("features", "learned"))
    chemistries = np.array([name for _, part in parts for name in part.chemistries])
    owners = np.concatenate([np.full(len(part), owner) for owner, part in parts])
    if setup.config.partition == "anion":
        owners = np.unique(chemistries, return_inverse=True)[1]
    else:
        owners[owners < 0] = deal.choice(owners[owners >= 0], int((owners < 0).sum()))
    outputs = {name: _outputs(setup, vector, features) for name, vector in models.items()}
    own = np.stack([outputs[name] for name in setup.training])
    seeds = np.stack([outputs["federated"], *(outputs[f"seed {seed}"] for seed in SEEDS[1:])])
    spreads = {
        "own models": spread_of(own, outputs["federated"]),
        "seeds": seeds.std(axis=0),
        "distance": distances(features),
    }
    return Rows(chemistries, owners, learned[:, 0] - outputs["federated"], spreads)


def _outputs(setup: Setup, vector: Vector, features: np.ndarray) -> np.ndarray:
    import torch

    return setup.task.predictor()(vector, torch.from_numpy(features))[:, 0]


def dealt(rows: Rows, num_calibration: int, deals: int, deal: np.random.Generator) -> list[list[str]]:
    """Return the second table: each way over rows dealt anew."""
    lines = []
    names = sorted(set(rows.chemistries))
    for way, how in WAYS.items():
        found = []
        for _ in range(deals):
            order = deal.permutation(len(rows.errors))
            parts = rows.taken(order[:num_calibration]), rows.taken(order[num_calibration:])
            found.append(how.measured(*parts))
        line = [way]
        for level in LEVELS:
            shares = np.array([one[level][ALL] for one in found])
            by_class = [np.mean([one[level][name] for one in found]) for name in names]
            line += [
                f"{100 * shares.mean():.1f} ± {100 * shares.std():.1f} %",
                f"{100 * min(by_class):.0f} to {100 * max(by_class):.0f} %",
                f"{np.mean([one[level]['width'] for one in found]):.3f}",
            ]
        lines.append(line)
    return lines


def run_rows(limits: ModelLimits, size: float) -> list[list[str]]:
    """Return the first table: what the run's intervals cover of the test set."""
    found = limits.intervals[TARGET]
    lines = []
    for name, one in found.coverage.items():
        cells = [(f"{100 * one.shares[level]:.1f} %", f"{size * one.widths[level]:.3f}") for level in LEVELS]
        lines.append([name, f"{one.num_rows:,}", *(cell for pair in cells for cell in pair)])
    return lines


def flags(rows: Rows, limits: ModelLimits) -> str:
    """Say what becomes of rows on which the silos' own models differ more than usual."""
    spread, bound = rows.spreads["own models"], limits.domain.largest_spread[TARGET]
    beyond = spread > bound
    ratio = np.abs(rows.errors[beyond]).mean() / np.abs(rows.errors[~beyond]).mean() if beyond.any() else float("nan")
    far = rows.spreads["distance"] > usual(histogram(rows.spreads["distance"]))
    return (
        f"{beyond.sum()} of {len(spread):,} rows have silos' models farther apart than on 99 % of the calibration "
        f"rows; their errors are {ratio:.1f} times as large; of the 1 % farthest from the mean "
        f"{np.abs(rows.errors[far]).mean() / np.abs(rows.errors[~far]).mean():.1f} times"
    )


def table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(each) + " |" for each in [header, ["---"] * len(header), *lines])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--features", default="rich+structure")
    parser.add_argument("--rows", type=int, default=12_000)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--deals", type=int, default=100)
    options = parser.parse_args()
    print(f"{platform.machine()}, {options.rows:,} rows, {options.features}, {options.epochs} epochs\n")
    for title, (partition, sizes) in PARTITIONS.items():
        started = time.perf_counter()
        chosen = {
            "data": options.data, "features": options.features, "rows": options.rows, "epochs": options.epochs,
            "partition": partition, "silos": tuple(int(size) for size in sizes.split(",")), "cohort": "local",
            "target": (TARGET,), "task": "regression",
        }  # fmt: skip
        setup = resolve(chosen, pipeline="train")
        cohort = LocalCohort(setup.members, setup.task, setup.test)
        coordinator = InProcessCoordinator(cohort, setup.task, setup.training)
        limits, models = trained(setup, coordinator)
        deal = np.random.default_rng(0)
        rows = unused_rows(setup, cohort, models, deal)
        scaler = setup.task.scalers(cohort._standardizer)[1]  # type: ignore[attr-defined,arg-type]
        size = 1.0 if scaler is None else float(scaler.scale[0])
        num_calibration = limits.intervals[TARGET].num_rows
        error = size * np.abs(rows.errors).mean()
        print(f"## Rows dealt {title}\n\nMAE {error:.3f} eV/atom, {num_calibration} calibration rows\n")
        heading = [part for level in LEVELS.values() for part in (f"in {level}", "width (eV/atom)")]
        print(table(["chemistry", "rows", *heading], run_rows(limits, size)), "\n", flush=True)
        heading = [part for level in LEVELS.values() for part in (f"in {level}", "by chemistry", "width")]
        lines = [[each if at % 3 or not at else f"{float(each) * size:.3f}" for at, each in enumerate(line)]
                 for line in dealt(rows, num_calibration, options.deals, deal)]  # fmt: skip
        print(table(["scale", *heading], lines))
        print(f"\n{flags(rows, limits)}; {time.perf_counter() - started:.0f} s\n", flush=True)


if __name__ == "__main__":
    main()
