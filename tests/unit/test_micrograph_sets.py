"""Micrographs: synthetic ones, folders of files, and splits by micrograph."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage

from ray_fed.errors import ConfigError, DataError
from ray_fed.micrographs.agreement import agreement
from ray_fed.micrographs.folders import MicrographFolder
from ray_fed.micrographs.image_files import read_grey
from ray_fed.micrographs.mask_meaning import MaskMeaning
from ray_fed.micrographs.micrograph_set import MicrographSet, joined
from ray_fed.micrographs.polycrystals import STYLES, boundary_mask, grains_of, polycrystal_set, render, style_at

SHARED = Path(__file__).parents[3] / "shared" / "datasets"
shared_only = pytest.mark.skipif(not SHARED.is_dir(), reason="the data sets of ../shared are not here")


def tiles_of(*counts: int) -> MicrographSet:
    """Return tiles of micrographs "0", "1", ... with these many tiles each; a tile's grey is its number."""
    sources = tuple(str(source) for source, count in enumerate(counts) for _ in range(count))
    images = np.zeros((len(sources), 4, 4), np.uint8) + np.arange(len(sources), dtype=np.uint8)[:, None, None]
    return MicrographSet("lab", images, np.zeros_like(images), sources)


def greys(part: MicrographSet) -> list[int]:
    return part.images[:, 0, 0].tolist()


# ---- splits


@given(st.lists(st.integers(1, 7), min_size=3, max_size=12), st.integers(0, 99))
@settings(max_examples=60)
def test_no_micrograph_is_in_two_parts_and_no_tile_is_lost(counts, seed):
    parts = tiles_of(*counts).train_validation_test(0.2, 0.3, seed)
    assert sorted(grey for part in parts for grey in greys(part)) == list(range(sum(counts)))
    assert all(len(part) for part in parts)
    owners = [set(part.sources) for part in parts]
    assert sum(len(names) for names in owners) == len(set().union(*owners))


@given(st.lists(st.integers(1, 7), min_size=4, max_size=12), st.integers(0, 99))
@settings(max_examples=40)
def test_every_tile_is_held_out_in_exactly_one_fold(counts, seed):
    folds = tiles_of(*counts).folds(4, seed)
    assert sorted(grey for _, held in folds for grey in greys(held)) == list(range(sum(counts)))
    for rest, held in folds:
        assert sorted(greys(rest) + greys(held)) == list(range(sum(counts)))
        assert not set(rest.sources) & set(held.sources)


def test_shares_are_met_when_micrographs_are_alike():
    train, validation, test = tiles_of(*[4] * 20).train_validation_test(0.15, 0.2, 0)
    assert (len(train), len(validation), len(test)) == (52, 12, 16)


def test_a_share_of_0_leaves_that_part_empty():
    train, validation, test = tiles_of(2, 2).train_validation_test(0.5, 0.0, 0)
    assert (len(train), len(validation), len(test)) == (2, 2, 0)


def test_another_seed_gives_another_split():
    first, second = (greys(tiles_of(*[1] * 30).train_validation_test(0.2, 0.2, seed)[2]) for seed in (0, 1))
    assert first != second
    assert first == greys(tiles_of(*[1] * 30).train_validation_test(0.2, 0.2, 0)[2])


def test_a_silo_of_one_micrograph_is_refused_by_name_whatever_its_number_of_tiles():
    with pytest.raises(DataError, match=r"silo 'lab' has 1 micrograph\(s\).*add micrographs"):
        tiles_of(50).train_validation_test(0.2, 0.2, 0)


def test_masks_that_hold_something_else_than_0_and_1_are_refused():
    with pytest.raises(DataError, match="a mask holds 255"):
        MicrographSet("lab", np.zeros((1, 4, 4), np.uint8), np.full((1, 4, 4), 255, np.uint8), ("a",))


def test_pooled_tiles_know_their_silo_and_lose_a_pixel_size_that_is_not_common():
    north, south = replace(tiles_of(1, 1), name="north"), replace(tiles_of(1), name="south")
    pool = joined("all", [north, south])
    assert pool.sources == ("north/0", "north/1", "south/0")
    assert pool.pixel_size_um is None


# ---- synthetic polycrystals


