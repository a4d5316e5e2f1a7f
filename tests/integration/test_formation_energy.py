"""The main job from the command line, on real actors and in one process."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pipelines.cli import main
from tests.commands import run_ray_fed
from tests.events import shown

SMALL = ["--rows", "600", "--silos", "60,120,180", "--epochs", "8", "--hidden", "32,16", "--batch-size", "60"]


def run_local(out: Path, *more: str) -> int:
    return main(["formation-energy", "--cohort", "local", "--out", str(out), *SMALL, *more])


def command(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run the installed command as a user does; Ray and its token are its own."""
    return run_ray_fed("formation-energy", *arguments, folder=folder)


@pytest.fixture(scope="module")
def local_run(tmp_path_factory):
    out = tmp_path_factory.mktemp("local") / "run"
    assert run_local(out, "--repeats", "2") == 0
    return out


@pytest.fixture(scope="module")
def ray_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ray")
    (folder / "actors").mkdir()  # a foreign folder of that name must not hide ours from the workers
    done = command("--out", "run", "--repeats", "2", *SMALL, folder=folder)
    assert done.returncode == 0, done.stderr
    return folder / "run", done


def test_actors_and_one_process_leave_the_same_history_and_model_byte_for_byte(local_run, ray_run):
    for name in ("history.jsonl", "models/federated.safetensors"):
        assert (ray_run[0] / name).read_bytes() == (local_run / name).read_bytes()


def test_the_terminal_shows_progress_results_and_paths_and_nothing_of_rays(ray_run):
    done = ray_run[1]
    assert "federated, seed 0: round 2/2" in done.stderr
    assert "report.html" in done.stdout
    assert "MAE" in done.stdout
    ours = ("opening", "federated", "each silo", "note:")
    assert [line for line in done.stderr.splitlines() if line and not line.startswith(ours)] == []


def test_the_summary_has_the_same_flat_keys_as_every_pipeline(local_run):
    summary = json.loads((local_run / "summary.json").read_text())
    wanted = {
        "federated.mae", "federated.r2", "federated.mae_std", "pooled.mae", "silo.silo-1.mae", "silo.silo-3.r2",
        "rounds", "bytes_sent", "seconds.total", "seconds.compute", "seconds.communicate", "status",
    }  # fmt: skip
    assert wanted <= set(summary)
    assert summary["status"] == "completed"
    assert summary["rounds"] == 2
    parameters = summary["num_parameters"]
    assert summary["bytes_sent"] == 2 * 2 * 3 * 4 * parameters
    assert all(not isinstance(value, (dict, list)) for value in summary.values())


def test_the_run_directory_holds_everything_that_was_promised(local_run):
    wanted = [
        "config.yaml", "environment.json", "data.json", "history.jsonl", "timing.jsonl", "summary.json", "report.html",
        "models/federated.safetensors", "models/federated.card.json", "figures/parity.png", "figures/bars.png",
        "figures/learning_curves.png",
    ]  # fmt: skip
    assert [name for name in wanted if not (local_run / name).is_file()] == []


def test_no_row_of_the_data_is_left_behind(local_run):
    """Formulas are the rows' names; none may be in any text of the run directory but the published configuration."""
    from ray_fed.materials.model_crystals.crystals import make_model_crystals

    formulas = set(make_model_crystals(600)["formula"])
    long_formulas = {formula for formula in formulas if len(formula) >= 6}
    assert len(long_formulas) > 100
    texts = [path.read_text() for path in local_run.rglob("*") if path.suffix in (".json", ".jsonl", ".yaml", ".html")]
    assert [formula for formula in long_formulas if any(f'"{formula}"' in text for text in texts)] == []


def test_tensorboard_has_global_and_per_silo_curves(local_run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(local_run / "tensorboard"))
    events.Reload()
    tags = set(events.Tags()["scalars"])
    quantities = ("train_loss", "r2", "mae", "bytes_sent", "seconds_compute", "seconds_communicate")
    assert {f"global/{quantity}" for quantity in quantities} <= tags
    assert {f"silo/silo-2/{quantity}" for quantity in quantities} <= tags
    found = shown(local_run / "tensorboard")
    assert "result/mae" in found.scalars
    assert {"picture/parity", "picture/bars", "picture/learning_curves"} <= found.pictures
    assert found.hyperparameters["pipeline"] == "formation-energy"


def test_the_report_stands_alone(local_run):
    report = (local_run / "report.html").read_text()
    assert report.count("data:image/png;base64,") == 3
    assert 'src="http' not in report
    assert "model data" in report.lower()


def test_two_runs_with_one_seed_are_byte_identical_and_another_seed_differs(local_run, tmp_path):
    assert run_local(tmp_path / "again", "--repeats", "2") == 0
    assert run_local(tmp_path / "other", "--repeats", "2", "--seed", "7") == 0
    first, again, other = (folder / "history.jsonl" for folder in (local_run, tmp_path / "again", tmp_path / "other"))
    assert first.read_bytes() == again.read_bytes()
    assert first.read_bytes() != other.read_bytes()


