"""One lab for all its tests: three hosts, records with marked values, a tunnel from the desk to the head."""

import secrets
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.lab import hosts
from tests.lab.launched import open_tunnel
from tests.lab.marked_data import Markers, marked_rows

SITES = {"north": (150, 11), "south": (250, 12)}
"""Site -> rows and seed of its records."""
FEDERATION = """
silos:
  - {name: north-institute, site: north, data: /srv/north.csv, state: state}
  - {name: south-lab, site: south, data: /srv/south.csv, state: state}
training: {epochs: 100, hidden: [200, 200], baselines: false}
"""


@dataclass(frozen=True)
class Prepared:
    """The hosts before anything runs on them."""

    lab: hosts.Lab
    markers: dict[str, Markers]
    rows: dict[str, str]
    """Site -> its records as CSV; on the lab's hosts they are on their own site's disk only."""
    token: str


@pytest.fixture(scope="session")
def prepared() -> Iterator[Prepared]:
    reason = hosts.reason_to_skip()
    if reason:
        pytest.skip(reason)
    pytest.importorskip("aiohttp", reason="ray job submit needs Ray's dashboard: pip install -e '.[cluster]'")
    token = secrets.token_hex(32)
    with hosts.lab(["head", *SITES]) as lab:
        lab.desk.write("/root/.ray/auth_token", token)
        lab.desk.write("/root/job/federation.yaml", FEDERATION)
        open_tunnel(lab)
        markers, rows = {}, {}
        for site, (num_rows, seed) in SITES.items():
            table, markers[site] = marked_rows(site, num_rows, seed)
            rows[site] = table.to_csv(index=False)
            lab.hosts[site].write(f"/srv/{site}.csv", rows[site])
            lab.hosts[site].write("/root/ray-fed/site", site)
        yield Prepared(lab, markers, rows, token)
