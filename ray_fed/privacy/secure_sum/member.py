"""A silo's part in secure aggregation (Bonawitz et al. 2017, "Practical Secure Aggregation", protocol of Figure 4).

    phase   the silo gives                                    the silo gets
    0       public keys c, s, signed                          everybody's public keys (U_1)
    1       shares of s and of its seed b, sealed             the shares meant for it (U_2)
    1a      whose shares do not open, signed, if any          the list without those that cannot show theirs
    2       y_u = x_u + PRG(b_u) + sum_{v>u} PRG(s_uv) - sum_{v<u} PRG(s_uv)
    3       its signature of the names of who answered (U_3)  the signatures of at least t silos
    4       of who answered: its share of b; of who did not: its share of s

Threat model: a coordinator that is curious, alone or with some of the silos. It learns the sum of the silos that
answered, with their number and names, and nothing more of a single update than the sum says. With two silos the sum
gives each the other's update, and with few silos little hides in it.

    the coordinator          with fewer than                     because
    follows the protocol     `threshold` silos                   so many shares give no key
    lies about who answered  2 `threshold` - n silos             two lists cannot both have `threshold` signatures
    invents silos            as before, if `partners` are named  a key that the owner does not know is refused

An owner who names no partners takes any key that is signed by its own signer: enough against mistakes, not against a
coordinator that plays silos. What nothing here protects against: silos that send rubbish, which nobody sees in a sum;
and a coordinator that leaves a silo out of one of two rounds and takes the difference of the sums.

Shares are signed by who deals them, with a hash of each (sealed.py). A silo that cannot open one says so, signed; who
dealt it shows those two shares to the coordinator, or is left out of the round. An honest silo shows shares only to one
that has them: nobody else can sign the complaint, and what the silo sent opens for an honest receiver.
What a silo enforces itself: at most one masked update per key, one list of names per round, a `threshold` above half of
the silos, so many signatures of the very list it signed, and never both shares of one silo.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from ray_fed.errors import SiloFailed, Trouble
from ray_fed.privacy.secure_sum import ring, shamir
from ray_fed.privacy.secure_sum.masks import KEY_BYTES, add_mask, mask_key, public_key, shared_key
from ray_fed.privacy.secure_sum.packed import PackedForm, PackedSum
from ray_fed.privacy.secure_sum.sealed import SealedShares
from ray_fed.privacy.signing import SigningKey, is_signed

FEWEST = 2
NONCE = bytes(12)
"""A key encrypts one message only: it belongs to one round, one sender and one receiver."""


@dataclass(frozen=True)
class Keys:
    """What a silo tells all others in phase 0."""

    channel: bytes
    """c: for the shares on their way."""
    mask: bytes
    """s: for the masks."""
    signer: bytes
    """The silo's lasting public key, Ed25519: the one that signs its ledger."""
    signature: bytes
    """Of the two keys, with name, session and round."""

    @classmethod
    def of_parts(cls, parts: Mapping[str, bytes]) -> "Keys":
        """ValueError for other parts than keys have."""
        if set(parts) != {each.name for each in fields(cls)}:
            raise ValueError(f"keys have the parts {', '.join(each.name for each in fields(cls))}")
        return cls(**parts)

    @property
    def are_usable(self) -> bool:
        """Whether a key can be shared with both; not where one is of another length, or of low order."""
        try:
            for key in (self.channel, self.mask):
                shared_key(bytes(KEY_BYTES), key, b"")
        except ValueError:
            return False
        return self.channel != self.mask

    def are_of(self, silo: str, session: str, server_round: int) -> bool:
        """Tell whether the holder of `signer` made them for this round in the name of `silo`."""
        signed = _signed_keys(silo, session, server_round, self.channel, self.mask)
        return is_signed(signed, self.signature.hex(), self.signer.hex())

    def have_signed(self, names: Sequence[str], signature: bytes, session: str, server_round: int) -> bool:
        """Tell whether their holder signed this list of names for this round."""
        return is_signed(_signed_names(names, session, server_round), signature.hex(), self.signer.hex())

    def have_complained(self, giver: str, sealed: bytes, signature: bytes, session: str, server_round: int) -> bool:
        """Tell whether their holder signed that these shares of another silo do not open."""
        complaint = _complaint(session, server_round, giver, sealed)
        return is_signed(complaint, signature.hex(), self.signer.hex())


