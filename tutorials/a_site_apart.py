"""A site of its own beside a table of yours: its owner's file says what may leave, and its program dials your hub.

python tutorials/a_site_apart.py
"""

import json
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pandas as pd
import yaml

from ray_fed.deployment.certificates import Node, write_certificates
from ray_fed.materials.model_crystals.crystals import make_model_crystals
from ray_fed.sites.link import Certificates

RAY_FED = [sys.executable, "-m", "pipelines.cli"]
TARGET = "formation_energy_per_atom"


def main(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        hub = f"127.0.0.1:{server.getsockname()[1]}"
    # Certificates: `ray-fed cluster certs` makes them; each side tells the other its key by telephone.
    write_certificates(folder / "tls", [Node(name, ("127.0.0.1",)) for name in ("hub", "north")], 3)
    keys = {name: Certificates.read(folder / "tls" / name).key_hash() for name in ("hub", "north")}
    crystals = make_model_crystals(num_rows=300).rename(columns={"target": TARGET})
    crystals[crystals["anion"] == "O"].to_csv(folder / "oxides.csv", index=False)
    crystals[crystals["anion"] == "F"].to_csv(folder / "fluorides.csv", index=False)
    # What the owner at the site types: once `init`, then `start`.
    own = ["--file", "site.yaml"]
    allowed = ["--dataset", "alloys=oxides.csv", "--target", f"{TARGET}={TARGET}:eV/atom"]
    where = ["--name", "north", "--hub", hub, "--hub-key", keys["hub"], "--tls", "tls/north", "--ledger", "ledger"]
    subprocess.run([*RAY_FED, "site", "init", *own, *where, *allowed, "--state", "state"], cwd=folder, check=True)
    site = subprocess.Popen([*RAY_FED, "site", "start", *own], cwd=folder)
    # What you write: names of data sets, never paths of others.
    silos = [{"name": "north", "dataset": "alloys", "site": "north"}, {"name": "here", "data": "fluorides.csv"}]
    listens = {"listen": hub, "tls": "tls/hub", "sites": {"north": keys["north"]}}
    training = {"epochs": 6, "rounds": 3, "hidden": [16], "batch_size": 40}
    (folder / "federation.yaml").write_text(yaml.safe_dump({"silos": silos, "hub": listens, "training": training}))
    words = ["formation-energy", "--federation", "federation.yaml", "--cohort", "local", "--out", "run"]
    subprocess.run([*RAY_FED, *words], cwd=folder, check=True)
    site.send_signal(signal.SIGINT)
    site.wait()
    ledger = [json.loads(line) for path in (folder / "ledger").rglob("*.jsonl") for line in path.open()]
    left = pd.Series([line["kind"] for line in ledger]).value_counts()
    print(left.rename("lines in the site's own ledger").to_string())


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        main(Path(name))
