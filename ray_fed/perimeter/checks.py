"""The kinds of message that leave a silo: for each its class, its check at the gate, and its line in a ledger.

A further kind of message is one entry in `KINDS` and its two functions; with `answers_queries` a silo may answer its
further queries with it. It leaves where an owner lists it under `kinds`; what leaves without a word of the owner is
listed in policy.py. A package above this one keeps a kind of its own beside its own silo and passes it to the boundary
(ray_fed/model_library/guarded_search.py).

What is checked is form. Whether an artifact remembers the rows it was made from is the business of who makes it; for
generators see ray_fed/style_transfer/synthesis.py. A masked update was checked before it was masked.
"""

import hashlib
import math
import re
from collections.abc import Mapping
from dataclasses import fields, replace
from functools import cache
from typing import Any

import numpy as np

from ray_fed.errors import UpdateRejected
from ray_fed.federation.messages import (
    Artifact,
    GradientObservation,
    Guard,
    MaskedUpdate,
    Metrics,
    SiloDescription,
    Update,
    Vector,
)
from ray_fed.federation.norms import distance
from ray_fed.learning.standardisation import ColumnMoments
from ray_fed.metrics import METRIC_NAME, MeanScores, RegressionSums, Resolution, Scores
from ray_fed.perimeter.gate import Gate, MessageKind, MessageKinds, Request
from ray_fed.perimeter.ledger import MessageDigest, text_digest, vector_digest
from ray_fed.perimeter.policy import DECLARED
from ray_fed.privacy.compression import rebuilt

NAME = METRIC_NAME
HASH = re.compile(r"[0-9a-f]{16}|[0-9a-f]{32}|[0-9a-f]{40}|[0-9a-f]{64}")
LONGEST_WORD = 64
LONGEST_TEXT = 300
MAX_ENTRIES = 512
MAX_METRICS = 64
MAX_FACTS = 4096
"""Numbers beside the bytes of an artifact: losses per epoch, sizes."""
SEARCHED_TEXT_BYTES = 1 << 16
FEW_NUMBERS = 3
"""So many of the rows' numbers in one message are no chance."""
REPEATS_ROWS = "it repeats values of the silo's rows"


# ---- parts of every check


def is_exactly(message: Any, cls: type) -> bool:
    """Whether a message is of the dataclass itself, not of a subclass, with nothing hung onto the instance."""
    return type(message) is cls and vars(message).keys() == _field_names(cls)


@cache
def _field_names(cls: type) -> frozenset[str]:
    return frozenset(field.name for field in fields(cls))


def is_plain_array(values: Any, dtype: type, num_dimensions: int = 1) -> bool:
    """Whether values are an array of NumPy's own class, of this dtype, without metadata in the dtype."""
    is_array = type(values) is np.ndarray and values.dtype == dtype and values.ndim == num_dimensions
    return is_array and not values.dtype.metadata


def is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53


def require_rows(gate: Gate, kind: str, count: Any, limit: str = "min_examples", behind: str = "it,") -> None:
    """Refuse what too few rows stand behind; what is no count is not repeated in the refusal."""
    least = getattr(gate.policy, limit)
    shown = count if is_count(count) else "an unknown number of"
    reason = f"{shown} rows stand behind {behind} {limit}={least}"
    gate.require(is_count(count) and count >= least, kind, reason)


