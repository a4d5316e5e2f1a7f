"""Sites that are not there, or there and silent: who waits says for whom, on the terminal, and how long it does."""

import os
import queue
import re
import signal
import subprocess
import threading
from dataclasses import replace

import pytest
import yaml

from ray_fed.deployment.certificates import Node, write_certificates
from ray_fed.errors import SiloFailed
from ray_fed.federation.rounds.machine import StartRules
from ray_fed.sites.agent import HubAddress, SiteAgent
from ray_fed.sites.asking import SiteSilo
from ray_fed.sites.cohort import SiteCohort
from ray_fed.sites.link import Certificates
from ray_fed.sites.relay import RelayAgent
from tests.commands import finished, start
from tests.relay import relay
from tests.sites import OwnHosts, agent, certificates, cohort_of, hub_of, invitation
from tests.synthetic import SyntheticTask, silos

SPECS = silos(40, 60, held_out=12)
AT_ONCE = "ray_fed.sites.hub.SAY_AFTER_SECONDS = ray_fed.sites.asking.SAY_AFTER_SECONDS = 0.2"
COMMAND = f"import ray_fed.sites.asking, ray_fed.sites.hub; {AT_ONCE}; from pipelines.cli import main; exit(main())"


class Silent:
    """A silo that never finishes opening its data, until it is let go."""

    def __init__(self, happens=lambda: None):
        self.is_over, self._happens = threading.Event(), happens

    def __call__(self, _):
        return self

    def open(self):
        self._happens()
        self.is_over.wait(120)
        raise SiloFailed("silo", "opening its data", "let go")


@pytest.fixture
def coordinator(tmp_path):
    """A run whose only site is not there, as a terminal starts it: (process, its port, its lines)."""
    write_certificates(tmp_path / "tls", [Node(name, ("127.0.0.1",)) for name in ("hub", "north")], 3)
    key = Certificates.read(tmp_path / "tls" / "north").key_hash()
    silo = {"name": "north-silo", "dataset": "alloys", "site": "north"}
    hub = {"listen": "127.0.0.1:0", "tls": "tls/hub", "sites": {"north": key}}
    (tmp_path / "federation.yaml").write_text(yaml.safe_dump({"silos": [silo], "hub": hub}))
    words = ("formation-energy", "--federation", "federation.yaml", "--out", "out")
    process = start("-c", COMMAND, *words, folder=tmp_path, stdout=subprocess.DEVNULL)
    lines = queue.SimpleQueue()
    threading.Thread(target=lambda: [lines.put(line) for line in process.stderr], daemon=True).start()
    yield process, lines
    process.kill()
    finished(process)


def line_with(lines, words):
    """Return the next line that has these words; queue.Empty where none comes."""
    while not (found := re.search(words, lines.get(timeout=60))):
        pass
    return found


def test_whose_site_or_answer_is_missing_stands_on_the_terminal(coordinator, tmp_path):
    process, lines = coordinator
    port = int(line_with(lines, r"the hub listens at port (\d+)")[1])
    line_with(lines, "waiting for site 'north': not connected for .* `ray-fed site start`")
    own, host = Certificates.read(tmp_path / "tls" / "north"), Silent()
    north = SiteAgent("north", HubAddress(f"127.0.0.1:{port}"), own, host).start()
    line_with(lines, "waiting for 'north-silo at north': no answer for .* while opening its data; .* Ctrl-C")
    os.kill(process.pid, signal.SIGINT)
    assert process.wait(60) != 0
    host.is_over.set()
    north.stop()


def test_a_site_that_is_away_for_too_long_ends_the_beginning_of_a_run_by_name(monkeypatch):
    monkeypatch.setattr("ray_fed.sites.asking.LOOK_AFTER_SECONDS", 0.1)
    with hub_of(["site-1", "site-2"]) as hub, relay(hub.port) as between:
        host = Silent(happens=between.cut)
        agents = agent("site-1", hub.port, SPECS[:1]), agent("site-2", between.port, [], make_host=host)
        for each in agents:
            each.start()
        cohort = cohort_of(hub, SPECS, SyntheticTask(), start=StartRules(timeout=30.0))
        cohort.away_timeout = 0.5
        says = "silo 'silo-2' failed while opening its data: its site 'site-2' has not been connected for"
        with pytest.raises(SiloFailed, match=f"{says} .* s; when it is back, start the run again"):
            cohort.open()
        host.is_over.set()
        for each in agents:
            each.stop()


def test_a_hub_between_ends_the_beginning_where_a_site_below_it_is_away_for_too_long(monkeypatch):
    monkeypatch.setattr("ray_fed.sites.relay.LOOK_AFTER_SECONDS", 0.1)
    with hub_of(["region"]) as upper, hub_of(["site-1"]) as lower, relay(lower.port) as between:
        address, host = HubAddress(f"127.0.0.1:{upper.port}"), Silent(happens=between.cut)
        middle = RelayAgent("region", address, certificates("region"), lower, site_within=0.5).start()
        site = agent("site-1", between.port, [], make_host=host).start()
        assert not lower.wait_for(["site-1"], 30)
        cohort = SiteCohort(upper, [SiteSilo("region", replace(invitation("silo-1"), way="site-1"))], SyntheticTask())
        says = "while opening its data: its site 'site-1' has not been connected to the hub 'region' for"
        with pytest.raises(SiloFailed, match=f"silo 'silo-1' failed {says}"):
            cohort.open()
        host.is_over.set()
        site.stop()
        middle.stop()


def test_a_ledger_that_does_not_come_is_not_waited_for_for_ever(monkeypatch):
    monkeypatch.setattr("ray_fed.sites.cohort.LAST_ANSWER_SECONDS", 0.3)
    is_over = threading.Event()

    class Keeping(OwnHosts):
        def __call__(self, invited):
            host = super().__call__(invited)
            host.collect_ledger = lambda: is_over.wait(60) and None
            return host

    with hub_of(["site-1"]) as hub:
        north = agent("site-1", hub.port, [], make_host=Keeping(SPECS[:1], SyntheticTask())).start()
        cohort = cohort_of(hub, SPECS[:1], SyntheticTask())
        cohort.open()
        with pytest.raises(SiloFailed, match=r"'silo-1' failed while .*: no answer within 0.3 s$"):
            cohort.collect_ledger("silo-1")
        is_over.set()
        north.stop()
