"""The coordinator's part in secure aggregation: it adds masked updates, then takes the masks off the sum.

It knows by their hashes which shares are those that were dealt (sealed.py): with wrong ones it takes no mask off.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ray_fed.exact_sum import ExactWeightedSum
from ray_fed.privacy.secure_sum import ring, shamir
from ray_fed.privacy.secure_sum.masks import add_mask, mask_key, public_key, shared_key
from ray_fed.privacy.secure_sum.member import Keys, purpose
from ray_fed.privacy.secure_sum.packed import PackedForm, PackedSum
from ray_fed.privacy.secure_sum.sealed import OF_MASK, OF_SEED, SealedShares
from ray_fed.privacy.secure_sum.shamir import SHARE_BYTES


@dataclass
class SecureCollector:
    """One round. Memory: one ring vector, 16 bytes per value (8 of a packed sum), whatever the number of silos."""

    session: str
    server_round: int
    num_values: int
    """Length of the vector that is summed; of a packed sum, of what is beside its numbers."""
    roster: Mapping[str, Keys]
    """U_1: the public keys handed around."""
    partners: Sequence[str]
    """U_2: the silos whose shares were handed around; all masks are between them."""
    sealed: Mapping[str, Mapping[str, SealedShares]] = field(default_factory=dict)
    """Silo -> receiver -> the shares it dealt, as they travelled."""
    shown: dict[str, dict[str, bytes]] = field(default_factory=dict)
    """Silo -> receiver that could not open its shares -> both of them, as the silo showed them."""
    form: PackedForm | None = None
    """Of a packed sum."""
    survivors: list[str] = field(default_factory=list)
    """U_3: the silos whose masked update is in the sum."""

    def __post_init__(self) -> None:
        wide = np.zeros((self.num_values + 1, ring.WORDS), np.uint64)
        self.total = wide if self.form is None else PackedSum(self.form, len(wide))

    def add(self, silo: str, masked: np.ndarray) -> None:
        """Add a masked update: uint64 [num_values + 1, 2], or the content of a packed sum, uint8."""
        if isinstance(self.total, PackedSum):
            self.total.add(masked)
        else:
            ring.add(self.total, masked)
        self.survivors.append(silo)

    @property
    def dropped(self) -> list[str]:
        return sorted(set(self.partners) - set(self.survivors))

    def is_genuine(self, name: str, giver: str, share: bytes) -> bool:
        """Tell whether a share of the secret that is wanted of silo `name` is the one it dealt to `giver`."""
        return self.sealed[name][giver].name(share, self._wanted(name))

    def sum(self, shares: Mapping[str, Mapping[str, bytes]]) -> ExactWeightedSum:
        """Return the exact sum. `shares`: silo that answered -> silo -> its share. ValueError when those that are as
        they were dealt are too few, or do not give the keys that the silos announced: the sum would be noise."""
        for name in self.survivors:
            seed = self._secret(name, shares)
            add_mask(self.total, mask_key(seed, purpose(self.session, self.server_round, "own")), is_added=False)
        for name in self.dropped:
            self._drop(name, self._secret(name, shares))
        total = self.total
        wide = total.beside if isinstance(total, PackedSum) else total
        weight, overflow = (int(word) for word in wide[-1])
        if overflow or not 0 < weight < 2**60:
            raise ValueError("the unmasked weight is no number of examples: a silo's mask does not fit its shares")
        if isinstance(total, PackedSum):
            return total.decoded(weight, len(self.survivors))
        return ring.decoded(wide[:-1], weight, len(self.survivors))

    def _wanted(self, name: str) -> int:
        return OF_SEED if name in self.survivors else OF_MASK

    def _secret(self, name: str, shares: Mapping[str, Mapping[str, bytes]]) -> bytes:
        """Put the secret of a silo together from the shares that are those it dealt."""
        number = {each: index for index, each in enumerate(sorted(self.roster), 1)}
        start = SHARE_BYTES * self._wanted(name)
        shown = {giver: both[start : start + SHARE_BYTES] for giver, both in self.shown.get(name, {}).items()}
        given = shown | {giver: theirs[name] for giver, theirs in shares.items() if name in theirs}
        genuine = {number[giver]: share for giver, share in given.items() if self.is_genuine(name, giver, share)}
        try:
            return shamir.combine(genuine)
        except ValueError as error:
            raise ValueError(f"silo '{name}': {error}") from error

    def _drop(self, name: str, private: bytes) -> None:
        """Take away the masks that the survivors share with a silo that dropped out."""
        if public_key(private) != self.roster[name].mask:
            raise ValueError(f"the shares of silo '{name}' do not give its key")
        about = purpose(self.session, self.server_round, "pair")
        for other in self.survivors:
            key = shared_key(private, self.roster[other].mask, about)
            add_mask(self.total, key, is_added=not other < name)
