"""A crystal's graph is the crystal's: no order of atoms, cell, origin or orientation, and no other crystal of a batch,
changes what a network says of it."""

from functools import cache

import numpy as np
import pytest
import torch
from pymatgen.core import Lattice, Structure

from ray_fed.errors import DataError
from ray_fed.learning.models import seeded
from ray_fed.materials.crystal import Crystal, CrystalSites
from ray_fed.materials.databases.crystal_batches import packed_sites, unpacked_sites
from ray_fed.materials.finder_words import quiet_finders
from ray_fed.materials.graphs.crystal_graph_network import CrystalNetwork, GraphSettings
from ray_fed.materials.graphs.graph_rows import NO_NEIGHBOURS, GraphRows
from ray_fed.materials.graphs.graph_task import NO_SITES, with_graphs
from ray_fed.materials.graphs.neighbours import CUTOFF, NEAREST, neighbours
from ray_fed.materials.standard_cells import standard_cell
from ray_fed.materials.structures import parse_structure
from tests.crystal_settings import rewritten

CUBIC = [[0, 0, 0], [0.5, 0.5, 0.5], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]]


@cache
def parsed() -> dict[str, Crystal]:
    structures = {
        "rocksalt": Structure.from_spacegroup("Fm-3m", Lattice.cubic(5.64), ["Na", "Cl"], [[0, 0, 0], [0.5, 0, 0]]),
        # Of oxygen 2 + 12 neighbours, of which 4 are barium and 8 oxygen, are as near as the twelfth.
        "perovskite": Structure(Lattice.cubic(4.0), ["Ba", "Ti", "O", "O", "O"], CUBIC),
        "triclinic": Structure(Lattice.from_parameters(4.1, 5.3, 6.2, 80, 71, 94), ["K", "N", "O"],
                               [[0, 0, 0], [0.3, 0.42, 0.55], [0.61, 0.22, 0.13]]),
        "molecule in a box": Structure(Lattice.cubic(11), ["H", "H"], [[0, 0, 0], [0.067, 0, 0]]),
    }  # fmt: skip
    return {name: parse_structure(structure.as_dict()) for name, structure in structures.items()}


def sites_of(crystal: Crystal) -> CrystalSites:
    assert crystal.numbers is not None
    return CrystalSites(crystal.vectors, crystal.positions, crystal.numbers)


def rows_of(*sites: CrystalSites) -> GraphRows:
    table = np.zeros((len(sites), 2), np.float32)
    return GraphRows.of(table, [one.numbers for one in sites], [neighbours(one) for one in sites])


def said(*sites: CrystalSites) -> np.ndarray:
    network = seeded(lambda: CrystalNetwork(GraphSettings(16, 2, 8), 2, 1), 0)
    with torch.no_grad():
        return network(rows_of(*sites))[:, 0].numpy()


@pytest.mark.parametrize("name", parsed())
def test_no_writing_of_a_crystal_changes_what_a_network_says(name):
    crystal, random = parsed()[name], np.random.default_rng(0)
    ours = said(sites_of(crystal))
    with quiet_finders():
        standard = standard_cell(crystal, "spglib", 0.1).sites
    others = said(*(sites_of(rewritten(crystal, random)) for _ in range(8)), standard)
    np.testing.assert_allclose(others, np.repeat(ours, 9), rtol=0, atol=2e-5)


def test_ties_at_the_twelfth_neighbour_are_all_in_and_the_twelfth_counts_in_full():
    found = neighbours(sites_of(parsed()["perovskite"]))
    distances = np.linalg.norm(found.vectors, axis=1)
    oxygen = slice(int(found.degrees[:2].sum()), int(found.degrees[:3].sum()))
    assert found.degrees.tolist()[2:] == [14, 14, 14]
    assert np.sort(distances[oxygen]) == pytest.approx([2.0] * 2 + [8**0.5] * 12)
    assert (found.degrees >= NEAREST).all()
    assert found.weights.min() == 1.0
    # The numbers of each atom's neighbours, by hand: titanium has 6 oxygens, and then 8 barium.
    titanium = found.sources[found.degrees[0] : found.degrees[:2].sum()]
    assert sorted(titanium.tolist()) == [0] * 8 + [2, 2, 3, 3, 4, 4]


def test_what_a_network_says_moves_as_smoothly_as_an_atom_does():
    crystal = sites_of(parsed()["triclinic"])
    shifts = np.linspace(0, 0.2, 401)  # neighbours come and go on the way
    moved = [CrystalSites(crystal.vectors, crystal.positions + np.outer((0, 1, 0), (0, s, 0)), crystal.numbers)
             for s in shifts]  # fmt: skip
    assert len({len(neighbours(one).sources) for one in moved}) > 3
    values = said(*moved)
    assert np.abs(np.diff(values)).max() < 10 * (values.max() - values.min()) / len(shifts)


