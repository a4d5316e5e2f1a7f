"""One Ray session for all integration tests: a private cluster with logical CPUs and no GPU."""

import fcntl
import os
import tempfile
from pathlib import Path

import pytest

from actors.session import session, set_private_token
from tests.conftest import FOLDER

set_private_token()  # before anything imports Ray
os.environ["RAY_OVERRIDE_LABELS"] = '{"site": "lab"}'
# The owner's file of this cluster's machine: its place is fixed when the cluster starts, its content counts per silo.
os.environ["RAY_FED_SITE"] = tempfile.mkdtemp(prefix="site-", dir=FOLDER)
os.environ["RAY_prestart_worker_first_driver"] = "0"  # noqa: SIM112 - it would be one for each logical CPU
os.environ["RAY_FED_TEST_NOISE"] = "3"  # the processes of the cluster inherit it, and that pytest runs

import ray  # noqa: E402

import tests.synthetic  # noqa: E402
from pipelines.cli import main  # noqa: E402
from tests.integration.broken_runs import OPTIONS  # noqa: E402


@pytest.fixture(scope="package")
def ray_session():
    """Ends with the last file of this folder: no other test shares its process with Ray's threads."""
    with session("local", num_cpus=16):
        # Workers cannot import the tests package; its classes travel by value.
        ray.cloudpickle.register_pickle_by_value(tests.synthetic)
        yield
        ray.cloudpickle.unregister_pickle_by_value(tests.synthetic)


@pytest.fixture
def owners_file():
    """The site file of the machine, for one test."""
    path = Path(os.environ["RAY_FED_SITE"]) / "site.yaml"
    yield path
    path.unlink(missing_ok=True)


@pytest.fixture(scope="session")
def unbroken():
    """The folder of the run of broken_runs.py that is not broken off, made once for all processes of the tests."""
    run = FOLDER / "unbroken"
    with (FOLDER / "unbroken.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not run.exists():
            assert main(["formation-energy", "--cohort", "local", "--out", str(run), *OPTIONS]) == 0
    return run
