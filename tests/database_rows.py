"""The same crystals in every kind of source, for tests."""

import json
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

TARGET = "formation_energy_per_atom"
CATIONS = ("Li", "Na", "K", "Rb", "Cs", "Mg", "Ca", "Sr")
ANIONS = ("F", "Cl", "Br", "I", "O", "S")


@dataclass(frozen=True)
class Row:
    """A crystal of two atoms with a number to learn; every float uses all of its bits."""

    id: str
    cation: str
    anion: str
    lattice: list[list[float]]
    positions: list[list[float]]
    energy: float

    @property
    def elements(self) -> list[str]:
        return [self.cation, self.anion]

    @property
    def structure(self) -> dict:
        """As pymatgen writes it."""
        kinds = [[{"element": element, "occu": 1.0}] for element in self.elements]
        sites = [{"species": kind, "xyz": xyz} for kind, xyz in zip(kinds, self.positions, strict=True)]
        return {"lattice": {"matrix": self.lattice}, "sites": sites}


def rows(number: int = 48, seed: int = 0) -> list[Row]:
    """Return crystals of different formulas, cells and energies, by their ids; at most 48."""
    random = np.random.default_rng(seed)
    pairs = [(cation, anion) for cation in CATIONS for anion in ANIONS][:number]
    return [_row(at, *pair, random) for at, pair in enumerate(pairs)]


def _row(at: int, cation: str, anion: str, random: np.random.Generator) -> Row:
    lattice = np.diag(random.uniform(3, 6, 3)) + random.uniform(-0.3, 0.3, (3, 3))
    positions = np.array([[0.0, 0.0, 0.0], lattice.sum(0) * random.uniform(0.4, 0.6)])
    return Row(f"c-{at:03d}", cation, anion, lattice.tolist(), positions.tolist(), float(random.normal(-1.5, 1 / 3)))


def shuffled(given: Sequence[Row]) -> list[Row]:
    """Return the rows in an order that is not that of their ids."""
    return [given[at] for at in np.random.default_rng(1).permutation(len(given))]


def write_parquet(path: Path, given: Sequence[Row]) -> str:
    columns = {"id": [row.id for row in given], "structure": [json.dumps(row.structure) for row in given]}
    pd.DataFrame({**columns, TARGET: [row.energy for row in given]}).to_parquet(path)
    return str(path)


def write_sqlite(path: Path, given: Sequence[Row]) -> str:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"CREATE TABLE crystals (id TEXT, structure TEXT, {TARGET} REAL)")
        values = [(row.id, json.dumps(row.structure), row.energy) for row in shuffled(given)]
        connection.executemany("INSERT INTO crystals VALUES (?, ?, ?)", values)
        connection.commit()
    return f"sqlite:///{path}"


def write_ase(path: Path, given: Sequence[Row]) -> str:
    from ase import Atoms
    from ase.db import connect

    with connect(str(path)) as database:
        for row in shuffled(given):
            atoms = Atoms(row.elements, positions=row.positions, cell=row.lattice, pbc=True)
            database.write(atoms, key_value_pairs={"material_id": row.id, TARGET: row.energy})
    return f"ase:///{path}"


def optimade_entries(given: Sequence[Row]) -> list[dict]:
    """Return what the reference server holds, with the energy as the provider's own field _exmpl_energy."""
    return [_entry(row) for row in shuffled(given)]


def _entry(row: Row) -> dict:
    first, second = sorted(row.elements)
    species = [{"name": name, "chemical_symbols": [name], "concentration": [1.0]} for name in row.elements]
    return {
        "id": row.id, "elements": [first, second], "nelements": 2, "elements_ratios": [0.5, 0.5],
        "chemical_formula_reduced": f"{first}{second}", "chemical_formula_descriptive": f"{first}{second}",
        "chemical_formula_anonymous": "AB", "nsites": 2, "nperiodic_dimensions": 3, "dimension_types": [1, 1, 1],
        "structure_features": [], "last_modified": "2024-01-01T00:00:00Z", "lattice_vectors": row.lattice,
        "cartesian_site_positions": row.positions, "species": species, "species_at_sites": row.elements,
        "energy": row.energy,
    }  # fmt: skip


POSTGRES_TABLE = f"(id text, structure jsonb, {TARGET} double precision)"


def postgres_values(given: Sequence[Row]) -> list[tuple]:
    return [(row.id, json.dumps(row.structure), row.energy) for row in shuffled(given)]
