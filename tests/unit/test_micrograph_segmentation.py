"""The U-Net, its task under the runtime's strategies, and what a trained network says about new micrographs."""

import json
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from PIL import Image

from pipelines import Training, federate
from pipelines.cli import main
from ray_fed.errors import ConfigError, DataError, SiloFailed
from ray_fed.federation.messages import SessionSpec
from ray_fed.federation.silo import Silo
from ray_fed.federation.strategies.client_side import normalisation_parameters
from ray_fed.federation.task import SiloSpec
from ray_fed.learning.layout import Layout, initial_vector, load_vector
from ray_fed.learning.private_steps import PrivateSteps
from ray_fed.learning.trainer import TrainingPlan
from ray_fed.metrics import Resolution
from ray_fed.micrographs.folders import MicrographFolder
from ray_fed.micrographs.grain_sizes import astm_grain_size_number, grain_sizes
from ray_fed.micrographs.model_file import SegmenterCard, load_segmenter, save_segmenter
from ray_fed.micrographs.polycrystals import polycrystal_set
from ray_fed.micrographs.segmentation_task import BoundaryLoss, SegmentationTask, tile_order
from ray_fed.micrographs.segmenting import boundary_logits
from ray_fed.micrographs.tiles import SetSource, SiloTiles, augmented
from ray_fed.micrographs.unet import UNetDesign, seeded_unet
from ray_fed.privacy.noise import TEST_NOISE
from tests.events import shown

pytestmark = pytest.mark.usefixtures("one_thread")
SMALL = UNetDesign(widths=(4, 8))
TASK = SegmentationTask(SMALL, batch_size=4, num_scored=3)


def tiles_of(style: str) -> SiloTiles:
    tiles = polycrystal_set(style, 0, 8, size=32, spacing=14)
    return SiloTiles(tiles.subset(range(6)), tiles.subset(range(6, 8)))


SILOS = [SiloSpec(style, SetSource(tiles_of(style))) for style in ("austenite", "iron")]
TRAINING = Training(rounds=3, epochs=3, batch_size=2, learning_rate=0.01)


# ---- the network


@pytest.mark.parametrize("norm", ["batch", "group"])
@pytest.mark.parametrize("size", [(32, 32), (37, 50)])
def test_logits_have_the_images_size_whatever_it_is(norm, size):
    network = seeded_unet(UNetDesign(widths=(8, 16, 32), norm=norm), 0).eval()
    images = torch.zeros((3, *size), dtype=torch.uint8)
    assert network(images).shape == (3, *size)
    assert network(images).dtype == torch.float32


def test_the_number_of_weights_is_the_one_counted_by_hand():
    # 3x3 convolutions without bias and two values a norm; narrowing convolutions and the last one have a bias.
    down = (1 * 4 * 9 + 8) + (4 * 4 * 9 + 8) + (4 * 8 * 9 + 16) + (8 * 8 * 9 + 16)
    up = (8 * 4 * 9 + 4) + (8 * 4 * 9 + 8) + (4 * 4 * 9 + 8) + (4 + 1)
    assert sum(parameter.numel() for parameter in seeded_unet(SMALL, 0).parameters()) == down + up


def test_portions_of_a_large_set_give_what_single_images_give():
    network = seeded_unet(replace(SMALL, low_precision=False), 0).eval()
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (300, 64, 64)).astype(np.uint8))
    with torch.no_grad():
        assert torch.allclose(network(images)[-1], network(images[-1:])[0], atol=1e-5)


def test_greys_normalised_by_image_do_not_see_light_or_contrast():
    network = seeded_unet(UNetDesign(widths=(4, 8), greys="image", low_precision=False), 0).eval()
    images = torch.from_numpy(np.random.default_rng(0).integers(60, 120, (2, 16, 16)).astype(np.float32))
    with torch.no_grad():
        plain, relit, other = (network(shown) for shown in (images, images * 2 + 7, images.flip(1)))
    assert (plain - relit).abs().max() < 0.1 * (plain - other).abs().max()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"widths": (8,)}, "two or more"),
        ({"norm": "layer"}, "batch or group"),
        ({"norm": "group", "widths": (8, 12)}, "multiples of groups=8"),
        ({"greys": "rgb"}, "fixed or image"),
    ],
)
def test_designs_that_cannot_be_built_are_refused(options, words):
    with pytest.raises(ConfigError, match=words):
        UNetDesign(**options)


