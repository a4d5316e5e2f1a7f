"""One connection between a site and a hub: mutual TLS, who is at the other end, and messages cut into frames.

gRPC carries one bidirectional stream of byte strings, dialled by the site. A message is a header, a body and a payload
(wire.py); its first frame holds a length and the header, and the payload follows in frames of CHUNK bytes:

    frame 1     [uint32 length of the header][header, padded to 8 bytes][first bytes of the payload]
    frame 2...  [next bytes of the payload]

gRPC's flow control is the back-pressure: who does not read stops the other end's writing.
"""

import asyncio
import functools
import hashlib
import os
import struct
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("GRPC_VERBOSITY", "ERROR")  # its words on each hang-up; ours name the site
import grpc
import grpc.aio
import numpy as np
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.x509.oid import NameOID
from grpc.aio import EOF  # type: ignore[attr-defined]

from ray_fed.errors import ConfigError
from ray_fed.sites.wire import ALIGNMENT, MAX_BODY_BYTES, AnyHeader, Encoded, Header, WireError, decode_header
from ray_fed.sites.wire import encode_header as header_bytes

SERVICE, METHOD = "ray_fed.Hub", "Connect"
CHUNK = 1 << 20
MAX_FRAME_BYTES = CHUNK + 3 * MAX_BODY_BYTES
STALL_SECONDS = 30.0
SLOWEST_BYTES_PER_SECOND = 1 << 16
"""A message whose next frame does not come within STALL_SECONDS, or that comes more slowly than this, is broken off: it
takes memory that others wait for."""
KEEP_ALIVE_SECONDS = 20.0
CANCEL_AGAIN_SECONDS = 0.5
LENGTH = struct.Struct("<I")
NOT_A_SITE = frozenset({"localhost"})
"""In the certificates of all machines, so it names none."""


@dataclass(frozen=True)
class Certificates:
    """What one end shows, and whom it believes; PEM. The folder of a machine has it (deployment/certificates.py)."""

    certificate: bytes
    key: bytes = field(repr=False)
    authorities: bytes

    @classmethod
    def read(cls, folder: Path) -> "Certificates":
        """Read node.crt, node.key and ca.crt. ConfigError names what cannot be read."""
        try:
            return cls(*((folder.expanduser() / name).read_bytes() for name in ("node.crt", "node.key", "ca.crt")))
        except OSError as error:
            said = f"{folder}: {error.strerror or type(error).__name__}"
            raise ConfigError(f"{said}; a site and a hub need node.crt, node.key and ca.crt there") from None

    def key_hash(self) -> str:
        """Return the hash of the public key, for the other side to pin."""
        return Peer.of(self.certificate).key_hash


@dataclass(frozen=True)
class Peer:
    """Who is at the other end, as its certificate says and its TLS handshake has proved."""

    names: frozenset[str]
    """Common name and DNS names."""
    key_hash: str
    """SHA-256 of the public key (SubjectPublicKeyInfo), hex."""

    @classmethod
    def of(cls, certificate: bytes) -> "Peer":
        """Read a PEM certificate; ConfigError where it is none."""
        try:
            read = x509.load_pem_x509_certificate(certificate)
            names = {str(each.value) for each in read.subject.get_attributes_for_oid(NameOID.COMMON_NAME)}
            return cls(frozenset(names | _dns_names(read)) - NOT_A_SITE, _key_hash(read))
        except ValueError as error:
            raise ConfigError(f"it is no readable certificate ({type(error).__name__})") from None


def _dns_names(certificate: x509.Certificate) -> set[str]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return set()
    return set(names.get_values_for_type(x509.DNSName))


def _key_hash(certificate: x509.Certificate) -> str:
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return hashlib.sha256(certificate.public_key().public_bytes(serialization.Encoding.DER, form)).hexdigest()


# ---- the hub's proof: gRPC does not show a client the certificate of its server, so the hub signs


def proof_of(certificates: Certificates, nonce: str, site_key_hash: str) -> bytes:
    """Return the hub's signature of what the site cannot have from anybody between: the key that *it* has shown to the
    holder of the hub's key, and its own nonce."""
    key, words = serialization.load_pem_private_key(certificates.key, None), _words(nonce, site_key_hash)
    if isinstance(key, ec.EllipticCurvePrivateKey):
        return key.sign(words, ec.ECDSA(hashes.SHA256()))
    if isinstance(key, rsa.RSAPrivateKey):
        return key.sign(words, padding.PKCS1v15(), hashes.SHA256())
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return key.sign(words)
    raise ConfigError(f"a hub's key must be EC, RSA or Ed25519, not {type(key).__name__}")


