"""The gate inside a silo: every message is checked by its kind, rebuilt from its checked parts, and counted.

What is checked is form: types, names, shapes, finite values, counts of rows, bytes; and that the message does not
repeat the silo's rows as they are. Whether an update of the right form encodes something is beyond any gate. The checks
of each kind are in checks.py; this file knows none of them.
"""

import re
import secrets
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Final, NamedTuple

import numpy as np

from ray_fed.errors import PerimeterRefused
from ray_fed.federation.messages import MaskedUpdate, Update, Vector, answer_bytes
from ray_fed.perimeter.ledger import MessageDigest, bytes_of
from ray_fed.perimeter.policy import DECLARED, Policy

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
    most_examples: int | None = None
    """Most rows that an update can claim to have seen, by those that the silo told; None: not known."""
    sums: int = 0
    """`TrainingPlan.sums` of the session."""
    gets_masks: bool = False
    """Whether the update leaves under masks, after it was checked."""
    models: tuple[str, ...] = ()
    """Names of the models it was sent to evaluate, or to search in."""
    per_source: bool = False
    """Whether the answer to a search may hold the errors of single sources."""
    agreement: Mapping[str, str] = field(default_factory=dict)
    """What the task wants all to agree on, as it said before there were rows."""
    metrics: tuple[str, ...] = ()
    """Names of metrics that it declared then."""
    is_known: bool = False
    """Whether the rows are public, or who asks has them already and showed it."""


class MessageKind(NamedTuple):
    """All that gate and ledger know about one kind of message."""

    message_class: type
    check: "Callable[[Gate, Any, Request], Any]"
    """(gate, message, request) -> the message rebuilt from its checked parts, or PerimeterRefused."""
    digest: Callable[[str, Any], MessageDigest]
    """(name of the kind, message) -> its line in a ledger."""
    parts: tuple[type, ...] = ()
    """Classes of ours that a message may hold."""
    answers_queries: bool = False
    """Whether a silo may answer one of its further queries with it (`Silo.queries`)."""


MessageKinds = Mapping[str, MessageKind]
"""Name of a kind -> what is known about it."""


class Gate:
    """Lets messages of one silo out, by its owner's policy."""

    def __init__(self, silo: str, policy: Policy, kinds: MessageKinds):
        self.silo, self.policy, self.kinds, self.row_matcher = silo, policy, kinds, RowMatcher()
        self.metrics = frozenset(policy.metrics) - {DECLARED}
        """Names that a metric may have: those the owner lists; those that the silo's description declares are added."""
        self.resolution = policy.resolution
        """How exactly metrics are told."""
        self.sent = 0
        """Bytes that have left in this process."""
        self.take_bytes: Callable[[int], str] = _nothing_is_counted
        """Writes bytes down before they leave, where the owner keeps a book; returns why that is too much, or ""."""
        self._messages = tuple(
            {cls for kind in kinds.values() for cls in (kind.message_class, *kind.parts)} - {dict, tuple}
        )
        self._round: tuple[str, int] = ("", 0)
        self._sent_in_round, self._received = 0, 0

    def taken(self, answer: Any) -> Any:
        """Return an answer as plain data: all that the other methods may be given. For use inside the
        boundary."""
        return plain(answer, self._messages)

    def admit(self, message: Any, request: Request) -> Any:
        """Return the message rebuilt from its checked parts; PerimeterRefused with the first reason why it stays
        inside. Nothing given is changed.

        A reason is a fixed phrase with limits of ours; never a value, a count or a name of the message."""
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

    def check_plan(self, session: str, num_rounds: int, planned: int) -> None:
        """Refuse a session whose updates alone, so many bytes in all, would break the budget, before it begins."""
        left = self.policy.max_bytes_per_run - self.sent
        reason = f"its {num_rounds} updates have {planned} bytes, {left} are left of max_bytes_per_run"
        self.require(planned <= left, f"session '{session}'", reason)  # the coordinator's own numbers

    def _count(self, size: int, request: Request) -> None:
        """Refuse what exceeds the budget of the round or of the run; count the rest."""
        if (request.session, request.server_round) != self._round:
            self._round, self._sent_in_round, self._received = (request.session, request.server_round), 0, 0
        if request.vector is not None:
            answer = answer_bytes(request.vector, request.sums)
            self._received = max(self._received, request.vector.nbytes, answer)
        in_round, in_run = self._sent_in_round + size, self.sent + size
        allowed, in_run_allowed = self._budget(), self.policy.max_bytes_per_run
        reason = f"its bytes in one round are more than the {allowed} allowed"
        self.require(in_round <= allowed, request.kind, reason)
        reason = f"with it more bytes would leave than max_bytes_per_run={in_run_allowed}"
        self.require(in_run <= in_run_allowed, request.kind, reason)
        found = self.take_bytes(size)
        self.require(not found, request.kind, found)
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
            return bytes_of(rebuilt)
        return self.digest(rebuilt, kind).num_bytes