def test_predict_writes_units_and_reasons(local_run, tmp_path, capsys):
    from ray_fed.materials.model_crystals.crystals import make_model_crystals

    rows = make_model_crystals(20).drop(columns=["target"])
    rows.loc[3, "formula"] = "Xx2O3"
    rows.to_csv(tmp_path / "new.csv", index=False)
    assert main(["predict", str(local_run), str(tmp_path / "new.csv"), "--out", str(tmp_path / "out.csv")]) == 0
    table = pd.read_csv(tmp_path / "out.csv", keep_default_na=False)
    assert len(table) == 20
    assert set(table["unit"]) == {"eV/atom"}
    assert "Xx" in table["reason"][3]
    assert table["predicted_formation_energy_per_atom"][3] == ""
    assert np.isfinite(table["predicted_formation_energy_per_atom"].drop(3).astype(float)).all()
    assert "19 predictions" in capsys.readouterr().out


@pytest.mark.parametrize(("out", "said"), [("rows.csv", "is the file with the entries"), (".", "is a folder")])
def test_predictions_do_not_take_the_place_of_their_entries(local_run, tmp_path, capsys, out, said):
    rows = tmp_path / "rows.csv"
    rows.write_text("formula\nNaCl\n")
    assert main(["predict", str(local_run), str(rows), "--out", str(tmp_path / out)]) == 2
    assert said in capsys.readouterr().err
    assert rows.read_text() == "formula\nNaCl\n"


def test_a_model_of_structures_says_what_is_missing_from_formulas(local_run, tmp_path, capsys):
    (tmp_path / "rows.csv").write_text("formula\nNaCl\n")
    assert main(["predict", str(local_run), str(tmp_path / "rows.csv"), "--out", str(tmp_path / "out.csv")]) == 1
    assert "this model wants crystal structures (guo73)" in capsys.readouterr().err


