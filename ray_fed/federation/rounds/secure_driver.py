"""Drives rounds under secure aggregation: like RoundDriver, but one sum comes out instead of updates.

The rules of a round stay as they are. Before silos are asked to train, those chosen exchange keys and shares through
the coordinator; after the round has closed, those that answered sign the list of their names and help to take the
masks off the sum. A silo that is missing from any of it is one that failed in this round, and no more.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from math import ceil

import numpy as np

from ray_fed.config import require
from ray_fed.errors import QuorumLost
from ray_fed.exact_sum import ExactWeightedSum
from ray_fed.federation.messages import NO_VALUES, Arrived, Artifact, MaskedUpdate, SummedUpdate, Update, Vector
from ray_fed.federation.rounds.driver import RoundDriver, now
from ray_fed.federation.rounds.machine import Event, Refused, Submit
from ray_fed.federation.strategies import FedAdagrad, FedAdam, FedAvg, FedAvgM, FedBN, FedProx, FedYogi, Strategy
from ray_fed.metrics import TRAIN_LOSS
from ray_fed.privacy.secure_sum.collector import SecureCollector
from ray_fed.privacy.secure_sum.member import FEWEST, Keys
from ray_fed.privacy.secure_sum.wire import as_bytes, of_bytes

SUMS_ONLY = (FedAvg, FedProx, FedBN, FedAvgM, FedAdagrad, FedAdam, FedYogi)
"""Strategies that take nothing but the weighted mean of a round's updates."""


def require_sums_only(strategy: Strategy, max_norm: float | None) -> None:
    """ConfigError for what needs to see single updates; a strategy of one's own says `sums_only = True`."""
    name = type(strategy).__name__
    fits = type(strategy) in SUMS_ONLY or getattr(strategy, "sums_only", False)
    known = ", ".join(cls.__name__ for cls in SUMS_ONLY)
    require(fits, f"secure aggregation shows the sum of the updates alone, {name} needs each of them; use {known}")
    reason = "the length of a masked update cannot be seen; let the silos' own policies bound it (max_update_norm)"
    require(max_norm is None, f"max_norm={max_norm} does not go with secure aggregation: {reason}")


def default_threshold(num_silos: int) -> int:
    """Return two thirds of the silos, at least 2: so many must answer, and so many together could unmask one."""
    return max(FEWEST, ceil(2 * num_silos / 3))


