"""How a message travels between hub and site: typed, bounded, and never unpickled.

A message is a *header* (who, which call), a *body* (names and numbers, msgpack) and a *payload* (the bytes of its
arrays, one after another). A body says of an array only [offset, dtype, *shape]; the dtypes are five.

    header       both ways     Hello, Welcome, Ask, Acknowledge, Answer
    requests.py  hub -> site   one class a verb of `SiloHost`; `put_to` is the call
    answers.py   site -> hub   kind -> class of the message; each request names the kinds that answer it

Whoever changes one of these, or a dataclass in them, counts PROTOCOL up: two versions do not talk to each other.
"""

import functools
import math
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Annotated, Any

import msgspec
import numpy as np
from msgspec import Meta, Struct

PROTOCOL = 6
"""Version of all that travels."""
DTYPES = ("<f4", "<f8", "<i8", "<u8", "|u1")
ALIGNMENT = 8
MOST_DIMENSIONS = 4
MAX_BODY_BYTES = 1 << 20
LONGEST_TEXT = 2000
LONGEST_NAME = 200
MOST_ENTRIES = 4096
MOST_CALLS = 4096
"""Calls of one site that are open at a time."""
DEEPEST = 8

Name = Annotated[str, Meta(max_length=LONGEST_NAME)]
Text = Annotated[str, Meta(max_length=LONGEST_TEXT)]
Count = Annotated[int, Meta(ge=0, le=2**53)]


class WireError(ValueError):
    """Bytes from the other side are no message: says in what, never which bytes."""


# ---- headers


class Header(Struct, frozen=True, forbid_unknown_fields=True, tag_field="header", kw_only=True):
    """First part of each message; `num_bytes` of payload follow."""

    body: bytes = b""
    num_bytes: Count = 0


class Hello(Header, frozen=True, tag="hello", kw_only=True):
    """A site begins: who it is, which process, how far it got with which hub."""

    protocol: int
    site: Name
    incarnation: Name
    """Of the site's process."""
    hub: Name = ""
    """The hub's process that it last spoke with."""
    received: Count = 0
    """Number of the last call that came from that one."""
    nonce: Name = ""
    """What the hub has to sign together with the site's key."""


class Welcome(Header, frozen=True, tag="welcome", kw_only=True):
    """The hub knows the site."""

    protocol: int
    incarnation: Name
    """Of the hub's process."""
    wanted: Annotated[tuple[Count, ...], Meta(max_length=MOST_CALLS)] = ()
    """Calls whose answers are waited for; answers to others can be thrown away."""
    certificate: Annotated[bytes, Meta(max_length=1 << 15)] = b""
    """The hub's, PEM."""
    proof: Annotated[bytes, Meta(max_length=1 << 12)] = b""
    """Signature by the key of that certificate."""


class Ask(Header, frozen=True, tag="ask", kw_only=True):
    """One call; the body is a `SiloRequest`."""

    call: Count
    silo: Name
    done: Annotated[tuple[Count, ...], Meta(max_length=MOST_CALLS)] = ()
    """Calls whose answers have arrived."""


class Acknowledge(Header, frozen=True, tag="acknowledge", kw_only=True):
    done: Annotated[tuple[Count, ...], Meta(max_length=MOST_CALLS)]


class Answer(Header, frozen=True, tag="answer", kw_only=True):
    """What a call came to; the body is of the class that `ANSWERS` has for the kind."""

    call: Count
    kind: Name


AnyHeader = Hello | Welcome | Ask | Acknowledge | Answer


# ---- the codec


@dataclass(frozen=True)
class Encoded:
    """A message ready to be sent, to one or to many: its arrays are not copied, only pointed at."""

    body: bytes
    pieces: tuple[memoryview, ...] = ()
    num_bytes: int = 0


class _Arrays:
    """Collects the arrays of a message while its body is written."""

    def __init__(self) -> None:
        self.pieces: list[memoryview] = []
        self.num_bytes = 0
        self._offsets: dict[int, int] = {}

    def reference(self, thing: Any) -> Any:
        if isinstance(thing, np.generic):
            return thing.item()
        if not isinstance(thing, np.ndarray) or thing.dtype.str not in DTYPES:
            raise WireError(f"{_called(thing)} does not travel")
        if id(thing) not in self._offsets:
            self._offsets[id(thing)] = self.num_bytes
            self._add(np.ascontiguousarray(thing))
        return [self._offsets[id(thing)], thing.dtype.str, *thing.shape]

    def _add(self, array: np.ndarray) -> None:
        rest = -array.nbytes % ALIGNMENT
        if array.nbytes:
            self.pieces.append(array.data.cast("B"))
        if rest:
            self.pieces.append(memoryview(bytes(rest)))
        self.num_bytes += array.nbytes + rest


def _called(thing: object) -> str:
    return f"an array of {thing.dtype.str}" if isinstance(thing, np.ndarray) else f"a {type(thing).__name__}"


