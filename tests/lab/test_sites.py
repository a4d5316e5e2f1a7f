"""Three institutions, each a host with an account for its agent; firewalls let out to the hub's port alone."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from ray_fed.deployment.certificates import Node, write_certificates
from ray_fed.sites.link import Certificates
from tests.lab import hosts
from tests.lab.capture import streams
from tests.lab.evidence import captured, disk, object_store
from tests.lab.hosts import Host, Lab
from tests.lab.launched import until
from tests.lab.marked_data import TARGET, Markers, marked_rows

SITES = {"north": (150, 11), "south": (250, 12), "west": (200, 13)}
"""Site -> rows and seed of its records."""
PORT = 7443
TLS_HANDSHAKE, TLS_RECORDS = 22, (20, 21, 22, 23)
TRAINING = "training: {epochs: 60, hidden: [200, 200], baselines: false}"
COMMAND = "ray-fed formation-energy --federation federation.yaml"
ROUNDS = 30


@dataclass(frozen=True)
class Institutions:
    """The hub's host and the sites', with the sites' data at their owners'."""

    lab: Lab
    markers: dict[str, Markers]
    rows: dict[str, str]
    agents: dict[str, subprocess.Popen[str]] = field(default_factory=dict)

    @property
    def hub(self) -> Host:
        return self.lab.hosts["hub"]

    def history(self, run: str) -> list[dict]:
        path = self.hub.path(f"{run}/history.jsonl")
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def complete_rounds(self, run: str) -> int:
        """Return in how many rounds all sites took part."""
        return sum(len(line["participants"]) == len(SITES) for line in self.history(run))

    def start_agent(self, site: str) -> None:
        text = "exec ray-fed site start >> agent.log 2>&1"
        self.agents[site] = self.lab.hosts[site].start(text, subprocess.DEVNULL, account="owner")

    def end(self) -> None:
        """End the agents as their owners do."""
        for site, agent in self.agents.items():
            for process in self.lab.hosts[site].processes("ray-fed site start"):
                self.lab.hosts[site].run(f"kill -INT {process}", check=False)
            agent.wait(60)

    def log(self, site: str) -> str:
        return self.lab.hosts[site].path("/home/owner/agent.log").read_text()


@pytest.fixture(scope="module")
def institutions(tmp_path_factory) -> Iterator[Institutions]:
    reason = hosts.reason_to_skip(hosts.WALL_PROGRAMS)
    if reason:
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("tls")
    with hosts.lab(["hub", *SITES], ssh=False) as lab:
        write_certificates(folder, [Node(name, (host.address,)) for name, host in lab.hosts.items()], days=2)
        tables = {site: marked_rows(site, *said) for site, said in SITES.items()}
        made = Institutions(
            lab,
            {site: markers for site, (_, markers) in tables.items()},
            {site: table.to_csv(index=False) for site, (table, _) in tables.items()},
        )
        hub_key = Certificates.read(folder / "hub").key_hash()
        for name, host in lab.hosts.items():
            _bring_certificates(host, folder / name, "raysvc" if name == "hub" else "owner")
        told = {site: _join(made, site, hub_key) for site in SITES}
        silos = "".join(f"  - {{name: {site}-lab, dataset: alloys, site: {site}}}\n" for site in SITES)
        hub = f"hub: {{listen: '0.0.0.0:{PORT}', sites: {json.dumps(told)}}}"
        made.hub.write("/home/raysvc/federation.yaml", f"silos:\n{silos}{hub}\n{TRAINING}\n")
        made.hub.give("/home/raysvc/federation.yaml", "raysvc")
        try:
            yield made
        finally:
            made.end()


def _bring_certificates(host: Host, folder: Path, account: str) -> None:
    home = f"/home/{account}/ray-fed"
    for name in ("ca.crt", "node.crt", "node.key"):
        host.write(f"{home}/tls/{name}", (folder / name).read_bytes())
        host.give(f"{home}/tls/{name}", account)
    for inside in (home, f"{home}/tls"):
        host.give(inside, account, 0o700)


def _join(made: Institutions, site: str, hub_key: str) -> str:
    """What the owner of a site does; returns what the owner tells the coordinator: the hash of the site's key."""
    host = made.lab.hosts[site]
    host.write("/home/owner/alloys.csv", made.rows[site])
    host.give("/home/owner/alloys.csv", "owner")
    host.lets_out_to(made.hub.address, PORT)
    options = f"--name {site} --hub {made.hub.address}:{PORT} --hub-key {hub_key} --dataset alloys=~/alloys.csv"
    said = host.run(f"ray-fed site init {options} --target {TARGET}={TARGET}:eV/atom", account="owner").stdout
    made.start_agent(site)
    return next(line.split()[-1] for line in said.splitlines() if "certificate key" in line)


