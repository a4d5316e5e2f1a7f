"""Drives rounds under secure aggregation: like RoundDriver, but one sum comes out instead of updates.

The rules of a round stay as they are. Before silos are asked to train, those chosen exchange keys and shares through
the coordinator; after the round has closed, those that answered sign the list of their names and help to take the
masks off the sum. A silo that is missing from any of it, or whose part in it is not what it should be, is one that
failed in this round, and no more: `objections` names it.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil, inf

import numpy as np

from ray_fed.config import require
from ray_fed.errors import QuorumLost
from ray_fed.exact_sum import ExactWeightedSum
from ray_fed.federation.messages import (
    NO_VALUES,
    NUM_BESIDE,
    Arrived,
    Artifact,
    MaskedUpdate,
    Raised,
    SiloEvent,
    SummedUpdate,
    Update,
    Vector,
    answer_form,
    answer_size,
    masked_shape,
)
from ray_fed.federation.rounds.driver import RoundDriver, now
from ray_fed.federation.rounds.machine import Event, Refused, Submit
from ray_fed.federation.secure_client import STEP
from ray_fed.federation.strategies import FedAdagrad, FedAdam, FedAvg, FedAvgM, FedBN, FedProx, FedYogi, Strategy
from ray_fed.metrics import TRAIN_LOSS
from ray_fed.privacy.secure_sum.collector import SecureCollector
from ray_fed.privacy.secure_sum.member import FEWEST, Keys, sealed_by
from ray_fed.privacy.secure_sum.packed import PackedForm
from ray_fed.privacy.secure_sum.sealed import SealedShares
from ray_fed.privacy.secure_sum.wire import as_bytes, of_bytes

SUMS_ONLY = (FedAvg, FedProx, FedBN, FedAvgM, FedAdagrad, FedAdam, FedYogi)
"""Strategies that take nothing but the weighted mean of a round's updates."""


MASKED = ("secure aggregation shows", "secure aggregation")
THROUGH_HUBS = ("hubs between silos and coordinator show", "hubs on the way, unless the sites dial this hub themselves")
"""Why only sums are seen, as a sentence begins and as it ends."""


