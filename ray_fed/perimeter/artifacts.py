"""Artifacts at the gate: what a silo made from its rows and hands on as bytes, such as a generator or spectra.

What is checked is form, as for every message. Whether an artifact remembers the rows it was made from is the business
of who makes it; for generators see ray_fed/style_transfer/synthesis.py.
"""

import hashlib
import math
from typing import Any

import numpy as np

from ray_fed.federation.messages import Artifact
from ray_fed.perimeter.gate import FEW_NUMBERS, NAME, REBUILT, Gate, Request
from ray_fed.perimeter.message_digest import KNOWN, MessageDigest

TEXT_BYTES = 1 << 16
MOST_FACTS = 4096
"""Numbers beside the bytes: losses per epoch, sizes."""


def checked_artifact(gate: Gate, artifact: Any, request: Request) -> Artifact:
    """Return the artifact rebuilt from its checked parts, or raise PerimeterRefused."""
    if type(artifact) is not Artifact or set(vars(artifact)) != {"silo", "what", "num_examples", "facts", "data"}:
        raise gate.refusal("artifact", "the answer must be an Artifact and carry nothing more than its fields")
    if artifact.silo != gate.silo or artifact.what != request.session:
        raise gate.refusal("artifact", f"it must be the '{request.session}' of this silo")
    count, data = artifact.num_examples, artifact.data
    if type(count) is not int or count < gate.policy.min_examples:
        raise gate.refusal("artifact", f"{count} rows stand behind it, min_examples={gate.policy.min_examples}")
    if type(data) is not np.ndarray or data.dtype != np.uint8 or data.ndim != 1 or data.dtype.metadata:
        raise gate.refusal("artifact", "its data must be one row of bytes")
    data = np.array(data)
    if holds_rows(gate, data):
        raise gate.refusal("artifact", "its bytes repeat values of the silo's rows")
    facts = dict(artifact.facts)
    if len(facts) > MOST_FACTS or not all(type(name) is str and NAME.fullmatch(name) for name in facts):
        raise gate.refusal("artifact", f"its facts must be at most {MOST_FACTS} numbers with short names")
    if not all(type(value) in (int, float) and not math.isnan(value) for value in facts.values()):
        raise gate.refusal("artifact", "a fact is not a number")
    if gate.row_matcher.known_numbers(list(facts.values())) > max(FEW_NUMBERS, len(facts) // 4):
        raise gate.refusal("artifact", "its facts repeat values of the silo's rows")
    return Artifact(gate.silo, request.session, count, facts, data)


def holds_rows(gate: Gate, data: np.ndarray) -> bool:
    """Tell whether bytes are the rows as float32 or float64, or written as text. Packed bytes are not unpacked."""
    for start in range(8):
        for kind in ("<f4", "<f8"):
            usable = (len(data) - start) // np.dtype(kind).itemsize * np.dtype(kind).itemsize
            if usable > 0 and gate.row_matcher.repeats_rows(data[start : start + usable].copy().view(kind)):
                return True
    text = data[:TEXT_BYTES].tobytes()
    return text.isascii() and gate.row_matcher.numbers_in([text.decode("ascii")]) >= FEW_NUMBERS


def _digest_of(kind: str, artifact: Artifact) -> MessageDigest:
    digest = hashlib.sha256(artifact.data.tobytes()).hexdigest()
    return MessageDigest(
        kind, (artifact.what, *artifact.facts), artifact.data.nbytes, digest, None, artifact.num_examples
    )


REBUILT["artifact"] = checked_artifact
KNOWN["artifact"] = (Artifact, _digest_of)