def start(made: Institutions, name: str, options: str, command: str = COMMAND) -> subprocess.Popen[str]:
    return made.hub.start(f"exec {command} {options} > {name}.log 2>&1", subprocess.DEVNULL, account="raysvc")


def finish(made: Institutions, run: subprocess.Popen[str], name: str) -> None:
    log = made.hub.path(f"/home/raysvc/{name}.log")
    assert run.wait(400) == 0, log.read_text() + "".join(f"\n{site}: {made.log(site)}" for site in SITES)


@dataclass(frozen=True)
class Undisturbed:
    """A run whose every frame was taken."""

    pcap: Path
    folder: Path


@pytest.fixture(scope="module")
def run(institutions: Institutions, tmp_path_factory) -> Undisturbed:
    pcap = tmp_path_factory.mktemp("wire") / "run.pcap"
    with captured(institutions.lab, pcap):
        finish(institutions, start(institutions, "plain", f"--rounds {ROUNDS} --out runs/plain"), "plain")
    return Undisturbed(pcap, institutions.hub.path("/home/raysvc/runs/plain"))


def test_three_institutions_give_the_bits_of_one_process(institutions, run, tmp_path):
    for site, rows in institutions.rows.items():
        (tmp_path / f"{site}.csv").write_text(rows)
    silos = "".join(f"  - {{name: {site}-lab, data: {site}.csv}}\n" for site in SITES)
    (tmp_path / "federation.yaml").write_text(f"silos:\n{silos}{TRAINING}\n")
    options = f"{COMMAND} --rounds {ROUNDS} --cohort local --out run".split()[1:]
    quiet = {"cwd": tmp_path, "env": os.environ | {"OMP_NUM_THREADS": "1"}, "capture_output": True}
    subprocess.run([sys.executable, "-m", "pipelines.cli", *options], check=True, **quiet)
    for name in ("history.jsonl", "models/federated.safetensors"):
        assert (run.folder / name).read_bytes() == (tmp_path / "run" / name).read_bytes(), name


def test_every_line_on_the_wire_is_one_that_a_site_dialled_and_all_of_it_is_tls(institutions, run):
    lines = streams(run.pcap)
    addresses = {host.address for name, host in institutions.lab.hosts.items() if name != "hub"}
    assert {source for (source, _), (_, port) in lines if port == PORT} == addresses
    for (source, target), content in lines.items():
        assert PORT in (source[1], target[1]), (source, target)
        assert record_types(content) <= set(TLS_RECORDS), (source, target)


def record_types(content: bytes) -> set[int]:
    """Return the types of the TLS records that follow each other in a stream; the last one may be torn."""
    found, at = set(), 0
    while at + 5 <= len(content):
        assert content[at + 1] == 3, content[at : at + 5]
        found.add(content[at])
        at += 5 + int.from_bytes(content[at + 3 : at + 5])
    return found


