"""Build the shipped element tables from pymatgen and mendeleev.

    python -m tests.golden.make_element_tables [--check]

Run it with `--check` to see which values the installed packages would change. A change of a value is a change of every
feature and of every model: it gets a line in the CHANGELOG.
"""

import argparse
import csv
import importlib
import json
import math
import re
import sys
import warnings
from collections.abc import Callable, Mapping
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from ray_fed.materials.features.elements import (
    SYMBOLS,
    TABLE_FOLDER,
    TABLE_FORMAT,
    TABLE_NAMES,
    ElementColumn,
    ElementTable,
    read_hashed_table,
    table_paths,
)

Property = tuple[ElementColumn, Callable[[str], float]]
"""A column and the function that gives its value for a symbol (NaN: not known)."""

ANGSTROM_IN_PM = 100.0
PACKAGES = ("pymatgen", "pymatgen-core", "mendeleev")
CAPACITY = {"s": 2, "p": 6, "d": 10, "f": 14}

GUO_LOG10 = (
    "electrical_resistivity", "thermal_conductivity", "melting_point", "bulk_modulus",
    "coefficient_of_linear_thermal_expansion", "youngs_modulus",
)  # fmt: skip

# name: (unit, attribute of pymatgen's Element)
GUO_PYMATGEN = {
    "X": ("Pauling scale", "X"),
    "row": ("1", "row"),
    "group": ("1", "group"),
    "atomic_mass": ("u", "atomic_mass"),
    "atomic_radius": ("Å", "atomic_radius"),
    "mendeleev_no": ("1", "mendeleev_no"),
    "electrical_resistivity": ("Ω·m", "electrical_resistivity"),
    "velocity_of_sound": ("m/s", "velocity_of_sound"),
    "thermal_conductivity": ("W/(m·K)", "thermal_conductivity"),
    "melting_point": ("K", "melting_point"),
    "bulk_modulus": ("GPa", "bulk_modulus"),
    "coefficient_of_linear_thermal_expansion": ("1/K", "coefficient_of_linear_thermal_expansion"),
    "youngs_modulus": ("GPa", "youngs_modulus"),
}

# XenonPy's name: (unit, attribute of pymatgen's Element, factor to the unit)
RICH_PYMATGEN = {
    "atomic_radius": ("pm", "metallic_radius", ANGSTROM_IN_PM),
    "boiling_point": ("K", "boiling_point", 1.0),
    "bulk_modulus": ("GPa", "bulk_modulus", 1.0),
    "electron_affinity": ("eV", "electron_affinity", 1.0),
    "electron_negativity": ("Pauling scale", "X", 1.0),
    "first_ion_en": ("eV", "ionization_energy", 1.0),
    "mendeleev_number": ("1", "mendeleev_no", 1.0),
    "melting_point": ("K", "melting_point", 1.0),
    "molar_volume": ("cm³/mol", "molar_volume", 1.0),
    "sound_velocity": ("m/s", "velocity_of_sound", 1.0),
    "thermal_conductivity": ("W/(m·K)", "thermal_conductivity", 1.0),
}

# XenonPy's name: (unit, column of mendeleev's table "elements")
RICH_MENDELEEV = {
    "atomic_number": ("1", "atomic_number"),
    "atomic_radius_rahm": ("pm", "atomic_radius_rahm"),
    "atomic_weight": ("u", "atomic_weight"),
    "c6_gb": ("hartree·bohr⁶", "c6_gb"),
    "covalent_radius_cordero": ("pm", "covalent_radius_cordero"),
    "covalent_radius_pyykko": ("pm", "covalent_radius_pyykko"),
    "covalent_radius_pyykko_double": ("pm", "covalent_radius_pyykko_double"),
    "covalent_radius_pyykko_triple": ("pm", "covalent_radius_pyykko_triple"),
    "covalent_radius_slater": ("pm", "atomic_radius"),
    "density": ("g/cm³", "density"),
    "dipole_polarizability": ("bohr³", "dipole_polarizability"),
    "en_allen": ("eV", "en_allen"),
    "en_ghosh": ("Ghosh scale", "en_ghosh"),
    "en_pauling": ("Pauling scale", "en_pauling"),
    "evaporation_heat": ("kJ/mol", "evaporation_heat"),
    "fusion_enthalpy": ("kJ/mol", "fusion_heat"),
    "heat_capacity_mass": ("J/(g·K)", "specific_heat_capacity"),
    "heat_capacity_molar": ("J/(mol·K)", "molar_heat_capacity"),
    "heat_of_formation": ("kJ/mol", "heat_of_formation"),
    "lattice_constant": ("Å", "lattice_constant"),
    "period": ("1", "period"),
    "vdw_radius": ("pm", "vdw_radius"),
    "vdw_radius_alvarez": ("pm", "vdw_radius_alvarez"),
    "vdw_radius_mm3": ("pm", "vdw_radius_mm3"),
    "vdw_radius_uff": ("pm", "vdw_radius_uff"),
}

