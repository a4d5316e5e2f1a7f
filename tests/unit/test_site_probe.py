"""`ray-fed site check` asks a hub whether a run would reach it, and begins nothing."""

import contextlib
import shutil
import socket
import threading
from dataclasses import replace

import pytest

from pipelines.site.check import run
from ray_fed.deployment.certificates import Node, write_certificates
from ray_fed.errors import ConfigError
from ray_fed.sites.agent import HubAddress
from ray_fed.sites.hub import Hub
from ray_fed.sites.link import Certificates
from ray_fed.sites.probe import Reached, probe
from ray_fed.sites.wire import PROTOCOL


@pytest.fixture(scope="module")
def tls(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tls")
    write_certificates(folder, [Node(name, ("127.0.0.1",)) for name in ("hub", "north")], 3)
    write_certificates(folder / "others", [Node("north", ("127.0.0.1",))], 3)
    return folder


@pytest.fixture(scope="module")
def hub(tls):
    own = Certificates.read(tls / "hub")
    pins = {"north": Certificates.read(tls / "north").key_hash(), "south": "0" * 64}
    with Hub("127.0.0.1:0", own, pins) as hub:
        yield hub


@pytest.fixture
def address(hub):
    return HubAddress(f"127.0.0.1:{hub.port}", hub.own.key_hash())


def test_a_hub_that_fits_is_reached_and_holds_no_connection_afterwards(hub, address, tls):
    assert probe("north", address, tls / "north") == Reached(address.key_hash, PROTOCOL)
    assert not hub.is_connected("north")


def refused(site, address, folder) -> str:
    with pytest.raises(ConfigError) as raised:
        probe(site, address, folder)
    return str(raised.value)


def test_every_step_that_fails_is_named_with_its_remedy(hub, address, tls):
    nobody = replace(address, address="127.0.0.1:1")
    assert "cannot be reached: Connection refused; check address, proxy and firewall" in refused(
        "north", nobody, tls / "north"
    )
    other_key = replace(address, key_hash="1" * 64)
    assert "ask the coordinator which is right: somebody may stand between" in refused(
        "north", other_key, tls / "north"
    )
    assert "its certificate must be of the authority in" in refused("north", address, tls / "others/north")
    assert "this hub does not know a site of that name" in refused("east", address, tls / "north")
    assert "another public key than the one pinned for it" in refused("south", address, tls / "north")
    other_name = replace(address, server_name="somebody.example")
    assert "made out to somebody.example" in refused("north", other_name, tls / "north")
    assert not hub.is_connected("north")


def test_something_else_at_that_port_is_no_hub(address, tls):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        answering = threading.Thread(target=_answer_in_clear, args=(server,))
        answering.start()
        elsewhere = replace(address, address=f"127.0.0.1:{port}")
        assert "no TLS there" in refused("north", elsewhere, tls / "north")
        answering.join()


def test_it_goes_through_the_proxy_as_a_run_does(address, tls):
    with connect_proxy() as (proxy, passed):
        assert probe("north", replace(address, proxy=proxy), tls / "north").protocol == PROTOCOL
    assert passed == [address.address] * 2


def test_a_proxy_that_is_not_there_is_named_as_a_step_that_fails(address, tls):
    assert "check address, proxy and firewall" in refused("north", replace(address, proxy="127.0.0.1:1"), tls / "north")


@contextlib.contextmanager
def connect_proxy():
    """Yield HOST:PORT of an HTTP CONNECT proxy, and the addresses that were asked for."""
    passed: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=_accept, args=(server, passed), daemon=True).start()
        yield f"127.0.0.1:{server.getsockname()[1]}", passed


def _answer_in_clear(server):
    with server.accept()[0] as client:
        client.recv(1 << 16)
        client.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")


def _accept(server, passed):
    with contextlib.suppress(OSError):
        while True:
            threading.Thread(target=_pass_on, args=(server.accept()[0], passed), daemon=True).start()


def _pass_on(client, passed):
    head = b""
    while b"\r\n\r\n" not in head:
        head += client.recv(1)
    passed.append(head.split()[1].decode())
    host, _, port = passed[-1].rpartition(":")
    with client, socket.create_connection((host, int(port))) as there:
        client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
        back = threading.Thread(target=_copy, args=(there, client))
        back.start()
        _copy(client, there)
        back.join()


def _copy(one, other):
    with contextlib.suppress(OSError):
        while part := one.recv(1 << 16):
            other.sendall(part)
        other.shutdown(socket.SHUT_WR)


def test_certificates_that_are_missing_or_no_pair_are_named_before_anything_is_dialled(address, tls, tmp_path):
    assert "a site and a hub need node.crt, node.key and ca.crt there" in refused("north", address, tmp_path / "none")
    mixed = shutil.copytree(tls / "north", tmp_path / "mixed")
    shutil.copyfile(tls / "hub" / "node.key", mixed / "node.key")
    assert "node.crt and node.key must be a pair" in refused("north", address, mixed)


@pytest.mark.usefixtures("hub")
def test_a_hub_between_is_checked_by_the_same_command(address, tls, tmp_path, capsys):
    path, key = tmp_path / "site.yaml", Certificates.read(tls / "north").key_hash()
    path.write_text(
        f"name: north\nhub: {{address: '{address.address}', key: {address.key_hash}, tls: {tls / 'north'}}}\n"
        f"relay: {{listen: '127.0.0.1:0', sites: {{south: '{key}'}}}}\n"
    )
    path.chmod(0o600)
    assert run({"file": str(path)}, ()) == 0
    said = capsys.readouterr().out
    assert "ok      sites below: 127.0.0.1:0 is free for 'south'" in said
    assert f"certificate key  {key}" in said
    path.write_text(path.read_text().replace("127.0.0.1:0", address.address))
    assert run({"file": str(path)}, ()) == 1
    assert "failed  sites below: the hub cannot listen at" in capsys.readouterr().out
