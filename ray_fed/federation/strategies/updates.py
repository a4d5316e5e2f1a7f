"""What strategies ask of the updates they are given: usable, each silo once, in an order that arrival cannot change."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from ray_fed.errors import FedError, UpdateRejected
from ray_fed.federation.messages import Update, Vector
from ray_fed.federation.strategies.averaging import fed_avg


def usable(update: Update, num_parameters: int) -> Update:
    """Return the update if its vector is finite and has shape [num_parameters]; else UpdateRejected names the silo."""
    if update.vector.shape != (num_parameters,):
        raise _rejected(update, f"shape {update.vector.shape} instead of ({num_parameters},)")
    finite = np.isfinite(update.vector)
    if not finite.all():
        count, first = num_parameters - int(finite.sum()), int(finite.argmin())
        raise _rejected(update, f"{count} values are not finite (first at {first})")
    return update


def collected(updates: Iterable[Update], num_parameters: int) -> list[Update]:
    """Return all updates sorted by silo name. UpdateRejected for an unusable one and for a silo that answers twice."""
    held: dict[str, Update] = {}
    for update in updates:
        if update.silo in held:
            raise _rejected(update, "the silo answered twice in one round")
        held[update.silo] = usable(update, num_parameters)
    return [held[silo] for silo in sorted(held)]


def stacked(updates: Sequence[Update]) -> np.ndarray:
    """Return the vectors as rows, float32 [num_updates, num_parameters]."""
    return np.stack([update.vector for update in updates])


def plain_mean(updates: Iterable[Update], num_parameters: int) -> Vector:
    """Return the mean in which every silo counts once, whatever number of examples it claims."""
    return fed_avg(num_parameters, (replace(update, num_examples=1) for update in updates))


def need_updates(strategy: str, least: int, got: int, remedy: str) -> None:
    """Raise FedError if there are too few updates for what the strategy promises."""
    if got < least:
        raise FedError(f"{strategy} needs at least {least} updates in a round, got {got}; {remedy}")


def _rejected(update: Update, reason: str) -> UpdateRejected:
    return UpdateRejected(update.silo, update.server_round, reason)