LEFT_OUT = {
    "rich": {
        **dict.fromkeys(
            ("gs_bandgap", "gs_energy", "gs_est_bcc_latcnt", "gs_est_fcc_latcnt", "gs_mag_moment", "gs_volume_per"),
            "a DFT result of the elemental ground state (OQMD, through Magpie); neither package holds it",
        ),
        "icsd_volume": "volume per atom from the ICSD; neither package holds it",
        "atomic_volume": "mendeleev derives it from the density, that of the gas for H, N, O, F, Cl: 1000 times off",
        "specific_heat": "mendeleev has one specific heat; it is heat_capacity_mass",
        "Polarizability": "dipole_polarizability in another unit",
    },
    "guo": {},
}


def _float(value: object) -> float:
    """Return a plain float; NaN where the package holds nothing or a phrase."""
    return math.nan if value is None or isinstance(value, str) else float(value)  # pyright: ignore[reportArgumentType]


def _pymatgen(symbol: str, attribute: str) -> Any:
    element = importlib.import_module("pymatgen.core").Element(symbol)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # "No data available for ..." is what NaN says here
        try:
            return getattr(element, attribute)
        except KeyError:  # pymatgen 2026: some attributes of the heaviest elements
            return None


@lru_cache
def _mendeleev_table() -> Any:
    return importlib.import_module("mendeleev.fetch").fetch_table("elements").set_index("symbol")


@lru_cache
def _shells(symbol: str) -> tuple[tuple[str, int], ...]:
    """Return (orbital letter, electrons) outside the noble-gas core, XenonPy's and Magpie's meaning of valence."""
    configuration = _mendeleev_table().at[symbol, "electronic_configuration"]
    found = re.findall(r"\d([spdf])(\d*)", re.sub(r"\[.*?\]", "", configuration))
    return tuple((orbital, int(count or 1)) for orbital, count in found)


def _valence(symbol: str, orbitals: str) -> float:
    return float(sum(count for orbital, count in _shells(symbol) if orbital in orbitals))


def _unfilled(symbol: str, orbitals: str) -> float:
    return float(sum(CAPACITY[orbital] - count for orbital, count in _shells(symbol) if orbital in orbitals))


def _from_pymatgen(name: str, unit: str, attribute: str, factor: float = 1.0) -> Property:
    scaled = f" x {factor:g}" if factor != 1.0 else ""
    source = f"pymatgen Element.{attribute}{scaled}"
    return ElementColumn(name, unit, source), lambda symbol: factor * _float(_pymatgen(symbol, attribute))


def _from_mendeleev(name: str, unit: str, attribute: str, divisor: float = 1.0) -> Property:
    scaled = f" / {divisor:g}" if divisor != 1.0 else ""
    source = f"mendeleev elements.{attribute}{scaled}"
    return ElementColumn(name, unit, source), lambda symbol: _float(_mendeleev_table().at[symbol, attribute]) / divisor


def _from_shells(name: str, orbitals: str, count: Callable[[str, str], float]) -> Property:
    column = ElementColumn(name, "electrons", "mendeleev elements.electronic_configuration")
    return column, lambda symbol: count(symbol, orbitals)


def _from_hhi(name: str, method: str) -> Property:
    def value(symbol: str) -> float:
        model = importlib.import_module("pymatgen.analysis.hhi").HHIModel()
        return _float(getattr(model, method)(symbol))

    return ElementColumn(name, "1", f"pymatgen HHIModel.{method}"), value


def _block(symbol: str) -> float:
    """matminer's numbers; it gives d and f the same one."""
    return {"s": 1.0, "p": 2.0, "d": 3.0, "f": 3.0}[_pymatgen(symbol, "block")]


def _block_ordinal(symbol: str) -> float:
    """s, p, d, f -> 1 to 4. pymatgen 2026 files He under p, La and Ac under f."""
    corrected = {"He": "s", "La": "d", "Ac": "d"}
    block = corrected[symbol] if symbol in corrected else _pymatgen(symbol, "block")
    return {"s": 1.0, "p": 2.0, "d": 3.0, "f": 4.0}[block]


