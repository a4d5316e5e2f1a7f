"""`ray-fed doctor` and `ray-fed attach` on a real private cluster, whose one node has the label site=lab."""

import subprocess
import sys
import time
from importlib.metadata import version

import pytest

from pipelines.cli import main
from tests.commands import run_ray_fed, start_ray_fed

FEDERATION = """
silos:
  - {{name: one, data: {data}, site: {site}}}
  - {{name: two, data: embedded, site: lab}}
"""


@pytest.fixture
def doctor(ray_session, tmp_path, capsys):  # noqa: ARG001
    """Return a function that examines the cluster for a federation: exit code and printed lines."""

    def examine(data="embedded", site="lab"):
        path = tmp_path / "federation.yaml"
        path.write_text(FEDERATION.format(data=data, site=site))
        code = main(["doctor", "--address", "local", "--federation", str(path), "--megabytes", "1"])
        return code, capsys.readouterr().out.splitlines()

    return examine


def test_a_cluster_that_can_hold_the_federation_is_said_to(doctor):
    code, lines = doctor()
    assert code == 0
    software, room = lines[2].split(), lines[6].split()
    assert software[2] == "lab"
    assert software[4:7] == [version("ray"), version("torch"), sys.version.split()[0]]
    assert len(software[7]) == 8
    assert room[4:6] == ["yes", "no"]  # a token of its own; no TLS on one machine
    clock_ms, round_trip_ms = map(float, room[6:8])
    assert abs(clock_ms) <= max(1000.0, round_trip_ms)  # no clock is read better than that
    assert 0 < round_trip_ms < 60_000
    assert lines[-1].startswith("1 node, 2 silos placed: nothing here would break a run")


def test_data_a_site_does_not_have_are_found_before_the_run(doctor, tmp_path):
    code, lines = doctor(data=tmp_path / "gone.csv")
    assert code == 1
    assert any(f"a silo of site 'lab' is to read {tmp_path}/gone.csv, which is not readable here" in x for x in lines)


def test_a_site_that_no_node_belongs_to_is_found(doctor):
    code, lines = doctor(site="mars")
    assert code == 1
    assert any(x.startswith("failure: site mars: silo 'one': no node has the label site=mars") for x in lines)


def test_a_cluster_that_is_not_there_is_one_line(tmp_path):
    done = run_ray_fed("doctor", "--address", "127.0.0.1:1", folder=tmp_path)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "no Ray cluster at address '127.0.0.1:1'" in done.stderr


def test_attach_follows_a_run_of_another_process_to_its_end(tmp_path, capsys):
    run = tmp_path / "run"
    options = "--cohort local --rows 400 --silos 150,150 --hidden 16 --epochs 40 --communication-frequency 1"
    command = ["formation-energy", *options.split(), "--out", str(run)]
    with (tmp_path / "log").open("w") as log:  # no terminal, and nobody reads what it says
        pipes = {"stdout": log, "stderr": log, "stdin": subprocess.DEVNULL}
        process = start_ray_fed(*command, folder=tmp_path, start_new_session=True, **pipes)
    try:
        while process.poll() is None and not (run / "history.jsonl").exists():
            time.sleep(0.05)
        assert main(["attach", str(run)]) == 0
    finally:
        process.wait(60)
    printed = capsys.readouterr()
    assert "round 40/40" in printed.err
    assert str(run / "report.html") in printed.out
