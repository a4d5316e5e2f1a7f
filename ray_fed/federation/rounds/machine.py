"""The rules of a round as a state machine: events in, decisions out. No Ray, no clock, no network, no arrays.

    silo        idle --submitted--> working --arrived, raised, refused--> idle
                working --deadline--> behind --answers--> idle          (its stale answer is dropped)
                any --died--> restarting --restarted--> idle, or working again on the round it was asked for
                restarting --no restarts left--> gone
                absent --its site has a machine, and it fits--> idle
    round       opened --> (every seat taken or failed, or deadline) --> closed, or stopped when the quorum is lost

A *seat* is a silo's place in a round. Whoever drives the machine carries out its decisions in the order given.
"""

from dataclasses import dataclass, field
from enum import Enum
from math import ceil, inf

from ray_fed.config import require
from ray_fed.federation.messages import Arrived, Died, JoinRefused, Raised, Restarted, SiloEvent


@dataclass(frozen=True)
class RoundRules:
    """When a round is good enough, in Flower's words. ConfigError for a value out of its range."""

    fraction_fit: float = 1.0
    """Share of the silos chosen in a round."""
    min_fit_clients: int = 1
    """Updates without which a round does not count."""
    min_available_clients: int = 1
    """Silos that must be there for a round to start."""
    accept_failures: bool = True
    """Go on without the silos that failed; otherwise one failure stops the run."""
    round_timeout: float | None = None
    """Seconds after which a round closes without the silos that are late; none waits for ever."""
    max_restarts: int = 3
    """How often a silo that died is started again from its specification."""

    def __post_init__(self) -> None:
        require(0 < self.fraction_fit <= 1, f"fraction_fit={self.fraction_fit} must lie in (0, 1]")
        for name in ("min_fit_clients", "min_available_clients"):
            require(getattr(self, name) >= 1, f"{name}={getattr(self, name)} must be at least 1")
        timeout = self.round_timeout
        require(timeout is None or timeout > 0, f"round_timeout={timeout} must be positive seconds, or none")
        require(self.max_restarts >= 0, f"max_restarts={self.max_restarts} must not be negative")


@dataclass(frozen=True)
class StartRules:
    """When a run may begin although sites have no machine yet."""

    timeout: float = 0.0
    """Seconds in which the machines of all silos are waited for."""
    may_be_late: frozenset[str] = frozenset()
    """Silos without which the run begins after that; each is admitted when its site has a machine."""
    fewest: int = 1
    """Silos that must be there at the beginning."""

    def __post_init__(self) -> None:
        require(0 <= self.timeout < inf, f"start_timeout={self.timeout} must be seconds, 0 or more")


AT_ONCE = StartRules()
"""All silos are there, or the run does not begin."""


class Phase(Enum):
    """Where a silo stands."""

    IDLE = "idle"
    WORKING = "working"
    BEHIND = "behind"
    RESTARTING = "restarting"
    GONE = "gone"
    ABSENT = "absent"


# ---- events


@dataclass(frozen=True)
class Opened:
    """A round begins; `ranking` is the seeded order in which silos are chosen, of those that may be."""

    server_round: int
    ranking: tuple[str, ...]


@dataclass(frozen=True)
class Refused:
    """An update came that the guard did not find fit."""

    silo: str
    server_round: int
    reason: str


@dataclass(frozen=True)
class DeadlinePassed:
    server_round: int


Event = Opened | Refused | DeadlinePassed | SiloEvent


# ---- decisions


@dataclass(frozen=True)
class Submit:
    """Send the round's parameters to the silo."""

    silo: str
    server_round: int


@dataclass(frozen=True)
class Restart:
    """Start the silo again from its specification."""

    silo: str


@dataclass(frozen=True)
class Accept:
    """Aggregate the update that just arrived."""

    silo: str
    server_round: int


@dataclass(frozen=True)
class Drop:
    """Throw the answer that just arrived away."""

    silo: str
    server_round: int
    reason: str


