"""Micrographs as laboratories have them: kinds of files, folder layouts, scales, data bars, outlines."""

import json
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageDraw
from scipy import ndimage

from ray_fed.errors import ConfigError, DataError
from ray_fed.micrographs.data_bar import data_bar_height
from ray_fed.micrographs.drawn_labels import grain_outlines, roi_zip
from ray_fed.micrographs.folders import MicrographFolder
from ray_fed.micrographs.image_files import ReadingRules, read_picture, read_values
from ray_fed.micrographs.mask_meaning import MaskMeaning
from ray_fed.micrographs.micrograph_set import MicrographSet
from ray_fed.micrographs.polycrystals import polycrystal_set
from ray_fed.micrographs.scale import common_pixel_size, pixel_size_in, resampled_mask

TILES = polycrystal_set("iron", 0, 3, size=96)
GREY = TILES.images[0]


def folder(root: Path, names=("a", "b", "c"), image="images/{}.png", mask="labels/{}.png") -> Path:
    for number, name in enumerate(names):
        for pattern, pixels in ((image, TILES.images[number % 3]), (mask, TILES.masks[number % 3] * 255)):
            path = root / pattern.format(name)
            path.parent.mkdir(exist_ok=True, parents=True)
            Image.fromarray(pixels).save(path)
    return root


def read(root: Path, **options) -> MicrographSet:
    return MicrographFolder(str(root), **options).read("lab")


# ---- single files


def written(path: Path, kind: str) -> Path:
    """Write GREY in some way."""
    whole = path / f"a.{'webp' if kind == 'webp' else 'tif'}"
    if kind == "webp":
        Image.fromarray(GREY).save(whole, lossless=True)
    elif kind == "float from 0 to 1":
        tifffile.imwrite(whole, (GREY / 255).astype(np.float32))
    elif kind == "float from 0 to 255":
        tifffile.imwrite(whole, GREY.astype(np.float32))
    elif kind == "channels one after another":
        tifffile.imwrite(whole, np.stack([GREY] * 3), photometric="rgb", planarconfig="separate")
    else:
        tifffile.imwrite(whole, GREY.astype(np.uint32) * 16843009)
    return whole


@pytest.mark.parametrize(
    "kind", ["webp", "float from 0 to 1", "float from 0 to 255", "channels one after another", "32 bit"]
)
def test_a_picture_is_the_same_however_it_is_stored(tmp_path, kind):
    np.testing.assert_allclose(read_picture(written(tmp_path, kind), "me").grey.astype(int), GREY, atol=1)


