"""Ten silos of which one, two or three send poison: what each attack does to each strategy.

Formation energies of one source dealt at random to ten equal silos; the model is marked on the common, clean test set.
A poisoned silo trains as the others do and then lies (delta is its honest move of the round):

    sign flip        sends  model - delta
    sign flip x 5    sends  model - 5 delta
    noise            sends  model + delta + noise, as long as 100 |delta|, drawn anew each round
    label flip       trains on targets mirrored at their mean, and sends what it learned

The defenders know that at most three lie (Krum: num_byzantine=3, trimmed mean: beta=0.3). The radii of both clippings
are the median length of an honest silo's move, measured in a run of FedAvg without poison; no test row is looked at.

    python benchmarks/poisoned_silos.py [--data mp_structures.parquet] [--repeats 3] [--partition size]
"""

import argparse
import platform
import time
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from math import ceil
from pathlib import Path
from statistics import mean, median, stdev

import numpy as np

from ray_fed.errors import FedError
from ray_fed.federation.cohort import LocalCohort
from ray_fed.federation.coordinator import Coordinator
from ray_fed.federation.messages import Update, Vector
from ray_fed.federation.norms import distance
from ray_fed.federation.rounds.job import Job
from ray_fed.federation.silo import Silo
from ray_fed.federation.strategies import FedAvg, State, Strategy, make_strategy
from ray_fed.federation.task import LocalRows, SiloSpec
from ray_fed.learning.trainer import TrainingPlan
from ray_fed.materials.databases.source import EMBEDDED, Source
from ray_fed.materials.property_task import CrystalRows, PropertyTask
from ray_fed.materials.study import StudyPart, StudyPlan
from ray_fed.randomness import generator

NUM_SILOS, MOST_POISONED, BATCH = 10, 3, 50
HONEST = tuple(f"silo-{number}" for number in range(1, NUM_SILOS + 1))
SIGN_FLIP, STRONG_FLIP, NOISE, LABEL_FLIP = ATTACKS = ("sign flip", "sign flip x 5", "noise", "label flip")
NOISE_LENGTH = 100.0
BROKEN = 1.25
"""Errors above this many times the strategy's own without poison are shown bold."""


@dataclass(frozen=True)
class PoisonedRows(CrystalRows):
    """Rows of a silo that lies."""

    attack: str = ""


@dataclass(frozen=True)
class PoisonedTask(PropertyTask):
    """The property task; silos whose rows say so lie."""

    def load(self, spec: SiloSpec) -> LocalRows:
        rows = super().load(spec)
        if attack_of(spec) != LABEL_FLIP:
            return rows
        return replace(rows, targets=2 * rows.targets.mean() - rows.targets)

    def silo(self, spec: SiloSpec, device: str = "cpu") -> Silo:
        return LyingSilo(spec, self, device) if attack_of(spec) else Silo(spec, self, device)


class LyingSilo(Silo):
    """A silo that bends its honest update before it sends it."""

    def fit(self, session: str, server_round: int, vector: Vector) -> Update:
        update = super().fit(session, server_round, vector)
        return replace(update, vector=self._bent(update.vector, vector, server_round).astype(np.float32))

    def _bent(self, trained: Vector, start: Vector, server_round: int) -> np.ndarray:
        delta = np.subtract(trained, start, dtype=np.float64)
        if attack_of(self.spec) == NOISE:
            noise = generator(0, "poison", self.spec.name, server_round).normal(size=len(delta))
            return trained + noise * (NOISE_LENGTH * distance(trained, start) / np.linalg.norm(noise))
        factor = {SIGN_FLIP: -1.0, STRONG_FLIP: -5.0}.get(attack_of(self.spec), 1.0)
        return start + factor * delta


def attack_of(spec: SiloSpec) -> str:
    return spec.source.attack if isinstance(spec.source, PoisonedRows) else ""


@dataclass(frozen=True, kw_only=True)
class MeasuringFedAvg(FedAvg):
    """FedAvg that notes how far each silo moves."""

    moves: list[float] = field(default_factory=list)

    def aggregate(self, state: State, updates: Iterable[Update]) -> State:
        held = list(updates)
        self.moves.extend(distance(update.vector, state[self.name]) for update in held)
        return super().aggregate(state, held)


def members(options: argparse.Namespace) -> tuple[list[SiloSpec], SiloSpec]:
    """Return ten honest silos, a lying twin per attack of the first three, and the test set."""
    source = Source(options.data, rows=options.rows if options.data == EMBEDDED else None)
    plan = StudyPlan((1,) * NUM_SILOS, options.rows, partition=options.partition)
    specs = [SiloSpec(name, CrystalRows(source, StudyPart(plan, name))) for name in HONEST]
    for attack in ATTACKS:
        for name in HONEST[:MOST_POISONED]:
            specs.append(SiloSpec(twin(name, attack), PoisonedRows(source, StudyPart(plan, name), attack=attack)))
    return specs, SiloSpec("test", CrystalRows(source, StudyPart(plan, "test")))


