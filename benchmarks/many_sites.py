"""A thousand light sites over a few hubs: seconds, bytes and memory of each end, and the bits of one flat sum.

The silos' maths does not matter here: each answers with its vector, moved by numbers drawn from its name and the round.
Connections are real, mutual TLS on the loopback, one for each site; the sites of a hub share a process, so that a small
machine holds them. Coordinator, round rules, guard, hubs and exact sums are the real ones.

    python benchmarks/many_sites.py [--sites 100 1000] [--hubs 4] [--parameters 10000] [--rounds 5]

--hubs 0: all sites dial the coordinator's own hub.
"""

import argparse
import multiprocessing
import resource
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import psutil
from torch import nn
from torch.nn import functional

from ray_fed.deployment.certificates import Node, certificate_bytes, issue, key_bytes, make_authority
from ray_fed.exact_sum import ExactWeightedSum
from ray_fed.federation.coordinator import Coordinator
from ray_fed.federation.messages import Metrics, SiloDescription, Update
from ray_fed.federation.rounds.job import Job
from ray_fed.federation.torch_task import TorchTask
from ray_fed.learning.trainer import TrainingPlan
from ray_fed.metrics import MeanScores
from ray_fed.sites import link
from ray_fed.sites.agent import HubAddress, SiteAgent
from ray_fed.sites.asking import SiteSilo
from ray_fed.sites.cohort import SiteCohort
from ray_fed.sites.hub import Hub
from ray_fed.sites.link import Certificates
from ray_fed.sites.relay import RelayAgent
from ray_fed.sites.requests import Invitation

PROCESSES = 4
"""That hold the sites, where there are no hubs between."""
SCORES = MeanScores(10, {"loss": 1.0})


class LightSilo:
    """Moves what it is sent a little."""

    def __init__(self, invitation: Invitation):
        self.silo = invitation.silo

    def open(self):
        return SiloDescription(self.silo, 10, 10, {}, {"task": "torch"}, {}, "cpu", metrics=("loss",))

    def prepare(self, standardizer):
        pass

    def open_session(self, spec):
        return spec.layout_digest

    def close_session(self, session):
        pass

    def fit(self, session, server_round, vector):
        return Update(self.silo, session, server_round, moved(vector, self.silo, server_round), 10, 1, 0.5)

    def evaluate(self, session, models):  # noqa: ARG002
        return {name: Metrics(self.silo, SCORES, SCORES) for name in models}


def moved(vector, silo, server_round):
    noise = np.random.default_rng((int(silo.split("-")[1]), server_round)).random(64, np.float32)
    return vector + np.resize(noise, len(vector))


def machine(authority, name):
    certificate, key = issue(authority, Node(name, ("127.0.0.1",)), 2)
    return Certificates(certificate_bytes(certificate), key_bytes(key), certificate_bytes(authority.certificate))


def serve_sites(names, port, own, stop, said):
    """All sites of one hub; they share a certificate, which the hub has pinned for each."""
    allow_many_files()
    before = memory()
    hands = ThreadPoolExecutor(2)
    agents = [SiteAgent(name, HubAddress(f"127.0.0.1:{port}"), own, LightSilo, executor=hands) for name in names]
    for agent in agents:
        agent.start()
    stop.wait()
    said.put(("sites", len(names), memory() - before))


def serve_hub(name, names, upper, own, pin, of_sites, stop, said):
    """A hub between, and in a process of their own its sites."""
    allow_many_files()
    with Hub("127.0.0.1:0", own, dict.fromkeys(names, pin)) as hub:
        before, context = memory(), multiprocessing.get_context("spawn")
        sites = context.Process(target=serve_sites, args=(names, hub.port, of_sites, stop, said))
        sites.start()
        assert not hub.wait_for(names, 300)
        RelayAgent(name, HubAddress(f"127.0.0.1:{upper}"), own, hub).start()
        stop.wait()
        said.put(("hub", len(names), memory() - before))
        sites.join()


def allow_many_files():
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def memory():
    return psutil.Process().memory_full_info().uss / 1e6


class Counted:
    """Bytes of messages that this process sends and receives, without TLS and HTTP/2."""

    def __init__(self):
        self.sent = self.received = self.messages = 0
        self._frames, self._receive = link.frames, link.receive
        link.frames, link.receive = self.frames, self.receive

    def frames(self, header, encoded):
        self.messages += 1
        for frame in self._frames(header, encoded):
            self.sent += len(frame)
            yield frame

    async def receive(self, read, admit):
        message = await self._receive(read, admit)
        if message:
            self.messages += 1
            self.received += len(message[0].body) + len(message[1])
        return message


