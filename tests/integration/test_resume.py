"""kill -9 at any instant, then `ray-fed resume`: the result is that of a run that was never broken off."""

import contextlib
import errno
import json
import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from pipelines.cli import main
from pipelines.training.outcome import TrainingOutcome
from ray_fed.reporting import run_directory
from ray_fed.reporting.run_directory import RunDirectory
from ray_fed.reporting.writing import write_atomically
from tests.commands import finished, start_ray_fed

OPTIONS = ["--rows", "400", "--silos", "60,120,180", "--epochs", "40", "--communication-frequency", "1.0"]
OPTIONS += ["--hidden", "32,16", "--batch-size", "60", "--baselines", "yes", "--repeats", "2"]


def start(folder: Path, cohort: str) -> subprocess.Popen[str]:
    command = ["formation-energy", "--cohort", cohort, "--out", "run", *OPTIONS]
    return start_ray_fed(*command, folder=folder, start_new_session=True)


def start_resuming(folder: Path) -> subprocess.Popen[str]:
    return start_ray_fed("resume", "run", folder=folder, start_new_session=True)


def resume(folder: Path) -> subprocess.CompletedProcess[str]:
    return finished(start_resuming(folder))


def lines(folder: Path) -> int:
    path = folder / "run" / "history.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def lines_at(chance: random.Random, folder: Path, unbroken: Path) -> int:
    """A random length of the history, some way beyond the present one; no more than a run can reach."""
    total = (unbroken / "history.jsonl").read_bytes().count(b"\n")
    return min(lines(folder) + chance.randrange(1, total // 4), total)


def wait_for(condition, process, seconds=120.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline, "nothing happened in time"
        time.sleep(0.002)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unbroken")
    assert main(["formation-energy", "--cohort", "local", "--out", str(folder / "run"), *OPTIONS]) == 0
    return folder / "run"


def assert_same(folder: Path, unbroken: Path) -> None:
    for name in ("history.jsonl", "models/federated.safetensors"):
        assert (folder / "run" / name).read_bytes() == (unbroken / name).read_bytes()
    ours, theirs = (json.loads((path / "summary.json").read_text()) for path in (folder / "run", unbroken))
    for key in theirs:
        if not key.startswith("seconds") and key != "cohort":
            assert ours[key] == theirs[key], key
    assert not (folder / "run" / "checkpoint").exists()


@pytest.mark.parametrize("number", range(4))
def test_a_run_killed_at_random_instants_again_and_again_ends_with_the_same_bytes(tmp_path, unbroken, number):
    chance = random.Random(number)
    process = start(tmp_path, "local")
    for _ in range(1 + number):
        target = lines_at(chance, tmp_path, unbroken)
        wait_for(lambda target=target: lines(tmp_path) >= target, process)
        time.sleep(chance.random() * 0.02)
        process.kill()
        process.communicate()
        process = start_resuming(tmp_path)
    done = finished(process)
    assert done.returncode == 0, done.stderr
    assert_same(tmp_path, unbroken)


def test_a_run_on_actors_that_is_broken_off_in_every_way_ends_with_the_same_bytes(tmp_path, unbroken):
    """One run, resumed after each break: what went wrong at any of them would be in the bytes at the end."""
    process = start(tmp_path, "ray")
    for breaks in (stops_the_driver, sends_sigterm, presses_ctrl_c, kills_the_session, kills_the_coordinator):
        before = lines(tmp_path)
        wait_for(lambda before=before: lines(tmp_path) > before + 9, process)
        breaks(process, tmp_path / "run")
        process = start_resuming(tmp_path)
    done = finished(process)
    assert done.returncode == 0, done.stderr
    assert_same(tmp_path, unbroken)


def stops_the_driver(process, _):
    """It must not let the coordinator run ahead of what is recorded."""
    process.send_signal(signal.SIGSTOP)
    time.sleep(1.0)
    process.kill()
    process.communicate()


def sends_sigterm(process, run):
    process.terminate()
    assert_ended_in_order(process, run)


def presses_ctrl_c(process, run):
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the whole foreground group
    assert_ended_in_order(process, run)


def assert_ended_in_order(process, run):
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "Traceback" not in said
    summary = json.loads((run / "summary.json").read_text())
    assert summary["status"] == "interrupted"
    assert summary["rounds"] > 10
    assert "interrupted" in (run / "report.html").read_text()


def kills_the_session(process, _):
    kill("session", family(process))
    process.communicate()


def kills_the_coordinator(process, run):
    [coordinator] = [member for member in family(process) if is_coordinator(member)]
    coordinator.kill()
    _, said = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "go on with: ray-fed resume" in said
    assert "Traceback" not in said
    assert json.loads((run / "summary.json").read_text())["status"] == "failed"


def family(process: subprocess.Popen) -> list[psutil.Process]:
    """The driver first, then everything of its Ray session."""
    with contextlib.suppress(psutil.NoSuchProcess):
        driver = psutil.Process(process.pid)
        return [driver, *driver.children(recursive=True)]
    return []


def is_coordinator(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
        return any("CoordinatorActor" in part for part in process.cmdline())
    return False


def kill(victim: str, members: list[psutil.Process]) -> None:
    coordinators = [member for member in members if is_coordinator(member)]
    chosen = {"driver": members[:1], "coordinator": coordinators, "session": members}[victim]
    for member in chosen or members[:1]:  # the coordinator may not be there yet, or any more
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()


def wait_for_an_instant(chance: random.Random, process: subprocess.Popen, folder: Path, unbroken: Path) -> None:
    """Some way into the run, or while it starts again."""
    if lines(folder) and chance.random() < 0.3:
        time.sleep(4.0 * chance.random())
        return
    target = lines_at(chance, folder, unbroken)
    wait_for(lambda: lines(folder) >= target, process)
    time.sleep(0.05 * chance.random())


SEEDS = range(int(os.environ.get("RAY_FED_KILL_SEEDS", "1")))
"""A seed takes half a minute: one for every day, more for a soak test."""


@pytest.mark.parametrize("seed", SEEDS)
def test_a_run_on_actors_killed_again_and_again_ends_with_the_same_bytes(tmp_path, unbroken, seed):
    """Driver, coordinator and session are killed at random instants, the second and third while the run is resumed."""
    chance = random.Random(seed)
    process, seen = start(tmp_path, "ray"), []
    try:
        for victim in chance.sample(["driver", "coordinator", "session"], 3):
            wait_for_an_instant(chance, process, tmp_path, unbroken)
            members = family(process)
            seen += members
            kill(victim, members)
            process.communicate(timeout=120)
            process = start_resuming(tmp_path)
        done = finished(process)
        assert done.returncode == 0, done.stderr
    finally:
        kill("session", [*family(process), *seen])
    assert_same(tmp_path, unbroken)


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
    wait_for(lambda: lines(folder) > 12 and _progress(folder / "run")["round"] > 3, process)
    process.send_signal(signal.SIGSTOP)  # nothing moves between the look at the progress and the kill
    assert _progress(folder / "run")["state"], "the run was stopped between two jobs"
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
        wait_for(lambda: lines(tmp_path) > 3, process)
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
