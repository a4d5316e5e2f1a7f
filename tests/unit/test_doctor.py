"""Facts of machines in, findings out; and what the doctor prints of them."""

import socket
from dataclasses import replace

import pytest

from pipelines.cli import main
from pipelines.cluster.doctor import conclusion, machine_table, software_table
from ray_fed.deployment import this_machine
from ray_fed.deployment.checks import Link, NodeReport, findings
from ray_fed.deployment.machine import Machine, describe_machine

HERE = Machine(
    {"python": "3.11.7", "ray-fed": "0.1.0+3f2a91c04d5e", "ray": "2.60.0", "torch": "2.13.0", "numpy": "2.4.6"},
    tables="c63ba62e", shm_free=10**9, disk_free=10**11, disk_used=0.5, auth_mode="token", has_tls=True,
    certificate_days=300.0, gpus_seen=1, torch_has_gpu=True,
)  # fmt: skip
LINK = Link(round_trip_s=0.02, clock_offset_s=0.003, to_node=1e8, from_node=9e7)
NORTH = NodeReport("north-1", "192.0.2.21", "north", 1.0, HERE, LINK)
SOUTH = replace(NORTH, name="south-1", address="192.0.2.22", site="south")


def said(*changes, node=NORTH, link=LINK, **versions):
    """Return the findings about a cluster of two, the first of which is changed, as text."""
    fields = dict(changes) | ({"versions": {**HERE.versions, **versions}} if versions else {})
    machine = replace(HERE, **fields)
    return [str(finding) for finding in findings([replace(node, machine=machine, link=link), SOUTH], HERE)]


def test_a_cluster_of_equals_has_nothing_to_find():
    assert said() == []


def test_a_cluster_in_which_everything_is_wrong_gets_each_finding_once(capsys):
    head = replace(NORTH, name="head", site="", num_gpus=0.0, machine=replace(HERE, auth_mode="", has_tls=False))
    versions = {**HERE.versions, "ray": "2.59.0"}
    north = replace(
        HERE, versions=versions, tables="0", shm_free=2 * 10**7, disk_used=0.97, gpus_seen=0, missing=("/srv/n.csv",)
    )
    south = replace(HERE, torch_has_gpu=False, certificate_days=-3.0)
    nodes = [
        head,
        replace(NORTH, machine=north),
        replace(SOUTH, machine=south, link=replace(LINK, clock_offset_s=-4000.0)),
        replace(SOUTH, name="east-1", machine=None, link=None, trouble="no answer within 60 s"),
    ]
    found = findings(nodes, HERE)
    assert conclusion(found, len(nodes), 3) == 1
    *lines, last = capsys.readouterr().out.splitlines()
    told = (
        "ray 2.59", "tables 0", "20 MB", "disk 97", "offers 1 GPU", "/srv/n.csv", "torch cannot", "has ended",
        "its clock", "no answer", "no token", "no TLS",
    )  # fmt: skip
    assert [sum(words in line for line in lines) for words in told] == [1] * len(told)
    assert len(lines) == len(told)
    assert last == "4 nodes: 11 failures, 1 warning"


@pytest.mark.parametrize(
    ("package", "version", "severity"),
    [
        ("ray", "2.60.1", "failure"),
        ("python", "3.12.1", "failure"),
        ("python", "3.11.9", "warning"),
        ("numpy", "1.26.4", "failure"),
        ("numpy", "2.4.7", "warning"),
        ("torch", "2.12.0", "warning"),
        ("torch", None, "failure"),
        ("ray-fed", None, "failure"),
        ("ray-fed", "0.1.0+8d1c63f0aa07", "failure"),
    ],
)
def test_a_version_fails_where_messages_would_break(package, version, severity):
    (finding,) = said(**{package: version})
    assert finding.startswith(f"{severity}: north-1: {package} ")
    assert HERE.versions[package] in finding


@pytest.mark.parametrize(
    ("field", "value", "severity", "words"),
    [
        ("tables", "00000000", "failure", "element tables 00000000, the driver has c63ba62e"),
        ("shm_free", 31 * 10**6, "failure", "31 MB of shared memory free"),
        ("shm_free", 255 * 10**6, "warning", "255 MB of shared memory free"),
        ("disk_used", 0.951, "failure", "disk 95 % full"),
        ("disk_free", 4 * 10**9, "warning", "4.0 GB of disk free"),
        ("gpus_seen", 0, "failure", "offers 1 GPU to Ray, its graphics driver lists 0"),
        ("torch_has_gpu", False, "failure", "torch cannot use its GPU"),
        ("certificate_days", -1.0, "failure", "its certificate has ended"),
        ("certificate_days", 13.0, "warning", "its certificate ends in 13 days"),
        ("certificate_days", float("nan"), "failure", "its certificate cannot be read"),
        ("missing", ("/data/a.csv",), "failure", "a silo of site 'north' is to read /data/a.csv"),
    ],
)
def test_what_a_machine_lacks_is_said_with_its_value(field, value, severity, words):
    (finding,) = said((field, value))
    assert finding.startswith(f"{severity}: north-1: {words}")


