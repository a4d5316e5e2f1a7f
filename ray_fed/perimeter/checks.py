"""The kinds of message that leave a silo: for each its class, its check at the gate, and its line in a ledger.

A further kind of message is one entry in `KINDS` and its two functions; with `answers_queries` a silo may answer its
further queries with it. It leaves where an owner lists it under `kinds`; what leaves without a word of the owner is
listed in policy.py. A package above this one keeps a kind of its own beside its own silo and passes it to the boundary
(ray_fed/model_library/guarded_search.py).

What is checked is form. Whether an artifact remembers the rows it was made from is the business of who makes it; for
generators see ray_fed/style_transfer/synthesis.py. A masked update was checked before it was masked.
"""

import contextlib
import hashlib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ray_fed.federation.messages import (
    COUNT,
    MAX_SECONDS,
    MAX_SUM,
    Artifact,
    Counts,
    GradientObservation,
    Guard,
    MaskedUpdate,
    Metrics,
    Reply,
    SiloDescription,
    Update,
    Vector,
    answer_form,
    is_count,
    is_unmarked,
    masked_shape,
    reply_problem,
    scores_numbers,
    unmarked,
)
from ray_fed.federation.norms import distance
from ray_fed.federation.reasons import NOTES, OTHER, UNREADABLE, kind_of
from ray_fed.learning.standardisation import SQUARE_DIGITS, SUM_DIGITS, ColumnMoments, carried
from ray_fed.metrics import METRIC_NAME, ClassificationSums, MeanScores, RegressionSums, Scores, SeveralScores
from ray_fed.perimeter.error_policy import REFERENCE
from ray_fed.perimeter.gate import Gate, MessageKind, MessageKinds, Request
from ray_fed.perimeter.ledger import MessageDigest, bytes_of, message_digest, vector_digest
from ray_fed.perimeter.policy import DECLARED
from ray_fed.privacy.compression import rebuilt

NAME = METRIC_NAME
HASH = re.compile(r"[0-9a-f]{16}|[0-9a-f]{32}|[0-9a-f]{40}|[0-9a-f]{64}")
DEVICE = re.compile(r"cpu|mps|cuda(:[0-9]{1,3})?")
MAX_ENTRIES = 128
MAX_METRICS = 64
MAX_DIMENSIONS = 16
"""Whole numbers that one entry of a fingerprint may hold: the shape of a sample."""
MAX_FACTS = 4096
"""Numbers beside the bytes of an artifact: losses per epoch, sizes."""
MAX_FACT = 1e100
SEARCHED_TEXT_BYTES = 1 << 16
SCORES_OF_TARGET = (RegressionSums, ClassificationSums)
SCORES = (*SCORES_OF_TARGET, MeanScores, SeveralScores)
FEW_NUMBERS = 3
"""So many of the rows' numbers in one message are no chance."""
ANOTHER = "another one, "
"""Before the reference of a text that stays in the silo's log."""
REPEATS_ROWS = "it repeats values of the silo's rows"


# ---- parts of every check


def is_plain_array(values: Any, dtype: type, num_dimensions: int = 1) -> bool:
    """Whether values are an array of NumPy's own class, of this dtype, without metadata in the dtype."""
    is_array = type(values) is np.ndarray and values.dtype == dtype and values.ndim == num_dimensions
    return is_array and not values.dtype.metadata


def require_rows(gate: Gate, kind: str, count: Any, limit: str = "min_examples", behind: str = "it") -> None:
    """Refuse what too few rows stand behind; how many do is not told."""
    least = getattr(gate.policy, limit)
    reason = f"fewer rows stand behind {behind} than its owner's {limit}={least}"
    gate.require(is_count(count) and count >= least, kind, reason)


