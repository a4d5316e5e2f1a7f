"""Flower's own server loops, watched: what they return is kept, and answers are aggregated in a fixed order.

Flower gathers the answers of clients of the older generation (`fit_clients`) in the order in which threads end, and
the last bits of its means change from run to run. Here they are in the order of the instructions.
"""

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from ray_fed.flower.package import flower
from ray_fed.flower.records import NUMPY

NoteCentral = Callable[[int, Mapping[str, float]], None]
"""(round, metrics that the server computed itself by name)."""


@dataclass
class Outcomes:
    """What a ServerApp's loop returned, where it is one of Flower's."""

    result: Any = None
    """`flwr.serverapp.strategy.Result`, or `flwr.server.History` of the older generation."""
    arrays: Mapping[str, Any] | None = None
    """Name -> NumPy array of the final model."""


@contextlib.contextmanager
def watched_loops(note_central: NoteCentral) -> Iterator[Outcomes]:
    """Watch Flower's loops for the duration of a block."""
    outcomes = Outcomes()
    strategy, server = flower("serverapp.strategy").Strategy, flower("server.server")
    with (
        _replaced(strategy, "start", _watched_start(strategy.start, note_central, outcomes)),
        _replaced(server.Server, "fit", _watched_fit(server.Server.fit, note_central, outcomes)),
        _replaced(server, "fit_clients", functools.partial(_in_order, "fit")),
        _replaced(server, "evaluate_clients", functools.partial(_in_order, "evaluate")),
    ):
        yield outcomes


@contextlib.contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


def _watched_start(start: Callable, note_central: NoteCentral, outcomes: Outcomes) -> Callable:
    """Return `Strategy.start` of the message generation, watched."""
    signature = inspect.signature(start)

    @functools.wraps(start)
    def watched(*given: Any, **named: Any) -> Any:
        bound = signature.bind(*given, **named)
        evaluate = bound.arguments.get("evaluate_fn")
        if evaluate is not None:
            bound.arguments["evaluate_fn"] = _noting(evaluate, note_central)
        result = outcomes.result = start(*bound.args, **bound.kwargs)
        outcomes.arrays = {name: _values(array) for name, array in (result.arrays or {}).items()}
        return result

    return watched


def _noting(evaluate: Callable, note_central: NoteCentral) -> Callable:
    @functools.wraps(evaluate)
    def noting(server_round: int, arrays: Any) -> Any:
        found = evaluate(server_round, arrays)
        if found is not None:
            note_central(server_round, _numbers(found))
        return found

    return noting


def _watched_fit(fit: Callable, note_central: NoteCentral, outcomes: Outcomes) -> Callable:
    """Return `Server.fit` of the older generation, watched."""

    @functools.wraps(fit)
    def watched(server: Any, num_rounds: int, timeout: float | None) -> Any:
        strategy = server.strategy
        evaluate = strategy.evaluate

        @functools.wraps(evaluate)
        def noting(server_round: int, parameters: Any) -> Any:
            found = evaluate(server_round, parameters)
            if found is not None:
                note_central(server_round, {"loss": float(found[0]), **_numbers(found[1])})
            return found

        strategy.evaluate = noting
        try:
            history, seconds = fit(server, num_rounds, timeout)
        finally:
            del strategy.evaluate
        outcomes.result, outcomes.arrays = history, _older_arrays(server.parameters)
        return history, seconds

    return watched


def _older_arrays(parameters: Any) -> Mapping[str, Any]:
    if parameters.tensor_type != "numpy.ndarray":
        return {str(number): np.frombuffer(tensor, np.uint8) for number, tensor in enumerate(parameters.tensors)}
    arrays = flower("common").parameters_to_ndarrays(parameters)
    return {str(number): array for number, array in enumerate(arrays)}


def _values(array: Any) -> np.ndarray:
    return array.numpy() if array.stype == NUMPY else np.frombuffer(array.data, np.uint8)


def _numbers(found: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in found.items() if isinstance(value, int | float)}


def _in_order(
    method: str,
    client_instructions: list[tuple[Any, Any]],
    max_workers: int | None,
    timeout: float | None,
    group_id: int,
) -> tuple[list, list]:
    """Return (results, failures), each in the order of the instructions [(client, what it is asked)]."""

    def ask(client: Any, asked: Any) -> tuple[Any, Any]:
        return client, getattr(client, method)(asked, timeout=timeout, group_id=group_id)

    with ThreadPoolExecutor(max_workers or max(1, len(client_instructions))) as executor:
        futures = [executor.submit(ask, client, asked) for client, asked in client_instructions]
    results, failures = [], []
    for future in futures:
        error = future.exception()
        if error is not None:
            failures.append(error)
        else:
            is_good = future.result()[1].status.code == flower("common").Code.OK
            (results if is_good else failures).append(future.result())
    return results, failures
