"""Certificates: a handshake both ways, refusals, and what is written where."""

import contextlib
import socket
import ssl
import stat
import threading
from datetime import UTC, datetime, timedelta

import pytest

from actors.session import session
from pipelines.cli import main
from ray_fed.deployment.certificates import (
    Node,
    days_left,
    issue,
    make_authority,
    read_authority,
    write_certificates,
)
from ray_fed.errors import ConfigError, PlacementError

NORTH = Node.parse("north=192.0.2.21,north.example.org")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("certs")
    write_certificates(folder, [NORTH, Node.parse("south=192.0.2.22")], 30)
    return folder


def context(purpose, own, trusted):
    made = ssl.SSLContext(purpose)
    made.verify_mode = ssl.CERT_REQUIRED
    made.load_verify_locations(trusted / "ca.crt")
    if own:
        made.load_cert_chain(own / "node.crt", own / "node.key")
    return made


def handshake(client, server, name):
    """Carry out a TLS handshake in memory; raises ssl.SSLError when either side refuses the other."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        client.wrap_bio(to_client, to_server, server_hostname=name),
        server.wrap_bio(to_server, to_client, server_side=True),
    ]
    for _ in range(10):
        for end in ends:
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
    for end in ends:  # TLS 1.3: a server's refusal of the client arrives with the first bytes read
        with pytest.raises(ssl.SSLWantReadError):
            end.read(1)
    return ends[0].version()


def client_of(own, trusted):
    return context(ssl.PROTOCOL_TLS_CLIENT, own, trusted)


def server_of(own, trusted):
    return context(ssl.PROTOCOL_TLS_SERVER, own, trusted)


@pytest.mark.parametrize("name", ["192.0.2.21", "north.example.org", "127.0.0.1", "localhost"])
def test_machines_of_one_authority_accept_each_other_by_every_address(folder, name):
    client = client_of(folder / "south", folder)
    assert handshake(client, server_of(folder / "north", folder), name) == "TLSv1.3"


def test_an_address_that_is_not_the_machines_is_refused(folder):
    with pytest.raises(ssl.SSLCertVerificationError, match=r"192\.0\.2\.22"):
        handshake(client_of(folder / "south", folder), server_of(folder / "north", folder), "192.0.2.22")


def test_a_client_without_a_certificate_is_refused(folder):
    with pytest.raises(ssl.SSLError, match=r"(?i)certificate"):
        handshake(client_of(None, folder), server_of(folder / "north", folder), "192.0.2.21")


def test_a_machine_of_another_authority_is_refused(folder, tmp_path):
    write_certificates(tmp_path, [NORTH], 30)
    with pytest.raises(ssl.SSLCertVerificationError, match="verify failed"):
        handshake(client_of(folder / "south", folder), server_of(tmp_path / "north", folder), "192.0.2.21")


def test_keys_are_for_their_owner_only_and_nodes_get_no_authority_key(folder):
    for path in (folder / "ca.key", folder / "north" / "node.key"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert sorted(path.name for path in (folder / "north").iterdir()) == ["ca.crt", "node.crt", "node.key"]


def test_a_later_machine_gets_the_same_authority_and_a_written_one_is_kept(tmp_path):
    write_certificates(tmp_path, [NORTH], 30)
    before, key = (tmp_path / "ca.crt").read_bytes(), (tmp_path / "north" / "node.key").read_bytes()
    write_certificates(tmp_path, [Node.parse("west=192.0.2.23")], 30)
    assert (tmp_path / "west" / "ca.crt").read_bytes() == before
    with pytest.raises(ConfigError, match="north is there already; --renew"):
        write_certificates(tmp_path, [Node.parse("east=192.0.2.24"), NORTH], 30)
    assert not (tmp_path / "east").exists()
    write_certificates(tmp_path, [NORTH], 30, renew=True)
    assert (tmp_path / "north" / "node.key").read_bytes() != key


def test_a_certificate_counts_for_the_days_asked_and_not_longer_than_its_authority():
    now = datetime(2030, 1, 1, tzinfo=UTC)
    authority = make_authority(days=100, now=now)
    ends = {days: issue(authority, NORTH, days, now)[0].not_valid_after_utc for days in (30, 365)}
    assert ends == {30: now + timedelta(days=30), 365: now + timedelta(days=100)}


def test_days_left_are_counted_and_go_below_zero(folder):
    path = folder / "north" / "node.crt"
    assert days_left(path) == pytest.approx(30, abs=0.01)
    assert days_left(path, datetime.now(UTC) + timedelta(days=31)) == pytest.approx(-1, abs=0.01)
    with pytest.raises(ConfigError, match="not a readable certificate"):
        days_left(folder / "north" / "node.key")


@pytest.mark.parametrize(
    "text", ["north", "north=", "=192.0.2.1", "../north=192.0.2.1", "north=300.1.2.3", "north=a_b"]
)
def test_a_node_that_cannot_be_is_refused(text):
    with pytest.raises(ConfigError, match=r"must be NAME=ADDRESS|neither an IP address nor a host name"):
        Node.parse(text)


def test_a_key_that_is_not_the_authoritys_is_refused(folder, tmp_path):
    (tmp_path / "ca.crt").write_bytes((folder / "ca.crt").read_bytes())
    with pytest.raises(ConfigError, match="no usable authority"):
        read_authority(tmp_path)
    (tmp_path / "ca.key").write_bytes((folder / "north" / "node.key").read_bytes())
    with pytest.raises(ConfigError, match="not the key of"):
        read_authority(tmp_path)


def test_the_command_says_what_goes_where(tmp_path, capsys):
    assert main(["cluster", "certs", "north=192.0.2.21", "--out", str(tmp_path / "certs")]) == 0
    printed = capsys.readouterr().out
    assert f"{tmp_path}/certs/north/  bring it to north as ~/ray-fed/tls" in printed
    assert "ca.key  signs further machines: keep it here" in printed
    assert main(["cluster", "certs", "north", "--out", str(tmp_path / "certs")]) == 2
    assert "must be NAME=ADDRESS" in capsys.readouterr().err


@pytest.fixture
def port(request, folder):
    """A server on loopback, with TLS or without, that greets whoever comes and hangs up."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve():
        with contextlib.suppress(OSError):
            while True:
                line, _ = listener.accept()
                with line, contextlib.suppress(OSError):
                    if request.param:
                        server_of(folder / "north", folder).wrap_socket(line, server_side=True).close()
                    else:
                        line.sendall(b"\0\0\0\4\0\0\0\0\0")  # what a gRPC server says first

    thread = threading.Thread(target=serve)
    thread.start()
    yield listener.getsockname()[1]
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join(5)


@pytest.mark.parametrize("port", [True], indirect=True)
def test_a_cluster_of_another_authority_is_said_at_once(port, tmp_path, monkeypatch):
    write_certificates(tmp_path, [NORTH], 30)
    monkeypatch.setenv("RAY_USE_TLS", "1")
    monkeypatch.setenv("RAY_TLS_CA_CERT", str(tmp_path / "ca.crt"))
    expected = f"its certificate is not of the authority RAY_TLS_CA_CERT={tmp_path}/ca.crt: (self-signed|.*signature)"
    with pytest.raises(PlacementError, match=expected), session(f"127.0.0.1:{port}"):
        pass


@pytest.mark.parametrize(
    ("port", "own", "said"),
    [(True, "0", "this process speaks no TLS, it does"), (False, "1", "this process speaks TLS, it does not")],
    indirect=["port"],
)
def test_tls_on_one_side_only_is_said_at_once(port, own, said, monkeypatch):
    monkeypatch.setenv("RAY_USE_TLS", own)
    expected = f"no Ray cluster at address '127.0.0.1:{port}': {said}; set RAY_USE_TLS"
    with pytest.raises(PlacementError, match=expected), session(f"127.0.0.1:{port}"):
        pass
