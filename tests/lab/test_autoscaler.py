"""A real autoscaler adds a site's machine because a silo waits for it, and takes it away when nobody needs it.

The machines are Ray's simulated ones, processes of one host; the autoscaler is the one that runs in a cloud.
"""

import json

import pytest

from tests.lab import hosts
from tests.lab.launched import until

HEAD = "fffffffffffffffffffffffffffffffffffffffffffffffffff00000"
"""The number that Ray's simulation of machines expects its head to have."""
SIMULATED = "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider"
"""Named as a provider from elsewhere: Ray's wheel lacks the defaults of the name it has itself for it."""
SMALL = {"resources": {"CPU": 1, "object_store_memory": 80 << 20}, "node_config": {}, "max_workers": 1}
NOTHING = (
    "initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands",
    "head_start_ray_commands", "worker_start_ray_commands", "cluster_synced_files", "rsync_exclude", "rsync_filter",
)  # fmt: skip
CLUSTER = {
    "cluster_name": "grown",
    "max_workers": 2,
    "provider": {"type": "external", "module": SIMULATED, "launch_multiple": True, "head_node_id": HEAD},
    "available_node_types": {
        "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
        "north": {**SMALL, "labels": {"site": "north"}, "min_workers": 1},
        "south": {**SMALL, "labels": {"site": "south"}, "min_workers": 0},
    },
    "head_node_type": "ray.head.default",
    "upscaling_speed": 1.0,
    "idle_timeout_minutes": 0.1,
    "auth": {},
    "docker": {},
    "file_mounts": {},
    "file_mounts_sync_continuously": False,
    **{name: [] for name in NOTHING},
}
SITES = """
import ray
ray.init("auto", logging_level="ERROR", log_to_driver=False)
print("SITES", *sorted(node["Labels"].get("site", "-") for node in ray.nodes() if node["Alive"]))
"""
FEDERATION = """
silos:
  - {name: steady, data: embedded, site: north, where: {anion: O}}
  - {name: grown, data: embedded, site: south, where: {anion: F}}
training: {epochs: 40000, rounds: 40000, hidden: [16], baselines: false, late_silos: true}
"""
OPEN = "export RAY_AUTH_MODE=disabled RAY_USAGE_STATS_ENABLED=0;"
AUTOSCALED = (
    f"export RAY_enable_autoscaler_v2=1 RAY_CLOUD_INSTANCE_ID={HEAD} RAY_OVERRIDE_NODE_ID_FOR_TESTING={HEAD} "
    "RAY_FAKE_CLUSTER=1 AUTOSCALER_UPDATE_INTERVAL_S=1;"
)


@pytest.fixture
def host():
    reason = hosts.reason_to_skip()
    if reason:
        pytest.skip(reason)
    with hosts.lab(["alone"]) as lab:
        alone = lab.hosts["alone"]
        alone.write("/srv/cluster.json", json.dumps(CLUSTER))
        alone.write("/srv/sites.py", SITES)
        alone.write("/srv/federation.yaml", FEDERATION)
        start = "ray start --head --autoscaling-config=/srv/cluster.json --num-cpus=0 --object-store-memory=80000000"
        alone.run(f"{OPEN} {AUTOSCALED} {start} --include-dashboard=false --disable-usage-stats < /dev/null")
        yield alone


def test_a_waiting_silo_is_given_a_machine_that_goes_when_it_is_done(host):
    def sites() -> str:
        said = host.run(f"{OPEN} python /srv/sites.py", check=False).stdout.splitlines()
        return next((line for line in said if line.startswith("SITES")), "")

    until("the machine that is always there", lambda: sites() == "SITES - north", every=1.0)
    log = host.path("/srv/log")
    with log.open("w") as said:
        command = "ray-fed formation-energy --federation /srv/federation.yaml --address auto --out /srv/run"
        running = host.start(f"{OPEN} cd /srv; exec {command}", said)
    until("the silo takes part", lambda: [len(line["participants"]) for line in history(host)].count(2) > 3)
    [number] = host.processes("bin/ray-fed formation-energy")
    host.run(f"kill {number}")
    assert running.wait(120) == 130, log.read_text()
    lines = history(host)
    [came] = [line for line in lines if "joined" in line]
    assert came["joined"] == ["grown"]
    assert came["failures"] == {"grown": "no machine at its site 'south' yet"}
    later = [line["participants"] for line in lines[came["round"] + 1 :]]
    assert later == [["grown", "steady"]] * len(later)
    assert "silo 'grown' joins with " in log.read_text()
    until("the machine that was added is taken away", lambda: sites() == "SITES - north", every=1.0)


def history(host) -> list[dict]:
    """Return what the run has recorded so far; a line that is being written is left out."""
    path = host.path("/srv/run/history.jsonl")
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]
