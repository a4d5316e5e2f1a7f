"""Every error the runtime raises on purpose.

    FedError
    ├── ConfigError        an option, a YAML key or a combination of them is wrong      exit code 2
    ├── DataError          a source cannot be read or holds nothing usable              exit code 2
    ├── PlacementError     the cluster has no place for a silo as it was asked for      exit code 2
    ├── SiloRefused        a silo disagrees with the federation's agreement             exit code 2
    ├── PerimeterRefused   the gate inside a silo stopped a message                     exit code 1
    ├── UpdateRejected     an update is not fit to be averaged                          exit code 1
    ├── QuorumLost         too few silos are left for the round rules                   exit code 1
    ├── SiloFailed         a silo died or raised while it worked                        exit code 1
    ├── StrategyFailed     a strategy raised, or made what cannot be used               exit code 1
    └── CallbackFailed     a function that watches a run raised                         exit code 1

Constructor arguments equal `Exception.args`, so an error that crosses a process boundary arrives as itself. Messages
name the silo or the row, the value, and the next step. Words may name rows, columns and paths of an owner: across a
silo's boundary only the error's `Trouble` goes, one of a few fixed phrases.
"""

from enum import Enum
from typing import Any


class Trouble(Enum):
    """What went wrong, in words that hold nothing of an owner: all that an error in a silo says outside of it."""

    FILE_MISSING = "a file or folder is not there"
    FILE_UNREADABLE = "a file cannot be read"
    FILE_UNKNOWN = "a file is of an unknown kind"
    FILE_DAMAGED = "a file is damaged"
    FILE_EMPTY = "a file or folder holds no data"
    NO_ROOM = "a file cannot be written"
    DATABASE_AWAY = "its database does not answer"
    DATABASE_LOCKED = "its database refuses its user or password"
    QUERY_FAILED = "its database cannot answer the query"
    QUERY_LATE = "its database did not answer in time"
    COLUMN_MISSING = "a column or a name is missing"
    COLUMN_TWICE = "a column is there twice"
    NOT_A_NUMBER = "a value is not a number"
    CLASSES = "its target holds true and false, or text, and no numbers; learn it by its classes"
    NOT_FINITE = "a value is not finite"
    VALUE_UNUSABLE = "a value cannot be used"
    WRONG_SHAPE = "an array has the wrong shape or length"
    WRONG_UNIT = "the values seem to be in another unit"
    TOO_FEW_ROWS = "no usable rows, or fewer than its owner's min_examples"
    DATA_UNUSABLE = "its data cannot be used"
    OPTION_WRONG = "an option is wrong"
    SITE_FILE_WRONG = "its owner's site file is wrong"
    NOT_OPEN = "its data are not open and prepared yet"
    NO_SESSION = "it has no session of that name"
    TOO_MANY_SESSIONS = "it has as many sessions open as it can; close one"
    OTHER_NETWORK = "its network differs from the coordinator's"
    UNKNOWN_QUERY = "it does not know this question"
    BUDGET_SPENT = "its budget is spent"
    MESSAGE_DAMAGED = "what another silo sent cannot be used"
    MASKS_FAILED = "its part of secure aggregation failed"
    REFUSED = "its gate refused"
    PACKAGE_MISSING = "a package is missing or cannot be imported"
    OUT_OF_MEMORY = "it ran out of memory"
    CODE_FAILED = "its code failed"


class FedError(Exception):
    """Base of the tree; `exit_code` is what the command line returns for it, `failure` what its words come to."""

    exit_code = 1
    failure = Trouble.CODE_FAILED

    def __init__(self, *args: object, failure: Trouble | None = None):
        super().__init__(*args)
        if failure is not None:  # kept among the instance's attributes, which pickling takes along
            self.failure = failure


class ConfigError(FedError, ValueError):
    """A configuration value is wrong: `ConfigError("learning_rate=-0.1 must be positive")`."""

    exit_code = 2
    failure = Trouble.OPTION_WRONG


class DataError(FedError, ValueError):
    """A data source cannot be used: `DataError("silo 'mit': a.csv has no column 'formula'; it has: x, y")`."""

    exit_code = 2
    failure = Trouble.DATA_UNUSABLE


class PlacementError(FedError):
    """No node of the cluster can hold the silo: says what was asked and what is there."""

    exit_code = 2


