"""Slurm, systemd, containers and Prometheus: shell that parses, options that Ray has, gauges that are made."""

import json
import re
import shutil
import subprocess
from dataclasses import replace
from math import isnan
from pathlib import Path

import pytest
import yaml

from actors.gauges import GAUGES, readings
from pipelines.training.federation_file import read_federation
from ray_fed.federation.rounds.job import RoundRecord

FOLDER = Path(__file__).resolve().parents[2] / "cluster"
SCRIPTS, UNITS = sorted(FOLDER.glob("slurm/*.sbatch")), sorted(FOLDER.glob("systemd/*.service"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_batch_script_is_correct_shell_and_never_stops_the_rays_of_others(script):
    done = subprocess.run(["bash", "-n", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    said = [line for line in script.read_text().splitlines() if not line.startswith("#")]
    assert not any("ray stop" in line for line in said)


def test_every_option_of_ray_that_is_named_is_one_of_its_own():
    from ray.scripts.scripts import start

    known = {name for option in start.params for name in option.opts + option.secondary_opts}
    files = [*SCRIPTS, *UNITS, FOLDER / "docker" / "compose.yaml"]
    for path in files:
        for words in re.findall(r"ray[ ,]+start((?:.|\n)*?)(?:&\n|\n\n|\n[A-Z]|\n    vol)", path.read_text()):
            named = set(re.findall(r"(?<![\w-])--[a-z-]+", words))
            assert named <= known, (path.name, named - known)
            assert named, path.name


@pytest.mark.parametrize("unit", UNITS, ids=lambda path: path.name)
@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze on this machine")
def test_systemd_accepts_a_unit(unit, tmp_path):
    """With programs that are here in place of those to be installed."""
    there = tmp_path / unit.name
    there.write_text(re.sub(r"(?m)^ExecStart=\S+", "ExecStart=/bin/true", unit.read_text()))
    done = subprocess.run(["systemd-analyze", "verify", there], capture_output=True, text=True, check=False)
    assert unit.name not in done.stderr, done.stderr


def test_the_containers_have_the_sites_of_their_federation_file():
    services = yaml.safe_load((FOLDER / "docker" / "compose.yaml").read_text())["services"]
    sites = {word.removeprefix("--labels=site=") for each in services.values() for word in each["entrypoint"]}
    assert {silo.site for silo in read_federation(str(FOLDER / "docker" / "federation.yaml")).silos} <= sites


def test_the_dashboard_shows_gauges_that_a_round_sets():
    record = RoundRecord(
        "federated", "federated", 2, 9, {"train_loss": 0.5}, ("a",), (("b", "late"),), 80, {"total": 3.0}
    )
    told = list(readings(record, ("a", "b")))
    assert {reading.gauge for reading in told} == set(GAUGES)
    assert all(set(reading.labels) == set(GAUGES[reading.gauge][1]) for reading in told)
    assert [reading.value for reading in told if reading.gauge == "fed_silo_took_part"] == [1.0, 0.0]
    silent = {reading.gauge: reading.value for reading in readings(replace(record, metrics={}), ())}
    assert isnan(silent["fed_loss"])
    panels = json.loads((FOLDER / "grafana.json").read_text())["panels"]
    shown = {name for panel in panels for target in panel["targets"] for name in re.findall(r"ray_\w+", target["expr"])}
    assert shown == {f"ray_{name}" for name in GAUGES}
