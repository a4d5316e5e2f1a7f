"""Grain-size numbers: against structures that are known, and refused where they would say nothing."""

import numpy as np
import pytest
from scipy.spatial import cKDTree

from ray_fed.micrographs.grain_sizes import (
    astm_grain_size_number,
    grain_sizes,
    intercept_grain_size_number,
    mean_over_fields,
)
from ray_fed.micrographs.polycrystals import boundary_mask

PIXEL_UM, SIDE = 0.5, 220


def voronoi(area: float, rng: np.random.Generator) -> np.ndarray:
    """Return grain numbers int [SIDE, SIDE] of a Poisson-Voronoi structure of a mean area, pixels."""
    reach = SIDE + 100
    sites = rng.random((rng.poisson(reach**2 / area), 2)) * reach - 50
    rows, columns = np.mgrid[:SIDE, :SIDE]
    return cKDTree(sites).query(np.c_[rows.ravel(), columns.ravel()])[1].reshape(SIDE, SIDE)


def lines_of_one_pixel(grains: np.ndarray) -> np.ndarray:
    mask = np.zeros(grains.shape, np.uint8)
    mask[:-1] |= grains[:-1] != grains[1:]
    mask[:, :-1] |= grains[:, :-1] != grains[:, 1:]
    return mask


def mean_chord(grains: np.ndarray) -> float:
    crossed = (grains[1:] != grains[:-1]).sum() + (grains[:, 1:] != grains[:, :-1]).sum()
    return 2 * SIDE * (SIDE - 1) / crossed


@pytest.mark.parametrize("lines", [1, 3])
@pytest.mark.parametrize("area", [25, 60, 120, 300])
def test_the_number_of_a_known_structure_is_right_or_refused(area, lines):
    structures = [voronoi(area, np.random.default_rng([area, number])) for number in range(2)]
    draw = boundary_mask if lines == 3 else lines_of_one_pixel
    found = [grain_sizes(draw(grains)) for grains in structures]
    number = np.mean([sizes.astm_g(PIXEL_UM) for sizes in found])
    if (area, lines) == (25, 3):
        assert np.isnan(number)
        assert "grains are too small for these pixels" in found[0].why_no_number(PIXEL_UM)
    else:
        assert number == pytest.approx(astm_grain_size_number(1e6 / (area * PIXEL_UM**2)), abs=0.2)
    by_chords = np.mean([sizes.astm_g_of_intercepts(PIXEL_UM) for sizes in found])
    assert np.isnan(by_chords) == (lines == 3 and area <= 120)
    if not np.isnan(by_chords):
        chord_mm = np.mean([mean_chord(grains) for grains in structures]) * PIXEL_UM / 1000
        assert by_chords == pytest.approx(intercept_grain_size_number(float(chord_mm)), abs=0.2)


def squares() -> np.ndarray:
    """Return 3x3 grains of 9x9 pixels, lines one pixel wide: 29x29."""
    mask = np.zeros((29, 29), np.uint8)
    mask[[9, 19]] = mask[:, [9, 19]] = 1
    return mask


def test_the_two_numbers_of_the_standard_agree_at_the_standards_ratio():
    chord_mm, density = 0.02, (0.89 / 0.02) ** 2
    assert intercept_grain_size_number(chord_mm) == pytest.approx(float(astm_grain_size_number(density)), abs=0.01)
    assert grain_sizes(squares()).mean_intercept_px() == pytest.approx(29 * 28 / (29 * 2))


@pytest.mark.parametrize(
    ("mask", "pixel_size_um", "reason"),
    [
        (np.zeros((40, 40), np.uint8), 0.5, "no boundary was found"),
        (np.ones((40, 40), np.uint8), 0.5, "nothing but boundary was found"),
        (squares(), None, "the pixel size is not known"),
        (squares(), 5000.0, "really in micrometres?"),
    ],
)
def test_no_number_is_told_without_grains_or_a_scale_that_can_be_right(mask, pixel_size_um, reason):
    sizes = grain_sizes(mask)
    assert reason in sizes.why_no_number(pixel_size_um)
    assert np.isnan(sizes.astm_g(pixel_size_um or 1.0)) == (pixel_size_um is not None)


def test_a_mean_over_fields_has_students_interval():
    found = mean_over_fields([100.0, 120.0, float("nan"), 110.0])
    assert (found.num_fields, found.mean, found.spread) == (3, 110.0, 10.0)
    assert found.half_interval == pytest.approx(4.3027 * 10 / 3**0.5, rel=1e-4)
    assert found.relative_accuracy == pytest.approx(100 * found.half_interval / 110)
    assert np.isnan(mean_over_fields([5.0]).half_interval)
