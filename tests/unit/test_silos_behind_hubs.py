"""How a federation file names silos at sites behind other hubs."""

import pytest
import yaml

from pipelines.leakage.audited_federation import setup_of
from pipelines.sweep.config import SweepConfig
from pipelines.sweep.pipeline import _resolved
from pipelines.training.setup import resolve
from ray_fed.errors import ConfigError

KEY = "3f" * 32


@pytest.fixture
def write(tmp_path):
    def write(site, sites=("region",), **training):
        silos = [{"name": "north", "dataset": "alloys", "site": site}]
        hub = {"listen": "127.0.0.1:1", "sites": dict.fromkeys(sites, KEY)}
        path = tmp_path / "federation.yaml"
        path.write_text(yaml.safe_dump({"silos": silos, "hub": hub, "training": {"baselines": False, **training}}))
        return {"federation": str(path)}

    return write


@pytest.mark.parametrize(
    ("site", "dialling", "way"),
    [("region", "region", ""), ("region/north", "region", "north"), ("region/part/north", "region", "part/north")],
)
def test_the_hub_on_the_way_stands_before_the_site(write, site, dialling, way):
    [(found, invitation)] = resolve(write(site)).sites
    assert (found, invitation.way) == (dialling, way)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"site": "other/north"}, "hub: sites: the key of site 'other' is missing"),
        ({"site": "region/"}, "silo 'north': site='region/' must be SITE, or HUB/SITE behind another hub"),
        ({"site": "/north", "sites": ("",)}, "sites: '' must be letters"),
        ({"site": "region/north", "sites": ("region/north",)}, "sites: 'region/north' must be letters"),
        (
            {"site": "region/north", "baselines": True},
            "baselines: silo 'north' cannot train alone: a hub on the way adds its updates to others'",
        ),
    ],
)
def test_a_mistake_is_named_with_its_remedy(write, options, message):
    with pytest.raises(ConfigError) as raised:
        resolve(write(**options))
    assert message in str(raised.value)


def test_sweeps_and_audits_over_sites_are_refused_with_what_to_do_instead(write):
    given = write("region")
    with pytest.raises(ConfigError, match=r"has sites of their owners, .* run ray-fed formation-energy once for each"):
        _resolved(SweepConfig(preset="fig5"), given, "formation-energy")
    with pytest.raises(ConfigError, match=r"silos at sites of their owners, .* each owner can audit .* the own data"):
        setup_of(given["federation"])
