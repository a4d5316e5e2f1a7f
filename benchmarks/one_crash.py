"""Eight silos, three rounds; in the first round one silo's process exits hard in the middle of a step. Who takes part?

Our half runs on silo actors, twice: with the crash and without, to compare the models. The other half is the same
scenario in Flower's simulation, in a virtual environment of its own (its Ray is another one), made in a temporary
folder; without network that half is skipped and says why. Nothing is trained for its own sake: a fit takes the seconds
asked for.

    python benchmarks/one_crash.py [--seconds 0.5] [--repeats 3] [--flower-python PYTHON]
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import numpy as np
from torch import nn
from torch.nn import functional

from pipelines import Training, federate
from ray_fed import LocalRows, SiloSpec, Task
from ray_fed.learning.models import seeded_mlp
from ray_fed.randomness import generator

NUM_SILOS, NUM_ROUNDS, STEPS, CRASH_STEP = 8, 3, 10, 5
FLOWER_SCRIPT = Path(__file__).with_name("one_crash_flower.py")


@dataclass(frozen=True)
class CrashTask(Task):
    """Least squares on 60 drawn rows; silo 2 exits hard at its fifth step, once, where there is a marker to set."""

    marker: str
    seconds: float
    """Of one fit."""
    standardises = False

    def load(self, spec: SiloSpec) -> LocalRows:
        object.__setattr__(self, "silo_name", spec.name)  # the copy of the task in this silo's own process
        object.__setattr__(self, "steps_taken", [0])
        random = generator(0, "rows", spec.name)
        x = random.normal(size=(60, 3))
        y = x @ np.array([1.0, 2.0, 3.0]) + 0.1 * random.normal(size=60)
        return LocalRows(x, y, x[:0], y[:0], {}, {"rows": 60}, self.agreement())

    def loss(self, outputs, targets):  # type: ignore[override]
        self.steps_taken[0] += 1
        due = self.silo_name == "2" and self.steps_taken[0] == CRASH_STEP and self.marker
        if due and not Path(self.marker).exists():
            Path(self.marker).touch()
            os._exit(1)
        time.sleep(self.seconds / STEPS)
        return functional.mse_loss(outputs, targets)

    def model(self, seed: int) -> nn.Module:
        return seeded_mlp(3, (8,), seed)

    def agreement(self) -> Mapping[str, str]:
        return {"task": "one crash"}


def our_half(marker: str, seconds: float) -> None:
    """Run the scenario and print a JSON line per round, then the model's values."""
    with tempfile.TemporaryDirectory() as folder:
        silos = [SiloSpec(str(number), None, state_folder=folder) for number in range(1, NUM_SILOS + 1)]
        done = federate(CrashTask(marker, seconds), silos, Training(NUM_ROUNDS, NUM_ROUNDS, 60 // STEPS))
    for record in done.records[1:]:
        took_part = [int(name) for name in record.participants]
        print(json.dumps([record.server_round, took_part, len(record.failures), record.seconds["total"]]))
    print(json.dumps([parameter.tolist() for parameter in done.module.parameters()]))


def answer_of(*command: str) -> tuple[list[str], int]:
    """Run a half in a process of its own; return its JSON lines and its exit code."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    environment |= {"FLWR_TELEMETRY_ENABLED": "0", "RAY_AUTH_MODE": "disabled"} if "flower" in command[1] else {}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    return [line for line in done.stdout.splitlines() if line.startswith("[") and line.endswith("]")], done.returncode


def table(title: str, lines: list[str], code: int) -> None:
    took_part = (json.loads(line)[1] for line in lines)
    shown = (f"{len(silos)} of {NUM_SILOS} ({', '.join(map(str, silos)) or 'nobody'})" for silos in took_part)
    print(f"| {title} | {' | '.join(shown)} | {code} |", flush=True)


def run_ours(folder: Path, repeat: int, seconds: float) -> None:
    ours = [sys.executable, str(Path(__file__).resolve()), "--ours", "--seconds", str(seconds), "--marker"]
    crashed, code = answer_of(*ours, str(folder / f"ours{repeat}"))
    whole, _ = answer_of(*ours, "")
    same = "same" if crashed[-1] == whole[-1] else "DIFFERENT"
    with_crash, without = (json.loads(lines[0])[3] for lines in (crashed, whole))
    seconds = f"round 1 took {with_crash:.1f} s instead of {without:.1f} s"
    table(f"ray-fed, {same} model as without the crash; {seconds}", crashed[:-1], code)


def run_flower(python: str, folder: Path, repeat: int, seconds: float) -> None:
    for num_actors in (2, NUM_SILOS):
        marker = folder / f"flower{num_actors}-{repeat}"
        lines, code = answer_of(python, str(FLOWER_SCRIPT), str(marker), str(num_actors), str(seconds))
        table(f"Flower, {num_actors} actors", lines, code)


def flower_pythons(given: str | None, folder: Path) -> Iterator[str]:
    """Yield a Python that has Flower's simulation; nothing, after saying why, where there is none."""
    if given:
        yield given
        return
    python = folder / "flower" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", str(folder / "flower")], check=True)
    install = [str(python), "-m", "pip", "install", "--quiet", "flwr[simulation]", f"numpy=={np.__version__}"]
    done = subprocess.run(install, capture_output=True, text=True)
    if done.returncode == 0:
        yield str(python)
    else:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or ["pip failed"]
        print(f"\nFlower's half is skipped: flwr[simulation] cannot be installed here: {errors[-1]}")


def versions(python: str) -> str:
    names = "'flwr', 'ray'"
    code = f"from importlib.metadata import version; print(*(n + ' ' + version(n) for n in ({names})), sep=', ')"
    return subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=0.5, help="of one fit")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--flower-python", help="a Python that has flwr[simulation]; default: one is made")
    parser.add_argument("--ours", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--marker", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.ours:
        our_half(options.marker, options.seconds)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        print(f"{options.seconds:g} s per fit, ray {metadata.version('ray')}, {platform.platform()}\n")
        print("| | round 1 | round 2 | round 3 | exit code |\n|---|---|---|---|---|")
        for repeat in range(options.repeats):
            run_ours(folder, repeat, options.seconds)
        for python in flower_pythons(options.flower_python, folder):
            for repeat in range(options.repeats):
                run_flower(python, folder, repeat, options.seconds)
            print(f"\nFlower's half: {versions(python)}")


if __name__ == "__main__":
    main()