def encode(message: object) -> Encoded:
    """Return a message's body and arrays. WireError for what has no place on the wire."""
    arrays = _Arrays()
    try:
        body = msgspec.msgpack.encode(message, enc_hook=arrays.reference)
    except (TypeError, OverflowError, RecursionError) as error:
        raise WireError(f"{type(message).__name__} cannot be sent: {error}") from None
    if len(body) > MAX_BODY_BYTES:
        raise WireError(f"{type(message).__name__} has {len(body)} bytes besides its arrays, {MAX_BODY_BYTES} may")
    return Encoded(body, tuple(arrays.pieces), arrays.num_bytes)


_received = threading.local()


def decode(
    cls: Any, body: bytes, payload: "memoryview | bytes" = b"", called: str = "", lenient: tuple[type, ...] = ()
) -> Any:
    """Return the message of class `cls` in a body; its arrays are read-only views of the payload. WireError says what
    is wrong. called: what the message is, for errors. lenient: classes whose numbers may be not finite."""
    if len(body) > MAX_BODY_BYTES:
        raise WireError(f"a body of {len(body)} bytes, {MAX_BODY_BYTES} are the most")
    _received.payload = payload
    try:
        message = _decoder(cls).decode(body)
        _require_bounded(message, lenient)
        return message
    except RecursionError:
        raise WireError("it is nested too deeply") from None
    except (msgspec.MsgspecError, ValueError, TypeError, OverflowError, MemoryError) as error:
        raise WireError(f"no {called or getattr(cls, '__name__', 'message')} ({_without_values(error)})") from None
    finally:
        del _received.payload


def encode_header(header: Header) -> bytes:
    return msgspec.msgpack.encode(header)


def decode_header(raw: "bytes | memoryview") -> AnyHeader:
    """Return a message's header. WireError says what is wrong."""
    if len(raw) > 2 * MAX_BODY_BYTES:
        raise WireError(f"a header of {len(raw)} bytes")
    try:
        return _decoder(AnyHeader).decode(raw)
    except (msgspec.MsgspecError, ValueError, TypeError, OverflowError, RecursionError, MemoryError) as error:
        raise WireError(f"no header ({_without_values(error)})") from None


@functools.cache
def _decoder(cls: Any) -> "msgspec.msgpack.Decoder[Any]":
    return msgspec.msgpack.Decoder(cls, dec_hook=_array)


def _without_values(error: Exception) -> str:
    """What msgspec and our own checks say names fields and types; words that came from outside are cut short."""
    return printable(str(error), 160)


def _array(cls: type, said: Any) -> Any:
    """Return the array that a body points at; a plain value where any may stand."""
    if cls is object:
        return said
    if cls is not np.ndarray or not isinstance(said, list) or not 2 <= len(said) <= 2 + MOST_DIMENSIONS:
        raise WireError("an array must be [offset, dtype, *shape]")
    offset, dtype, *shape = said
    if dtype not in DTYPES or not all(type(number) is int and 0 <= number < 2**40 for number in (offset, *shape)):
        raise WireError("an array of an unknown dtype or of no shape")
    payload, size = _received.payload, math.prod(shape)
    num_bytes = size * np.dtype(dtype).itemsize
    if offset % ALIGNMENT or offset + num_bytes > len(payload):
        raise WireError("an array that is not within its message")
    array = np.frombuffer(payload, dtype, size, offset) if size else np.empty(0, dtype)
    if not array.flags.aligned:
        array = array.copy()
    array.flags.writeable = False
    return array.reshape(shape)


def _require_bounded(value: Any, lenient: tuple[type, ...], depth: int = 0, may_be_not_finite: bool = False) -> None:
    """Refuse long texts, many entries, deep nesting, odd types and, mostly, numbers that are not finite."""
    if depth > DEEPEST:
        raise WireError("it is nested too deeply")
    if isinstance(value, str):
        _require(len(value) <= LONGEST_TEXT, f"a text of {len(value)} characters")
    elif isinstance(value, float):
        _require(may_be_not_finite or math.isfinite(value), "a number that is not finite")
    elif isinstance(value, np.ndarray):
        checked = value.dtype.kind != "f" or value.dtype.itemsize == 4 or may_be_not_finite
        _require(checked or bool(np.isfinite(value).all()), "an array of numbers that are not finite")
    elif not isinstance(value, bool | int | None):
        for part in _parts(value):
            _require_bounded(part, lenient, depth + 1, may_be_not_finite or isinstance(value, lenient))


def _parts(value: Any) -> Iterable[Any]:
    if isinstance(value, Mapping):
        _require(len(value) <= MOST_ENTRIES, f"{len(value)} entries")
        _require(all(isinstance(key, str) and len(key) <= LONGEST_NAME for key in value), "a key that is no short name")
        return value.values()
    if isinstance(value, list | tuple):
        _require(len(value) <= MOST_ENTRIES, f"{len(value)} entries")
        return value
    if isinstance(value, Struct):
        return [getattr(value, name) for name in value.__struct_fields__]
    _require(is_dataclass(value), "a value of an unknown type")
    return [getattr(value, each.name) for each in fields(value)]


def _require(holds: bool, what: str) -> None:
    if not holds:
        raise WireError(what)


def printable(words: str, longest: int = LONGEST_TEXT) -> str:
    """Return words on one line, without control characters."""
    return "".join(letter if letter.isprintable() else " " for letter in words[:longest])