def test_the_loss_weighs_a_boundary_pixel_three_times():
    logits, masks = torch.tensor([[[2.0, -1.0]]]), torch.tensor([[[1, 0]]], dtype=torch.uint8)
    boundary, grain = np.log1p(np.exp(-2.0)), np.log1p(np.exp(-1.0))
    assert float(BoundaryLoss(3.0)(logits, masks)) == pytest.approx((3 * boundary + grain) / 4)
    assert BoundaryLoss(1.0).per_image(logits, masks).tolist() == pytest.approx([(boundary + grain) / 2])


# ---- tiles


def test_an_image_and_its_mask_are_turned_alike():
    tiles = torch.from_numpy(np.random.default_rng(0).integers(0, 2, (40, 8, 8)).astype(np.uint8))
    images, masks = augmented(tiles, tiles, np.random.default_rng(1), erasing=0.0)
    assert torch.equal(images, masks)
    assert sum(bool((image != tile).any()) for image, tile in zip(images, tiles, strict=True)) > 25


def test_all_eight_symmetries_of_the_square_occur_and_nothing_else():
    tile = torch.arange(9, dtype=torch.uint8).reshape(1, 3, 3)
    many, _ = augmented(tile.repeat(200, 1, 1), tile.repeat(200, 1, 1), np.random.default_rng(0), erasing=0.0)
    allowed = {tuple(turned.ravel()) for k in range(4) for turned in (np.rot90(tile[0], k), np.rot90(tile[0], k).T)}
    assert {tuple(image.ravel().tolist()) for image in many} == allowed


def test_oblong_tiles_keep_their_shape():
    tiles = torch.zeros((20, 4, 6), dtype=torch.uint8)
    assert augmented(tiles, tiles, np.random.default_rng(0), erasing=0.0)[0].shape == (20, 4, 6)


def test_erasing_paints_one_rectangle_of_the_image_and_leaves_mask_and_source_alone():
    images, masks = torch.full((50, 20, 20), 7, dtype=torch.uint8), torch.ones((50, 20, 20), dtype=torch.uint8)
    painted, same = augmented(images, masks, np.random.default_rng(0), erasing=1.0)
    assert bool((same == 1).all())
    assert bool((images == 7).all())
    for image in painted.numpy():
        rows, columns = np.nonzero(image != 7)
        if len(rows):
            assert len(rows) == (np.ptp(rows) + 1) * (np.ptp(columns) + 1)
            assert 0.01 < len(rows) / 400 < 0.25


def test_synthetic_tiles_take_their_weighted_share_and_all_tiles_are_used_equally():
    dealt = tile_order(10, 20, 400, 0.5, np.random.default_rng(0))
    counts = np.bincount(dealt, minlength=30)
    assert counts[10:].sum() == 200  # 0.5 * 20 / (10 + 0.5 * 20)
    assert np.ptp(counts[:10]) == np.ptp(counts[10:]) == 0
    assert tile_order(10, 20, 50, 0.0, np.random.default_rng(0)).max() < 10
    assert tile_order(10, 0, 25, 1.0, np.random.default_rng(0)).max() < 10


# ---- the task in the runtime


@pytest.mark.parametrize("strategy", ["fed_avg", "fed_prox", "scaffold", "fed_adam"])
def test_any_strategy_federates_it(strategy):
    result = federate(TASK, SILOS, TRAINING, strategy=strategy, cohort="local")
    assert result.metrics["federated.loss"] < result.records[0].metrics["federated.loss"]
    for name in ("map", "vi", "vi_under", "vi_over", "ari", "vi_undefined"):
        both = [result.metrics[f"silo.{spec.name}.{name}"] for spec in SILOS]
        assert result.metrics[f"federated.{name}"] == pytest.approx(np.mean(both))


def test_equal_seeds_give_equal_bits_and_other_seeds_others():
    states = [
        federate(TASK, SILOS, replace(TRAINING, seed=seed), cohort="local").module.state_dict()["last.weight"]
        for seed in (0, 0, 1)
    ]
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


def plan_of(**options) -> TrainingPlan:
    return TrainingPlan(
        **{"seed": 0, "epochs": 2, "steps_per_epoch": 3, "num_rounds": 2, "learning_rate": 0.01} | options
    )


