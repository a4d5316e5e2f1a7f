"""Three hosts, launched with `ray up cluster/onprem.yaml`: the bits, the wire, what stays home, who may join."""

import contextlib
import json
import os
import shlex
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.lab.capture import Line, segments, streams
from tests.lab.evidence import captured, object_store, places_outside, windows
from tests.lab.hosts import Host
from tests.lab.launched import TUNNEL, Launched, exports, filled_in, launched, until

COMMAND = "ray-fed formation-energy --federation federation.yaml"
ROUNDS = 40
OBJECTS = 6381
"""The port at which Ray hands out objects, as cluster/onprem.yaml fixes it; messages go to the other ports."""
SSH = 22
LASTING = {"RAY_gcs_storage": "rocksdb", "RAY_gcs_storage_path": "/root/gcs"}
"""The head's tables on disk, so that its server can be started again (Ray calls it experimental)."""


@pytest.fixture(scope="module")
def cluster(prepared):
    filled = filled_in(prepared.lab, **LASTING)
    with launched(prepared.lab, filled, {"RAY_AUTH_MODE": "token"}, ["-", "north", "south"]) as made:
        yield made


@dataclass(frozen=True)
class Undisturbed:
    """A run whose every frame was taken."""

    pcap: Path
    lines: dict[Line, bytes]
    folder: Path
    log: str


@pytest.fixture(scope="module")
def run(cluster: Launched, tmp_path_factory) -> Undisturbed:
    pcap = tmp_path_factory.mktemp("wire") / "run.pcap"
    with captured(cluster.lab, pcap):
        cluster.submit("plain", f"{COMMAND} --rounds {ROUNDS} --address auto --out /srv/runs/plain", "/root/job")
        cluster.finish("plain")
    return Undisturbed(pcap, streams(pcap), cluster.head.path("/srv/runs/plain"), cluster.job_log("plain"))


def test_three_hosts_give_the_bits_of_one_process(prepared, run, tmp_path):
    for site, rows in prepared.rows.items():
        (tmp_path / f"{site}.csv").write_text(rows)
        assert not prepared.lab.hosts["head"].path(f"/srv/{site}.csv").exists()
    federation = prepared.lab.desk.path("/root/job/federation.yaml").read_text().replace("/srv", str(tmp_path))
    (tmp_path / "federation.yaml").write_text(federation)
    options = f"{COMMAND} --rounds {ROUNDS} --cohort local --out run".split()[1:]
    command = [sys.executable, "-m", "pipelines.cli", *options]
    quiet = {"cwd": tmp_path, "env": os.environ | {"OMP_NUM_THREADS": "1"}, "capture_output": True}
    subprocess.run(command, check=True, **quiet)
    for name in ("history.jsonl", "models/federated.safetensors"):
        assert (run.folder / name).read_bytes() == (tmp_path / "run" / name).read_bytes(), name


def test_a_round_puts_two_vectors_of_each_silo_on_the_wire_and_little_else(cluster, run, record_property):
    history = [json.loads(line) for line in (run.folder / "history.jsonl").read_text().splitlines()]
    vector = history[-1]["bytes_sent"] / 2 / 2  # two silos, there and back
    evaluations = sum("silo.south-lab.mae" in line["metrics"] for line in history)
    for name in ("north", "south"):
        sent = traffic(run.pcap, cluster.lab.hosts[name])
        theory = (2 * ROUNDS + evaluations) * vector
        figures = {
            "site": name,
            "rounds": ROUNDS,
            "two_vectors_bytes": 2 * vector,
            "with_evaluation_bytes": theory / ROUNDS,
            "objects_bytes": sent[OBJECTS] / ROUNDS,
            "all_bytes": (sum(sent.values()) - sent[SSH]) / ROUNDS,
        }
        record_property("bytes per round", json.dumps(figures))
        print(json.dumps(figures))
        assert theory <= sent[OBJECTS] <= 1.25 * theory  # what is sent again on a busy machine is in it


