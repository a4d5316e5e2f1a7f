"""No test touches the user's cache, none reads what an earlier run left there, none leaves its own, and none fails
because the machine is busy."""

import contextlib
import os
import shutil
import signal
import tempfile
from pathlib import Path

import pytest
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


running: set[str] = set()
"""The tests that have begun and not ended; in the first process those of all its workers."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    from tests.scheduling import FilesInOrder

    return FilesInOrder(config, log)


def pytest_runtest_logstart(nodeid: str) -> None:
    running.add(nodeid)


def pytest_runtest_logfinish(nodeid: str) -> None:
    running.discard(nodeid)


@pytest.hookimpl(optionalhook=True)
def pytest_handlecrashitem(crashitem: str) -> None:
    running.discard(crashitem)


def pytest_configure() -> None:
    if IS_FIRST:
        with contextlib.suppress(ValueError):  # not in the main thread
            signal.signal(signal.SIGTERM, _stop)


def _stop(*_: object) -> None:
    pytest.exit(f"stopped by SIGTERM; running: {', '.join(sorted(running)) or 'no test'}")


def pytest_unconfigure() -> None:
    if IS_FIRST:
        shutil.rmtree(FOLDER, ignore_errors=True)
