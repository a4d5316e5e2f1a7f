"""Flower's messages as plain data, and back.

Down to a silo go the bytes of Flower's own protocol buffers. What comes back crosses the gate, so it is taken apart:
records by name, each of arrays, numbers and texts (`ray_fed.federation.messages.Reply`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ray_fed.federation.messages import NUMBER_KINDS, Records
from ray_fed.flower.package import flower

NUMPY = "numpy.ndarray"
"""How Flower names arrays that are stored as NumPy's."""


@dataclass(frozen=True)
class Letter:
    """A message on its way to a silo."""

    metadata: bytes = field(repr=False)
    content: np.ndarray = field(repr=False)
    """uint8 [n]: the records, one array for all messages that carry the same ones."""


def letter_of(message: Any, content: np.ndarray) -> Letter:
    """Return a Flower message as it travels; content: `content_of` its records."""
    return Letter(flower("common.serde_utils").metadata_to_proto(message.metadata).SerializeToString(), content)


def message_of(letter: Letter) -> Any:
    """Return the Flower message of a letter."""
    proto = flower("proto.message_pb2")
    metadata = flower("common.serde_utils").metadata_from_proto(proto.Metadata.FromString(letter.metadata))
    return flower("app.message.message").make_message(metadata, record_dict_of(letter.content))


def content_of(record_dict: Any) -> np.ndarray:
    """Return the bytes of a RecordDict, uint8 [n], equal for equal ones."""
    proto = flower("common.serde").recorddict_to_proto(record_dict)
    return np.frombuffer(proto.SerializeToString(deterministic=True), np.uint8)


def record_dict_of(content: np.ndarray) -> Any:
    """Return the RecordDict of bytes [n]."""
    proto = flower("proto.recorddict_pb2").RecordDict.FromString(content.tobytes())
    return flower("common.serde").recorddict_from_proto(proto)


# ---- answers, as plain data


def plain_records(record_dict: Any) -> Records:
    """Return a RecordDict as plain data."""
    app = flower("app")
    kinds = {"arrays": app.ArrayRecord, "metrics": app.MetricRecord, "config": app.ConfigRecord}
    return {
        name: {kind: {key: _plain(value) for key, value in record.items()}}
        for name, record in record_dict.items()
        for kind, cls in kinds.items()
        if isinstance(record, cls)
    }


def record_dict(records: Records) -> Any:
    """Return plain data as the RecordDict that it was."""
    app = flower("app")
    made = app.RecordDict()
    for name, record in records.items():
        [(kind, values)] = record.items()
        if kind == "arrays":
            made[name] = app.ArrayRecord({key: _flower_array(value) for key, value in values.items()})
        else:
            cls = app.MetricRecord if kind == "metrics" else app.ConfigRecord
            made[name] = cls({key: _flower_value(value) for key, value in values.items()})
    return made


def _plain(value: Any) -> Any:
    if isinstance(value, flower("app").Array):
        return _plain_array(value)
    if isinstance(value, bytes):
        return np.frombuffer(value, np.uint8)
    if isinstance(value, list):
        return [_plain(part) for part in value]
    return _own_number(value)


def _own_number(value: Any) -> Any:
    """Return Python's own number for one of NumPy's, which Flower takes for one."""
    return value.item() if isinstance(value, np.generic) else value


def _plain_array(array: Any) -> Any:
    """Return an array's values; of one that is not stored as numbers its bytes, and what it says of itself."""
    values = array.numpy() if array.stype == NUMPY else None
    if values is not None and values.dtype.kind in NUMBER_KINDS:
        return values
    data = np.frombuffer(array.data, np.uint8)
    return {"dtype": array.dtype, "shape": list(array.shape), "stype": array.stype, "data": data}


def _flower_array(value: Any) -> Any:
    cls = flower("app").Array
    if isinstance(value, Mapping):
        return cls(value["dtype"], tuple(value["shape"]), value["stype"], value["data"].tobytes())
    return cls(value)


def _flower_value(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.tobytes()
    return [_flower_value(part) for part in value] if isinstance(value, list) else value
