"""The codec between sites and hub: what comes through, and that everything else is one clear error."""

import asyncio
import hashlib
import json
from dataclasses import replace
from functools import partial

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_fed.errors import ConfigError, DataError, PerimeterRefused, SiloFailed
from ray_fed.federation.messages import (
    Artifact,
    Counts,
    GradientObservation,
    MaskedUpdate,
    Metrics,
    SessionSpec,
    SiloDescription,
    Update,
)
from ray_fed.learning.private_steps import PrivateSteps
from ray_fed.learning.standardisation import ColumnMoments, Standardizer
from ray_fed.learning.trainer import TrainingPlan
from ray_fed.metrics import ClassificationSums, MeanScores, RegressionSums, SeveralScores
from ray_fed.privacy.compression import Compression
from ray_fed.sites import answers, link, wire
from ray_fed.sites.answers import (
    ANSWERS,
    MAY_BE_NOT_FINITE,
    FailureForm,
    LedgerCopy,
    answer_form,
    decode_answer,
    error_of,
    failure_form,
    message_of,
)
from ray_fed.sites.requests import (
    AnyRequest,
    CloseSessionRequest,
    EndRequest,
    EvaluateManyRequest,
    EvaluateRequest,
    FitRequest,
    FitSumRequest,
    Given,
    Invitation,
    InviteRequest,
    JoinRequest,
    LedgerRequest,
    MomentsRequest,
    ObserveRequest,
    OpenRequest,
    OpenSessionRequest,
    PrepareRequest,
    QueryRequest,
    ReceiveModelRequest,
    RestoreRequest,
    decode_request,
)
from ray_fed.sites.wire import WireError, decode, encode

VECTOR = np.arange(5, dtype=np.float32)
PLAN = TrainingPlan(0, 2, 3, 2, keep_local=("bias",), private=PrivateSteps(1.0))
SPEC = SessionSpec("s", replace(PLAN, private=None, compression=Compression("top_k")), 3, "abc", secure_threshold=2)
SCALER = Standardizer(np.zeros(3), np.ones(3))
REQUESTS = [
    InviteRequest(Invitation("run", "north", "alloys", "energy", {"hidden": (8, 8), "lr": 0.1, "s": "x", "no": None})),
    OpenRequest(), JoinRequest(SCALER), MomentsRequest(), PrepareRequest(None),
    OpenSessionRequest(SPEC), RestoreRequest(SCALER, (SPEC, SPEC)), CloseSessionRequest("s"),
    FitRequest("s", 3, VECTOR), EvaluateRequest("s", ("a", "b"), (VECTOR, VECTOR + 1)),
    QueryRequest("secure_shares", (Given("s"), Given(3), Given(2.5), Given(None, VECTOR.view(np.uint8)))),
    FitSumRequest("s", 3, ("a", "b"), (5, 6), VECTOR), EvaluateManyRequest("s", ("a", "b"), ("m",), (VECTOR,)),
    ReceiveModelRequest(VECTOR.view(np.uint8), VECTOR.view(np.uint8)),
    ObserveRequest(VECTOR, 3), LedgerRequest(), EndRequest(),
]  # fmt: skip
SUMS = RegressionSums(3, 1.0, 2.0, float("nan"), 4.0)
COUNTS = ClassificationSums.of(np.array([0, 1, 1]), np.array([0.1, 0.2, 0.9]))
MESSAGES = [
    None,
    "digest",
    SiloDescription(
        "a", 3, 1, {"no formula": 2}, {"task": "x"}, {"hash": "ff", "rows": 3, "columns": ["a", "b"]}, "cpu"
    ),
    ColumnMoments.of(np.eye(3)),
    Update("a", "s", 1, VECTOR, 3, 2, float("nan")),
    Update("a", "s", 1, np.empty(0, np.float32), 3, 2, 0.5, 0.1, VECTOR.view(np.uint8)),
    MaskedUpdate("a", "s", 1, np.full((7, 2), 2**64 - 1, np.uint64)),
    {"m": Metrics("a", SUMS, SUMS), "n": Metrics("a", MeanScores(2, {"iou": 1.5}), MeanScores(0, {}))},
    {"m": Metrics("a", COUNTS, COUNTS.unmarked())},
    {"m": Metrics("a", SeveralScores(4, {"gap": SUMS, "metal": COUNTS}), SeveralScores(0, {"metal": COUNTS}))},
    Artifact("a", "generator", 3, {"bytes": 3.0}, VECTOR.view(np.uint8)),
    Counts("a", "count_errors", 9, np.array([0, 5, 9])),
    GradientObservation("a", 3, VECTOR),
    LedgerCopy(VECTOR.view(np.uint8), "head", "key"),
    answers.SumForm(np.arange(3), np.arange(3), {"a": answers.NumbersForm(1, 2, 0.5, 0.1, 12)}, {"b": "late"}, ("c",)),
    answers.MetricsOfManyForm({"a": answers.metrics_form({"m": Metrics("a", SUMS, SUMS)}, "a")}, {"b": "late"}),
]


