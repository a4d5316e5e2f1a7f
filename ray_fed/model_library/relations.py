"""Which sources are really others than the target: by name, by data set, and by the formulas that both tables have.

A source is taken for the target's own quantity when its property has the same name or one of the names in QUANTITIES,
or when on SHARED_FORMULAS or more formulas of both tables the rank correlation is RELATED or more: a study over such
sources measures how well one table copies another. For a source whose rows are not at hand (another silo's), what its
models predict of the target's rows is ranked instead.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from ray_fed.errors import ConfigError
from ray_fed.materials.chemical_groups import composition_keys
from ray_fed.materials.databases.columns import QUANTITIES as COLUMN_NAMES
from ray_fed.materials.units import can_convert
from ray_fed.model_library.property_tables import FORMULA, PropertyTable
from ray_fed.reporting.model_files import ModelCard

RELATED = 0.9
"""Spearman's rank correlation from which two tables hold one quantity; of no sign."""
SHARED_FORMULAS = 20
"""Fewest formulas that a correlation is told for."""
QUANTITIES: Mapping[str, tuple[str, ...]] = {
    "formation_energy": ("formation_energy_per_atom", "heat_of_formation", "e_form", "delta_e"),
    "band_gap": ("gap", "eg", "egap", "e_gap", "bandgap", "band_gap_pbe", "gap pbe", "gap expt", "mbj_bandgap",
                 "optb88vdw_bandgap", "dir_gap", "ind_gap"),
    "refractive_index": ("n",),
    "total_dielectric_constant": ("eps_total",),
    "static_dielectric_constant": ("static_dielectric_constant_mbj",),
    "electronic_dielectric_constant": ("eps_electronic",),
    "bulk_modulus": ("bulk_modulus_kv", "k_vrh", "log10(k_vrh)", "log10_bulk_modulus", "bulk_modulus_vrh"),
    "shear_modulus": ("shear_modulus_gv", "g_vrh", "log10(g_vrh)", "log10_shear_modulus", "shear_modulus_vrh"),
    "thermal_conductivity": ("lattice_thermal_conductivity", "kappa", "kappa_dft_300k"),
    "last_phonon_peak": ("max_phonon_mode", "max_ir_mode", "last phdos peak"),
    "exfoliation_energy": ("exfoliation_en",),
    "energy_above_hull": ("ehull", "e_above_hull"),
    "piezo_stress_coefficient": ("eij_max",),
}  # fmt: skip
"""Name of a quantity -> its other names, in lower case. Phonon peaks and largest modes are one quantity."""
_NAMES = {name: quantity for quantity, names in QUANTITIES.items() for name in (quantity, *names)} | {
    other.casefold(): name for name, (_, others) in COLUMN_NAMES.items() for other in others if name not in QUANTITIES
}


def quantity_of(property_name: str) -> str:
    """Return the one name of a quantity: "formation_energy_per_atom" -> "formation_energy"."""
    first = _NAMES.get(property_name.strip().casefold(), property_name)
    return _NAMES.get(first.casefold(), first)


def is_known(property_name: str) -> bool:
    """Whether other names of a quantity are known."""
    return property_name.strip().casefold() in _NAMES


def one_unit(first: str, second: str) -> bool:
    """Whether two units measure the same, logarithms apart; False for what is no unit."""
    bare = [text[text.index("(") + 1 : -1] if text.startswith(("log10(", "ln(")) else text for text in (first, second)]
    try:
        return can_convert(*(text.replace("Å^3", "Å³") for text in bare))
    except ConfigError:
        return bare[0] == bare[1]


@dataclass(frozen=True)
class Relation:
    """What one source table is to the target."""

    table: str
    """DATASET/PROPERTY of the source."""
    quantity: str
    unit: str
    models: int
    shared: int | None
    """Formulas of both tables; None where the source's rows are not at hand."""
    correlation: float
    """Spearman's, on the shared formulas, or of predictions with the target's values; NaN where there are too few."""
    reason: str
    """Why it is left out; "" where it is used."""


