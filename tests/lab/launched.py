"""A Ray cluster on the lab's hosts, launched as an operator would: from the desk, with `ray up` and a cluster file."""

import contextlib
import json
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import yaml

from tests.lab.hosts import REPOSITORY, Host, Lab

CLUSTER_FILE = REPOSITORY / "cluster" / "onprem.yaml"
TUNNEL = "http://127.0.0.1:8265"
STORE_BYTES = 100 << 20


def until(what: str, holds: Callable[[], object], seconds: float = 600.0, every: float = 0.2) -> None:
    """Wait until something holds; AssertionError names it when it does not come to pass."""
    limit = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < limit, f"not within {seconds:g} s: {what}"
        time.sleep(every)


@dataclass(frozen=True)
class Launched:
    """A running cluster and the ways to it."""

    lab: Lab
    environment: Mapping[str, str]
    """What every Ray command needs: token and certificates."""

    @property
    def head(self) -> Host:
        return next(iter(self.lab.hosts.values()))

    def ray(self, text: str, host: Host | None = None, timeout: float = 240.0, check: bool = True):
        """Run a Ray command at the desk, or on a host."""
        return (host or self.lab.desk).run(f"{exports(self.environment)} {text}", timeout, check)

    def nodes(self) -> list[str]:
        """Return the sites of the living nodes, sorted."""
        asked = "import ray; ray.init('auto', logging_level='ERROR', log_to_driver=False); print('SITES', *sorted("
        asked += "n['Labels'].get('site', '-') for n in ray.nodes() if n['Alive']))"
        done = self.ray(f'python -c "{asked}"', self.head, check=False)
        found = re.search(r"^SITES (.*)$", done.stdout, re.MULTILINE)
        return found[1].split() if found else []

    def submit(self, name: str, entrypoint: str, folder: str) -> None:
        """Submit a job through the tunnel and do not wait for it."""
        asked = f"ray job submit --no-wait --submission-id {name} --address {TUNNEL} --working-dir {folder}"
        self.ray(f"{asked} -- {entrypoint}")

    def state(self, name: str) -> str:
        """Return Ray's word for how a job stands, such as RUNNING."""
        said = self.ray(f"ray job status --address {TUNNEL} {name}", check=False).stdout
        found = re.search(r"Status for job '.*': ([A-Z]+)|Job '.*' (succeeded|failed)", said)
        return (found[1] or found[2]).upper() if found else said

    def job_log(self, name: str) -> str:
        return self.ray(f"ray job logs --address {TUNNEL} {name}", check=False).stdout

    def finish(self, name: str) -> None:
        """Wait for a job; AssertionError with its log unless it succeeded."""
        until(f"job {name} ends", lambda: self.state(name).startswith(("SUCC", "FAIL", "STOP")), every=1.0)
        assert self.state(name).startswith("SUCC"), self.job_log(name)

    def history(self, run: str) -> list[dict]:
        """Return what the run has recorded so far; a line that is being written is left out."""
        path = self.head.path(f"{run}/history.jsonl")
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        return [json.loads(line) for line in lines if line.endswith("\n")]


def filled_in(lab: Lab, tls: bool = False, **environment: str) -> dict:
    """Return cluster/onprem.yaml with what its head says is to be filled in, small stores, and further settings.

    Every host has our code installed, as institutions that install it themselves.
    """
    text = CLUSTER_FILE.read_text()
    assert "export RAY_USE_TLS=1" in text
    cluster = yaml.safe_load(text.replace("export RAY_USE_TLS=1", f"export RAY_USE_TLS={int(tls)}"))
    head, *workers = lab.hosts.values()
    cluster["provider"] |= {"head_ip": head.address, "worker_ips": [worker.address for worker in workers]}
    cluster["auth"] = {"ssh_user": "root", "ssh_private_key": "~/.ssh/id_ed25519"}
    del cluster["file_mounts"]["~/ray-fed/wheels"]
    lines = "; ".join(f"echo 'export {key}={value}' >> ~/ray-fed/environment" for key, value in environment.items())
    cluster["setup_commands"].append(lines or "true")
    for starting in ("head_start_ray_commands", "worker_start_ray_commands"):
        cluster[starting][-1] += f" --object-store-memory={STORE_BYTES}"
    return cluster


def exports(environment: Mapping[str, str]) -> str:
    return " ".join(["export", *(f"{key}={value}" for key, value in environment.items()), ";"])


@contextmanager
def launched(lab: Lab, cluster: dict, environment: Mapping[str, str], sites: Sequence[str]) -> Iterator[Launched]:
    """`ray up`, wait for all nodes; `ray down` afterwards."""
    made = Launched(lab, environment)
    lab.desk.write("/root/cluster.yaml", yaml.safe_dump(cluster))
    try:
        _start(made, sites)
        yield made
    finally:
        made.ray("ray down -y cluster.yaml")
        # The sites' Ray notices within a minute that the head is gone, and ends then.
        until("Ray has ended at the head", lambda: not made.head.processes("gcs/gcs_server"))


def _start(made: Launched, sites: Sequence[str]) -> None:
    """As an operator does: once more if a host is not there after a while. On a busy machine Ray's own processes miss
    its limits of 15 and 30 s, and it does not try again."""
    for _ in range(2):
        made.ray("ray up -y --no-config-cache cluster.yaml")
        with contextlib.suppress(AssertionError):
            return until(f"nodes at {sites}", lambda: made.nodes() == sorted(sites), 120.0, every=1.0)
    made.ray("ray up -y --no-config-cache cluster.yaml")
    return until(f"nodes at {sites}", lambda: made.nodes() == sorted(sites), every=1.0)


def open_tunnel(lab: Lab) -> None:
    """Forward the desk's port 8265 to the head's dashboard, for as long as the lab stands."""
    head = next(iter(lab.hosts.values()))
    options = (
        "-f -N -o StrictHostKeyChecking=no -o ExitOnForwardFailure=yes -o ConnectionAttempts=20 -L 8265:127.0.0.1:8265"
    )
    lab.desk.run(f"ssh {options} root@{head.address} < /dev/null > /dev/null 2>&1")