def _nothing_is_counted(_: int) -> str:
    return ""


# ---- does a message hold the silo's own rows?
#
# The gate is inside the silo, so it can compare. It finds rows, and columns, that are sent as they are; not those that
# were scaled, encrypted or shuffled: no gate can. What honest updates give away is measured by `ray-fed audit`.

MAX_REMEMBERED = 1 << 16
"""Pairs of neighbours remembered of each array and direction."""
NUM_SAMPLES = 512
"""Pairs of a long message that are looked at."""
MIN_REPEATED_PAIRS = 2
"""Repeated pairs that are no chance: two neighbours of an honest message are two neighbours of the rows in one of 10^8
places."""
MIN_DIGITS = 5
"""Numbers of fewer digits are not compared: a step size of 0.05 may well be somebody's lattice constant."""
TABLE_BITS = 22
MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
NUMBER = re.compile(r"[-+]?\d*\.\d+(?:[eE][-+]?\d+)?|[-+]?\d+[eE][-+]?\d+")


class RowMatcher:
    """Remembers pairs of neighbouring values of the rows, and counts how many of them a message repeats."""

    def __init__(self) -> None:
        self._random = np.random.Generator(np.random.PCG64(secrets.randbits(128)))  # a sender must not foresee it
        self._arrays: dict[str, np.ndarray] = {}
        self._pairs: dict[str, np.ndarray] = {}
        self._known = np.empty(0, np.uint64)
        self._table = np.zeros(1 << TABLE_BITS, bool)

    def add(self, name: str, values: np.ndarray) -> None:
        """Remember an array [rows, ...] of real numbers, along its rows and along its columns; the last one of a name
        counts."""
        if not np.issubdtype(values.dtype, np.floating) or len(values) == 0:
            return
        table = np.asarray(values).reshape(len(values), -1)
        self._arrays[name] = table
        self._pairs[name] = self._sampled(table)
        self._known = np.unique(np.concatenate(list(self._pairs.values())))
        self._table[:] = False
        self._table[_slots(self._known)] = True

    def hits(self, values: np.ndarray) -> int:
        """Return how many pairs of neighbours in a message are the rows'; of a long message a random sample."""
        flat = np.asarray(values).reshape(-1)
        if flat.size < 2 or len(self._known) == 0:
            return 0
        few = flat.size <= NUM_SAMPLES
        at = np.arange(flat.size - 1) if few else self._random.integers(0, flat.size - 1, NUM_SAMPLES)
        with np.errstate(over="ignore", invalid="ignore"):  # bytes of something else read as float64
            keys = _keys(flat[at].astype(np.float32), flat[at + 1].astype(np.float32))
        keys = keys[self._table[_slots(keys)]]
        if len(keys) == 0:
            return 0
        places = np.minimum(np.searchsorted(self._known, keys), len(self._known) - 1)
        return int((self._known[places] == keys).sum())

    def repeats_rows(self, values: np.ndarray) -> bool:
        """Tell whether a message of numbers is made of the rows' own values."""
        return self.hits(values) >= MIN_REPEATED_PAIRS

    def is_row(self, values: np.ndarray) -> bool:
        """Tell whether a short message [num_columns] is a row: half of its values are those of one. Whole numbers, and
        columns that hold the same value everywhere, are not compared."""
        for table in self._arrays.values():
            if table.shape[1] == len(values):
                counted = _are_fractions(values) & (np.ptp(table, axis=0) > 0)
                same = table[:, counted] == values[counted].astype(table.dtype)
                if counted.sum() >= MIN_REPEATED_PAIRS and same.mean(axis=1).max() >= 0.5:
                    return True
        return False

    def numbers_in(self, texts: Iterable[str]) -> int:
        """Return how many numbers written in the texts are the rows' own; those of few digits do not count."""
        written = [number for text in texts for number in NUMBER.findall(text)]
        return self.known_numbers([float(number) for number in written if _digits(number) >= MIN_DIGITS])

    def known_numbers(self, numbers: Sequence[float]) -> int:
        """Return how many of the numbers occur in the rows, as float32; whole ones do not count."""
        wanted = np.unique(np.array([x for x in numbers if x != np.rint(x)], np.float32))
        if len(wanted) == 0:
            return 0
        return len({x for table in self._arrays.values() for x in wanted[np.isin(wanted, table.astype(np.float32))]})

    def _sampled(self, table: np.ndarray) -> np.ndarray:
        """Return keys of random pairs of distinctive neighbours, in rows and in columns."""
        keys = []
        for values in (table.reshape(-1), table.T.reshape(-1)) if table.shape[1] > 1 else (table.reshape(-1),):
            if values.size < 2:
                continue
            few = values.size <= MAX_REMEMBERED
            at = np.arange(values.size - 1) if few else self._random.integers(0, values.size - 1, MAX_REMEMBERED)
            first, second = values[at].astype(np.float32), values[at + 1].astype(np.float32)
            is_distinctive = _are_fractions(first) & _are_fractions(second) & (first != second)
            keys.append(_keys(first[is_distinctive], second[is_distinctive]))
        return np.concatenate(keys) if keys else np.empty(0, np.uint64)


