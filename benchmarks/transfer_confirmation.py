"""Does a library help where data are few? Half of the targets chose the recipe, the other half confirms it.

ray-fed library build --library LIB --source ../shared/datasets --networks 8 --linear 0 --boosted 1
OMP_NUM_THREADS=1 python benchmarks/transfer_confirmation.py LIB ../shared/datasets OUT [confirm | choose] [SECONDS]

50 rows to learn from, at most 300 held out, 20 draws. Results of a target are
kept in OUT: a run that is broken off, or that was given SECONDS, goes on from there. Which targets choose was drawn
before any result was seen.
"""

import sys
import time
from pathlib import Path

import numpy as np

from pipelines.model_library.config import TransferConfig
from pipelines.model_library.transfer import prepared_sources
from ray_fed.model_library.heads import cross_validated, fitted, ridge
from ray_fed.model_library.members import (
    Effort,
    FewRows,
    direct,
    fit_stack,
    fold_rows,
    member_predictions,
    stack_weights,
)
from ray_fed.model_library.property_catalogue import shared_tables
from ray_fed.model_library.selection import Protocol, draw_rows, member_inputs
from ray_fed.model_library.transfer import Prepared
from ray_fed.model_library.transfer_model import LEVELS, conformal_half
from ray_fed.randomness import derived_seed, generator
from ray_fed.reading import read_json
from ray_fed.reporting.writing import to_json, write_atomically

DRAWS, ROWS = 20, 1200
"""Draws of a target; rows of its table that are used, by a seeded choice."""
PROTOCOL = Protocol(rows=50, max_held_out=300)
TARGETS = sorted((
    "aflow_ael_debye_temperature/debye_temperature", "aflow_agl_thermal_conductivity_300K/thermal_conductivity",
    "aflow_agl_thermal_expansion_300K/thermal_expansion", "dielectric/total_dielectric_constant",
    "jarvis_ehull/energy_above_hull", "jarvis_eps/static_dielectric_constant", "jarvis_magmom_oszicar/magnetic_moment",
    "jarvis_max_ir_mode/max_ir_mode", "jarvis_npowerfact/power_factor_n", "jarvis_nseebeck/seebeck_n",
    "jarvis_piezo_max_diel/electronic_dielectric_constant", "jarvis_piezo_max_dij/piezo_strain_coefficient",
    "jarvis_piezo_max_eij/piezo_stress_coefficient", "jarvis_slme/slme", "jarvis_spillage/spillage",
    "matbench_castelli/heat_of_formation_per_cell", "matbench_dielectric/refractive_index",
    "matbench_expt_gap/band_gap", "matbench_jdft2d/exfoliation_energy", "matbench_log10_G_VRH/shear_modulus",
    "matbench_log10_K_VRH/bulk_modulus", "matbench_phonons/last_phonon_peak", "matbench_steels_yield/yield_strength",
    "mp_structures/formation_energy",
))  # fmt: skip
SHUFFLED = [TARGETS[at] for at in np.random.default_rng(2019).permutation(len(TARGETS))]
SETS = {"choose": SHUFFLED[0::2], "confirm": SHUFFLED[1::2]}
LEARNERS = ("random_forest", "extra_trees", "ridge", "gaussian_process")
RULES = ("direct", "direct stack", "extra_trees", "ensemble", "paper", "stack")


