"""The head of a cluster is killed in mid-run and started again by its supervisor, as systemd does; the run ends with a
word and goes on by the command that it names (cluster/README.md)."""

import contextlib
import json

import pytest

from tests.lab import hosts
from tests.lab.launched import until

OPEN = "export RAY_AUTH_MODE=disabled RAY_USAGE_STATS_ENABLED=0 OMP_NUM_THREADS=1;"
SUPERVISED = (
    "while true; do ray start --head --block --port=6379 --node-ip-address=10.77.0.2 --num-cpus=3 "
    "--object-store-memory=80000000 --include-dashboard=false --disable-usage-stats; sleep 5; done"
)
"""`Restart=always`, `RestartSec=5` of cluster/systemd/ray-fed-head.service."""
RUN = (
    "ray-fed formation-energy --address auto --rows 400 --silos 150,150 --hidden 16 --epochs 4000 --rounds 4000 "
    "--baselines no --out run"
)


@pytest.fixture
def host():
    if reason := hosts.reason_to_skip():  # where the whole lab runs: it needs minutes of a machine that is not busy
        pytest.skip(reason)
    with hosts.lab(["head"], ssh=False) as lab:
        yield lab.hosts["head"]


@contextlib.contextmanager
def supervised(host, log):
    """Start the head's supervisor for the duration of a block."""
    supervisor = host.start(f"{OPEN} {SUPERVISED}", log)
    try:
        yield
    finally:
        supervisor.kill()
        supervisor.wait(60)


def test_a_run_whose_head_is_killed_ends_with_a_word_and_goes_on_when_the_head_is_back(host, tmp_path):
    with (tmp_path / "ray").open("w") as ray, (tmp_path / "log").open("w") as log, supervised(host, ray):
        until("a head", lambda: host.processes("gcs_server"), 400)
        until("a head that answers", lambda: host.run(f"{OPEN} ray status", check=False).returncode == 0, 400)
        run = host.start(f"{OPEN} {RUN}", log)
        until("the first rounds", lambda: host.path("/root/run/history.jsonl").exists() or run.poll(), 400)
        host.run(f"kill -9 {host.processes('gcs_server')[0]}")
        assert run.wait(600) != 0
        said = (tmp_path / "log").read_text()
        assert "go on with: ray-fed resume" in said, said
        status = json.loads(host.path("/root/run/summary.json").read_text())["status"]
        assert status in ("interrupted", "failed")
        until("the head again", lambda: host.run(f"{OPEN} ray status", check=False).returncode == 0, 400)
        host.run(f"{OPEN} ray-fed resume run", timeout=900)
        assert json.loads(host.path("/root/run/summary.json").read_text())["status"] == "completed"
