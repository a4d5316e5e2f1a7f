"""What is read from a message without an optimiser: labels, table rows; and what defences leave of it."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ray_fed.errors import ConfigError, DataError
from ray_fed.leakage.defences import Defence, clip, int8, noise, parse_defence, prune
from ray_fed.leakage.images import EMBEDDED, load_images
from ray_fed.leakage.labels import infer_labels, label_counts, label_steps
from ray_fed.leakage.observation import Knowledge, observe
from ray_fed.leakage.study import masks
from ray_fed.leakage.tabular import NEAR, factor_candidates, match_rows, residual_from_bias, row_candidates
from ray_fed.leakage.tabular_study import TabularCase, local_update, tabular_leaks
from ray_fed.leakage.targets import make_target
from ray_fed.learning.models import seeded_mlp

SHAPE = (1, 8, 8)


def seen(labels: list[int], samples: int = 1, model: str = "lenet", bias: bool = True, seed: int = 0):
    draw = torch.Generator().manual_seed(seed)
    images = torch.rand(len(labels), *SHAPE, generator=draw)
    known = Knowledge(SHAPE, 10, samples)
    parts = zip(images.split(samples), torch.tensor(labels).split(samples), strict=True)
    return [observe(make_target(model, SHAPE, 10, n, bias), x, y, known) for n, (x, y) in enumerate(parts)]


# ---- labels


@pytest.mark.parametrize("model", ["lenet", "lenet_relu", "mlp"])
@pytest.mark.parametrize("rule", ["bias_sign", "row_sign"])
def test_labels_of_single_examples_are_always_read_right(model, rule):
    labels = [n % 10 for n in range(20)]
    assert infer_labels(seen(labels, model=model), rule).flatten().tolist() == labels


def test_the_bias_gradient_of_a_hand_solved_example_is_negative_for_the_label_alone():
    """Outputs (0, ln 2, ln 3) have softmax (1, 2, 3) / 6; for label 1 the bias gradient is (1, 2 - 6, 3) / 6."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(2, 3))
    with torch.no_grad():
        network[1].weight.zero_()
        network[1].bias.copy_(torch.log(torch.tensor([1.0, 2.0, 3.0])))
    one = observe(network, torch.ones(1, 2), torch.tensor([1]), Knowledge((2,), 3))
    torch.testing.assert_close(one.message[1], torch.tensor([1.0, -4.0, 3.0]) / 6)
    assert infer_labels([one], "bias_sign").tolist() == [[1]]


def test_without_an_output_bias_the_papers_rule_refuses_by_name_and_closed_form_falls_back():
    observations = seen([3, 7], bias=False)
    with pytest.raises(ConfigError, match="needs a bias in the output layer '7'"):
        infer_labels(observations, "bias_sign")
    assert infer_labels(observations, "closed_form").flatten().tolist() == [3, 7]


def test_a_withheld_bias_gradient_counts_as_none():
    withheld = [parse_defence("no_output_bias").on(one) for one in seen([3, 7])]
    with pytest.raises(ConfigError, match="its gradient in the message"):
        infer_labels(withheld, "bias_sign")
    assert infer_labels(withheld).flatten().tolist() == [3, 7]


def test_a_regression_has_no_labels_to_read():
    network = nn.Sequential(nn.Linear(4, 1))
    one = observe(network, torch.rand(1, 4), torch.rand(1, 1), Knowledge((4,), 1), loss="mse")
    with pytest.raises(ConfigError, match="needs loss=cross_entropy"):
        infer_labels([one])


@given(st.lists(st.integers(0, 9), min_size=4, max_size=4), st.integers(0, 5))
@settings(max_examples=20)
def test_label_counts_of_a_batch_add_up_to_the_batch(labels, seed):
    counts = label_counts(seen(labels, samples=4, seed=seed))
    assert counts.sum().item() == 4
    assert (counts >= 0).all()


def test_labels_of_batches_without_repeats_are_read_right_for_torchs_initial_weights():
    """With torch's weights outputs are nearly uniform, so the expected softmax mass is known."""
    labels = [1, 4, 6, 9, 0, 2, 3, 5]
    found = infer_labels(seen(labels, samples=4, model="mlp"))
    assert found.tolist() == [sorted(labels[:4]), sorted(labels[4:])]


def test_repeated_labels_of_a_batch_are_counted_for_torchs_initial_weights():
    assert infer_labels(seen([2, 2, 2, 8], samples=4, model="mlp")).tolist() == [[2, 2, 2, 8]]


def test_the_steps_of_table_1():
    assert label_steps(10, 588) == {"bias_sign": 10, "row_sign": 5880}


# ---- table rows


def network_and_rows(count: int):
    rows = np.random.default_rng(0).normal(size=(count, 73)).astype(np.float32)
    return seeded_mlp(73, (200, 200), 0), rows, rows[:, :1].ravel() ** 2


