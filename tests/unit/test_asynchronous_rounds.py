"""FedBuff: its arithmetic, its rules in every order of events, and silos of unequal speed on a virtual clock."""

import heapq
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_fed.errors import ConfigError, QuorumLost
from ray_fed.federation.cohort import LocalCohort
from ray_fed.federation.coordinator import Coordinator
from ray_fed.federation.messages import Arrived, Died, Raised, Restarted, Update
from ray_fed.federation.rounds.asynchronous_machine import AsyncRoundMachine
from ray_fed.federation.rounds.job import Job
from ray_fed.federation.rounds.machine import (
    Accept,
    Close,
    DeadlinePassed,
    Drop,
    Opened,
    Phase,
    Refused,
    Restart,
    RoundRules,
    Stop,
    Submit,
)
from ray_fed.federation.strategies import FedAvg, FedBuff
from ray_fed.federation.strategies.buffered import TURNS
from ray_fed.federation.task import SiloSpec
from ray_fed.learning.trainer import TrainingPlan
from tests.synthetic import DrawnRows, SyntheticTask, silos

ABC = ("a", "b", "c")
PLAN = TrainingPlan(seed=0, epochs=30, steps_per_epoch=4, num_rounds=30, learning_rate=0.02)


def update(silo, *values):
    return Update(silo, "s", 1, np.array(values, np.float32), 7, 1, 0.0)


# Arithmetic -------------------------------------------------------------------------------------------------------


def test_a_stale_move_is_discounted_by_the_square_root_of_its_age():
    """Sent 1, answered 5: a move of 4; three steps stale it counts 4 / sqrt(1 + 3) = 2, from where the model is now."""
    fresh = FedBuff().discounted(update("a", 5), np.ones(1), np.array([10.0]), 3, 1)
    assert fresh.vector.tolist() == [12.0]
    assert FedBuff(exponent=0).discounted(update("a", 5), np.ones(1), np.array([10.0]), 3, 1).vector.tolist() == [14.0]


def test_the_server_moves_by_the_plain_mean_of_the_buffer():
    """x = 0, answers 2 and 6 (of unequal rows): mean 4, times eta 0.5."""
    strategy = FedBuff(eta=0.5)
    state = strategy.start(np.zeros(1, np.float32), ABC)
    after = strategy.aggregate(state, [update("a", 2), replace(update("b", 6), num_examples=1000)])
    assert after["federated"].tolist() == [2.0]


@pytest.mark.parametrize(("options", "said"), [({"buffer_size": 0}, "buffer_size=0"), ({"exponent": -1.0}, "exponent")])
def test_options_out_of_range_are_refused(options, said):
    with pytest.raises(ConfigError, match=said):
        FedBuff(**options)


# Rules ------------------------------------------------------------------------------------------------------------


def opened(buffer_size=2, **rules):
    made = AsyncRoundMachine(RoundRules(**rules), ABC, buffer_size)
    assert made.handle(Opened(1, ABC)) == [Submit("a", 1), Submit("b", 1), Submit("c", 1)]
    return made


def test_a_silo_that_answers_gets_the_next_turn_at_once_until_the_buffer_is_full():
    ours = opened()
    assert ours.handle(Arrived("b", 1)) == [Accept("b", 1), Submit("b", 2)]
    assert ours.handle(Arrived("b", 2)) == [Accept("b", 2), Close(1, ("b",), ())]
    assert ours.handle(Opened(2, ABC)) == [Submit("b", 3)]
    assert ours.handle(Arrived("a", 1)) == [Accept("a", 1), Submit("a", 2)]


def test_a_dead_silo_does_its_turn_again_after_the_restart():
    ours = opened()
    assert ours.handle(Died("a", "killed")) == [Restart("a")]
    assert ours.handle(Restarted("a")) == [Submit("a", 1)]


