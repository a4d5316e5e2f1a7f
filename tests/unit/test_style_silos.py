"""Fields and noise of images, a silo's style models, sources, and the tables of a run."""

import ast
import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from pipelines.fedtransfer.config import METHOD_NAMES, resolved
from pipelines.fedtransfer.experiment import Choice
from pipelines.fedtransfer.results import GLOBAL, Cell, model_results, table_rows, verdicts
from pipelines.fedtransfer.setup import folder_of, mask_meaning
from ray_fed.errors import ConfigError, DataError, SiloFailed
from ray_fed.federation import silo as silo_module
from ray_fed.federation.messages import SessionSpec
from ray_fed.federation.silo import make_silo
from ray_fed.federation.task import SiloSpec
from ray_fed.learning.layout import Layout, initial_vector
from ray_fed.learning.private_steps import PrivateSteps
from ray_fed.learning.trainer import TrainingPlan
from ray_fed.micrographs.line_widths import line_width, pixels_to_widen, widened
from ray_fed.micrographs.mask_meaning import MaskMeaning
from ray_fed.micrographs.micrograph_set import MicrographSet
from ray_fed.micrographs.polycrystals import polycrystal_set
from ray_fed.micrographs.unet import UNetDesign
from ray_fed.style_transfer.exchange import total_bytes
from ray_fed.style_transfer.image_features import drawn_fields, measured_fields, noise_level
from ray_fed.style_transfer.methods import METHODS, method_named
from ray_fed.style_transfer.networks import GeneratorSpec
from ray_fed.style_transfer.sources import PooledSource, Split, SplitPolycrystalSource
from ray_fed.style_transfer.style_models import StyleModels
from ray_fed.style_transfer.style_trial import StyleTrial, StyleTrialPlan, trained_score
from ray_fed.style_transfer.task import FedTransferTask, StyleSilo, session_name
from ray_fed.style_transfer.training import PRESETS

ROOT = Path(__file__).parents[2]
SIZE = 32
PLAN = dataclasses.replace(PRESETS["hybrid"], generator=GeneratorSpec("unet", 4, 2), discriminator_width=4, epochs=1)


def tiles(name="a", count=6, seed=0, grey=120):
    rng = np.random.default_rng(seed)
    masks = np.zeros((count, SIZE, SIZE), np.uint8)
    masks[:, 14:17] = masks[:, :, 9:12] = 1
    images = np.clip(rng.normal(grey, 6, masks.shape) - 60 * masks, 0, 255).astype(np.uint8)
    return MicrographSet(name, images, masks, tuple(f"{name}{i}" for i in range(count)))


def style_models(name="a", folder="", seed=0, grey=120):
    return StyleModels(name, tiles(name, 6, seed, grey), tiles(name, 5, seed + 1, grey), "cpu", str(folder))


def test_noise_is_measured_whatever_the_slope_of_the_light():
    rows, columns = np.indices((64, 64))
    slope = 80 + 0.9 * rows + 0.01 * columns**2
    images = np.clip(slope + np.random.default_rng(0).normal(0, 7, (4, 64, 64)), 0, 255).round().astype(np.uint8)
    assert noise_level(images, np.zeros_like(images)) == pytest.approx(7, rel=0.05)


def test_a_bright_side_and_a_deep_line_show_in_the_fields():
    masks = np.zeros((2, 66, 66), np.uint8)
    masks[:, 32:35] = 1
    images = np.full((2, 66, 66), 100, np.uint8)
    images[0, :, 33:] = 140
    images[1, 32:35, :22] = 20
    fields, light = measured_fields(images, masks)
    assert fields[0, 0, 10, 60] > 0 > fields[0, 0, 10, 5]
    assert light[0, 10, 60] - light[0, 10, 5] == pytest.approx(40, abs=8)
    assert fields[1, 1, 33, 5] < fields[1, 1, 33, 60]