@dataclass(kw_only=True)
class SecureRoundDriver(RoundDriver):
    """Runs a session's rounds under secure aggregation."""

    threshold: int
    mean_loss: float = 0.0
    collector: SecureCollector | None = None
    opened_in: int = 0
    """The round in which keys were last exchanged."""
    protocol_bytes: int = field(default=0)
    """Bytes of keys and shares in the round, both directions; `num_bytes` has them, too."""

    def updates(self, server_round: int, vectors: Mapping[str, Vector], ranking: Sequence[str]) -> Iterator[Update]:
        """Run a round and yield one update, the sum. QuorumLost when too few silos are left to unmask it."""
        self.collector, self.protocol_bytes = None, 0
        length = len(next(iter(vectors.values())))
        for masked in super().updates(server_round, vectors, ranking):
            assert isinstance(masked, MaskedUpdate)
            assert self.collector is not None
            self.collector.add(masked.silo, masked.ring)
        yield self._summed(server_round, self._unmasked(server_round), length)

    def losses(self) -> dict[str, float]:
        """The mean loss of the round; those of single silos stay under the masks."""
        return {TRAIN_LOSS: self.mean_loss} if self.seen else {}

    def _submit(self, submits: Sequence[Submit], server_round: int, vectors: Mapping[str, Vector]) -> None:
        """Exchange keys among the silos chosen for the round. One that is sent the model again later has lost its keys
        and will say so."""
        if submits and self.opened_in != server_round:
            self.opened_in = server_round
            chosen = [submit.silo for submit in submits]
            self._exchange_keys(chosen, server_round, len(vectors[chosen[0]]))
        super()._submit(submits, server_round, vectors)

    def _exchange_keys(self, silos: Sequence[str], server_round: int, length: int) -> None:
        said = self._query("secure_keys", dict.fromkeys(silos, ()), server_round)
        given_keys = {silo: keys for silo, parts in said.items() if (keys := _keys_of(parts))}
        roster = {silo: keys for silo, keys in given_keys.items() if keys.are_of(silo, self.session, server_round)}
        self.collector = SecureCollector(self.session, server_round, length + 1, roster, ())
        self._require_enough(roster, "gave keys", server_round)
        told = as_bytes(
            {f"{part}.{silo}": value for silo, keys in roster.items() for part, value in vars(keys).items()}
        )
        shares = self._query("secure_shares", dict.fromkeys(roster, (told,)), server_round)
        self._require_enough(shares, "gave shares of their keys", server_round)
        for_each = {
            silo: (as_bytes({giver: given[silo] for giver, given in shares.items() if giver != silo}),)
            for silo in shares
        }
        self._query("secure_deliver", for_each, server_round)
        self.collector.partners = sorted(shares)

    def _checked(self, arrived: Arrived, server_round: int, vectors: Mapping[str, Vector]) -> Event:
        silo = arrived.silo
        if arrived.server_round == server_round:
            reason = self._objection(silo, arrived.update, server_round, len(vectors[silo]))
            if reason:
                return Refused(silo, server_round, reason)
        return arrived

    def _objection(self, silo: str, update: object, server_round: int, length: int) -> str:
        """Return why a masked update cannot be added; "" where it can. What it holds cannot be seen."""
        if type(update) is not MaskedUpdate:
            return "it came without masks"
        if (update.silo, update.session, update.server_round) != (silo, self.session, server_round):
            return "it answers another query"
        fits = update.ring.dtype == np.uint64 and update.ring.shape == (length + 2, 2)
        if not fits or self.collector is None or silo not in self.collector.partners:
            return "its masks are not those of the round"
        return "duplicate" if silo in self.collector.survivors else ""

    def _note(self, update: Update) -> None:
        masked: object = update
        assert isinstance(masked, MaskedUpdate)
        self.num_bytes += masked.num_bytes
        kept = Update(masked.silo, masked.session, masked.server_round, NO_VALUES, 1, masked.num_steps, 0.0)
        self.seen.append((now(), kept))

    def _unmasked(self, server_round: int) -> ExactWeightedSum:
        collector = self.collector
        assert collector is not None
        self._require_enough(collector.survivors, "sent masked updates", server_round)
        names = as_bytes(dict.fromkeys(collector.survivors, b""))
        said = self._query("secure_agree", dict.fromkeys(collector.survivors, (names,)), server_round)
        signatures = {silo: each for silo, parts in said.items() if (each := self._signed(silo, parts, server_round))}
        self._require_enough(signatures, "signed whose updates are in the sum", server_round)
        signed = as_bytes(signatures)
        shares = self._query("secure_unmask", dict.fromkeys(signatures, (signed,)), server_round)
        self._require_enough(shares, "helped to unmask the sum", server_round)
        try:
            return collector.sum(shares)
        except (ValueError, KeyError) as error:
            raise QuorumLost(server_round, f"the sum cannot be unmasked: {error}") from error

    def _signed(self, silo: str, parts: Mapping[str, bytes], server_round: int) -> bytes:
        """Return a silo's signature of the names, b"" where it is none: the others would refuse it, and the sum."""
        assert self.collector is not None
        signature, keys = parts.get("signature", b""), self.collector.roster[silo]
        fits = keys.have_signed(self.collector.survivors, signature, self.session, server_round)
        return signature if fits else b""

    def _require_enough(self, silos: Collection[str], did: str, server_round: int) -> None:
        if len(silos) < self.threshold:
            reason = f"{len(silos)} silos {did}, secure aggregation needs {self.threshold}"
            raise QuorumLost(server_round, reason)

    def _summed(self, server_round: int, total: ExactWeightedSum, length: int) -> SummedUpdate:
        high, low = total.parts()
        loss = ExactWeightedSum.of_parts(high[length:], low[length:], total.total_weight, total.num_summands)
        self.mean_loss = float(loss.mean()[0])
        whole = ExactWeightedSum.of_parts(high[:length], low[:length], total.total_weight, total.num_summands)
        steps = max(update.num_steps for _, update in self.seen)
        return SummedUpdate(
            "all", self.session, server_round, whole.mean(), total.total_weight, steps, self.mean_loss, total=whole
        )

    def _query(self, query: str, given: Mapping[str, tuple], server_round: int) -> dict[str, Mapping[str, bytes]]:
        """Ask silos for their part of a phase; return what those said that answered as they should."""
        asked = {silo: (self.session, server_round, *more) for silo, more in given.items()}
        answers = self.cohort.query(query, asked)
        for silo, answer in answers.items():
            for observer in self.observers:
                observer.message_received(silo, answer, query)
        out = sum(part.nbytes for more in given.values() for part in more)
        self.protocol_bytes += out + sum(answer.data.nbytes for answer in answers.values())
        self.num_bytes += out + sum(answer.data.nbytes for answer in answers.values())
        return {silo: said for silo, answer in answers.items() if (said := _told(answer)) is not None}


def _keys_of(parts: Mapping[str, bytes]) -> Keys | None:
    return Keys(**parts) if set(parts) == {field.name for field in fields(Keys)} else None


def _told(answer: Artifact) -> Mapping[str, bytes] | None:
    try:
        return of_bytes(answer.data)
    except ValueError:
        return None