def test_an_image_depends_on_seed_style_and_index_alone():
    many, later = polycrystal_set("iron", 3, 5, size=64), polycrystal_set("iron", 3, 2, size=64, first=3)
    np.testing.assert_array_equal(many.images[3:], later.images)
    np.testing.assert_array_equal(many.masks[3:], later.masks)
    assert many.sources[3:] == later.sources
    assert (many.images[0] != many.images[1]).any()
    assert (many.images[0] != polycrystal_set("iron", 4, 1, size=64).images[0]).any()


def test_masks_are_lines_that_separate_grains_of_about_the_asked_spacing():
    tiles = polycrystal_set("austenite", 0, 6, size=192, spacing=32)
    grains = [ndimage.label(mask == 0)[1] for mask in tiles.masks]  # type: ignore[index]
    # One site a spacing squared, of which 12 % are left out and a few more are overgrown; the frame adds cut ones.
    assert 0.75 * 36 < np.mean(grains) < 1.6 * 36
    assert 0.1 < tiles.masks.mean() < 0.3


def test_both_styles_have_the_same_looks_at_gap_0_and_opposite_ones_at_gap_1():
    first, second = (np.hstack(list(vars(style_at(style, 0)).values())) for style in STYLES)
    np.testing.assert_allclose(first, second, rtol=1e-12)
    austenite, iron = (polycrystal_set(style, 0, 8, size=96) for style in STYLES)
    assert austenite.images.mean() - iron.images.mean() > 50
    nearer = [polycrystal_set(style, 0, 8, size=96, gap=0).images.mean() for style in STYLES]
    assert abs(nearer[0] - nearer[1]) < 10


def test_boundaries_are_darker_than_grains_in_both_styles():
    for style in STYLES:
        tiles = polycrystal_set(style, 0, 4, size=128)
        assert tiles.images[tiles.masks == 0].mean() - tiles.images[tiles.masks == 1].mean() > 10


def test_only_austenite_has_dark_lines_inside_its_grains():
    def dark_inside(style) -> float:
        tiles = polycrystal_set(style, 0, 6, size=128)
        inside = np.stack([ndimage.binary_erosion(mask == 0, np.ones((3, 3))) for mask in tiles.masks])
        smooth = ndimage.median_filter(tiles.images, (1, 9, 9)).astype(int)
        return float(((smooth - tiles.images)[inside] > 40).mean())

    assert dark_inside("austenite") > 5 * dark_inside("iron")


def test_filling_the_lines_of_a_mask_brings_its_grains_back():
    mask = polycrystal_set("iron", 1, 1, size=128).masks[0]
    again = boundary_mask(grains_of(mask))
    assert agreement(again, mask).map > 0.8
    assert agreement(again, mask).ari > 0.9


def test_the_true_renderer_shows_a_mask_in_the_other_style():
    iron = polycrystal_set("iron", 1, 4, size=128)
    rng = np.random.default_rng(0)
    rendered = np.stack([render(mask, "austenite", rng) for mask in iron.masks])
    assert abs(rendered.mean() - polycrystal_set("austenite", 0, 4, size=128).images.mean()) < 12
    assert rendered[iron.masks == 0].mean() - rendered[iron.masks == 1].mean() > 10


def test_a_mask_without_grains_can_be_rendered():
    assert render(np.ones((32, 32), np.uint8), "iron", np.random.default_rng(0)).shape == (32, 32)


@pytest.mark.parametrize(("style", "gap", "words"), [("steel", 1.0, "austenite, iron"), ("iron", 1.5, "between 0")])
def test_unknown_styles_and_gaps_are_refused(style, gap, words):
    with pytest.raises(ConfigError, match=words):
        polycrystal_set(style, 0, 1, gap=gap)


# ---- folders of files


def silo_folder(root: Path, masks: dict[str, np.ndarray], **images: np.ndarray) -> Path:
    """Write masks, and an image of each one's size where none is given."""
    for name in ("images", "labels"):
        (root / name).mkdir()
    for name, mask in masks.items():
        Image.fromarray(mask).save(root / "labels" / f"{name}.png")
        grey = images.get(name, np.arange(mask.size).reshape(mask.shape).astype(np.uint8))
        Image.fromarray(grey).save(root / "images" / f"{name}.png")
    return root


def lines(high: int = 1, size: int = 16) -> np.ndarray:
    mask = np.zeros((size, size), np.uint8)
    mask[::4] = high
    return mask


def read(root: Path, **options) -> MicrographSet:
    return MicrographFolder(str(root), **options).read("lab")


