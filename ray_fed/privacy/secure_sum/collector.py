"""The coordinator's part in secure aggregation: it adds masked updates, then takes the masks off the sum."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ray_fed.exact_sum import ExactWeightedSum
from ray_fed.privacy.secure_sum import ring, shamir
from ray_fed.privacy.secure_sum.masks import add_mask, mask_key, public_key, shared_key
from ray_fed.privacy.secure_sum.member import Keys, purpose


@dataclass
class SecureCollector:
    """One round. Memory: one ring vector, 16 bytes per value, whatever the number of silos."""

    session: str
    server_round: int
    num_values: int
    """Length of the vector that is summed."""
    roster: Mapping[str, Keys]
    """U_1: the public keys handed around."""
    partners: Sequence[str]
    """U_2: the silos whose shares were handed around; all masks are between them."""
    survivors: list[str] = field(default_factory=list)
    """U_3: the silos whose masked update is in the sum."""

    def __post_init__(self) -> None:
        self.total = np.zeros((self.num_values + 1, ring.WORDS), np.uint64)

    def add(self, silo: str, masked: np.ndarray) -> None:
        """Add a masked update, uint64 [num_values + 1, 2]."""
        ring.add(self.total, masked)
        self.survivors.append(silo)

    @property
    def dropped(self) -> list[str]:
        return sorted(set(self.partners) - set(self.survivors))

    def sum(self, shares: Mapping[str, Mapping[str, bytes]]) -> ExactWeightedSum:
        """Return the exact sum of masked vectors; see `unmasked`."""
        total, weight = self.unmasked(shares)
        return ring.decoded(total, weight, len(self.survivors))

    def unmasked(self, shares: Mapping[str, Mapping[str, bytes]]) -> tuple[np.ndarray, int]:
        """Return the sum of ring elements, uint64 [num_values, 2], and of weights. `shares`: silo that answered -> silo
        -> its share. ValueError when shares do not give the keys that the silos announced: the sum would be noise."""
        number = {name: index for index, name in enumerate(sorted(self.roster), 1)}
        for name in self.survivors:
            seed = shamir.combine({number[giver]: given[name] for giver, given in shares.items()})
            add_mask(self.total, mask_key(seed, purpose(self.session, self.server_round, "own")), is_added=False)
        for name in self.dropped:
            self._drop(name, shamir.combine({number[giver]: given[name] for giver, given in shares.items()}))
        weight, overflow = (int(word) for word in self.total[-1])
        if overflow or not 0 < weight < 2**60:
            raise ValueError("the unmasked weight is no number of examples: a silo's mask does not fit its shares")
        return self.total[:-1], weight

    def _drop(self, name: str, private: bytes) -> None:
        """Take away the masks that the survivors share with a silo that dropped out."""
        if public_key(private) != self.roster[name].mask:
            raise ValueError(f"the shares of silo '{name}' do not give its key")
        about = purpose(self.session, self.server_round, "pair")
        for other in self.survivors:
            key = shared_key(private, self.roster[other].mask, about)
            add_mask(self.total, key, is_added=not other < name)
