"""The final model as an owner's file: what is no model is not kept, and nothing of the other side chooses where."""

import hashlib
import json
from dataclasses import replace

import numpy as np
import pytest

from ray_fed.errors import ConfigError, DataError, PerimeterRefused
from ray_fed.perimeter import received_model
from ray_fed.perimeter.received_model import keep_model
from ray_fed.reporting.model_files import ModelCard, load_model, model_paths, save_model
from tests.boundaries import guarded, write_site

CARD = ModelCard(
    "../../evil", "formation_energy_per_atom", "eV/atom", {"name": "guo65"}, ("a", "b"), {"type": "mlp"}, {}, 0, (), {},
    {"test": {}},
)  # fmt: skip
SCALER = {"scaler.mean": np.zeros(2), "scaler.scale": np.ones(2)}


def as_bytes(path):
    return tuple(np.fromfile(part, np.uint8) for part in model_paths(path))


@pytest.fixture
def sent(tmp_path):
    """The bytes of a model and of its card."""
    save_model(tmp_path / "sent", {"weight": np.arange(4.0), **SCALER}, CARD)
    return as_bytes(tmp_path / "sent")


def test_a_model_is_kept_as_it_was_sent_under_a_name_of_the_owners_side(sent, tmp_path):
    path = keep_model(tmp_path / "models", *sent)
    assert path.parent == tmp_path / "models"
    assert path.name.startswith("model-2")
    arrays, card = load_model(path)
    assert card.name == "../../evil"
    assert arrays["weight"].tolist() == [0, 1, 2, 3]
    assert sorted(part.stat().st_mode & 0o777 for part in (tmp_path / "models").iterdir()) == [0o600, 0o600]
    assert (tmp_path / "models").stat().st_mode & 0o777 == 0o700


def changed(card, **changes):
    content = json.loads(card.tobytes()) | changes
    return np.frombuffer(json.dumps(content).encode(), np.uint8)


HOSTILE = {
    "weights of another card": lambda weights, card: (np.concatenate([weights, weights]), card),
    "a changed card": lambda weights, card: (weights, changed(card, name="other")),
    "a card that says the hash it wants": lambda weights, card: (weights, changed(card, weights_sha256="0" * 64)),
    "no card": lambda weights, _: (weights, np.frombuffer(b"[]", np.uint8)),
    "a card with an unknown field": lambda weights, card: (weights, changed(card, path="/etc")),
    "a deep card": lambda weights, _: (weights, np.frombuffer(b"[" * 10**5, np.uint8)),
    "a long card": lambda weights, _: (weights, np.zeros(1 << 23, np.uint8)),
    "numbers for weights": lambda weights, card: (weights.astype(np.float64), card),
    "a table for weights": lambda weights, card: (weights.reshape(-1, 1), card),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_what_is_no_model_leaves_no_file(sent, tmp_path, what):
    with pytest.raises(DataError):
        keep_model(tmp_path / "models", *HOSTILE[what](*sent))
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize("weights", [b"no safetensors", np.float64(np.nan)], ids=["text", "nan"])
def test_weights_that_fit_their_card_must_still_be_weights(tmp_path, weights):
    if isinstance(weights, bytes):
        made = save_model(tmp_path / "m", {"weight": np.arange(4.0), **SCALER}, CARD)
        (tmp_path / "m.safetensors").write_bytes(weights)
        made = replace(made, weights_sha256=hashlib.sha256(weights).hexdigest(), id="")
        made = replace(made, id=made.digest())
        (tmp_path / "m.card.json").write_text(json.dumps(made.to_mapping()))
    else:
        save_model(tmp_path / "m", {"weight": np.array([weights]), **SCALER}, CARD)
    with pytest.raises(DataError, match=r"no safetensors file|not finite"):
        keep_model(tmp_path / "models", *as_bytes(tmp_path / "m"))


def test_a_folder_holds_so_many_and_others_cannot_write_it(sent, tmp_path, monkeypatch):
    monkeypatch.setattr(received_model, "MOST_MODELS", 1)
    keep_model(tmp_path / "models", *sent)
    with pytest.raises(ConfigError, match="holds 1 models, and that is the most; move some elsewhere"):
        keep_model(tmp_path / "models", *sent)
    (tmp_path / "open").mkdir(mode=0o777)
    (tmp_path / "open").chmod(0o777)
    with pytest.raises(ConfigError, match="others can write this folder"):
        keep_model(tmp_path / "open", *sent)


def test_an_owner_who_names_no_folder_takes_none(sent, tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_FED_SITE", str(tmp_path / "site"))
    with pytest.raises(PerimeterRefused, match="its owner takes no models"):
        guarded(tmp_path).receive_model(*sent)
    write_site(tmp_path / "site", f"receive_models: {tmp_path / 'mine'}")
    guarded(tmp_path).receive_model(*sent)
    assert len(list((tmp_path / "mine").iterdir())) == 2