def is_proof(proof: bytes, certificate: bytes, nonce: str, site_key_hash: str) -> bool:
    """Whether the holder of the certificate's key has signed for this site and this nonce."""
    key, words = x509.load_pem_x509_certificate(certificate).public_key(), _words(nonce, site_key_hash)
    try:
        if isinstance(key, ec.EllipticCurvePublicKey):
            key.verify(proof, words, ec.ECDSA(hashes.SHA256()))
        elif isinstance(key, rsa.RSAPublicKey):
            key.verify(proof, words, padding.PKCS1v15(), hashes.SHA256())
        elif isinstance(key, ed25519.Ed25519PublicKey):
            key.verify(proof, words)
        else:
            return False
    except InvalidSignature:
        return False
    return True


def _words(nonce: str, site_key_hash: str) -> bytes:
    return f"ray-fed hub speaks with the site of the key {site_key_hash}; nonce {nonce}".encode()


# ---- gRPC


def server_credentials(own: Certificates) -> grpc.ServerCredentials:
    """A client without a certificate of the authorities gets no connection."""
    return grpc.ssl_server_credentials([(own.key, own.certificate)], own.authorities, require_client_auth=True)


def channel_credentials(own: Certificates) -> grpc.ChannelCredentials:
    return grpc.ssl_channel_credentials(own.authorities, own.key, own.certificate)