def test_drawn_fields_depend_on_the_generator_alone_and_stay_near_unit_variance():
    a, b = (drawn_fields(64, (64, 64), torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(a, b)
    assert 0.4 < float(a.std()) < 1.2


@pytest.mark.parametrize("width", [1, 3, 5])
def test_the_width_of_a_line_is_its_width(width):
    masks = np.zeros((1, 40, 40), np.uint8)
    masks[:, 10 : 10 + width] = 1
    assert line_width(masks) == pytest.approx(width if width > 1 else 2, abs=0.01)


@pytest.mark.parametrize(("own", "wanted"), [(3, 5), (5, 3), (3, 3), (5, 1)])
def test_lines_are_redrawn_at_the_width_a_sender_draws_them(own, wanted):
    masks = np.zeros((2, 40, 40), np.uint8)
    masks[:, 10 : 10 + own] = 1
    redrawn = widened(masks, pixels_to_widen(own, wanted))
    expected = np.zeros_like(masks)
    expected[:, 10 + (own - wanted) // 2 : 10 + (own + wanted) // 2] = 1
    np.testing.assert_array_equal(redrawn, expected)


def test_lines_are_never_thinned_until_they_break():
    assert pixels_to_widen(3.0, 0.5) == -1
    assert pixels_to_widen(2.0, 0.5) == 0


def test_style_models_train_release_and_paint_with_what_another_sent(tmp_path):
    sender, receiver = style_models("a", tmp_path / "a"), style_models("b", tmp_path / "b", 5, 60)
    report = sender.learn(PLAN, 0)
    assert report.codecs["int8"].num_bytes * 3 < report.codecs["fp32"].num_bytes
    assert report.codecs["fp32"].psnr_db is None
    assert report.codecs["int8"].psnr_db > report.codecs["int4"].psnr_db
    receiver.receive("a", "int8", sender.release("int8"))
    index = np.arange(6)
    first, again, other = (receiver.transferred("int8", index, seed)["a"] for seed in (1, 1, 2))
    assert first.shape == (6, SIZE, SIZE)
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_style_models_that_start_again_find_their_generator_and_what_they_received(tmp_path, monkeypatch):
    sender, receiver = style_models("a", tmp_path / "a"), style_models("b", tmp_path / "b", 5)
    sender.learn(PLAN, 0)
    receiver.receive("a", "int8", sender.release("int8"))
    from ray_fed.style_transfer import style_models as module

    monkeypatch.setattr(module, "GeneratorTraining", None)  # training again would fail
    reborn, received = style_models("a", tmp_path / "a"), style_models("b", tmp_path / "b", 5)
    assert reborn.learn(PLAN, 0) == sender.report
    np.testing.assert_array_equal(reborn.release("fp32"), sender.release("fp32"))
    received.recall_received()
    index = np.arange(3)
    np.testing.assert_array_equal(
        received.transferred("int8", index, 1)["a"], receiver.transferred("int8", index, 1)["a"]
    )


def test_a_damaged_file_of_a_received_style_is_named(tmp_path):
    sender, receiver = style_models("a", tmp_path / "a"), style_models("b", tmp_path / "b", 5)
    sender.learn(PLAN, 0)
    receiver.receive("a", "int8", sender.release("int8"))
    (path,) = (tmp_path / "b").glob("received-*")
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(DataError, match=r"received-a-int8\.style"):
        style_models("b", tmp_path / "b", 5).recall_received()


def test_a_received_style_under_the_name_of_another_silo_or_codec_is_refused_at_the_next_start(tmp_path):
    sender, receiver = style_models("a", tmp_path / "a"), style_models("b", tmp_path / "b", 5)
    sender.learn(PLAN, 0)
    receiver.receive("a", "int8", sender.release("int8"))
    (path,) = (tmp_path / "b").glob("received-*")
    for name, reader in (
        (path.name.replace("-a-", "-c-"), "b"),
        (path.name.replace("int8", "fp16"), "b"),
        (path.name, "a"),
    ):
        moved = path.rename(path.with_name(name))
        with pytest.raises(DataError, match=rf"{name}: it holds the generator of silo 'a' as int8"):
            style_models(reader, tmp_path / "b", 5).recall_received()
        path = moved.rename(path)


def test_a_generator_that_repeats_its_images_stays_unless_its_silo_says_otherwise():
    own = style_models()
    own.learn(PLAN, 0)
    assert own.report is not None
    own.report = dataclasses.replace(own.report, finding=dataclasses.replace(own.report.finding, num_copies=2))
    with pytest.raises(DataError, match=r"silo 'a' keeps its generator: memorisation.*--memorisation warn"):
        own.release("int8")
    assert len(own.release("int8", checks=False)) > 0


def test_without_what_a_method_needs_style_models_say_so():
    own = style_models()
    for call, said in (
        (lambda: own.release("int8"), "no generator yet"),
        (lambda: own.transferred("int8", np.arange(2), 0), "received no generator as int8"),
        (lambda: own.amplitude_painted(np.arange(2), 0), "received no amplitudes"),
    ):
        with pytest.raises(DataError, match=said):
            call()


def test_training_validation_and_test_images_share_nothing():
    source = SplitPolycrystalSource("iron", num_images=20, num_test=5, size=32, spacing=14.0)
    parts = source.parts("iron")
    sources = [set(part.sources) for part in parts]
    assert [len(found) for found in sources] == [16, 4, 5]
    assert not sources[0] & sources[1]
    assert not (sources[0] | sources[1]) & sources[2]
    other = dataclasses.replace(source, split=Split(fold=1)).parts("iron")
    assert set(other.validation.sources).isdisjoint(parts.validation.sources)
    assert other.test.sources == parts.test.sources
    pooled = PooledSource((("a", source), ("b", source))).parts("pooled")
    assert len(pooled.train) == 32
    assert {name.split("/")[0] for name in pooled.test.sources} == {"a", "b"}


def test_a_session_says_its_method_and_so_its_network():
    task = FedTransferTask()
    assert task.for_session(session_name(METHODS["fed_avg_gn"], 0, 3)).design.norm == "group"
    assert task.for_session(session_name(METHODS["fed_avg"], 0, 3)).design.norm == "batch"
    assert set(METHODS) == set(METHOD_NAMES)
    assert method_named("oracle").pool == "oracle"


def test_a_style_silo_answers_none_but_its_questions():
    known = StyleSilo(SiloSpec("a", None), FedTransferTask()).queries()
    assert "open" not in known
    assert all(callable(answer) for answer in known.values())


def classes_of_silos():
    """(file, class) of every kind of silo, the common one left out."""
    for folder in ("ray_fed", "actors", "pipelines"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.ClassDef) and any(ast.unparse(base).endswith("Silo") for base in node.bases):
                    yield path, node


def test_no_kind_of_silo_has_an_open_session_of_its_own():
    kinds = list(classes_of_silos())
    assert "StyleSilo" in {node.name for _, node in kinds}
    for path, node in kinds:
        own = {part.name for part in node.body if isinstance(part, ast.FunctionDef)}
        assert "open_session" not in own, f"{path}: {node.name}"


def opened_silo(folder="", **options):
    source = SplitPolycrystalSource("iron", num_images=10, num_test=2, size=32, spacing=14.0)
    task = FedTransferTask(UNetDesign((8, 16)), batch_size=4)
    silo = make_silo(SiloSpec("iron", source, state_folder=str(folder)), task)
    silo.open()
    silo.prepare(None)
    plan = TrainingPlan(seed=0, epochs=2, steps_per_epoch=3, num_rounds=2)
    method = METHODS["fed_avg_gn"]
    module = task.of(method).model(0)
    spec = SessionSpec(session_name(method, 0, 0), plan, 0, Layout.of(module).digest, kept_states=2)
    return silo, dataclasses.replace(spec, **options), initial_vector(module)


def test_a_style_silo_opens_no_more_sessions_than_any_other(monkeypatch):
    silo, spec, _ = opened_silo()
    silo.open_session(spec)
    monkeypatch.setattr(silo_module, "MOST_SESSIONS", 1)
    silo.open_session(spec)  # the same one again
    with pytest.raises(SiloFailed, match="it has 1 open already, and that is the most"):
        silo.open_session(dataclasses.replace(spec, session=session_name(METHODS["fed_avg_gn"], 0, 1)))


def test_a_style_silo_counts_its_private_steps_across_restarts(tmp_path):
    plan = TrainingPlan(0, 2, 3, 2, private=PrivateSteps(1.0, most_steps=3, public_examples=6))
    silo, spec, vector = opened_silo(tmp_path, plan=plan)
    silo.open_session(spec)
    silo.fit(spec.session, 1, vector)
    again, _, _ = opened_silo(tmp_path)
    again.open_session(spec)
    with pytest.raises(SiloFailed, match="its privacy budget is spent: 3 of 3"):
        again.fit(spec.session, 2, vector)


def test_a_style_silo_masks_its_updates_where_the_session_asks_for_it():
    silo, spec, _ = opened_silo(secure_threshold=2)
    assert not silo.secure.is_secure(spec.session)
    silo.open_session(spec)
    assert silo.secure.is_secure(spec.session)


def test_the_chosen_round_is_the_one_with_the_lowest_loss_and_keeps_its_own_model():
    choice, vector = Choice(), np.zeros(2, np.float32)
    for server_round, loss in enumerate([3.0, 1.0, 2.0, float("nan")]):
        vector[:] = server_round
        choice.sees(server_round, {"m": loss}, {"m": vector})
    assert choice.rounds == {"m": 1}
    assert choice.vectors["m"].tolist() == [1, 1]


def test_bytes_of_an_exchange_count_every_message_up_and_every_copy_down():
    assert total_bytes({("a", "b"): 10, ("a", "c"): 10, ("b", "a"): 7, ("b", "c"): 7}) == 34 + 17


def line(method, model, a, b, seed=0):
    silos = {name: {"map": value, "vi": 1 - value, "ari": value, "loss": 0.1} for name, value in (("a", a), ("b", b))}
    return {"stage": f"{method}@{seed}", "fold": 0, "method": method, "test": {model: silos}}


def test_a_cell_is_mean_and_sample_standard_deviation_and_global_the_mean_of_the_test_sets():
    assert str(Cell((0.1, 0.3))) == "0.200 ± 0.141"
    rows = model_results(
        [line("fed_avg", "federated", 0.2, 0.4), line("fed_avg", "federated", 0.4, 0.4, 1)], ["a", "b"]
    )
    assert rows[0].cells[GLOBAL, "map"].values == pytest.approx((0.3, 0.4))
    assert table_rows(rows, ["a", "b"])[0][0] == "FedAvg"


def test_a_method_with_fewer_runs_than_others_says_how_many():
    lines = [
        *(line("fed_avg", "federated", 0.2, 0.4, seed) for seed in range(3)),
        line("fed_bn", "federated", 0.5, 0.5),
    ]
    assert [row.title for row in model_results(lines, ["a", "b"])] == ["FedAvg", "FedBN (1 run)"]


def test_the_verdict_says_when_a_cheap_method_wins():
    lines = [
        line("separate", "a", 0.3, 0.0),
        line("fed_avg", "federated", 0.3, 0.3),
        line("fed_bn", "federated", 0.7, 0.7),
        line("transfer_int8", "federated", 0.5, 0.5),
        line("central", "federated", 0.8, 0.8),
    ]
    said = verdicts(model_results(lines, ["a", "b"]))
    assert any("order" in text and "holds in MAP, MVI, ARI" in text for text in said)
    (against,) = [text for text in said if "compared with FedBN" in text]
    assert all(f"{metric} (" in against for metric in ("MAP", "MVI", "ARI"))
    assert "worse in MAP (0.500 against 0.700)" in against


def test_the_order_comes_with_its_smallest_step_in_standard_errors():
    def runs(method, first, second):
        return [line(method, "federated", first, first, 0), line(method, "federated", second, second, 1)]

    lines = [*runs("fed_avg", 0.2, 0.4), *runs("transfer_int8", 0.5, 0.7), *runs("central", 0.8, 0.8)]
    said = verdicts(model_results(lines, ["a", "b"]))[0]
    # FedAvg 0.3, FedTransfer 0.6, centralised 0.8; every spread 0.141 or 0, so the last step is 0.2 / 0.1 = 2.
    assert "holds in MAP (2.0), MVI (2.0), ARI (2.0)" in said
    closer = [*lines[:4], *runs("central", 0.61, 0.61)]
    said = verdicts(model_results(closer, ["a", "b"]))[0]
    assert "holds, but not beyond the spread over runs, in MAP (0.1), MVI (0.1), ARI (0.1)" in said
    said = verdicts(model_results([*lines[:4], *runs("central", 0.5, 0.5)], ["a", "b"]))[0]
    assert said.endswith("does not hold in MAP, MVI, ARI.")


@pytest.mark.parametrize(
    ("said", "meaning"),
    [
        ("boundary:1+2", MaskMeaning(boundary=(1, 2))),
        ("between_classes", MaskMeaning(between_classes=True)),
        ("instances", MaskMeaning(instances=True)),
        ("threshold:127", MaskMeaning(threshold=127)),
        ("threshold-below:90", MaskMeaning(threshold_below=90)),
    ],
)
def test_what_masks_mean_is_said_per_silo(said, meaning):
    config = resolved({"data": ("lab=x", "iron"), "masks": (f"lab={said}",)})
    assert folder_of("lab", "x", config).meaning == mask_meaning("lab", said) == meaning
    assert mask_meaning("other", "") == MaskMeaning()


@pytest.mark.parametrize("said", ["boundary:two", "127", "threshold:", "lines"])
def test_a_meaning_that_says_nothing_is_answered_with_all_that_do(said):
    with pytest.raises(ConfigError, match=r"lab=between_classes, .*lab=boundary:NUMBER.* lab=threshold-below:NUMBER"):
        mask_meaning("lab", said)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"masks": ("lab=boundary:2", "lab=boundary:3")}, "'lab' is told twice"),
        ({"pixel_size_um": ("iron=0.5",)}, "'iron' is drawn by this package"),
        ({"pixel_size_um": ("lab=500",)}, "if it is in nanometres, say 0.5"),
        ({"pixel_size_um": ("lab=fine",)}, "'fine' is no number"),
        ({"source_pattern": ("mine=(.+)",)}, "there are the silos lab, iron"),
    ],
)
def test_what_is_said_of_a_silo_is_said_once_and_of_one_with_files(options, words):
    config = resolved({"data": ("lab=x", "iron"), **options})
    with pytest.raises(ConfigError, match=words):
        folder_of("lab", "x", config)


