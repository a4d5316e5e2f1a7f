"""Many sites, and sites that come and go: nodes with labels on this machine, in a cluster of their own.

The cluster has processes and a token policy of its own, so it lives in a process of its own.
"""

import json
import signal
import subprocess
from pathlib import Path

import pytest

from tests.commands import OPEN_CLUSTER, PATIENCE, REPOSITORY, finished, start_module, start_ray_fed, wait_until

ENVIRONMENT = OPEN_CLUSTER | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}


def test_eight_silos_on_four_nodes_stand_at_their_sites_and_give_the_bits_of_one_process():
    options = "--nodes 4 --silos 8 --rounds 4 --hidden 8"
    done = finished(start_module("benchmarks.sites", *options.split(), folder=REPOSITORY, env=ENVIRONMENT))
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["silos_per_site"] == {f"site-{number}": 2 for number in range(4)}
    assert found["coordinator_at"] == "the head"  # which offers no CPUs, as a careful operator starts it
    assert found["participants"] == [8]
    assert found["same_bits"]


FEDERATION = """
silos:
  - {name: steady, data: embedded, site: north, where: {anion: O}}
  - {name: spot, data: embedded, site: south, where: {anion: F}}
training: {epochs: 40000, rounds: 20000, hidden: [16], baselines: false, round_timeout: 6, max_restarts: 5,
  late_silos: true}
"""


@pytest.fixture
def elastic():
    pipes = {"stdin": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    process = start_module("tests.clusters", "north", folder=REPOSITORY, env=ENVIRONMENT, **pipes)
    yield process
    process.communicate("", timeout=PATIENCE)


def test_a_site_comes_after_the_beginning_is_taken_away_and_comes_back_and_the_run_records_it(tmp_path, elastic):
    address = elastic.stdout.readline().strip()
    (tmp_path / "federation.yaml").write_text(FEDERATION)
    options = ["--federation", "federation.yaml", "--address", address, "--out", "run"]
    running = start_ray_fed("formation-energy", *options, folder=tmp_path, env=ENVIRONMENT)
    try:
        wait_until(lambda: len(history(tmp_path)) > 3, running, every=0.1)
        assert both(tmp_path) == 0
        changed(elastic, "add south")
        wait_until(lambda: both(tmp_path) > 3, running, every=0.1)
        changed(elastic, "remove south")
        wait_until(lambda: history(tmp_path)[-1]["failures"], running, every=0.1)
        changed(elastic, "add south")
        before = both(tmp_path)
        wait_until(lambda: both(tmp_path) > before + 3, running, every=0.1)
        running.send_signal(signal.SIGINT)
        _, said = running.communicate(timeout=PATIENCE)
    finally:
        running.kill()
        running.communicate()
    missed = [line for line in history(tmp_path) if "spot" in line["failures"]]
    [came] = [line for line in history(tmp_path) if "joined" in line]
    assert came["joined"] == ["spot"]
    absent = [line for line in missed if line["round"] <= came["round"]]
    assert {line["failures"]["spot"] for line in absent} == {"no machine at its site 'south' yet"}
    assert [line["round"] for line in absent] == list(range(1, came["round"] + 1))
    assert missed[len(absent)]["failures"]["spot"] == "not restarted before the deadline"
    assert all(line["participants"] == ["steady"] for line in missed)
    assert [len(line["participants"]) for line in history(tmp_path)[1:]].count(1) == len(missed)
    sources = {entry["silo"]: entry for entry in json.loads((tmp_path / "run" / "data.json").read_text())}
    assert sources["spot"]["joined"] == f"federated-0, round {came['round']}"
    assert "joined" not in sources["steady"]
    assert f"round {came['round']}/20000: silo 'spot' joins with " in said
    assert "silo 'spot' was started again: its process died" in said
    assert "silo 'spot' does not take part" in said
    assert "all silos take part again" in said


def changed(elastic: subprocess.Popen, change: str) -> None:
    print(change, file=elastic.stdin, flush=True)
    assert elastic.stdout.readline() == "done\n"


def history(folder: Path) -> list[dict]:
    path = folder / "run" / "history.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def both(folder: Path) -> int:
    return sum(len(line["participants"]) == 2 for line in history(folder))