def twin(name: str, attack: str) -> str:
    return f"{name} ({attack})"


def participants(attack: str, num_poisoned: int) -> tuple[str, ...]:
    return (*(twin(name, attack) for name in HONEST[:num_poisoned]), *HONEST[num_poisoned:])


@dataclass(frozen=True)
class Arena:
    """The silos, and how they train."""

    coordinator: Coordinator
    options: argparse.Namespace
    num_examples: int

    def job(self, strategy: Strategy, silos: tuple[str, ...], seed: int) -> Job:
        plan = TrainingPlan(seed, self.options.epochs, ceil(self.num_examples / BATCH), self.options.rounds)
        rounds = self.options.rounds
        plans = dict.fromkeys(silos, plan)
        return Job("job", silos, plans, seed, strategy, evaluate_every=rounds, evaluate_silos=False)

    def error(self, strategy: Strategy, silos: tuple[str, ...], seed: int) -> float:
        """Return the final MAE on the clean test set in eV/atom; infinity when training comes apart."""
        try:
            *_, last = self.coordinator.run(self.job(strategy, silos, seed))
        except FedError:
            return float("inf")
        return last.metrics["federated.mae"]

    def errors(self, strategy: Strategy, silos: tuple[str, ...] = HONEST) -> list[float]:
        return [self.error(strategy, silos, seed) for seed in range(self.options.repeats)]

    def usual_move(self) -> float:
        strategy = MeasuringFedAvg()
        list(self.coordinator.run(self.job(strategy, HONEST, seed=1000)))
        return float(f"{median(strategy.moves):.2g}")


def strategies(move: float) -> dict[str, Strategy]:
    return {
        "fed_avg": make_strategy("fed_avg"),
        "median": make_strategy("median"),
        "trimmed_mean": make_strategy("trimmed_mean", beta=MOST_POISONED / NUM_SILOS),
        "krum": make_strategy("krum", num_byzantine=MOST_POISONED),
        "multi_krum": make_strategy("multi_krum", num_byzantine=MOST_POISONED),
        "geometric_median": make_strategy("geometric_median"),
        "centred_clipping": make_strategy("centred_clipping", tau=move),
        "norm_clipping": make_strategy("norm_clipping", max_norm=move),
    }


def cell(errors: list[float], clean: float) -> str:
    worst = mean(errors)
    if not worst < 100:
        return "**> 100**"
    shown = f"{worst:.3f} ± {stdev(errors) if len(errors) > 1 else 0.0:.3f}"
    return f"**{shown}**" if worst > BROKEN * clean else shown


def table(arena: Arena, attack: str, chosen: dict[str, Strategy], clean: dict[str, list[float]]) -> None:
    print(f"\n| {attack} | 0 poisoned | 1 | 2 | 3 |\n|---|---|---|---|---|")
    for name, strategy in chosen.items():
        base = mean(clean[name])
        found = (arena.errors(strategy, participants(attack, number)) for number in range(1, MOST_POISONED + 1))
        cells = [cell(clean[name], base), *(cell(errors, base) for errors in found)]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default=EMBEDDED)
    parser.add_argument("--rows", type=int, default=5160, help="of training and test together")
    parser.add_argument("--partition", default="size", help="size (the rows dealt at random), sorted_target, ...")
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=3)
    return parser.parse_args()


def main() -> None:
    options, start = parsed(), time.perf_counter()
    specs, test = members(options)
    task = PoisonedTask(hidden=(64, 64))
    coordinator = Coordinator(LocalCohort(specs, task, test), task, HONEST)
    silos = coordinator.agree().silos
    examples = [silos[name].num_examples for name in HONEST]
    arena = Arena(coordinator, options, round(mean(examples)))
    move = arena.usual_move()
    print(f"{Path(options.data).name}, {min(examples)} to {max(examples)} rows per silo, {options.epochs} epochs,")
    print(f"{options.rounds} rounds, {options.repeats} seeds, clipping radius {move}, {platform.platform()}")
    chosen = strategies(move)
    clean = {name: arena.errors(strategy) for name, strategy in chosen.items()}
    print("\nMAE in eV/atom on the clean test set, mean ± standard deviation over seeds of weights and shuffles")
    for attack in ATTACKS:
        table(arena, attack, chosen, clean)
    print(f"\n{time.perf_counter() - start:.0f} s in all")


if __name__ == "__main__":
    main()