def plain_number(gate: Gate, kind: str, value: Any, what: str = "a value", limit: float = MAX_SUM) -> float:
    """Return a number as a float; refused unless it is finite and of at most this size."""
    gate.require(type(value) in (int, float), kind, f"{what} is not a number")
    gate.require(abs(value) <= limit, kind, f"{what} is not finite, or beyond {limit:g}")
    return float(value)


def _require_message(gate: Gate, kind: str, message: Any, cls: type) -> None:
    reason = f"the answer must be of class {cls.__name__} and hold nothing but its fields"
    gate.require(type(message) is cls, kind, reason)
    gate.require(_is_text(getattr(message, "silo", gate.silo), gate.silo), kind, "it is in the name of another silo")


def _is_text(value: Any, wanted: str) -> bool:
    return type(value) is str and value == wanted


# ---- updates


FORM = Guard()
"""What the coordinator checks of every update, it checks for any silo."""


def check_update(gate: Gate, update: Any, request: Request) -> Update:
    _require_message(gate, request.kind, update, Update)
    received, policy = request.vector, gate.policy
    assert received is not None
    numbers = (update.server_round, update.num_examples, update.num_steps, update.loss, update.seconds)
    are_numbers = all(type(number) in (int, float) for number in numbers)
    reason = "server_round, num_examples, num_steps, loss and seconds must be plain numbers"
    gate.require(are_numbers, "update", reason)
    guard = replace(FORM, sums=request.sums) if request.sums else FORM
    for _, phrase in guard.objections(update, received, request.server_round, request.session):
        raise gate.refusal("update", phrase)
    require_rows(gate, "update", update.num_examples, "min_examples_per_update")
    most = request.most_examples
    told = "it claims more rows than a round can have with those that its silo told"
    gate.require(most is None or update.num_examples <= most, "update", told)
    if policy.max_update_norm is not None:
        bounds = "max_update_norm bounds moves of parameters, and this session adds up sums"
        gate.require(not request.sums, "update", bounds)
        moved = distance(update.vector, received)
        reason = f"it moved by more than max_update_norm={policy.max_update_norm:g}"
        gate.require(moved <= policy.max_update_norm, "update", reason)
    _check_bins(gate, update.vector, request)
    gate.require(not gate.row_matcher.repeats_rows(update.vector), "update", REPEATS_ROWS)
    return Update(
        gate.silo, request.session, request.server_round, update.vector, update.num_examples, update.num_steps,
        float(update.loss), _plain_seconds(update.seconds), _checked_code(gate, update, received),
    )  # fmt: skip


def _check_bins(gate: Gate, sums: Vector, request: Request) -> None:
    """Sums of trees in clear must have no bin, and no leaf, of fewer rows than their owner allows. Where the counts of
    rows stand, the form says that was asked for, and a member of a forest answers no other form than its own."""
    least, received = gate.policy.min_rows_per_bin, request.vector
    if least == 1 or received is None or not request.sums or request.gets_masks:
        return
    form = answer_form(received, request.sums)
    counts = np.zeros(1) if form is None else form.counts(sums)  # its length was checked before
    remedy = "ask for it with --secure-aggregation yes or noise, or for fewer bins and less depth"
    few = f"a bin or leaf has fewer than min_rows_per_bin={least} of this silo's rows; {remedy}"
    gate.require(form is not None and not ((counts > 0) & (counts < least)).any(), "update", few)


def _plain_seconds(seconds: float) -> float:
    """Return a time in whole microseconds: the digits after them tell nobody anything."""
    return round(float(seconds), 6)


def _checked_code(gate: Gate, update: Update, received: Vector) -> np.ndarray | None:
    """A code must say what the vector says, in no other bytes than its method would take."""
    code = update.code
    if code is None:
        return None
    same = False
    if is_plain_array(code, np.uint8):
        with contextlib.suppress(ValueError):  # a code that cannot be read says nothing, and its error may quote it
            same = rebuilt(received, code).tobytes() == update.vector.tobytes()
    gate.require(same, "update", "its code and its vector differ")
    return code