def require_sums_only(strategy: Strategy, max_norm: float | None, because: tuple[str, str] = MASKED) -> None:
    """ConfigError for what needs to see single updates; a strategy of one's own says `sums_only = True`."""
    name = type(strategy).__name__
    fits = type(strategy) in SUMS_ONLY or getattr(strategy, "sums_only", False)
    known = ", ".join(cls.__name__ for cls in SUMS_ONLY)
    require(fits, f"{because[0]} the sum of the updates alone, {name} needs each of them; use {known}")
    reason = "the length of a single update cannot be seen; let the silos' own policies bound it (max_update_norm)"
    require(max_norm is None, f"max_norm={max_norm} does not go with {because[1]}: {reason}")


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
    objections: dict[str, str] = field(default_factory=dict)
    """Silo -> why its update is not taken, or its help with the masks was not, in this round."""

    def updates(self, server_round: int, vectors: Mapping[str, Vector], ranking: Sequence[str]) -> Iterator[Update]:
        """Run a round and yield one update, the sum. QuorumLost when too few silos are left to unmask it."""
        self.collector, self.protocol_bytes, self.objections = None, 0, {}
        length = self._length(next(iter(vectors.values())))
        for masked in super().updates(server_round, vectors, ranking):
            assert isinstance(masked, MaskedUpdate)
            assert self.collector is not None
            self.collector.add(masked.silo, masked.ring)
        total = self._unmasked(server_round)
        self.failures = tuple(sorted({**self.objections, **dict(self.failures)}.items()))
        yield self._summed(server_round, total, length)

    def _length(self, sent: Vector) -> int:
        return answer_size(sent, self.guard.sums)

    def losses(self) -> dict[str, float]:
        """The mean loss of the round; those of single silos stay under the masks."""
        return {TRAIN_LOSS: self.mean_loss} if self.seen else {}

    def _submit(self, submits: Sequence[Submit], server_round: int, vectors: Mapping[str, Vector]) -> None:
        """Exchange keys among the silos chosen for the round. One that is sent the model again later has lost its keys
        and will say so."""
        if submits and self.opened_in != server_round:
            self.opened_in = server_round
            chosen = [submit.silo for submit in submits]
            sent = vectors[chosen[0]]
            form = answer_form(sent, self.guard.sums)
            self._exchange_keys(chosen, server_round, 0 if form else self._length(sent), form)
        super()._submit(submits, server_round, vectors)

    def _exchange_keys(
        self, silos: Sequence[str], server_round: int, length: int, form: PackedForm | None = None
    ) -> None:
        """Agree on the masks of a vector of some length, or of sums of a form."""
        said = self._query("secure_keys", dict.fromkeys(silos, ()), server_round)
        roster = self._roster(said, server_round)
        self.collector = SecureCollector(self.session, server_round, length + NUM_BESIDE - 1, roster, (), form=form)
        self._require_enough(roster, "gave keys", server_round)
        told = as_bytes(
            {f"{part}.{silo}": value for silo, keys in roster.items() for part, value in vars(keys).items()}
        )
        shares = self._query("secure_shares", dict.fromkeys(roster, (told,)), server_round)
        self.collector.sealed = sealed = self._sealed(shares, server_round)
        self._require_enough(sealed, "gave shares of their keys", server_round)
        complaints = self._deliver(sealed, server_round)
        rejected = self._unproven(complaints, server_round)
        if rejected:
            sealed = {silo: given for silo, given in sealed.items() if silo not in rejected}
            self._require_enough(sealed, "gave shares that open", server_round)
            self._deliver(sealed, server_round)
        self.collector.partners = sorted(sealed)

    def _roster(self, said: Mapping[str, Mapping[str, bytes]], server_round: int) -> dict[str, Keys]:
        """Return the keys that silos can share keys with, and that are signed by who gave them."""
        roster = {}
        for silo, parts in said.items():
            try:
                keys = Keys.of_parts(parts)
            except ValueError:
                self._object(silo, "its keys are not what keys are")
                continue
            if not keys.are_usable:
                self._object(silo, "a public key of it is none to share a key with")
            elif not keys.are_of(silo, self.session, server_round):
                self._object(silo, "its keys are not signed by it for this round")
            else:
                roster[silo] = keys
        return {silo: keys for silo, keys in roster.items() if self._is_alone(silo, keys, roster)}

    def _is_alone(self, silo: str, keys: Keys, roster: Mapping[str, Keys]) -> bool:
        """Whether no other silo gave one of these keys: all would refuse a roster in which one is there twice."""
        theirs = {key for other, each in roster.items() if other != silo for key in (each.channel, each.mask)}
        if theirs & {keys.channel, keys.mask}:
            self._object(silo, "another silo gave the same key")
        return not theirs & {keys.channel, keys.mask}

    def _sealed(self, said: Mapping[str, Mapping[str, bytes]], server_round: int) -> dict[str, dict[str, SealedShares]]:
        """Return the shares of those silos that dealt one to everybody, each signed."""
        assert self.collector is not None
        roster, sealed = self.collector.roster, {}
        for silo, given in said.items():
            to = {
                other: sealed_by(silo, other, given.get(other, b""), roster[silo], self.session, server_round)
                for other in roster
            }
            bad = [other for other, each in to.items() if each is None]
            if bad or set(given) != set(roster):
                self._object(silo, f"it dealt no shares that it signed to {', '.join(bad) or 'these silos alone'}")
            else:
                sealed[silo] = to
        return sealed

    def _deliver(self, sealed: Mapping[str, Mapping[str, SealedShares]], server_round: int) -> dict[str, dict]:
        """Hand the shares around; return silo -> who says that its shares do not open -> that one's signature."""
        for_each = {
            silo: (as_bytes({giver: given[silo].to_bytes() for giver, given in sealed.items() if giver != silo}),)
            for silo in sealed
        }
        said = self._query("secure_deliver", for_each, server_round)
        for silo in set(sealed) - set(said):
            self._object(silo, "it did not take the shares that were dealt to it")
        complaints: dict[str, dict[str, bytes]] = {}
        for receiver, about in said.items():
            for giver, signature in about.items():
                if giver in sealed and giver != receiver:
                    complaints.setdefault(giver, {})[receiver] = signature
        return complaints

    def _unproven(self, complaints: Mapping[str, Mapping[str, bytes]], server_round: int) -> list[str]:
        """Let silos show the shares that others say they cannot open; return those that do not show the very shares
        they dealt. A complaint that nobody signed is none."""
        assert self.collector is not None
        genuine = {}
        for giver, said in complaints.items():
            signed = {who: text for who, text in said.items() if self._is_complaint(giver, who, text, server_round)}
            genuine |= {giver: signed} if signed else {}
        if not genuine:
            return []
        given = {giver: (as_bytes(signed),) for giver, signed in genuine.items()}
        shown = self._query("secure_show", given, server_round)
        rejected = []
        for giver, signed in genuine.items():
            theirs = {who: shown.get(giver, {}).get(who, b"") for who in signed}
            if all(self.collector.sealed[giver][who].name_both(shares) for who, shares in theirs.items()):
                self.collector.shown[giver] = theirs
            else:
                rejected.append(giver)
                self._object(giver, f"the shares that it dealt to {', '.join(sorted(signed))} do not open")
        return rejected

    def _is_complaint(self, giver: str, receiver: str, signature: bytes, server_round: int) -> bool:
        assert self.collector is not None
        content = self.collector.sealed[giver][receiver].to_bytes()
        keys = self.collector.roster[receiver]
        return keys.have_complained(giver, content, signature, self.session, server_round)

    def _object(self, silo: str, reason: str) -> None:
        """Note the first reason why a silo has no part in the round."""
        self.objections.setdefault(silo, f"secure aggregation: {reason}")

    def _event(self, received: SiloEvent | None, server_round: int, vectors: Mapping[str, Vector]) -> Event:
        """Of a silo that is left out already, whatever it answers is refused for that reason."""
        if isinstance(received, Arrived | Raised) and received.server_round == server_round:
            objection = self.objections.get(received.silo)
            if objection:
                return Refused(received.silo, server_round, objection)
        return super()._event(received, server_round, vectors)

    def _checked(self, arrived: Arrived, server_round: int, vectors: Mapping[str, Vector]) -> Event:
        silo = arrived.silo
        if arrived.server_round == server_round:
            reason = self._objection(silo, arrived.update, server_round, vectors[silo])
            if reason:
                return Refused(silo, server_round, reason)
        return arrived

    def _objection(self, silo: str, update: object, server_round: int, sent: Vector) -> str:
        """Return why a masked update cannot be added; "" where it can. What it holds cannot be seen."""
        if type(update) is not MaskedUpdate:
            return "it came without masks"
        if (update.silo, update.session, update.server_round) != (silo, self.session, server_round):
            return "it answers another query"
        ring, (dtype, shape) = update.ring, masked_shape(sent, self.guard.sums)
        fits = type(ring) is np.ndarray and ring.dtype == dtype and ring.shape == shape
        if type(update.seconds) is not float or not 0 <= update.seconds < inf:
            return "its seconds are none"
        if not fits or self.collector is None or silo not in self.collector.partners:
            return "its masks are not those of the round"
        return "duplicate" if silo in self.collector.survivors else ""

    def _note(self, update: Update) -> None:
        masked: object = update
        assert isinstance(masked, MaskedUpdate)
        self.num_bytes += masked.num_bytes
        kept = Update(masked.silo, masked.session, masked.server_round, NO_VALUES, 1, 0, 0.0)
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
        self._check_shares(shares)
        self._require_enough(shares, "helped to unmask the sum", server_round)
        try:
            return collector.sum(shares)
        except ValueError as error:
            raise QuorumLost(server_round, f"the sum cannot be unmasked: {error}") from error

    def _check_shares(self, shares: Mapping[str, Mapping[str, bytes]]) -> None:
        """Name the silos whose shares are not those that were dealt to them; the collector passes over such shares."""
        assert self.collector is not None
        for giver, given in shares.items():
            for name in self.collector.partners:
                is_excused = giver in self.collector.shown.get(name, {})
                if not is_excused and not self.collector.is_genuine(name, giver, given.get(name, b"")):
                    self._object(giver, f"its share of the masks of silo '{name}' is not the one dealt to it")

    def _signed(self, silo: str, parts: Mapping[str, bytes], server_round: int) -> bytes:
        """Return a silo's signature of the names, b"" where it is none: the others would refuse it, and the sum."""
        assert self.collector is not None
        signature, keys = parts.get("signature", b""), self.collector.roster[silo]
        fits = keys.have_signed(self.collector.survivors, signature, self.session, server_round)
        return signature if fits else b""

    def _require_enough(self, silos: Collection[str], did: str, server_round: int) -> None:
        if len(silos) < self.threshold:
            named = "".join(f"; silo '{silo}': {reason}" for silo, reason in sorted(self.objections.items()))
            reason = f"{len(silos)} silos {did}, secure aggregation needs {self.threshold}{named}"
            raise QuorumLost(server_round, reason)

    def _summed(self, server_round: int, total: ExactWeightedSum, length: int) -> SummedUpdate:
        high, low = total.parts()
        beside = ExactWeightedSum.of_parts(high[length:], low[length:], total.total_weight, total.num_summands)
        self.mean_loss, steps = (float(mean) for mean in beside.mean())
        whole = ExactWeightedSum.of_parts(high[:length], low[:length], total.total_weight, total.num_summands)
        return SummedUpdate(
            "all",
            self.session,
            server_round,
            whole.mean(),
            total.total_weight,
            round(steps / STEP),
            self.mean_loss,
            total=whole,
        )

    def _query(self, query: str, given: Mapping[str, tuple], server_round: int) -> dict[str, Mapping[str, bytes]]:
        """Ask silos for their part of a phase; return what those said that answered as they should."""
        asked = {silo: (self.session, server_round, *more) for silo, more in given.items()}
        out = sum(part.nbytes for more in given.values() for part in more)
        self._count(out)
        said = {}
        for silo, answer in self.cohort.query(query, asked).items():
            if isinstance(answer, Raised):  # the next phase goes on without it, as without one that died
                continue
            try:
                said[silo] = _told(answer, silo, query)
            except ValueError as error:
                self._object(silo, f"its answer to '{query}' cannot be read: {error}")
                continue
            self._count(answer.data.nbytes)
            for observer in self.observers:
                observer.message_received(silo, answer, query)
        return said

    def _count(self, num_bytes: int) -> None:
        self.protocol_bytes += num_bytes
        self.num_bytes += num_bytes


def _told(answer: Artifact, silo: str, query: str) -> Mapping[str, bytes]:
    """Return what an answer says; ValueError for one of another form."""
    if type(answer) is not Artifact or (answer.silo, answer.what) != (silo, query):
        raise ValueError("it is no answer to this question")
    if type(answer.num_examples) is not int or not isinstance(answer.facts, Mapping) or answer.facts:
        raise ValueError("it says more than it was asked")
    return of_bytes(answer.data)
