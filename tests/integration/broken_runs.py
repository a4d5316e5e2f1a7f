"""A run that is broken off and gone on with, in processes of its own; unbroken it is the fixture `unbroken`."""

import contextlib
import json
import random
import subprocess
from pathlib import Path

import psutil

from tests.commands import start_ray_fed

OPTIONS = ["--rows", "400", "--silos", "60,120,180", "--epochs", "40", "--communication-frequency", "1.0"]
OPTIONS += ["--hidden", "32,16", "--batch-size", "60", "--baselines", "yes", "--repeats", "2"]


def start(folder: Path, cohort: str) -> subprocess.Popen[str]:
    command = ["formation-energy", "--cohort", cohort, "--out", "run", *OPTIONS]
    return start_ray_fed(*command, folder=folder, start_new_session=True)


def start_resuming(folder: Path) -> subprocess.Popen[str]:
    return start_ray_fed("resume", "run", folder=folder, start_new_session=True)


def lines(folder: Path) -> int:
    path = folder / "run" / "history.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def lines_at(chance: random.Random, folder: Path, unbroken: Path) -> int:
    """A random length of the history, some way beyond the present one; no more than a run can reach."""
    total = (unbroken / "history.jsonl").read_bytes().count(b"\n")
    return min(lines(folder) + chance.randrange(1, total // 4), total)


def assert_same(folder: Path, unbroken: Path) -> None:
    for name in ("history.jsonl", "models/federated.safetensors"):
        assert (folder / "run" / name).read_bytes() == (unbroken / name).read_bytes()
    ours, theirs = (json.loads((path / "summary.json").read_text()) for path in (folder / "run", unbroken))
    for key in theirs:
        if not key.startswith("seconds") and key != "cohort":
            assert ours[key] == theirs[key], key
    assert not (folder / "run" / "checkpoint").exists()


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
