"""What a silo answers in secure aggregation: its part of each phase, and its update under masks."""

from collections.abc import Mapping

import numpy as np

from ray_fed.errors import SiloFailed, Trouble
from ray_fed.federation.messages import Artifact, MaskedUpdate, SessionSpec, Update
from ray_fed.privacy.secure_sum.member import Keys, SecureMember
from ray_fed.privacy.secure_sum.wire import as_bytes, of_bytes
from ray_fed.privacy.signing import SigningKey

QUERIES = frozenset({"secure_keys", "secure_shares", "secure_deliver", "secure_show", "secure_agree", "secure_unmask"})


class SecureClient:
    """A silo's keys, one set for each session and round; they live in its memory alone."""

    def __init__(self, silo: str):
        self.silo = silo
        self._thresholds: dict[str, int] = {}
        self._members: dict[str, SecureMember] = {}
        self._last_round: dict[str, int] = {}
        """Session -> the last round that keys were made for; kept when the session is closed, or opened again."""
        self._signer = SigningKey.passing()
        self._partners: Mapping[str, str] = {}

    def sign_with(self, key: SigningKey, partners: Mapping[str, str]) -> None:
        """Sign with a lasting key from now on, and mask with these partners only, silo -> public key, if any."""
        self._signer, self._partners = key, dict(partners)

    def open(self, spec: SessionSpec) -> None:
        self._members.pop(spec.session, None)
        self._thresholds[spec.session] = spec.secure_threshold

    def close(self, session: str) -> None:
        self._thresholds.pop(session, None)
        self._members.pop(session, None)

    def is_secure(self, session: str) -> bool:
        """Whether updates of the session leave under masks only."""
        return self._thresholds.get(session, 0) > 0

    def masked(self, update: Update) -> MaskedUpdate:
        """Return the update under the masks of its round. SiloFailed where there are none, or they are used up."""
        member = self._member(update.session, update.server_round)
        vector = np.append(update.vector, np.float32(update.loss))
        ring = member.masked(vector, update.num_examples)
        return MaskedUpdate(self.silo, update.session, update.server_round, ring, update.num_steps, update.seconds)

    def answer(self, query: str, num_examples: int, session: str, server_round: int, *given: np.ndarray) -> Artifact:
        """Return the silo's part of a phase."""
        answers = {
            "secure_keys": self._keys, "secure_shares": self._shares, "secure_deliver": self._deliver,
            "secure_show": self._show,
            "secure_agree": self._agree, "secure_unmask": self._unmask,
        }  # fmt: skip
        return Artifact(self.silo, query, num_examples, {}, as_bytes(answers[query](session, server_round, *given)))

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
        return self._member(session, server_round).shares(roster)

    def _deliver(self, session: str, server_round: int, shares: np.ndarray) -> dict[str, bytes]:
        return self._member(session, server_round).deliver(of_bytes(shares))

    def _show(self, session: str, server_round: int, complaints: np.ndarray) -> dict[str, bytes]:
        return self._member(session, server_round).show(of_bytes(complaints))

    def _agree(self, session: str, server_round: int, names: np.ndarray) -> dict[str, bytes]:
        return {"signature": self._member(session, server_round).agree(list(of_bytes(names)))}

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
