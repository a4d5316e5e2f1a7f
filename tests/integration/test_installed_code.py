"""A cluster whose nodes have other installations of ray-fed than the driver, one of them none: what is run where."""

import json
import shutil
import subprocess

import pytest

from ray_fed.deployment.installed import PACKAGES, installed_package
from tests.commands import OPEN_CLUSTER, PATIENCE, REPOSITORY, run_ray_fed, start

CLUSTER = """
import os, sys
from ray.cluster_utils import Cluster

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
for site in sys.argv[1:]:
    cluster.add_node(num_cpus=2, labels={"site": site}, env_vars={"PYTHONPATH": os.path.abspath(site)})
print(cluster.address, flush=True)
sys.stdin.read()
cluster.shutdown()
"""
HIDDEN = 'import sys; sys.meta_path[:] = [each for each in sys.meta_path if "__editable___ray_fed" not in str(each)]'
"""The sitecustomize.py of a node whose Python does not see what is installed here."""
FEDERATION = """
silos:
  - {name: one, data: embedded, site: SITE}
training: {epochs: 2, hidden: [16], rows: 400, baselines: false}
"""


@pytest.fixture
def address(tmp_path):
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "sitecustomize.py").write_text(HIDDEN)
    for package in PACKAGES:
        shutil.copytree(REPOSITORY / package, tmp_path / "other" / package)
    with (tmp_path / "other" / "actors" / "silo.py").open("a") as file:
        file.write("\n# changed\n")
    pipes = {"stdin": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    process = start("-c", CLUSTER, "none", "other", folder=tmp_path, env=OPEN_CLUSTER, **pipes)
    assert process.stdout is not None
    yield process.stdout.readline().strip()
    process.communicate("", timeout=PATIENCE)


def run(folder, address, site, *more, **environment):
    (folder / "federation.yaml").write_text(FEDERATION.replace("SITE", site))
    options = ["--federation", "federation.yaml", "--address", address, *more]
    return run_ray_fed("formation-energy", *options, folder=folder, env=OPEN_CLUSTER | environment)


def test_other_installations_are_named_with_the_remedy_and_the_remedy_works(tmp_path, address):
    refused = run(tmp_path, address, "other", "--out", "refused")
    said = refused.stderr.splitlines()[-1]
    assert refused.returncode == 2
    assert not (tmp_path / "refused").exists()
    assert said.count("has ray-fed 0.1.0+") == 2  # of one node, and of this process
    assert said.count("has no ray-fed") == 1
    assert f"this process has ray-fed {installed_package()}: install the same wheel there, or set RAY_FED_S" in said

    examined = run_ray_fed("doctor", "--address", address, folder=tmp_path, env=OPEN_CLUSTER)
    failures = [line for line in examined.stdout.splitlines() if line.startswith("failure: ") and "ray-fed" in line]
    assert examined.returncode == 1
    assert sorted("not installed" in line for line in failures) == [False, True]
    assert all(str(installed_package()) in line for line in failures)

    for site in ("other", "none"):
        done = run(tmp_path, address, site, "--out", f"run-{site}", RAY_FED_SHIP_CODE="yes")
        assert done.returncode == 0, done.stderr
        assert json.loads((tmp_path / f"run-{site}" / "summary.json").read_text())["status"] == "completed"
