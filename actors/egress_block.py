"""No other way out of a silo's process: while a task's code runs, Ray sends nothing on its behalf.

Within the block `ray.put`, calls of tasks and actors, new actors and the cluster's key-value store refuse. A task that
digs out Ray's inner worker all the same is found by the references it leaves, and the answer is refused. Code that
patches this very module, opens a socket of its own or reads another process's memory is not held: one Python process
has no inner boundaries. Tasks are read before they run.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

from ray._private import worker as ray_worker
from ray.experimental import internal_kv

from ray_fed.errors import PerimeterRefused

SENDS = ("put", "submit", "create_actor", "create_placement", "push", "kill", "promote", "allocate", "experimental")
"""Beginnings of the names of the inner worker's methods that send something."""


class _Refusing:
    """Stands where Ray's inner worker stands; lets questions through and counts what would have sent."""

    def __init__(self, core: Any, attempts: list[str]):
        self._core, self._attempts = core, attempts

    def __getattr__(self, name: str) -> Any:
        if name.startswith(SENDS):
            self._attempts.append(name)
            raise PermissionError(f"a silo sends its answers and nothing else; Ray's {name} is closed here")
        return getattr(self._core, name)


@contextlib.contextmanager
def egress_block(silo: str) -> Iterator[None]:
    """Close Ray's ways out for the block; PerimeterRefused afterwards when it tried one, or left a reference behind."""
    attempts: list[str] = []
    held: Any = ray_worker.global_worker
    core, put = held.core_worker, internal_kv._internal_kv_put
    before = set(core.get_all_reference_counts())

    def refuse(*_: object, **__: object) -> None:
        attempts.append("key-value store")
        raise PermissionError("a silo sends its answers and nothing else; the cluster's key-value store is closed here")

    held.core_worker = _Refusing(core, attempts)
    internal_kv._internal_kv_put = refuse
    try:
        yield
    finally:
        held.core_worker, internal_kv._internal_kv_put = core, put
        if attempts:
            raise PerimeterRefused(silo, "a way around the gate", f"the task tried {', '.join(sorted(set(attempts)))}")
        left = set(core.get_all_reference_counts()) - before
        if left:
            raise PerimeterRefused(silo, "a way around the gate", f"the task left {len(left)} objects with Ray")