def test_floats_of_another_range_are_refused(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", GREY.astype(np.float32) - 20)
    with pytest.raises(DataError, match=r"floating-point values from -\d+ to \d+; scale them"):
        read_picture(tmp_path / "a.tif", "me")


def test_a_page_of_several_is_chosen(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.stack([GREY, 255 - GREY]), photometric="minisblack")
    with pytest.raises(DataError, match=r"holds 2 images.*page=1"):
        read_picture(tmp_path / "a.tif", "me")
    np.testing.assert_array_equal(read_picture(tmp_path / "a.tif", "me", ReadingRules(page=2)).grey, 255 - GREY)
    with pytest.raises(DataError, match="page=3 is none of them"):
        read_picture(tmp_path / "a.tif", "me", ReadingRules(page=3))


def test_a_photograph_is_turned_as_its_camera_was_held_and_that_is_said(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(GREY[:64]).save(tmp_path / "a.png", exif=exif)
    found = read_picture(tmp_path / "a.png", "me")
    np.testing.assert_array_equal(found.grey, np.rot90(GREY[:64], -1))
    assert found.notes == ("turned as its EXIF orientation says",)


def test_transparent_holes_are_said_and_a_mask_drawn_in_them_is_refused(tmp_path):
    alpha = np.full_like(GREY, 255)
    alpha[:48] = 0
    Image.fromarray(np.dstack([GREY, GREY, GREY, alpha])).save(tmp_path / "a.png")
    assert "50.0% of it is transparent" in read_picture(tmp_path / "a.png", "me").notes[0]
    Image.fromarray(np.dstack([np.zeros_like(GREY)] * 3 + [alpha])).save(tmp_path / "b.png")
    with pytest.raises(DataError, match="drawn in its transparency"):
        read_values(tmp_path / "b.png", "me")


@pytest.mark.parametrize(("ground", "ink"), [(0, 255), (255, 0), (60, 240)])
@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_a_data_bar_is_cut_off_told_and_can_be_fixed(tmp_path, ground, ink, suffix):
    tile = polycrystal_set("austenite", 1, 1, size=192).images[0]
    image = Image.fromarray(np.vstack([tile, np.full((24, 192), ground, np.uint8)]))
    pen = ImageDraw.Draw(image)
    pen.text((4, 196), "20 um   15.0 kV", fill=ink)
    pen.line((110, 204, 180, 204), fill=ink, width=3)
    path = tmp_path / f"a.{suffix}"
    image.save(path, quality=90)
    found = read_picture(path, "me")
    assert 23 <= found.bar_rows <= 24
    assert "look like a data bar and were cut off" in found.notes[0]
    assert read_picture(path, "me", ReadingRules(data_bar=0)).grey.shape == (216, 192)
    assert read_picture(path, "me", ReadingRules(data_bar=40)).grey.shape == (176, 192)


def test_a_micrograph_without_a_bar_keeps_all_its_rows():
    dark = np.clip(np.random.default_rng(0).normal(20, 3, (96, 96)), 0, 255).astype(np.uint8)
    half = np.vstack([GREY[:72], dark[:24]])  # mounting resin below the specimen
    saturated = np.vstack([GREY[:80], np.zeros((16, 96), np.uint8)])  # nothing is written there
    assert [data_bar_height(image) for image in (*TILES.images, dark, half, saturated)] == [0] * 6


# ---- folders


@pytest.mark.parametrize(
    ("image", "mask", "options"),
    [
        ("scans/{}.png", "drawn/{}_mask.png", {"images": "scans", "masks": "drawn/*_mask.png"}),
        ("{}.png", "{}-gb.png", {"images": "*.png", "masks": "*-gb.png"}),
        ("images/img_{}.png", "labels/seg_{}.png", {"images": "images/img_*", "masks": "labels/seg_*"}),
        ("images/grö{}.png", "labels/gro\u0308{}.png", {}),  # one letter, written in two ways
    ],
)
def test_images_find_their_masks_by_pattern(tmp_path, image, mask, options):
    found = read(folder(tmp_path, image=image, mask=mask), **options)
    np.testing.assert_array_equal(found.masks, TILES.masks)
    np.testing.assert_array_equal(found.images, TILES.images)


def test_what_is_left_out_is_said(tmp_path):
    root = folder(tmp_path)
    (root / "images/c.png").unlink()
    (root / "images/c.dm3").write_bytes(b"x")
    (root / "images/._a.png").write_bytes(b"x")
    notes = read(root).notes
    assert "1 masks have no image: c.png" in notes
    assert "2 entries of images/ were skipped, no file of a kind known: ._a.png, c.dm3" in notes
    found = read(folder(tmp_path / "many"), tile=32, most_tiles=10)
    assert len(found) == 10
    assert set(found.sources) == {"a", "b", "c"}
    assert "10 of 27 tiles are used (most_tiles), spread evenly over all images" in found.notes


def test_tiles_that_were_cut_before_are_not_taken_for_micrographs(tmp_path):
    tiles = [f"RG{micrograph}_{row}_{column}" for micrograph in range(2) for row in range(2) for column in range(2)]
    root = folder(tmp_path / "coordinates", tiles)
    with pytest.raises(DataError, match="8 images have names that end in two numbers and 2 beginnings"):
        read(root)
    assert set(read(root, source_pattern="(.+?)_[0-9]+_[0-9]+").sources) == {"RG0", "RG1"}
    assert len(set(read(root, source_pattern="(.+)").sources)) == 8
    numbered = read(folder(tmp_path / "numbered", ["steel-1", "steel-2", "copper-1"]))
    assert "3 images have 2 beginnings" in numbered.notes[0]
    assert read(folder(tmp_path / "plain", ["img_001", "img_002", "img_003"])).notes == ()


def test_a_second_meaning_of_masks_is_refused():
    with pytest.raises(ConfigError, match="boundary and threshold: say one of them"):
        MaskMeaning(boundary=(0,), threshold=127)


@pytest.mark.parametrize("dark", [True, False])
def test_a_smeared_mask_is_refused_with_what_to_say_whatever_was_said(tmp_path, dark):
    root = folder(tmp_path)
    for name, mask in zip("abc", TILES.masks, strict=True):
        (root / f"labels/{name}.png").unlink()
        Image.fromarray((mask == (0 if dark else 1)).astype(np.uint8) * 255).save(root / f"labels/{name}.jpg")
    right = {"threshold_below" if dark else "threshold": 127}
    words = "threshold-below:12" if dark else "threshold:12"
    for meaning in (MaskMeaning(), MaskMeaning(boundary=(0,)), MaskMeaning(between_classes=True)):
        with pytest.raises(DataError, match=words):
            read(root, meaning=meaning)
    wrong = {"threshold" if dark else "threshold_below": 127}
    with pytest.raises(DataError, match="of the mask pixels would be boundary; .*" + words):
        read(root, meaning=MaskMeaning(**wrong))
    assert (read(root, meaning=MaskMeaning(**right)).masks == TILES.masks).mean() > 0.999


@pytest.mark.parametrize("kind", ["instances", "coco", "labelme", "imagej"])
def test_grains_may_be_numbered_or_outlined(tmp_path, kind):
    root, grains = folder(tmp_path), [ndimage.label(mask == 0)[0] for mask in TILES.masks]  # type: ignore[index]
    (root / "drawn").mkdir()
    coco = {"images": [], "annotations": []}
    for number, (name, grain) in enumerate(zip("abc", grains, strict=True)):
        outlines = {key: outline for key, outline in grain_outlines(grain).items() if key}  # 0 is between the grains
        if kind == "instances":
            Image.fromarray(grain.astype(np.uint16)).save(root / f"drawn/{name}.png")
        elif kind == "imagej":
            (root / f"drawn/{name}.zip").write_bytes(roi_zip(outlines))
        points = [outline[:, ::-1].tolist() for outline in outlines.values()]
        if kind == "labelme":
            shapes = [{"label": "grain", "shape_type": "polygon", "points": each} for each in points]
            (root / f"drawn/{name}.json").write_text(json.dumps({"shapes": shapes}))
        coco["images"].append({"id": number, "file_name": f"{name}.png"})
        flat = [[value for point in each for value in point] for each in points]
        coco["annotations"] += [{"image_id": number, "segmentation": [each]} for each in flat]
    (root / "grains.json").write_text(json.dumps(coco))
    options = {"masks": "grains.json"} if kind == "coco" else {"masks": "drawn"}
    found = read(root, **options, meaning=MaskMeaning(instances=kind == "instances"))
    assert (found.masks == TILES.masks).mean() > 0.97


# ---- one scale


@pytest.mark.parametrize(("unit", "per_unit", "size"), [("um", 4.0, 0.25), ("nm", 0.004, 0.25), ("micron", 2.0, 0.5)])
def test_imagej_says_the_size_of_a_pixel(tmp_path, unit, per_unit, size):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, GREY, imagej=True, resolution=(per_unit, per_unit), metadata={"unit": unit})
    assert pixel_size_in(path, "me") == pytest.approx(size, rel=1e-3)


def test_zeiss_and_fei_say_the_size_of_a_pixel_and_a_size_on_paper_says_nothing(tmp_path):
    fei = "[Scan]\r\nPixelWidth=2.5e-008\r\nPixelHeight=2.5e-008\r\n"
    tifffile.imwrite(tmp_path / "fei.tif", GREY, extratags=[(34682, "s", 0, fei, True)])
    assert pixel_size_in(tmp_path / "fei.tif", "me") == pytest.approx(0.025)
    zeiss = "0\r\n" * 3 + "AP_IMAGE_PIXEL_SIZE\r\nImage Pixel Size = 111.7 nm\r\n"
    tifffile.imwrite(tmp_path / "zeiss.tif", GREY, extratags=[(34118, "s", 0, zeiss, True)])
    assert pixel_size_in(tmp_path / "zeiss.tif", "me") == pytest.approx(0.1117)
    tifffile.imwrite(tmp_path / "print.tif", GREY, resolution=(300, 300), resolutionunit="INCH")
    assert pixel_size_in(tmp_path / "print.tif", "me") is None
    oblong = "[Scan]\r\nPixelWidth=2.5e-008\r\nPixelHeight=5e-008\r\n"
    tifffile.imwrite(tmp_path / "oblong.tif", GREY, extratags=[(34682, "s", 0, oblong, True)])
    with pytest.raises(DataError, match="resample it to square ones"):
        pixel_size_in(tmp_path / "oblong.tif", "me")


def test_images_of_several_magnifications_are_brought_to_one(tmp_path):
    root = folder(tmp_path)
    (root / "index.csv").write_text("name,source_image,pixel_size_um\na,a,0.5\nb,b,0.25\nc,c,0.5\n")
    with pytest.raises(DataError, match=r"2 pixel sizes from 0\.25 to 0\.5"):
        read(root, tile=32)
    found = read(root, tile=32, training_pixel_size_um=0.5)
    assert [found.sources.count(name) for name in "abc"] == [9, 1, 9]
    assert found.pixel_size_um == 0.5
    assert MicrographFolder(str(root)).pixel_size("lab") == 0.5
    (root / "index.csv").write_text("name,source_image,pixel_size_um\na,a,0.5\nb,b,\nc,c,\n")
    with pytest.raises(DataError, match="the pixel size of 2 of 3 images is not known"):
        read(root, tile=32)


def test_lines_stay_whole_when_a_mask_shrinks_to_a_third():
    mask = polycrystal_set("iron", 0, 1, size=240, spacing=60).masks[0]
    small = resampled_mask(mask, (80, 80))
    before, after = (ndimage.label(each == 0)[1] for each in (mask, small))  # type: ignore[index]
    assert after == pytest.approx(before, abs=2)


def test_the_common_scale_is_the_coarsest_or_the_one_asked_for():
    assert common_pixel_size({"a": 0.2, "b": 0.5}, None) == 0.5
    assert common_pixel_size({"a": 0.2, "b": 0.5}, 0.3) == 0.3
    assert common_pixel_size({"a": None, "b": None}, None) is None
    with pytest.raises(ConfigError, match=r"of a is known, that of b is not.*--pixel-size-um b="):
        common_pixel_size({"a": 0.2, "b": None}, None)