@dataclass
class SecureMember:
    """One silo in one round. Call `keys`, `shares`, `deliver`, `masked`, `agree`, `unmask`, in this order."""

    silo: str
    session: str
    server_round: int
    threshold: int
    signer: SigningKey = field(default_factory=SigningKey.passing)
    partners: Mapping[str, str] = field(default_factory=dict)
    """Silo -> its public key, as this silo's owner knows it; where any is named, no other silo is masked with."""
    roster: dict[str, Keys] = field(default_factory=dict)
    inbox: dict[str, bytes] = field(default_factory=dict)
    """Silo that this one masks with, and itself -> its two shares; b"" where they do not open."""
    has_masked: bool = False
    agreed: tuple[str, ...] = ()
    """The names it signed."""
    has_unmasked: bool = False

    def __post_init__(self) -> None:
        self._channel, self._mask, self._seed = (os.urandom(KEY_BYTES) for _ in range(3))
        self._dealt: dict[str, tuple[bytes, bytes]] = {}
        """Silo -> (sealed shares, the shares) as this silo dealt them."""
        self._require(self.threshold >= FEWEST, f"a threshold of {self.threshold} would show single updates")

    def keys(self) -> Keys:
        channel, mask = public_key(self._channel), public_key(self._mask)
        signed = _signed_keys(self.silo, self.session, self.server_round, channel, mask)
        return Keys(channel, mask, bytes.fromhex(self.signer.public), bytes.fromhex(self.signer.sign(signed)))

    def shares(self, roster: Mapping[str, Keys]) -> dict[str, bytes]:
        """Return sealed shares of this silo's mask key and seed: for every silo, itself among them."""
        self._require(not self.roster, "it has given its shares in this round already")
        self._require(roster.get(self.silo) == self.keys(), "its own keys are not among the public keys")
        self._require(len(roster) >= self.threshold, f"{len(roster)} silos are fewer than {self.threshold}")
        few = (
            f"a threshold of {self.threshold} among {len(roster)} silos could show two sums; more than half must answer"
        )
        self._require(2 * self.threshold > len(roster), few)
        self._check_signers(roster)
        for name, keys in roster.items():
            self._require(keys.are_usable, f"a public key of silo '{name}' is none to share a key with")
        distinct = {key for keys in roster.values() for key in (keys.channel, keys.mask)}
        self._require(len(distinct) == 2 * len(roster), "a public key is there twice")
        self.roster = dict(roster)
        of_mask = shamir.split(self._mask, len(roster), self.threshold)
        of_seed = shamir.split(self._seed, len(roster), self.threshold)
        for name, mask, seed in zip(sorted(roster), of_mask, of_seed, strict=True):
            ciphertext = self._cipher(name, self.silo, name).encrypt(NONCE, mask + seed, None)
            sealed = SealedShares.signed(self.signer, self._way(self.silo, name), mask + seed, ciphertext)
            self._dealt[name] = sealed.to_bytes(), mask + seed
        self.inbox[self.silo] = self._dealt[self.silo][1]
        return {name: sealed for name, (sealed, _) in self._dealt.items()}

    def _check_signers(self, roster: Mapping[str, Keys]) -> None:
        for name, keys in roster.items():
            genuine = keys.are_of(name, self.session, self.server_round)
            self._require(genuine, f"the keys of silo '{name}' are not signed by it for this round")
            if self.partners and name != self.silo:
                known = self.partners.get(name) == keys.signer.hex()
                self._require(known, f"silo '{name}' has not the key that 'partners' in this owner's site.yaml names")

    def deliver(self, sealed: Mapping[str, bytes]) -> dict[str, bytes]:
        """Take the others' shares; those who sent some are who this silo masks with. Return complaints: silo whose
        shares do not open -> this silo's signature that they do not. Until it has masked it can be told a shorter list.
        """
        self._require(bool(self.roster) and not self.has_masked, "shares come after its own and before its update")
        known = set(self.roster) if len(self.inbox) == 1 else set(self.inbox)
        self._require(set(sealed) <= known - {self.silo}, "shares of silos that are not in the roster")
        number = len(sealed) + 1
        self._require(number >= self.threshold, f"{number} silos are fewer than {self.threshold}")
        opened = {name: self._opened(name, content) for name, content in sealed.items()}
        self.inbox = {self.silo: self.inbox[self.silo], **opened}
        return {name: self._complaint(name, sealed[name]) for name, shares in opened.items() if not shares}

    def show(self, complaints: Mapping[str, bytes]) -> dict[str, bytes]:
        """Return the two shares of each silo that says they do not open; of none other, as those are not the
        coordinator's to know. `complaints`: silo -> its signature."""
        self._require(set(complaints) <= set(self._dealt) - {self.silo}, "a silo complains that has no shares of it")
        for name, signature in complaints.items():
            sealed, keys = self._dealt[name][0], self.roster[name]
            genuine = keys.have_complained(self.silo, sealed, signature, self.session, self.server_round)
            self._require(genuine, f"silo '{name}' did not complain of its shares")
        return {name: self._dealt[name][1] for name in complaints}

    def masked(self, vector: np.ndarray, weight: int) -> np.ndarray:
        """Return weight * vector and, last, the weight, masked: uint64 [len(vector) + 1, 2]."""
        return self.masked_ring(ring.encoded(vector, weight), weight)

    def masked_ring(self, values: np.ndarray, weight: int) -> np.ndarray:
        """Return ring elements uint64 [count, 2] and, last, the weight, masked."""
        total = np.concatenate([values, ring.whole(weight)])
        self._mask_it(total)
        return total

    def masked_sums(self, form: PackedForm, numbers: np.ndarray, beside: np.ndarray) -> np.ndarray:
        """Return whole numbers, int64 [form.num_values], and what is beside them, float32, masked with a weight of 1:
        uint8, as `PackedSum` has them. ValueError where a number does not fit its form."""
        total = PackedSum.of(form, numbers, np.concatenate([ring.encoded(beside, 1), ring.whole(1)]))
        self._mask_it(total)
        return total.content()

    def _mask_it(self, total: np.ndarray | PackedSum) -> None:
        self._require(len(self.inbox) > 1 and not self.has_masked, "it has no unused masks for this round")
        self.has_masked = True
        add_mask(total, mask_key(self._seed, self._purpose("own")), is_added=True)
        for name in self.inbox:
            if name != self.silo:
                add_mask(total, shared_key(self._mask, self.roster[name].mask, self._purpose("pair")), self.silo < name)

    def agree(self, survivors: Sequence[str]) -> bytes:
        """Return its signature of the names of who answered; it signs one list in a round."""
        self._require(self.has_masked and not self.agreed, "it signs one list of names, after its update")
        distinct = len(set(survivors)) == len(survivors) and set(survivors) <= set(self.inbox)
        self._require(distinct, "the names are not those it masked for")
        self._require(self.silo in survivors, "its own update is called dropped")
        self._require(len(survivors) >= self.threshold, f"{len(survivors)} updates are fewer than {self.threshold}")
        self.agreed = tuple(sorted(survivors))
        return bytes.fromhex(self.signer.sign(_signed_names(self.agreed, self.session, self.server_round)))

    def unmask(self, signatures: Mapping[str, bytes]) -> dict[str, bytes]:
        """Return shares by name: of the seeds of those whose names it signed, and of the mask keys of all others.
        `signatures`: silo -> what its `agree` returned."""
        self._require(bool(self.agreed) and not self.has_unmasked, "it unmasks once, after it has signed the names")
        self._check_agreement(signatures)
        self.has_unmasked = True
        survivors, dropped = self.agreed, sorted(set(self.inbox) - set(self.agreed))
        size, opened = shamir.SHARE_BYTES, {name: shares for name, shares in self.inbox.items() if shares}
        of_seeds = {name: opened[name][size:] for name in survivors if name in opened}
        return of_seeds | {name: opened[name][:size] for name in dropped if name in opened}

    def _check_agreement(self, signatures: Mapping[str, bytes]) -> None:
        self._require(set(signatures) <= set(self.agreed), "a silo signed that is not among the names")
        number = len(signatures)
        self._require(number >= self.threshold, f"{number} signatures of the names are fewer than {self.threshold}")
        for name, signature in signatures.items():
            same = self.roster[name].have_signed(self.agreed, signature, self.session, self.server_round)
            self._require(same, f"silo '{name}' did not sign the names that this silo signed: it was told others")

    def _opened(self, name: str, content: bytes) -> bytes:
        """Return the two shares that a silo sealed for this one, b"" where they do not open. SiloFailed where that silo
        did not send this: somebody changed it on its way."""
        sealed = sealed_by(name, self.silo, content, self.roster[name], self.session, self.server_round)
        if sealed is None:
            raise self._failure(f"the shares of silo '{name}' are not what that silo sent")
        try:
            shares = self._cipher(name, name, self.silo).decrypt(NONCE, sealed.ciphertext, None)
        except InvalidTag:
            return b""
        return shares if sealed.name_both(shares) else b""

    def _complaint(self, name: str, content: bytes) -> bytes:
        return bytes.fromhex(self.signer.sign(_complaint(self.session, self.server_round, name, content)))

    def _way(self, sender: str, receiver: str) -> bytes:
        return self._purpose("shares", sender, receiver)

    def _cipher(self, other: str, sender: str, receiver: str) -> ChaCha20Poly1305:
        purpose = self._purpose("channel", sender, receiver)
        return ChaCha20Poly1305(shared_key(self._channel, self.roster[other].channel, purpose))

    def _purpose(self, *what: str) -> bytes:
        return purpose(self.session, self.server_round, *what)

    def _require(self, condition: bool, reason: str) -> None:
        if not condition:
            raise self._failure(reason)

    def _failure(self, reason: str) -> SiloFailed:
        doing = f"secure aggregation in round {self.server_round}"
        return SiloFailed(self.silo, doing, reason, failure=Trouble.MASKS_FAILED)


def purpose(session: str, server_round: int, *what: str) -> bytes:
    """Return what a key is for, as one text that no other purpose has."""
    return repr(("ray-fed secure sum 1", session, server_round, *what)).encode()


def sealed_by(
    sender: str, receiver: str, content: bytes, keys: Keys, session: str, server_round: int
) -> SealedShares | None:
    """Return the shares that a silo sealed for another one in this round; None where it did not."""
    try:
        sealed = SealedShares.of_bytes(content)
    except ValueError:
        return None
    way = purpose(session, server_round, "shares", sender, receiver)
    return sealed if sealed.are_by(keys.signer, way) else None


def _complaint(session: str, server_round: int, sender: str, content: bytes) -> bytes:
    return purpose(session, server_round, "do not open", sender, content.hex())


def _signed_keys(silo: str, session: str, server_round: int, channel: bytes, mask: bytes) -> bytes:
    return purpose(session, server_round, "keys", silo, channel.hex(), mask.hex())


def _signed_names(names: Sequence[str], session: str, server_round: int) -> bytes:
    return purpose(session, server_round, "survivors", *sorted(names))
