"""Drives asynchronous rounds: like RoundDriver, but a silo's question and answer may lie rounds apart."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ray_fed.errors import UpdateRejected
from ray_fed.federation.messages import Update, Vector
from ray_fed.federation.rounds.asynchronous_machine import AsyncRoundMachine
from ray_fed.federation.rounds.driver import RoundDriver
from ray_fed.federation.rounds.machine import Arrived, Ask, Event, Phase, Refused
from ray_fed.federation.strategies import FedBuff, State
from ray_fed.federation.strategies.buffered import TURNS


@dataclass(kw_only=True)
class AsyncRoundDriver(RoundDriver):
    """The work of a session under FedBuff."""

    machine: AsyncRoundMachine
    strategy: FedBuff
    sent: dict[str, tuple[int, Vector]] = field(default_factory=dict)
    """Silo -> (round in which it was asked, what it was sent)."""

    def idle(self) -> list[str]:
        """Silos work without pause; an evaluation finds its place between two turns."""
        return [silo for silo in self.machine.silos if self.machine.phase[silo] in (Phase.IDLE, Phase.WORKING)]

    def remembered(self, state: State) -> State:
        turns = self.machine.done_turns()
        return {**state, TURNS: np.array([turns[silo] for silo in self.machine.silos], np.int64)}

    def _ask(self, asks: Sequence[Ask], server_round: int, vectors: Mapping[str, Vector]) -> None:
        for ask in asks:  # the number in the question is the silo's own turn
            vector = vectors[ask.silo]
            self.num_bytes += vector.nbytes
            self.sent[ask.silo] = server_round, vector
            self.cohort.submit(self.session, ask.server_round, {ask.silo: vector})

    def _fresh(self, update: Update, server_round: int, vectors: Mapping[str, Vector]) -> Update:
        asked_in, sent = self.sent[update.silo]
        return self.strategy.discounted(update, sent, vectors[update.silo], server_round - asked_in)

    def _checked(
        self,
        silo: str,
        asked_round: int,
        update: Update,
        server_round: int,  # noqa: ARG002
        vectors: Mapping[str, Vector],  # noqa: ARG002
    ) -> Event:
        try:
            self.guard.check(update, self.sent[silo][1], asked_round, self.session)
        except UpdateRejected as error:
            return Refused(silo, asked_round, error.args[2])
        return Arrived(silo, asked_round)
