"""A private certificate authority, and a certificate for each machine of a cluster.

Ray's processes are servers and clients at once and show each other certificates (mutual TLS), so one certificate serves
both ways. X.509 v3 as in RFC 5280; keys on the curve P-256.

    FOLDER/ca.crt             the authority's certificate: everybody has it
    FOLDER/ca.key             the authority's key: stays where it was made; who has it can make further machines
    FOLDER/NODE/              one machine's own folder, to be brought there as ~/ray-fed/tls
        ca.crt  node.crt  node.key
"""

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeAlias

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from ray_fed.errors import ConfigError
from ray_fed.reporting.writing import write_atomically

Key: TypeAlias = ec.EllipticCurvePrivateKey

LOOPBACK = ("localhost", "127.0.0.1", "::1")
"""Ray's processes on one machine also speak over loopback."""
CLOCK_TOLERANCE = timedelta(hours=1)
"""A certificate counts from an hour ago, for machines whose clock is a little behind."""
AUTHORITY_DAYS = 3650
PRIVATE = 0o600


@dataclass(frozen=True)
class Node:
    """A machine that is to have a certificate."""

    name: str
    addresses: tuple[str, ...]
    """IP addresses and host names by which others reach it."""

    @classmethod
    def parse(cls, text: str) -> "Node":
        """Read NAME=ADDRESS[,ADDRESS...]; ConfigError says what is wrong with it."""
        name, equals, rest = text.partition("=")
        addresses = tuple(part.strip() for part in rest.split(",") if part.strip())
        if not equals or not addresses or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
            raise ConfigError(f"node {text!r} must be NAME=ADDRESS[,ADDRESS...], e.g. north=192.0.2.21")
        for address in addresses:
            _alternative_name(address)
        return cls(name, addresses)


@dataclass(frozen=True)
class Authority:
    """Who signs: its certificate and its key."""

    certificate: x509.Certificate
    key: Key


def make_authority(days: int = AUTHORITY_DAYS, now: datetime | None = None) -> Authority:
    """Return a new authority that signs machines' certificates and nothing else."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = _name("ray-fed private authority")
    builder = _builder(name, name, key, days, now or datetime.now(UTC))
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(_key_usage(signs_certificates=True), critical=True)
    return Authority(builder.sign(key, hashes.SHA256()), key)


def issue(authority: Authority, node: Node, days: int, now: datetime | None = None) -> tuple[x509.Certificate, Key]:
    """Return a certificate for a machine, good for its addresses and for loopback, and its new key.

    It ends no later than the authority's own.
    """
    now, key = now or datetime.now(UTC), ec.generate_private_key(ec.SECP256R1())
    names = x509.SubjectAlternativeName(
        [_alternative_name(address) for address in dict.fromkeys((*node.addresses, *LOOPBACK))]
    )
    days = min(days, (authority.certificate.not_valid_after_utc - now).days)
    builder = _builder(_name(node.name), authority.certificate.subject, key, days, now)
    builder = builder.add_extension(names, critical=False)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(_key_usage(signs_certificates=False), critical=True)
    usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
    builder = builder.add_extension(usage, critical=False)
    issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key())
    return builder.add_extension(issuer, critical=False).sign(authority.key, hashes.SHA256()), key


def write_certificates(
    folder: Path, nodes: Sequence[Node], days: int, renew: bool = False, authority_folder: Path | None = None
) -> list[Path]:
    """Write a folder per node below `folder`, and the authority into `authority_folder` unless it is there already.

    Returns the nodes' folders. ConfigError, before anything is written, for a name that comes twice or for a node
    that has a certificate already and is not to be renewed.
    """
    names = [node.name for node in nodes]
    for node in nodes:
        if names.count(node.name) > 1:
            raise ConfigError(f"node {node.name!r} is given twice; list its addresses at once: NAME=ADDRESS,ADDRESS")
        if (folder / node.name).exists() and not renew:
            raise ConfigError(f"{folder / node.name} is there already; --renew replaces its certificate and key")
    authority = _standing_authority(authority_folder or folder)
    return [_write_node(folder / node.name, authority, node, days) for node in nodes]


def _standing_authority(folder: Path) -> Authority:
    """Read the authority of a folder, or make it."""
    if (folder / "ca.crt").exists() or (folder / "ca.key").exists():
        return read_authority(folder)
    authority = make_authority()
    write_private(folder / "ca.key", key_bytes(authority.key))
    write_atomically(folder / "ca.crt", certificate_bytes(authority.certificate))
    return authority


def read_authority(folder: Path) -> Authority:
    """Read ca.crt and ca.key; ConfigError when they are missing, damaged, or not of each other."""
    try:
        certificate = x509.load_pem_x509_certificate((folder / "ca.crt").read_bytes())
        key = serialization.load_pem_private_key((folder / "ca.key").read_bytes(), password=None)
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(
            f"{folder}: no usable authority ({type(error).__name__}); it needs ca.crt and ca.key"
        ) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
        raise ConfigError(f"{folder}: ca.key is not the key of ca.crt; restore the pair or make a new authority")
    return Authority(certificate, key)


def _write_node(folder: Path, authority: Authority, node: Node, days: int) -> Path:
    certificate, key = issue(authority, node, days)
    write_private(folder / "node.key", key_bytes(key))
    write_atomically(folder / "node.crt", certificate_bytes(certificate))
    write_atomically(folder / "ca.crt", certificate_bytes(authority.certificate))
    return folder


def write_private(path: Path, content: bytes) -> Path:
    """Write a file that nobody but its owner may read, at no moment of its life."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.touch(mode=PRIVATE, exist_ok=False)
    path.write_bytes(content)
    return path


def certificate_bytes(certificate: x509.Certificate) -> bytes:
    """Return a certificate as PEM."""
    return certificate.public_bytes(serialization.Encoding.PEM)


def key_bytes(key: Key) -> bytes:
    """Return a private key as PEM, not encrypted."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _alternative_name(address: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(address))
    except ValueError:
        if not re.fullmatch(r"[A-Za-z0-9*]([A-Za-z0-9.-]*[A-Za-z0-9])?", address) or address.replace(".", "").isdigit():
            raise ConfigError(f"address {address!r} is neither an IP address nor a host name") from None
        return x509.DNSName(address)


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _builder(subject: x509.Name, issuer: x509.Name, key: Key, days: int, now: datetime) -> x509.CertificateBuilder:
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key.public_key())
    builder = builder.serial_number(x509.random_serial_number())
    builder = builder.not_valid_before(now - CLOCK_TOLERANCE).not_valid_after(now + timedelta(days=days))
    return builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)


def _key_usage(signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates, content_commitment=False, key_encipherment=False,
        data_encipherment=False, key_agreement=not signs_certificates, key_cert_sign=signs_certificates,
        crl_sign=signs_certificates, encipher_only=False, decipher_only=False,
    )  # fmt: skip


def days_left(path: Path, now: datetime | None = None) -> float:
    """Return the days until a certificate ends, negative when it has; ConfigError when it cannot be read."""
    try:
        certificate = x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} is not a readable certificate ({type(error).__name__}: {error})") from error
    return (certificate.not_valid_after_utc - (now or datetime.now(UTC))) / timedelta(days=1)
