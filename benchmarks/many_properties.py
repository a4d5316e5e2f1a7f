"""Thirteen properties, one command each: the tasks of matbench, built from open tables, federated over three silos.

Ten numbers and three pairs of classes. Tables without cells have formulas only, as `ray-fed train` says in a note. Each
run is `ray-fed train --data TABLE --target NAME [--unit UNIT]`, with the sizes below; at most `--rows` rows of each
table by a seeded choice. Needs the folder with composition_properties and mp_structures.

    python benchmarks/many_properties.py --datasets FOLDER [--rows 1000] [--seed 0] [--only NAME,NAME]
"""

import argparse
import contextlib
import io
import json
import platform
import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from pipelines.cli import main

SIZES = ["--cohort", "local", "--silos", "1,2,3", "--epochs", "60", "--batch-size", "100"]
CELLS = ["formula", "a", "b", "c", "alpha", "beta", "gamma", "volume", "spacegroup_number"]
FORMULAS, STRUCTURES = "composition_properties/properties_long.parquet", "mp_structures/mp_structures.parquet"


@dataclass(frozen=True)
class Property:
    """One task: which rows of which table, and what a user says of them."""

    name: str
    """Column to learn, as the user's table calls it."""
    unit: str
    """What the report must show; "" for classes."""
    task: str = ""
    """Of the table of formulas: the task whose values they are; the table with structures if empty."""
    column: str = "value"
    """There."""
    label: Callable[[pd.Series], pd.Series] | None = None
    """Makes classes of values."""
    options: tuple[str, ...] = ()
    """Of the command, where the column's name does not say the unit."""

    def table(self, datasets: Path, rows: int, seed: int) -> pd.DataFrame:
        """Return a user's table: formula, cells where there are some, and the column."""
        if self.task:
            read = pd.read_parquet(datasets / FORMULAS, filters=[("task", "==", self.task)])
        else:
            read = pd.read_parquet(datasets / STRUCTURES, columns=[*CELLS, self.column])
        read = read.sample(min(rows, len(read)), random_state=seed).reset_index(drop=True)
        values = pd.Series(read[self.column])
        kept = read[[name for name in CELLS if name in read]]
        return kept.assign(**{self.name: self.label(values) if self.label else values})


def _is_zero(values: pd.Series) -> pd.Series:
    return values == 0


PROPERTIES = (
    Property("gap expt", "eV", "matbench_expt_gap"),
    Property("last phdos peak", "1/cm", "matbench_phonons"),
    Property("log10(K_VRH)", "log10(GPa)", "matbench_log10_K_VRH"),
    Property("log10(G_VRH)", "log10(GPa)", "matbench_log10_G_VRH"),
    Property("n", "", "matbench_dielectric", options=("--transform", "log10")),
    Property("exfoliation_en", "meV/atom", "matbench_jdft2d", options=("--transform", "log10")),
    Property("yield strength", "MPa", "matbench_steels_yield", options=("--unit", "MPa")),
    Property("heat of formation", "eV/cell", "matbench_castelli", options=("--unit", "eV/cell")),
    Property("formation_energy_per_atom", "eV/atom", column="formation_energy_per_atom"),
    Property("gap pbe", "eV", column="band_gap_pbe"),
    Property("is_glass", "", "matbench_glass", label=lambda values: values == 1),
    Property("is_metal", "", "matbench_expt_gap", label=_is_zero),
    Property("is_metal_pbe", "", column="band_gap_pbe", label=_is_zero),
)
"""In the order of the table: ten numbers, three pairs of classes."""


def trained(prop: Property, datasets: Path, folder: Path, rows: int, seed: int, *more: str) -> dict[str, Any]:
    """Run the one command; return its summary, with what it wrote to the terminal."""
    folder.mkdir(parents=True, exist_ok=True)
    prop.table(datasets, rows, seed).to_parquet(folder / "table.parquet")
    line = ["train", "--data", str(folder / "table.parquet"), "--target", prop.name, *prop.options]
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        code = main([*line, *SIZES, "--seed", str(seed), "--out", str(folder / "run"), *more])
    assert code == 0, said.getvalue()
    return {**json.loads((folder / "run/summary.json").read_text()), "said": said.getvalue()}


def row(prop: Property, summary: dict[str, Any]) -> list[str]:
    """Return a line of the table: MAE of numbers, ROC AUC of classes; alone, the best network and the best learner."""
    metric = "roc_auc" if prop.label else "mae"
    best = max if prop.label else min
    alone = [
        best(value for key, value in summary.items() if re.fullmatch(rf"{of}\.silo-\d+\.{metric}", key))
        for of in ("silo", "best")
    ]
    values = [summary[f"federated.{metric}"], summary[f"pooled.{metric}"], *alone]
    title = "ROC AUC" if prop.label else f"MAE ({prop.unit})" if prop.unit else "MAE"
    gain = f"{100 * (values[0] / values[3] - 1):+.1f} %"
    other = "-" if prop.label else f"{summary['federated.r2']:.2f}"
    return [
        prop.name,
        title,
        f"{summary['federated.num_examples']:,}",
        *(f"{value:.3g}" for value in values),
        gain,
        other,
    ]


def run() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--datasets", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="")
    options = parser.parse_args()
    print(
        f"Python {platform.python_version()}, at most {options.rows:,} rows, {' '.join(SIZES)}, seed {options.seed}\n"
    )
    alone = "best silo, network | best silo, best learner"
    print(
        f"| property | metric | training rows | federated | pooled | {alone} | against it | R² |\n" + "|---" * 9 + "|"
    )
    chosen = [prop for prop in PROPERTIES if not options.only or prop.name in options.only.split(",")]
    with tempfile.TemporaryDirectory() as folder:
        for number, prop in enumerate(chosen):
            summary = trained(prop, options.datasets, Path(folder) / str(number), options.rows, options.seed)
            print(f"| {' | '.join(row(prop, summary))} |", flush=True)


if __name__ == "__main__":
    run()