def opened(task=TASK, source=None, state_folder="", **plan):
    silo = Silo(SiloSpec("lab", source or SILOS[0].source, state_folder=str(state_folder)), task)
    silo.open()
    silo.prepare(None)
    full = plan_of(**plan)
    silo.open_session(SessionSpec("s", full, 0, Layout.of(task.model(0), full.buffers).digest))
    return silo


def test_every_silo_does_steps_of_equal_size_whatever_it_holds():
    update = opened().fit("s", 1, initial_vector(TASK.model(0)))
    assert (update.num_steps, update.num_examples) == (3, 12)


def test_a_round_done_again_gives_the_same_bits_also_by_a_silo_that_was_started_again(tmp_path):
    silo, vector = opened(state_folder=tmp_path), initial_vector(TASK.model(0))
    first = silo.fit("s", 1, vector).vector
    second = silo.fit("s", 2, first).vector
    assert silo.fit("s", 2, first).vector.tobytes() == second.tobytes()
    assert opened(state_folder=tmp_path).fit("s", 2, first).vector.tobytes() == second.tobytes()


def test_the_learning_rate_falls_to_0_over_the_run_or_stays():
    def moved(task):
        silo, vector = opened(task, epochs=50, num_rounds=50, optimizer="sgd"), initial_vector(task.model(0))
        size = Layout.of(task.model(0)).num_parameters
        return [float(np.abs(silo.fit("s", r, vector).vector - vector)[:size].mean()) for r in (1, 50)]

    first, last = moved(TASK)
    assert last < 0.1 * first
    first, last = moved(replace(TASK, decay=False))
    assert last > 0.3 * first


def test_fedbn_keeps_the_norms_of_each_silo_and_tests_with_them():
    tiles = tiles_of("iron")
    tested = SetSource(replace(tiles, test=tiles.validation))
    names = tuple(normalisation_parameters(TASK.model(0)))
    assert len(names) == 2 * 6
    silo = opened(source=tested, keep_local=names, buffers="local")
    silo.resolution = Resolution(least_bits=40)
    vector = silo.fit("s", 1, initial_vector(TASK.model(0), "local")).vector
    scores = silo.evaluate("s", {"m": vector})["m"].held_out.values()
    on_tests = [scores["test_loss"], scores["test_map"]]
    assert [scores["loss"], scores["map"]] == pytest.approx(on_tests, rel=2**-39)
    reset = opened(source=tested, keep_local=names, buffers="local")
    reset.resolution = silo.resolution
    other = reset.evaluate("s", {"m": vector})["m"].held_out.values()["loss"]
    assert other != pytest.approx(scores["loss"], rel=2**-39)


GROUP = replace(TASK, design=UNetDesign(widths=(8, 16), norm="group"))


def private(**options) -> PrivateSteps:
    return PrivateSteps(**({"noise_multiplier": 1.0, "public_examples": 6} | options))


def batches(silo, count=60):
    trainer = silo.sessions["s"]
    return list(trainer._batches(range(count)))


def test_a_private_batch_takes_each_tile_with_one_probability_and_may_be_empty():
    many = batches(opened(GROUP, epochs=100, private=private()))
    sizes = [len(images) for images, _ in many]
    assert len(set(sizes)) > 3
    assert 0 in sizes
    assert np.mean(sizes) == pytest.approx(6 / 3, abs=0.5)
    assert all(len(images) == len(masks) for images, masks in many)


def test_private_batches_and_how_they_are_turned_cannot_be_repeated_from_the_seed(monkeypatch):
    def drawn():
        silo = opened(GROUP, epochs=100, private=private())
        return [images.numpy().tobytes() for images, _ in batches(silo, 20)]

    assert drawn() != drawn()
    monkeypatch.setenv(TEST_NOISE, "0")
    assert drawn() == drawn()
    plain = {tile.tobytes() for tile in opened(GROUP).samples.features.numpy()}
    turned = [images for images, _ in batches(opened(replace(GROUP, erasing=0.0), epochs=100, private=private()))]
    assert any(tile.tobytes() not in plain for images in turned for tile in images.numpy())


def test_a_private_silo_trains_tells_no_loss_of_its_tiles_and_stops_at_its_budget():
    silo, vector = opened(GROUP, private=private(most_steps=3)), initial_vector(GROUP.model(0))
    update = silo.fit("s", 1, vector)
    assert (update.num_steps, update.num_examples, update.loss) == (3, 6, 0.0)
    assert np.isfinite(update.vector).all()
    metrics = silo.evaluate("s", {"m": update.vector})["m"]
    assert (metrics.train.num_examples, metrics.held_out.num_examples) == (0, 2)
    with pytest.raises(SiloFailed, match="its privacy budget is spent: 3 of 3 private steps are taken"):
        silo.fit("s", 2, update.vector)


