"""The same three hosts with TLS switched on: what is on the wire, and who may join."""

import contextlib
from collections import Counter

import pytest

from tests.lab.capture import streams
from tests.lab.evidence import captured, windows
from tests.lab.launched import filled_in, launched
from tests.lab.test_federation_on_hosts import COMMAND, OBJECTS, SSH

ROUNDS = 10
TABLES = 6379
RECORD_TYPES = {20, 21, 22, 23}
"""Change of cipher, alert, handshake, application data: RFC 8446, section 5.1."""
TLS = {
    "RAY_AUTH_MODE": "token",
    "RAY_USE_TLS": "1",
    "RAY_TLS_CA_CERT": "/root/ray-fed/tls/ca.crt",
    "RAY_TLS_SERVER_CERT": "/root/ray-fed/tls/node.crt",
    "RAY_TLS_SERVER_KEY": "/root/ray-fed/tls/node.key",
}


@pytest.fixture(scope="module")
def cluster(prepared, tmp_path_factory):
    lab = prepared.lab
    folder = tmp_path_factory.mktemp("certificates")
    nodes = " ".join(f"{host.name}={host.address}" for host in [lab.desk, *lab.hosts.values()])
    lab.desk.run(f"ray-fed cluster certs --out certificates {nodes}")
    for host in [lab.desk, *lab.hosts.values()]:
        for name in ("ca.crt", "node.crt", "node.key"):
            content = lab.desk.path(f"/root/certificates/{host.name}/{name}").read_bytes()
            host.write(f"/root/ray-fed/tls/{name}", content)
    pcap = folder / "wire.pcap"
    with contextlib.ExitStack() as taking:
        taking.enter_context(captured(lab, pcap))  # from before the first process starts to the end of the run
        with launched(lab, filled_in(lab, tls=True), TLS, ["-", "north", "south"]) as made:
            made.submit("hidden", f"{COMMAND} --rounds {ROUNDS} --address auto --out /srv/runs/hidden", "/root/job")
            made.finish("hidden")
            taking.close()
            yield made, pcap


def test_nothing_but_tls_is_on_the_wire(cluster):
    made, pcap = cluster
    plain, sent = {}, Counter()
    for line, content in streams(pcap).items():
        port = min(line[0][1], line[1][1])
        sent[port] += len(content)
        if port != SSH and (wrong := first_that_is_no_record(content)) is not None:
            plain[line] = content[wrong : wrong + 80]
    assert not plain
    assert sent[OBJECTS] > made.history("/srv/runs/hidden")[-1]["bytes_sent"] * ROUNDS
    assert sent[TABLES] > 0


def test_parameters_are_not_to_be_read_from_the_wire(cluster):
    made, pcap = cluster
    parameters = windows(made.head.path("/srv/runs/hidden/models/federated.safetensors"))
    assert not any(window in content for content in streams(pcap).values() for window in parameters)


def test_who_has_no_certificate_is_refused_and_told_so(cluster):
    made, _ = cluster
    north = made.lab.hosts["north"]
    north.write("/tmp/stranger/federation.yaml", made.lab.desk.path("/root/job/federation.yaml").read_text())
    asked = f"cd /tmp/stranger; {COMMAND} --address {made.head.address}:6379"
    refused = north.run(f"export RAY_AUTH_MODE=token; {asked}", check=False)
    assert refused.returncode == 2, refused.stdout + refused.stderr
    said = refused.stderr.splitlines()[-1]
    assert said.startswith("ray-fed formation-energy: error:"), refused.stderr
    assert "RAY_USE_TLS" in said


def first_that_is_no_record(content: bytes) -> int | None:
    """Return where one direction of a TCP line stops to be TLS records; None when all of it is."""
    start = 0
    while start + 5 <= len(content):
        if content[start] not in RECORD_TYPES or content[start + 1] != 3:
            return start
        start += 5 + int.from_bytes(content[start + 3 : start + 5], "big")
    return None
