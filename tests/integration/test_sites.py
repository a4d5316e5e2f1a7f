"""A federation file on a cluster of three nodes with site labels, joined by its address, as institutions would.

The cluster has processes and a token policy of its own, so it lives in a process of its own.
"""

import json
import subprocess

import pytest

from tests.commands import OPEN_CLUSTER, PATIENCE, REPOSITORY, finished, run_ray_fed, start, start_module

FEDERATION = """
silos:
  - {name: one, data: embedded, site: north}
  - {name: two, data: embedded, site: south}
training: {epochs: 2, hidden: [16]}
"""


OWN_TASK = """
import sys
import torch
from torch.nn import functional
from pipelines import Training, federate
from ray_fed import SiloSpec, TorchTask

def rows(seed):
    torch.manual_seed(seed)
    inputs = torch.randn(40, 3).numpy()
    return inputs[:30], inputs[:30, :1], inputs[30:], inputs[30:, :1]

def network():
    return torch.nn.Linear(3, 1)

if __name__ == "__main__":
    silos = [SiloSpec("one", 1, site="north"), SiloSpec("two", 2, site="south")]
    result = federate(TorchTask(network, functional.mse_loss, rows), silos, Training(rounds=2), address=sys.argv[1])
    print("ROUNDS", result.history().index.max())
"""


@pytest.fixture(scope="module")
def address():
    pipes = {"stdin": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    process = start_module("tests.clusters", "north", "south", folder=REPOSITORY, env=OPEN_CLUSTER, **pipes)
    assert process.stdout is not None
    yield process.stdout.readline().strip()
    process.communicate("", timeout=PATIENCE)


def test_silos_stand_at_their_sites_and_an_unknown_site_is_refused(tmp_path, address):
    (tmp_path / "federation.yaml").write_text(FEDERATION)
    command = ["formation-energy", "--federation", "federation.yaml", "--address", address]
    done = run_ray_fed(*command, "--out", "run", folder=tmp_path, env=OPEN_CLUSTER)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["status"] == "completed"

    moved = ["--set", "silos.one.site=mars", "--out", "other"]
    refused = run_ray_fed(*command, *moved, folder=tmp_path, env=OPEN_CLUSTER)
    assert refused.returncode == 2
    assert "no node has the label site=mars; sites in this cluster: north, south" in refused.stderr.splitlines()[-1]
    assert not (tmp_path / "other").exists()


def test_a_users_own_task_goes_on_where_the_package_is_installed(tmp_path, address):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "own.py").write_text(OWN_TASK)
    done = finished(start("own.py", address, folder=folder, env=OPEN_CLUSTER))
    assert done.returncode == 0, done.stderr
    assert "ROUNDS 2" in done.stdout
