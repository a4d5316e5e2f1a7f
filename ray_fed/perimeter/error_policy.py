"""What leaves a silo of an error that was raised inside it: its class and place; its words only if they are ours.

The words of an error are written by the code that raised it, and a task's code may write a row into them.
"""

import builtins
import contextlib
import sys
from pathlib import Path
from types import TracebackType

from ray_fed import errors
from ray_fed.errors import ConfigError, DataError, FedError, PerimeterRefused, SiloFailed
from ray_fed.perimeter.policy import Policy

OURS = Path(errors.__file__).parent
STANDARD_LIBRARY = Path(contextlib.__file__).parent
KNOWN_MODULES = ("torch", "torch.cuda", "numpy.exceptions", "numpy.linalg", "pandas.errors")
LONGEST = 2000
STAYS = "what it says stays in the silo's own log"


def reduced_error(error: BaseException, silo: str, doing: str, policy: Policy, log: str) -> FedError:
    """Return the error that the coordinator gets instead of `error`, by the owner's policy; `log` says where the words
    are."""
    if policy.error_texts == "all":
        words = f"{class_name_of(error)}: {error}"
        return _copy(error) if isinstance(error, FedError) else SiloFailed(silo, doing, words)
    if isinstance(error, PerimeterRefused) and type(error) is PerimeterRefused and _is_ours(error):
        return _copy(error)
    if policy.error_texts == "own" and isinstance(error, FedError) and _is_ours(error):
        return _copy(error)
    reason = f"{class_name_of(error)} {place_of(error.__traceback__)}; {STAYS} {log}".rstrip()
    for cls in (ConfigError, DataError):
        if type(error) is cls:  # its exit code says that the owner of the silo must act
            return cls(f"silo '{silo}' failed while {doing}: {reason}")
    return SiloFailed(silo, doing, reason)


def class_name_of(error: BaseException) -> str:
    """Return the name of the nearest class that is known to everybody: a task names its own classes as it likes."""
    for cls in type(error).__mro__:
        modules = [builtins, errors, *(sys.modules.get(name) for name in KNOWN_MODULES)]
        if any(getattr(module, cls.__name__, None) is cls for module in modules) and cls.__name__.isidentifier():
            return cls.__name__[:40]
    return "Exception"


def place_of(trace: TracebackType | None) -> str:
    """Return where the error came from: a line of our own code by its file, of any other by its number alone."""
    place = "at an unknown place"
    while trace is not None:
        path = Path(trace.tb_frame.f_code.co_filename)
        if path.is_relative_to(OURS):
            place = f"at line {trace.tb_lineno} of ray_fed/{path.relative_to(OURS)}"
        elif not (_is_installed(path) or _is_standard(path)):
            place = f"at line {trace.tb_lineno} of the task's own code"
        trace = trace.tb_next
    return place


def _is_ours(error: BaseException) -> bool:
    """Whether every frame of its traceback is code of ours or of the standard library: with one frame of a task, its
    words may be the task's."""
    trace, plain = error.__traceback__, type(error).__module__ == errors.__name__
    while trace is not None:
        path = Path(trace.tb_frame.f_code.co_filename)
        plain &= path.is_relative_to(OURS) or _is_standard(path)
        trace = trace.tb_next
    return plain and error.__traceback__ is not None


def _is_standard(path: Path) -> bool:
    inside = path.is_relative_to(STANDARD_LIBRARY) or str(path).startswith("<frozen")
    return inside and not _is_installed(path)


def _is_installed(path: Path) -> bool:
    return any(part in ("site-packages", "dist-packages") for part in path.parts)


def _copy(error: FedError) -> FedError:
    """A new error of the same class and words: nothing else hangs onto it."""
    words = (argument if type(argument) is int else str(argument)[:LONGEST] for argument in error.args)
    return type(error)(*words)