def traffic(pcap: Path, host: Host) -> Counter[int]:
    """Return the bytes of all frames from and to a host by the service's port: the lower one of each line."""
    found: Counter[int] = Counter()
    for segment in segments(pcap):
        if host.address in (segment.source[0], segment.target[0]):
            found[min(segment.source[1], segment.target[1])] += segment.num_bytes
    return found


def test_no_marked_value_is_found_outside_its_site(prepared, cluster, run):
    searched = []
    for site, markers in prepared.markers.items():
        own = prepared.lab.hosts[site]
        assert markers.found_in(own.path(f"/srv/{site}.csv").read_bytes())  # the search finds what is there
        for place, content in [*places_outside(cluster.lab, site), *wire(run)]:
            assert not markers.found_in(content), place
            searched.append(place)
    for part in ("object store of head", "head:/srv/runs/plain/report.html", "head:/tmp/ray", "north:/tmp/ray", "wire"):
        assert any(place.startswith(part) for place in searched), part
    assert any("tfevents" in place for place in searched)


def test_the_search_finds_parameters_where_they_must_have_been(cluster, run):
    parameters = windows(run.folder / "models" / "federated.safetensors")
    sent = b"".join(content for _, content in wire(run))
    kept = object_store(cluster.lab.hosts["south"])
    for content in (sent, kept):
        assert any(window in content for window in parameters)


def wire(run: Undisturbed) -> list[tuple[str, bytes]]:
    return [(f"wire {line}", content) for line, content in run.lines.items()]


def test_who_has_no_token_is_refused_and_told_so(cluster):
    north, asked = cluster.lab.hosts["north"], f"{COMMAND} --address {cluster.head.address}:6379"
    north.write("/tmp/stranger/federation.yaml", cluster.lab.desk.path("/root/job/federation.yaml").read_text())
    for way in ("RAY_AUTH_MODE=disabled", f"RAY_AUTH_MODE=token RAY_AUTH_TOKEN={'0' * 64}"):
        refused = north.run(f"cd /tmp/stranger; export {way}; {asked}", check=False)
        assert refused.returncode == 2, refused.stdout + refused.stderr
        said = refused.stderr.splitlines()[-1]
        assert said.startswith("ray-fed formation-energy: error:"), refused.stderr
        assert "token" in said
        job = cluster.lab.desk.run(f"export {way}; ray job list --address http://127.0.0.1:8265", check=False)
        assert job.returncode != 0
        assert "token" in job.stdout + job.stderr


def test_a_site_that_is_cut_off_is_waited_for_until_the_deadline_and_takes_part_again(cluster):
    """Then its Ray is killed: the head starts it again, at the same site, and the silo comes back."""
    options = "--rounds 40000 --epochs 200000 --round-timeout 6 --address auto --out /srv/runs/torn"
    cluster.submit("torn", f"{COMMAND} {options}", "/root/job")
    heard = RunSoFar(cluster, "/srv/runs/torn")
    until("both sites take part", lambda: heard.both() > 5)
    with cluster.lab.cut("south"):
        until("a round closes at its deadline", lambda: heard.reasons("south-lab"))
        assert heard.reasons("south-lab")[0] == "late: no answer before the deadline"
        rounds = heard.rounds()
        until("rounds go on without the site", lambda: heard.rounds() > rounds + 5)
    before = heard.both()
    until("the site takes part again", lambda: heard.both() > before + 3)

    south = cluster.lab.hosts["south"]
    [raylet] = south.processes("raylet/raylet")
    south.run(f"kill -9 {raylet}")
    until("its silo is missed", lambda: "not restarted before the deadline" in heard.reasons("south-lab"))
    before = heard.both()
    until("Ray is started again at the site, and its silo with it", lambda: heard.both() > before + 3, every=1.0)
    assert south.processes("raylet/raylet") != [raylet]
    cluster.ray("ray job stop --address http://127.0.0.1:8265 torn")


