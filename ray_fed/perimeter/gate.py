"""The gate inside a silo: every message is checked by kind, rebuilt from its checked parts, counted, and then sent.

What it checks is form: types, names, shapes, finite values, counts of rows, bytes; and that the message does not repeat
the silo's rows as they are. Whether an update of the right form encodes something is beyond any gate.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from ray_fed.errors import PerimeterRefused, UpdateRejected
from ray_fed.federation.guard import Guard
from ray_fed.federation.messages import Metrics, SiloDescription, Update, Vector
from ray_fed.federation.norms import distance
from ray_fed.learning.regression import RegressionSums
from ray_fed.learning.scores import MeanScores, Scores
from ray_fed.learning.standardisation import ColumnMoments
from ray_fed.perimeter.message_digest import size_of
from ray_fed.perimeter.policy import Policy
from ray_fed.perimeter.row_matcher import RowMatcher, words
from ray_fed.privacy.compression import rebuilt

NAME = re.compile(r"[A-Za-z][A-Za-z0-9_ .-]{0,63}")
LONGEST_WORD = 64
LONGEST_TEXT = 300
MAX_ENTRIES = 512
FEW_NUMBERS = 3
"""So many of the rows' numbers in the texts of a description are no chance."""
HASH = re.compile(r"[0-9a-f]{16}|[0-9a-f]{32}|[0-9a-f]{40}|[0-9a-f]{64}")
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
    """Whether a search may tell the errors of single sources."""


class Gate:
    """Lets messages of one silo out, by its owner's policy."""

    def __init__(self, silo: str, policy: Policy, sent_before: int = 0):
        self.silo, self.policy, self.row_matcher = silo, policy, RowMatcher()
        self.sent = sent_before
        """Bytes that have left in this run."""
        self._round: tuple[str, int] = ("", 0)
        self._sent_in_round, self._received = 0, 0

    def admit(self, message: Any, request: Request) -> Any:
        """Return the message rebuilt from its checked parts; PerimeterRefused with the first reason why it stays
        inside. Nothing given is changed."""
        rebuilt = self.inspect(message, request)
        self._count(size_of(rebuilt), request)
        return rebuilt

    def inspect(self, message: Any, request: Request) -> Any:
        """Like `admit`, without counting the message: it is not what will leave."""
        if request.kind not in self.policy.kinds:
            raise self.refusal(request.kind, f"its owner allows {', '.join(self.policy.kinds)} only")
        return REBUILT[request.kind](self, message, request)

    def refusal(self, kind: str, reason: str) -> PerimeterRefused:
        return PerimeterRefused(self.silo, kind, reason)

    def check_plan(self, session: str, num_rounds: int, num_bytes: int) -> None:
        """Refuse a session whose updates alone would break the budget, before it begins."""
        planned, left = num_rounds * num_bytes, self.policy.max_bytes_per_run - self.sent
        if planned > left:
            reason = f"its {num_rounds} updates have {planned} bytes, {left} are left of max_bytes_per_run"
            raise self.refusal(f"session '{session}'", reason)

    def _count(self, size: int, request: Request) -> None:
        """Refuse what exceeds the budget of the round or of the run; count the rest."""
        if (request.session, request.server_round) != self._round:
            self._round, self._sent_in_round, self._received = (request.session, request.server_round), 0, 0
        self._received = max(self._received, 0 if request.vector is None else request.vector.nbytes)
        in_round, in_run, allowed = self._sent_in_round + size, self.sent + size, self._budget()
        if in_round > allowed:
            raise self.refusal(request.kind, f"{in_round} bytes in one round are more than the {allowed} allowed")
        if in_run > self.policy.max_bytes_per_run:
            raise self.refusal(request.kind, f"{in_run} bytes, max_bytes_per_run={self.policy.max_bytes_per_run}")
        self._sent_in_round, self.sent = in_round, in_run

    def _budget(self) -> int:
        """Bytes that may leave in the round under way."""
        if self.policy.max_bytes_per_round is not None:
            return self.policy.max_bytes_per_round
        small = SMALL_BYTES if self._round[1] else OPENING_BYTES
        return PARAMETERS_PER_ROUND * self._received + small


# ---- one function for each kind: it returns the message rebuilt, or raises