def _digits(number: str) -> int:
    """Return how many significant digits a written number has."""
    return len(re.sub(r"[eE].*|[-+.]", "", number).strip("0"))


def _are_fractions(values: np.ndarray) -> np.ndarray:
    """Return which values are finite and not whole: whole numbers occur in every message."""
    return np.isfinite(values) & (values != np.rint(values))


def _keys(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the bits of two float32 arrays as one uint64 array."""
    high = np.ascontiguousarray(first).view(np.uint32).astype(np.uint64)
    return (high << np.uint64(32)) | np.ascontiguousarray(second).view(np.uint32).astype(np.uint64)


def _slots(keys: np.ndarray) -> np.ndarray:
    return ((keys * MULTIPLIER) >> np.uint64(64 - TABLE_BITS)).astype(np.int64)


# ---- what a silo returned, as plain data
#
# An object may run code of its class whenever it is looked at, compared, shown or thrown away. So what comes back is
# taken apart inside the boundary, while all ways out are closed, and only numbers, texts, bytes, arrays, lists,
# mappings and the messages of this package go on, each of exactly its class and each a copy. Anything else goes on as
# `FOREIGN`, of which no check approves.

MAX_DEPTH = 8
MAX_PARTS = 1 << 16
"""Parts of one message: a thousand models' scores have a few of each."""
TEXT_AND_NUMBERS = (bool, int, float, str, bytes, type(None))
NUMPY_NUMBERS = tuple(cls for cls in set(np.sctypeDict.values()) if np.dtype(cls).kind in "biuf")
NUMBERS = "biuf"
"""Kinds of dtype that an array may have."""


class Foreign:
    """Stands for what is no plain data."""

    def __repr__(self) -> str:
        return "something that is no plain data"


FOREIGN: Final = Foreign()


def plain(answer: Any, messages: Collection[type]) -> Any:
    """Return a copy of an answer that is made of plain data and of dataclasses among `messages` only."""
    return _Copier(messages).copy(answer, 0)


class _Copier:
    def __init__(self, messages: Collection[type]):
        self.messages, self.left = messages, MAX_PARTS

    def copy(self, value: Any, depth: int) -> Any:
        self.left -= 1
        cls = type(value)
        if _is_one_of(cls, TEXT_AND_NUMBERS):
            return value
        if self.left < 0 or depth > MAX_DEPTH:
            return FOREIGN
        if cls is np.ndarray:
            return _array(value)
        if cls is list or cls is tuple:
            return cls(self.copy(part, depth + 1) for part in value)
        if _is_one_of(cls, NUMPY_NUMBERS):
            return value.item()
        if _is_one_of(cls, self.messages):
            return self._message(value, depth)
        return self._mapping(value, depth) if isinstance(value, Mapping) else FOREIGN

    def _mapping(self, value: Mapping, depth: int) -> Any:
        # Its methods may be the task's: they run inside the boundary, and what they give is copied in turn.
        items = [(self.copy(key, depth + 1), self.copy(part, depth + 1)) for key, part in _first(value.items())]
        are_names = all(_is_one_of(type(key), TEXT_AND_NUMBERS) for key, _ in items)
        return dict(items) if are_names and len(items) <= MAX_PARTS else FOREIGN

    def _message(self, value: Any, depth: int) -> Any:
        held, wanted = vars(value), [field.name for field in fields(type(value))]
        if set(held) != set(wanted):
            return FOREIGN
        copied = object.__new__(type(value))
        for name in wanted:  # past its own constructor, which may look at what it is given
            object.__setattr__(copied, name, self.copy(held[name], depth + 1))
        return copied


def _is_one_of(cls: type, known: Collection[type]) -> bool:
    """Whether a class is one of these; a metaclass may say of itself that it is equal to anything."""
    return any(cls is each for each in known)


def _first(items: Any) -> list[tuple[Any, Any]]:
    found = []
    for pair in items:
        found.append(pair)
        if len(found) > MAX_PARTS:
            break
    return found


def _array(values: np.ndarray) -> Any:
    """Return a copy in memory of its own, row by row; nothing else hangs onto it."""
    is_plain = values.dtype.kind in NUMBERS and values.dtype.metadata is None and values.dtype.names is None
    return np.array(values, order="C", copy=True, subok=False) if is_plain else FOREIGN
