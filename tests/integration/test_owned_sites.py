"""Sites that their owners run, as processes of their own: `ray-fed site init | check | start` and a run over them."""

import contextlib
import json
import re
import signal
import socket
import sqlite3
import subprocess
import time
from pathlib import Path

import pandas as pd
import psutil
import pytest
import yaml

from pipelines.cli import main
from ray_fed.deployment.certificates import Node, write_certificates
from ray_fed.materials.model_crystals.crystals import make_model_crystals
from ray_fed.privacy.signing import SigningKey
from ray_fed.reporting.model_files import load_model
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
    return prepared(tmp_path_factory.mktemp("consortium"), "hub")


def prepared(folder: Path, *hubs: str) -> Path:
    write_certificates(folder / "tls", [Node(name, ("127.0.0.1",)) for name in (*hubs, *SITES)], 3)
    crystals = make_model_crystals(num_rows=500).rename(columns={"target": TARGET})
    for site, anion in SITES.items():
        crystals[crystals["anion"] == anion].to_csv(folder / f"{site}.csv", index=False)
    return folder


def key_of(folder: Path, name: str) -> str:
    return Certificates.read(folder / "tls" / name).key_hash()


def init(folder: Path, site: str, port: int, hub: str = "hub") -> int:
    """Write the owner's file with the command, as an owner would."""
    return main([
        "site", "init", "--file", str(folder / site / "site.yaml"), "--name", site, "--hub", f"127.0.0.1:{port}",
        "--hub-key", key_of(folder, hub), "--dataset", f"alloys={folder / site}.csv",
        "--target", f"{TARGET}={TARGET}:eV/atom", "--tls", str(folder / "tls" / site),
        "--ledger", str(folder / site / "ledger"), "--state", str(folder / site / "state"),
        *(["--receive-models", str(folder / "models")] if site == "north" else []),
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


def put_into_a_database(folder: Path, site: str) -> None:
    """Let the owner's file say of a second data set that its rows, those of the table, stand in a database."""
    with contextlib.closing(sqlite3.connect(folder / f"{site}.sqlite")) as connection:
        pd.read_csv(folder / f"{site}.csv").to_sql("crystals", connection, index=False)
    path = folder / site / "site.yaml"
    written = yaml.safe_load(path.read_text())
    stored = {"source": f"sqlite:///{folder / site}.sqlite", "query": "SELECT * FROM crystals ORDER BY rowid"}
    written["datasets"]["stored"] = {**written["datasets"]["alloys"], **stored}
    path.write_text(yaml.safe_dump(written))


@pytest.fixture(scope="module")
def served(consortium):
    """Both sites, served by their own processes, which wait for a hub."""
    port = free_port()
    for site in SITES:
        assert init(consortium, site, port) == 0
    put_into_a_database(consortium, "south")
    running = [start_ray_fed("site", "start", "--file", f"{site}/site.yaml", folder=consortium) for site in SITES]
    yield port, dict(zip(SITES, running, strict=True))
    for process in running:
        process.send_signal(signal.SIGINT)
    ended = [finished(process) for process in running]
    for site, process in zip(SITES, ended, strict=True):
        assert process.returncode == 0, process.stderr
        assert f"site '{site}' has ended: " in process.stderr
        assert "updates" in process.stderr


@pytest.fixture(scope="module")
def port(served):
    return served[0]


@pytest.fixture(scope="module")
def local_run(consortium):
    out = consortium / "local"
    path = federation(consortium, 1, sites=())
    assert main(["formation-energy", "--federation", path, "--cohort", "local", "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def site_run(consortium, port):
    out, path = consortium / "sites", federation(consortium, port)
    assert main(["formation-energy", "--federation", path, "--out", str(out), "--share-model", "yes"]) == 0
    return out


def test_a_run_over_two_sites_leaves_the_history_and_the_model_of_one_process_byte_for_byte(site_run, local_run):
    for name in ("history.jsonl", "models/federated.safetensors"):
        assert (site_run / name).read_bytes() == (local_run / name).read_bytes(), name
    assert json.loads((site_run / "summary.json").read_text())["status"] == "completed"
    assert (site_run / "report.html").is_file()
    assert list((site_run / "tensorboard").rglob("events*"))


@pytest.mark.parametrize("cohort", ["local", "ray"])
def test_both_kinds_of_silos_in_one_file_give_the_same_bytes(consortium, port, local_run, site_run, cohort):  # noqa: ARG001
    out, path = consortium / f"mixed-{cohort}", federation(consortium, port, sites=("south",))
    words = ("formation-energy", "--federation", path, "--cohort", cohort, "--out", str(out))
    done = finished(start_ray_fed(*words, folder=consortium))
    assert done.returncode == 0, done.stderr
    for name in ("history.jsonl", "models/federated.safetensors"):
        assert (out / name).read_bytes() == (local_run / name).read_bytes(), name


def test_a_database_behind_a_site_gives_the_bytes_of_a_file(consortium, port, local_run, site_run):  # noqa: ARG001
    out, path = consortium / "stored", Path(federation(consortium, port, sites=("south",)))
    path.write_text(path.read_text().replace("dataset: alloys", "dataset: stored"))
    words = ("formation-energy", "--federation", str(path), "--cohort", "local", "--out", str(out))
    done = finished(start_ray_fed(*words, folder=consortium))
    assert done.returncode == 0, done.stderr
    for name in ("history.jsonl", "models/federated.safetensors"):
        assert (out / name).read_bytes() == (local_run / name).read_bytes(), name


def test_under_masks_two_sites_give_the_model_of_one_process_byte_for_byte(consortium, port):
    masks = ["--secure-aggregation", "yes", "--baselines", "no"]
    for name, path, *more in (
        ("masked-local", federation(consortium, 1, sites=()), "--cohort", "local"),
        ("masked", federation(consortium, port)),
    ):
        assert main(["formation-energy", "--federation", path, "--out", str(consortium / name), *masks, *more]) == 0
    model = "models/federated.safetensors"
    assert (consortium / "masked" / model).read_bytes() == (consortium / "masked-local" / model).read_bytes()


LONG = {"epochs": 300, "rounds": 300, "baselines": False}


def told(run: Path) -> list[dict]:
    """Return the history without the bytes sent: a round that was done twice has sent more."""
    lines = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "bytes_sent"} for line in lines]


def num_lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def kill_silo(process: subprocess.Popen[str]) -> None:
    """Kill the process that holds a site's silo, as an exhausted memory would."""
    silos = [child for child in psutil.Process(process.pid).children(recursive=True) if "SiloActor" in child.name()]
    assert len(silos) == 1
    silos[0].kill()


def test_a_silo_that_is_killed_and_a_coordinator_that_is_killed_and_resumed_change_no_byte(consortium, served):
    port, sites = served
    unbroken, out = consortium / "long-local", consortium / "long"
    path = federation(consortium, 1, sites=(), **LONG)
    assert main(["formation-energy", "--federation", path, "--cohort", "local", "--out", str(unbroken)]) == 0
    path = federation(consortium, port, **LONG)
    process = start_ray_fed("formation-energy", "--federation", path, "--out", str(out), folder=consortium)
    wait_for(lambda: num_lines(out / "history.jsonl") > 40, process)
    kill_silo(sites["north"])
    wait_for(lambda: num_lines(out / "history.jsonl") > 120, process)
    process.kill()
    finished(process)
    done = finished(start_ray_fed("resume", str(out), folder=consortium))
    assert done.returncode == 0, done.stderr
    model = "models/federated.safetensors"
    assert (out / model).read_bytes() == (unbroken / model).read_bytes()
    assert told(out) == told(unbroken)
    restarts = [json.loads(line).get("restarts") for line in (out / "timing.jsonl").read_text().splitlines()]
    assert [list(found) for found in restarts if found] == [["north-silo"]]


def wait_for(condition, process: subprocess.Popen[str], seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline, "nothing happened in time"
        time.sleep(0.01)


def test_the_sites_ledgers_are_collected_and_verified_by_the_keys_that_their_owners_read_out(
    consortium, site_run, capsys
):
    assert main(["ledger", "verify", str(site_run)]) == 3
    said = capsys.readouterr().out
    keys = [f"coordinator={re.search('--key coordinator=([0-9a-f]{64})', said)[1]}"]
    keys += [f"{site}-silo={SigningKey.at(consortium / site / 'ledger/signing.key').public}" for site in SITES]
    assert main(["ledger", "verify", str(site_run), *(word for key in keys for word in ("--key", key))]) == 0
    for site in SITES:
        (kept,) = (consortium / site / "ledger" / f"{site}-silo").glob("sites-*.jsonl")
        assert (site_run / "ledger/silos" / f"{site}-silo" / kept.name).read_bytes() == kept.read_bytes()


def test_an_owner_who_takes_models_has_the_runs_with_its_card_and_nobody_else_has(consortium, site_run):
    (kept,) = (consortium / "models").glob("*.safetensors")
    assert kept.read_bytes() == (site_run / "models/federated.safetensors").read_bytes()
    assert load_model(kept)[1].id == load_model(site_run / "models/federated")[1].id
    assert {path.stat().st_mode & 0o777 for path in (consortium / "models").iterdir()} == {0o600}
    summary = json.loads((site_run / "summary.json").read_text())
    assert [summary[f"silo.{site}-silo.has_model"] for site in SITES] == [True, False]
    assert "silo &#x27;south-silo&#x27; did not take the model" in (site_run / "report.html").read_text()


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
