"""Observations at the gate: single gradients, made to be attacked. They leave only where the owner allows an audit."""

from typing import Any

import numpy as np
import torch

from ray_fed.errors import PerimeterRefused
from ray_fed.federation.messages import GradientObservation, Vector
from ray_fed.federation.silo import Silo
from ray_fed.learning.layout import load_vector
from ray_fed.perimeter.gate import REBUILT, Gate, Request
from ray_fed.perimeter.message_digest import KNOWN, MessageDigest, vector_digest

FIELDS = {"silo", "num_examples", "vector"}


def observed(gate: Gate, silo: Silo, vector: Vector, num_examples: int) -> GradientObservation:
    """Return the gradient of the task's loss over the silo's first rows, at parameters [num_parameters]; nothing is
    computed, and PerimeterRefused raised, where the owner does not allow it."""
    _require_audit(gate)
    num_examples = max(1, min(num_examples, len(silo.samples.features)))
    network = load_vector(silo.task.model(0), vector)
    loss = silo.task.loss(network(silo.samples.features[:num_examples]), silo.samples.targets[:num_examples])
    parts = torch.autograd.grad(loss, list(network.parameters()))
    return GradientObservation(
        silo.spec.name, num_examples, torch.cat([part.reshape(-1) for part in parts]).cpu().numpy()
    )


def _require_audit(gate: Gate) -> None:
    if not gate.policy.audit:
        remedy = f"its owner has not allowed an audit ('silos: {{{gate.silo}: {{audit: true}}}}' in site.yaml)"
        raise PerimeterRefused(gate.silo, "observation", remedy)


def _observation(gate: Gate, message: Any, request: Request) -> GradientObservation:
    _require_audit(gate)
    if type(message) is not GradientObservation or set(vars(message)) != FIELDS or message.silo != gate.silo:
        raise gate.refusal("observation", "it must be a GradientObservation of this silo and carry nothing more")
    vector, count, received = message.vector, message.num_examples, request.vector
    assert received is not None
    least = gate.policy.min_examples_per_update
    if type(count) is not int or count < least:
        raise gate.refusal("observation", f"{count} rows stand behind it, min_examples_per_update={least}")
    plain = type(vector) is np.ndarray and vector.dtype == np.float32 and vector.ndim == 1
    if not plain or vector.dtype.metadata or len(vector) > len(received):
        raise gate.refusal("observation", f"it must hold at most {len(received)} float32 values")
    vector = vector.copy()
    if not np.isfinite(vector).all():
        raise gate.refusal("observation", "it has values that are not finite")
    if gate.row_matcher.repeats_rows(vector):
        raise gate.refusal("observation", "it repeats values of the silo's rows")
    return GradientObservation(gate.silo, count, vector)


def _digest_of(kind: str, message: GradientObservation) -> MessageDigest:
    norm = float(np.linalg.norm(message.vector))
    return MessageDigest(
        kind, ("vector",), message.vector.nbytes, vector_digest(message.vector), norm, message.num_examples
    )


REBUILT["observation"] = _observation
KNOWN["observation"] = (GradientObservation, _digest_of)