def test_a_single_example_gradient_gives_the_row_and_the_target_away():
    network, rows, targets = network_and_rows(1)
    x, y = torch.from_numpy(rows), torch.from_numpy(targets)[:, None]
    message = local_update(network, x, y, [torch.tensor([0])], TabularCase(1))
    guesses = row_candidates(message[0].numpy(), message[1].numpy())
    np.testing.assert_allclose(guesses[0], rows[0], atol=2e-3)
    with torch.no_grad():
        predicted = float(network(x))
    assert predicted - residual_from_bias(float(message[-1][0])) == pytest.approx(float(targets[0]), abs=1e-3)


def test_a_unit_that_one_row_alone_switches_on_gives_that_row_away_and_shared_units_a_mean():
    """Unit 0 sees row 0 only, unit 1 sees both with equal weight: ratios are row 0 and the mean."""
    rows = np.array([[1.0, 0.0, 2.0], [3.0, 4.0, 0.0]])
    pull = np.array([[0.5, 0.0], [0.2, 0.2]])  # dL/dz of each unit and row
    guesses = row_candidates(pull @ rows, pull.sum(1))[1:]  # the first is the best single row for both units
    np.testing.assert_allclose(guesses, [rows[0], rows.mean(0)])
    matches = match_rows(guesses, rows)
    assert (matches.exact, matches.near) == (1, 0)
    assert matches.error[0] == 0
    assert matches.guess[0] == 0


def test_a_guess_between_two_records_has_found_nobody():
    rows = np.array([[0.0, 0.0], [0.02, 0.0], [5.0, 5.0]])
    crowd = match_rows(np.array([[0.01 + 1e-6, 0.05]]), rows)
    assert (crowd.exact, crowd.near) == (0, 0)
    assert match_rows(np.array([[5.0, 5.001]]), rows).exact == 1


def test_a_record_is_counted_once_however_many_guesses_hit_it():
    rows = np.eye(4)
    assert match_rows(np.repeat(rows[:1], 10, axis=0), rows).exact == 1
    assert match_rows(np.zeros((0, 4)), rows).exact == 0


def test_rows_leak_less_as_batches_and_local_steps_grow():
    _, rows, targets = network_and_rows(300)
    cases = [
        TabularCase(1),
        TabularCase(8),
        TabularCase(64),
        TabularCase(1, 16, "sgd", 1e-2),
        TabularCase(1, 1, "adam"),
    ]
    leaks = list(tabular_leaks(rows, targets.astype(np.float32), cases, 3, 0))
    shares = [(one.exact + one.near) / one.rows for one in leaks]
    assert shares[0] == 1.0
    assert shares[0] >= shares[1] > shares[2]
    assert shares[4] == 0  # Adam's first step has the gradient's sign only
    assert max(leaks[0].target_errors) < 1e-2


# ---- defences


def message() -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    return [torch.randn(4, 5, generator=draw), torch.randn(4, generator=draw)]


def norm(parts) -> float:
    return float(sum(part.square().sum() for part in parts).sqrt())


@given(st.floats(0.01, 100))
@settings(max_examples=30)
def test_clipping_never_raises_a_norm_and_keeps_the_direction(limit):
    sent = clip(message(), limit)
    assert norm(sent) <= min(limit, norm(message())) * (1 + 1e-5)
    ratio = sent[0] / message()[0]
    torch.testing.assert_close(ratio, ratio[0, 0].expand_as(ratio))


def test_pruning_keeps_the_largest_entries():
    sent = prune([torch.tensor([1.0, -5.0, 0.2, 3.0])], 0.5)[0]
    assert sent.tolist() == [0.0, -5.0, 0.0, 3.0]


def test_noise_has_the_share_asked_for_and_is_repeatable():
    big = [torch.full((200, 200), 2.0)]
    sent = noise(big, 0.5, seed=1)
    assert float((sent[0] - big[0]).std()) == pytest.approx(1.0, rel=0.02)
    assert torch.equal(sent[0], noise(big, 0.5, seed=1)[0])
    assert not torch.equal(sent[0], noise(big, 0.5, seed=2)[0])


def test_int8_errs_by_at_most_half_a_step():
    part = message()[0]
    assert float((int8([part])[0] - part).abs().max()) <= float(part.abs().max()) / 127 / 2 * (1 + 1e-5)


def test_a_defence_is_named_in_what_the_attacker_sees():
    one = Defence("noise", 0.1).on(seen([1])[0])
    assert one.defences == ("noise:0.1",)
    assert "defended by noise:0.1" in one.threat_model


@pytest.mark.parametrize(
    ("text", "said"),
    [("nois:1", "did you mean 'noise'"), ("noise", "noise:NUMBER"), ("prune:1.5", "below 1"), ("fp16:2", "no strength"),
     ("clip:-1", "positive")],
)  # fmt: skip
def test_defences_that_do_not_exist_are_refused(text, said):
    with pytest.raises(ConfigError, match=said):
        parse_defence(text)


# ---- images