def test_a_silo_that_raises_sits_out_until_the_next_round():
    ours = opened()
    assert ours.handle(Raised("a", 1, "disk full")) == [Drop("a", 1, "disk full")]
    ours.handle(Arrived("b", 1))
    assert ours.handle(Arrived("c", 1)) == [Accept("c", 1), Close(1, ("b", "c"), (("a", "disk full"),))]
    assert ours.handle(Opened(2, ABC)) == [Submit("a", 2), Submit("c", 2)]


def test_a_duplicate_answer_is_dropped():
    ours = opened(3)
    ours.handle(Arrived("a", 1))
    assert ours.handle(Arrived("a", 1)) == [Drop("a", 1, "duplicate: turn 1 of this silo was answered")]


def test_the_deadline_closes_a_round_with_what_is_there_and_the_late_work_on():
    ours = opened(3)
    ours.handle(Arrived("a", 1))
    late = "late: no answer before the deadline"
    assert ours.handle(DeadlinePassed(1)) == [Close(1, ("a",), (("b", late), ("c", late)))]
    assert ours.handle(Opened(2, ABC)) == []
    assert ours.handle(Arrived("b", 1)) == [Accept("b", 1), Submit("b", 2)]


def test_a_round_in_which_everybody_fails_stops_the_run_with_the_reasons():
    ours = opened()
    for silo in ABC:
        decisions = ours.handle(Raised(silo, 1, "no power"))
    assert isinstance(decisions[-1], Stop)
    assert "0 updates" in decisions[-1].reason
    assert "'b': no power" in decisions[-1].reason


def test_one_failure_stops_the_run_where_none_is_accepted():
    ours = opened(accept_failures=False)
    ours.handle(Raised("a", 1, "no power"))
    ours.handle(Arrived("b", 1))
    assert isinstance(ours.handle(Arrived("c", 1))[-1], Stop)


def test_turns_in_flight_do_not_count_as_done():
    ours = opened()
    ours.handle(Arrived("b", 1))
    assert ours.done_turns() == {"a": 0, "b": 1, "c": 0}


@given(
    st.integers(1, 4),
    st.lists(st.tuples(st.sampled_from(["arrive", "raise", "die", "refuse", "late"]), st.integers(0, 2))),
)
def test_in_every_order_of_events_rounds_close_once_and_nobody_works_on_two_turns(buffer_size, happenings):
    ours, in_flight, closed, opened_rounds = AsyncRoundMachine(RoundRules(max_restarts=2), ABC, buffer_size), {}, [], 1

    def carry_out(decisions):
        for decision in decisions:
            if isinstance(decision, Submit):
                assert decision.silo not in in_flight
                in_flight[decision.silo] = decision.server_round
            elif isinstance(decision, Restart):
                in_flight.pop(decision.silo, None)
                carry_out(ours.handle(Restarted(decision.silo)))
            elif isinstance(decision, Close):
                closed.append(decision.server_round)

    carry_out(ours.handle(Opened(1, ABC)))
    for kind, number in happenings:
        silo = ABC[number]
        if kind == "late":
            carry_out(ours.handle(DeadlinePassed(ours.server_round)))
        elif kind == "die" and ours.phase[silo] is not Phase.GONE:
            in_flight.pop(silo, None)
            carry_out(ours.handle(Died(silo, "killed")))
        elif silo in in_flight and ours.is_open:
            turn = in_flight.pop(silo)
            event = {
                "arrive": Arrived(silo, turn),
                "raise": Raised(silo, turn, "x"),
                "refuse": Refused(silo, turn, "x"),
            }
            carry_out(ours.handle(event.get(kind, Arrived(silo, turn))))
        if not ours.is_open and not ours.stopped:
            opened_rounds += 1
            carry_out(ours.handle(Opened(opened_rounds, ABC)))
    assert closed == list(range(1, len(closed) + 1))
    assert opened_rounds - len(closed) in (0, 1)


# A federation of unequal silos ------------------------------------------------------------------------------------


