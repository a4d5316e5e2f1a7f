"""The rules of asynchronous rounds (FedBuff) as a state machine: events in, decisions out, as in machine.py.

    silo        idle --asked--> working --answers--> working on the newest model, or idle while no round is open
                any --died--> restarting --restarted--> working on the turn it was asked for
                working --raised, refused--> idle until the next round opens
                restarting --no restarts left--> gone
    round       opened --> (buffer full, nobody left who works, or deadline) --> closed, or stopped

A round is one step of the server. A silo counts its own *turns*: what it is asked for is a turn, not a round, and an
answer may arrive rounds after the model it started from. Nobody is ever stale: lateness costs weight, not work.
"""

from dataclasses import dataclass, field

from ray_fed.federation.messages import Arrived, Died, JoinRefused, Raised, Restarted
from ray_fed.federation.rounds.machine import (
    Accept,
    Close,
    DeadlinePassed,
    Decision,
    Drop,
    Event,
    Opened,
    Phase,
    Refused,
    Restart,
    RoundRules,
    Stop,
    Submit,
)


@dataclass
class AsyncRoundMachine:
    """Feeds on the events of machine.py, in which `server_round` is a turn wherever a silo is concerned."""

    rules: RoundRules
    silos: tuple[str, ...]
    buffer_size: int
    server_round: int = 0
    turns: dict[str, int] = field(default_factory=dict)
    """Silo -> number of the turn it was last asked for."""
    phase: dict[str, Phase] = field(default_factory=dict)
    restarts: dict[str, int] = field(default_factory=dict)
    taken: list[str] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)
    is_open: bool = False
    stopped: bool = False

    def __post_init__(self) -> None:
        self.phase = dict.fromkeys(self.silos, Phase.IDLE) | self.phase
        self.restarts = dict.fromkeys(self.silos, 0) | self.restarts
        self.turns = dict.fromkeys(self.silos, 0) | self.turns

    def handle(self, event: Event) -> list[Decision]:
        """Return the decisions an event leads to. After Stop, every event leads to nothing."""
        if self.stopped:
            return []
        return [*self._decide(event), *self._closing()]

    def _decide(self, event: Event) -> list[Decision]:
        match event:
            case Opened():
                return self._open(event)
            case Arrived(silo, turn):
                return self._arrived(silo, turn)
            case Refused(silo, turn, reason):
                return self._failed(silo, turn, f"update refused: {reason}")
            case Raised(silo, turn, reason):
                return self._failed(silo, turn, reason)
            case Died(silo, reason):
                return self._died(silo, reason)
            case Restarted(silo):
                return self._restarted(silo)
            case DeadlinePassed(server_round):
                return self._deadline_passed(server_round)
            case JoinRefused(silo):
                raise AssertionError(f"silo '{silo}': with FedBuff all silos are there from the start")

    # ---- events

    def _open(self, event: Opened) -> list[Decision]:
        assert not self.is_open, f"round {self.server_round} is still open"
        assert event.server_round > self.server_round, f"round {event.server_round} was already run"
        self.server_round, self.is_open, self.taken, self.failures = event.server_round, True, [], {}
        there = [silo for silo in self.silos if self.phase[silo] is not Phase.GONE]
        if len(there) < self.rules.min_available_clients:
            return [self._stop(f"{len(there)} of {len(self.silos)} silos are available")]
        return [self._submit(silo) for silo in event.ranking if self.phase[silo] is Phase.IDLE]

    def _arrived(self, silo: str, turn: int) -> list[Decision]:
        if not self._answers(silo, turn):
            return [self._dropped(silo, turn)]
        assert self.is_open, "answers are fetched in open rounds only"
        self.taken.append(silo)
        take = Accept(silo, turn)
        return [take] if len(self.taken) >= self.buffer_size else [take, self._submit(silo)]

    def _died(self, silo: str, reason: str) -> list[Decision]:
        if self.phase[silo] is Phase.GONE:
            return []
        if self.restarts[silo] >= self.rules.max_restarts:
            self.phase[silo] = Phase.GONE
            self.failures[silo] = f"{reason}; no restart left after {self.restarts[silo]}"
            return []
        self.restarts[silo] += 1
        self.phase[silo] = Phase.RESTARTING
        return [Restart(silo)]

    def _restarted(self, silo: str) -> list[Decision]:
        if self.phase[silo] is not Phase.RESTARTING:
            return []
        self.turns[silo] = max(0, self.turns[silo] - 1)  # the turn it did not finish is done again
        return [self._submit(silo)]

    def _deadline_passed(self, server_round: int) -> list[Decision]:
        if not self.is_open or server_round != self.server_round:
            return []
        for silo in self.silos:
            if self.phase[silo] in (Phase.WORKING, Phase.RESTARTING) and silo not in self.taken:
                self.failures[silo] = "late: no answer before the deadline"
        return self._settle()

    # ---- rules

    def done_turns(self) -> dict[str, int]:
        """Return silo -> the last turn it has finished."""
        in_flight = (Phase.WORKING, Phase.RESTARTING)
        return {silo: turn - (self.phase[silo] in in_flight) for silo, turn in self.turns.items()}

    def _submit(self, silo: str) -> Submit:
        self.phase[silo] = Phase.WORKING
        self.turns[silo] += 1
        return Submit(silo, self.turns[silo])

    def _answers(self, silo: str, turn: int) -> bool:
        fits = self.phase[silo] is Phase.WORKING and self.turns[silo] == turn
        self.phase[silo] = Phase.IDLE if fits else self.phase[silo]
        return fits

    def _failed(self, silo: str, turn: int, reason: str) -> list[Decision]:
        if not self._answers(silo, turn):
            return [self._dropped(silo, turn)]
        self.failures[silo] = reason
        return [Drop(silo, turn, reason)]

    def _dropped(self, silo: str, turn: int) -> Drop:
        return Drop(silo, turn, f"duplicate: turn {turn} of this silo was answered")

    def _closing(self) -> list[Decision]:
        """Close the open round once the buffer is full, or nobody is left who could fill it."""
        if not self.is_open or self.stopped:
            return []
        nobody_works = not any(phase in (Phase.WORKING, Phase.RESTARTING) for phase in self.phase.values())
        return self._settle() if len(self.taken) >= self.buffer_size or nobody_works else []

    def _settle(self) -> list[Decision]:
        failures = tuple(sorted(self.failures.items()))
        if failures and not self.rules.accept_failures:
            silo, reason = failures[0]
            return [self._stop(f"silo '{silo}' failed ({reason}) and accept_failures is false")]
        if len(self.taken) < min(self.rules.min_fit_clients, self.buffer_size):
            listed = "; ".join(f"'{silo}': {reason}" for silo, reason in failures)
            return [self._stop(f"{len(self.taken)} updates, min_fit_clients is {self.rules.min_fit_clients}: {listed}")]
        self.is_open = False
        return [Close(self.server_round, tuple(sorted(set(self.taken))), failures)]

    def _stop(self, reason: str) -> Stop:
        self.stopped, self.is_open = True, False
        return Stop(self.server_round, reason, tuple(sorted(self.failures.items())))