def digest_update(kind: str, update: Update) -> MessageDigest:
    norm = float(np.sqrt(np.dot(update.vector, update.vector)))
    names, content = ("vector", "loss", "num_steps"), vector_digest(update.vector)
    return message_digest(kind, update, names, update.num_examples, norm, content)


def check_masked_update(gate: Gate, message: Any, request: Request) -> MaskedUpdate:
    _require_message(gate, "masked", message, MaskedUpdate)
    assert request.vector is not None
    ring, (dtype, shape) = message.ring, masked_shape(request.vector, request.sums)
    fits = is_plain_array(ring, dtype, len(shape)) and ring.shape == shape
    gate.require(fits, "masked", f"it must hold {dtype.__name__} {list(shape)}")
    seconds = plain_number(gate, "masked", message.seconds, "seconds", MAX_SECONDS)
    gate.require(seconds >= 0, "masked", "seconds must not be negative")
    return MaskedUpdate(gate.silo, request.session, request.server_round, ring, _plain_seconds(seconds))


def digest_masked_update(kind: str, message: MaskedUpdate) -> MessageDigest:
    order = message.ring.dtype.newbyteorder("<")
    digest = hashlib.sha256(np.ascontiguousarray(message.ring, order).reshape(-1).data).hexdigest()
    return message_digest(kind, message, ("ring",), content=digest)


# ---- moments and metrics


def check_moments(gate: Gate, moments: Any, request: Request) -> ColumnMoments:
    _require_message(gate, request.kind, moments, ColumnMoments)
    require_rows(gate, "moments", moments.num_examples)
    digits = moments.digits
    fits = is_plain_array(digits, np.int64, 2) and digits.shape[1] == SUM_DIGITS + SQUARE_DIGITS
    gate.require(fits, "moments", f"they must be int64 [columns, {SUM_DIGITS + SQUARE_DIGITS}]")
    in_form = bool((np.abs(digits) < 1 << 60).all()) and np.array_equal(carried(digits), digits)
    gate.require(in_form, "moments", "their digits are not in their canonical form")
    found = ColumnMoments(moments.num_examples, digits.copy())
    gate.require(not gate.row_matcher.is_row(found.mean), "moments", "the means repeat values of the silo's rows")
    return found


def digest_moments(kind: str, moments: ColumnMoments) -> MessageDigest:
    return message_digest(kind, moments, ("sums", "sums of squares"), moments.num_examples)


def check_metrics(gate: Gate, by_model: Any, request: Request) -> dict[str, Metrics]:
    fits = type(by_model) is dict and tuple(by_model) == request.models
    gate.require(fits, "metrics", "they must be those of the models asked for")
    return {model: _checked_metrics(gate, metrics, request) for model, metrics in by_model.items()}


def _checked_metrics(gate: Gate, metrics: Any, request: Request) -> Metrics:
    _require_message(gate, request.kind, metrics, Metrics)
    parts = (checked_scores(gate, scores, request) for scores in (metrics.train, metrics.held_out))
    return Metrics(gate.silo, *parts)


def checked_scores(gate: Gate, scores: Any, request: Request) -> Scores:
    """Sums over too few rows leave as sums over none, all others with the digits that their owner allows."""
    rebuilt = _rebuilt_scores(gate, scores, request, SCORES)
    if isinstance(rebuilt, ClassificationSums | SeveralScores):
        _check_metric_names(gate, rebuilt.values())
    return rebuilt if request.is_known else gate.resolution.released(rebuilt)