@pytest.mark.parametrize(
    ("offset", "severity"), [(0.9, ""), (-0.9, ""), (1.1, "warning"), (-61.0, "warning"), (3601.0, "failure")]
)
def test_a_clock_may_differ_by_a_second(offset, severity):
    found = said(link=replace(LINK, clock_offset_s=offset))
    assert [finding.split(":")[0] for finding in found] == ([severity] if severity else [])
    assert not severity or f"{abs(offset):.1f} s {'ahead' if offset > 0 else 'behind'}" in found[0]


def test_strangers_could_get_in_without_a_token_and_listen_without_tls():
    assert [finding.split(";")[0] for finding in said(("auth_mode", "disabled"))] == [
        "failure: cluster: no token: whoever reaches its ports can run code at every site"
    ]
    assert [finding.split(";")[0] for finding in said(("has_tls", False), ("certificate_days", None))] == [
        "warning: cluster: no TLS: the token and all parameters cross the network readable"
    ]


def test_a_cluster_on_loopback_needs_no_protection():
    open_here = replace(HERE, auth_mode="disabled", has_tls=False, certificate_days=None)
    nodes = [replace(node, address="127.0.0.1", machine=open_here) for node in (NORTH, SOUTH)]
    assert findings(nodes, open_here) == []


def test_failures_come_first_and_set_the_exit_code(capsys):
    silent = NodeReport("north-2", "192.0.2.23", "north", 0.0, trouble="no answer within 60 s")
    late = replace(SOUTH, link=replace(LINK, clock_offset_s=5.0))
    found = findings([late, silent], HERE)
    assert [finding.severity for finding in found] == ["failure", "warning"]
    assert conclusion(found, 2, 1) == 1
    assert capsys.readouterr().out.splitlines() == [
        "failure: north-2: no answer within 60 s",
        "warning: south-1: its clock is 5.0 s ahead; let chrony or ntpd keep it",
        "2 nodes: 1 failure, 1 warning",
    ]
    assert conclusion(found[1:], 2, 1) == 0
    assert capsys.readouterr().out.endswith("2 nodes, 1 silo placed: nothing here would break a run, 1 warning\n")


def test_tables_have_one_aligned_line_per_node():
    silent = NodeReport("head", "192.0.2.10", "", 0.0, trouble="no answer")
    assert software_table([silent, NORTH]).splitlines() == [
        "node     address     site   ray-fed             ray     torch   python  tables",
        "-------  ----------  -----  ------------------  ------  ------  ------  --------",
        "head     192.0.2.10  -      -                   -       -       -       -",
        "north-1  192.0.2.21  north  0.1.0+3f2a91c04d5e  2.60.0  2.13.0  3.11.7  c63ba62e",
    ]
    assert machine_table([NORTH]).splitlines()[2].split() == [
        "north-1", "1", "1.0", "100.0", "yes", "300", "days", "3.0", "20.0", "100", "90",
    ]  # fmt: skip


def test_this_machine_describes_itself(tmp_path, monkeypatch):
    there, gone = tmp_path / "there.csv", tmp_path / "gone.csv"
    there.write_text("")
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_USE_TLS", "1")
    monkeypatch.setenv("RAY_TLS_SERVER_CERT", str(there))
    machine = describe_machine([str(there), str(gone)])
    assert machine.missing == (str(gone),)
    assert machine.auth_mode == "token"
    assert machine.has_tls
    assert machine.certificate_days != machine.certificate_days  # NaN: not a certificate
    assert 0 < machine.disk_used < 1
    assert len(machine.tables) == 8


def test_without_an_address_this_machine_is_looked_at_and_no_ray_is_started(capsys):
    code = main(["doctor"])
    lines = capsys.readouterr().out.splitlines()
    assert code == int(any(line.startswith("failure") for line in lines))
    assert sum("this machine" in line for line in lines) == 1
    assert lines[-1].startswith("1 node: ")


def test_silos_are_placed_only_by_a_cluster(capsys):
    assert main(["doctor", "--federation", "federation.yaml"]) == 2
    assert "give --address auto" in capsys.readouterr().err


def test_a_port_that_is_taken_and_a_clock_that_nothing_keeps_are_told(monkeypatch):
    node = NodeReport("box", "this machine", "", 0.0, replace(HERE, gpus_seen=0, torch_has_gpu=None))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        monkeypatch.setattr(this_machine, "PORTS", {taken.getsockname()[1]: "cluster state"})
        monkeypatch.setattr(this_machine, "clock_status", lambda: 0x40)
        told = [str(finding) for finding in this_machine.findings_here(node)]
        monkeypatch.setattr(this_machine, "clock_status", lambda: 0x2001)
        fewer = [str(finding) for finding in this_machine.findings_here(node)]
    assert [line.split()[2] for line in told] == ["port", "nothing"]
    assert len(fewer) == 1