def test_a_private_session_refuses_a_network_that_mixes_tiles():
    with pytest.raises(ConfigError, match=r"is a BatchNorm: use GroupNorm"):
        opened(private=private())


@dataclass
class Renewed:
    """A synthesis that says which epochs it was asked for, and paints the epoch into its tiles."""

    asked: list[int]

    def __call__(self, epoch: int):
        self.asked.append(epoch)
        made = polycrystal_set("iron", 9, 4, size=32, spacing=14)
        return replace(made, images=np.full_like(made.images, epoch))


def test_synthetic_tiles_are_made_anew_each_epoch_and_again_alike_after_a_restart():
    tiles = SILOS[0].source.open("lab")
    renewed = Renewed([])
    source = SetSource(replace(tiles, synthetic=renewed(0), synthesis=renewed))
    vector = initial_vector(TASK.model(0))
    whole = opened(source=source, epochs=4)
    first = whole.fit("s", 1, vector).vector
    second = whole.fit("s", 2, first).vector
    assert renewed.asked == [0, 1, 2, 3]
    assert (
        opened(source=source, epochs=4, optimizer_state="reset").fit("s", 1, vector).vector.tobytes() == first.tobytes()
    )
    # The evaluation, and another session, still see the tiles the silo opened with.
    assert whole.samples.features[-1].unique().tolist() == [0]
    assert not np.array_equal(first, second)


def test_a_folder_of_micrographs_is_a_silo_and_its_test_tiles_an_evaluators(tmp_path):
    made = polycrystal_set("iron", 0, 10, size=64, spacing=14)
    for name, pixels in (("images", made.images), ("labels", made.masks)):
        (tmp_path / name).mkdir()
        for number, tile in enumerate(pixels):
            Image.fromarray(tile).save(tmp_path / name / f"{number}.png")
    everything = MicrographFolder(str(tmp_path), tile=32).read("lab")
    train, validation, held = everything.train_validation_test(0.15, 0.2)
    test = SiloSpec("test", SetSource(SiloTiles(held, held.subset([]))))
    silo = SiloSpec("lab", SetSource(SiloTiles(train, validation)))
    result = federate(TASK, [silo], TRAINING, test=test, cohort="local")
    assert result.agreement.silos["lab"].num_examples == 24
    assert result.metrics["federated.loss"] < result.records[0].metrics["federated.loss"]


def test_synthetic_tiles_of_weight_0_are_left_out():
    tiles = SILOS[0].source.open("lab")
    source = SetSource(replace(tiles, synthetic=tiles.train))
    assert len(TASK.load(SiloSpec("lab", source)).features) == 12
    assert len(replace(TASK, synthetic_weight=0.0).load(SiloSpec("lab", source)).features) == 6


def test_tiles_of_another_size_are_refused_by_the_silos_name():
    tiles = SILOS[0].source.open("lab")
    other = replace(tiles, validation=polycrystal_set("iron", 0, 2, size=40))
    with pytest.raises(DataError, match=r"silo 'lab': validation tiles are \(40, 40\), training tiles \(32, 32\)"):
        TASK.load(SiloSpec("lab", SetSource(other)))


# ---- models on disk, and new micrographs


@pytest.fixture
def model(tmp_path):
    card = SegmenterCard("best", SMALL, 32, 1.0, ("north", "south"), {"map": 0.5})
    save_segmenter(tmp_path / "models" / "best", initial_vector(undecided()), card)
    return tmp_path / "models" / "best.safetensors"


def undecided():
    """Return an untrained network that calls half of the pixels boundary."""
    network = seeded_unet(SMALL, 0).eval()
    with torch.no_grad():
        logits = network(torch.from_numpy(polycrystal_set("iron", 0, 1, size=70).images))
        network.last.bias -= logits.median()
    return network


def test_a_saved_network_gives_the_same_logits(model):
    network, card = load_segmenter(model)
    assert (card.name, card.design, card.trained_on) == ("best", SMALL, ("north", "south"))
    images = torch.from_numpy(polycrystal_set("iron", 0, 2, size=32).images)
    with torch.no_grad():
        assert torch.equal(network(images), undecided()(images))