def _rebuilt_scores(gate: Gate, scores: Any, request: Request, known: tuple[type, ...]) -> Scores:
    reason = f"they must be {', '.join(cls.__name__ for cls in known[:-1])} or {known[-1].__name__}"
    gate.require(type(scores) in known, "metrics", reason)
    _require_message(gate, request.kind, scores, type(scores))
    count = scores.num_examples
    gate.require(is_count(count), "metrics", "num_examples must be a whole number, 0 or more")
    is_enough = count >= gate.policy.min_examples
    match scores:
        case SeveralScores():
            return SeveralScores(count * is_enough, _rebuilt_parts(gate, scores.parts, request))
        case ClassificationSums():
            _check_counts(gate, scores)
            return scores if is_enough else ClassificationSums.none(scores.num_classes)
        case MeanScores():
            _check_metric_names(gate, scores.sums)
    if is_unmarked(scores):
        return unmarked(scores)
    checked = {name: plain_number(gate, "metrics", value) for name, value in scores_numbers(scores).items()}
    shown = checked if is_enough else dict.fromkeys(checked, 0.0)
    n = count * is_enough
    return MeanScores(n, shown) if isinstance(scores, MeanScores) else RegressionSums(n, **shown)


def _rebuilt_parts(gate: Gate, parts: Any, request: Request) -> dict[str, Any]:
    """Each target's scores are told where enough rows have the target."""
    fits = type(parts) is dict and 0 < len(parts) <= MAX_METRICS
    gate.require(fits, "metrics", f"they must be of 1 to {MAX_METRICS} targets")
    rebuilt = {}
    for target, part in parts.items():
        is_name = type(target) is str and NAME.fullmatch(target) is not None
        gate.require(is_name, "metrics", "the name of a target must be up to 64 letters, digits, '_', '.', '-'")
        rebuilt[target] = _rebuilt_scores(gate, part, request, SCORES_OF_TARGET)
    return rebuilt


def _check_counts(gate: Gate, scores: ClassificationSums) -> None:
    """Counts of rows by class and by score; not of more rows than there are, but for their groups
    (`Resolution.released`)."""
    objection = scores.objection()
    gate.require(not objection, "metrics", objection)
    slack = gate.policy.min_examples * scores.num_classes
    gate.require(sum(scores.confusion) <= scores.num_examples + slack, "metrics", "its counts are of more rows than it")


def _check_metric_names(gate: Gate, sums: Any) -> None:
    gate.require(type(sums) is dict, "metrics", "sums must be a dict")
    remedy = "a task declares its names in `Task.metrics`, the owner lists names under 'metrics'"
    gate.require(set(sums) <= gate.metrics, "metrics", f"one of its names is not allowed; {remedy}")


def digest_metrics(kind: str, by_model: dict[str, Metrics]) -> MessageDigest:
    names = sorted({name for metrics in by_model.values() for name in metrics.held_out.values()})
    counts = [max(metrics.train.num_examples, metrics.held_out.num_examples) for metrics in by_model.values()]
    return message_digest(kind, by_model, tuple(names), max(counts, default=0))


# ---- descriptions


def check_description(gate: Gate, description: Any, request: Request) -> SiloDescription:
    _require_message(gate, request.kind, description, SiloDescription)
    unreadable, notes = _mapping(gate, description.unreadable), _mapping(gate, description.notes)
    counts = (description.num_examples, description.num_held_out, *unreadable.values(), *notes.values())
    for count in counts:
        gate.require(is_count(count), "description", "counts of rows must be whole numbers, 0 or more")
    agreement = _mapping(gate, description.agreement)
    are_known = all(_is_agreed(key, value, request.agreement) for key, value in agreement.items())
    gate.require(are_known, "description", "what all must agree on is not what its task asks for")
    tells_metrics = "metrics" in gate.policy.kinds
    metrics = _declared_metrics(gate, description.metrics, request.metrics) if tells_metrics else ()
    device = description.device
    is_device = type(device) is str and DEVICE.fullmatch(device) is not None
    gate.require(is_device, "description", "its device is none")
    limit = gate.policy.max_description_bytes
    num_bytes = bytes_of((agreement, metrics, description.fingerprint))
    gate.require(num_bytes <= limit, "description", f"it has more bytes than max_description_bytes={limit}")
    texts = [*agreement.values(), *metrics]
    gate.require(gate.row_matcher.numbers_in(texts) < FEW_NUMBERS, "description", REPEATS_ROWS)
    gate.metrics |= frozenset(metrics)
    return SiloDescription(
        gate.silo, description.num_examples, description.num_held_out, _known_reasons(unreadable), agreement,
        checked_fingerprint(gate, description.fingerprint), device, metrics=metrics,
        notes=_known_reasons(notes, NOTES),
    )  # fmt: skip