def plain_number(gate: Gate, kind: str, value: Any, what: str = "a value") -> float:
    """Return a number as a float; every NaN becomes the same NaN, because its other bits could carry something."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    gate.require(is_number, kind, f"{what} is not a number")
    return math.nan if math.isnan(value) else float(value)


def _require_message(gate: Gate, kind: str, message: Any, cls: type) -> None:
    gate.require(type(message) is cls, kind, f"the answer must be a {cls.__name__}")
    gate.require(is_exactly(message, cls), kind, "the answer carries more than its fields")
    gate.require(getattr(message, "silo", gate.silo) == gate.silo, kind, "it is in the name of another silo")


# ---- updates


FORM = Guard()
"""What the coordinator checks of every update, it checks for any silo."""


def check_update(gate: Gate, update: Any, request: Request) -> Update:
    _require_message(gate, request.kind, update, Update)
    _require_plain_fields(gate, update, request)
    received, policy = request.vector, gate.policy
    assert received is not None
    # What is checked is what is sent, whoever still holds the silo's array.
    numbers = {name: plain_number(gate, "update", getattr(update, name), name) for name in ("loss", "seconds")}
    update = replace(update, vector=update.vector.copy(), **numbers)
    try:
        FORM.check(update, received, request.server_round, request.session)
    except UpdateRejected as error:
        raise gate.refusal("update", error.args[2]) from None
    gate.require(not update.vector.dtype.metadata, "update", "its dtype carries metadata")
    require_rows(gate, "update", update.num_examples, "min_examples_per_update")
    if policy.max_update_norm is not None:
        moved = distance(update.vector, received)
        reason = f"it moved by {moved:.6g}, max_update_norm={policy.max_update_norm:g}"
        gate.require(moved <= policy.max_update_norm, "update", reason)
    gate.require(not gate.row_matcher.repeats_rows(update.vector), "update", REPEATS_ROWS)
    return Update(
        gate.silo, request.session, request.server_round, update.vector, int(update.num_examples),
        int(update.num_steps), update.loss, update.seconds, _checked_code(gate, update, received),
    )  # fmt: skip


def _require_plain_fields(gate: Gate, update: Update, request: Request) -> None:
    """Refuse fields whose values must not be quoted: the guard's reasons, which follow, quote them."""
    gate.require(update.session == request.session, "update", "it belongs to another session")
    are_counts = is_count(update.server_round) and is_count(update.num_examples) and is_count(update.num_steps)
    reason = "server_round, num_examples and num_steps must be whole numbers, 0 or more"
    gate.require(are_counts, "update", reason)
    gate.require(type(update.vector) is np.ndarray, "update", "the vector is not a plain array")


def _checked_code(gate: Gate, update: Update, received: Vector) -> np.ndarray | None:
    """A code must say what the vector says, in no other bytes than its method would take."""
    if update.code is None:
        return None
    try:
        code = np.array(update.code, copy=True)
        same = type(update.code) is np.ndarray and rebuilt(received, code).tobytes() == update.vector.tobytes()
    except ValueError as error:
        raise gate.refusal("update", str(error)) from None
    gate.require(same and not code.dtype.metadata, "update", "its code and its vector differ")
    return code


def digest_update(kind: str, update: Update) -> MessageDigest:
    norm = float(np.sqrt(np.dot(update.vector, update.vector)))
    names = ("vector", "loss", "num_steps")
    return MessageDigest(kind, names, update.num_bytes, vector_digest(update.vector), norm, update.num_examples)


def check_masked_update(gate: Gate, message: Any, request: Request) -> MaskedUpdate:
    is_own = is_exactly(message, MaskedUpdate) and message.silo == gate.silo
    gate.require(is_own, "masked", "the answer must be a MaskedUpdate of this silo and carry nothing more")
    assert request.vector is not None
    ring, shape = message.ring, (len(request.vector) + 2, 2)
    fits = is_plain_array(ring, np.uint64, 2) and ring.shape == shape
    gate.require(fits, "masked", f"it must hold uint64 {list(shape)}")
    return MaskedUpdate(
        gate.silo, request.session, request.server_round, ring.copy(), int(message.num_steps), float(message.seconds)
    )


def digest_masked_update(kind: str, message: MaskedUpdate) -> MessageDigest:
    digest = hashlib.sha256(np.ascontiguousarray(message.ring, "<u8").reshape(-1).data).hexdigest()
    return MessageDigest(kind, ("ring", "num_steps"), message.num_bytes, digest)


# ---- moments and metrics


def check_moments(gate: Gate, moments: Any, request: Request) -> ColumnMoments:
    _require_message(gate, request.kind, moments, ColumnMoments)
    require_rows(gate, "moments", moments.num_examples, behind="it, its owner's")
    for name in ("mean", "m2"):
        values = getattr(moments, name)
        fits = is_plain_array(values, np.float64) and values.shape == moments.mean.shape
        gate.require(fits, "moments", f"{name} must be one float64 per column")
        gate.require(bool(np.isfinite(values).all()), "moments", f"{name} has values that are not finite")
    gate.require(not gate.row_matcher.is_row(moments.mean), "moments", "the means repeat values of the silo's rows")
    return ColumnMoments(int(moments.num_examples), moments.mean, moments.m2)