@pytest.mark.parametrize("name", sorted(EMBEDDED))
def test_embedded_images_need_no_download_and_lie_between_0_and_1(name):
    images = load_images(name)
    assert images.images.dtype == np.float32
    assert images.images.min() >= 0
    assert images.images.max() <= 1
    assert len(images) >= 200
    assert set(images.labels) == set(range(images.num_classes))


def test_an_npz_of_the_user_is_read_and_its_faults_are_named(tmp_path):
    good = tmp_path / "mine.npz"
    np.savez(good, images=np.full((3, 6, 6), 255, np.uint8), labels=np.array([0, 2, 1]))
    images = load_images(str(good))
    assert images.shape == (1, 6, 6)
    assert images.num_classes == 3
    assert images.images.max() == 1.0
    for name, arrays, said in (
        ("a", {"images": np.zeros((2, 6, 6))}, "array 'labels' is missing"),
        ("b", {"images": np.zeros((2, 6, 6)), "labels": np.array([0, -1])}, "label -1 is out of range"),
        ("c", {"images": np.full((2, 6, 6), 7.0), "labels": np.array([0, 1])}, "0..1"),
        ("d", {"images": np.zeros((2, 6)), "labels": np.array([0, 1])}, r"images \(2, 6\)"),
        ("e", {"images": np.zeros((2, 6, 6)), "labels": np.array([0.5, 1])}, "whole numbers"),
        ("f", {"images": np.array([[[0.5]], [[np.nan]]]), "labels": np.array([0, 1])}, "image 1 has values"),
        ("g", {"images": np.zeros((2, 6, 6)), "labels": np.array([0, 2]), "class_names": np.array(["a", "b"])},
         "label 2 is out of range; class_names has 2 names"),
    ):  # fmt: skip
        np.savez(tmp_path / f"{name}.npz", **arrays)
        with pytest.raises(DataError, match=said):
            load_images(str(tmp_path / f"{name}.npz"))
    (tmp_path / "torn.npz").write_bytes(b"PK\x03\x04 cut off")
    with pytest.raises(DataError, match=r"not an \.npz file"):
        load_images(str(tmp_path / "torn.npz"))


def test_a_folder_of_pictures_has_its_subfolders_as_classes(tmp_path):
    from PIL import Image

    for name in ("cats", "dogs"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (40, 30), (255, 0, 0)).save(tmp_path / name / "one.png")
    images = load_images(str(tmp_path), side=16)
    assert images.shape == (3, 16, 16)
    assert images.labels.tolist() == [0, 1]
    (tmp_path / "cats" / "broken.png").write_bytes(b"not a picture")
    with pytest.raises(DataError, match=r"broken\.png cannot be read"):
        load_images(str(tmp_path))


def test_images_that_are_not_there_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="did you mean 'digits'"):
        load_images("digit")
    with pytest.raises(DataError, match="no such file"):
        load_images(str(tmp_path / "none.npz"))
    with pytest.raises(DataError, match="no picture"):
        load_images(str(tmp_path))
    with pytest.raises(ConfigError, match="images=9999"):
        load_images("digits").sample(9999, 0)


def test_segmentation_labels_are_the_bright_pixels():
    image = torch.tensor([[[[0.0, 1.0], [0.2, 0.9]]]])
    assert masks(image).tolist() == [[[0, 1], [0, 1]]]


@pytest.mark.parametrize("size", [2, 5, 8])
def test_small_relu_batches_are_factored_exactly(size):
    rng = np.random.default_rng(size)
    rows = rng.standard_normal((size, 20))
    units = rng.standard_normal((60, 20))
    gradients = rng.standard_normal((size, 60)) * (rows @ units.T > 0)
    found = factor_candidates(gradients.T @ rows, gradients.sum(0), size)
    errors = [np.abs(found - row).max(1).min() for row in rows]
    assert max(errors) < 1e-6


def test_messages_without_a_relus_zeros_and_large_batches_have_no_factors():
    rng = np.random.default_rng(0)
    rows, gradients = rng.standard_normal((4, 20)), rng.standard_normal((4, 60))
    assert factor_candidates(gradients.T @ rows, gradients.sum(0), 4).shape == (0, 20)
    assert factor_candidates(np.zeros((60, 20)), np.zeros(60), 2).shape == (0, 20)
    assert factor_candidates(gradients.T @ rows, gradients.sum(0), 100).shape == (0, 20)


def test_a_single_row_is_seen_through_noise_by_all_units_together():
    rng = np.random.default_rng(0)
    row, gradient = rng.standard_normal(20), rng.standard_normal(200)
    message = np.outer(gradient, np.append(row, 1.0))
    message += 0.1 * message.std() * rng.standard_normal(message.shape)
    together, *single = row_candidates(message[:, :-1], message[:, -1])
    assert np.sqrt(np.square(together - row).mean()) < NEAR
    assert np.median([np.sqrt(np.square(each - row).mean()) for each in single]) > NEAR