def measured(num_sites, num_hubs, num_parameters, rounds, counted):
    """Run a federation; return a line of the table."""
    authority, names = make_authority(), [f"silo-{number}" for number in range(num_sites)]
    of_sites = machine(authority, "site")
    parts = [names[first :: num_hubs or PROCESSES] for first in range(num_hubs or PROCESSES)]
    context, pin = multiprocessing.get_context("spawn"), of_sites.key_hash()
    stop, said = context.Event(), context.Queue()
    known = {f"hub-{number}": "" for number in range(num_hubs)} or dict.fromkeys(names, pin)
    with Hub("127.0.0.1:0", machine(authority, "coordinator"), known) as hub:
        if num_hubs:
            processes = [
                context.Process(
                    target=serve_hub,
                    args=(name, part, hub.port, machine(authority, name), pin, of_sites, stop, said),
                )
                for name, part in zip(known, parts, strict=True)
            ]
        else:
            processes = [
                context.Process(target=serve_sites, args=(part, hub.port, of_sites, stop, said)) for part in parts
            ]
        for process in processes:
            process.start()
        assert not hub.wait_for(known, 300)
        site_of = {name: f"hub-{number}" if num_hubs else name for number, part in enumerate(parts) for name in part}
        silos = [
            SiteSilo(site_of[name], Invitation("run", name, name, "light", {}, way=name if num_hubs else ""))
            for name in names
        ]
        line = trained(SiteCohort(hub, silos, task(num_parameters)), names, rounds, counted)
        stop.set()
        others = [said.get(timeout=60) for _ in range(num_hubs * 2 or PROCESSES)]
        for process in processes:
            process.join()
    of_hub = max((used for kind, _, used in others if kind == "hub"), default=float("nan"))
    of_site = sum(used for kind, _, used in others if kind == "sites") / num_sites
    return (num_sites, num_hubs, *line, of_hub, of_site)


def task(num_parameters):
    return TorchTask(lambda: nn.Linear(num_parameters - 1, 1), functional.mse_loss, lambda _: ())


def trained(cohort, names, rounds, counted):
    plan = TrainingPlan(seed=0, epochs=rounds, steps_per_epoch=1, num_rounds=rounds)
    job = Job("federated", tuple(names), dict.fromkeys(names, plan), 0, evaluate_every=rounds)
    coordinator = Coordinator(cohort, cohort.task, names)
    start, before = time.perf_counter(), memory()
    coordinator.agree()
    opened, seconds, bytes_, messages, last = time.perf_counter() - start, [], [], [], None
    peak = before
    for record in coordinator.run(job):
        if last is not None:
            seconds.append(record.seconds["total"])
        marks, last = (counted.sent + counted.received, counted.messages), record
        bytes_.append(marks[0])
        messages.append(marks[1])
        peak = max(peak, memory())
    assert [len(each) for each in (record.participants for record in [last])] == [len(names)]
    check_bits(last.models["federated"], names, rounds, cohort)
    in_rounds = max(1, rounds - 1)
    per_round = (bytes_[-1] - bytes_[1]) / in_rounds, (messages[-1] - messages[1]) / in_rounds
    return opened, float(np.median(seconds)), *per_round, peak - before


def check_bits(model, names, rounds, cohort):
    """The model is that of one flat exact sum in this process."""
    module = cohort.task.model(0)
    vector = np.concatenate([part.detach().numpy().ravel() for part in module.parameters()])
    for server_round in range(1, rounds + 1):
        total = ExactWeightedSum(len(vector))
        for name in names:
            total.add(moved(vector, name, server_round), 10)
        vector = total.mean()
    assert model.tobytes() == vector.tobytes(), "the hubs changed bits"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sites", type=int, nargs="+", default=[100, 1000])
    parser.add_argument("--hubs", type=int, nargs="+", default=[4])
    parser.add_argument("--parameters", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    allow_many_files()
    counted = Counted()
    print("| sites | hubs | open, s | round, s | ms a silo | MB a round at the coordinator | messages a round | "
          "coordinator, MB | a hub, MB | a site, MB |")  # fmt: skip
    print("|---|---|---|---|---|---|---|---|---|---|")
    for num_hubs in given.hubs:
        for num_sites in given.sites:
            line = measured(num_sites, num_hubs, given.parameters, given.rounds, counted)
            sites, hubs, opened, seconds, bytes_, messages, of_coordinator, of_hub, of_site = line
            print(f"| {sites:,} | {hubs} | {opened:.1f} | {seconds:.2f} | {1000 * seconds / sites:.2f} | "
                  f"{bytes_ / 1e6:.2f} | {messages:.0f} | {of_coordinator:.0f} | {of_hub:.0f} | {of_site:.2f} |",
                  flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
