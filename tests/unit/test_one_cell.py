"""A crystal has one cell, however it is written down: supercells, origins, axes, order of atoms, orientation."""

import dataclasses
import json
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet
from pymatgen.core import Lattice, Structure

from ray_fed.federation.reasons import counted_notes
from ray_fed.federation.task import SiloSpec
from ray_fed.learning.models import seeded_mlp
from ray_fed.learning.standardisation import ColumnMoments, Standardizer
from ray_fed.materials.crystal import Crystal
from ray_fed.materials.databases.database import open_database
from ray_fed.materials.databases.source import Source
from ray_fed.materials.features.featurizers import make_featurizer
from ray_fed.materials.finder_words import quiet_finders
from ray_fed.materials.lattices import cells_of_vectors, niggli_basis, vectors_of_cells
from ray_fed.materials.model_crystals.primitive_cells import with_primitive_cells
from ray_fed.materials.model_crystals.prototypes import PROTOTYPES
from ray_fed.materials.property_task import CrystalRows, PropertyTask
from ray_fed.materials.standard_cells import standard_cell
from ray_fed.materials.structures import crystal_of_lists, parse_structure
from tests.crystal_settings import rewritten

MATERIALS_PROJECT = Path(__file__).parents[3] / "shared/datasets/mp_structures/mp_structures.parquet"
TARGET = "formation_energy_per_atom"
NACL = Structure.from_spacegroup("Fm-3m", Lattice.cubic(5.64), ["Na", "Cl"], [[0, 0, 0], [0.5, 0, 0]])


@cache
def crystals() -> dict[str, Crystal]:
    rng = np.random.default_rng(0)
    spread = {"jitter": rng.normal(0, 0.002, (10, 3))}
    structures = {
        "rocksalt": NACL,
        "corundum": Structure.from_spacegroup("R-3c", Lattice.hexagonal(4.76, 12.99), ["Al", "O"],
                                              [[0, 0, 0.352], [0.306, 0, 0.25]]),
        "rutile": Structure.from_spacegroup("P4_2/mnm", Lattice.tetragonal(4.6, 2.96), ["Ti", "O"],
                                            [[0, 0, 0], [0.305, 0.305, 0]]),
        "monoclinic": Structure.from_spacegroup("C2/m", Lattice.monoclinic(7.1, 4.3, 5.2, 104.3), ["V", "S"],
                                                [[0.1, 0, 0.2], [0.36, 0, 0.61]]),
        "triclinic": Structure(Lattice.from_parameters(4.1, 5.3, 6.2, 80, 71, 94), ["K", "N", "O"],
                               [[0, 0, 0], [0.3, 0.42, 0.55], [0.61, 0.22, 0.13]]),
        "quartz": Structure.from_spacegroup("P3_121", Lattice.hexagonal(4.91, 5.4), ["Si", "O"],
                                            [[0.47, 0, 1 / 3], [0.41, 0.27, 0.214]]),
        "half occupied": Structure(Lattice.cubic(3.9), [{"Li": 0.5}, "Co", "O", "O"],
                                   [[0, 0, 0], [0.5, 0.5, 0.5], [0.5, 0.5, 0], [0.5, 0, 0.5]]),
    }  # fmt: skip
    found = {name: parse_structure(structure.as_dict()) for name, structure in structures.items()}
    exact = parse_structure(structures["corundum"].get_primitive_structure().as_dict())
    # Relaxed structures obey their symmetry within thousandths of an angstrom only.
    found["relaxed"] = dataclasses.replace(
        exact,
        positions=exact.positions + spread["jitter"] @ np.linalg.inv(exact.vectors),
        vectors=exact.vectors @ (np.eye(3) + rng.normal(0, 1e-4, (3, 3))),
    )
    return found


def numbers(crystal: Crystal, finder: str) -> tuple[list[float], str]:
    with quiet_finders():
        found = standard_cell(crystal, finder, 0.1)
    return [*found.cell.tolist(), found.space_group, found.num_atoms], found.formula


