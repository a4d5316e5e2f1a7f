"""Sites that their owners run, as processes of their own: `ray-fed site init | check | start` and a run over them."""

import json
import re
import signal
import socket
from pathlib import Path

import pytest
import yaml

from pipelines.cli import main
from ray_fed.deployment.certificates import Node, write_certificates
from ray_fed.materials.model_crystals.crystals import make_model_crystals
from ray_fed.sites.link import Certificates
from tests.commands import finished, start_ray_fed

SITES = {"north": "O", "south": "F"}
TARGET = "formation_energy_per_atom"
TRAINING = {"epochs": 6, "rounds": 3, "hidden": [16], "batch_size": 40}


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@pytest.fixture(scope="module")
def consortium(tmp_path_factory):
    """A hub and two sites, each with its certificate and its table, before anything runs."""
    folder = tmp_path_factory.mktemp("consortium")
    write_certificates(folder / "tls", [Node(name, ("127.0.0.1",)) for name in ("hub", *SITES)], 3)
    crystals = make_model_crystals(num_rows=500).rename(columns={"target": TARGET})
    for site, anion in SITES.items():
        crystals[crystals["anion"] == anion].to_csv(folder / f"{site}.csv", index=False)
    return folder


def key_of(folder: Path, name: str) -> str:
    return Certificates.read(folder / "tls" / name).key_hash()


def init(folder: Path, site: str, port: int) -> int:
    """Write the owner's file with the command, as an owner would."""
    return main([
        "site", "init", "--file", str(folder / site / "site.yaml"), "--name", site, "--hub", f"127.0.0.1:{port}",
        "--hub-key", key_of(folder, "hub"), "--dataset", f"alloys={folder / site}.csv",
        "--target", f"{TARGET}={TARGET}:eV/atom", "--tls", str(folder / "tls" / site),
        "--ledger", str(folder / site / "ledger"), "--state", str(folder / site / "state"),
    ])  # fmt: skip


def federation(folder: Path, port: int, sites=tuple(SITES), **changes) -> str:
    """Write the coordinator's file: some silos at sites, the others in files of this side."""
    silos = [
        {"name": f"{site}-silo", "dataset": "alloys", "site": site}
        if site in sites
        else {"name": f"{site}-silo", "data": f"{site}.csv"}
        for site in SITES
    ]
    hub = {"listen": f"127.0.0.1:{port}", "tls": "tls/hub", "sites": {site: key_of(folder, site) for site in SITES}}
    path = folder / f"federation-of-{len(sites)}.yaml"
    content = {"silos": silos, "training": {**TRAINING, **changes}, **({"hub": hub} if sites else {})}
    path.write_text(yaml.safe_dump(content))
    return str(path)


@pytest.fixture(scope="module")
def port(consortium):
    """The port of a hub for which both sites, served by their own processes, wait."""
    port = free_port()
    for site in SITES:
        assert init(consortium, site, port) == 0
    served = [start_ray_fed("site", "start", "--file", f"{site}/site.yaml", folder=consortium) for site in SITES]
    yield port
    for process in served:
        process.send_signal(signal.SIGINT)
    ended = [finished(process) for process in served]
    for site, process in zip(SITES, ended, strict=True):
        assert process.returncode == 0, process.stderr
        assert f"site '{site}' has ended: " in process.stderr
        assert "updates" in process.stderr


@pytest.fixture(scope="module")
def local_run(consortium):
    out = consortium / "local"
    path = federation(consortium, 1, sites=())
    assert main(["formation-energy", "--federation", path, "--cohort", "local", "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def site_run(consortium, port):
    out = consortium / "sites"
    assert main(["formation-energy", "--federation", federation(consortium, port), "--out", str(out)]) == 0
    return out


def test_a_run_over_two_sites_leaves_the_history_and_the_model_of_one_process_byte_for_byte(site_run, local_run):
    for name in ("history.jsonl", "models/federated.safetensors"):
        assert (site_run / name).read_bytes() == (local_run / name).read_bytes(), name
    assert json.loads((site_run / "summary.json").read_text())["status"] == "completed"
    assert (site_run / "report.html").is_file()
    assert list((site_run / "tensorboard").rglob("events*"))


def test_both_kinds_of_silos_in_one_file_give_the_same_bytes(consortium, port, local_run, site_run):  # noqa: ARG001
    out = consortium / "mixed"
    path = federation(consortium, port, sites=("south",))
    assert main(["formation-energy", "--federation", path, "--cohort", "local", "--out", str(out)]) == 0
    for name in ("history.jsonl", "models/federated.safetensors"):
        assert (out / name).read_bytes() == (local_run / name).read_bytes(), name


def test_the_sites_ledgers_are_collected_and_agree_with_the_coordinators(consortium, site_run):
    assert main(["ledger", "verify", str(site_run)]) == 0
    for site in SITES:
        (kept,) = (consortium / site / "ledger" / f"{site}-silo").glob("sites-*.jsonl")
        assert (site_run / "ledger/silos" / f"{site}-silo" / kept.name).read_bytes() == kept.read_bytes()


def test_the_site_keeps_its_states_and_its_log_to_its_owner(consortium, site_run):  # noqa: ARG001
    for site in SITES:
        assert list((consortium / site / "state").rglob("*.states"))
        for path in ((consortium / site / "ledger/site.log"), *(consortium / site / "ledger").rglob("silo.log")):
            assert path.stat().st_mode & 0o077 == 0


def test_check_says_of_each_thing_whether_it_is_ok_and_how_to_put_it_right(consortium, site_run, port, capsys):  # noqa: ARG001
    """The hub does not run now."""
    assert main(["site", "check", "--file", str(consortium / "north/site.yaml")]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"ok      data set 'alloys': .*: (\d+) usable rows of \1", lines[1])
    assert lines[2].startswith("ok      certificate: counts for ")
    unreachable = f"127.0.0.1:{port}: cannot be reached: Connection refused; check address, proxy and firewall"
    assert lines[3] == f"failed  hub: {unreachable}"
    assert lines[4].startswith("ok      GPU: ")
    assert f"  certificate key  {key_of(consortium, 'north')}" in lines


def test_init_writes_once_and_for_its_owner_alone(consortium, port, capsys):
    assert (consortium / "north/site.yaml").stat().st_mode & 0o777 == 0o600
    assert init(consortium, "north", port) == 2
    assert "is there already; change it, or give another place with --file" in capsys.readouterr().err