def server_options() -> list[tuple[str, Any]]:
    every = int(1000 * KEEP_ALIVE_SECONDS)
    return [
        *_options(),
        ("grpc.http2.min_ping_interval_without_data_ms", every // 2),
        ("grpc.max_concurrent_streams", 2),
        ("grpc.so_reuseport", 0),
    ]


def channel_options(server_name: str = "", proxy: str = "") -> list[tuple[str, Any]]:
    """server_name: the name in the hub's certificate, where it is not that of its address. proxy: HOST:PORT or
    http://HOST:PORT of an HTTP CONNECT proxy; empty: what grpc_proxy, https_proxy or http_proxy name."""
    named = [("grpc.ssl_target_name_override", server_name)] if server_name else []
    url = proxy if "://" in proxy else f"http://{proxy}"
    fresh = [("grpc.use_local_subchannel_pool", 1)]  # a new try waits for none that failed before
    return [*_options(), *named, *fresh, *([("grpc.http_proxy", url)] if proxy else [])]


def _options() -> list[tuple[str, Any]]:
    every = int(1000 * KEEP_ALIVE_SECONDS)
    return [
        ("grpc.max_receive_message_length", MAX_FRAME_BYTES),
        ("grpc.max_send_message_length", MAX_FRAME_BYTES),
        ("grpc.keepalive_time_ms", every),
        ("grpc.keepalive_timeout_ms", every // 2),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.max_metadata_size", 1 << 14),
    ]


@functools.cache
def background_loop() -> asyncio.AbstractEventLoop:
    """Return this process's loop for connections; it runs in a thread of its own until the process ends."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="ray-fed-sites", daemon=True).start()
    return loop


async def end(task: "asyncio.Task[Any]") -> None:
    """Cancel a task until it has ended: gRPC takes a cancellation that comes while a call begins for its own, and the
    task would go on."""
    while not task.done():
        task.cancel()
        await asyncio.wait([task], timeout=CANCEL_AGAIN_SECONDS)


# ---- messages and frames


def frames(header: Header, encoded: Encoded) -> Iterator[bytes]:
    """Cut a message into frames; each is made when it is asked for, so that no more than one is held."""
    raw = header_bytes(header)
    room = CHUNK
    parts: list[bytes | memoryview] = [LENGTH.pack(len(raw)), raw, bytes(-(LENGTH.size + len(raw)) % ALIGNMENT)]
    for piece in encoded.pieces:
        for start, end in _cuts(len(piece), room):
            parts.append(piece[start:end])
            room -= end - start
            if room == 0:
                yield b"".join(parts)
                parts, room = [], CHUNK
    if parts:
        yield b"".join(parts)


def _cuts(length: int, room: int) -> Iterator[tuple[int, int]]:
    """Yield (start, end) of the slices of a piece: the first as long as there is room, all others of CHUNK."""
    start = 0
    while start < length:
        end = min(length, start + (room if start == 0 else CHUNK))
        yield start, end
        start = end


Read = Callable[[], Awaitable[Any]]
Admit = Callable[[AnyHeader], Awaitable[None]]


async def receive(read: Read, admit: Admit) -> "tuple[AnyHeader, memoryview] | None":
    """Return the next message, None after the last. `admit` sees its header before room is made for its payload, and
    raises where it is not wanted. WireError for bytes that are no message."""
    first = await read()
    if first is EOF or first is None:
        return None
    header, at = _read_header(first)
    await admit(header)
    rest = memoryview(first)[at:]
    if len(rest) == header.num_bytes:
        return header, rest
    try:
        async with asyncio.timeout(STALL_SECONDS + header.num_bytes / SLOWEST_BYTES_PER_SECOND):
            payload = await _payload(read, header.num_bytes, rest)
    except TimeoutError:
        raise WireError("a message that does not go on") from None
    return None if payload is None else (header, payload)


async def _payload(read: Read, num_bytes: int, first: memoryview) -> memoryview | None:
    """Return a payload of several frames, None where the stream ends before it does."""
    payload = np.empty(num_bytes, np.uint8).data  # pages that are never written cost nothing
    filled = _fill(payload, 0, first)
    while filled < num_bytes:
        async with asyncio.timeout(STALL_SECONDS):
            frame = await read()
        if frame is EOF or frame is None:
            return None
        if len(frame) != min(CHUNK, num_bytes - filled):
            raise WireError("a frame of another length than its place has")
        filled = _fill(payload, filled, frame)
    return payload


def _read_header(frame: bytes) -> tuple[AnyHeader, int]:
    if len(frame) < LENGTH.size:
        raise WireError("a frame without a header")
    length = LENGTH.unpack_from(frame)[0]
    end = LENGTH.size + length
    if end > len(frame):
        raise WireError("a header that is longer than its frame")
    return decode_header(memoryview(frame)[LENGTH.size : end]), min(len(frame), end + -end % ALIGNMENT)


def _fill(payload: memoryview, filled: int, frame: "bytes | memoryview") -> int:
    """Write a frame into the payload; return how much of it is filled."""
    end = filled + len(frame)
    if end > len(payload):
        raise WireError("a payload of another length than its header says")
    payload[filled:end] = frame
    return end


class ByteBudget:
    """Bytes that may be held at a time; who comes when it is spent waits in line. One message always fits."""

    def __init__(self, most: int):
        self.most, self.held = most, 0
        self._line: list[tuple[int, asyncio.Future[None], Callable[[], bool]]] = []

    async def claim(self, num_bytes: int, is_urgent: Callable[[], bool] = lambda: False) -> None:
        """Wait for room. What is urgent, or becomes so, overdraws: others wait for what comes behind it."""
        place = asyncio.get_running_loop().create_future()
        self._line.append((num_bytes, place, is_urgent))
        self.let_through()
        try:
            await place
        except asyncio.CancelledError:
            if not place.cancelled():
                self.release(num_bytes)
            raise

    def release(self, num_bytes: int) -> None:
        self.held -= num_bytes
        self.let_through()

    def let_through(self) -> None:
        """Let in whom there is room for, in order, and who has become urgent."""
        line, self._line = self._line, []
        for waiting in line:
            num_bytes, place, is_urgent = waiting
            if place.cancelled():
                continue
            if (not self._line and self._fits(num_bytes)) or is_urgent():
                self.held += num_bytes
                place.set_result(None)
            else:
                self._line.append(waiting)

    def _fits(self, num_bytes: int) -> bool:
        return self.held == 0 or self.held + num_bytes <= self.most


def random_name() -> str:
    """Return a name that nobody can guess: of a process, of a challenge."""
    return os.urandom(16).hex()


def listed(names: Sequence[str]) -> str:
    """Return names for a message; a few of many."""
    return ", ".join(f"'{name}'" for name in names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
