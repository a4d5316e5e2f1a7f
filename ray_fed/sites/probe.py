"""Is the hub there, is it the one that is meant, and does it speak our version? Asked without beginning anything."""

import asyncio
import base64
import http.client
import re
import socket
import ssl
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies

import grpc
import grpc.aio

from ray_fed.errors import ConfigError
from ray_fed.sites import link
from ray_fed.sites.agent import HubAddress
from ray_fed.sites.link import Certificates, Peer
from ray_fed.sites.wire import PROTOCOL, Encoded, Hello, printable

TIMEOUT_SECONDS = 10.0
NO_PROTOCOL = 0
"""A version that nobody speaks: a hub that knows the site answers with its own, and nothing begins."""


@dataclass(frozen=True)
class Reached:
    """What a probe has found."""

    key_hash: str
    """Of the hub's public key."""
    protocol: int
    """Version that the hub speaks; 0 where another process of this site is connected, which shows that it fits."""


def probe(site: str, hub: HubAddress, tls_folder: Path) -> Reached:
    """Reach the hub as the site would. ConfigError says at which step it ends, and the remedy."""
    found = _presented(hub, tls_folder)
    pinned = f"{hub.address} shows the key {found}, the site file pins {hub.key_hash}"
    if hub.key_hash and found != hub.key_hash:
        raise ConfigError(f"{pinned}; ask the coordinator which is right: somebody may stand between")
    coroutine = _ask_version(site, hub, Certificates.read(tls_folder))
    asking = asyncio.run_coroutine_threadsafe(coroutine, link.background_loop())
    return Reached(found, asking.result(2 * TIMEOUT_SECONDS))


def _presented(hub: HubAddress, tls_folder: Path) -> str:
    """Return the hash of the key that the hub shows in TLS, through the proxy where there is one."""
    context = _context(tls_folder)
    host, _, port = hub.address.rpartition(":")
    name = hub.server_name or host.strip("[]")
    try:
        plain = _dialled(host.strip("[]"), int(port), hub.proxy)
        with plain, context.wrap_socket(plain, server_hostname=name) as secure:
            shown = secure.getpeercert(binary_form=True) or b""
    except ssl.SSLCertVerificationError as error:
        remedy = f"its certificate must be of the authority in {tls_folder}/ca.crt, and made out to {name}"
        raise ConfigError(f"{hub.address}: {error.verify_message}; {remedy}") from None
    except ssl.SSLError as error:
        raise ConfigError(f"{hub.address}: no TLS there ({error.reason}); check the address") from None
    except (OSError, http.client.HTTPException) as error:
        said = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise ConfigError(f"{hub.address}: cannot be reached: {said}; check address, proxy and firewall") from None
    return Peer.of(ssl.DER_cert_to_PEM_cert(shown).encode()).key_hash


def _context(tls_folder: Path) -> ssl.SSLContext:
    """ConfigError for files that are not there or do not belong together."""
    Certificates.read(tls_folder)
    try:
        context = ssl.create_default_context(cafile=str(tls_folder / "ca.crt"))
        context.load_cert_chain(tls_folder / "node.crt", tls_folder / "node.key")
    except (OSError, ssl.SSLError) as error:
        said = getattr(error, "reason", None) or getattr(error, "strerror", None) or type(error).__name__
        remedy = "node.crt and node.key must be a pair, and ca.crt their authority's"
        raise ConfigError(f"{tls_folder}: {said}; {remedy}") from None
    context.set_alpn_protocols(["h2"])
    return context


def _dialled(host: str, port: int, proxy: str) -> socket.socket:
    """Return a connection to the hub, through an HTTP CONNECT proxy where one is named here or in the environment."""
    named = proxy or getproxies().get("https", "")
    if not named:
        return socket.create_connection((host, port), TIMEOUT_SECONDS)
    parts = urlsplit(named if "://" in named else f"http://{named}")
    line = http.client.HTTPConnection(parts.hostname or "", parts.port or 80, timeout=TIMEOUT_SECONDS)
    line.set_tunnel(host, port, _credentials(parts.username, parts.password))
    line.connect()
    return line.sock


def _credentials(user: str | None, password: str | None) -> dict[str, str]:
    if user is None:
        return {}
    shown = base64.b64encode(f"{user}:{password or ''}".encode()).decode()
    return {"Proxy-Authorization": f"Basic {shown}"}


async def _ask_version(site: str, hub: HubAddress, own: Certificates) -> int:
    """Return the version that the hub names when it refuses ours; ConfigError for any other refusal."""
    options = link.channel_options(hub.server_name, hub.proxy)
    async with grpc.aio.secure_channel(hub.address, link.channel_credentials(own), options) as channel:
        stream = channel.stream_stream(f"/{link.SERVICE}/{link.METHOD}")(timeout=TIMEOUT_SECONDS)
        hello = Hello(protocol=NO_PROTOCOL, site=site, incarnation=link.random_name())
        try:
            for frame in link.frames(hello, Encoded(b"")):
                await stream.write(frame)
            await stream.read()
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            pass  # what the refusal says is in the call's status
        code, said = await stream.code(), printable(await stream.details() or "", 300)
    if code is grpc.StatusCode.ALREADY_EXISTS:
        return PROTOCOL
    version = re.search(r"this hub ([0-9]+)", said) if code is grpc.StatusCode.FAILED_PRECONDITION else None
    if version is None:
        raise ConfigError(f"{hub.address}: the hub refused: {said or code.name}")
    return int(version[1])
