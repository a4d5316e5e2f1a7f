"""Two shares on their way from one silo to another: encrypted for it, signed, and with the hash of each.

    signature       of all that follows, with sender, receiver, session and round
    commitments     SHA-256 of the share of the mask key, and of that of the seed
    ciphertext      both shares, for the receiver alone

The signature says who sent what: shares that were changed on their way have none, and shares that do not open, or are
not those that their hashes name, are their sender's own doing. By the hashes the coordinator knows a wrong share from
a right one before it takes a mask off with it. A share is uniform among 2^521 values: its hash says nothing of it.
"""

import hashlib
from dataclasses import dataclass

from ray_fed.privacy.secure_sum.shamir import SHARE_BYTES
from ray_fed.privacy.signing import SigningKey, is_signed

SIGNATURE_BYTES, HASH_BYTES, TAG_BYTES = 64, 32, 16
SEALED_BYTES = SIGNATURE_BYTES + 2 * HASH_BYTES + 2 * SHARE_BYTES + TAG_BYTES
OF_MASK, OF_SEED = 0, 1
"""Place of a share among the two."""


@dataclass(frozen=True)
class SealedShares:
    """What stands in the `SEALED_BYTES` that travel."""

    signature: bytes
    commitments: tuple[bytes, bytes]
    """Of the share of the mask key and of that of the seed."""
    ciphertext: bytes

    @classmethod
    def of_bytes(cls, content: bytes) -> "SealedShares":
        """ValueError for another number of bytes."""
        if len(content) != SEALED_BYTES:
            raise ValueError(f"sealed shares have {SEALED_BYTES} bytes, not {len(content)}")
        first, second = SIGNATURE_BYTES + HASH_BYTES, SIGNATURE_BYTES + 2 * HASH_BYTES
        hashes = content[SIGNATURE_BYTES:first], content[first:second]
        return cls(content[:SIGNATURE_BYTES], hashes, content[second:])

    @classmethod
    def signed(cls, signer: SigningKey, way: bytes, shares: bytes, ciphertext: bytes) -> "SealedShares":
        """Seal `shares`, those of mask key and seed one after the other. way: between whom, in which round."""
        commitments = share_digest(shares[:SHARE_BYTES]), share_digest(shares[SHARE_BYTES:])
        signature = bytes.fromhex(signer.sign(way + b"".join(commitments) + ciphertext))
        return cls(signature, commitments, ciphertext)

    def to_bytes(self) -> bytes:
        return self.signature + b"".join(self.commitments) + self.ciphertext

    def are_by(self, signer: bytes, way: bytes) -> bool:
        """Tell whether the holder of a public key signed them for this way."""
        return is_signed(way + b"".join(self.commitments) + self.ciphertext, self.signature.hex(), signer.hex())

    def name(self, share: bytes, which: int) -> bool:
        """Tell whether a share is the one that was dealt; `which`: OF_MASK or OF_SEED."""
        return share_digest(share) == self.commitments[which]

    def name_both(self, shares: bytes) -> bool:
        return self.name(shares[:SHARE_BYTES], OF_MASK) and self.name(shares[SHARE_BYTES:], OF_SEED)


def share_digest(share: bytes) -> bytes:
    return hashlib.sha256(share).digest()