class SiloRefused(FedError):
    """A silo does not agree with the federation on features, units or tables.

    Args are (silo, field, value, expected).
    """

    exit_code = 2

    def __init__(self, silo: str, field: str, value: str, expected: str):
        super().__init__(silo, field, value, expected)
        self.silo = silo

    def __str__(self) -> str:
        silo, field, value, expected = self.args
        remedy = "install the same ray-fed version and use the same feature options at every site"
        if field == "target":
            remedy = (
                "name the site's column and its unit in the federation file (target:, unit:), and convert other units"
            )
        return f"silo '{silo}' refused: its {field} is {value}, the federation's is {expected}; {remedy}"


class UpdateRejected(FedError):
    """An update is not fit to be averaged. Args are (silo, server_round, reason)."""

    def __init__(self, silo: str, server_round: int, reason: str):
        super().__init__(silo, server_round, reason)

    def __str__(self) -> str:
        silo, server_round, reason = self.args
        return f"silo '{silo}', round {server_round}: update rejected: {reason}"


class PerimeterRefused(FedError):
    """The gate inside a silo did not let a message out. Args are (silo, kind of message, reason)."""

    failure = Trouble.REFUSED

    def __init__(self, silo: str, kind: str, reason: str):
        super().__init__(silo, kind, reason)

    def __str__(self) -> str:
        silo, kind, reason = self.args
        return f"silo '{silo}': {kind} refused by the silo's own perimeter: {reason}"


class QuorumLost(FedError):
    """The round rules cannot be met any more. Args are (server_round, reason)."""

    def __init__(self, server_round: int, reason: str):
        super().__init__(server_round, reason)

    def __str__(self) -> str:
        server_round, reason = self.args
        return f"round {server_round}: quorum lost: {reason}"


class SiloFailed(FedError):
    """A silo died or raised. Args are (silo, what it did, reason)."""

    def __init__(self, silo: str, doing: str, reason: str, *, failure: Trouble | None = None):
        super().__init__(silo, doing, reason, failure=failure)
        self.silo = silo

    def __str__(self) -> str:
        silo, doing, reason = self.args
        who = {"coordinator": "the coordinator", "test": "the common test set's evaluator"}.get(silo, f"silo '{silo}'")
        return f"{who} failed while {doing}: {reason}"


class StrategyFailed(FedError):
    """A strategy raised, or what it returned cannot be used. Args are (its class, server_round, reason)."""

    def __init__(self, strategy: str, server_round: int, reason: str):
        super().__init__(strategy, server_round, reason)

    def __str__(self) -> str:
        strategy, server_round, reason = self.args
        return f"strategy {strategy}, round {server_round}: {reason}"


class CallbackFailed(FedError):
    """A callback raised, or answered what cannot be used. Args are (its name, server_round, reason)."""

    result: Any = None
    """What was done until then, as `federate` would have returned it, where a round was complete."""

    def __init__(self, callback: str, server_round: int, reason: str):
        super().__init__(callback, server_round, reason)

    def __str__(self) -> str:
        callback, server_round, reason = self.args
        return f"callback {callback}, round {server_round}: {reason}"


FAILURES = (
    (FileNotFoundError, Trouble.FILE_MISSING), (NotADirectoryError, Trouble.FILE_MISSING),
    (ImportError, Trouble.PACKAGE_MISSING), (MemoryError, Trouble.OUT_OF_MEMORY),
    (OSError, Trouble.FILE_UNREADABLE), (LookupError, Trouble.COLUMN_MISSING),
    (OverflowError, Trouble.VALUE_UNUSABLE), (ValueError, Trouble.VALUE_UNUSABLE),
)  # fmt: skip
"""What the errors of others come to; the first that fits counts."""


def failure_of(error: BaseException) -> Trouble:
    """Return what an error comes to, without its words."""
    if isinstance(error, FedError):
        return error.failure if type(error.failure) is Trouble else Trouble.CODE_FAILED
    return next((failure for cls, failure in FAILURES if isinstance(error, cls)), Trouble.CODE_FAILED)


def quoted(value: object, most: int = 60) -> str:
    """Return a value for a message: on one line, in single quotes, at most `most` characters between them."""
    text = " ".join(str(value).split()).replace("'", '"')
    return f"'{text if len(text) <= most else text[: most - 3] + '...'}'"
