"""What the way to sites costs: a large model against a plain TLS stream, and small exchanges against Ray's actors.

    python benchmarks/site_transport.py [--million-parameters 25] [--rounds 300] [--flower-python PYTHON]

Every site is a process of its own, connected by mutual TLS over the loopback. The second table runs one job, with an
exchange after every batch, on silo actors and at sites: guarded silos, rules, guard and exact sums are the real ones.
With a Python that has flwr and torch, Flower's deployment engine does the same work (site_transport_flower.py).
"""

import argparse
import multiprocessing
import os
import queue
import socket
import ssl
import subprocess
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from ray_fed.deployment.certificates import Node, certificate_bytes, issue, key_bytes, make_authority
from ray_fed.federation.coordinator import Coordinator
from ray_fed.federation.messages import Update
from ray_fed.federation.rounds.job import Job
from ray_fed.federation.silo import make_silo
from ray_fed.federation.task import SiloSpec
from ray_fed.federation.torch_task import TorchTask
from ray_fed.learning.private_steps import PrivateSteps
from ray_fed.learning.trainer import TrainingPlan
from ray_fed.perimeter.guarded_silo import GuardedSilo
from ray_fed.privacy.compression import Compression
from ray_fed.sites.agent import HubAddress, SiteAgent
from ray_fed.sites.asking import SiteSilo
from ray_fed.sites.cohort import SiteCohort
from ray_fed.sites.hub import Hub
from ray_fed.sites.link import Certificates
from ray_fed.sites.requests import FitRequest, Invitation, InviteRequest
from ray_fed.sites.wire import encode

NAMES = tuple(f"silo-{number}" for number in range(1, 5))
ROWS, COLUMNS, BATCHES = 2000, 65, 10
STREAM_BYTES = 1 << 30


def certificates():
    """Return everybody's: the hub's, and one for all sites."""
    authority = make_authority()

    def machine(name):
        certificate, key = issue(authority, Node(name, ("127.0.0.1",)), 2)
        return Certificates(certificate_bytes(certificate), key_bytes(key), certificate_bytes(authority.certificate))

    return machine("hub"), machine("site")


# ---- a large model


class Mirror:
    """Sends back what it was sent."""

    def __init__(self, invitation):
        self.silo = invitation.silo

    def fit(self, session, server_round, vector):
        return Update(self.silo, session, server_round, vector, 1, 1, 0.0)


def serve(name, port, own, make_host):
    SiteAgent(name, HubAddress(f"127.0.0.1:{port}"), own, make_host).run()


def there_and_back(own, of_site, num_parameters, rounds=6):
    """Return bytes a second of a vector that goes to one site and comes back."""
    answers, vector = queue.SimpleQueue(), np.random.default_rng(0).random(num_parameters, np.float32)
    with Hub("127.0.0.1:0", own, {"silo-1": of_site.key_hash()}) as hub, processes(hub, of_site, Mirror, ["silo-1"]):
        hub.ask("silo-1", "silo-1", InviteRequest(invitation("silo-1")), lambda *given: answers.put(given))
        answers.get()
        for server_round in range(rounds + 1):
            if server_round == 1:
                start = time.perf_counter()  # the first one fills caches and windows
            request = FitRequest("s", server_round, vector)
            hub.ask("silo-1", "silo-1", request, lambda *given: answers.put(given), encode(request), False)
            call, update = answers.get()
            assert np.array_equal(update.vector[:100], vector[:100])
            hub.release(call)
        return 2 * rounds * vector.nbytes / (time.perf_counter() - start)


def invitation(silo):
    return Invitation("run", silo, silo, "light", {})


class processes:
    """A process for each site, for the duration of a block."""

    def __init__(self, hub, own, make_host, names):
        context = multiprocessing.get_context("spawn")
        self.hub, self.names = hub, names
        self.all = [context.Process(target=serve, args=(name, hub.port, own, make_host), daemon=True) for name in names]

    def __enter__(self):
        for process in self.all:
            process.start()
        assert not self.hub.wait_for(self.names, 120)

    def __exit__(self, *_):
        for process in self.all:
            process.kill()
            process.join()


def plain_stream(own):
    """Return bytes a second of one TLS stream over the loopback, between two processes."""
    folder = Path(tempfile.mkdtemp())
    (folder / "crt").write_bytes(own.certificate)
    (folder / "key").write_bytes(own.key)
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    server.load_cert_chain(folder / "crt", folder / "key")
    client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
    listening, part = socket.create_server(("127.0.0.1", 0)), os.urandom(1 << 20)
    if os.fork() == 0:
        with server.wrap_socket(listening.accept()[0], server_side=True) as stream:
            room = bytearray(1 << 20)
            left = STREAM_BYTES
            while left:
                left -= stream.recv_into(room)
            stream.sendall(b".")
        os._exit(0)
    with client.wrap_socket(socket.create_connection(listening.getsockname())) as stream:
        start = time.perf_counter()
        for _ in range(STREAM_BYTES >> 20):
            stream.sendall(part)
        stream.recv(1)
        return STREAM_BYTES / (time.perf_counter() - start)


