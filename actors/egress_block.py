"""No other way out of a silo's process: Ray sends nothing on behalf of a task's code, now or later.

From the moment a silo's actor is made, `ray.put`, calls of tasks and actors, new actors and the cluster's key-value
store refuse, in every thread and for as long as the process lives: what a task started keeps finding them closed after
its call has ended, and so do finalizers, whenever they run. Only Ray itself, between Python's functions, still sends
what a method of the actor returns. A task that digs out Ray's inner worker all the same is found by the references it
leaves, and the answer is refused. Code that patches this very module, opens a socket of its own or reads another
process's memory is not held: one Python process has no inner boundaries. Tasks are read before they run.
"""

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

from ray._private import worker as ray_worker
from ray.experimental import internal_kv

from ray_fed.errors import PerimeterRefused

SENDS = (
    "put", "submit", "create_actor", "create_placement", "push", "kill", "promote", "allocate", "experimental",
    "internal_kv_put", "async_internal_kv_put", "publish",
)  # fmt: skip
"""Beginnings of the names of methods, of Ray's inner worker and of its client of the cluster, that send something."""
A_WAY_AROUND = "a way around the gate"


def _refusing(core: Any, attempts: list[str]) -> Any:
    """Return what stands where an object of Ray's stands; it lets questions through and counts what would have sent."""

    class Refusing:
        def __getattr__(self, name: str) -> Any:
            if name.startswith(SENDS) and not _lifted:
                attempts.append(name)
                raise PermissionError(f"a silo sends its answers and nothing else; Ray's {name} is closed here")
            return getattr(core, name)

    return Refusing()


class _ClosedWorker(ray_worker.Worker):
    """Ray's worker of this process; whoever asks it for the inner worker in Python gets one that refuses.

    Ray's compiled code leaves no frame: seen from here, what runs a method and sends what it returned is called by
    Python's own main loop, or by nothing.
    """

    @property
    def core_worker(self) -> Any:
        held = vars(self)
        if "core_worker" not in held:
            raise AttributeError("core_worker")
        return held["core_worker"] if _is_rays_own_call() else held["refusing"]

    @core_worker.setter
    def core_worker(self, value: Any) -> None:
        """Nothing takes the place of what refuses."""

    @core_worker.deleter
    def core_worker(self) -> None:
        del vars(self)["core_worker"]


_lifted: list[bool] = []


def _is_rays_own_call() -> bool:
    try:
        caller = sys._getframe(2)
    except ValueError:  # nothing of Python's below
        return True
    return caller.f_code is ray_worker.Worker.main_loop.__code__


@contextlib.contextmanager
def lifted() -> Iterator[None]:
    """For code of the runtime's own in a silo that runs no code of others."""
    _lifted.append(True)
    try:
        yield
    finally:
        _lifted.pop()


class ClosedEgress:
    """Closes Ray's ways out of this process for good. Called, it gives the block around a call of the silo's code."""

    def __init__(self, silo: str):
        self.silo = silo
        self._attempts: list[str] = []
        held: Any = ray_worker.global_worker
        self._core = held.core_worker
        vars(held)["refusing"] = _refusing(self._core, self._attempts)
        held.__class__ = _ClosedWorker
        for place, name in ((internal_kv, "global_gcs_client"), (held, "gcs_client")):
            setattr(place, name, _refusing(getattr(place, name), self._attempts))

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        """PerimeterRefused afterwards when a way out was tried, now or since the last call, or a reference is left."""
        before = set(self._core.get_all_reference_counts())
        try:
            yield
        finally:
            if self._attempts:
                self._attempts.clear()
                raise PerimeterRefused(self.silo, A_WAY_AROUND, "its code tried to send through Ray")
            if set(self._core.get_all_reference_counts()) - before:
                raise PerimeterRefused(self.silo, A_WAY_AROUND, "its code left objects with Ray")
