"""What a silo returned, as plain data: the gate never looks at an object of the task's.

An object may run code of its class whenever it is looked at, compared, shown or thrown away. So what comes back is
taken apart inside the boundary, while all ways out are closed, and only numbers, texts, bytes, arrays, lists, mappings
and the messages of this package go on to the gate, each of exactly its class and each a copy. Anything else goes on as
`FOREIGN`, of which no check approves.
"""

from collections.abc import Collection, Mapping
from dataclasses import fields
from typing import Any, Final

import numpy as np

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