def test_changed_weights_cards_of_other_things_and_values_that_are_not_finite_are_refused(model, tmp_path):
    content = model.read_bytes()
    model.write_bytes(content[:-1] + b"x")
    with pytest.raises(DataError, match="not those its card describes"):
        load_segmenter(model)
    vector = initial_vector(seeded_unet(SMALL, 0))
    vector[3] = np.nan
    save_segmenter(tmp_path / "bad", vector, SegmenterCard("bad", SMALL, 32))
    with pytest.raises(DataError, match="1 values that are not finite"):
        load_segmenter(tmp_path / "bad")
    (tmp_path / "bad.card.json").write_text('{"name": "other"}')
    with pytest.raises(DataError, match="not the card of a segmentation model"):
        load_segmenter(tmp_path / "bad")
    with pytest.raises(ConfigError, match="its design has"):
        save_segmenter(tmp_path / "short", vector[:-1], SegmenterCard("short", SMALL, 32))


@pytest.mark.parametrize("shape", [(32, 32), (20, 75), (64, 100)])
def test_windows_cover_images_of_any_size(shape):
    network = seeded_unet(SMALL, 0)
    image = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    logits = boundary_logits(network, image, 32)
    assert logits.shape == shape
    assert np.isfinite(logits).all()


def test_an_image_of_one_window_is_what_the_network_says_of_it():
    network = seeded_unet(SMALL, 0).eval()
    image = polycrystal_set("iron", 0, 1, size=32).images
    with torch.no_grad():
        expected = network(torch.from_numpy(image))[0].numpy()
    np.testing.assert_allclose(boundary_logits(network, image[0], 32), expected, atol=1e-5)


def test_blended_windows_agree_with_the_whole_image_where_windows_see_enough():
    network = load_vector(seeded_unet(replace(SMALL, low_precision=False), 0), initial_vector(seeded_unet(SMALL, 0)))
    image = polycrystal_set("iron", 0, 1, size=96).images
    with torch.no_grad():
        whole = network.eval()(torch.from_numpy(image))[0].numpy()
    # Windows start at 0 and 32: both see 12 pixels around rows and columns 44 to 52, as far as two levels look.
    np.testing.assert_allclose(boundary_logits(network, image[0], 64, 32)[44:52, 44:52], whole[44:52, 44:52], atol=1e-5)


def squares() -> np.ndarray:
    """Return 3x3 grains of 9x9 pixels, lines one pixel wide: 29x29."""
    mask = np.zeros((29, 29), np.uint8)
    mask[[9, 19]] = mask[:, [9, 19]] = 1
    return mask


def test_grains_are_counted_as_astm_e112_counts_them():
    sizes = grain_sizes(squares())
    assert len(sizes.area_px) == 9
    assert sizes.area_px.sum() == 29 * 29
    assert (int(sizes.touches_frame.sum()), int(sizes.is_corner.sum())) == (8, 4)
    assert sizes.grains_in_field() == 1 + 0.5 * 4 + 1
    assert sizes.row[4] == pytest.approx(14, abs=0.6)
    expected = 3.321928 * np.log10(4 / (29 * 29 * 2.0**2 / 1e6)) - 2.954
    assert sizes.astm_g(2.0) == pytest.approx(expected)


def test_astm_numbers_are_those_of_the_standards_table():
    # ASTM E112, Table 4: G -> grains per mm2 at magnification 1.
    table = {0: 7.75, 1: 15.50, 5: 248.0, 8: 1984.0, 10: 7936.0}
    for number, density in table.items():
        assert float(astm_grain_size_number(density)) == pytest.approx(number, abs=0.005)
    assert np.isnan(astm_grain_size_number(0.0))


def test_a_circle_of_pixels_has_its_own_equivalent_diameter():
    rows, columns = np.indices((61, 61)) - 30
    mask = ((np.hypot(rows, columns) > 19.5) & (np.hypot(rows, columns) < 21.5)).astype(np.uint8)
    sizes = grain_sizes(mask)
    assert sizes.equivalent_diameter_px[~sizes.touches_frame][0] == pytest.approx(41, abs=1)


def test_islands_smaller_than_asked_are_given_to_their_neighbours():
    mask = squares()
    mask[1:6, 1:6] = 1
    mask[3, 3] = 0
    assert len(grain_sizes(mask, min_pixels=1).area_px) == 10
    assert len(grain_sizes(mask, min_pixels=2).area_px) == 9
    assert len(grain_sizes(np.ones((5, 5), np.uint8)).area_px) == 0