def sent(cls, message):
    encoded = encode(message)
    payload = b"".join(encoded.pieces)
    assert len(payload) == encoded.num_bytes
    return decode(cls, encoded.body, payload, lenient=MAY_BE_NOT_FINITE)


def alike(one, other):
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()
    if isinstance(one, tuple | list):
        return type(one) is type(other) and len(one) == len(other) and all(map(alike, one, other))
    if isinstance(one, dict):
        return list(one) == list(other) and all(map(alike, one.values(), other.values()))
    if isinstance(one, float):
        return np.float64(one).tobytes() == np.float64(other).tobytes()
    if isinstance(one, msgspec.Struct):
        return type(one) is type(other) and alike(msgspec.structs.asdict(one), msgspec.structs.asdict(other))
    return alike(vars(one), vars(other)) if hasattr(one, "__dataclass_fields__") else one == other


@pytest.mark.parametrize("request_", REQUESTS, ids=lambda each: type(each).__name__)
def test_every_request_comes_through(request_):
    assert alike(sent(AnyRequest, request_), request_)


def test_every_kind_of_request_is_tried_here():
    kinds = {cls.__struct_config__.tag for cls in AnyRequest.__args__}
    assert {type(each).__struct_config__.tag for each in REQUESTS} == kinds
    answered = {kind for cls in AnyRequest.__args__ for kind in cls.answers}
    assert answered | {"failed"} == set(ANSWERS)


@pytest.mark.parametrize("message", MESSAGES, ids=lambda each: type(each).__name__)
def test_every_answer_comes_through(message):
    kind, form = answer_form(message, "a")
    assert alike(message_of(sent(ANSWERS[kind], form)), message)


def test_arrays_are_read_only_and_one_that_is_sent_twice_travels_once():
    request_ = EvaluateRequest("s", ("a", "b"), (VECTOR, VECTOR))
    assert encode(request_).num_bytes == 24
    for vector in sent(AnyRequest, request_).vectors:
        assert not vector.flags.writeable


@pytest.mark.parametrize(
    "value", [object(), np.array(["x"]), np.zeros(2, complex), np.zeros(2, "O"), np.float16(1) + VECTOR.astype("f2")]
)
def test_what_has_no_place_on_the_wire_is_not_sent(value):
    with pytest.raises(WireError):
        encode(QueryRequest("q", (Given.of(value),)))


def test_a_user_s_own_scores_are_refused_where_they_are_made():
    class Own(MeanScores):
        pass

    with pytest.raises(
        WireError, match=r"scores of the class Own have no form on the wire; known: \['classes', 'means'"
    ):
        answer_form({"m": Metrics("a", Own(1, {}), Own(1, {}))}, "a")


# ---- what is wrong


def pack(**fields):
    return msgspec.msgpack.encode(fields)


def fit(vector, **fields):
    return pack(**{"verb": "fit", "session": "s", "server_round": 1, "vector": vector} | fields)


def said(call):
    """What is wrong with a message, "" where nothing is."""
    try:
        call()
    except WireError as error:
        return str(error)
    return ""


