"""Keys that two silos share, and the masks that grow from them: X25519, HKDF-SHA256, ChaCha20 (all from cryptography).

Every key is made for one round of one session and one purpose; both are part of the derivation, so no keystream is
ever used twice.
"""

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from ray_fed.privacy.secure_sum import ring
from ray_fed.privacy.secure_sum.packed import PackedSum

KEY_BYTES = 32


def shared_key(own: bytes, other_public: bytes, purpose: bytes) -> bytes:
    """Return the 32-byte key that the holder of `own` shares with the holder of `other_public`. ValueError for a public
    key that is none: one of low order would make a key that everybody knows."""
    secret = X25519PrivateKey.from_private_bytes(own).exchange(X25519PublicKey.from_public_bytes(other_public))
    return HKDF(SHA256(), KEY_BYTES, salt=None, info=purpose).derive(secret)


def public_key(private: bytes) -> bytes:
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def mask_key(seed: bytes, purpose: bytes) -> bytes:
    """Return the key of the mask that grows from a silo's own seed."""
    return HKDF(SHA256(), KEY_BYTES, salt=None, info=purpose).derive(seed)


def add_mask(total: np.ndarray | PackedSum, key: bytes, is_added: bool) -> None:
    """Add the mask of `key` to ring elements uint64 [count, 2], or take it away; in place, a chunk at a time. Of a
    packed sum the mask is as long as its content."""
    stream = Cipher(ChaCha20(key, bytes(16)), mode=None).encryptor()
    if isinstance(total, PackedSum):
        total.add(np.frombuffer(stream.update(bytes(total.num_bytes)), np.uint8), is_added)
        return
    zeros = bytes(8 * ring.WORDS * ring.CHUNK)
    apply = ring.add if is_added else ring.subtract
    for start in range(0, len(total), ring.CHUNK):
        part = total[start : start + ring.CHUNK]
        mask = np.frombuffer(stream.update(zeros[: part.nbytes]), "<u8").reshape(part.shape)
        apply(part, mask)
