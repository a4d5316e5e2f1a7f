"""Generators, discriminators, losses, conditioning, memorisation and amplitudes on images of a few pixels."""

import dataclasses

import numpy as np
import pytest
import torch
from scipy import ndimage

from ray_fed.errors import ConfigError, DataError
from ray_fed.micrographs.polycrystals import polycrystal_set
from ray_fed.micrographs.tiles import turned
from ray_fed.style_transfer.amplitude import AmplitudeBank, amplitude_bank, band_of, checked_bank, painted_with
from ray_fed.style_transfer.conditioning import GrainMaps
from ray_fed.style_transfer.image_features import NO_BAND, NUM_FEATURES, GrainStatistics, best_band, measured
from ray_fed.style_transfer.networks import GeneratorSpec, new_discriminator, new_generator
from ray_fed.style_transfer.synthesis import grey_l1, nearest_distances, probe_memorisation, synthesise
from ray_fed.style_transfer.training import (
    PRESETS,
    GeneratorTraining,
    Pairs,
    discriminator_loss,
    feature_matching,
    generator_loss,
    style_plan,
)

SIZE = 32
TINY = GeneratorSpec("unet", width=4, depth=2)


def stripes(count=4, size=SIZE, seed=0):
    """Return (images, masks): two grains with a boundary between them, brighter on the left."""
    rng = np.random.default_rng(seed)
    masks = np.zeros((count, size, size), np.uint8)
    images = np.full((count, size, size), 90, np.float64)
    for number in range(count):
        middle = int(rng.integers(size // 3, 2 * size // 3))
        masks[number, :, middle : middle + 3] = 1
        images[number, :, :middle] = 180
        images[number, :, middle : middle + 3] = 20
    return np.clip(images + rng.normal(0, 4, images.shape), 0, 255).astype(np.uint8), masks


def plan(**changes):
    return dataclasses.replace(PRESETS["hybrid"], generator=TINY, discriminator_width=4, epochs=2, **changes)


@pytest.mark.parametrize("architecture", ["unet", "residual"])
def test_a_generator_maps_labels_of_any_fitting_size_to_grey_values(architecture):
    spec = GeneratorSpec(architecture, 4, 2, 1)
    out = new_generator(spec, 0)(torch.zeros(2, spec.num_channels, 24, 16))
    assert out.shape == (2, 1, 24, 16)
    assert out.abs().max() <= 1
    with pytest.raises(ConfigError, match="30x32 must have sides that are multiples of 4"):
        spec.check_size(30, 32)


@pytest.mark.parametrize("architecture", ["unet", "residual"])
def test_no_layer_is_a_transposed_convolution(architecture):
    layers = new_generator(GeneratorSpec(architecture, 4, 2, 1), 0).modules()
    assert not any(isinstance(layer, torch.nn.ConvTranspose2d) for layer in layers)


def test_initial_weights_depend_on_the_seed_alone():
    torch.manual_seed(1)
    first = new_generator(TINY, 3).state_dict()
    torch.manual_seed(2)
    again, other = new_generator(TINY, 3).state_dict(), new_generator(TINY, 4).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_the_cross_entropy_game_at_even_odds_costs_log_2_at_each_scale():
    logits = [[torch.zeros(1, 1, 2, 2)], [torch.zeros(1, 1, 1, 1)]]
    assert float(discriminator_loss("cross_entropy", logits, logits)) == pytest.approx(2 * np.log(2))
    assert float(generator_loss("cross_entropy", logits)) == pytest.approx(2 * np.log(2))


def test_the_least_squares_game_is_the_squared_distance_to_one_and_zero():
    real, fake = [[torch.tensor([0.5])]], [[torch.tensor([0.25])]]
    assert float(discriminator_loss("least_squares", real, fake)) == pytest.approx((0.25 + 0.0625) / 2)
    assert float(generator_loss("least_squares", fake)) == pytest.approx(0.5625)


def test_feature_matching_is_zero_for_equal_images_and_leaves_the_logits_out():
    features = [[torch.ones(1, 2, 2, 2), torch.zeros(1, 1, 2, 2)]]
    other = [[torch.full((1, 2, 2, 2), 3.0), torch.ones(1, 1, 2, 2)]]
    assert float(feature_matching(features, features)) == 0
    assert float(feature_matching(features, other)) == pytest.approx(2.0 * 4 / 2)


def test_each_scale_of_the_discriminator_sees_half_the_size():
    features = new_discriminator(4, 2, 2, 0)(torch.zeros(1, 1, 64, 64), torch.zeros(1, 1, 64, 64))
    assert [scale[0].shape[-1] for scale in features] == [32, 16]


def test_level_and_band_channels_are_those_of_the_grain_and_nothing_on_a_boundary():
    _, masks = stripes(1)
    maps = GrainMaps.of(masks)
    features = torch.zeros(1, maps.num_grains + 1, NUM_FEATURES)
    features[0, :, 4] = NO_BAND
    features[0, 1] = torch.tensor([0.5, 1.0, 0.0, 0.0, 0.2, 2.0])  # a band across the middle rows of grain 1
    channels = maps.inputs(
        torch.tensor([0]), ("label", "level", "band"), features, torch.zeros(1, 2, SIZE, SIZE), torch.Generator()
    )[0]
    boundary = torch.from_numpy(masks[0]).bool()
    assert (channels[0][boundary] == 1).all()
    assert (channels[0][~boundary] == -1).all()
    assert set(channels[1].unique().tolist()) == {0.0, 0.5}
    assert (channels[1][boundary] == 0).all()
    assert (channels[2][boundary] == 1).all()
    first_grain = channels[3][:, 0]
    assert first_grain[SIZE // 2] == 2.0
    assert first_grain[0] == first_grain[-1] == 0
    edges = channels[4][:, 0].nonzero()[:, 0]
    assert 2 <= len(edges) <= 4
    assert edges[0] < SIZE // 2 < edges[-1]


def test_a_band_is_found_where_it_was_painted():
    rows, columns = np.indices((40, 40))
    image = np.full((40, 40), 150.0)
    away = (rows - 20) * np.sin(np.pi / 4) + (columns - 20) * np.cos(np.pi / 4)
    image[np.abs(away - 3) < 5] = 190
    image[np.abs(np.abs(away - 3) - 5) < 1] = 80
    mask = np.zeros((1, 40, 40), np.uint8)
    mask[:, [0, -1]] = mask[:, :, [0, -1]] = 1
    image = np.clip(image + np.random.default_rng(0).normal(0, 5, image.shape), 0, 255).astype(np.uint8)
    maps = GrainMaps.of(mask)
    features, _ = measured(image[None], maps.grains.numpy(), maps.shapes.numpy())
    _, sine, cosine, offset, half, _ = features[0, 1]
    radius = float(maps.shapes[0, 1, 2])
    assert (sine, cosine) == pytest.approx((np.sin(np.pi / 4), np.cos(np.pi / 4)), abs=1e-6)
    assert offset * radius == pytest.approx(3, abs=1)
    assert half * radius == pytest.approx(5, abs=1)


def test_pure_noise_has_no_bands():
    images = np.random.default_rng(0).normal(128, 20, (6, 40, 40)).astype(np.uint8)
    maps = GrainMaps.of(np.zeros_like(images))
    features, statistics = measured(images, maps.grains.numpy(), maps.shapes.numpy())
    assert (features[:, 1, 4] == NO_BAND).all()
    assert statistics.band_share == 0


def found_band_share(images: np.ndarray, masks: np.ndarray) -> float:
    maps = GrainMaps.of(masks)
    return measured(images, maps.grains.numpy(), maps.shapes.numpy())[1].band_share


def test_ordinary_texture_slopes_and_dark_rims_are_no_bands_and_twins_are():
    tiles, rng = polycrystal_set("austenite", 0, 8, size=96, spacing=24.0), np.random.default_rng(0)
    masks, white = tiles.masks, rng.normal(size=tiles.images.shape)
    rims = np.stack([ndimage.gaussian_filter(mask.astype(float), 1.5) for mask in masks])
    cases = {
        "texture of 1 px": 128 + 30 * np.stack([ndimage.gaussian_filter(noise, 1) for noise in white]),
        "texture of 4 px": 128 + 90 * np.stack([ndimage.gaussian_filter(noise, 4) for noise in white]),
        "slope": 90 + 0.5 * np.arange(96) + 3 * white,
        "dark rims": 128 - 60 * rims + 5 * white,
    }
    shares = {name: found_band_share(images, masks) for name, images in cases.items()}
    assert max(shares.values()) < 0.15
    assert shares["slope"] == shares["dark rims"] == 0
    assert 0.25 < found_band_share(tiles.images, masks) < 0.5  # 45 % are painted, those in small grains are not found


def test_the_best_band_of_a_profile_is_that_of_an_exhaustive_search():
    rng = np.random.default_rng(3)
    counts = rng.integers(1, 9, 11)
    means = rng.normal(0, 1, 11)
    means -= (means * counts).sum() / counts.sum()
    explained, *edges = best_band(means * counts, counts)[:3]
    found = {}
    for i in range(1, 9):
        for j in range(i + 2, 10):
            if j - i > 0.7 * 11:
                continue
            parts = [[i, j], list(range(i + 1, j)), [*range(i), *range(j + 1, 11)]]
            found[i, j] = sum((means * counts)[part].sum() ** 2 / counts[part].sum() for part in parts)
    best = max(found, key=found.__getitem__)
    assert tuple(edges) == best
    assert explained == pytest.approx(found[best])


def test_drawn_grains_have_the_statistics_they_were_drawn_from():
    draws = torch.Generator().manual_seed(0)
    drawn = GrainStatistics(0.4, 0.3, 0.02, 0.2).drawn(20, 500, draws)
    has_band = drawn[..., 4] > 0
    assert float(has_band.float().mean()) == pytest.approx(0.4, abs=0.02)
    assert float(drawn[..., 4][has_band].mean()) == pytest.approx(0.3, abs=0.01)
    assert float(drawn[..., 0].std()) == pytest.approx(1, abs=0.03)


def test_turning_four_times_and_mirroring_twice_changes_nothing():
    x = torch.arange(16.0).view(1, 4, 4)
    assert torch.equal(turned(turned(x, 1, False), 3, False), x)
    assert torch.equal(turned(turned(x, 0, True), 0, True), x)


@pytest.mark.parametrize("preset", list(PRESETS))
def test_every_preset_trains_and_the_same_seed_gives_the_same_generator(preset):
    images, masks = stripes()
    own = dataclasses.replace(
        style_plan(preset), generator=dataclasses.replace(PRESETS[preset].generator, width=4, depth=2, blocks=1),
        discriminator_width=4, epochs=1,
    )  # fmt: skip
    runs = [GeneratorTraining(Pairs.of(images, masks), own, 5).run() for _ in range(2)]
    first, second = (run[0].state_dict() for run in runs)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert all(np.isfinite(value) for value in runs[0][1][0].values())


def test_training_brings_the_generator_nearer_to_the_images():
    images, masks = stripes(8)
    pairs = Pairs.of(images, masks)
    training = GeneratorTraining(pairs, dataclasses.replace(plan(learning_rate=2e-3, l1_weight=10.0), epochs=20), 0)
    _, history = training.run()
    assert history[-1]["l1"] < 0.6 * history[0]["l1"]


def test_an_unknown_preset_is_answered_with_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'pix2pixhd'"):
        style_plan("pix2pix_hd")


def test_another_seed_paints_other_images_on_the_same_labels():
    images, masks = stripes(3)
    pairs, module = Pairs.of(images, masks), new_generator(TINY, 0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(20)
    index = torch.arange(3)
    a, again, b = (
        synthesise(module, TINY, pairs.maps, index, pairs.statistics, seed, low_precision=False) for seed in (1, 1, 2)
    )
    assert a.dtype == torch.uint8
    assert torch.equal(a, again)
    assert not torch.equal(a, b)


def test_grey_l1_counts_grey_values_from_0_to_1():
    assert grey_l1(np.zeros((1, 2, 2), np.uint8), np.full((1, 2, 2), 51, np.uint8)) == pytest.approx(0.2)


def test_a_turned_copy_of_a_known_image_is_at_distance_zero():
    known = torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert nearest_distances(turned(known[1:2], 1, True), known) == pytest.approx([0], abs=1e-3)
    assert nearest_distances(-known[1:2], known) > 0.5


class Copier(torch.nn.Module):
    """Paints training images, whatever the label."""

    def __init__(self, images):
        super().__init__()
        self.images = torch.from_numpy(images).float()[:, None] / 127.5 - 1

    def forward(self, x):
        return self.images[torch.arange(len(x)) % len(self.images)]


class InTurn(torch.nn.Module):
    """Lets another network answer each time."""

    def __init__(self, *networks):
        super().__init__()
        self.networks = list(networks)

    def forward(self, x):
        return self.networks.pop(0)(x)


def test_a_generator_that_paints_its_training_images_is_caught():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, (12, SIZE, SIZE)).astype(np.uint8)
    masks = stripes(12)[1]
    training, held_out = Pairs.of(images[:6], masks[:6]), Pairs.of(images[6:], masks[6:])
    finding = probe_memorisation(Copier(images[:6]), TINY, training, held_out, training.statistics, 0)
    assert not finding.passed
    assert finding.num_copies == 6
    assert "memorisation" in str(finding)
    innocent = probe_memorisation(
        Copier(rng.integers(0, 255, (6, SIZE, SIZE))), TINY, training, held_out, training.statistics, 0
    )
    assert innocent.passed
    assert "no sign" in str(innocent)


@pytest.mark.parametrize("knows", [True, False])
def test_what_counts_is_knowing_training_images_and_not_another_light_on_the_held_out_ones(knows):
    rng = np.random.default_rng(0)
    images = rng.integers(60, 200, (12, SIZE, SIZE)).astype(np.uint8)
    seen, unseen = images[:6], (images[6:] // 4).astype(np.uint8)
    masks = stripes(12)[1]
    training, held_out = Pairs.of(seen, masks[:6]), Pairs.of(unseen, masks[6:])
    # Request for training labels first; paints noise for all others, so that no image looks copied.
    painter = Copier(seen if knows else rng.integers(60, 200, seen.shape).astype(np.uint8))
    noise = Copier(rng.integers(60, 200, seen.shape).astype(np.uint8))
    finding = probe_memorisation(InTurn(painter, noise), TINY, training, held_out, training.statistics, 0)
    assert finding.num_copies == 0
    assert finding.held_out_l1 > 1.25 * finding.train_l1  # in grey values the other light alone looks like a sign
    assert finding.passed is not knows


def test_an_amplitude_bank_has_no_phases_and_paints_with_its_brightness():
    dark = np.full((3, SIZE, SIZE), 40, np.uint8)
    bright = np.full((2, SIZE, SIZE), 200, np.uint8)
    bank = amplitude_bank("b", bright)
    side = band_of(SIZE, SIZE)
    assert bank.amplitudes.shape == (2, side, side)
    painted = painted_with(dark, bank, np.random.default_rng(0))
    shares = (painted.reshape(3, -1).mean(1) - 40) / 160
    assert ((shares > 0) & (shares < 1)).all()


def test_painting_an_image_with_its_own_amplitudes_changes_nothing():
    images, _ = stripes(1)
    painted = painted_with(images, amplitude_bank("a", images), np.random.default_rng(0))
    assert np.abs(painted.astype(int) - images).max() <= 1


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"silo": "c"}, "not a bank of that silo"),
        ({"image_size": (8, 8)}, "tile to one size"),
        ({"amplitudes": np.zeros((1, 2, 2), np.float32)}, "float32 array"),
        ({"amplitudes": np.full((1, 3, 3), np.nan, np.float32)}, "finite"),
        ({"amplitudes": np.zeros((0, 3, 3), np.float32)}, "0 spectra"),
    ],
)
def test_a_bank_that_does_not_fit_is_refused_with_the_senders_name(changes, said):
    bank = dataclasses.replace(amplitude_bank("b", stripes()[0]), **changes)
    with pytest.raises(DataError, match="amplitudes received from silo 'b' refused") as error:
        checked_bank(bank, "b", (SIZE, SIZE))
    assert said in str(error.value)
    assert isinstance(checked_bank(amplitude_bank("b", stripes()[0]), "b", (SIZE, SIZE)), AmplitudeBank)