def test_no_marked_value_is_found_outside_its_site(institutions, run):
    searched = set()
    for site, markers in institutions.markers.items():
        assert markers.found_in(institutions.lab.hosts[site].path("/home/owner/alloys.csv").read_bytes())
        for place, content in places_outside(institutions, site):
            assert not markers.found_in(content), place
            searched.add(place.partition(":")[0])
    for line, content in streams(run.pcap).items():
        assert not any(markers.found_in(content, shortest=8) for markers in institutions.markers.values()), line
    assert {"hub", "north", "object store of north"} <= searched


def places_outside(made: Institutions, site: str) -> Iterator[tuple[str, bytes]]:
    """Yield (name, content) of all places where nothing of a site's records may be found: what is not its owner's."""
    for name, host in made.lab.hosts.items():
        if name != site:
            yield f"object store of {name}", object_store(host)
        for path, content in disk(host):
            if name != site or not path.startswith("/home/owner/"):
                yield f"{name}:{path}", content


def test_another_account_of_the_machine_reads_nothing_of_the_owner(institutions, run):  # noqa: ARG001
    for site, markers in institutions.markers.items():
        host = institutions.lab.hosts[site]
        for inside in ("/home/owner/alloys.csv", "/home/owner/.config/ray-fed/site.yaml", "/home/owner/ray-fed/tls"):
            refused = host.run(f"cat {inside}", check=False, account="raysvc")
            assert "Permission denied" in refused.stderr
        patterns = "".join(f"{text}\n" for text in markers.texts)
        host.write("/srv/patterns", patterns)
        found = host.run(
            "grep -rlaF -f /srv/patterns /tmp /home /srv/* /dev/shm --exclude=patterns", check=False, account="raysvc"
        )
        assert found.stdout == "", found.stdout
        assert host.run("grep -rlaF -f /srv/patterns /home/owner", account="owner").stdout  # the search finds it


def test_a_site_that_is_cut_off_in_mid_round_takes_part_again(institutions):
    running = start(institutions, "torn", "--rounds 20000 --epochs 100000 --round-timeout 6 --out runs/torn")
    folder = "/home/raysvc/runs/torn"
    until("all take part", lambda: institutions.complete_rounds(folder) > 5)
    with institutions.lab.cut("south"):
        until("a round closes without the site", lambda: "south-lab" in institutions.history(folder)[-1]["failures"])
        rounds = len(institutions.history(folder))
        until("rounds go on without it", lambda: len(institutions.history(folder)) > rounds + 3)
    before = institutions.complete_rounds(folder)
    until("the site takes part again", lambda: institutions.complete_rounds(folder) > before + 3)

    west = institutions.lab.hosts["west"]
    for process in west.processes("ray-fed site start"):
        west.run(f"kill -9 {process}")
    until("the site is missed", lambda: "west-lab" in institutions.history(folder)[-1]["failures"])
    institutions.agents["west"].wait(60)
    institutions.start_agent("west")
    before = institutions.complete_rounds(folder)
    until("the restarted site takes part again", lambda: institutions.complete_rounds(folder) > before + 3)
    for process in institutions.hub.processes("formation-energy --federation"):
        institutions.hub.run(f"kill -INT {process}", check=False)
    running.wait(120)


def test_a_hub_that_is_killed_goes_on_and_ends_with_the_same_bytes(institutions, run):
    folder = "/home/raysvc/runs/killed"
    killed = start(institutions, "killed", f"--rounds {ROUNDS} --out runs/killed")
    until("rounds are done", lambda: len(institutions.history(folder)) > ROUNDS // 3, every=0.05)
    for process in institutions.hub.processes("formation-energy --federation"):
        institutions.hub.run(f"kill -9 {process}", check=False)
    killed.wait(60)
    assert len(institutions.history(folder)) <= ROUNDS
    finish(institutions, start(institutions, "resumed", "runs/killed", "ray-fed resume"), "resumed")
    ours, whole = institutions.hub.path(folder), run.folder
    for name in ("history.jsonl", "models/federated.safetensors"):
        assert (ours / name).read_bytes() == (whole / name).read_bytes(), name
