"""Who may watch a run of `federate`, and end it: in the process that called it, between two rounds."""

from collections.abc import Callable, Sequence

from ray_fed.errors import CallbackFailed
from ray_fed.federation.cohort import said_by
from ray_fed.federation.rounds.job import RoundRecord


class StopTraining(Exception):
    """Raised by a callback to end the run in good order: its model is that of the last complete round, or, where one is
    chosen by a metric, of the best one."""


class Callback:
    """Override what you want to see; a callback that raises ends the run as it stands, see `federate`. The next round
    waits for all callbacks."""

    def on_round_begin(self, server_round: int) -> None:
        """A round is about to begin, from 1."""

    def on_evaluation(self, record: RoundRecord) -> None:
        """The models of a round were evaluated; called before `on_round_end`."""

    def on_round_end(self, record: RoundRecord) -> None:
        """A round is over; with `out`, it is written down."""

    def on_stop(self, reason: str) -> None:
        """The run is over; `reason` is empty where it came to its last round."""


class Function(Callback):
    """A function that takes a record."""

    def __init__(self, function: Callable[[RoundRecord], object]):
        self.function = function

    def __repr__(self) -> str:
        return getattr(self.function, "__name__", repr(self.function))

    def on_round_end(self, record: RoundRecord) -> None:
        self.function(record)


class Callbacks:
    """All of a run's, called in their order."""

    def __init__(self, callbacks: Sequence[Callback | Callable[[RoundRecord], object]]):
        self.all = [each if isinstance(each, Callback) else Function(each) for each in callbacks]

    def begin(self, server_round: int) -> None:
        for each in self.all:
            _call(each, each.on_round_begin, server_round, server_round)

    def end(self, record: RoundRecord, has_evaluation: bool) -> None:
        for each in self.all:
            if has_evaluation:
                _call(each, each.on_evaluation, record, record.server_round)
            _call(each, each.on_round_end, record, record.server_round)

    def stop(self, reason: str, server_round: int) -> None:
        for each in self.all:
            _call(each, each.on_stop, reason, server_round)


def _call(callback: Callback, method: Callable, given: object, server_round: int) -> None:
    try:
        method(given)
    except (StopTraining, StopIteration) as stop:
        raise StopTraining(str(stop) or f"{_name(callback)} stopped it") from stop
    except Exception as error:
        raise CallbackFailed(_name(callback), server_round, said_by(error)) from error


def _name(callback: Callback) -> str:
    return repr(callback) if isinstance(callback, Function) else type(callback).__name__