def digest_moments(kind: str, moments: ColumnMoments) -> MessageDigest:
    digest = text_digest(kind, moments, ("mean", "m2"), moments.num_examples)
    return replace(digest, num_bytes=moments.mean.nbytes + moments.m2.nbytes)


def check_metrics(gate: Gate, by_model: Any, request: Request) -> dict[str, Metrics]:
    fits = type(by_model) is dict and tuple(by_model) == request.models
    wanted = ", ".join(request.models)
    gate.require(fits, "metrics", f"they must be those of the models asked for: {wanted}")
    return {model: _checked_metrics(gate, metrics, request) for model, metrics in by_model.items()}


def _checked_metrics(gate: Gate, metrics: Any, request: Request) -> Metrics:
    _require_message(gate, request.kind, metrics, Metrics)
    parts = (_checked_scores(gate, scores, request) for scores in (metrics.train, metrics.held_out))
    return Metrics(gate.silo, *parts)


def _checked_scores(gate: Gate, scores: Any, request: Request) -> Scores:
    """Sums over too few rows leave as sums over none, all others with the digits that their owner allows."""
    known = type(scores) in (RegressionSums, MeanScores)
    gate.require(known, "metrics", "they must be RegressionSums or MeanScores")
    _require_message(gate, request.kind, scores, type(scores))
    count = scores.num_examples
    gate.require(is_count(count), "metrics", "num_examples must be a whole number, 0 or more")
    is_enough = count >= gate.policy.min_examples

    def checked(value: Any) -> float:
        number = plain_number(gate, "metrics", value)
        return number if is_enough else 0.0

    resolution = Resolution(gate.policy.min_examples, gate.policy.metric_bits)
    if isinstance(scores, MeanScores):
        _check_metric_names(gate, scores.sums)
        sums = {name: checked(value) for name, value in scores.sums.items()}
        return resolution.released(MeanScores(int(count) * is_enough, sums))
    numbers = [getattr(scores, field.name) for field in fields(RegressionSums)[1:]]
    return resolution.released(RegressionSums(int(count) * is_enough, *map(checked, numbers)))


def _check_metric_names(gate: Gate, sums: Any) -> None:
    gate.require(type(sums) is dict, "metrics", "sums must be a dict")
    unknown = sum(name not in gate.metrics for name in sums)
    remedy = "a task declares its names in `Task.metrics`, the owner lists names under 'metrics'"
    gate.require(not unknown, "metrics", f"{unknown} of {len(sums)} names are not allowed; {remedy}")


def digest_metrics(kind: str, by_model: dict[str, Metrics]) -> MessageDigest:
    names = sorted({name for metrics in by_model.values() for name in metrics.held_out.values()})
    counts = [max(metrics.train.num_examples, metrics.held_out.num_examples) for metrics in by_model.values()]
    return text_digest(kind, by_model, tuple(names), max(counts, default=0))


# ---- descriptions


def check_description(gate: Gate, description: Any, request: Request) -> SiloDescription:
    _require_message(gate, request.kind, description, SiloDescription)
    counts = (description.num_examples, description.num_held_out, *_mapping(gate, description.unreadable).values())
    for count in counts:
        gate.require(is_count(count), "description", "counts of rows must be whole numbers, 0 or more")
    fingerprint = {
        _name(gate, key): _fingerprint_value(gate, value)
        for key, value in _mapping(gate, description.fingerprint).items()
    }
    unreadable = {_text(gate, reason): int(count) for reason, count in description.unreadable.items()}
    agreement = {_name(gate, key): _text(gate, value) for key, value in _mapping(gate, description.agreement).items()}
    device, node = _text(gate, description.device), _text(gate, description.node)
    metrics = _declared_metrics(gate, description.metrics) if "metrics" in gate.policy.kinds else ()
    _check_texts(gate, [*unreadable, *agreement.values(), device, node, *metrics], fingerprint)
    gate.metrics |= frozenset(metrics)
    num_examples, num_held_out = map(int, counts[:2])
    return SiloDescription(
        gate.silo, num_examples, num_held_out, unreadable, agreement, fingerprint, device, node, metrics
    )


