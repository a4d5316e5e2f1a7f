"""Observations at the gate: single gradients, made to be attacked. They leave only where the owner allows an audit."""

from typing import Any

import numpy as np
import torch

from ray_fed.errors import PerimeterRefused
from ray_fed.federation.messages import Observation, Vector
from ray_fed.federation.silo import Silo
from ray_fed.learning.layout import load_vector
from ray_fed.perimeter.gate import REBUILT, Asked, Gate
from ray_fed.perimeter.passage import KNOWN, Passage, vector_digest

FIELDS = {"silo", "num_examples", "vector"}


def observed(gate: Gate, silo: Silo, vector: Vector, num_examples: int) -> Observation:
    """Return the gradient of the task's loss over the silo's first rows, at parameters [num_parameters]; nothing is
    computed, and PerimeterRefused raised, where the owner does not allow it."""
    _require_audit(gate)
    num_examples = max(1, min(num_examples, len(silo.features)))
    network = load_vector(silo.task.model(0), vector)
    loss = silo.task.loss(network(silo.features[:num_examples]), silo.targets[:num_examples])
    parts = torch.autograd.grad(loss, list(network.parameters()))
    return Observation(silo.spec.name, num_examples, torch.cat([part.reshape(-1) for part in parts]).cpu().numpy())


def _require_audit(gate: Gate) -> None:
    if not gate.policy.audit:
        remedy = f"its owner has not allowed an audit ('silos: {{{gate.silo}: {{audit: true}}}}' in site.yaml)"
        raise PerimeterRefused(gate.silo, "observation", remedy)


def _observation(gate: Gate, message: Any, asked: Asked) -> Observation:
    _require_audit(gate)
    if type(message) is not Observation or set(vars(message)) != FIELDS or message.silo != gate.silo:
        raise gate.refusal("observation", "the answer must be an Observation of this silo and carry nothing more")
    vector, count, received = message.vector, message.num_examples, asked.vector
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
    if gate.echo.is_echo(vector):
        raise gate.refusal("observation", "it repeats values of the silo's rows")
    return Observation(gate.silo, count, vector)


def _passage(kind: str, message: Observation) -> Passage:
    norm = float(np.linalg.norm(message.vector))
    return Passage(kind, ("vector",), message.vector.nbytes, vector_digest(message.vector), norm, message.num_examples)


REBUILT["observation"] = _observation
KNOWN["observation"] = (Observation, _passage)
