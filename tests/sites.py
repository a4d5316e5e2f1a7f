"""A hub and sites for tests: over mutual TLS on the loopback, with guarded silos of the synthetic task as hosts."""

import contextlib
import functools
from collections.abc import Iterator, Mapping, Sequence

from ray_fed.deployment.certificates import Node, certificate_bytes, issue, key_bytes, make_authority
from ray_fed.federation.silo import Silo, make_silo
from ray_fed.federation.task import SiloSpec, Task
from ray_fed.perimeter.guarded_silo import GuardedSilo
from ray_fed.sites.agent import HubAddress, SiteAgent
from ray_fed.sites.asking import SiteSilo
from ray_fed.sites.cohort import SiteCohort
from ray_fed.sites.hub import Hub
from ray_fed.sites.link import Certificates
from ray_fed.sites.requests import Invitation
from tests.synthetic import SyntheticTask

HUB = "127.0.0.1:0"


@functools.cache
def authority(number: int = 0):  # noqa: ARG001
    return make_authority()


@functools.cache
def certificates(name: str, of: int = 0) -> Certificates:
    """Return the certificate of a machine, by the authority of a number."""
    signer = authority(of)
    certificate, key = issue(signer, Node(name, ("127.0.0.1",)), 3)
    return Certificates(certificate_bytes(certificate), key_bytes(key), certificate_bytes(signer.certificate))


def invitation(silo: str) -> Invitation:
    return Invitation("run", silo, silo, "synthetic", {"hidden": (8,)})


class OwnHosts:
    """What a site's owner has: silos by the name of the data set."""

    def __init__(self, specs: Sequence[SiloSpec], task: Task):
        self.specs, self.task = {spec.name: spec for spec in specs}, task
        self.made: list[str] = []
        self.silos: dict[str, Silo] = {}

    def __call__(self, invited: Invitation) -> GuardedSilo:
        self.made.append(invited.silo)
        return GuardedSilo(self.specs[invited.dataset], lambda: self._silo(invited))

    def _silo(self, invited: Invitation) -> Silo:
        self.silos[invited.silo] = made = make_silo(self.specs[invited.dataset], self.task)
        return made


def agent(name: str, port: int, specs: Sequence[SiloSpec], task: Task | None = None, **options) -> SiteAgent:
    hosts = options.pop("make_host", None) or OwnHosts(specs, task or SyntheticTask())
    address = options.pop("hub", None) or HubAddress(f"127.0.0.1:{port}")
    return SiteAgent(name, address, options.pop("own", None) or certificates(name), hosts, **options)


@contextlib.contextmanager
def hub_of(sites: Mapping[str, str] | Sequence[str], address: str = HUB, **options) -> Iterator[Hub]:
    pins = sites if isinstance(sites, Mapping) else dict.fromkeys(sites, "")
    with Hub(address, certificates("hub"), pins, **options) as hub:
        yield hub


def site_of(silo: str) -> str:
    return silo.replace("silo", "site")


def cohort_of(hub: Hub, specs: Sequence[SiloSpec], task: Task, **options) -> SiteCohort:
    """A silo a site: silo-1 at site-1 and so on."""
    return SiteCohort(hub, [SiteSilo(site_of(spec.name), invitation(spec.name)) for spec in specs], task, **options)


@contextlib.contextmanager
def sites(specs: Sequence[SiloSpec], task: Task, **options) -> Iterator[SiteCohort]:
    """Yield a cohort whose silos are each at a site of its own, in threads of this process."""
    names = [site_of(spec.name) for spec in specs]
    with hub_of(names) as hub:
        agents = [agent(site_of(spec.name), hub.port, [spec], task).start() for spec in specs]
        try:
            yield cohort_of(hub, specs, task, **options)
        finally:
            for each in agents:
                each.stop()
