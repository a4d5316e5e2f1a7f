"""What other programs read of a run: model files with their cards, TensorBoard events."""

import math
import os

import numpy as np
import pytest

from ray_fed.errors import ConfigError, DataError
from ray_fed.reporting.model_files import ModelCard, load_model, model_paths, save_model
from ray_fed.reporting.tensorboard_log import EventLog, global_tag, silo_tag


def make_card(**changes) -> ModelCard:
    values = {
        "name": "federated", "property": "formation_energy_per_atom", "unit": "eV/atom",
        "descriptor": {"name": "guo73", "table_hash": "ab" * 32}, "feature_names": ("x1", "x2"),
        "architecture": {"type": "mlp", "hidden": [200, 200]}, "hyperparameters": {"lr": 1e-3}, "seed": 0,
        "data": ({"name": "mit", "rows": 10},), "split": {"how": "grouped"},
        "metrics": {"test": {"mae": 0.17, "r2": math.nan, "n": 2897}}, "created": "2026-01-01T00:00:00+00:00",
    }  # fmt: skip
    return ModelCard(**(values | changes))


def make_arrays() -> dict[str, np.ndarray]:
    return {
        "parameters": np.arange(6, dtype=np.float32).reshape(2, 3),
        "scaler.mean": np.array([0.5, -1.0]),
        "scaler.scale": np.array([1.0, 2.0]),
        "step": np.array(7, np.int64),
    }


def test_a_model_reads_back_bit_for_bit_by_any_of_its_names(tmp_path):
    arrays = make_arrays()
    saved = save_model(tmp_path / "models" / "silo.v2", arrays, make_card())
    for name in ("silo.v2", "silo.v2.safetensors", "silo.v2.card.json"):
        loaded, card = load_model(tmp_path / "models" / name)
        assert card.id == saved.id
        assert card.feature_names == ("x1", "x2")
        assert card.metrics["test"] == {"mae": 0.17, "r2": None, "n": 2897}
        assert card.federation["privacy"] == "none"
        assert {key: (a.dtype, a.shape, a.tobytes()) for key, a in loaded.items()} == {
            key: (a.dtype, a.shape, a.tobytes()) for key, a in arrays.items()
        }
        assert all(array.flags.writeable for array in loaded.values())


def test_a_transposed_view_is_saved_as_it_reads_not_as_it_lies_in_memory(tmp_path):
    arrays = make_arrays() | {"view": np.arange(6.0).reshape(2, 3).T, "strided": np.arange(6.0)[::2]}
    save_model(tmp_path / "m", arrays, make_card())
    loaded, _ = load_model(tmp_path / "m")
    assert loaded["view"].tolist() == [[0.0, 3.0], [1.0, 4.0], [2.0, 5.0]]
    assert loaded["strided"].tolist() == [0.0, 2.0, 4.0]


def test_the_id_is_that_of_content_not_of_the_day(tmp_path):
    first = save_model(tmp_path / "a", make_arrays(), make_card())
    again = save_model(tmp_path / "b", make_arrays(), make_card(created="2027-01-01T00:00:00+00:00"))
    other_seed = save_model(tmp_path / "c", make_arrays(), make_card(seed=1))
    other_weights = save_model(tmp_path / "d", make_arrays() | {"step": np.array(8)}, make_card())
    assert first.id == again.id
    assert len({first.id, other_seed.id, other_weights.id}) == 3


def test_a_changed_weight_a_cut_file_and_a_changed_card_are_refused(tmp_path):
    save_model(tmp_path / "m", make_arrays(), make_card())
    weights, card = model_paths(tmp_path / "m")
    good_weights, good_card = weights.read_bytes(), card.read_text()
    flipped = bytearray(good_weights)
    flipped[-1] ^= 1
    for damaged in (bytes(flipped), good_weights[:-8], b""):
        weights.write_bytes(damaged)
        with pytest.raises(DataError, match=r"m\.safetensors: sha256 is"):
            load_model(tmp_path / "m")
    weights.write_bytes(good_weights)
    card.write_text(good_card.replace("eV/atom", "kJ/mol"))
    with pytest.raises(DataError, match="the card was changed"):
        load_model(tmp_path / "m")
    for broken in ("{", "[]", "{}", '{"name": 1, "licence": "x", "unheard": 2}'):
        card.write_text(broken)
        with pytest.raises(DataError, match="is not a model card"):
            load_model(tmp_path / "m")


@pytest.mark.parametrize("which", [0, 1])
def test_half_a_model_is_refused_with_the_name_of_the_missing_file(tmp_path, which):
    save_model(tmp_path / "m", make_arrays(), make_card())
    missing = model_paths(tmp_path / "m")[which]
    missing.unlink()
    with pytest.raises(DataError, match=rf"{missing.name} cannot be read .*a pair of"):
        load_model(tmp_path / "m")