# ---- ray-fed segment


def segment(*arguments) -> int:
    return main(["segment", *map(str, arguments)])


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "steel.png"
    Image.fromarray(polycrystal_set("iron", 0, 1, size=70).images[0]).save(path)
    return path


def test_segment_writes_masks_overlays_and_tables(model, picture, tmp_path, capsys):
    out = tmp_path / "out"
    assert segment(model, picture, "--out", out, "--pixel-size-um", 2) == 0
    there = {path.name for path in out.iterdir()}
    assert {"fields.csv", "grains.csv", "steel.mask.png", "steel.overlay.png", "steel.rois.zip", "report.html"} <= there
    assert {"summary.json", "tensorboard", "parts"} <= there
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["status"], summary["images"]) == ("completed", 1)
    assert summary["mean.grains"] == len((out / "grains.csv").read_text().splitlines()) - 1
    found = shown(out / "tensorboard")
    assert {"global/grains", "result/grains"} <= found.scalars
    assert {"picture/steel.overlay", "picture/sizes"} <= found.pictures
    assert found.hyperparameters["pixel_size_um"] == 2
    mask = np.asarray(Image.open(out / "steel.mask.png"))
    assert mask.shape == (70, 70)
    assert set(np.unique(mask)) <= {0, 255}
    head, *lines = (out / "grains.csv").read_text().splitlines()
    assert head.split(",")[-3:] == ["area_um2", "equivalent_diameter_um", "astm_g"]
    assert sum(int(line.split(",")[5]) for line in lines) == 70 * 70
    said = capsys.readouterr()
    assert f"{len(lines)} grains of 1 images" in said.out
    assert "note: steel: segmented at 2 times its pixels, the model's scale" in said.err


@pytest.mark.parametrize(
    ("bias", "words"), [(-99.0, "no boundary in 'steel'"), (99.0, "nothing but boundary in 'steel'")]
)
def test_an_image_in_which_nothing_is_found_is_pointed_out(picture, tmp_path, capsys, bias, words):
    network = undecided()
    network.last.bias.data.fill_(bias)
    save_segmenter(tmp_path / "blind", initial_vector(network), SegmenterCard("blind", SMALL, 32))
    assert segment(tmp_path / "blind.safetensors", picture, "--out", tmp_path / "out", "--pixel-size-um", 1) == 0
    assert f"note: {words}: the model may not know" in capsys.readouterr().err


def test_a_run_offers_its_only_model_or_the_one_named(model, picture, tmp_path, capsys):
    run = model.parent.parent
    (run / "config.yaml").write_text("seed: 0")
    assert segment(run, picture, "--out", tmp_path / "only") == 0
    save_segmenter(model.parent / "separate", initial_vector(undecided()), SegmenterCard("separate", SMALL, 32))
    assert segment(run, picture, "--out", tmp_path / "unsaid") == 2
    assert "there is: best, separate" in capsys.readouterr().err
    assert segment(run, picture, "--out", tmp_path / "named", "--model", "separate") == 0
    save_segmenter(model.parent / "fedtransfer", initial_vector(undecided()), SegmenterCard("usual", SMALL, 32))
    assert segment(run, picture, "--out", tmp_path / "usual") == 0


@pytest.mark.parametrize(
    ("images", "options", "words"),
    [
        (["missing.png"], [], "missing.png cannot be read"),
        (["text.png"], [], "text.png"),
        (["empty"], [], "empty holds no image files"),
        (["steel.png", "twin/steel.png"], [], "both be written as 'steel'"),
        (["steel.png"], ["--overlap", "32"], "overlap=32 must be less than the model's tile of 32"),
        (["steel.png"], ["--pixel-size-um", "-1"], "pixel_size_um=-1.0 must be positive"),
        (["steel.png"], ["--out", "full"], "out=full is not an empty folder"),
    ],
)
def test_what_cannot_be_segmented_is_said_in_one_line_and_nothing_is_written(
    model, picture, tmp_path, monkeypatch, capsys, images, options, words
):
    monkeypatch.chdir(tmp_path)
    for folder in ("empty", "twin", "full"):
        (tmp_path / folder).mkdir()
    (tmp_path / "twin/steel.png").write_bytes(picture.read_bytes())
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "full/note").write_text("mine")
    assert segment(model, *images, *options) == 2
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1
    assert not (tmp_path / "segmented").exists()
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["note"]
