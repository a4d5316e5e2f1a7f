"""What a silo answers in secure aggregation: its part of each phase, and its update under masks."""

from collections.abc import Mapping

import numpy as np

from ray_fed.errors import SiloFailed, Trouble
from ray_fed.federation.messages import Artifact, Counts, MaskedUpdate, Metrics, SessionSpec, Update, Vector
from ray_fed.federation.tally import COUNTS, METRICS, MOMENTS, names_of, numbers_of_metrics, numbers_of_moments
from ray_fed.learning.standardisation import ColumnMoments
from ray_fed.privacy.secure_sum.member import Keys, SecureMember
from ray_fed.privacy.secure_sum.packed import form_of
from ray_fed.privacy.secure_sum.ring import of_integers
from ray_fed.privacy.secure_sum.wire import as_bytes, of_bytes
from ray_fed.privacy.signing import SigningKey

STEP = 2.0**-20
"""Of steps under masks: so that their product with a number of rows stays small."""
MASKED_MOMENTS, MASKED_METRICS, MASKED_COUNTS = "secure_moments", "secure_metrics", "secure_counts"
QUERIES = frozenset({
    "secure_begin", "secure_keys", "secure_shares", "secure_deliver", "secure_show", "secure_agree", "secure_unmask",
    MASKED_MOMENTS, MASKED_METRICS, MASKED_COUNTS,
})  # fmt: skip