@pytest.mark.parametrize("finder", ["spglib", "moyopy"])
@settings(max_examples=40, deadline=None)
@given(name=st.sampled_from(sorted(crystals())), seed=st.integers(0, 2**32 - 1))
def test_every_writing_of_a_crystal_has_the_same_cell_group_and_formula(finder, name, seed):
    pytest.importorskip(finder)
    crystal = crystals()[name]
    expected, formula = numbers(crystal, finder)
    found, written = numbers(rewritten(crystal, np.random.default_rng(seed)), finder)
    assert found == pytest.approx(expected, rel=1e-6)
    assert written == formula


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), kind=st.sampled_from(["any", "cubic", "fcc", "hexagonal"]))
def test_every_basis_of_a_lattice_has_the_same_niggli_cell(seed, kind):
    rng = np.random.default_rng(seed)
    vectors = {"any": rng.normal(0, 5, (3, 3)), "cubic": np.eye(3) * 4, "fcc": (np.ones((3, 3)) - np.eye(3)) * 2,
               "hexagonal": np.array(Lattice.hexagonal(3, 5).matrix)}[kind]  # fmt: skip
    vectors = vectors if abs(np.linalg.det(vectors)) > 1 else np.eye(3)
    steps = [np.eye(3) + value * np.outer(np.eye(3)[i], np.eye(3)[j])
             for i, j, value in zip(rng.integers(0, 3, 6), rng.integers(0, 3, 6), rng.integers(-2, 3, 6), strict=True)
             if i != j]  # fmt: skip
    other = np.linalg.multi_dot([np.eye(3), np.eye(3), *steps]) @ vectors
    cells = [cells_of_vectors((niggli_basis(each) @ each)[None])[0] for each in (vectors, other)]
    np.testing.assert_allclose(*cells, rtol=1e-6)
    assert np.linalg.det(niggli_basis(other) @ other) > 0


def test_a_supercell_of_512_has_the_features_of_its_crystal():
    features = make_featurizer("rich+structure", cell="standard")
    found, reasons = features.transform_with_reasons([NACL, NACL.get_primitive_structure(), NACL * (4, 4, 4)])
    assert reasons == [""] * 3
    np.testing.assert_allclose(found[1:], found[:1].repeat(2, 0), rtol=1e-6)
    given, _ = make_featurizer("rich+structure").transform_with_reasons([NACL, NACL.get_primitive_structure()])
    assert not np.allclose(*given)


def test_formulas_are_reduced_where_the_cell_is_standard_and_only_there():
    formulas = ["Na4Cl4", "NaCl", "Li0.5CoO2", "Fe4O6", "Fe2O3"]
    standard, _ = make_featurizer("rich", cell="standard").transform_with_reasons(formulas)
    given, _ = make_featurizer("rich").transform_with_reasons(formulas)
    assert np.array_equal(standard[0], standard[1])
    assert np.array_equal(standard[3], standard[4])
    assert np.array_equal(standard[[1, 2, 4]], given[[1, 2, 4]])
    assert not np.array_equal(given[0], given[1])


def test_the_default_convention_changes_no_fingerprint():
    for name in ("guo73", "rich+structure", "guo65"):
        assert make_featurizer(name).fingerprint() == make_featurizer(name, cell="given").fingerprint()
        assert make_featurizer(name).fingerprint() != make_featurizer(name, cell="standard").fingerprint()


@pytest.mark.parametrize("layout", ["structures", "lists"])
def test_a_source_is_read_with_the_cell_that_is_asked_for(tmp_path, layout):
    written = [NACL, NACL.get_primitive_structure(), NACL * (2, 1, 1)]
    if layout == "structures":
        records = [{"structure": one.as_dict(), "formula": "Na4Cl4", TARGET: -2.1} for one in written]
    else:
        cells = [
            dict(zip(["a", "b", "c", "alpha", "beta", "gamma"], one.lattice.parameters, strict=True)) for one in written
        ]
        records = [{**cell, "numbers": list(one.atomic_numbers), "frac_coords": one.frac_coords.ravel().tolist(),
                    "formula": "NaCl", "spacegroup_number": 221, "volume": one.volume, TARGET: -2.1}
                   for cell, one in zip(cells, written, strict=True)]  # fmt: skip
    (tmp_path / "x.json").write_text(json.dumps(records))
    frame = open_database(Source(str(tmp_path / "x.json"), cell="standard")).frame
    cells = frame[["a", "b", "c", "alpha", "beta", "gamma", "volume"]].to_numpy()
    np.testing.assert_allclose(cells, [[3.988082, 3.988082, 3.988082, 60, 60, 60, 44.851536]] * 3, rtol=1e-5)
    assert frame["num_atoms"].tolist() == [2] * 3
    assert frame["spacegroup_number"].tolist() == [225] * 3
    assert frame["formula"].tolist() == ["NaCl"] * 3
    given = open_database(Source(str(tmp_path / "x.json"))).frame
    assert given["num_atoms"].tolist() == [8, 2, 16]
    assert counted_notes(frame["note"]) == (
        {} if layout == "structures" else {"space group given is not the one found": 3}
    )