@dataclass(frozen=True)
class RunSoFar:
    """What a run has recorded so far."""

    cluster: Launched
    run: str

    def rounds(self) -> int:
        return len(self.cluster.history(self.run))

    def both(self) -> int:
        """Return in how many rounds both silos took part."""
        return sum(len(line["participants"]) == 2 for line in self.cluster.history(self.run))

    def reasons(self, silo: str) -> list[str]:
        """Return why the silo did not take part, round by round."""
        return [line["failures"][silo] for line in self.cluster.history(self.run) if silo in line["failures"]]


def test_a_job_whose_terminal_is_lost_goes_on_and_is_shown_again(prepared, cluster):
    """The terminal that waited for the job is killed; meanwhile nothing marked is in checkpoints or states abroad."""
    desk, run, num_rounds = cluster.lab.desk, "/srv/runs/left", 1500
    options = f"--rounds {num_rounds} --epochs {5 * num_rounds} --address auto --out {run}"
    waiting = f"ray job submit --submission-id left --address {TUNNEL} --working-dir /root/job -- {COMMAND} {options}"
    command = f"{exports(cluster.environment)} exec script -qfec {shlex.quote(waiting)} /dev/null"
    terminal = desk.start(command, subprocess.DEVNULL)
    heard = RunSoFar(cluster, run)
    until("both sites take part", lambda: heard.both() > 2)
    [waits] = desk.processes("bin/ray job submit --submission-id left")
    [shown] = desk.processes("script -qfec")
    desk.run(f"kill -9 {shown}")
    terminal.wait(120)
    until("who waited for it has ended with its terminal", lambda: waits not in desk.processes("ray job submit"))
    rounds = heard.rounds()
    until("rounds go on", lambda: heard.rounds() > rounds)
    searched = list(kept_by_others(cluster, prepared))
    for site, place, content in searched:
        assert not prepared.markers[site].found_in(content), place
    assert heard.rounds() < num_rounds  # so it was searched while it ran
    assert any("/checkpoint/" in place for _, place, _ in searched)
    attached = cluster.head.run(f"ray-fed attach {run}", timeout=600.0)
    assert f"round {num_rounds}/{num_rounds}" in attached.stderr
    assert "MAE (eV/atom)" in attached.stdout
    until("the job has succeeded", lambda: cluster.state("left").startswith("SUCC"), every=1.0)
    assert heard.both() == num_rounds


def kept_by_others(cluster: Launched, prepared) -> Iterator[tuple[str, str, bytes]]:
    """Yield (site, place, content) of all that lies in /srv of other hosts than the site's own."""
    for host in cluster.lab.hosts.values():
        for path in host.path("/srv").rglob("*"):
            with contextlib.suppress(FileNotFoundError):  # a checkpoint that made room for the next
                content = path.read_bytes() if path.is_file() else b""
                yield from ((site, f"{host.name}:{path}", content) for site in prepared.markers if site != host.name)


def test_a_run_goes_on_while_the_heads_tables_are_started_again(cluster):
    options = "--rounds 300 --epochs 1500 --address auto --out /srv/runs/headless"
    cluster.submit("headless", f"{COMMAND} {options}", "/root/job")
    heard = RunSoFar(cluster, "/srv/runs/headless")
    until("both sites take part", lambda: heard.both() > 5)
    restart_tables(cluster.head)
    cluster.finish("headless")
    assert heard.both() == 300
    assert cluster.nodes() == ["-", "north", "south"]


def restart_tables(head: Host) -> None:
    """Kill the global control service, and start the same command again: Ray itself does not."""
    [number] = head.processes("gcs/gcs_server")
    folder = head.path(f"/proc/{number}")
    words = [word.decode() for word in (folder / "cmdline").read_bytes().split(b"\0")[:-1]]
    variables = [word.decode() for word in (folder / "environ").read_bytes().split(b"\0")[:-1]]
    head.run(f"kill -9 {number}; while kill -0 {number} 2>/dev/null; do sleep 0.1; done")
    command = shlex.join(["env", "-i", *variables, *words])
    head.run(f"ulimit -n 65536; setsid {command} > /tmp/gcs.log 2>&1 < /dev/null & sleep 2")
