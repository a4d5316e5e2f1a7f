"""The product's files and functions that one federated round enters, silos behind their gates, in one process.

python -m tests.trace_round        prints them; tests/unit/test_house.py holds their number
"""

import functools
import sys
import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import FrameType

import ray_fed
from pipelines.training.setup import jobs, resolve
from ray_fed.federation.cohort import LocalCohort
from ray_fed.federation.coordinator import Coordinator
from ray_fed.federation.silo import make_silo
from ray_fed.perimeter.coordinator_record import CoordinatorRecord
from ray_fed.perimeter.guarded_silo import GuardedSilo

ROOT = Path(ray_fed.__path__[0]).resolve().parent


def functions_of_a_round(folder: str) -> Counter[tuple[str, str]]:
    """Return (file, function) -> calls of the second round of a small run; `folder` takes ledgers and states."""
    options = {
        "silos": (60, 60), "rows": 200, "test_rows": 60, "baselines": False, "cohort": "local", "epochs": 20,
        "communication_frequency": 0.5,
    }  # fmt: skip
    setup = resolve(options)
    cohort = LocalCohort(setup.silos, setup.task, setup.test)
    specs = [replace(spec, run="traced", ledger_folder=folder, state_folder=folder) for spec in setup.silos]
    cohort.silos.update(
        {spec.name: GuardedSilo(spec, functools.partial(make_silo, spec, setup.task)) for spec in specs}  # type: ignore[misc]
    )
    coordinator = Coordinator(cohort, setup.task, setup.training, [CoordinatorRecord(setup.task)])
    agreement = coordinator.agree()
    records = coordinator.run(jobs(setup, dict(agreement.silos), 0)[0])
    next(records), next(records)
    seen: Counter[tuple[str, str]] = Counter()

    def note(frame: FrameType, event: str, _: object) -> None:
        path = Path(frame.f_code.co_filename)
        if event == "call" and path.is_relative_to(ROOT) and ".venv" not in path.parts:
            seen[str(path.relative_to(ROOT)), frame.f_code.co_qualname] += 1

    sys.setprofile(note)
    try:
        next(records)
    finally:
        sys.setprofile(None)
    return seen


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        found = functions_of_a_round(folder)
    files = dict.fromkeys(file for file, _ in found)
    print(f"{len(files)} files, {len(found)} functions, {sum(found.values())} calls")
    for file in files:
        print(f"  {file}: {sum(each == file for each, _ in found)} functions")
