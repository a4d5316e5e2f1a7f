"""What leaves a silo of an error that was raised inside it: never its words, unless its owner wants that.

The words of an error hold values, columns and paths, and a task's code may write a row into them. They stay in the
silo's own log, under a number that the error outside names.
"""

import builtins
import re
import sys

from ray_fed import errors
from ray_fed.errors import ConfigError, DataError, FedError, PerimeterRefused, SiloFailed, failure_of
from ray_fed.perimeter.policy import Policy

KNOWN_MODULES = ("torch", "torch.cuda", "numpy.exceptions", "numpy.linalg", "pandas.errors")
LONGEST = 2000
REFERENCE = re.compile(r"reference ([0-9a-f]{12}) in the log of silo '([^']+)' at its owner's")
"""What an error says of its number and of whose log has the rest."""


def place_of_words(silo: str, reference: str) -> str:
    """Return where the words of an error are, as `REFERENCE` finds it again."""
    return f"reference {reference} in the log of silo '{silo}' at its owner's"


def reduced_error(error: BaseException, silo: str, doing: str, policy: Policy, reference: str) -> FedError:
    """Return the error that the coordinator gets instead of `error`, by the owner's policy. It looks at the error as
    any code does: where a task may have made it, call this inside the boundary."""
    where = place_of_words(silo, reference)
    if policy.error_texts == "full":
        words = f"{class_name_of(error)}: {error}"
        return _copy(error) if isinstance(error, FedError) else SiloFailed(silo, doing, words[:LONGEST])
    if policy.error_texts == "none":
        return SiloFailed(silo, doing, f"it failed; {where}")
    failure = failure_of(error)
    reason = f"{failure.value} ({class_name_of(error)}); {where}"
    for cls in (ConfigError, DataError):
        if type(error) is cls:  # its exit code says that the owner of the silo must act
            return cls(f"silo '{silo}' failed while {doing}: {reason}", failure=failure)
    return SiloFailed(silo, doing, reason, failure=failure)


def gates_refusal(refusal: PerimeterRefused, silo: str, doing: str, policy: Policy, reference: str) -> FedError:
    """Return what leaves of a refusal that the gate itself made, of plain data: its words are fixed phrases and limits
    of ours."""
    if policy.error_texts == "none":
        return reduced_error(refusal, silo, doing, policy, reference)
    _, kind, reason = refusal.args
    return PerimeterRefused(silo, kind, f"{reason}; {place_of_words(silo, reference)}")


def class_name_of(error: BaseException) -> str:
    """Return the name of the nearest class that is known to everybody: a task names its own classes as it likes."""
    for cls in type(error).__mro__:
        modules = [builtins, errors, *(sys.modules.get(name) for name in KNOWN_MODULES)]
        if any(getattr(module, cls.__name__, None) is cls for module in modules) and cls.__name__.isidentifier():
            return cls.__name__[:40]
    return "Exception"


def _copy(error: FedError) -> FedError:
    """A new error of the same class and words: nothing else hangs onto it."""
    words = (argument if type(argument) is int else str(argument)[:LONGEST] for argument in error.args)
    return type(error)(*words)