def _is_agreed(key: Any, value: Any, wanted: Mapping[str, str]) -> bool:
    """Whether a text is the one that all must have, or stands for another one."""
    if type(key) is not str or key not in wanted or type(value) is not str:
        return False
    return value == wanted[key] or (
        value.startswith(ANOTHER) and REFERENCE.fullmatch(value[len(ANOTHER) :]) is not None
    )


def _known_reasons(counts: Mapping[str, int], allowed: frozenset[str] = UNREADABLE) -> dict[str, int]:
    """Return counts under reasons that hold nothing of a row; others are counted together."""
    known: Counter[str] = Counter()
    for reason, count in counts.items():
        known[kind_of(reason, allowed) if type(reason) is str else OTHER] += count
    return dict(known)


def _declared_metrics(gate: Gate, names: Any, declared: tuple[str, ...]) -> tuple[str, ...]:
    """Return the names of metrics that may be told from now on: where the owner lists names, those among them."""
    fits = type(names) is tuple and len(names) <= MAX_METRICS
    gate.require(fits, "description", f"a tuple of at most {MAX_METRICS} names of metrics is wanted")
    found = tuple(_name(gate, name) for name in names)
    gate.require(set(found) <= set(declared), "description", "it has a metric that its task does not declare")
    return found if DECLARED in gate.policy.metrics else tuple(name for name in found if name in gate.metrics)


def _mapping(gate: Gate, value: Any) -> Mapping[Any, Any]:
    fits = type(value) is dict and len(value) <= MAX_ENTRIES
    gate.require(fits, "description", f"a mapping of at most {MAX_ENTRIES} entries is wanted")
    return value


def _name(gate: Gate, value: Any) -> str:
    fits = type(value) is str and NAME.fullmatch(value) is not None
    gate.require(fits, "description", "a name must be up to 64 letters, digits, '_', '.', '-'")
    return value


LICENCES = frozenset({
    "CC0-1.0", "CC-BY-3.0", "CC-BY-4.0", "CC-BY-SA-3.0", "CC-BY-SA-4.0", "CC-BY-NC-4.0", "CC-BY-NC-SA-4.0",
    "CC-BY-ND-4.0", "CC-BY-NC-ND-4.0", "ODbL-1.0", "ODC-By-1.0", "PDDL-1.0", "MIT", "Apache-2.0", "BSD-3-Clause",
})  # fmt: skip
"""What a fingerprint may say in words: under which of these licences a public source gives its data."""


def checked_fingerprint(gate: Gate, fingerprint: Any) -> dict[str, object]:
    """Return a fingerprint with hashes, whole numbers, shapes and licences; of another text, which may be a name or a
    path of the owner's, only its hash."""
    return {_name(gate, key): _fingerprint_value(gate, value) for key, value in _mapping(gate, fingerprint).items()}


def _fingerprint_value(gate: Gate, value: Any) -> Any:
    if value is None or type(value) is bool or (type(value) is str and (HASH.fullmatch(value) or value in LICENCES)):
        return value
    if type(value) is str:
        return hashlib.sha256(value.encode()).hexdigest()[:16]
    shape = list(value) if type(value) in (list, tuple) else [value]
    fits = len(shape) <= MAX_DIMENSIONS and all(type(number) is int and is_count(number) for number in shape)
    reason = f"a fingerprint holds hashes, whole numbers and lists of at most {MAX_DIMENSIONS} of them"
    gate.require(fits, "description", reason)
    return value if type(value) is int else shape