def test_a_scaler_that_is_missing_misshapen_or_not_finite_is_refused_before_anything_is_written(tmp_path):
    without = {key: value for key, value in make_arrays().items() if key != "scaler.scale"}
    cases = [
        (without, "array 'scaler.scale' is missing"),
        (make_arrays() | {"scaler.mean": np.zeros(3)}, r"has shape \(3,\)"),
        (make_arrays() | {"scaler.mean": np.array([0.0, np.nan])}, "holds NaN"),
    ]
    for arrays, message in cases:
        with pytest.raises(ConfigError, match=message):
            save_model(tmp_path / "m", arrays, make_card())
    assert list(tmp_path.iterdir()) == []


def test_a_card_given_as_a_mapping_is_checked_for_misspelt_fields(tmp_path):
    values = make_card().to_mapping()
    assert save_model(tmp_path / "m", make_arrays(), values).name == "federated"
    with pytest.raises(ConfigError, match=r"unknown fields \['licens'\]"):
        save_model(tmp_path / "n", make_arrays(), values | {"licens": "MIT"})
    del values["unit"]
    with pytest.raises(ConfigError, match=r"missing fields \['unit'\]"):
        save_model(tmp_path / "n", make_arrays(), values)


def test_a_crash_between_weights_and_card_is_noticed(tmp_path, monkeypatch):
    save_model(tmp_path / "m", make_arrays(), make_card())
    replaced, original = [], os.replace

    def crash_at_the_second(source, target):
        replaced.append(target)
        if len(replaced) == 2:
            raise KeyboardInterrupt
        original(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", crash_at_the_second)
        with pytest.raises(KeyboardInterrupt):
            save_model(tmp_path / "m", make_arrays() | {"step": np.array(8)}, make_card())
    with pytest.raises(DataError, match="sha256 is"):
        load_model(tmp_path / "m")


# ---- TensorBoard events


def read_events(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(folder)).Reload()


def test_scalars_images_and_texts_read_back_from_the_event_file(tmp_path):
    picture = np.zeros((4, 6, 3), np.uint8)
    with EventLog(tmp_path / "federated") as log:
        for step in range(3):
            log.scalar(global_tag("mae"), 0.5 / (step + 1), step)
        log.scalars({silo_tag("<b>a/b", "loss"): math.nan}, 1)
        log.image("figures/parity", picture)
        log.text("about", "model data, **not** DFT")
    events = read_events(tmp_path / "federated")
    assert [(e.step, e.value) for e in events.Scalars("global/mae")] == [
        (0, 0.5), (1, 0.25), (2, pytest.approx(1 / 6)),
    ]  # fmt: skip
    assert math.isnan(events.Scalars("silo/<b>a/b/loss")[0].value)
    image = events.Images("figures/parity")[0]
    assert (image.width, image.height) == (6, 4)
    assert image.encoded_image_string.startswith(b"\x89PNG")
    assert events.Tensors("about")[0].tensor_proto.string_val == [b"model data, **not** DFT"]
    assert events.SummaryMetadata("about").plugin_data.plugin_name == "text"


def test_an_image_can_be_a_png_file(tmp_path):
    from PIL import Image

    Image.new("RGB", (3, 2)).save(tmp_path / "p.png")
    with EventLog(tmp_path / "log") as log:
        log.image("p", tmp_path / "p.png", step=4)
    [event] = read_events(tmp_path / "log").Images("p")
    assert (event.step, event.width, event.height) == (4, 3, 2)
    assert event.encoded_image_string == (tmp_path / "p.png").read_bytes()


def test_the_custom_layout_groups_each_quantity_and_matches_only_its_own_silos(tmp_path):
    import re

    from tensorboard.plugins.custom_scalar import layout_pb2

    with EventLog(tmp_path) as log:
        log.custom_layout(["a.b", "c+"], {"mae": "MAE", "loss": "Loss"})
    [event] = read_events(tmp_path).Tensors("custom_scalars__config__")
    layout = layout_pb2.Layout.FromString(event.tensor_proto.string_val[0])
    assert [category.title for category in layout.category] == ["Federation", "Silos"]
    patterns = list(layout.category[1].chart[0].multiline.tag)
    tags = ["silo/a.b/mae", "silo/c+/mae", "silo/aXb/mae", "silo/cc/mae", "silo/a.b/loss", "other/silo/c+/mae"]
    assert [tag for tag in tags if any(re.match(p, tag) for p in patterns)] == ["silo/a.b/mae", "silo/c+/mae"]


def test_closing_twice_is_harmless_and_writing_afterwards_is_our_mistake(tmp_path):
    log = EventLog(tmp_path)
    log.close()
    log.close()
    with pytest.raises(AssertionError, match="closed"):
        log.scalar("x", 1.0, 0)