class SecureClient:
    """A silo's keys, one set for each session and round; they live in its memory alone."""

    def __init__(self, silo: str):
        self.silo, self.num_examples = silo, 0
        self._thresholds: dict[str, int] = {}
        self._members: dict[str, SecureMember] = {}
        self._last_round: dict[str, int] = {}
        """Session -> the last round that keys were made for; kept when the session is closed, or opened again."""
        self._added_to: dict[str, list[str]] = {}
        """Sum that belongs to no session -> the silos to whose moments, or counts, this one's were added."""
        self._added_up: set[str] = set()
        """Sessions whose answers are sums: each counts once, and is packed by the form that is asked for."""
        self._signer = SigningKey.passing()
        self._partners: Mapping[str, str] = {}

    def sign_with(self, key: SigningKey, partners: Mapping[str, str]) -> None:
        """Sign with a lasting key from now on, and mask with these partners only, silo -> public key, if any."""
        self._signer, self._partners = key, dict(partners)

    def open(self, spec: SessionSpec) -> None:
        self._added_up = self._added_up | {spec.session} if spec.plan.sums else self._added_up - {spec.session}
        for name in (spec.session, f"{spec.session}{METRICS}"):
            self._members.pop(name, None)
            self._thresholds[name] = spec.secure_threshold

    def close(self, session: str) -> None:
        for name in (session, f"{session}{METRICS}"):
            self._thresholds.pop(name, None)
            self._members.pop(name, None)

    def is_secure(self, session: str) -> bool:
        """Whether updates of the session leave under masks only."""
        return self._thresholds.get(session, 0) > 0

    def masked(self, update: Update, received: Vector) -> MaskedUpdate:
        """Return the answer to what was received under the masks of its round. SiloFailed where there are none, or they
        are used up."""
        member = self._member(update.session, update.server_round)
        beside = np.array([update.loss, update.num_steps * STEP], np.float32)
        if update.session in self._added_up:
            ring = member.masked_sums(form_of(received), update.vector.astype(np.int64), beside)
        else:
            ring = member.masked(np.concatenate([update.vector, beside]), update.num_examples)
        return MaskedUpdate(self.silo, update.session, update.server_round, ring, update.seconds)

    def masked_moments(self, moments: ColumnMoments, session: str, server_round: int) -> Artifact:
        """Return the moments of the silo's rows under the masks of a sum of moments."""
        numbers, n = numbers_of_moments(moments), moments.num_examples
        return self._masked_numbers(MASKED_MOMENTS, session, server_round, numbers, n, [])

    def masked_metrics(self, by_model: Mapping[str, Metrics], session: str, server_round: int) -> Artifact:
        """Return the metrics of models on the silo's rows under the masks of a sum of metrics."""
        numbers = numbers_of_metrics(by_model)
        return self._masked_numbers(MASKED_METRICS, session, server_round, numbers, 1, names_of(by_model))

    def masked_counts(self, counted: Counts, session: str, server_round: int) -> Artifact:
        """Return counts of the silo's rows under the masks of a sum of counts."""
        numbers = [counted.num_examples, *counted.counts.tolist()]
        return self._masked_numbers(MASKED_COUNTS, session, server_round, numbers, 1, [])

    def _masked_numbers(
        self, query: str, session: str, server_round: int, numbers: list[int], weight: int, names: list[str]
    ) -> Artifact:
        masked = self._member(session, server_round).masked_ring(of_integers(numbers), weight)
        parts = {"ring": masked.astype("<u8").tobytes(), "names": ",".join(names).encode()}
        return Artifact(self.silo, query, self.num_examples, {}, as_bytes(parts))

    def answer(self, query: str, num_examples: int, session: str, server_round: int, *given: np.ndarray) -> Artifact:
        """Return the silo's part of a phase."""
        answers = {
            "secure_begin": self._begin, "secure_keys": self._keys, "secure_shares": self._shares,
            "secure_deliver": self._deliver, "secure_show": self._show, "secure_agree": self._agree,
            "secure_unmask": self._unmask,
        }  # fmt: skip
        return Artifact(self.silo, query, num_examples, {}, as_bytes(answers[query](session, server_round, *given)))

    def _begin(self, session: str, server_round: int, threshold: np.ndarray) -> dict[str, bytes]:
        """Be ready to add up moments or counts, without a session; return the number that this sum may have."""
        if session not in (MOMENTS, COUNTS):
            raise self._failure(server_round, f"only '{MOMENTS}' and '{COUNTS}' begin without a session")
        self._thresholds[session] = int(threshold.reshape(-1)[0])
        return {"round": (self._last_round.get(session, 0) + 1).to_bytes(8, "little")}

    def _keys(self, session: str, server_round: int) -> dict[str, bytes]:
        if not self.is_secure(session):
            raise self._failure(server_round, f"session '{session}' was not opened for it")
        if self._last_round.get(session, -1) >= server_round:
            reason = "keys are made once a round, and rounds go on, also when a session is opened again"
            raise self._failure(server_round, f"{reason}; give it another name")
        self._last_round[session] = server_round
        threshold = self._thresholds[session]
        member = SecureMember(self.silo, session, server_round, threshold, self._signer, self._partners)
        self._members[session] = member
        return vars(member.keys())

    def _shares(self, session: str, server_round: int, told: np.ndarray) -> dict[str, bytes]:
        keys: dict[str, dict[str, bytes]] = {}
        for name, value in of_bytes(told).items():
            kind, _, silo = name.partition(".")
            keys.setdefault(silo, {})[kind] = value
        roster = {silo: Keys.of_parts(parts) for silo, parts in keys.items()}
        member = self._member(session, server_round)
        if session in (MOMENTS, COUNTS) or session.endswith(METRICS):  # of all silos, not of those chosen for a round
            member.threshold = max(member.threshold, len(roster) // 2 + 1)
        return member.shares(roster)

    def _deliver(self, session: str, server_round: int, shares: np.ndarray) -> dict[str, bytes]:
        return self._member(session, server_round).deliver(of_bytes(shares))

    def _show(self, session: str, server_round: int, complaints: np.ndarray) -> dict[str, bytes]:
        return self._member(session, server_round).show(of_bytes(complaints))

    def _agree(self, session: str, server_round: int, names: np.ndarray) -> dict[str, bytes]:
        listed = sorted(of_bytes(names))
        if self._added_to.get(session, listed) != listed:
            # The same moments in two sums, of these silos and of others, would be the difference of the sums.
            raise self._failure(server_round, f"its {session} were added to other silos' before; start it again")
        signature = self._member(session, server_round).agree(listed)
        if session in (MOMENTS, COUNTS):
            self._added_to[session] = listed
        return {"signature": signature}

    def _unmask(self, session: str, server_round: int, signatures: np.ndarray) -> dict[str, bytes]:
        return self._member(session, server_round).unmask(of_bytes(signatures))

    def _member(self, session: str, server_round: int) -> SecureMember:
        member = self._members.get(session)
        if member is None or member.server_round != server_round:
            raise self._failure(server_round, "it has no keys of this round (it was started again, or not chosen)")
        return member

    def _failure(self, server_round: int, reason: str) -> SiloFailed:
        doing = f"secure aggregation in round {server_round}"
        return SiloFailed(self.silo, doing, reason, failure=Trouble.MASKS_FAILED)
