"""The lab itself, without Ray: hosts that share nothing but a wire."""

import hashlib
import subprocess

import pytest

from tests.lab import hosts
from tests.lab.capture import streams
from tests.lab.evidence import captured, disk

PORT = 7000
LISTEN = (
    "import hashlib, socket; line, _ = socket.create_server(('', 7000)).accept(); "
    "print(hashlib.sha256(b''.join(iter(lambda: line.recv(65536), b''))).hexdigest())"
)


@pytest.fixture(scope="module")
def lab():
    reason = hosts.reason_to_skip()
    if reason:
        pytest.skip(reason)
    with hosts.lab(["north", "south"]) as made:
        yield made


def test_hosts_have_names_files_and_processes_of_their_own(lab):
    north, south = lab.hosts.values()
    north.write("/srv/rows.csv", "1\n")
    assert north.run("hostname; ls /srv").stdout.split() == ["north", "rows.csv"]
    assert south.run("hostname; ls /srv").stdout.split() == ["south"]
    assert "/srv/rows.csv" in dict(disk(north))
    assert "/srv/rows.csv" not in dict(disk(south))
    sleeper = north.start("exec sleep 987.5", subprocess.DEVNULL)
    seen = north.run("until pgrep -f '^sleep 987.5'; do sleep 0.1; done", timeout=60.0).stdout.split()
    assert len(seen) == 1
    assert south.run("pgrep -f '^sleep 987.5'", check=False).stdout == ""
    north.run(f"kill {seen[0]}")
    sleeper.wait(10)


def test_the_desk_logs_in_everywhere_and_a_pulled_cable_is_felt(lab):
    ask = "ssh -o StrictHostKeyChecking=no -o ConnectTimeout=2 root@{} hostname"
    for host in lab.hosts.values():
        assert lab.desk.run(ask.format(host.address)).stdout == f"{host.name}\n"
    south = lab.hosts["south"]
    with lab.cut("south"):
        assert lab.desk.run(ask.format(south.address), check=False).returncode != 0
    assert lab.desk.run(ask.format(south.address)).stdout == "south\n"


def test_every_byte_between_two_hosts_is_taken(lab, tmp_path):
    north, south = lab.hosts.values()
    sent = bytes(range(256)) * 40_000
    north.write("/srv/sent", sent)
    with captured(lab, tmp_path / "wire.pcap"), (tmp_path / "heard").open("w") as heard:
        listening = south.start(f'exec python -c "{LISTEN}"', heard)
        send = f"until cat /srv/sent > /dev/tcp/{south.address}/{PORT}; do sleep 0.1; done"
        north.run(f"({send}) 2> /dev/null")
        listening.wait(20)
    taken = [content for line, content in streams(tmp_path / "wire.pcap").items() if line[1][1] == PORT]
    assert taken == [sent]
    assert (tmp_path / "heard").read_text().strip() == hashlib.sha256(sent).hexdigest()


def test_nothing_of_a_lab_is_left_when_it_ends(lab):
    assert lab  # or a reason to skip
    with hosts.lab(["alone"]) as made:
        first = made.hosts["alone"].path("/").parent
        assert first.exists()
    assert not first.exists()
    assert made.hosts["alone"].process.returncode is not None
