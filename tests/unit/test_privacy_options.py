"""Privacy options of the formation-energy pipeline: what goes together, what a budget leaves, what a run promises."""

import json

import pytest

from pipelines.training.config import FormationEnergyConfig
from pipelines.training.pipeline import run
from ray_fed.errors import ConfigError
from ray_fed.federation.strategies import DPFedAvg

QUICK: dict[str, object] = {
    "cohort": "local", "rows": 600, "silos": (60, 80, 100), "epochs": 4, "rounds": 4, "batch_size": 60,
    "features": "guo65", "hidden": (8,), "baselines": False,
}  # fmt: skip


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"dp_noise_multiplier": 0.0}, "dp_noise_multiplier=0.0 must be positive"),
        ({"dp_noise_multiplier": 1.0, "dp_clip": -1.0}, "dp_clip=-1.0 must be positive"),
        ({"dp_noise_multiplier": 1.0, "dp_delta": 1.0}, "dp_delta=1.0 must lie between 0 and 1"),
        ({"dp_noise_multiplier": 1.0, "baselines": True}, "carry no noise; add --baselines no"),
        ({"dp_noise_multiplier": 1.0, "repeats": 2}, "repeats=2 would spend epsilon as often"),
        ({"dp_noise_multiplier": 1.0, "strategy": "dp_fed_avg"}, "two guarantees; ask for one"),
        ({"dp_noise_multiplier": 1.0, "strategy": "fed_buff"}, "more steps than the account counts"),
        ({"dp_budget": 3.0}, "dp_budget=3.0 needs dp_noise_multiplier"),
        ({"secure_aggregation": True, "strategy": "krum"}, "Krum needs each of them"),
        ({"secure_aggregation": True, "max_update_norm": 1.0}, "max_norm=1.0 does not go with secure aggregation"),
        ({"secure_aggregation": True, "compression": "int8"}, "compression=int8 does not go with secure_aggregation"),
        ({"secure_aggregation": True, "baselines": True}, "leave without masks; add --baselines no"),
        ({"secure_threshold": 2}, "secure_threshold needs secure_aggregation"),
        ({"compression": "top_k", "top_k_share": 2.0}, r"top_k_share=2.0 must lie in \(0, 1\]"),
    ],
)
def test_options_that_do_not_go_together_are_refused_with_the_value_and_the_remedy(options, reason):
    with pytest.raises(ConfigError, match=reason):
        FormationEnergyConfig(**(QUICK | options))  # type: ignore[arg-type]


@pytest.mark.parametrize("threshold", [1, 4])
def test_a_threshold_that_cannot_be_met_or_shows_single_updates_is_refused(threshold):
    config = FormationEnergyConfig(**(QUICK | {"secure_aggregation": True, "secure_threshold": threshold}))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=f"secure_threshold={threshold} must lie between 2 and 3"):
        config.threshold(3)


def test_silo_level_noise_is_accounted_for_by_its_strategy():
    options = {"strategy": "dp_fed_avg", "strategy_options": ("noise_multiplier=2.5",)}
    account = FormationEnergyConfig(**(QUICK | options)).account(7)  # type: ignore[arg-type]
    assert isinstance(FormationEnergyConfig(**(QUICK | options)).make_strategy(), DPFedAvg)  # type: ignore[arg-type]
    assert account is not None
    assert (account.level, account.noise_multiplier, account.sampling_probability) == ("silo", 2.5, 1.0)


def finished(tmp_path, **options):
    folder = tmp_path / "run"
    assert run({**QUICK, **options, "out": str(folder)}, ["test"]) == 0
    card = json.loads(next((folder / "models").glob("*.json")).read_text())
    return json.loads((folder / "summary.json").read_text()), card


def test_a_run_stops_at_its_budget_and_says_what_it_promises(tmp_path, capsys):
    summary, card = finished(tmp_path, dp_noise_multiplier=1.0, dp_budget=5.0)
    assert summary["rounds"] == 2
    assert 0 < summary["privacy.epsilon"] <= 5.0
    assert card["federation"]["privacy"]["privacy.epsilon"] == summary["privacy.epsilon"]
    assert "held-out errors" in summary["privacy.not_covered"]
    assert f"round {summary['rounds']}/{summary['rounds']}: epsilon" in capsys.readouterr().err


def test_a_budget_below_one_round_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ConfigError, match=r"dp_budget=0.01 is too small: one round alone costs epsilon=\d"):
        finished(tmp_path, dp_noise_multiplier=1.0, dp_budget=0.01)
    assert not (tmp_path / "run").exists()


def test_a_run_without_noise_promises_nothing(tmp_path):
    summary, card = finished(tmp_path)
    assert not [name for name in summary if name.startswith("privacy")]
    assert card["federation"]["privacy"] == "none"
