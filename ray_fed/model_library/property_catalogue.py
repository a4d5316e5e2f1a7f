"""Where the properties of the project's open data sets are, under which names and units.

Nothing is downloaded: `folder` holds the data sets as described in their README files.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

import pandas as pd

from ray_fed.errors import DataError
from ray_fed.materials.model_crystals.crystals import make_model_crystals
from ray_fed.model_library.property_tables import (
    FORMULA,
    SMILES,
    STRUCTURE,
    PropertyTable,
    prepared,
    read_table,
)

COMPOSITIONS: Mapping[str, tuple[str, str, str]] = {
    "matbench_expt_gap": ("band_gap", "eV", "identity"),
    "expt_bandgap": ("band_gap", "eV", "identity"),
    "aflow_Egap": ("band_gap", "eV", "identity"),
    "jarvis_optb88vdw_bandgap": ("band_gap", "eV", "identity"),
    "jarvis_mbj_bandgap": ("band_gap", "eV", "identity"),
    "matbench_dielectric": ("refractive_index", "1", "identity"),
    "matbench_phonons": ("last_phonon_peak", "1/cm", "log10"),
    "matbench_log10_K_VRH": ("bulk_modulus", "log10(GPa)", "identity"),
    "matbench_log10_G_VRH": ("shear_modulus", "log10(GPa)", "identity"),
    "matbench_jdft2d": ("exfoliation_energy", "meV/atom", "log10"),
    "matbench_glass": ("glass_forming", "1", "identity"),
    "matbench_steels_yield": ("yield_strength", "MPa", "identity"),
    "matbench_castelli": ("heat_of_formation_per_cell", "eV/cell", "identity"),
    "aflow_agl_thermal_conductivity_300K": ("thermal_conductivity", "W/(m K)", "log10"),
    "aflow_agl_thermal_expansion_300K": ("thermal_expansion", "1/K", "log10"),
    "aflow_ael_debye_temperature": ("debye_temperature", "K", "log10"),
    "aflow_ael_bulk_modulus_vrh": ("bulk_modulus", "GPa", "log10"),
    "aflow_ael_shear_modulus_vrh": ("shear_modulus", "GPa", "log10"),
    "mp_bulk_modulus": ("bulk_modulus", "GPa", "log10"),
    "mp_shear_modulus": ("shear_modulus", "GPa", "log10"),
    "jarvis_eps": ("static_dielectric_constant", "1", "identity"),
    "jarvis_meps": ("static_dielectric_constant_mbj", "1", "identity"),
    "jarvis_bulkmoduluskv": ("bulk_modulus", "GPa", "log10"),
    "jarvis_shearmodulusgv": ("shear_modulus", "GPa", "log10"),
    "jarvis_ehull": ("energy_above_hull", "eV/atom", "identity"),
    "jarvis_exfoliation_energy": ("exfoliation_energy", "meV/atom", "log10"),
    "jarvis_magmom_oszicar": ("magnetic_moment", "Bohr magneton/cell", "identity"),
    "jarvis_nseebeck": ("seebeck_n", "uV/K", "identity"),
    "jarvis_pseebeck": ("seebeck_p", "uV/K", "identity"),
    "jarvis_npowerfact": ("power_factor_n", "uW/(m K^2)", "log10"),
    "jarvis_ppowerfact": ("power_factor_p", "uW/(m K^2)", "log10"),
    "jarvis_slme": ("slme", "%", "identity"),
    "jarvis_spillage": ("spillage", "1", "identity"),
    "jarvis_max_mode": ("max_phonon_mode", "1/cm", "log10"),
    "jarvis_max_ir_mode": ("max_ir_mode", "1/cm", "log10"),
    "jarvis_piezo_max_diel": ("electronic_dielectric_constant", "1", "log10"),
    "jarvis_piezo_max_di": ("total_dielectric_constant", "1", "log10"),
    "jarvis_piezo_max_dij": ("piezo_strain_coefficient", "pC/N", "log10"),
    "jarvis_piezo_max_eij": ("piezo_stress_coefficient", "C/m^2", "log10"),
}
"""Task of composition_properties -> (property, unit, transform). Left out: mp_elastic_anisotropy, whose outliers of
-1,786 and 893 beside a median of 0.5 are computational failures."""

COMPOSITION_SOURCES: Mapping[str, tuple[str, str]] = {
    "matbench": ("MIT (CrabNet); CC-BY 4.0 (Materials Project)", "doi:10.1038/s41524-020-00406-3"),
    "aflow": ("MIT (CrabNet); AFLOW, free use with citation", "doi:10.1016/j.commatsci.2012.02.002"),
    "mp": ("MIT (CrabNet); CC-BY 4.0 (Materials Project)", "doi:10.1063/1.4812323"),
    "expt": ("NU-CUCIS CrossPropertyTL", "doi:10.1038/s41467-021-26921-5"),
    "jarvis": ("NU-CUCIS CrossPropertyTL; NIST JARVIS-DFT", "doi:10.1038/s41467-021-26921-5"),
}
"""First word of a task -> (licence, citation)."""

POLYMERS: Mapping[str, tuple[str, str, str]] = {
    "density": ("density", "g/cm^3", "identity"),
    "Rg": ("radius_of_gyration", "Å", "identity"),
    "Cp": ("heat_capacity_cp", "J/(kg K)", "identity"),
    "Cv": ("heat_capacity_cv", "J/(kg K)", "identity"),
    "compressibility": ("compressibility", "1/Pa", "log10"),
    "bulk_modulus": ("polymer_bulk_modulus", "Pa", "log10"),
    "volume_expansion": ("volume_expansion", "1/K", "identity"),
    "dielectric_const_dc": ("polymer_dielectric_constant", "1", "log10"),
    "refractive_index": ("refractive_index", "1", "identity"),
    "thermal_conductivity": ("polymer_thermal_conductivity", "W/(m K)", "identity"),
    "mol_weight_monomer": ("monomer_weight", "g/mol", "identity"),
    "vdw_volume_monomer": ("monomer_vdw_volume", "Å^3", "identity"),
    "thermal_diffusivity": ("thermal_diffusivity", "m^2/s", "log10"),
    "self-diffusion": ("self_diffusion", "m^2/s", "log10"),
    "qm_polarizability_monomer": ("monomer_polarizability", "Å^3", "identity"),
    "qm_homo_monomer": ("monomer_homo", "eV", "identity"),
    "qm_lumo_monomer": ("monomer_lumo", "eV", "identity"),
}
"""Column of PI1070 -> (property, unit, transform)."""

MOLECULES: Mapping[str, tuple[str, str, str]] = {
    "esol": ("log_solubility_mol_per_l", "log_solubility", "log10(mol/L)"),
    "lipophilicity": ("logD_pH7.4", "lipophilicity", "logD"),
    "qm7": ("atomization_energy_kcal_mol", "atomization_energy", "kcal/mol"),
}
"""File -> (column, property, unit)."""

STRUCTURES = (
    ("dielectric_piezo/dielectric.parquet", "n", "refractive_index", "1", "identity"),
    ("dielectric_piezo/dielectric.parquet", "eps_total", "total_dielectric_constant", "1", "log10"),
    ("dielectric_piezo/piezoelectric.parquet", "eij_max", "piezo_stress_coefficient", "C/m^2", "log10"),
    ("mp_structures/mp_structures.parquet", "formation_energy_per_atom", "formation_energy", "eV/atom", "identity"),
    ("mp_structures/mp_structures.parquet", "band_gap_pbe", "band_gap", "eV", "identity"),
    ("thermal_conductivity_103/ltc103.parquet", "kappa_dft_300K", "lattice_thermal_conductivity", "W/(m K)", "log10"),
)
"""(file, column, property, unit, transform)"""

MP_LICENCE, MP_CITATION = "CC-BY 4.0 (Materials Project)", "doi:10.1063/1.4812323"


ANION_FAMILIES: Mapping[str, tuple[str, ...]] = {
    "model_oxides": ("O",),
    "model_halides": ("F", "Cl", "Br", "I"),
    "model_chalcogenides": ("S", "Se", "Te"),
    "model_pnictides": ("N", "P", "As", "Sb"),
}
"""Embedded data set -> the anions of its crystals."""


def embedded_tables(rows: int = 4000) -> dict[str, PropertyTable]:
    """Return formation energy, volume and cell length of the embedded model crystals, one data set per anion family.

    No file is read.
    """
    crystals = make_model_crystals(rows, seed=7).drop_duplicates("formula")
    tables = []
    for name, anions in ANION_FAMILIES.items():
        frame = crystals.loc[crystals["anion"].isin(anions)].reset_index(drop=True)
        tables += list(_embedded(name, frame))
    return {table.key: table for table in tables}


def _embedded(modelset: str, frame: pd.DataFrame) -> Iterator[PropertyTable]:
    properties = (
        ("formation_energy", "eV/atom", frame["target"], "identity"),
        ("cell_volume", "Å^3", frame["volume"], "log10"),
        ("cell_length", "Å", frame["a"], "identity"),
    )
    for name, unit, values, transform in properties:
        rows = frame.assign(value=values)
        licence = "Apache-2.0 (model data, not DFT)"
        yield prepared(PropertyTable(name, unit, modelset, STRUCTURE, "inorganic", rows, transform, licence))


def shared_tables(folder: Path | str) -> dict[str, PropertyTable]:
    """Return every property of the data sets under `folder` by its key; DataError when the folder is missing."""
    folder = Path(folder)
    if not (folder / "composition_properties" / "properties_long.parquet").is_file():
        raise DataError(
            f"{folder} is no table (.csv, .parquet, .json) and no folder of the open data sets: it holds no "
            "composition_properties; give one of them with --source, or 'embedded'"
        )
    tables = [*_compositions(folder), *_structures(folder), *_polymers(folder), *_molecules(folder)]
    return {table.key: table for table in tables}


def _compositions(folder: Path) -> Iterator[PropertyTable]:
    long = read_table(folder / "composition_properties" / "properties_long.parquet")
    by_task = dict(list(long.groupby("task", sort=False)))
    for task, (name, unit, transform) in COMPOSITIONS.items():
        licence, citation = COMPOSITION_SOURCES[task.split("_")[0]]
        # Polymorphs of one formula are one row for a composition: the median keeps it robust.
        frame = by_task[task].groupby("reduced_formula", as_index=False, sort=True)["value"].median()
        frame.columns = ["formula", "value"]
        yield prepared(
            PropertyTable(name, unit, task, FORMULA, "inorganic", pd.DataFrame(frame), transform, licence, citation)
        )


def _structures(folder: Path) -> Iterator[PropertyTable]:
    for file, column, name, unit, transform in STRUCTURES:
        if (folder / file).is_file():
            frame = read_table(folder / file)
            frame = frame.query("n_sites > 0").assign(value=frame[column])
            yield prepared(
                PropertyTable(
                    name,
                    unit,
                    Path(file).stem,
                    STRUCTURE,
                    "inorganic",
                    pd.DataFrame(frame),
                    transform,
                    MP_LICENCE,
                    MP_CITATION,
                )
            )


def _polymers(folder: Path) -> Iterator[PropertyTable]:
    path = folder / "polymers" / "pi1070.parquet"
    if not path.is_file():
        return
    frame = read_table(path)
    # The repeat unit's SMILES; its two ends are marked * and are no atoms.
    frame = frame.rename(columns={next(name for name in frame if name.lower() == "smiles"): "smiles"})
    for column, (name, unit, transform) in POLYMERS.items():
        rows = frame[["smiles"]].assign(value=frame[column])
        yield prepared(
            PropertyTable(
                name, unit, "pi1070", SMILES, "polymer", rows, transform, "BSD-3-Clause (RadonPy)",
                "doi:10.1038/s41524-022-00906-4",
            )
        )  # fmt: skip


def _molecules(folder: Path) -> Iterator[PropertyTable]:
    for name, (column, property_name, unit) in MOLECULES.items():
        path = folder / "molecules" / f"{name}.parquet"
        if path.is_file():
            frame = read_table(path)
            frame = frame.rename(columns={next(item for item in frame if item.lower() == "smiles"): "smiles"})
            rows = frame[["smiles"]].assign(value=frame[column]).drop_duplicates("smiles")
            yield prepared(PropertyTable(property_name, unit, name, SMILES, "molecule", rows, licence="MIT (DeepChem)"))
