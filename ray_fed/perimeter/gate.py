"""The gate inside a silo: every message is checked by its kind, rebuilt from its checked parts, and counted.

What is checked is form: types, names, shapes, finite values, counts of rows, bytes; and that the message does not
repeat the silo's rows as they are. Whether an update of the right form encodes something is beyond any gate. The checks
of each kind are in checks.py; this file knows none of them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from ray_fed.errors import PerimeterRefused
from ray_fed.federation.messages import MaskedUpdate, Update, Vector
from ray_fed.perimeter.ledger import MessageDigest
from ray_fed.perimeter.policy import Policy
from ray_fed.perimeter.row_matcher import RowMatcher

SMALL_BYTES = 1 << 16
"""Metrics of one round."""
OPENING_BYTES = 1 << 22
"""Description, moments and the evaluation of the initial models."""
PARAMETERS_PER_ROUND = 4
"""Answers of one round that may leave if the owner says nothing: a round may be asked for again after a restart."""


@dataclass(frozen=True)
class Request:
    """What a silo was asked for: an answer must fit it."""

    kind: str
    session: str = ""
    server_round: int = 0
    vector: Vector | None = None
    """What it was sent to train from."""
    models: tuple[str, ...] = ()
    """Names of the models it was sent to evaluate, or to search in."""
    per_source: bool = False
    """Whether the answer to a search may hold the errors of single sources."""


class MessageKind(NamedTuple):
    """All that gate and ledger know about one kind of message."""

    message_class: type
    check: "Callable[[Gate, Any, Request], Any]"
    """(gate, message, request) -> the message rebuilt from its checked parts, or PerimeterRefused."""
    digest: Callable[[str, Any], MessageDigest]
    """(name of the kind, message) -> its line in a ledger."""


MessageKinds = Mapping[str, MessageKind]
"""Name of a kind -> what is known about it."""


class Gate:
    """Lets messages of one silo out, by its owner's policy."""

    def __init__(self, silo: str, policy: Policy, kinds: MessageKinds):
        self.silo, self.policy, self.kinds, self.row_matcher = silo, policy, kinds, RowMatcher()
        self.sent = 0
        """Bytes that have left in this run."""
        self._round: tuple[str, int] = ("", 0)
        self._sent_in_round, self._received = 0, 0

    def admit(self, message: Any, request: Request) -> Any:
        """Return the message rebuilt from its checked parts; PerimeterRefused with the first reason why it stays
        inside. Nothing given is changed."""
        rebuilt = self.inspect(message, request)
        self._count(self._size_of(rebuilt, request.kind), request)
        return rebuilt

    def inspect(self, message: Any, request: Request) -> Any:
        """Like `admit`, without counting the message: it is not what will leave."""
        if request.kind not in self.policy.kinds:
            raise self.refusal(request.kind, f"its owner allows {', '.join(self.policy.kinds)} only")
        return self.kinds[request.kind].check(self, message, request)

    def digest(self, rebuilt: Any, kind: str) -> MessageDigest:
        """Return what the ledger keeps of a message that `admit` returned."""
        return self.kinds[kind].digest(kind, rebuilt)

    def refusal(self, kind: str, reason: str) -> PerimeterRefused:
        return PerimeterRefused(self.silo, kind, reason)

    def require(self, condition: bool, kind: str, reason: str) -> None:
        """Raise PerimeterRefused unless the condition holds."""
        if not condition:
            raise self.refusal(kind, reason)

    def check_plan(self, session: str, num_rounds: int, num_bytes: int) -> None:
        """Refuse a session whose updates alone would break the budget, before it begins."""
        planned, left = num_rounds * num_bytes, self.policy.max_bytes_per_run - self.sent
        reason = f"its {num_rounds} updates have {planned} bytes, {left} are left of max_bytes_per_run"
        self.require(planned <= left, f"session '{session}'", reason)

    def _count(self, size: int, request: Request) -> None:
        """Refuse what exceeds the budget of the round or of the run; count the rest."""
        if (request.session, request.server_round) != self._round:
            self._round, self._sent_in_round, self._received = (request.session, request.server_round), 0, 0
        self._received = max(self._received, 0 if request.vector is None else request.vector.nbytes)
        in_round, in_run = self._sent_in_round + size, self.sent + size
        allowed, in_run_allowed = self._budget(), self.policy.max_bytes_per_run
        reason = f"{in_round} bytes in one round are more than the {allowed} allowed"
        self.require(in_round <= allowed, request.kind, reason)
        self.require(in_run <= in_run_allowed, request.kind, f"{in_run} bytes, max_bytes_per_run={in_run_allowed}")
        self._sent_in_round, self.sent = in_round, in_run

    def _budget(self) -> int:
        """Bytes that may leave in the round under way."""
        if self.policy.max_bytes_per_round is not None:
            return self.policy.max_bytes_per_round
        small = SMALL_BYTES if self._round[1] else OPENING_BYTES
        return PARAMETERS_PER_ROUND * self._received + small

    def _size_of(self, rebuilt: Any, kind: str) -> int:
        """Return the bytes of a message as its digest counts them, without hashing an update."""
        if isinstance(rebuilt, Update | MaskedUpdate):
            return rebuilt.num_bytes
        return self.digest(rebuilt, kind).num_bytes