def _declared_metrics(gate: Gate, names: Any) -> tuple[str, ...]:
    """Return the names of metrics that may be told from now on: where the owner lists names, those among them."""
    fits = type(names) is tuple and len(names) <= MAX_METRICS
    gate.require(fits, "description", f"a tuple of at most {MAX_METRICS} names of metrics is wanted")
    found = tuple(_name(gate, name) for name in names)
    return found if DECLARED in gate.policy.metrics else tuple(name for name in found if name in gate.metrics)


def _check_texts(gate: Gate, texts: list[str], fingerprint: Mapping[str, Any]) -> None:
    """All texts together must be short, and must not hold numbers of the rows."""
    for value in fingerprint.values():
        texts += [value] if isinstance(value, str) else value if isinstance(value, list) else []
    size, limit = sum(len(text.encode()) for text in texts), gate.policy.max_description_bytes
    reason = f"it has {size} bytes of text, max_description_bytes={limit}"
    gate.require(size <= limit, "description", reason)
    numbers = [value for value in fingerprint.values() if isinstance(value, float)]
    num_known = gate.row_matcher.numbers_in(texts) + gate.row_matcher.known_numbers(numbers)
    gate.require(num_known < FEW_NUMBERS, "description", REPEATS_ROWS)


def _mapping(gate: Gate, value: Any) -> Mapping[Any, Any]:
    fits = isinstance(value, Mapping) and len(value) <= MAX_ENTRIES
    gate.require(fits, "description", f"a mapping of at most {MAX_ENTRIES} entries is wanted")
    return value


def _name(gate: Gate, value: Any) -> str:
    fits = type(value) is str and NAME.fullmatch(value) is not None
    gate.require(fits, "description", "a name must be up to 64 letters, digits, '_', '.', '-'")
    return value


def _text(gate: Gate, value: Any) -> str:
    """Return a text as one short line of words. A long word is a code, unless it is a hash."""
    gate.require(type(value) is str, "description", "a text is wanted")
    text = "".join(letter if letter.isprintable() else " " for letter in value[:LONGEST_TEXT])
    for word in re.split(r"[\s,;:()\[\]/|=]+", text):
        fits = len(word) <= LONGEST_WORD or HASH.fullmatch(word) is not None
        gate.require(fits, "description", f"a word has {len(word)} characters, {LONGEST_WORD} are allowed")
    return text


def _fingerprint_value(gate: Gate, value: Any) -> Any:
    """Return what a fingerprint may hold: nothing, a number, a text, or a list of texts."""
    if value is None or type(value) in (bool, float):
        return value
    if type(value) is int and abs(value) < 2**53:
        return value
    if isinstance(value, list | tuple) and len(value) <= MAX_ENTRIES:
        return [_text(gate, item) for item in value]
    return _text(gate, value)


def digest_description(kind: str, description: SiloDescription) -> MessageDigest:
    names = tuple(sorted({*description.fingerprint, *description.agreement, *description.metrics}))
    return text_digest(kind, description, names, description.num_examples)


# ---- artifacts


