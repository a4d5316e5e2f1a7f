"""Crystal graphs: geometry by hand, invariances, models through bytes."""

import numpy as np
import pandas as pd

from ray_fed.model_library.building import BuildJob, run_job
from ray_fed.model_library.cards import unpack
from ray_fed.model_library.crystal_graph import (
    NEIGHBOURS,
    crystal_graphs,
    nearest,
    predict_structures,
    seeded_crystal_graph,
)
from ray_fed.model_library.property_tables import STRUCTURE, PropertyTable

ROCKSALT = np.array([[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0],
                     [0.5, 0.5, 0.5], [0.5, 0, 0], [0, 0.5, 0], [0, 0, 0.5]])  # fmt: skip


def rocksalt(a, cation, anion, sites=ROCKSALT, order=range(8)):
    numbers = np.array([cation] * 4 + [anion] * 4)[list(order)]
    return {"a": a, "b": a, "c": a, "alpha": 90.0, "beta": 90.0, "gamma": 90.0, "numbers": numbers,
            "frac_coords": sites[list(order)].ravel(), "formula": f"x{a:.4f}{cation}{anion}"}  # fmt: skip


def test_the_neighbours_of_rocksalt_are_six_of_the_other_and_six_of_the_same_kind():
    neighbours, distances = nearest(np.eye(3) * 4.0, ROCKSALT)
    np.testing.assert_allclose(distances[:, :6], 2.0, rtol=1e-6)
    np.testing.assert_allclose(distances[:, 6:], 4.0 / np.sqrt(2), rtol=1e-6)
    assert (neighbours[0, :6] >= 4).all()
    assert (neighbours[0, 6:] < 4).all()


def test_a_wide_cell_finds_its_twelve_neighbours_beyond_the_cutoff():
    _, distances = nearest(np.eye(3) * 20.0, np.zeros((1, 3)))
    assert distances.shape == (1, NEIGHBOURS)
    np.testing.assert_allclose(distances[0, :6], 20.0)


def test_predictions_do_not_depend_on_origin_order_of_atoms_or_neighbours_in_the_batch():
    shifted = (ROCKSALT + np.array([0.13, 0.27, 0.41])) % 1
    rows = [rocksalt(4.2, 12, 8), rocksalt(4.2, 12, 8, shifted), rocksalt(4.2, 12, 8, order=[3, 6, 0, 7, 1, 5, 2, 4]),
            rocksalt(5.6, 11, 17)]  # fmt: skip
    graphs, reasons = crystal_graphs(pd.DataFrame(rows))
    assert reasons == [""] * 4
    network = seeded_crystal_graph(0)
    values = network(graphs)[:, 0].detach().numpy()
    np.testing.assert_allclose(values[1:3], values[0], rtol=1e-5)
    assert abs(values[3] - values[0]) > 1e-4
    alone = network(graphs.take(np.array([3])))[:, 0].detach().numpy()
    np.testing.assert_allclose(alone, values[3:], rtol=1e-5)


def test_a_crystal_graph_model_learns_and_goes_through_bytes():
    draw = np.random.default_rng(0)
    rows = [rocksalt(float(a), int(draw.integers(3, 30)), 8) for a in draw.uniform(3.8, 6.0, 80)]
    frame = pd.DataFrame(rows).assign(value=lambda table: table["a"])
    table = PropertyTable("length", "Å", "made", STRUCTURE, "inorganic", frame)
    result = run_job(BuildJob(table.key, "crystal_graph", "crystal_graph", 1, 0), table)
    assert result.failures == []
    assert result.models[0].row["mae"] < 0.5 * result.models[0].row["baseline_mae"]
    arrays, card = unpack(result.models[0].weights, result.models[0].card, "test")
    predicted, reasons = predict_structures(arrays, card, frame.assign(frac_coords=[[], *frame["frac_coords"][1:]]))
    assert np.isnan(predicted[0])
    assert "0 atoms" in reasons[0]
    assert np.isfinite(predicted[1:]).all()