PAYLOAD = bytes(64)
WRONG = {
    "an unknown verb": pack(verb="__reduce__"),
    "no verb": pack(session="s"),
    "an unknown field": pack(verb="open", more=1),
    "a field of another type": fit([0, "<f4", 4], session=3),
    "a negative round": fit([0, "<f4", 4], server_round=-1),
    "a long name": fit([0, "<f4", 4], session="s" * 300),
    "an object array": fit([0, "|O8", 4]),
    "text as an array": fit("xxxx"),
    "a negative shape": fit([0, "<f4", -4]),
    "a shape of bool": fit([0, "<f4", True]),
    "a shape that overflows": fit([0, "<f4", 2**39, 2**39]),
    "more values than there are": fit([0, "<f4", 17]),
    "an offset behind the end": fit([64, "<f4", 1]),
    "an odd offset": fit([3, "<f4", 1]),
    "five dimensions": fit([0, "|u1", 1, 1, 1, 1, 1]),
    "nothing": b"",
    "half a message": fit([0, "<f4", 4])[:-3],
    "more than a message": fit([0, "<f4", 4]) + b"\x01",
    "a huge whole number": b"\x82\xa4verb\xa3fit\xacserver_round\xcf" + b"\xff" * 8,
    "nested": pack(verb="query", query="q", given=[]).replace(b"\x90", b"\x91" * 5000 + b"\x90"),
    "a long body": bytes(wire.MAX_BODY_BYTES + 1),
}


@pytest.mark.parametrize("kind", list(WRONG))
def test_what_is_no_request_is_one_short_error(kind):
    with pytest.raises(WireError) as raised:
        decode_request(WRONG[kind], PAYLOAD)
    assert len(str(raised.value)) < 250
    assert str(raised.value).isprintable()


DESCRIPTION = {
    "silo": "a", "num_examples": 1, "num_held_out": 0, "unreadable": {}, "agreement": {}, "fingerprint": {},
    "device": "cpu",
}  # fmt: skip


@pytest.mark.parametrize(
    "wrong",
    [
        {"fingerprint": {"x": [[[[[[[[[[1]]]]]]]]]]}},
        {"fingerprint": {"x": "y" * 2001}},
        {"fingerprint": {"x" * 300: 1}},
        {"fingerprint": {"x": float("inf")}},
        {"fingerprint": {"x": b"bytes"}},
        {"fingerprint": {"x": msgspec.msgpack.Ext(3, b"x")}},
        {"fingerprint": {str(number): 1 for number in range(5000)}},
        {"unreadable": {"x": "y"}},
        {"num_examples": 1.5},
        {"num_examples": "1"},
        {"silo": None},
    ],
    ids=lambda content: ", ".join(content),
)
def test_what_is_no_description_is_refused(wrong):
    with pytest.raises(WireError):
        decode(SiloDescription, msgspec.msgpack.encode(DESCRIPTION | wrong))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_scalers_that_are_not_finite_are_refused_and_updates_are_left_to_the_guard(value):
    with pytest.raises(WireError, match="not finite"):
        sent(Standardizer, Standardizer(np.full(3, value), np.ones(3)))
    assert not np.isfinite(sent(Update, Update("a", "s", 1, np.full(5, value, np.float32), 3, 2, value)).vector[-1])


def test_scores_of_an_unknown_class_and_of_other_fields_are_refused():
    for kind, sums in (
        ("os.system", {}),
        ("regression", {"num_examples": 1}),
        ("means", {"num_examples": 1.5, "sums": {}}),
        ("classes", {"num_examples": 1, "num_classes": 2, "log_loss_steps": 0}),
        ("several", {"num_examples": 1.5}),
        ("several", {}),
    ):
        form = answers.MetricsForm("a", {"m": (answers.ScoresForm(kind, sums), answers.ScoresForm("means", {}))})
        with pytest.raises(WireError, match="scores"):
            message_of(form)
    parts = {"gap": answers.ScoresForm("several", {"num_examples": 1})}
    nested = answers.ScoresForm("several", {"num_examples": 1}, None, parts)
    with pytest.raises(WireError, match="scores"):
        message_of(answers.MetricsForm("a", {"m": (nested, nested)}))


@given(st.binary(max_size=400), st.binary(max_size=64))
def test_no_bytes_raise_anything_else(body, payload):
    for read in (decode_request, *(partial(decode_answer, kind) for kind in ANSWERS)):
        assert len(said(partial(read, body, payload))) < 250


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=30)
    | st.binary(max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4),
)


@given(st.sampled_from(REQUESTS), st.data())
def test_a_field_of_anything_is_a_request_or_one_short_error(request_, data):
    fields = msgspec.msgpack.decode(encode(request_).body)
    fields[data.draw(st.sampled_from([*fields, "new"]))] = data.draw(VALUES)
    assert len(said(lambda: decode_request(msgspec.msgpack.encode(fields), PAYLOAD))) < 250