def check_artifact(gate: Gate, artifact: Any, request: Request) -> Artifact:
    """What a silo made from its rows and hands on as bytes, such as a generator or spectra."""
    reason = "the answer must be an Artifact and carry nothing more than its fields"
    gate.require(is_exactly(artifact, Artifact), "artifact", reason)
    is_own = artifact.silo == gate.silo and artifact.what == request.session
    gate.require(is_own, "artifact", f"it must be the '{request.session}' of this silo")
    require_rows(gate, "artifact", artifact.num_examples)
    gate.require(is_plain_array(artifact.data, np.uint8), "artifact", "its data must be one row of bytes")
    data, facts = np.array(artifact.data), dict(artifact.facts)
    gate.require(not _holds_rows(gate, data), "artifact", "its bytes repeat values of the silo's rows")
    named = len(facts) <= MAX_FACTS and all(type(name) is str and NAME.fullmatch(name) for name in facts)
    gate.require(named, "artifact", f"its facts must be at most {MAX_FACTS} numbers with short names")
    are_numbers = all(type(value) in (int, float) and not math.isnan(value) for value in facts.values())
    gate.require(are_numbers, "artifact", "a fact is not a number")
    num_known = gate.row_matcher.known_numbers(list(facts.values()))
    is_chance = num_known <= max(FEW_NUMBERS, len(facts) // 4)
    gate.require(is_chance, "artifact", "its facts repeat values of the silo's rows")
    return Artifact(gate.silo, request.session, int(artifact.num_examples), facts, data)


def _holds_rows(gate: Gate, data: np.ndarray) -> bool:
    """Tell whether bytes are the rows as float32 or float64, or written as text. Packed bytes are not unpacked."""
    for start in range(8):
        for dtype in (np.dtype("<f4"), np.dtype("<f8")):
            usable = (len(data) - start) // dtype.itemsize * dtype.itemsize
            if usable > 0 and gate.row_matcher.repeats_rows(data[start : start + usable].copy().view(dtype)):
                return True
    text = data[:SEARCHED_TEXT_BYTES].tobytes()
    return text.isascii() and gate.row_matcher.numbers_in([text.decode("ascii")]) >= FEW_NUMBERS


def digest_artifact(kind: str, artifact: Artifact) -> MessageDigest:
    digest = hashlib.sha256(artifact.data.tobytes()).hexdigest()
    names = (artifact.what, *artifact.facts)
    return MessageDigest(kind, names, artifact.data.nbytes, digest, None, artifact.num_examples)


# ---- observations: single gradients, made to be attacked


def require_audit(gate: Gate) -> None:
    """Raise PerimeterRefused unless the owner allows an audit."""
    remedy = f"its owner has not allowed an audit ('silos: {{{gate.silo}: {{audit: true}}}}' in site.yaml)"
    gate.require(gate.policy.audit, "observation", remedy)


def check_observation(gate: Gate, message: Any, request: Request) -> GradientObservation:
    require_audit(gate)
    is_own = is_exactly(message, GradientObservation) and message.silo == gate.silo
    reason = "it must be a GradientObservation of this silo and carry nothing more"
    gate.require(is_own, "observation", reason)
    received = request.vector
    assert received is not None
    require_rows(gate, "observation", message.num_examples, "min_examples_per_update")
    fits = is_plain_array(message.vector, np.float32) and len(message.vector) <= len(received)
    gate.require(fits, "observation", f"it must hold at most {len(received)} float32 values")
    vector = message.vector.copy()
    gate.require(bool(np.isfinite(vector).all()), "observation", "it has values that are not finite")
    gate.require(not gate.row_matcher.repeats_rows(vector), "observation", REPEATS_ROWS)
    return GradientObservation(gate.silo, int(message.num_examples), vector)


def digest_observation(kind: str, message: GradientObservation) -> MessageDigest:
    norm, digest = float(np.linalg.norm(message.vector)), vector_digest(message.vector)
    return MessageDigest(kind, ("vector",), message.vector.nbytes, digest, norm, message.num_examples)


# ---- all of them

KINDS: MessageKinds = {
    "description": MessageKind(SiloDescription, check_description, digest_description),
    "moments": MessageKind(ColumnMoments, check_moments, digest_moments),
    "update": MessageKind(Update, check_update, digest_update),
    "masked": MessageKind(MaskedUpdate, check_masked_update, digest_masked_update),
    "metrics": MessageKind(dict, check_metrics, digest_metrics),
    "artifact": MessageKind(Artifact, check_artifact, digest_artifact, answers_queries=True),
    "observation": MessageKind(GradientObservation, check_observation, digest_observation),
}


def kind_of_answer(answer: object) -> str:
    """Return the kind of an answer to a further query; what is of no such kind is refused as an artifact."""
    fitting = (kind for kind, known in KINDS.items() if known.answers_queries and type(answer) is known.message_class)
    return next(fitting, "artifact")


def digest_of(message: object, kinds: MessageKinds = KINDS) -> MessageDigest:
    """Return what a ledger keeps of a message, as its receiver computes it; TypeError for an unknown class."""
    for kind, known in kinds.items():
        if type(message) is known.message_class:
            return known.digest(kind, message)
    raise TypeError(f"a {type(message).__name__} is no message")