def guo_properties() -> list[Property]:
    """Return the preset's 13 properties and the alternatives to three of them."""
    from_pymatgen = {name: _from_pymatgen(name, *entry) for name, entry in GUO_PYMATGEN.items()}
    block = ElementColumn("block", "1", "pymatgen Element.block: s 1, p 2, d 3, f 3 (matminer)"), _block
    ordinal = (
        ElementColumn("block_ordinal", "1", "pymatgen Element.block: s 1, p 2, d 3, f 4; He s, La and Ac d"),
        _block_ordinal,
    )
    slater = _from_mendeleev("atomic_radius_mendeleev", "Å", "atomic_radius", ANGSTROM_IN_PM)
    properties = [*from_pymatgen.values(), ordinal, slater]
    properties.insert(3, block)  # after "group", its place in the preset
    return [(_marked(column), value) for column, value in properties]


def _marked(column: ElementColumn) -> ElementColumn:
    fallback = "atomic_radius_mendeleev" if column.name == "atomic_radius" else ""
    return ElementColumn(column.name, column.unit, column.source, column.name in GUO_LOG10, fallback)


def rich_properties() -> list[Property]:
    """Return XenonPy's properties that the two packages hold, sorted by name."""
    properties = [_from_pymatgen(name, *entry) for name, entry in RICH_PYMATGEN.items()]
    properties += [_from_mendeleev(name, *entry) for name, entry in RICH_MENDELEEV.items()]
    properties += [_from_hhi("hhi_p", "get_hhi_production"), _from_hhi("hhi_r", "get_hhi_reserve")]
    properties += [_from_shells("num_valance", "spdf", _valence), _from_shells("num_unfilled", "spdf", _unfilled)]
    for orbital in "spdf":
        properties.append(_from_shells(f"num_{orbital}_valence", orbital, _valence))
        properties.append(_from_shells(f"num_{orbital}_unfilled", orbital, _unfilled))
    return sorted(properties, key=lambda entry: entry[0].name)


PROPERTIES: Mapping[str, Callable[[], list[Property]]] = {"guo": guo_properties, "rich": rich_properties}


def build_table(name: str) -> ElementTable:
    """Return the table `name` as the installed packages give it."""
    properties = PROPERTIES[name]()
    values = np.full((len(SYMBOLS) + 1, len(properties)), np.nan)
    values[1:] = [[value(symbol) for _, value in properties] for symbol in SYMBOLS]
    covered = np.arange(len(SYMBOLS) + 1) > 0
    columns = tuple(column for column, _ in properties)
    packages = {package: version(package) for package in PACKAGES}
    return ElementTable(name, columns, values, covered, packages, LEFT_OUT[name])


def write_table(table: ElementTable, folder: Path) -> None:
    """Write the two files of a table; numbers in the shortest form that reads back to the same bits."""
    values_path, header_path = table_paths(folder, table.name)
    with values_path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["Z", "symbol", *table.column_names])
        for number, symbol in enumerate(SYMBOLS, 1):
            writer.writerow([number, symbol, *map(_text, table.values[number].tolist())])
    header = {
        "format": TABLE_FORMAT,
        "name": table.name,
        "sha256": table.digest,
        "packages": dict(table.packages),
        "columns": {column.name: column.metadata() for column in table.columns},
        "left_out": dict(table.left_out),
    }
    header_path.write_text(json.dumps(header, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _text(value: float) -> str:
    return "" if math.isnan(value) else repr(value).removesuffix(".0")


def changes(built: ElementTable, shipped: ElementTable) -> list[str]:
    """Return one line per value that differs between two tables, and one if their columns do."""
    if built.columns != shipped.columns:
        return [f"{built.name}: columns, units, sources or marks differ"]
    differs = (built.values != shipped.values) & ~(np.isnan(built.values) & np.isnan(shipped.values))
    return [
        f"{built.name}: {SYMBOLS[number - 1]} {built.column_names[column]}: "
        f"shipped {shipped.values[number, column]}, built {built.values[number, column]}"
        for number, column in np.argwhere(differs).tolist()
    ]


def main() -> int:
    """Write the tables, or with --check list what would change; 1 when something would."""
    parser = argparse.ArgumentParser(description="Build the element tables from pymatgen and mendeleev.")
    parser.add_argument("--check", action="store_true", help="write nothing; list values that would change")
    check = parser.parse_args().check
    found: list[str] = []
    for name in TABLE_NAMES:
        table = build_table(name)
        if check:
            found += changes(table, read_hashed_table(TABLE_FOLDER, name))
        else:
            write_table(table, TABLE_FOLDER)
            print(f"{name}: {len(table.columns)} columns, sha256 {table.digest[:16]}")
    print("\n".join(found), end="\n" if found else "")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
