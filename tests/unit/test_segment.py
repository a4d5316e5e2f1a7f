"""`ray-fed segment` at the scale of image and model, broken off and resumed, and what it writes for others."""

import json

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from pipelines.cli import main
from pipelines.segmentation.pipeline import Segmenter
from ray_fed.learning.layout import initial_vector
from ray_fed.micrographs.drawn_labels import drawn, grain_outlines, roi_outlines, roi_zip
from ray_fed.micrographs.grain_sizes import grain_sizes
from ray_fed.micrographs.model_file import SegmenterCard, save_segmenter
from ray_fed.micrographs.polycrystals import polycrystal_set
from ray_fed.micrographs.scale import resampled
from ray_fed.micrographs.unet import UNetDesign, seeded_unet

pytestmark = pytest.mark.usefixtures("one_thread")
SMALL = UNetDesign(widths=(4, 8))


def saved(path, pixel_size_um: float | None = 1.0):
    """Save an untrained network that calls half of the pixels boundary."""
    network = seeded_unet(SMALL, 0).eval()
    with torch.no_grad():
        logits = network(torch.from_numpy(polycrystal_set("iron", 0, 1, size=70).images))
        network.last.bias -= logits.median()
    save_segmenter(path, initial_vector(network), SegmenterCard(path.name, SMALL, 32, pixel_size_um))
    return path.with_name(f"{path.name}.safetensors")


@pytest.fixture
def model(tmp_path):
    return saved(tmp_path / "model")


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "steel.png"
    Image.fromarray(polycrystal_set("iron", 0, 1, size=70).images[0]).save(path)
    return path


def segment(*arguments) -> int:
    return main(["segment", *map(str, arguments)])


def row_of(out, name: str) -> dict:
    return json.loads((out / "parts" / f"{name}.json").read_text())


@pytest.mark.parametrize(
    ("model_um", "options", "reason"),
    [
        (1.0, (), "the pixel size of the image is not known (give --pixel-size-um)"),
        (None, ("--pixel-size-um", 1), "the model does not say at which pixel size it has learnt"),
    ],
)
def test_at_an_unknown_scale_there_are_masks_and_no_numbers(picture, tmp_path, capsys, model_um, options, reason):
    unknown = saved(tmp_path / "unknown", model_um)
    assert segment(unknown, picture, "--out", tmp_path / "out", *options) == 0
    assert (tmp_path / "out" / "steel.mask.png").is_file()
    row = row_of(tmp_path / "out", "steel")
    assert row["no_g_because"].startswith(reason)
    assert row["astm_g"] is row["astm_g_intercept"] is row["mean_area_um2"] is None
    said = capsys.readouterr()
    assert "no grain-size number of 1 field(s)" in said.out
    assert reason in said.err


def test_a_scale_may_be_told_of_a_model_that_does_not_say_it(picture, tmp_path):
    unknown = saved(tmp_path / "unknown", None)
    stated = ("--pixel-size-um", 1, "--model-pixel-size-um", 1)
    assert segment(unknown, picture, "--out", tmp_path / "out", *stated) == 0
    assert row_of(tmp_path / "out", "steel")["mean_area_um2"] > 0


def test_an_image_is_segmented_alike_at_whatever_magnification_it_was_taken(model, tmp_path):
    """One field at the model's pixels and at half of them: segmented at one scale, each returned at its own."""
    image = polycrystal_set("iron", 0, 1, size=192).images[0]
    masks = {}
    for name, size, side in (("coarse", 1.0, 96), ("fine", 0.5, 192)):
        Image.fromarray(resampled(image, (side, side))).save(tmp_path / f"{name}.png")
        out = tmp_path / f"out-{name}"
        assert segment(model, tmp_path / f"{name}.png", "--out", out, "--pixel-size-um", size) == 0
        masks[name] = np.asarray(Image.open(out / f"{name}.mask.png"))
        assert masks[name].shape == (side, side)
    again = masks["fine"].reshape(96, 2, 96, 2).mean((1, 3)) >= 128
    assert (again == (masks["coarse"] > 0)).mean() > 0.85


@pytest.mark.parametrize(
    ("size", "words"),
    [
        (500, "pixel_size_um=500 micrometres is no pixel of a micrograph"),
        (40, "pixels of 40 micrometres against 1, a factor of 40; is the unit right?"),
    ],
)
def test_a_pixel_size_in_another_unit_is_refused(model, picture, tmp_path, capsys, size, words):
    assert segment(model, picture, "--out", tmp_path / "out", "--pixel-size-um", size) != 0
    assert words in capsys.readouterr().err


def test_a_tiff_says_its_own_pixel_size(model, tmp_path):
    image = polycrystal_set("iron", 0, 1, size=70).images[0]
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, image, imagej=True, resolution=(1 / 1.25, 1 / 1.25), metadata={"unit": "um"})
    assert segment(model, path, "--out", tmp_path / "out") == 0
    row = row_of(tmp_path / "out", "a")
    assert row["pixel_size_um"] == pytest.approx(1.25)
    assert "as the file states; segmented at 1.25 times" in row["notes"]


def test_a_broken_off_segmentation_goes_on_and_ends_as_if_it_had_not_been(model, tmp_path, monkeypatch, capsys):
    scans = tmp_path / "scans"
    scans.mkdir()
    for number, image in enumerate(polycrystal_set("iron", 0, 3, size=48).images):
        Image.fromarray(image).save(scans / f"{number}.png")
    (scans / "notes.txt").write_text("mine")
    options = ("--pixel-size-um", 1)
    assert segment(model, scans, "--out", tmp_path / "whole", *options) == 0
    field, opened = Segmenter.field, []

    def stops(self, name, path):
        if name == "2":
            raise KeyboardInterrupt
        return field(self, name, path)

    def counts(self, name, path):
        opened.append(name)
        return field(self, name, path)

    with monkeypatch.context() as patch:
        patch.setattr(Segmenter, "field", stops)
        assert segment(model, scans, "--out", tmp_path / "broken", *options) == 130
        patch.setattr(Segmenter, "field", counts)
        assert segment(model, scans, "--out", tmp_path / "broken", *options) == 0
    assert opened == ["2"]
    for name in ("grains.csv", "fields.csv"):
        assert (tmp_path / "broken" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert "1 entries of" in capsys.readouterr().err
    assert segment(model, scans, "--out", tmp_path / "whole", "--pixel-size-um", 2) == 2
    assert "holds a segmentation with another pixel_size_um" in capsys.readouterr().err


def test_an_image_that_cannot_be_used_is_named_and_the_others_are_done(model, picture, tmp_path, capsys):
    cut = tmp_path / "cut.png"
    cut.write_bytes(picture.read_bytes()[:1500])
    assert segment(model, picture, cut, "--out", tmp_path / "out") == 1
    assert "not segmented: cut: segment: " in capsys.readouterr().err
    assert (tmp_path / "out" / "steel.mask.png").is_file()


def test_outlines_for_imagej_are_the_grains_pixel_for_pixel(tmp_path):
    labels = grain_sizes(polycrystal_set("iron", 0, 1, size=64).masks[0]).labels
    (tmp_path / "rois.zip").write_bytes(roi_zip(grain_outlines(labels)))
    again = drawn(roi_outlines(tmp_path / "rois.zip", "me"), (64, 64))
    assert (again - 1 == labels).mean() > 0.93