@pytest.mark.parametrize("high", [1, 255])
def test_masks_of_0_and_1_and_of_0_and_255_mean_the_same(tmp_path, high):
    tiles = read(silo_folder(tmp_path, {"a": lines(high), "b": lines(high)}), pixel_size_um=0.5)
    np.testing.assert_array_equal(tiles.masks, np.stack([lines(), lines()]))
    assert (tiles.sources, tiles.pixel_size_um, tiles.name) == (("a", "b"), 0.5, "lab")


def test_classes_are_not_guessed_but_taken_when_named(tmp_path):
    classes = lines() + lines()[::-1] * 2
    root = silo_folder(tmp_path, {"a": classes})
    with pytest.raises(DataError, match=r"silo 'lab': mask a\.png holds 0, 1, 2.*boundary=2"):
        read(root)
    np.testing.assert_array_equal(read(root, meaning=MaskMeaning(boundary=(2,))).masks[0], classes == 2)
    np.testing.assert_array_equal(read(root, meaning=MaskMeaning(boundary=(1, 2))).masks[0], classes > 0)


def test_boundaries_can_be_drawn_where_the_class_changes(tmp_path):
    halves = np.repeat(np.array([[0, 2]], np.uint8), 8, 1).repeat(16, 0)
    mask = read(silo_folder(tmp_path, {"a": halves}), meaning=MaskMeaning(between_classes=True)).masks[0]
    assert np.flatnonzero(mask[0]).tolist() == [6, 7, 8]


def test_a_mask_of_grains_instead_of_boundaries_is_noticed(tmp_path):
    root = silo_folder(tmp_path, {"a": 1 - lines()})
    with pytest.raises(DataError, match=r"75% of the mask pixels would be boundary; if 0 marks the boundaries"):
        read(root)
    np.testing.assert_array_equal(read(root, meaning=MaskMeaning(boundary=(0,))).masks[0], lines())


def test_a_mask_smeared_by_jpeg_is_refused_with_the_remedy_and_read_with_it(tmp_path):
    root = silo_folder(tmp_path, {"a": lines(255, 64)})
    (root / "labels/a.png").unlink()
    Image.fromarray(lines(255, 64)).save(root / "labels/a.jpg", quality=60)
    with pytest.raises(DataError, match=r"mask a\.jpg is smeared.*75% of it is dark.*threshold:12\d$"):
        read(root)
    np.testing.assert_array_equal(read(root, meaning=MaskMeaning(threshold=127)).masks[0], lines(1, 64))


@pytest.mark.parametrize(("value", "words"), [(0, "is empty"), (1, "has no grain")])
def test_a_mask_of_one_value_is_refused(tmp_path, value, words):
    with pytest.raises(DataError, match=rf"silo 'lab': mask b\.png {words}"):
        read(silo_folder(tmp_path, {"a": lines(), "b": np.full((16, 16), value, np.uint8)}))


def test_a_mask_of_another_size_than_its_image_is_refused(tmp_path):
    root = silo_folder(tmp_path, {"a": lines()}, a=np.zeros((16, 20), np.uint8))
    with pytest.raises(DataError, match=r"silo 'lab': a\.png is 16x20 pixels but its mask .*a\.png is 16x16"):
        read(root)


def test_images_of_different_sizes_must_be_tiled(tmp_path):
    root = silo_folder(tmp_path, {"a": lines(), "b": lines(1, 24)})
    with pytest.raises(DataError, match=r"b\.png is 24x24 pixels, a\.png is 16x16; .*tile="):
        read(root)
    tiles = read(root, tile=8)
    assert tiles.images.shape == (4 + 9, 8, 8)
    assert tiles.sources.count("b") == 9


def test_tiles_are_cut_side_by_side_from_the_middle(tmp_path):
    grey = np.arange(18 * 18).reshape(18, 18).astype(np.uint8)
    tiles = read(silo_folder(tmp_path, {"a": lines(1, 18)}, a=grey), tile=8)
    middle = np.block([[tiles.images[0], tiles.images[1]], [tiles.images[2], tiles.images[3]]])
    np.testing.assert_array_equal(middle, grey[1:17, 1:17])


def test_a_tile_bigger_than_an_image_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"a\.png is 16x16 pixels, smaller than tile=32"):
        read(silo_folder(tmp_path, {"a": lines()}), tile=32)


def test_an_image_without_a_mask_is_refused(tmp_path):
    root = silo_folder(tmp_path, {"a": lines(), "b": lines()})
    (root / "labels/b.png").unlink()
    with pytest.raises(DataError, match=r"images/b\.png has no mask of its name"):
        read(root)


