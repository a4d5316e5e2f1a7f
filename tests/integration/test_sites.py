"""A federation file on a cluster of three nodes with site labels, joined by its address, as institutions would.

The cluster has processes and a token policy of its own, so it lives in a process of its own.
"""

import json
import os
import subprocess
import sys

import pytest

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

ENVIRONMENT = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")} | {
    "RAY_AUTH_MODE": "disabled"
}


@pytest.fixture
def address(tmp_path):
    options = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    process = subprocess.Popen([sys.executable, "-c", CLUSTER], cwd=tmp_path, env=ENVIRONMENT, **options)
    assert process.stdout is not None
    yield process.stdout.readline().strip()
    process.communicate("", timeout=60)


def test_silos_stand_at_their_sites_and_an_unknown_site_is_refused(tmp_path, address):
    (tmp_path / "federation.yaml").write_text(FEDERATION)
    command = [sys.executable, "-m", "pipelines.cli", "formation-energy", "--federation", "federation.yaml"]
    options = {"cwd": tmp_path, "env": ENVIRONMENT, "capture_output": True, "text": True, "timeout": 200}
    done = subprocess.run([*command, "--address", address, "--out", "run"], check=False, **options)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["status"] == "completed"

    moved = ["--address", address, "--set", "silos.one.site=mars", "--out", "other"]
    refused = subprocess.run([*command, *moved], check=False, **options)
    assert refused.returncode == 2
    assert "no node has the label site=mars; sites in this cluster: north, south" in refused.stderr.splitlines()[-1]
    assert not (tmp_path / "other").exists()
