"""kill -9 at any instant, then `ray-fed resume`: the result is that of a run that was never broken off."""

import errno
import json
import shutil
import signal

import pytest

from pipelines.cli import main
from pipelines.training.outcome import TrainingOutcome
from ray_fed.reporting import run_directory
from ray_fed.reporting.run_directory import RunDirectory
from ray_fed.reporting.writing import write_atomically
from tests.commands import wait_until
from tests.integration.broken_runs import OPTIONS, assert_same, lines, start


def test_a_complete_run_has_nothing_to_resume(unbroken, capsys):
    assert main(["resume", str(unbroken)]) == 0
    assert "nothing to resume" in capsys.readouterr().out


def test_a_folder_that_is_no_run_is_refused(tmp_path, capsys):
    assert main(["resume", str(tmp_path)]) == 2
    assert "is not a run directory" in capsys.readouterr().err


def test_a_run_whose_data_changed_is_refused_by_the_silos_name(tmp_path, capsys):
    from ray_fed.materials.model_crystals.crystals import make_model_crystals

    rows = make_model_crystals(300).rename(columns={"target": "formation_energy_per_atom"})
    rows.to_csv(tmp_path / "rows.csv", index=False)
    options = ["--data", str(tmp_path / "rows.csv"), "--silos", "50,60", "--epochs", "2", "--hidden", "4"]
    assert main(["formation-energy", "--cohort", "local", "--out", str(tmp_path / "run"), *options]) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    (tmp_path / "run" / "summary.json").write_text(json.dumps({**summary, "status": "running"}))
    (tmp_path / "run" / "checkpoint").mkdir()
    (tmp_path / "run" / "checkpoint" / "progress.json").write_text(
        json.dumps({"lines": 0, "finished": [], "job": None, "round": 0, "state": None})
    )
    rows[5:].to_csv(tmp_path / "rows.csv", index=False)
    assert main(["resume", str(tmp_path / "run")]) == 2
    assert "silo 'silo-1': its data changed" in capsys.readouterr().err


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("killed")
    process = start(folder, "local")
    wait_until(lambda: lines(folder) > 12 and _progress(folder / "run")["round"] > 3, process)
    process.send_signal(signal.SIGSTOP)  # nothing moves between the look at the progress and the kill
    while not _progress(folder / "run")["state"]:  # it was stopped between two jobs
        process.send_signal(signal.SIGCONT)
        wait_until(lambda: _progress(folder / "run")["state"], process)
        process.send_signal(signal.SIGSTOP)
    process.kill()
    process.communicate()
    return folder / "run"


def _progress(run):
    return json.loads((run / "checkpoint" / "progress.json").read_text())


def _state(run):
    """The state that counts; a kill can leave the one before it, too."""
    return run / "checkpoint" / _progress(run)["state"]


def _remove_states(run):
    shutil.rmtree(run / "checkpoint" / "silos")


def _remove_state(run):
    _state(run).unlink()


def _cut_state(run):
    _state(run).write_bytes(_state(run).read_bytes()[:100])


DAMAGES = {
    "optimiser states removed": (_remove_states, "optimiser state in"),
    "state removed": (_remove_state, "cannot be resumed"),
    "state cut": (_cut_state, "cannot be resumed"),
    "progress empty": (lambda run: (run / "checkpoint" / "progress.json").write_text("{}"), "cannot be resumed"),
    "progress cut": (lambda run: (run / "checkpoint" / "progress.json").write_text('{"li'), "damaged"),
    "history removed": (lambda run: (run / "history.jsonl").unlink(), "cannot be resumed"),
    "configuration empty": (lambda run: (run / "config.yaml").write_text(""), "config.yaml is damaged"),
    "other network": (
        lambda run: (run / "config.yaml").write_text((run / "config.yaml").read_text().replace("- 32", "- 33")),
        "another network",
    ),
}


@pytest.mark.parametrize("what", DAMAGES)
def test_a_damaged_run_is_refused_in_one_line(killed, tmp_path, capsys, what):
    damage, message = DAMAGES[what]
    shutil.copytree(killed, tmp_path / "run")
    damage(tmp_path / "run")
    assert main(["resume", str(tmp_path / "run")]) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert len(said) == 1
    assert message in said[0]


def test_a_run_that_another_process_works_on_is_left_alone(tmp_path, capsys):
    process = start(tmp_path, "local")
    try:
        wait_until(lambda: lines(tmp_path) > 3, process)
        assert main(["resume", str(tmp_path / "run")]) == 2
        assert "another process is working on this run" in capsys.readouterr().err
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("which", ["history.jsonl", "checkpoint/models-local-0.safetensors", "report.html"])
def test_a_full_disk_ends_the_run_in_one_line_and_with_room_it_goes_on_to_the_same_bytes(
    tmp_path, unbroken, monkeypatch, capsys, which
):
    run, room = tmp_path / "run", {"left": 30 if which == "history.jsonl" else 0}

    def full(path):
        if str(path).endswith(which):
            room["left"] -= 1
            if room["left"] < 0:
                raise OSError(errno.ENOSPC, "No space left on device", str(path))

    def write(path, content):
        full(path)
        return write_atomically(path, content)

    def append(directory, path, record):
        full(path)
        return _append(directory, path, record)

    _append = RunDirectory._append
    with monkeypatch.context() as disk:
        disk.setattr(run_directory, "write_atomically", write)
        disk.setattr(RunDirectory, "_append", append)
        assert main(["formation-energy", "--cohort", "local", "--out", str(run), *OPTIONS]) == 1
    said = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert len(said) == 1
    assert "No space left on device" in said[0]
    assert which in said[0]
    assert f"ray-fed resume {run}" in said[0]
    assert json.loads((run / "summary.json").read_text())["status"] in ("failed", "running")
    assert main(["resume", str(run)]) == 0
    assert_same(tmp_path, unbroken)


def test_a_run_that_goes_on_with_other_packages_says_so(killed, tmp_path, capsys):
    shutil.copytree(killed, tmp_path / "run")
    path = tmp_path / "run" / "environment.json"
    environment = json.loads(path.read_text())
    environment["packages"]["torch"] = "1.0.0"
    path.write_text(json.dumps(environment))
    assert main(["resume", str(tmp_path / "run")]) == 0
    assert "note: the run began with torch 1.0.0 and goes on with" in capsys.readouterr().err


def test_ctrl_c_while_the_results_are_written_leaves_a_run_that_goes_on(tmp_path, unbroken, monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    run = tmp_path / "run"
    with monkeypatch.context() as key:
        key.setattr(TrainingOutcome, "_report", interrupted)
        assert main(["formation-energy", "--cohort", "local", "--out", str(run), *OPTIONS]) == 130
    assert f"interrupted; what was done so far is in {run}; go on with: ray-fed resume {run}" in capsys.readouterr().err
    assert json.loads((run / "summary.json").read_text())["status"] == "interrupted"
    assert main(["resume", str(run)]) == 0
    assert_same(tmp_path, unbroken)
