"""Drives asynchronous rounds: like RoundDriver, but a silo may answer rounds after it was sent a model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ray_fed.errors import UpdateRejected
from ray_fed.federation.messages import Arrived, Update, Vector
from ray_fed.federation.rounds.asynchronous_machine import AsyncRoundMachine
from ray_fed.federation.rounds.driver import RoundDriver
from ray_fed.federation.rounds.machine import Event, Phase, Refused, Submit
from ray_fed.federation.strategies import FedBuff, State
from ray_fed.federation.strategies.buffered import TURNS


@dataclass(kw_only=True)
class AsyncRoundDriver(RoundDriver):
    """Runs a session's rounds under FedBuff."""

    machine: AsyncRoundMachine
    strategy: FedBuff
    num_learned: int
    """How many of a vector's first values are learned."""
    sent: dict[str, tuple[int, Vector]] = field(default_factory=dict)
    """Silo -> (round of the submission, what was sent)."""

    def idle(self) -> list[str]:
        """Silos work without pause; an evaluation finds its place between two turns."""
        return [silo for silo in self.machine.silos if self.machine.phase[silo] in (Phase.IDLE, Phase.WORKING)]

    def remembered(self, state: State) -> State:
        turns = self.machine.done_turns()
        return {**state, TURNS: np.array([turns[silo] for silo in self.machine.silos], np.int64)}

    def _submit(self, submits: Sequence[Submit], server_round: int, vectors: Mapping[str, Vector]) -> None:
        for submit in submits:  # its number is the silo's own turn
            vector = vectors[submit.silo]
            self.num_bytes += vector.nbytes
            self.sent[submit.silo] = server_round, vector
            self.cohort.submit(self.session, submit.server_round, {submit.silo: vector})

    def _fresh(self, update: Update, server_round: int, vectors: Mapping[str, Vector]) -> Update:
        sent_in, sent = self.sent[update.silo]
        return self.strategy.discounted(update, sent, vectors[update.silo], server_round - sent_in, self.num_learned)

    def _checked(self, arrived: Arrived, server_round: int, vectors: Mapping[str, Vector]) -> Event:  # noqa: ARG002
        silo, turn = arrived.silo, arrived.server_round
        try:
            self.guard.check(arrived.update, self.sent[silo][1], turn, self.session)  # type: ignore[arg-type]
        except UpdateRejected as error:
            return Refused(silo, turn, error.args[2])
        return arrived