def _update(gate: Gate, update: Any, request: Request) -> Update:
    _exact(gate, request, update, Update)
    received, policy = request.vector, gate.policy
    assert received is not None
    if type(update.vector) is np.ndarray:  # what is checked is what is sent, whoever still holds the silo's array
        update = replace(update, vector=update.vector.copy())
    try:
        Guard().check(update, received, request.server_round, request.session)
    except UpdateRejected as error:
        raise gate.refusal("update", error.args[2]) from None
    if update.vector.dtype.metadata:
        raise gate.refusal("update", "its dtype carries metadata")
    if update.num_examples < policy.min_examples_per_update:
        least = f"min_examples_per_update={policy.min_examples_per_update}"
        raise gate.refusal("update", f"{update.num_examples} rows stand behind it, {least}")
    if policy.max_update_norm is not None and distance(update.vector, received) > policy.max_update_norm:
        moved = distance(update.vector, received)
        raise gate.refusal("update", f"it moved by {moved:.6g}, max_update_norm={policy.max_update_norm:g}")
    if gate.row_matcher.repeats_rows(update.vector):
        raise gate.refusal("update", "it repeats values of the silo's rows")
    return Update(
        gate.silo, request.session, request.server_round, update.vector, int(update.num_examples),
        int(update.num_steps), float(update.loss), float(update.seconds), _code(gate, update, received),
    )  # fmt: skip


def _code(gate: Gate, update: Update, received: Vector) -> np.ndarray | None:
    """A code must say what the vector says, in no other bytes than its method would take."""
    if update.code is None:
        return None
    try:
        code = np.array(update.code, copy=True)
        same = type(update.code) is np.ndarray and rebuilt(received, code).tobytes() == update.vector.tobytes()
    except ValueError as error:
        raise gate.refusal("update", str(error)) from None
    if not same or code.dtype.metadata:
        raise gate.refusal("update", "its code and its vector differ")
    return code


def _moments(gate: Gate, moments: Any, request: Request) -> ColumnMoments:
    _exact(gate, request, moments, ColumnMoments)
    _enough(gate, request, moments.num_examples)
    for name in ("mean", "m2"):
        values = getattr(moments, name)
        plain = type(values) is np.ndarray and values.dtype == np.float64 and values.ndim == 1
        if not plain or values.dtype.metadata or values.shape != moments.mean.shape:
            raise gate.refusal("moments", f"{name} must be one float64 per column")
        if not np.isfinite(values).all():
            raise gate.refusal("moments", f"{name} has values that are not finite")
    if gate.row_matcher.is_row(moments.mean):
        raise gate.refusal("moments", "the means repeat values of the silo's rows")
    return ColumnMoments(int(moments.num_examples), moments.mean, moments.m2)


def _metrics(gate: Gate, by_model: Any, request: Request) -> dict[str, Metrics]:
    if type(by_model) is not dict or tuple(by_model) != request.models:
        raise gate.refusal("metrics", f"they must be those of the models asked for: {', '.join(request.models)}")
    return {model: _metrics_of(gate, metrics, request) for model, metrics in by_model.items()}


def _metrics_of(gate: Gate, metrics: Any, request: Request) -> Metrics:
    _exact(gate, request, metrics, Metrics)
    return Metrics(gate.silo, _scores(gate, metrics.train, request), _scores(gate, metrics.held_out, request))


def _scores(gate: Gate, scores: Any, request: Request) -> Scores:
    """Too few rows are told as none; a NaN is told as one NaN, whose other bits could tell something."""
    if type(scores) not in (RegressionSums, MeanScores):
        raise gate.refusal("metrics", "they must be RegressionSums or MeanScores")
    _exact(gate, request, scores, type(scores))
    count = scores.num_examples
    if not _is_count(count):
        raise gate.refusal("metrics", "num_examples must be a whole number, 0 or more")
    is_told = count >= gate.policy.min_examples
    if isinstance(scores, MeanScores):
        _check_metric_names(gate, scores.sums)
        return MeanScores(int(count) * is_told, {name: _number(gate, v, is_told) for name, v in scores.sums.items()})
    numbers = [getattr(scores, field.name) for field in fields(RegressionSums)[1:]]
    return RegressionSums(int(count) * is_told, *(_number(gate, value, is_told) for value in numbers))


def _check_metric_names(gate: Gate, sums: Any) -> None:
    if type(sums) is not dict:
        raise gate.refusal("metrics", "sums must be a dict")
    unknown = sum(name not in gate.policy.metrics for name in sums)
    if unknown:
        raise gate.refusal(
            "metrics", f"{unknown} of {len(sums)} names are not allowed; the owner lists names under 'metrics'"
        )