def errors_of(prepared: Prepared, number: int) -> dict[str, float]:
    """Return the held-out errors of one draw by rule, and the coverage of the intervals."""
    target = prepared.target
    inside, outside = draw_rows(target.groups, PROTOCOL, number)
    inputs = member_inputs(target, prepared.sources)
    seed = derived_seed(PROTOCOL.seed, "head", number) % 2**31
    rows = FewRows(inputs.take(inside), target.values[inside], target.groups[inside])
    stack = fit_stack(rows, Effort(PROTOCOL.folds, PROTOCOL.ensemble, PROTOCOL.num_trees, seed))
    new, truth = member_predictions(stack.arrays, inputs.take(outside)), target.values[outside]
    seen = np.stack([stack.out_of_fold[name] for name in LEARNERS], axis=1)
    alone = np.stack([new[name] for name in LEARNERS], axis=1) @ stack_weights(seen, stack.targets)
    apart = np.abs(stack.predict(inputs.take(outside)) - truth)
    half = {
        level: conformal_half(np.sort(np.abs(stack.out_of_fold["stack"] - stack.targets)), level) for level in LEVELS
    }
    wanted, features = target.values[inside], prepared.sources.rows(inside)
    folds = fold_rows(target.groups[inside], PROTOCOL.folds, generator(PROTOCOL.seed, "folds", number))
    order = np.argsort(np.abs(cross_validated(ridge, features, wanted, folds, seed) - wanted).mean(1), kind="stable")
    single = fitted(ridge, features, wanted, prepared.sources.rows(outside), seed)[order[: PROTOCOL.ensemble]]
    return {
        "direct": float(np.abs(direct(new) - truth).mean()),
        "stack": float(apart.mean()),
        "ensemble": float(np.abs(single.mean(0) - truth).mean()),
        "paper": float(np.abs(single[0] - truth).mean()),
        "direct stack": float(np.abs(alone - truth).mean()),
        "extra_trees": float(np.abs(new["extra_trees"] - truth).mean()),
        **{f"covered {level}": float((apart <= half[level]).mean()) for level in LEVELS},
    }


def measured(key: str, library: str, folder: str, tables: dict) -> dict:
    """Return the errors of every draw of a target."""
    config = TransferConfig(library=library, source=folder, target=key)
    table = tables[key].sample(ROWS, generator(0, "confirmation", key))
    prepared, relations = prepared_sources(config, table, tables)
    left = {each.table: each.reason for each in relations if each.reason}
    draws = [errors_of(prepared, number) for number in range(DRAWS)]
    return {"unit": table.unit, "models": len(prepared.models), "left out": left, "draws": draws}


def told(found: dict[str, dict]) -> None:
    print(f"| target, unit | no transfer | {' | '.join(RULES[1:])} | 80 % covers | 90 % covers |\n|{'---|' * 9}")
    gains = []
    for key, result in found.items():
        mean = {name: np.mean([draw[name] for draw in result["draws"]]) for name in result["draws"][0]}
        gains.append([100 * (mean[rule] / mean["direct"] - 1) for rule in RULES[1:]])
        wins = np.mean([draw["stack"] < draw["direct"] for draw in result["draws"]])
        cells = " | ".join(f"{gain:+.1f} %" for gain in gains[-1])
        covers = " | ".join(f"{mean[f'covered {level}']:.0%}" for level in LEVELS)
        print(
            f"| {key.split('/')[1]}, {result['unit']} | {mean['direct']:.4g} | {cells} (wins {wins:.0%}) | {covers} |"
        )
    middle, worst = np.median(gains, 0), np.max(gains, 0)
    print(f"| **median** | | {' | '.join(f'**{value:+.1f} %**' for value in middle)} | | |")
    print(f"| worst | | {' | '.join(f'{value:+.1f} %' for value in worst)} | | |")


def main() -> None:
    library, folder, out, part = sys.argv[1], sys.argv[2], Path(sys.argv[3]), sys.argv[4]
    budget, started = float(sys.argv[5]) if len(sys.argv) > 5 else np.inf, time.monotonic()
    tables = shared_tables(folder)
    found = {}
    for key in SETS[part]:
        path = out / f"{key.replace('/', '.')}.json"
        if not path.is_file() and time.monotonic() - started < budget:
            write_atomically(path, to_json(measured(key, library, folder, tables)))
        if path.is_file():
            found[key] = read_json(path)
    told(found)


if __name__ == "__main__":
    main()