@dataclass(frozen=True)
class SourceRules:
    """Which sources a search may use."""

    allow_related: bool = False
    same_dataset: bool = False
    exclude: tuple[str, ...] = ()
    """Properties, data sets or DATASET/PROPERTY."""
    threshold: float = RELATED


@dataclass(frozen=True)
class SourceFacts:
    """What is known of one source table before it is judged."""

    key: str
    card: ModelCard
    """Of one of its models."""
    models: int
    rows: PropertyTable | None
    predicted: np.ndarray | None
    """What its models predict of the target's rows, [rows]; NaN where they cannot."""


def relation(target: PropertyTable, source: SourceFacts, rules: SourceRules) -> Relation:
    """Return what a source is to the target, and whether and why it is left out."""
    quantity = quantity_of(source.card.property)
    shared, correlation = _compared(target, source)
    names = {source.key, source.card.property, *source.key.rsplit("/", 1)[0].split("+")}
    is_own = quantity == quantity_of(target.property_name) and one_unit(source.card.unit, target.unit)
    if named := sorted(names & set(rules.exclude)):
        reason = f"--exclude {named[0]}"
    elif not rules.same_dataset and target.modelset in source.key.rsplit("/", 1)[0].split("+"):
        reason = "the target's own data set"
    elif is_own and not rules.allow_related:
        reason = "the target's own quantity"
    elif abs(correlation) >= rules.threshold and not rules.allow_related:
        what = "on shared formulas" if shared is not None else "of its predictions"
        reason = f"rank correlation {what} {correlation:.2f}"
    else:
        reason = ""
    return Relation(source.key, quantity, source.card.unit, source.models, shared, correlation, reason)


def _compared(target: PropertyTable, source: SourceFacts) -> tuple[int | None, float]:
    if source.rows is not None and source.rows.column == target.column:
        first, second = values_by_material(target), values_by_material(source.rows)
        both = first.index.intersection(second.index)
        return len(both), _ranked(np.asarray(first.loc[both]), np.asarray(second.loc[both]))
    if source.predicted is None:
        return None, float("nan")
    known = np.isfinite(source.predicted)
    return None, _ranked(target.frame["value"].to_numpy(float)[known], source.predicted[known])


def values_by_material(table: PropertyTable) -> pd.Series:
    """Return the median value of each material, by its reduced formula or SMILES."""
    names = table.frame[table.column].astype(str).tolist()
    keys = composition_keys(names) if table.column == FORMULA else names
    return pd.Series(table.frame["value"].to_numpy(float), index=keys).groupby(level=0).median()


def _ranked(first: np.ndarray, second: np.ndarray) -> float:
    from scipy.stats import rankdata

    from ray_fed.model_library.cards import correlation

    if len(first) < SHARED_FORMULAS:
        return float("nan")
    return correlation(rankdata(first), rankdata(second))


def told(relations: Sequence[Relation], most: int = 12) -> list[str]:
    """Return a table in words: what is used, the strongest relations first, then what is left out and why."""
    order = sorted(relations, key=lambda each: (bool(each.reason), -abs(np.nan_to_num(each.correlation)), each.table))
    used = [each for each in order if not each.reason]
    left = [each for each in order if each.reason]
    lines = [f"{'source':52} {'models':>6} {'shared formulas':>15} {'rank correlation':>16}"]
    lines += [_line(each) for each in used[:most]]
    if len(used) > most:
        lines.append(f"... and {len(used) - most} more")
    return [*lines, *(f"{_line(each)}  left out: {each.reason}" for each in left)]


def _line(each: Relation) -> str:
    shared = "not at hand" if each.shared is None else f"{each.shared:,}"
    ranked = "-" if np.isnan(each.correlation) else f"{each.correlation:.2f}"
    return f"{each.table + ' [' + each.unit + ']':52} {each.models:>6} {shared:>15} {ranked:>16}"
