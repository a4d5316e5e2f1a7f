"""How much faster than matminer are the 65 composition features, and are they the same numbers?

    python benchmarks/featurize.py                 needs matminer: pip install ray-fed[reference]

Both sides get the same formulas in the same process, on one core. Formulas come from the OQMD rows of
../shared/datasets when that folder is there, else from the embedded model crystals; --formulas names another table.
"""

import argparse
import platform
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ray_fed.materials.features.composition import CompositionRows, read_compositions
from ray_fed.materials.features.element_columns import GUO_STATISTICS, guo_columns
from ray_fed.materials.features.featurizers import make_featurizer
from ray_fed.materials.features.formulas import flat_formulas

SHARED = Path(__file__).parents[2] / "shared/datasets/composition_formation_energy/formation_energy.parquet"
REQUIRED_RATIO = 300
AGREEMENT = 1e-12
"""Largest allowed difference, relative to the size of the property in the row."""


def main() -> int:
    options = _options()
    origin, formulas = _formulas(options.formulas, options.rows)
    print(f"{len(formulas):,} formulas: {origin}")
    print(", ".join(_versions("numpy", "pymatgen", "matminer")), f"Python {platform.python_version()}", sep=", ")
    columns = guo_columns("matminer", "std", "bulk", "matminer")
    rows, _ = read_compositions(formulas)
    featurizer, rich = make_featurizer("guo65", impute="matminer"), make_featurizer("rich")
    ours = {
        "strings to sparse rows": lambda: read_compositions(formulas),
        "  of these, flat formulas to numbers": lambda: flat_formulas(formulas),
        "65 statistics from sparse rows": lambda: columns.features(rows),
        "  the same with numpy reduceat": lambda: _by_reduceat(rows, columns.values),
        "65 features from strings": lambda: featurizer.transform(formulas),
        "240 features (rich) from strings": lambda: rich.transform(formulas),
    }
    rates = {name: len(formulas) / _seconds(run, options.repeats) for name, run in ours.items()}
    for name, rate in rates.items():
        print(f"  {name:40s}{rate:12,.0f} / s")
    np.testing.assert_allclose(_by_reduceat(rows, columns.values), columns.features(rows), rtol=1e-6, atol=1e-6)
    if not _versions("matminer"):
        print("matminer is not installed: no comparison. pip install ray-fed[reference]")
        return 0
    return _compare(formulas, columns.features(rows), rates)


def _compare(formulas: Sequence[str], ours: np.ndarray, rates: dict[str, float]) -> int:
    """Time matminer on the same formulas, print the ratios and the agreement; 1 when a promise is broken."""
    from matminer.featurizers.composition import ElementProperty  # pyright: ignore[reportMissingImports]
    from pymatgen.core import Composition

    matminer = ElementProperty.from_preset("matminer", impute_nan=True)
    started = time.perf_counter()
    compositions = [Composition(formula) for formula in formulas]
    parsed = time.perf_counter()
    expected = np.array([matminer.featurize(composition) for composition in compositions])
    done = time.perf_counter()
    stats_rate, total_rate = len(formulas) / (done - parsed), len(formulas) / (done - started)
    stats_ratio = rates["65 statistics from sparse rows"] / stats_rate
    total_ratio = rates["65 features from strings"] / total_rate
    print(f"  {'pymatgen: Compositions from strings':40s}{len(formulas) / (parsed - started):12,.0f} / s")
    print(f"  {'matminer: 65 features from Compositions':40s}{stats_rate:12,.0f} / s")
    print(f"  {'matminer: 65 features from strings':40s}{total_rate:12,.0f} / s")
    print(f"ratio, statistics only: {stats_ratio:,.0f}; end to end from strings: {total_ratio:,.0f}")
    agreeing = _agreeing_columns(ours, expected)
    print(f"columns that agree with matminer within {AGREEMENT:g} of the property's size: {agreeing} of 65")
    return int(agreeing < 65 or min(stats_ratio, total_ratio) < REQUIRED_RATIO)


def _agreeing_columns(ours: np.ndarray, expected: np.ndarray) -> int:
    """Count columns without a difference; a spread is measured against the values it is the spread of."""
    size = np.abs(expected.reshape(-1, 13, 5)[:, :, :2]).max(axis=2, keepdims=True)
    errors = np.abs(ours - expected).reshape(-1, 13, 5) / size
    worst = [f"{name} {error:.1e}" for name, error in zip(GUO_STATISTICS, errors.max(axis=(0, 1)), strict=True)]
    print(f"largest difference by statistic: {', '.join(worst)}")
    return int((errors.max(axis=0) <= AGREEMENT).sum())


def _by_reduceat(rows: CompositionRows, values: np.ndarray) -> np.ndarray:
    """The usual way to the same statistics: one `reduceat` over all rows for each sum; rows must not be empty."""
    starts, weights = rows.indptr[:-1], rows.amounts[:, None]
    owner = np.repeat(np.arange(len(rows)), rows.num_elements)
    values = values[rows.atomic_numbers]
    minimum, maximum = np.minimum.reduceat(values, starts), np.maximum.reduceat(values, starts)
    total, squares = np.add.reduceat(weights, starts), np.add.reduceat(weights**2, starts)
    shifted = values - minimum[owner]
    shift = np.add.reduceat(weights * shifted, starts) / total
    scatter = np.add.reduceat(weights * (shifted - shift[owner]) ** 2, starts)
    single = rows.num_elements[:, None] == 1
    spread = np.sqrt(scatter * np.where(single, 0.0, total / np.where(single, 1.0, total**2 - squares)))
    statistics = (minimum, maximum, maximum - minimum, minimum + shift, spread)
    return np.stack(statistics, axis=2).reshape(len(rows), -1)


def _seconds(run: Callable[[], Any], repeats: int) -> float:
    """Return the median of several runs after one that warms up."""
    run()
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def _formulas(path: Path | None, rows: int) -> tuple[str, list[str]]:
    path = path or (SHARED if SHARED.exists() else None)
    if path is not None:
        table = pd.read_parquet(path)
        if "source" in table:
            table = table.loc[table["source"] == "OQMD"]
        return path.name, table["formula"].tolist()[:rows]
    from ray_fed.materials.model_crystals.crystals import make_model_crystals

    return "embedded model crystals", make_model_crystals(rows)["formula"].tolist()


def _versions(*packages: str) -> list[str]:
    found = []
    for package in packages:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return found


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Composition features: rate and agreement with matminer.")
    parser.add_argument("--formulas", type=Path, help="parquet table with a column `formula`")
    parser.add_argument("--rows", type=int, default=12_897, help="formulas to use (the paper's number of compounds)")
    parser.add_argument("--repeats", type=int, default=9, help="timed runs of our side; the median counts")
    return parser.parse_args()


if __name__ == "__main__":
    warnings.simplefilter("ignore", UserWarning)  # pymatgen's word for a missing value
    raise SystemExit(main())