def test_an_atom_that_no_other_is_near_has_no_neighbours_and_a_prediction():
    alone = CrystalSites(np.eye(3) * 20.0, np.zeros((1, 3)), np.array([2]))
    assert neighbours(alone).degrees.tolist() == [0]
    assert np.isfinite(said(alone)).all()
    few = neighbours(sites_of(parsed()["molecule in a box"]))
    assert few.degrees.tolist() == [1, 1]
    assert np.linalg.norm(few.vectors, axis=1).max() < CUTOFF


@pytest.mark.parametrize(
    ("sites", "message"),
    [
        (CrystalSites(np.eye(3) * 40, np.random.default_rng(0).random((501, 3)), np.ones(501, int)), "'501' atoms"),
        (CrystalSites(np.diag([0.01, 0.01, 2e5]), np.zeros((1, 3)), np.ones(1, int)), "thin; no atoms fit"),
        (CrystalSites(np.eye(3) * 4, np.zeros((1, 3)), np.zeros(1, int)), "several elements or is partly empty"),
    ],
)
def test_what_makes_no_graph_is_refused_with_a_reason(sites, message):
    with pytest.raises(DataError, match=message):
        neighbours(sites)


def test_a_half_occupied_site_is_known_as_such_from_every_kind_of_structure():
    structure = Structure(Lattice.cubic(3.9), [{"Li": 0.5}, {"Fe": 0.5, "Co": 0.5}, "O2-"], CUBIC[:3])
    for crystal in (parse_structure(structure.as_dict()), parse_structure(structure.to(fmt="cif"))):
        assert crystal.numbers is not None
        assert sorted(crystal.numbers.tolist()) == [0, 0, 8]


def test_a_crystal_is_predicted_alone_as_in_a_batch_and_rows_are_taken_as_of_a_tensor():
    crystals = [sites_of(crystal) for crystal in parsed().values()]
    rows, alone = rows_of(*crystals), np.concatenate([said(one) for one in crystals])
    np.testing.assert_allclose(said(*crystals), alone, rtol=0, atol=1e-6)
    order = torch.tensor([3, 0, 2, 2])
    taken = rows.index_select(0, order)
    again = rows_of(*(crystals[at] for at in order.tolist()))
    for name in ("numbers", "sizes", "degrees", "sources", "vectors", "begins", "ends"):
        assert torch.equal(getattr(taken, name), getattr(again, name)), name
    mask = np.array([True, False, True, False])
    assert rows[mask].sizes.tolist() == rows[torch.from_numpy(mask)].sizes.tolist() == rows.sizes[mask].tolist()
    assert [len(part) for part in rows.split(3)] == [3, 1]
    assert len(rows[:0]) == len(rows[1:1].split(3)[0]) == 0
    assert rows[:0].numel() == 0


def test_graphs_are_kept_by_the_content_of_crystals_and_made_again_where_it_changed(tmp_path):
    crystals = [sites_of(crystal) for crystal in parsed().values()]
    table, given = np.zeros((5, 2)), ["", "", "", "", "no formula"]
    found = [with_graphs(table, given, [*crystals, None], tmp_path) for _ in range(2)]
    assert len(list(tmp_path.glob("*.npz"))) == 1
    assert torch.equal(found[0][0].vectors, found[1][0].vectors)
    assert found[0][1] == found[1][1] == given
    assert found[0][0].sizes.tolist() == [*(len(one.numbers) for one in crystals), 0]
    closer = CrystalSites(crystals[0].vectors * 0.99, crystals[0].positions, crystals[0].numbers)
    changed, reasons = with_graphs(table, [""] * 5, [closer, *crystals[1:], None], tmp_path)
    assert reasons == ["", "", "", "", NO_SITES]
    assert len(list(tmp_path.glob("*.npz"))) == 2
    assert changed.vectors.norm(dim=1).min() < found[0][0].vectors.norm(dim=1).max()


def test_sites_are_packed_and_unpacked_with_gaps():
    sites = [sites_of(parsed()["rocksalt"]), None, sites_of(parsed()["triclinic"])]
    again = unpacked_sites(packed_sites(sites), 3)
    assert again[1] is None
    for one, other in zip(sites[::2], again[::2], strict=True):
        assert one is not None
        assert other is not None
        assert np.array_equal(one.numbers, other.numbers)
        assert np.array_equal(one.vectors, other.vectors)
    assert NO_NEIGHBOURS.degrees.size == 0
