"""Masked updates at the gate. The update itself was checked before it was masked; under its masks only form is left."""

import hashlib
from typing import Any

import numpy as np

from ray_fed.federation.messages import MaskedUpdate
from ray_fed.perimeter.gate import REBUILT, Gate, Request
from ray_fed.perimeter.message_digest import KNOWN, MessageDigest


def _masked(gate: Gate, message: Any, request: Request) -> MaskedUpdate:
    fields = {"silo", "session", "server_round", "ring", "num_steps", "seconds"}
    if type(message) is not MaskedUpdate or set(vars(message)) != fields or message.silo != gate.silo:
        raise gate.refusal("masked", "the answer must be a MaskedUpdate of this silo and carry nothing more")
    assert request.vector is not None
    ring, shape = message.ring, (len(request.vector) + 2, 2)
    if type(ring) is not np.ndarray or ring.dtype != np.uint64 or ring.shape != shape or ring.dtype.metadata:
        raise gate.refusal("masked", f"it must hold uint64 {list(shape)}")
    return MaskedUpdate(
        gate.silo, request.session, request.server_round, ring.copy(), int(message.num_steps), float(message.seconds)
    )


def _digest_of(kind: str, message: MaskedUpdate) -> MessageDigest:
    digest = hashlib.sha256(np.ascontiguousarray(message.ring, "<u8").reshape(-1).data).hexdigest()
    return MessageDigest(kind, ("ring", "num_steps"), message.num_bytes, digest)


REBUILT["masked"] = _masked
KNOWN["masked"] = (MaskedUpdate, _digest_of)