def test_exchange_after_every_batch_runs(tmp_path):
    assert run_local(tmp_path / "run", "--communication-frequency", "batch", "--baselines", "no") == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    history = (tmp_path / "run" / "history.jsonl").read_text().splitlines()
    assert summary["rounds"] == len(history) - 1 == 8 * -(-summary["federated.num_examples"] // 60)


BAD = [
    (["--data", "nowhere.csv"], "nowhere.csv: no such file"),
    (["--data", "empty.csv"], "silo 'silo-1'"),
    (["--data", "no_target.csv"], "formation_energy_per_atom"),
    (["--data", "only_formulas.csv"], "guo65"),
    (["--learning-rate", "-0.1"], "learning_rate=-0.1 must be positive"),
    (["--learning-rat", "0.1"], "unknown option --learning-rat; did you mean --learning-rate?"),
    (["--epochs", "many"], "must be a whole number"),
    (["--features", "guo74"], "guo74"),
    (["--rows", "99999999"], "99999999"),
    (["--test-rows", "600", "--rows", "600"], "test_rows=600"),
    (["--federation", "wrong.yaml"], "unknown key 'silo'; did you mean 'silos'?"),
    (["--set", "silos.a.data=x"], "--federation"),
    (["--strategy", "fedadam"], "unknown strategy 'fedadam'; did you mean 'fed_adam'?"),
    (["--strategy", "nowhere:Mine"], "strategy='nowhere:Mine'"),
    (["--strategy-options", "eta=1"], "unknown key 'eta'"),
    (["--max-restarts", "-1"], "max_restarts=-1"),
    (["--rounds", "9999"], "rounds=9999 is more than the"),
    (["--min-fit-clients", "5"], "min_fit_clients=5 is more than the 4 silos"),
    (["--num-gpus", "inf"], "num_gpus=inf"),
    (["--data", "good.csv", "--silos", ",".join("1" * 90)], "too few for 90 silos of two rows and a test set"),
    (["--where", "source=NOWHERE", "--data", "good.csv"], "source"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD)
def test_bad_input_is_one_line_exit_code_2_and_leaves_nothing(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("empty.csv").write_text("")
    Path("wrong.yaml").write_text("silo: []")
    Path("no_target.csv").write_text("formula,e\nNaCl,-2\n")
    Path("only_formulas.csv").write_text("formula,formation_energy_per_atom\n" + "NaCl,-2.1\nMgO,-3\n" * 20)
    Path("good.csv").write_text("formula,formation_energy_per_atom,source\n" + "NaCl,-2.1,A\nMgO,-3,B\n" * 20)
    there = sorted(path.name for path in tmp_path.iterdir())
    with_features = ["--features", "guo65"] if "good.csv" in arguments else []
    try:
        code = main(["formation-energy", "--cohort", "local", *arguments, *with_features])
    except SystemExit as stop:  # argparse
        code = stop.code
    said = capsys.readouterr().err.strip().splitlines()
    assert code == 2
    assert len([line for line in said if not line.startswith(("note:", "opening"))]) == 1
    assert message in said[-1]
    assert sorted(path.name for path in tmp_path.iterdir()) == there


def test_an_existing_folder_is_not_overwritten(local_run, capsys):
    assert run_local(local_run) == 2
    assert "run" in capsys.readouterr().err


def test_a_federation_file_runs_sites_with_their_own_files_and_held_out_rows(tmp_path, capsys):
    from ray_fed.materials.model_crystals.crystals import make_model_crystals

    rows = make_model_crystals(400).rename(columns={"target": "formation_energy_per_atom"})
    rows[:150].to_csv(tmp_path / "north.csv", index=False)
    rows[150:].to_parquet(tmp_path / "south.parquet")
    (tmp_path / "federation.yaml").write_text(
        "silos:\n- {name: north, data: north.csv}\n- {name: south, data: south.parquet}\n"
        "training: {epochs: 3, hidden: [8]}\n"
    )
    options = ["--federation", str(tmp_path / "federation.yaml"), "--out", str(tmp_path / "run"), "--epochs", "4"]
    code = main(["formation-energy", "--cohort", "local", *options])
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert code == 0
    assert summary["rounds"] == 1
    assert summary["silo.north.num_examples"] + summary["silo.south.num_examples"] + summary["test.num_examples"] == 400
    assert 0.1 < summary["test.num_examples"] / 400 < 0.3
    assert {"federated.mae", "silo.north.mae", "silo.south.mae"} <= set(summary)
    assert "pooled.mae" not in summary
    table = capsys.readouterr().out.split("own held-out rows", 1)[1].splitlines()
    for line, silo in zip(table[2:4], ("north", "south"), strict=True):
        own = [summary[f"own.{silo}.{kind}_mae"] for kind in ("alone", "federated")]
        assert line.split() == [silo, *(f"{mae:.4f}" for mae in own), f"{100 * (own[1] / own[0] - 1):+.1f}", "%"]


def test_help_explains_every_option_with_its_default(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["formation-energy", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert stop.value.code == 0
    for said in ("--learning-rate", "(default: 0.001)", "eV/atom", "--communication-frequency", "(default: 0.25)"):
        assert said in text


def test_the_command_is_installed():
    assert shutil.which("ray-fed", path=str(Path(sys.executable).parent))


OWN_STRATEGY = '''
from dataclasses import dataclass

from ray_fed.federation.strategies import FedAvg


@dataclass(frozen=True)
class Halved(FedAvg):
    """Moves only a share of the way to the mean."""

    share: float = 0.5

    def aggregate(self, state, updates):
        old, new = state[self.name], super().aggregate(state, updates)[self.name]
        return {self.name: old + (new - old) * type(old[0])(self.share)}
'''


@pytest.mark.parametrize("cohort", ["local", "ray"])
@pytest.mark.usefixtures("ray_session")
def test_a_users_own_strategy_in_their_own_file_runs_on_every_cohort(tmp_path, cohort, monkeypatch):
    (tmp_path / "my_module.py").write_text(OWN_STRATEGY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))  # which gets this folder
    options = ["--strategy", "my_module:Halved", "--strategy-options", "share=0.25", "--baselines", "no"]
    assert run_local(tmp_path / "run", *options, "--cohort", cohort) == 0
    del sys.modules["my_module"]
    card = json.loads((tmp_path / "run" / "models" / "federated.card.json").read_text())
    assert card["federation"]["strategy"] == "my_module:Halved"


@pytest.mark.parametrize(
    "options",
    [
        ["--strategy", "fed_adam", "--strategy-options", "eta=0.02"],
        ["--strategy", "median"],
        ["--strategy", "fed_nova"],
        ["--proximal-mu", "0.1"],
        ["--fraction-fit", "0.5"],
        ["--personal-bias", "yes"],
        ["--strategy", "fed_prox", "--strategy-options", "mu=0.1"],
        ["--strategy", "scaffold"],
        ["--strategy", "fed_buff", "--strategy-options", "buffer_size=3"],
    ],
)
def test_other_strategies_train_another_model_than_fed_avg(tmp_path, local_run, options):
    assert run_local(tmp_path / "run", "--baselines", "no", *options) == 0
    first, other = (json.loads((path / "summary.json").read_text()) for path in (local_run, tmp_path / "run"))
    assert np.isfinite(other["federated.mae"])
    assert other["federated.mae"] != first["federated.mae"]


def test_the_baselines_do_not_depend_on_the_rules_of_the_federation(tmp_path, local_run):
    assert run_local(tmp_path / "run", "--repeats", "2", "--fraction-fit", "0.3") == 0
    first, other = (json.loads((path / "summary.json").read_text()) for path in (local_run, tmp_path / "run"))
    assert other["pooled.mae"] == first["pooled.mae"]
    assert other["silo.silo-1.mae"] == first["silo.silo-1.mae"]
    assert other["federated.mae"] != first["federated.mae"]


def test_a_closed_address_is_refused_at_once(tmp_path):
    start = time.monotonic()
    done = command("--address", "127.0.0.1:1", "--out", "run", *SMALL, folder=tmp_path)
    assert done.returncode == 2
    assert "no Ray cluster at address '127.0.0.1:1'" in done.stderr.splitlines()[-1]
    assert time.monotonic() - start < 60  # Ray itself tries for minutes
    assert not (tmp_path / "run").exists()
