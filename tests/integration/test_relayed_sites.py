"""A hub between, `ray-fed site relay`, with two sites behind it, each a process of its own, and a run over them."""

import json
import re
import signal

import pytest
import yaml

from pipelines.cli import main
from ray_fed.federation.diversity import DIVERSITY
from ray_fed.privacy.signing import SigningKey
from tests.commands import finished, start_ray_fed
from tests.integration.test_owned_sites import SITES, TRAINING, federation, free_port, init, key_of, prepared

ROUNDS = TRAINING["rounds"]


def relay_file(folder, lower, upper):
    """Write what the region's operator says."""
    path = folder / "region/site.yaml"
    path.parent.mkdir(mode=0o700)
    hub = {"address": f"127.0.0.1:{upper}", "key": key_of(folder, "hub"), "tls": str(folder / "tls/region")}
    relay = {"listen": f"127.0.0.1:{lower}", "sites": {site: key_of(folder, site) for site in SITES}}
    log = str(folder / "region/log")
    path.write_text(yaml.safe_dump({"name": "region", "hub": hub, "relay": relay, "ledger": log}))
    path.chmod(0o600)
    return str(path)


def federation_behind(folder, port):
    silos = [{"name": f"{site}-silo", "dataset": "alloys", "site": f"region/{site}"} for site in SITES]
    hub = {"listen": f"127.0.0.1:{port}", "tls": "tls/hub", "sites": {"region": key_of(folder, "region")}}
    path = folder / "behind.yaml"
    path.write_text(yaml.safe_dump({"silos": silos, "training": TRAINING, "hub": hub}))
    return str(path)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Return (folder, run of one process, run over the hub between, what the hub's process said)."""
    folder = prepared(tmp_path_factory.mktemp("relayed"), "hub", "region")
    lower, upper = free_port(), free_port()
    assert [init(folder, site, lower, "region") for site in SITES] == [0, 0]
    region = start_ray_fed("site", "relay", "--file", relay_file(folder, lower, upper), folder=folder)
    sites = [start_ray_fed("site", "start", "--file", f"{site}/site.yaml", folder=folder) for site in SITES]
    words = ["formation-energy", "--baselines", "no", "--federation"]
    local = [*words, federation(folder, 1, sites=()), "--cohort", "local", "--out", str(folder / "local")]
    behind = federation_behind(folder, upper)
    try:
        assert main(local) == 0
        assert main(["formation-energy", "--federation", behind]) == 2, "baselines need single updates"
        assert main([*words, behind, "--out", str(folder / "run")]) == 0
    finally:
        for process in (*sites, region):
            process.send_signal(signal.SIGINT)
        ended = [finished(process) for process in (*sites, region)]
    assert [each.returncode for each in ended] == [0, 0, 0], ended
    return folder, folder / "local", folder / "run", ended[-1].stderr


def test_a_run_through_a_hub_between_leaves_the_bytes_of_one_process(runs):
    _, local, run, _ = runs
    model = "models/federated.safetensors"
    assert (run / model).read_bytes() == (local / model).read_bytes()
    assert rounds(run, "behind a hub single moves are not seen") == rounds(local)


def rounds(folder, unseen=""):
    """Return the lines of a history, without how unlike the silos are, which is told unless it is `unseen`."""
    lines = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    assert any(line["metrics"].pop(DIVERSITY, None) for line in lines) is not bool(unseen)
    return lines


def test_the_hub_says_whom_it_serves_and_what_it_has_added_up(runs):
    folder, _, _, said = runs
    assert f"its key is {key_of(folder, 'region')}" in said
    for words in ("site 'north' is connected", "site 'south' is connected", "site 'region' is connected to"):
        assert words in said
    assert f"hub 'region' has ended: {2 * ROUNDS} updates in {ROUNDS} sums" in said
    assert (folder / "region/log/site.log").stat().st_mode & 0o077 == 0


def test_verify_knows_what_left_the_silos_and_that_the_sum_is_the_hubs_word(runs, capsys):
    folder, _, run, _ = runs
    capsys.readouterr()
    assert main(["ledger", "verify", str(run)]) == 3
    said = capsys.readouterr().out
    keys = [f"coordinator={re.search('--key coordinator=([0-9a-f]{64})', said)[1]}"]
    keys += [f"{site}-silo={SigningKey.at(folder / site / 'ledger/signing.key').public}" for site in SITES]
    assert main(["ledger", "verify", str(run), *(word for key in keys for word in ("--key", key))]) == 3
    (unknown,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("unknown: ")]
    assert unknown.startswith(f"unknown: {2 * ROUNDS} updates of the silos 'north-silo', 'south-silo' were added up")
    assert f"{2 * ROUNDS} of them stand in their silos' ledgers" in unknown
    main(["ledger", "trace", str(run), str(run / "models/federated.safetensors")])
    assert f"{2 * ROUNDS:,} came in a hub's sum" in capsys.readouterr().out