def test_index_csv_or_a_pattern_tells_which_crops_belong_together(tmp_path):
    root = silo_folder(tmp_path, {"x_1": lines(), "x_2": lines(), "y_1": lines()})
    assert read(root).sources == ("x_1", "x_2", "y_1")
    assert read(root, source_pattern="(.+)_[0-9]").sources == ("x", "x", "y")
    (root / "index.csv").write_text("name,source_image\nx_1,p\nx_2,p\ny_1,q\n")
    assert read(root).sources == ("p", "p", "q")
    (root / "index.csv").write_text("name,source_image\nx_1,p\n")
    with pytest.raises(DataError, match=r"no line for 'x_2' \(2 such images\)"):
        read(root)


def test_missing_and_broken_files_are_named(tmp_path):
    with pytest.raises(DataError, match=r"silo 'lab': .*nowhere is not a folder"):
        read(tmp_path / "nowhere")
    root = silo_folder(tmp_path, {"a": lines()})
    (root / "images/a.png").write_bytes((root / "images/a.png").read_bytes()[:40])
    with pytest.raises(DataError, match=r"silo 'lab': .*a\.png"):
        read(root)
    (root / "images/a.png").write_text("no image at all")
    with pytest.raises(DataError, match=r"silo 'lab': .*a\.png is no image that can be read; save it again"):
        read(root)


# ---- single files


def test_rgb_becomes_the_luminance_that_pillow_gives(tmp_path):
    colours = np.random.default_rng(0).integers(0, 256, (9, 7, 3)).astype(np.uint8)
    Image.fromarray(colours).save(tmp_path / "a.png")
    np.testing.assert_array_equal(
        read_grey(tmp_path / "a.png", "me"), np.asarray(Image.fromarray(colours).convert("L"))
    )


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "CMYK"])
def test_a_grey_image_stays_grey_however_it_is_stored(tmp_path, mode):
    grey = np.arange(0, 240, 3, dtype=np.uint8).reshape(8, 10)
    Image.fromarray(grey).convert("RGB" if mode == "CMYK" else "L").convert(mode).save(tmp_path / "a.tif")
    np.testing.assert_allclose(read_grey(tmp_path / "a.tif", "me"), grey, atol=1)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bits_are_scaled_by_their_full_range(tmp_path, suffix):
    deep = np.array([[0, 257, 65535], [128 * 257, 300, 65000]], np.uint16)
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(deep).save(path)
    assert read_grey(path, "me").tolist() == [[0, 1, 255], [128, 1, 253]]


def test_rgb_of_16_bits_is_read_from_tiff(tmp_path):
    deep = np.full((5, 6, 3), 100 * 257, np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", deep, photometric="rgb")
    assert np.unique(read_grey(tmp_path / "a.tif", "me")).tolist() == [100]


def test_a_12_bit_camera_in_a_16_bit_file_must_be_named(tmp_path):
    Image.fromarray(np.array([[0, 4095]], np.uint16)).save(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"me: .*a\.png uses values up to 4095 of 65535.*bits=12"):
        read_grey(tmp_path / "a.png", "me")
    assert read_grey(tmp_path / "a.png", "me", bits=12).tolist() == [[0, 255]]
    with pytest.raises(DataError, match="more than bits=10 allow"):
        read_grey(tmp_path / "a.png", "me", bits=10)


def test_a_stack_of_images_is_refused(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((3, 8, 8), np.uint8), photometric="minisblack")
    with pytest.raises(DataError, match="holds 3 images"):
        read_grey(tmp_path / "a.tif", "me")


# ---- the data sets beside the repository


@shared_only
@pytest.mark.parametrize(
    ("name", "meaning", "tiles", "micrographs", "share"),
    [
        ("tbm", MaskMeaning(), 80, 21, 0.177),
        ("superalloy", MaskMeaning(boundary=(0,)), 92, 23, 0.486),
        ("superalloy", MaskMeaning(between_classes=True), 92, 23, 0.134),
        ("ebc", MaskMeaning(between_classes=True), 44, 22, 0.049),
    ],
)
def test_the_shared_micrographs_load_as_they_are(name, meaning, tiles, micrographs, share):
    found = MicrographFolder(str(SHARED / f"micrographs_{name}"), meaning=meaning).read(name)
    assert (len(found), len(set(found.sources)), found.size) == (tiles, micrographs, (256, 256))
    assert found.masks.mean() == pytest.approx(share, abs=0.001)
