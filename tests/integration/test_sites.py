"""A federation file on a cluster of three nodes with site labels, joined by its address, as institutions would.

The cluster has processes and a token policy of its own, so it lives in a process of its own.
"""

import json
import subprocess

import pytest

from tests.commands import OPEN_CLUSTER, run_ray_fed, start

CLUSTER = """
import sys
from ray.cluster_utils import Cluster

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
for site in ("north", "south"):
    cluster.add_node(num_cpus=2, labels={"site": site})
print(cluster.address, flush=True)
sys.stdin.read()
cluster.shutdown()
"""

FEDERATION = """
silos:
  - {name: one, data: embedded, site: north}
  - {name: two, data: embedded, site: south}
training: {epochs: 2, hidden: [16]}
"""


@pytest.fixture
def address(tmp_path):
    pipes = {"stdin": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    process = start("-c", CLUSTER, folder=tmp_path, env=OPEN_CLUSTER, **pipes)
    assert process.stdout is not None
    yield process.stdout.readline().strip()
    process.communicate("", timeout=60)


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