@given(st.sampled_from(MESSAGES), st.data())
def test_a_field_of_anything_is_an_answer_or_one_short_error(message, data):
    kind, form = answer_form(message, "a")
    fields = msgspec.msgpack.decode(encode(form).body)
    if isinstance(fields, dict):
        fields[data.draw(st.sampled_from([*fields, "new"]))] = data.draw(VALUES)
    assert len(said(lambda: message_of(decode_answer(kind, msgspec.msgpack.encode(fields), PAYLOAD)))) < 250


# ---- errors


ERRORS = [
    SiloFailed("a", "training", "x"),
    PerimeterRefused("a", "update", "x"),
    DataError("silo 'a': x"),
    ConfigError("silo 'a': x"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_errors_that_were_reduced_come_through_as_they_are(error):
    again = error_of(sent(FailureForm, failure_form(error, "a", "training")), "a", "training")
    assert type(again) is type(error)
    assert again.args == error.args


def test_of_any_other_error_the_class_alone_travels():
    again = error_of(failure_form(KeyError("row 7: 1.25"), "a", "training"), "a", "training")
    assert (
        str(again) == "silo 'a' failed while training: KeyError at its site; what it says stays in the site's own log"
    )


@pytest.mark.parametrize(
    "form",
    [
        FailureForm("SystemExit", ("x",)), FailureForm("SiloFailed", ()), FailureForm("PerimeterRefused", (1, 2)),
        FailureForm("ConfigError", ()), FailureForm("SiloFailed", ("b", "x", "y" * 2000)),
        FailureForm("DataError", ("\x1b[31m\n",)),
        FailureForm("SiloFailed", ("b", 5, 6)),
    ],
)  # fmt: skip
def test_an_error_is_of_the_silo_that_was_asked_in_printable_words(form):
    error = error_of(form, "a", "training")
    assert str(error).startswith("silo 'a'")
    assert str(error).isprintable()
    assert len(str(error)) < 2200


# ---- frames


async def reassembled(parts):
    left = iter(parts)

    async def read():
        return next(left, None)

    async def admit(header):
        pass

    return await link.receive(read, admit)


@pytest.mark.parametrize("length", [0, 1, 7, 1000, link.CHUNK // 4, link.CHUNK // 4 + 1, link.CHUNK - 3])
def test_frames_are_no_longer_than_a_chunk_and_come_together_again(length):
    vector = np.arange(length, dtype=np.float32)
    encoded = encode(ObserveRequest(vector, 3))
    header = wire.Ask(call=1, silo="a", body=encoded.body, num_bytes=encoded.num_bytes)
    parts = list(link.frames(header, encoded))
    assert max(map(len, parts)) <= link.MAX_FRAME_BYTES
    assert len(parts) == 1 + max(0, -(-(encoded.num_bytes - link.CHUNK) // link.CHUNK))
    received, payload = asyncio.run(reassembled(parts))
    assert received == header
    assert np.array_equal(decode(AnyRequest, received.body, payload).vector, vector)


@given(st.lists(st.binary(max_size=200), min_size=1, max_size=4))
def test_frames_of_anything_are_a_message_or_one_short_error(parts):
    assert len(said(lambda: asyncio.run(reassembled(parts)))) < 250


def test_a_frame_of_another_length_is_refused():
    encoded = encode(ObserveRequest(np.zeros(link.CHUNK, np.float32), 3))
    parts = list(link.frames(wire.Ask(call=1, silo="a", num_bytes=encoded.num_bytes), encoded))
    for wrong in ([parts[0], b"x"], [parts[0], parts[1] + b"x"], [parts[0] + bytes(5 << 20)]):
        with pytest.raises(WireError):
            asyncio.run(reassembled(wrong))


# ---- the version


def test_who_changes_what_travels_counts_the_version_up():
    """Two versions that read one message differently must not talk: on a change of the digest, PROTOCOL goes up."""
    classes = [wire.AnyHeader, AnyRequest, *ANSWERS.values(), *answers.SCORES.values(), ClassificationSums]
    _, parts = msgspec.json.schema_components(classes, schema_hook=lambda _: {"type": "array"})
    shapes = {name: sorted(part.get("properties", {})) for name, part in parts.items()}
    digest = hashlib.sha256(json.dumps(shapes, sort_keys=True).encode()).hexdigest()
    assert (wire.PROTOCOL, digest[:16]) == (6, "4c1ba13532be69e4")