# ---- an exchange after every batch


def network():
    return nn.Sequential(nn.Linear(COLUMNS, 200), nn.ReLU(), nn.Linear(200, 200), nn.ReLU(), nn.Linear(200, 1))


def drawn(seed):
    random = np.random.default_rng(seed)
    return random.normal(size=(ROWS, COLUMNS)).astype(np.float32), random.normal(size=ROWS).astype(np.float32)


def task():
    return TorchTask(network, functional.mse_loss, drawn)


def spec(name):
    return SiloSpec(name, int(name.split("-")[1]))


def guarded(invited):
    return GuardedSilo(spec(invited.silo), lambda: make_silo(spec(invited.silo), task()))


def keeping_a_ledger(invited):
    folder = tempfile.mkdtemp(prefix="ray-fed-ledger-")
    mine = replace(spec(invited.silo), run="bench", ledger_folder=folder, state_folder=folder)
    return GuardedSilo(mine, lambda: make_silo(mine, task()))


def bare(invited):
    """No gate at all: what protections are measured against."""
    return make_silo(spec(invited.silo), task())


PROTECTIONS = {
    "none": (bare, {}, 0),
    "the gate": (guarded, {}, 0),
    "gate and signed ledger": (keeping_a_ledger, {}, 0),
    "gate, noise in every step": (guarded, {"private": PrivateSteps(1.0)}, 0),
    "gate, masks": (guarded, {}, 3),
    "gate, updates as int8": (guarded, {"compression": Compression("int8")}, 0),
}
"""Name -> (host, options of the training plan, threshold of secure aggregation)."""


def job(rounds, options=None, threshold=0):
    plan = TrainingPlan(seed=0, epochs=rounds // BATCHES, steps_per_epoch=BATCHES, num_rounds=rounds, **(options or {}))
    plans = dict.fromkeys(NAMES, plan)
    return Job("federated", NAMES, plans, 0, evaluate_every=rounds, secure_threshold=threshold)


def rounds_a_second(coordinator, rounds, options=None, threshold=0):
    """Return the rate, and the model."""
    coordinator.agree()
    records = list(coordinator.run(job(rounds, options, threshold)))
    seconds = [record.seconds["total"] for record in records[1 + rounds // 10 :]]
    return len(seconds) / sum(seconds), records[-1].models["federated"].tobytes()


def at_sites(own, of_site, rounds, make_host=guarded, options=None, threshold=0):
    with (
        Hub("127.0.0.1:0", own, dict.fromkeys(NAMES, of_site.key_hash())) as hub,
        processes(hub, of_site, make_host, NAMES),
    ):
        cohort = SiteCohort(hub, [SiteSilo(name, invitation(name)) for name in NAMES], task())
        return rounds_a_second(Coordinator(cohort, task(), NAMES), rounds, options, threshold)


def on_actors(rounds):
    from actors.federation import federation
    from actors.session import session

    with session("local", num_cpus=8), federation(list(map(spec, NAMES)), task(), None, NAMES) as placed:
        return rounds_a_second(placed.coordinator, rounds)


def at_flowers_nodes(python, rounds=3):
    """Return the rate of Flower's deployment engine: four SuperNodes of one SuperLink."""
    script = Path(__file__).with_name("site_transport_flower.py")
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run([python, str(script), folder, str(rounds)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"Flower's deployment engine: {done.stdout}{done.stderr}")
    return 1 / float(done.stdout.split()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--million-parameters", type=float, default=25.0)
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--flower-python", help="a Python that has flwr and torch; without one Flower is left out")
    given = parser.parse_args()
    torch.set_num_threads(1)
    own, of_site = certificates()
    streams, large = [], []
    for _ in range(3):  # in turn: other work on the machine hits both alike
        streams.append(plain_stream(own))
        large.append(there_and_back(own, of_site, int(given.million_parameters * 1e6)))
    stream, there = float(np.median(streams)), float(np.median(large))
    print(f"plain TLS stream          {stream / 1e6:6.0f} MB/s   1.00")
    print(f"{given.million_parameters:g} M parameters, one site {there / 1e6:6.0f} MB/s   {there / stream:.2f}")
    actors, first = on_actors(given.rounds)
    sites, second = at_sites(own, of_site, given.rounds)
    assert first == second, "the cohorts are not bit-equal"
    print(f"4 silo actors             {actors:6.0f} rounds/s 1.00")
    print(f"4 sites                   {sites:6.0f} rounds/s {sites / actors:.2f}   the same bits")
    if given.flower_python:
        flower = at_flowers_nodes(given.flower_python)
        print(f"4 SuperNodes of Flower    {flower:6.3f} rounds/s {flower / actors:.4f}", flush=True)
    print("\nprotection, 4 sites")
    first = None
    for name, (make_host, options, threshold) in PROTECTIONS.items():
        rate, _ = at_sites(own, of_site, given.rounds, make_host, options, threshold)
        first = first or rate
        print(f"{name:25s} {rate:6.0f} rounds/s {rate / first:.2f}", flush=True)


if __name__ == "__main__":
    main()