def _number(gate: Gate, value: Any, is_told: bool) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise gate.refusal("metrics", "a value is not a number")
    number = float(value) if is_told else 0.0
    return math.nan if math.isnan(number) else number


def _description(gate: Gate, said: Any, request: Request) -> SiloDescription:
    _exact(gate, request, said, SiloDescription)
    for count in (said.num_examples, said.num_held_out, *_dict(gate, said.unreadable).values()):
        if not _is_count(count):
            raise gate.refusal("description", "counts of rows must be whole numbers, 0 or more")
    fingerprint = {_name(gate, key): _told(gate, value) for key, value in _dict(gate, said.fingerprint).items()}
    unreadable = {_text(gate, reason): int(count) for reason, count in said.unreadable.items()}
    agreement = {_name(gate, key): _text(gate, value) for key, value in _dict(gate, said.agreement).items()}
    device, node = _text(gate, said.device), _text(gate, said.node)
    _check_texts(gate, [*unreadable, *agreement.values(), device, node], fingerprint)
    return SiloDescription(
        gate.silo, int(said.num_examples), int(said.num_held_out), unreadable, agreement, fingerprint, device, node
    )


def _check_texts(gate: Gate, texts: list[str], fingerprint: Mapping[str, Any]) -> None:
    """All texts together must be short, and must not hold numbers of the rows."""
    for value in fingerprint.values():
        texts += [value] if isinstance(value, str) else value if isinstance(value, list) else []
    size, limit = sum(len(text.encode()) for text in texts), gate.policy.max_description_bytes
    if size > limit:
        raise gate.refusal("description", f"it has {size} bytes of text, max_description_bytes={limit}")
    numbers = [value for value in fingerprint.values() if isinstance(value, float)]
    if gate.row_matcher.numbers_in(texts) + gate.row_matcher.known_numbers(numbers) >= FEW_NUMBERS:
        raise gate.refusal("description", "it repeats values of the silo's rows")


REBUILT: dict[str, Callable[[Gate, Any, Request], Any]] = {
    "description": _description, "moments": _moments, "update": _update, "metrics": _metrics,
}  # fmt: skip
"""Kind -> its check."""


# ---- parts


def _exact(gate: Gate, request: Request, message: Any, cls: type) -> None:
    """The class itself, and nothing hung onto the instance."""
    if type(message) is not cls:
        raise gate.refusal(request.kind, f"the answer must be a {cls.__name__}")
    if set(vars(message)) != {field.name for field in fields(cls)}:
        raise gate.refusal(request.kind, "the answer carries more than its fields")
    if getattr(message, "silo", gate.silo) != gate.silo:
        raise gate.refusal(request.kind, "it is in the name of another silo")


def _enough(gate: Gate, request: Request, count: Any) -> None:
    least = gate.policy.min_examples
    if not _is_count(count) or count < least:
        shown = count if _is_count(count) else "an unknown number of"
        raise gate.refusal(request.kind, f"{shown} rows stand behind it, its owner's min_examples={least}")


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53


def _dict(gate: Gate, value: Any) -> Mapping[Any, Any]:
    if not isinstance(value, Mapping) or len(value) > MAX_ENTRIES:
        raise gate.refusal("description", f"a mapping of at most {MAX_ENTRIES} entries is wanted")
    return value


def _name(gate: Gate, value: Any) -> str:
    if type(value) is not str or not NAME.fullmatch(value):
        raise gate.refusal("description", "a name must be up to 64 letters, digits, '_', '.', '-'")
    return value


def _text(gate: Gate, value: Any) -> str:
    """Return a text as one short line of words. A long word is a code, unless it is a hash."""
    if type(value) is not str:
        raise gate.refusal("description", "a text is wanted")
    text = "".join(letter if letter.isprintable() else " " for letter in value[:LONGEST_TEXT])
    for word in words([text]):
        if len(word) > LONGEST_WORD and not HASH.fullmatch(word):
            raise gate.refusal("description", f"a word has {len(word)} characters, {LONGEST_WORD} are allowed")
    return text


def _told(gate: Gate, value: Any) -> Any:
    """What a fingerprint may hold: nothing, a number, a text, or a list of texts."""
    if value is None or type(value) in (bool, float):
        return value
    if type(value) is int and abs(value) < 2**53:
        return value
    if isinstance(value, list | tuple) and len(value) <= MAX_ENTRIES:
        return [_text(gate, item) for item in value]
    return _text(gate, value)
