"""Feature columns made of element properties and statistics: names, units and values in one order."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from ray_fed.errors import ConfigError
from ray_fed.materials.features.composition import CompositionRows
from ray_fed.materials.features.element_stats import element_stats
from ray_fed.materials.features.elements import ElementColumn, ElementTable, load_table, read_element_table

GUO_PROPERTIES = (
    "X", "row", "group", "block", "atomic_mass", "atomic_radius", "mendeleev_no", "electrical_resistivity",
    "velocity_of_sound", "thermal_conductivity", "melting_point", "bulk_modulus",
    "coefficient_of_linear_thermal_expansion",
)  # fmt: skip
"""Element properties of matminer's preset "matminer", in its order; Guo et al. name all but the first."""

GUO_STATISTICS = ("minimum", "maximum", "range", "mean", "std_dev")

XENONPY_STATISTICS: Mapping[str, str] = {
    "ave": "mean", "sum": "sum", "var": "population_variance", "max": "maximum", "min": "minimum",
}  # fmt: skip
"""XenonPy's prefix -> the kernel's statistic, in XenonPy's order."""

SPREADS: Mapping[str, str] = {"std": "std_dev", "variance": "variance"}
MODULI: Mapping[str, str] = {"bulk": "bulk_modulus", "youngs": "youngs_modulus"}
BLOCKS: Mapping[str, str] = {"matminer": "block", "ordinal": "block_ordinal"}
STATISTIC_SETS = ("xenonpy", "guo")


@dataclass(frozen=True)
class StatisticColumns:
    """Columns = properties x statistics.

    values        float64 [119, num_properties], row = atomic number
    unknown       float64 [119, num_properties], 1 where the value was imputed
    covered       bool [119], elements that the table has a row for
    prefixes      name of a statistic in a column's name -> the kernel's name of it
    by_statistic  all properties of the first statistic, then of the second (XenonPy), instead of all statistics of the
                  first property, then of the second (matminer)
    """

    properties: tuple[ElementColumn, ...]
    values: np.ndarray
    unknown: np.ndarray
    covered: np.ndarray
    table_digest: str
    prefixes: Mapping[str, str]
    by_statistic: bool

    def features(self, rows: CompositionRows) -> np.ndarray:
        """Return float64 [num_rows, num_properties * num_statistics]; NaN rows where there are no elements."""
        statistics = element_stats(rows, self.values, tuple(self.prefixes.values()))
        if self.by_statistic:
            statistics = statistics.swapaxes(1, 2)
        return statistics.reshape(len(rows), statistics.shape[1] * statistics.shape[2])

    def num_missing(self, rows: CompositionRows) -> np.ndarray:
        """Return float64 [num_rows, 1]: for how many properties some element of the row has no value of its own."""
        return element_stats(rows, self.unknown, ("maximum",)).sum(axis=1)

    def units(self) -> dict[str, str]:
        """Return column name -> unit, in the order of `features`."""
        if self.by_statistic:
            return {
                f"{prefix}:{column.name}": _unit(column, statistic)
                for prefix, statistic in self.prefixes.items()
                for column in self.properties
            }
        return {
            f"{prefix} {column.name}": _unit(column, statistic)
            for column in self.properties
            for prefix, statistic in self.prefixes.items()
        }


def _unit(column: ElementColumn, statistic: str) -> str:
    squared = statistic in ("variance", "population_variance") and column.unit not in ("", "1")
    return f"({column.unit})²" if squared else column.unit


@lru_cache
def guo_columns(impute: str, spread: str, modulus: str, block: str) -> StatisticColumns:
    """Return the 65 columns of Guo et al. 2022; options as in `GuoFeaturizer`, ConfigError on a wrong one."""
    chosen = {
        "block": _chosen("block", block, BLOCKS),
        "bulk_modulus": _chosen("modulus", modulus, MODULI),
    }
    names = tuple(chosen.get(name, name) for name in GUO_PROPERTIES)
    statistics = (*GUO_STATISTICS[:-1], _chosen("spread", spread, SPREADS))
    prefixes = {statistic: statistic for statistic in statistics}
    return _columns(load_table("guo"), names, impute, prefixes, by_statistic=False)


def rich_columns(statistics: str, impute: str, table: str | Path | None) -> StatisticColumns:
    """Return the columns of all properties of a table; options as in `RichFeaturizer`, ConfigError on a wrong one."""
    if statistics not in STATISTIC_SETS:
        raise ConfigError(f"statistics={statistics!r} is not known; choose one of {', '.join(STATISTIC_SETS)}")
    if table is None:
        return _shipped_rich_columns(statistics, impute)
    return _all_columns(read_element_table(table), statistics, impute)


@lru_cache
def _shipped_rich_columns(statistics: str, impute: str) -> StatisticColumns:
    return _all_columns(load_table("rich"), statistics, impute)


def _all_columns(table: ElementTable, statistics: str, impute: str) -> StatisticColumns:
    xenonpy = statistics == "xenonpy"
    prefixes = XENONPY_STATISTICS if xenonpy else {statistic: statistic for statistic in GUO_STATISTICS}
    return _columns(table, table.column_names, impute, prefixes, by_statistic=xenonpy)


def _columns(
    table: ElementTable, names: tuple[str, ...], impute: str, prefixes: Mapping[str, str], *, by_statistic: bool
) -> StatisticColumns:
    properties, values = table.imputed(names, impute)
    unknown = table.unknown(names, fallback=impute == "median")
    return StatisticColumns(properties, values, unknown, table.covered, table.digest, prefixes, by_statistic)


def _chosen(option: str, value: str, choices: Mapping[str, str]) -> str:
    if value not in choices:
        raise ConfigError(f"{option}={value!r} is not known; choose one of {', '.join(choices)}")
    return choices[value]
