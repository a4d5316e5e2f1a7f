"""What a hub on the way sends for its silos: the exact sum of their updates, and what they told of models."""

from typing import Any

import numpy as np

from ray_fed.errors import SiloFailed
from ray_fed.exact_sum import HIGH_UNIT, UPDATE_LIMIT, ExactWeightedSum
from ray_fed.federation.messages import NO_VALUES, Guard, Raised, RelayedSum, RelayedUpdate
from ray_fed.sites.answers import MetricsForm, NumbersForm, SumForm, message_of
from ray_fed.sites.requests import FitSumRequest
from ray_fed.sites.wire import WireError


def updates_of_sum(form: SumForm, request: FitSumRequest) -> list[RelayedUpdate]:
    """Return each silo's part of a sum that a hub has made. SiloFailed for one that is no sum of what was asked for."""
    told = [*form.numbers, *form.failures, *form.lost]
    _require_sum(sorted(told) == sorted(request.silos), "other silos than those that were asked")
    if not form.numbers:
        return []
    high, low = (np.array(part) for part in (form.high, form.low))
    weight = sum(numbers.num_examples for numbers in form.numbers.values())
    fits = all(part.dtype == np.int64 and part.shape == request.vector.shape for part in (high, low))
    _require_sum(fits, "numbers of another kind or length than the model's")
    bound = UPDATE_LIMIT * len(form.numbers) / HIGH_UNIT
    is_within = int(high.max(initial=0)) <= bound and int(high.min(initial=0)) >= -bound
    _require_sum(is_within and bool((low >> 50 == 0).all()), "numbers beyond those of a sum")
    made = RelayedSum(tuple(sorted(form.numbers)), ExactWeightedSum.of_parts(high, low, weight, len(form.numbers)))
    updates = [_relayed(silo, form.numbers[silo], request, made) for silo in made.silos]
    for update in updates:
        Guard().check(update, request.vector, request.server_round, request.session)
    return updates


def _relayed(silo: str, numbers: NumbersForm, request: FitSumRequest, made: RelayedSum) -> RelayedUpdate:
    return RelayedUpdate(
        silo, request.session, request.server_round, NO_VALUES, numbers.num_examples, numbers.num_steps, numbers.loss,
        numbers.seconds, sum=made, sent_bytes=numbers.num_bytes,
    )  # fmt: skip


def _require_sum(holds: bool, what: str) -> None:
    if not holds:
        raise SiloFailed("of a hub", "training", f"its hub sent {what}")


def metrics_in(form: MetricsForm, silo: str) -> Any:
    try:
        return message_of(form)
    except WireError as error:
        return Raised(silo, 0, f"its hub sent {error}")