def test_options_count_more_than_the_preset():
    assert resolved({"preset": "quick"}).size == 64
    assert resolved({"preset": "quick", "size": 96}).size == 96
    paper = resolved({"preset": "paper"})
    assert (paper.size, paper.images * 4 // 5, paper.rounds, paper.num_folds) == (400, 560, 20, 5)


def test_a_style_that_teaches_nothing_is_left_out_and_one_that_does_is_used(tmp_path):
    train, validation = (
        polycrystal_set("iron", 0, count, size=32, spacing=14, first=at) for count, at in ((8, 0), (4, 90))
    )
    real = {"map": 0.4, "vi": 1.0, "ari": 0.5}
    models = StyleModels("own", train, validation, "cpu", str(tmp_path))
    models._received = {(name, "int8"): None for name in ("good", "poor")}  # type: ignore[dict-item]
    models.trials = {
        ("good", "int8"): StyleTrial({"map": 0.1, "vi": 2.0, "ari": 0.2}, real),
        ("poor", "int8"): StyleTrial({"map": 0.0, "vi": 3.0, "ari": -0.01}, real),
    }
    models.least_help = 0.1
    assert models._senders("int8") == ["good"]
    models.least_help = 0.0
    assert models._senders("int8") == ["good", "poor"]


def test_a_trial_tells_images_that_show_their_labels_from_images_that_do_not():
    tiles = polycrystal_set("iron", 0, 12, size=32, spacing=14)
    plan = StyleTrialPlan(UNetDesign(widths=(8, 16)), steps=40, batch_size=4, learning_rate=1e-2, erasing=0.0)
    train, validation = tiles.subset(range(8)), tiles.subset(range(8, 12))
    real = trained_score(plan, train.images, train.masks, validation, 0)
    blank = trained_score(plan, np.full_like(train.images, 128), train.masks, validation, 0)
    assert real["ari"] > 0.1
    assert StyleTrial(blank, real).help_share < 0.1 < StyleTrial(real, real).help_share
    assert real == trained_score(plan, train.images, train.masks, validation, 0)