class ClockedCohort(LocalCohort):
    """Silos that take `seconds[name]` of virtual time for a turn; answers come in the order of that time."""

    def __init__(self, specs, task, test, seconds):
        super().__init__(specs, task, test)
        self.seconds, self.time, self.queue = seconds, 0.0, []
        self.answered = dict.fromkeys(seconds, 0)

    def submit(self, session, server_round, vectors):
        for name, vector in vectors.items():
            heapq.heappush(self.queue, (self.time + self.seconds[name], name, session, server_round, vector))

    def next_event(self, timeout=None):  # noqa: ARG002
        self.time, name, session, turn, vector = heapq.heappop(self.queue)
        self.answered[name] += 1
        return self.reply(name, turn, session, vector)

    def reply(self, name, turn, session, vector):
        return Arrived(name, turn, self.silos[name].fit(session, turn, vector))


TEST = SiloSpec("test", DrawnRows(200))
SECONDS = {"silo-1": 1.0, "silo-2": 1.0, "silo-3": 20.0}


def started(strategy, kind=ClockedCohort, plan=PLAN, **job):
    cohort = kind(silos(60, 60, 60), SyntheticTask(), TEST, SECONDS)
    ours = Coordinator(cohort, SyntheticTask(), tuple(SECONDS))
    ours.agree()
    work = Job("federated", tuple(SECONDS), dict.fromkeys(SECONDS, plan), 0, strategy, evaluate_silos=False, **job)
    return cohort, ours, work


def test_a_slow_silo_holds_nobody_up():
    cohort, ours, work = started(FedBuff(buffer_size=3))
    buffered = list(ours.run(work))
    waiting, theirs, plain = started(FedAvg())
    synchronous = list(theirs.run(plain))
    assert waiting.time == 30 * 20.0
    assert cohort.time < waiting.time / 5
    assert cohort.answered["silo-1"] > 10 * cohort.answered["silo-3"] > 0
    assert buffered[-1].metrics["federated.mae"] < 0.7 * buffered[0].metrics["federated.mae"]
    assert buffered[-1].metrics["federated.mae"] < 1.5 * synchronous[-1].metrics["federated.mae"]


def test_records_say_who_was_heard_and_how_many_bytes_went():
    _, ours, work = started(FedBuff(buffer_size=2))
    records = list(ours.run(work))
    assert records[1].participants == ("silo-1", "silo-2")
    heard = {silo for record in records for silo in record.participants}
    assert heard == {"silo-1", "silo-2", "silo-3"}
    assert all(record.bytes_sent > 0 for record in records[1:])


def test_a_buffered_run_goes_on_from_its_state_with_the_turns_it_had():
    _, ours, work = started(FedBuff())
    records = list(ours.run(work))
    state = records[20].state
    assert state[TURNS].tolist() == [20, 20, 0]  # the third is at its first turn for 20 s
    _, again, _ = started(FedBuff())
    rest = list(again.run(work, 20, state))
    assert [record.server_round for record in rest] == list(range(21, 31))
    assert rest[-1].state[TURNS][0] == 30


def test_a_nan_in_the_buffer_is_quarantined():
    class Poisoning(ClockedCohort):
        def reply(self, name, turn, session, vector):
            answer = super().reply(name, turn, session, vector)
            bad = replace(answer.update, vector=np.full_like(vector, np.nan))
            return replace(answer, update=bad) if name == "silo-2" and turn == 3 else answer

    _, ours, work = started(FedBuff(), Poisoning)
    records = list(ours.run(work))
    [(silo, reason)] = [failure for record in records for failure in record.failures]
    assert silo == "silo-2"
    assert "not finite" in reason
    assert np.isfinite(records[-1].models["federated"]).all()


def test_a_run_in_which_all_silos_raise_ends_with_quorum_lost():
    class Failing(ClockedCohort):
        def reply(self, name, turn, session, vector):  # noqa: ARG002
            return Raised(name, turn, "no power")

    _, ours, work = started(FedBuff(), Failing)
    with pytest.raises(QuorumLost, match="no power"):
        list(ours.run(work))
