"""Every error the runtime raises on purpose.

    FedError
    ├── ConfigError        an option, a YAML key or a combination of them is wrong      exit code 2
    ├── DataError          a source cannot be read or holds nothing usable              exit code 2
    ├── PlacementError     the cluster has no place for a silo as it was asked for      exit code 2
    ├── SiloRefused        a silo disagrees with the federation's agreement             exit code 2
    ├── PerimeterRefused   the gate inside a silo stopped a message                     exit code 1
    ├── UpdateRejected     an update is not fit to be averaged                          exit code 1
    ├── QuorumLost         too few silos are left for the round rules                   exit code 1
    └── SiloFailed         a silo died or raised while it worked                        exit code 1

Constructor arguments equal `Exception.args`, so an error that crosses a process boundary arrives as itself. Messages
name the silo or the row, the value, and the next step.
"""


class FedError(Exception):
    """Base of the tree; `exit_code` is what the command line returns for it."""

    exit_code = 1


class ConfigError(FedError, ValueError):
    """A configuration value is wrong: `ConfigError("learning_rate=-0.1 must be positive")`."""

    exit_code = 2


class DataError(FedError, ValueError):
    """A data source cannot be used: `DataError("silo 'mit': a.csv has no column 'formula'; it has: x, y")`."""

    exit_code = 2


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

    def __init__(self, silo: str, doing: str, reason: str):
        super().__init__(silo, doing, reason)
        self.silo = silo

    def __str__(self) -> str:
        silo, doing, reason = self.args
        who = {"coordinator": "the coordinator", "test": "the common test set's evaluator"}.get(silo, f"silo '{silo}'")
        return f"{who} failed while {doing}: {reason}"


def quoted(value: object) -> str:
    """Return a value for a message: on one line, in single quotes, at most 62 characters."""
    text = " ".join(str(value).split()).replace("'", '"')
    return f"'{text if len(text) <= 60 else text[:57] + '...'}'"