def test_a_task_reads_with_the_convention_of_its_features_and_notes_what_has_no_sites(tmp_path):
    row = {"formula": "NaCl", "a": 5.64, "b": 5.64, "c": 5.64, "alpha": 90, "beta": 90, "gamma": 90,
           "spacegroup_number": 225, TARGET: -2.1}  # fmt: skip
    pd.DataFrame([row] * 3).to_csv(tmp_path / "x.csv", index=False)
    spec = SiloSpec("mit", CrystalRows(Source(str(tmp_path / "x.csv"))))
    rows = PropertyTask("guo73", (("cell", "standard"),)).load(spec)
    assert rows.notes == {"cell as given: there are no sites to standardise it by": 3}
    assert rows.remarks[0].startswith("row row-1: cell as given")
    assert PropertyTask().load(spec).notes == {}


def test_the_embedded_crystals_have_the_cells_that_a_search_finds():
    rows = {"prototype": [], "a": []}
    expected = []
    named = {prototype.name: prototype for prototype in PROTOTYPES}
    for prototype in map(named.__getitem__, ("rocksalt", "cdcl2", "k2nif4", "rutile")):
        size = prototype.formula_units * prototype.atoms_per_formula / prototype.b_over_a / prototype.c_over_a
        a = 5.0 * (size / 8) ** (1 / 3)
        lattice = Lattice.from_parameters(a, a * prototype.b_over_a, a * prototype.c_over_a, 90, 90, prototype.gamma)
        places = [(symbol, place) for symbol, site in zip(("Na", "K", "Rb"), prototype.cations, strict=False)
                  for place in site.positions] + [("Cl", place) for place in prototype.anion_positions]  # fmt: skip
        structure = Structure.from_spacegroup(prototype.space_group, lattice, *map(list, zip(*places, strict=True)))
        expected.append(numbers(parse_structure(structure.as_dict()), "spglib")[0])
        rows["prototype"].append(prototype.name)
        rows["a"].append(a)
    found = with_primitive_cells(pd.DataFrame(rows))
    columns = ["a", "b", "c", "alpha", "beta", "gamma", "volume", "num_atoms"]
    np.testing.assert_allclose(found[columns].to_numpy(), np.delete(np.array(expected), 7, axis=1), rtol=1e-6)


@pytest.mark.skipif(not MATERIALS_PROJECT.exists(), reason="needs mp_structures of ../shared/datasets")
def test_a_trained_network_says_the_same_of_every_writing_of_real_crystals():
    frame = next(parquet.ParquetFile(MATERIALS_PROJECT).iter_batches(3000)).to_pandas()
    frame = frame[frame["n_sites"] <= 12].sample(60, random_state=0).reset_index(drop=True)
    vectors = vectors_of_cells(frame[["a", "b", "c", "alpha", "beta", "gamma"]].to_numpy(np.float64))
    read = [crystal_of_lists(*row) for row in zip(vectors, frame["numbers"], frame["frac_coords"], strict=True)]
    rng = np.random.default_rng(0)
    features = standard_features(read)
    others = [standard_features([rewritten(one, rng) for one in read[:20]]) for _ in range(3)]
    for other in others:
        np.testing.assert_allclose(other, features[:20], rtol=1e-6, atol=1e-9)
    scaler = Standardizer.from_moments(ColumnMoments.of(features))
    x, y = torch.from_numpy(scaler(features)), torch.from_numpy(frame[TARGET].to_numpy(np.float32))
    network = seeded_mlp(features.shape[1], (32,), 0)
    optimiser = torch.optim.Adam(network.parameters(), 1e-2)
    for _ in range(50):
        optimiser.zero_grad()
        torch.nn.functional.mse_loss(network(x)[:, 0], y).backward()
        optimiser.step()
    with torch.no_grad():
        told = torch.stack([network(torch.from_numpy(scaler(each)))[:, 0] for each in (features[:20], *others)])
    assert float((told.max(0).values - told.min(0).values).max()) < 1e-3  # eV/atom


def standard_features(read: list[Crystal]) -> np.ndarray:
    rows = [numbers(crystal, "spglib") for crystal in read]
    columns = ["a", "b", "c", "alpha", "beta", "gamma", "volume", "spacegroup_number", "num_atoms"]
    table = pd.DataFrame([cell for cell, _ in rows], columns=columns).assign(formula=[formula for _, formula in rows])
    return make_featurizer("rich+structure", cell="standard").transform(table)