@dataclass(frozen=True)
class Close:
    """The round counts."""

    server_round: int
    participants: tuple[str, ...]
    failures: tuple[tuple[str, str], ...]
    """(silo, reason), sorted."""


@dataclass(frozen=True)
class Stop:
    """The quorum is lost: the run cannot go on."""

    server_round: int
    reason: str
    failures: tuple[tuple[str, str], ...] = ()


Decision = Submit | Restart | Accept | Drop | Close | Stop


@dataclass
class RoundMachine:
    """Feeds on events; `handle` returns what to do. One machine serves all rounds of a job."""

    rules: RoundRules
    silos: tuple[str, ...]
    phase: dict[str, Phase] = field(default_factory=dict)
    restarts: dict[str, int] = field(default_factory=dict)
    submitted: dict[str, int] = field(default_factory=dict)
    """Silo -> the round it was last asked for."""
    server_round: int = 0
    """The open round, or the last one."""
    seats: set[str] = field(default_factory=set)
    """Silos whose answer the open round waits for."""
    taken: set[str] = field(default_factory=set)
    overdue: set[str] = field(default_factory=set)
    """Silos that a deadline passed by while they were starting again: no round waits for them until they are back."""
    failures: dict[str, str] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)
    """Silo that was not there when the job began -> why."""
    is_open: bool = False
    stopped: bool = False

    def __post_init__(self) -> None:
        away = [silo for silo in self.silos if silo in self.absent]
        self.phase = dict.fromkeys(self.silos, Phase.IDLE) | dict.fromkeys(away, Phase.ABSENT) | self.phase
        self.restarts = dict.fromkeys(self.silos, 0) | self.restarts

    def handle(self, event: Event) -> list[Decision]:
        """Return the decisions an event leads to. After Stop, every event leads to nothing, and so does always what
        befalls a silo that takes no part in the job."""
        if self.stopped or getattr(event, "silo", self.silos[0]) not in self.phase:
            return []
        return [*self._decide(event), *self._closing()]

    def _decide(self, event: Event) -> list[Decision]:
        match event:
            case Opened():
                return self._open(event)
            case Arrived(silo, server_round):
                return self._arrived(silo, server_round)
            case Refused(silo, server_round, reason):
                return self._failed_answer(silo, server_round, f"update refused: {reason}")
            case Raised(silo, server_round, reason):
                return self._failed_answer(silo, server_round, reason)
            case Died(silo, reason):
                return self._died(silo, reason)
            case Restarted(silo):
                return self._restarted(silo)
            case JoinRefused(silo, reason):
                self.absent[silo] = reason
                return []
            case DeadlinePassed(server_round):
                return self._deadline_passed(server_round)

    # ---- events

    def _open(self, event: Opened) -> list[Decision]:
        assert not self.is_open, f"round {self.server_round} is still open"
        assert event.server_round > self.server_round, f"round {event.server_round} was already run"
        self.server_round, self.is_open = event.server_round, True
        self.taken = set()
        self.failures = {silo: self._why_away(silo) for silo in self.silos if not self._is_there(silo)}
        available = [silo for silo in self.silos if self._is_there(silo)]
        if len(available) < max(self.rules.min_available_clients, self.rules.min_fit_clients):
            return [self._stop(f"{len(available)} of {len(self.silos)} silos are available")]
        there = [silo for silo in event.ranking if silo in available]
        wanted = max(self.rules.min_fit_clients, ceil(round(self.rules.fraction_fit * len(self.silos), 9)))
        self.seats = set(there[:wanted])
        return [self._submit(silo) for silo in there[:wanted] if self.phase[silo] is Phase.IDLE]

    def _arrived(self, silo: str, server_round: int) -> list[Decision]:
        if not self._answers(silo, server_round):
            return [Drop(silo, server_round, self._why_stale(silo, server_round))]
        self.taken.add(silo)
        return [Accept(silo, server_round)]

    def _died(self, silo: str, reason: str) -> list[Decision]:
        if self.phase[silo] is Phase.GONE:
            return []
        if self.restarts[silo] >= self.rules.max_restarts:
            self.phase[silo] = Phase.GONE
            self._give_up(silo, f"{reason}; no restart left after {self.restarts[silo]}")
            return []
        self.restarts[silo] += 1
        if self.phase[silo] is not Phase.ABSENT:
            self.phase[silo] = Phase.RESTARTING
        return [Restart(silo)]

    def _restarted(self, silo: str) -> list[Decision]:
        if self.phase[silo] not in (Phase.RESTARTING, Phase.ABSENT):
            return []
        self.phase[silo] = Phase.IDLE
        self.overdue.discard(silo)
        return [self._submit(silo)] if self.is_open and silo in self.seats else []

    def _deadline_passed(self, server_round: int) -> list[Decision]:
        if not self.is_open or server_round != self.server_round:
            return []
        for silo in sorted(self.seats):
            working = self.phase[silo] is Phase.WORKING
            self.phase[silo] = Phase.BEHIND if working else self.phase[silo]
            self.overdue |= set() if working else {silo}
            self._give_up(
                silo, "late: no answer before the deadline" if working else "not restarted before the deadline"
            )
        return []

    # ---- rules

    def _is_there(self, silo: str) -> bool:
        return self.phase[silo] in (Phase.IDLE, Phase.RESTARTING) and silo not in self.overdue

    def _why_away(self, silo: str) -> str:
        if self.phase[silo] is Phase.BEHIND:
            return f"late: still at work on round {self.submitted[silo]}"
        if self.phase[silo] is Phase.GONE:
            return f"no restart left after {self.restarts[silo]}"
        if self.phase[silo] is Phase.ABSENT:
            return self.absent[silo]
        return "not restarted yet"

    def _submit(self, silo: str) -> Submit:
        self.phase[silo] = Phase.WORKING
        self.submitted[silo] = self.server_round
        return Submit(silo, self.server_round)

    def _answers(self, silo: str, server_round: int) -> bool:
        """Whether an answer fills a seat of the open round; either way the silo is free again."""
        if self.phase[silo] not in (Phase.WORKING, Phase.BEHIND) or self.submitted[silo] != server_round:
            return False
        fits = self.is_open and silo in self.seats
        self.phase[silo] = Phase.IDLE
        self.seats.discard(silo)
        return fits

    def _failed_answer(self, silo: str, server_round: int, reason: str) -> list[Decision]:
        if not self._answers(silo, server_round):
            return [Drop(silo, server_round, self._why_stale(silo, server_round))]
        self.failures[silo] = reason
        return [Drop(silo, server_round, reason)]

    def _why_stale(self, silo: str, server_round: int) -> str:
        if silo in self.taken and server_round == self.server_round:
            return f"duplicate: round {server_round} has this silo's update"
        return f"stale: an answer to round {server_round} in round {self.server_round}"

    def _give_up(self, silo: str, reason: str) -> None:
        if silo in self.seats:
            self.seats.discard(silo)
            self.failures[silo] = reason

    def _closing(self) -> list[Decision]:
        """Close the open round, or stop, once no seat is open and the quorum is settled."""
        if not self.is_open or self.stopped or self.seats:
            return []
        failures = tuple(sorted(self.failures.items()))
        if failures and not self.rules.accept_failures:
            silo, reason = failures[0]
            return [self._stop(f"silo '{silo}' failed ({reason}) and accept_failures is false")]
        if len(self.taken) < self.rules.min_fit_clients:
            listed = "; ".join(f"'{silo}': {reason}" for silo, reason in failures)
            return [self._stop(f"{len(self.taken)} updates, min_fit_clients is {self.rules.min_fit_clients}: {listed}")]
        self.is_open = False
        return [Close(self.server_round, tuple(sorted(self.taken)), failures)]

    def _stop(self, reason: str) -> Stop:
        self.stopped, self.is_open = True, False
        return Stop(self.server_round, reason, tuple(sorted(self.failures.items())))
