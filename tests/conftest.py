"""No test touches the user's cache, none reads what an earlier run left there, none leaves its own, and none fails
because the machine is busy."""

import os
import shutil
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, settings

FOLDER_VARIABLE = "TESTS_OF_RAY_FED"
IS_FIRST = FOLDER_VARIABLE not in os.environ
FOLDER = Path(tempfile.mkdtemp(prefix="ray-fed-tests-") if IS_FIRST else os.environ[FOLDER_VARIABLE])
"""What a run of tests leaves behind, but their `tmp_path`: its first process makes the folder, and removes it."""
os.environ[FOLDER_VARIABLE] = str(FOLDER)
os.environ["RAY_FED_CACHE"] = str(FOLDER / "cache")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # threads of torch that wait for each other on busy cores take minutes

settings.register_profile(
    "busy machine", parent=settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("busy machine")


def pytest_unconfigure() -> None:
    if IS_FIRST:
        shutil.rmtree(FOLDER, ignore_errors=True)
