"""What the actors of an owner's data have in common: only their own methods answer, by the policy of their machine."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from ray.actor import exit_actor

from actors.forking import environment_of
from ray_fed.errors import PerimeterRefused
from ray_fed.perimeter.policy import site_path

Actor = TypeVar("Actor", bound=type)


def owned(cls: Actor) -> Actor:
    """Class decorator, below `ray.remote`: only the actor's own methods can be called.

    Ray gives every actor a method that runs any function inside it; of this class Ray believes that it has it already.
    That holds whoever has the actor's handle. It does not hold who starts actors of another class beside it on the same
    cluster (decisions/0008).
    """

    class Owned(cls):
        __ray_actor_class__ = cls

        def __ray_ready__(self) -> bool:
            return True

        def __ray_terminate__(self) -> None:
            exit_actor()

        def __ray_call__(self, _function: Callable[..., Any], *_: Any, **__: Any) -> None:
            raise PerimeterRefused(repr(self), "__ray_call__", "it answers by its own methods, and runs no function")

    for name in ("__module__", "__name__", "__qualname__", "__doc__"):
        setattr(Owned, name, getattr(cls, name))
    return Owned  # type: ignore[return-value]


def owners_site_file() -> Path:
    """Return where the owner's site file is for an actor of this process.

    Whoever starts an actor may give it environment variables. What counts are those of the process that started it:
    Ray's on this machine, or the fork server of a private cluster. Where the system does not show them, this
    process's own count.
    """
    try:
        return site_path(environment_of(os.getppid()))
    except OSError:
        return site_path()
