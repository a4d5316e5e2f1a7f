"""Agreement of grain maps: worked by hand, by other libraries, and by the laws they obey."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage
from skimage.metrics import variation_of_information
from sklearn.metrics import adjusted_rand_score

from ray_fed.micrographs.agreement import (
    SegmentationScores,
    adjusted_rand_index,
    agreement,
    agreement_of,
    contingency,
    mean_average_precision,
    segment_contingency,
)
from ray_fed.micrographs.agreement import variation_of_information as our_variation
from ray_fed.micrographs.polycrystals import polycrystal_set

masks = hnp.arrays(np.uint8, (9, 11), elements=st.integers(0, 1))


def stripes(*widths: int, height: int = 4) -> np.ndarray:
    """Return grains of these widths side by side, one boundary column between them."""
    columns: list[int] = []
    for width in widths:
        columns += [0] * width + [1]
    return np.tile(np.array(columns[:-1], np.uint8), (height, 1))


@pytest.fixture(scope="module")
def truth() -> np.ndarray:
    return polycrystal_set("iron", 0, 1, size=128).masks[0]


def corrupted(mask: np.ndarray, seed: int) -> np.ndarray:
    """Return a mask with a part of its boundary rubbed out, a scratch, and noise."""
    rng = np.random.default_rng(seed)
    worn = mask.copy()
    worn[ndimage.zoom(rng.random((16, 16)), 8, order=0) < 0.15] = 0
    worn[40 + seed] = 1
    worn[rng.random(mask.shape) < 0.002] = 1
    return worn


# ---- MAP


def test_a_perfect_prediction_has_map_1_vi_0_and_ari_1(truth):
    assert agreement(truth, truth) == SegmentationScores(
        map=1.0, vi=0.0, vi_under=0.0, vi_over=0.0, ari=1.0, vi_undefined=0.0
    )


def test_map_of_two_grains_of_which_one_is_cut_short_is_worked_by_hand():
    # Grains of 10 and 9 columns against 10 and 7 (+2 boundary): IoU 1 and 7/9 = .777..., a match at .50 to .75, that is
    # at 6 thresholds of 10: AP = 1 there and 1 / 3 at the other 4.
    true, predicted = stripes(10, 9), stripes(10, 9)
    predicted[:, -2:] = 1
    assert mean_average_precision(contingency(predicted, true)) == pytest.approx((6 * 1 + 4 / 3) / 10)


@pytest.mark.parametrize("kept", range(11, 20))
def test_an_iou_equal_to_a_threshold_is_no_match(kept):
    # One grain of 20 columns, predicted with `kept`: IoU = kept / 20 is itself a threshold and must not match there.
    true, predicted = stripes(20), stripes(20)
    predicted[:, kept:] = 1
    assert mean_average_precision(contingency(predicted, true)) == pytest.approx((kept - 10) / 10)


def test_half_a_grain_is_no_match_at_any_threshold():
    true, predicted = stripes(20), stripes(20)
    predicted[:, 10:] = 1
    assert mean_average_precision(contingency(predicted, true)) == 0


def test_grains_touching_only_at_a_corner_are_two():
    checkers = np.array([[0, 1], [1, 0]], np.uint8)
    assert contingency(checkers, checkers).num_true == 2


@pytest.mark.parametrize(("predicted", "true", "expected"), [(1, 1, 1.0), (1, 0, 0.0), (0, 1, 0.0)])
def test_map_without_grains_is_1_where_there_are_none_and_0_where_one_side_has_some(predicted, true, expected):
    shape = (5, 5)
    found = agreement(np.full(shape, predicted, np.uint8), np.full(shape, true, np.uint8))
    assert found.map == expected


# ---- VI


def test_merging_two_equal_grains_costs_one_bit_of_under_segmentation():
    true, predicted = stripes(8, 8), stripes(8, 8)
    predicted[:] = 0
    assert our_variation(contingency(predicted, true)) == (pytest.approx(1.0), 0.0, False)


def test_splitting_a_grain_in_half_costs_one_bit_of_over_segmentation():
    assert our_variation(contingency(stripes(8, 8), stripes(17))) == (0.0, pytest.approx(1.0), False)


def test_vi_without_a_common_grain_is_10_and_says_so():
    found = agreement(np.ones((4, 4), np.uint8), np.zeros((4, 4), np.uint8))
    assert (found.vi, found.vi_under, found.vi_over, found.vi_undefined) == (10, 5, 5, 1)


def test_a_scratch_only_splits_and_a_missing_edge_only_merges(truth):
    scratched, worn = truth.copy(), truth.copy()
    scratched[60:62] = 1
    worn[:, 60:70] = 0
    assert agreement(scratched, truth).vi_under == pytest.approx(0, abs=1e-12)
    assert agreement(scratched, truth).vi_over > 0.05
    assert agreement(worn, truth).vi_over == pytest.approx(0, abs=1e-12)
    assert agreement(worn, truth).vi_under > 0.05


def test_islands_inside_boundaries_lower_map_but_not_vi(truth):
    dotted = truth.copy()
    # A pixel amid a 3x3 block of boundary: an island of its own that meets no true grain.
    amid = ndimage.binary_erosion(truth, np.ones((3, 3))) & (np.add.outer(np.arange(128), np.arange(128)) % 5 == 0)
    dotted[amid] = 0
    found = agreement(dotted, truth)
    assert found.map < 0.9
    assert found.vi == 0


@pytest.mark.parametrize("seed", range(4))
def test_vi_equals_scikit_image_over_the_pixels_that_are_grain_on_both_sides(truth, seed):
    predicted = corrupted(truth, seed)
    (p, _), (t, _) = ndimage.label(predicted == 0), ndimage.label(truth == 0)
    common = (p > 0) & (t > 0)
    over, under = variation_of_information(t[common][None], p[common][None])
    found = agreement(predicted, truth)
    assert (found.vi_over, found.vi_under) == (pytest.approx(over, abs=1e-12), pytest.approx(under, abs=1e-12))


# ---- ARI


@pytest.mark.parametrize("seed", range(4))
def test_ari_equals_scikit_learn_over_all_pixels(truth, seed):
    predicted = corrupted(truth, seed)
    (p, _), (t, _) = ndimage.label(predicted == 0), ndimage.label(truth == 0)
    assert agreement(predicted, truth).ari == pytest.approx(adjusted_rand_score(t.ravel(), p.ravel()), abs=1e-12)


def test_ari_of_all_boundary_against_all_grain_is_1():
    assert agreement(np.ones((6, 6), np.uint8), np.zeros((6, 6), np.uint8)).ari == 1


def test_ari_of_a_single_pixel_is_1():
    assert agreement(np.zeros((1, 1), np.uint8), np.zeros((1, 1), np.uint8)).ari == 1


@given(masks, masks)
@settings(max_examples=60)
def test_ari_of_any_two_masks_equals_scikit_learn(predicted, true):
    (p, _), (t, _) = ndimage.label(predicted == 0), ndimage.label(true == 0)
    ours = adjusted_rand_index(contingency(predicted, true))
    assert ours == pytest.approx(adjusted_rand_score(t.ravel(), p.ravel()), abs=1e-9)


# ---- laws and the table


@given(masks, masks)
@settings(max_examples=60)
def test_swapping_prediction_and_truth_swaps_the_parts_of_vi_and_keeps_the_rest(first, second):
    there, back = agreement(first, second), agreement(second, first)
    assert there.map == pytest.approx(back.map)
    assert there.ari == pytest.approx(back.ari)
    assert (there.vi_under, there.vi_over) == (pytest.approx(back.vi_over), pytest.approx(back.vi_under))


@given(masks, masks)
@settings(max_examples=60)
def test_metrics_stay_in_their_ranges(predicted, true):
    found = agreement(predicted, true)
    assert 0 <= found.map <= 1
    assert found.ari <= 1 + 1e-12
    assert min(found.vi_under, found.vi_over) >= 0
    assert found.vi == pytest.approx(found.vi_under + found.vi_over)


@given(masks, masks)
@settings(max_examples=60)
def test_counting_only_the_cells_that_occur_gives_the_same_table(predicted, true):
    dense, sparse = contingency(predicted, true, sparse=False), contingency(predicted, true, sparse=True)
    for name in ("predicted", "true", "count"):
        np.testing.assert_array_equal(getattr(dense, name), getattr(sparse, name))
    assert agreement_of(dense) == agreement_of(sparse)


def test_the_table_counts_every_pixel_once(truth):
    table = contingency(corrupted(truth, 0), truth)
    predicted_size, true_size = table.sizes()
    assert table.count.sum() == predicted_size.sum() == true_size.sum() == truth.size
    assert true_size[0] == truth.sum()


def test_ten_thousand_islands_need_no_table_of_a_hundred_million_cells():
    rng = np.random.default_rng(0)
    predicted, true = rng.integers(0, 2, (2, 400, 400)).astype(np.uint8)
    table = contingency(predicted, true)
    assert table.num_predicted * table.num_true > 50_000_000
    assert len(table.count) < 40_000
    assert agreement_of(table).map < 0.2


def test_labels_beyond_the_range_of_32_bit_keys_are_counted_right():
    labels = np.array([[70_000, 70_000], [1, 0]])
    table = segment_contingency(labels, labels, 70_000, 70_000)
    assert table.predicted.tolist() == table.true.tolist() == [0, 1, 70_000]
    assert table.count.tolist() == [1, 1, 2]


def test_masks_of_different_shapes_are_refused():
    with pytest.raises(ValueError, match="cannot be compared"):
        agreement(np.zeros((4, 4), np.uint8), np.zeros((4, 5), np.uint8))