def digest_description(kind: str, description: SiloDescription) -> MessageDigest:
    names = tuple(sorted({*description.fingerprint, *description.agreement, *description.metrics}))
    return message_digest(kind, description, names, description.num_examples)


# ---- artifacts


def check_artifact(gate: Gate, artifact: Any, request: Request) -> Artifact:
    """What a silo made from its rows and hands on as bytes, such as a generator or spectra."""
    _require_message(gate, "artifact", artifact, Artifact)
    gate.require(_is_text(artifact.what, request.session), "artifact", "it answers another question")
    require_rows(gate, "artifact", artifact.num_examples)
    gate.require(is_plain_array(artifact.data, np.uint8), "artifact", "its data must be one row of bytes")
    data, facts = artifact.data, artifact.facts
    gate.require(not _holds_rows(gate, data), "artifact", "its bytes repeat values of the silo's rows")
    are_few = type(facts) is dict and len(facts) <= MAX_FACTS
    are_named = are_few and all(type(name) is str and NAME.fullmatch(name) for name in facts)
    gate.require(are_named, "artifact", f"its facts must be at most {MAX_FACTS} numbers with short names")
    gate.require(all(map(_is_fact, facts.values())), "artifact", f"a fact is not a number, or beyond {MAX_FACT:g}")
    num_known = gate.row_matcher.known_numbers(list(facts.values()))
    is_chance = num_known <= max(FEW_NUMBERS, len(facts) // 4)
    gate.require(is_chance, "artifact", "its facts repeat values of the silo's rows")
    return Artifact(gate.silo, request.session, artifact.num_examples, facts, data)


def _is_fact(value: Any) -> bool:
    """Whether a value is a finite float, or a whole number that a float holds exactly."""
    return is_count(abs(value)) if type(value) is int else type(value) is float and abs(value) <= MAX_FACT


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
    return message_digest(kind, artifact, (artifact.what, *artifact.facts), artifact.num_examples, content=digest)


# ---- replies: answers to an application's own messages


def check_reply(gate: Gate, reply: Any, request: Request) -> Reply:
    """What an application (a Flower ClientApp) answers. Rows are the application's own affair: how many stand behind a
    reply is not known here."""
    _require_message(gate, "reply", reply, Reply)
    gate.require(_is_text(reply.what, request.session), "reply", "it answers another question")
    problem = reply_problem(reply.records)
    gate.require(not problem, "reply", problem)
    arrays = [part for record in reply.records.values() for part in record.get("arrays", {}).values()]
    floats = [part for part in arrays if type(part) is np.ndarray and part.dtype.kind == "f"]
    gate.require(not any(map(gate.row_matcher.repeats_rows, floats)), "reply", REPEATS_ROWS)
    return Reply(gate.silo, request.session, reply.records)


def digest_reply(kind: str, reply: Reply) -> MessageDigest:
    return message_digest(kind, reply, (reply.what, *reply.records))


def measure(answer: object) -> np.ndarray | None:
    """Return what an answer's bytes are measured by, where nothing was received that they could be measured by."""
    if type(answer) is Artifact:
        return answer.data
    return np.broadcast_to(np.uint8(0), bytes_of(answer)) if type(answer) is Reply else None


# ---- counts

MAX_COUNTS = 1 << 20


def check_counts(gate: Gate, message: Any, request: Request) -> Counts:
    """Whole numbers, each of enough rows and of no more than there are; of too few rows, none."""
    _require_message(gate, "counts", message, Counts)
    question, num_rows, counts = request.session, message.num_examples, message.counts
    gate.require(_is_text(message.what, question), "counts", "they answer another question")
    require_countable(gate, question)
    gate.require(is_count(num_rows), "counts", "num_examples must be a whole number, 0 or more")
    fits = is_plain_array(counts, np.int64) and len(counts) <= MAX_COUNTS
    gate.require(fits, "counts", f"they must be one row of at most {MAX_COUNTS} whole numbers")
    least = 1 if request.is_known else gate.policy.min_examples
    if num_rows < least:
        return Counts(gate.silo, question, 0, np.zeros_like(counts))
    are_enough = bool(((counts == 0) | (counts >= least)).all())
    gate.require(are_enough, "counts", f"one of them has fewer rows than its owner's min_examples={least}")
    gate.require(bool((counts <= num_rows).all()), "counts", "one of them has more rows than there are")
    return Counts(gate.silo, question, num_rows, counts)


def require_countable(gate: Gate, question: str) -> None:
    """Raise PerimeterRefused for a question that the owner does not answer with counts."""
    allowed = gate.policy.counts
    reason = f"its owner's 'counts' are {', '.join(allowed) or 'none'}, and do not name this question"
    gate.require(question.removeprefix(COUNT) in allowed, "counts", reason)


def largest(given: Sequence[Any]) -> np.ndarray | None:
    """Return the largest array that came with a question: what leaves is measured by what was received."""
    arrays = [part for part in given if type(part) is np.ndarray]
    return max(arrays, key=lambda part: part.nbytes, default=None)


def num_models(given: Sequence[Any]) -> int:
    """Return how many models came with a question: vectors of parameters."""
    return sum(type(part) is np.ndarray and part.dtype == np.float32 for part in given)


def digest_counts(kind: str, message: Counts) -> MessageDigest:
    digest = hashlib.sha256(np.ascontiguousarray(message.counts, "<i8").data).hexdigest()
    return message_digest(kind, message, (message.what,), message.num_examples, content=digest)


# ---- observations: single gradients, made to be attacked


def require_audit(gate: Gate) -> None:
    """Raise PerimeterRefused unless the owner allows an audit."""
    remedy = f"its owner has not allowed an audit ('silos: {{{gate.silo}: {{audit: true}}}}' in site.yaml)"
    gate.require(gate.policy.audit, "observation", remedy)


def check_observation(gate: Gate, message: Any, request: Request) -> GradientObservation:
    require_audit(gate)
    _require_message(gate, "observation", message, GradientObservation)
    received = request.vector
    assert received is not None
    require_rows(gate, "observation", message.num_examples, "min_examples_per_update")
    fits = is_plain_array(message.vector, np.float32) and len(message.vector) <= len(received)
    gate.require(fits, "observation", f"it must hold at most {len(received)} float32 values")
    vector = message.vector
    gate.require(bool(np.isfinite(vector).all()), "observation", "it has values that are not finite")
    gate.require(not gate.row_matcher.repeats_rows(vector), "observation", REPEATS_ROWS)
    return GradientObservation(gate.silo, message.num_examples, vector)


def digest_observation(kind: str, message: GradientObservation) -> MessageDigest:
    norm, digest = float(np.linalg.norm(message.vector)), vector_digest(message.vector)
    return message_digest(kind, message, ("vector",), message.num_examples, norm, digest)


# ---- all of them

KINDS: MessageKinds = {
    "description": MessageKind(SiloDescription, check_description, digest_description),
    "moments": MessageKind(ColumnMoments, check_moments, digest_moments),
    "update": MessageKind(Update, check_update, digest_update),
    "masked": MessageKind(MaskedUpdate, check_masked_update, digest_masked_update),
    "metrics": MessageKind(dict, check_metrics, digest_metrics, parts=(Metrics, *SCORES)),
    "artifact": MessageKind(Artifact, check_artifact, digest_artifact, answers_queries=True),
    "counts": MessageKind(Counts, check_counts, digest_counts, answers_queries=True),
    "reply": MessageKind(Reply, check_reply, digest_reply, answers_queries=True),
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
