"""A silo's Ed25519 key (RFC 8032), on its own disk, readable by its owner alone."""

import os
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from ray_fed.errors import DataError


class SigningKey:
    """Signs; `public` (64 hexadecimal digits) is what others verify with."""

    def __init__(self, private: Ed25519PrivateKey):
        self._private = private
        self.public = private.public_key().public_bytes_raw().hex()

    @classmethod
    def at(cls, path: Path) -> "SigningKey":
        """Return the key at `path`, made at the first call with mode 0600; DataError for a file that is no such key or
        that others can read."""
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not path.exists():
            _make(path)
        if path.stat().st_mode & 0o077:
            raise DataError(f"{path}: others can read this key; chmod 600 it, or remove it to have a new one made")
        content = path.read_bytes()
        if len(content) != 32:
            raise DataError(f"{path} holds {len(content)} bytes, a key has 32; remove it to have a new one made")
        return cls(Ed25519PrivateKey.from_private_bytes(content))

    @classmethod
    def passing(cls) -> "SigningKey":
        """Return a new key that stands on no disk: it is gone with the process."""
        return cls(Ed25519PrivateKey.generate())

    def sign(self, message: bytes) -> str:
        """Return the signature, 128 hexadecimal digits."""
        return self._private.sign(message).hex()


def is_signed(message: bytes, signature: str, public: str) -> bool:
    """Tell whether the signature of a message is by the holder of the key `public`."""
    if signature != signature.lower():
        return False  # the same number in other letters would be another line
    try:
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(public)).verify(bytes.fromhex(signature), message)
    except (InvalidSignature, ValueError):
        return False
    return True


def _make(path: Path) -> None:
    """Write a new key under another name and link it: a key of this name is whole, and of two processes one wins."""
    draft = path.with_name(f".{path.name}.{os.getpid()}.part")
    handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "wb") as file:
        file.write(Ed25519PrivateKey.generate().private_bytes_raw())
        file.flush()
        os.fsync(file.fileno())
    try:
        os.link(draft, path)
    except FileExistsError:
        pass  # another process was faster: its key counts
    finally:
        draft.unlink()
