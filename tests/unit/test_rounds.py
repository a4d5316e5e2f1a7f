import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_fed.errors import ConfigError
from ray_fed.federation.messages import Arrived, Died, Raised, Restarted
from ray_fed.federation.rounds.machine import (
    Accept,
    Close,
    DeadlinePassed,
    Drop,
    Opened,
    Phase,
    Refused,
    Restart,
    RoundMachine,
    RoundRules,
    Stop,
    Submit,
)

ABC = ("a", "b", "c")


def machine(**rules):
    return RoundMachine(RoundRules(**rules), ABC)


def opened(**rules):
    made = machine(**rules)
    made.handle(Opened(1, ABC))
    return made


def test_a_round_without_faults_asks_takes_and_closes():
    ours = machine()
    assert ours.handle(Opened(1, ABC)) == [Submit("a", 1), Submit("b", 1), Submit("c", 1)]
    assert ours.handle(Arrived("b", 1)) == [Accept("b", 1)]
    assert ours.handle(Arrived("a", 1)) == [Accept("a", 1)]
    assert ours.handle(Arrived("c", 1)) == [Accept("c", 1), Close(1, ABC, ())]


def test_a_dead_silo_is_restarted_and_redoes_the_round():
    ours = opened()
    ours.handle(Arrived("a", 1))
    ours.handle(Arrived("b", 1))
    assert ours.handle(Died("c", "killed")) == [Restart("c")]
    assert ours.handle(Restarted("c")) == [Submit("c", 1)]
    assert ours.handle(Arrived("c", 1)) == [Accept("c", 1), Close(1, ABC, ())]


def test_a_silo_that_dies_after_answering_is_back_for_the_next_round():
    ours = opened()
    for silo in ABC:
        ours.handle(Arrived(silo, 1))
    assert ours.handle(Died("a", "killed")) == [Restart("a")]
    assert ours.handle(Opened(2, ABC)) == [Submit("b", 2), Submit("c", 2)]
    assert ours.handle(Restarted("a")) == [Submit("a", 2)]


def test_restarts_are_bounded_and_the_round_goes_on_without_the_silo():
    ours = opened(max_restarts=1)
    ours.handle(Died("c", "killed"))
    ours.handle(Restarted("c"))
    ours.handle(Arrived("a", 1))
    ours.handle(Arrived("b", 1))
    decisions = ours.handle(Died("c", "killed"))
    assert decisions == [Close(1, ("a", "b"), (("c", "killed; no restart left after 1"),))]
    assert ours.handle(Opened(2, ABC)) == [Submit("a", 2), Submit("b", 2)]


def test_a_late_silo_is_left_behind_and_gets_no_work_until_it_answers():
    ours = opened()
    ours.handle(Arrived("a", 1))
    ours.handle(Arrived("b", 1))
    assert ours.handle(DeadlinePassed(1)) == [Close(1, ("a", "b"), (("c", "late: no answer before the deadline"),))]
    assert ours.handle(Opened(2, ABC)) == [Submit("a", 2), Submit("b", 2)]
    assert ours.handle(Arrived("c", 1)) == [Drop("c", 1, "stale: an answer to round 1 in round 2")]
    ours.handle(Arrived("a", 2))
    ours.handle(Arrived("b", 2))
    assert Submit("c", 3) in ours.handle(Opened(3, ABC))


def test_a_silo_that_raises_is_recorded_and_asked_again_next_round():
    ours = opened()
    assert ours.handle(Raised("a", 1, "ValueError: x")) == [Drop("a", 1, "ValueError: x")]
    ours.handle(Arrived("b", 1))
    assert ours.handle(Arrived("c", 1))[-1] == Close(1, ("b", "c"), (("a", "ValueError: x"),))
    assert Submit("a", 2) in ours.handle(Opened(2, ABC))


def test_a_refused_update_is_a_failure_with_its_reason():
    ours = opened()
    ours.handle(Refused("a", 1, "not finite"))
    assert ours.failures == {"a": "update refused: not finite"}


def test_a_duplicate_update_is_dropped():
    ours = opened()
    ours.handle(Arrived("a", 1))
    assert ours.handle(Arrived("a", 1)) == [Drop("a", 1, "duplicate: round 1 has this silo's update")]


def test_losing_the_quorum_stops_with_one_reason():
    ours = opened(min_fit_clients=2)
    ours.handle(Arrived("a", 1))
    ours.handle(Raised("b", 1, "disk full"))
    stop = ours.handle(Raised("c", 1, "no memory"))[-1]
    assert stop == Stop(
        1, "1 updates, min_fit_clients is 2: 'b': disk full; 'c': no memory", (("b", "disk full"), ("c", "no memory"))
    )
    assert ours.handle(Opened(2, ABC)) == []


def test_one_failure_stops_the_run_when_failures_are_not_accepted():
    ours = opened(accept_failures=False)
    ours.handle(Arrived("a", 1))
    ours.handle(Arrived("b", 1))
    assert isinstance(ours.handle(Raised("c", 1, "disk full"))[-1], Stop)


def test_no_round_waits_for_a_silo_whose_restart_missed_a_deadline_until_it_is_back():
    ours = opened(round_timeout=1.0)
    ours.handle(Died("c", "killed"))
    ours.handle(Arrived("a", 1))
    ours.handle(Arrived("b", 1))
    assert ours.handle(DeadlinePassed(1)) == [Close(1, ("a", "b"), (("c", "not restarted before the deadline"),))]
    assert ours.handle(Opened(2, ABC)) == [Submit("a", 2), Submit("b", 2)]
    ours.handle(Arrived("a", 2))
    assert ours.handle(Restarted("c")) == []
    assert ours.handle(Arrived("b", 2)) == [Accept("b", 2), Close(2, ("a", "b"), (("c", "not restarted yet"),))]
    assert ours.handle(Opened(3, ABC)) == [Submit("a", 3), Submit("b", 3), Submit("c", 3)]


def test_every_round_says_who_is_still_at_work_on_an_earlier_one():
    ours = opened(round_timeout=1.0)
    for silo in "ab":
        ours.handle(Arrived(silo, 1))
    ours.handle(DeadlinePassed(1))
    ours.handle(Opened(2, ABC))
    ours.handle(Arrived("a", 2))
    [_, closed] = ours.handle(Arrived("b", 2))
    assert closed == Close(2, ("a", "b"), (("c", "late: still at work on round 1"),))


def test_a_round_does_not_start_without_enough_silos():
    ours = machine(min_available_clients=3, max_restarts=0)
    ours.handle(Died("a", "killed"))
    assert ours.handle(Opened(1, ABC)) == [Stop(1, "2 of 3 silos are available", (("a", "no restart left after 0"),))]


def test_a_fraction_of_the_silos_is_asked_in_the_order_of_the_ranking():
    ours = machine(fraction_fit=0.5)
    assert ours.handle(Opened(1, ("c", "a", "b"))) == [Submit("c", 1), Submit("a", 1)]


@pytest.mark.parametrize(
    "rules",
    [{"fraction_fit": 0}, {"fraction_fit": 1.5}, {"min_fit_clients": 0}, {"round_timeout": 0}, {"max_restarts": -1}],
)
def test_rules_that_make_no_sense_are_refused(rules):
    with pytest.raises(ConfigError, match=next(iter(rules))):
        RoundRules(**rules)


silo_names = st.sampled_from(ABC)
numbers = st.integers(1, 4)
events = st.one_of(
    st.builds(Arrived, silo_names, numbers),
    st.builds(Refused, silo_names, numbers, st.just("nan")),
    st.builds(Raised, silo_names, numbers, st.just("error")),
    st.builds(Died, silo_names, st.just("killed")),
    st.builds(Restarted, silo_names),
    st.builds(DeadlinePassed, numbers),
    st.just("open the next round"),
)
rule_sets = st.builds(
    RoundRules,
    fraction_fit=st.sampled_from([0.3, 0.6, 1.0]),
    min_fit_clients=st.integers(1, 3),
    min_available_clients=st.integers(1, 3),
    accept_failures=st.booleans(),
    max_restarts=st.integers(0, 2),
)


@settings(max_examples=600)
@given(rule_sets, st.lists(events, max_size=40))
def test_every_order_of_events_keeps_the_promises(rules, order):
    ours = RoundMachine(rules, ABC)
    working: dict[str, int] = {}
    taken: set[tuple[str, int]] = set()
    seated: dict[int, set[str]] = {}
    restarted = dict.fromkeys(ABC, 0)
    for event in order:
        if event == "open the next round":
            if ours.is_open or ours.stopped:
                continue
            event = Opened(ours.server_round + 1, ABC)
        for decision in ours.handle(event):
            match decision:
                case Submit(silo, server_round):
                    assert silo not in working, "asked while it works"
                    working[silo] = server_round
                    seated.setdefault(server_round, set()).add(silo)
                case Accept(silo, server_round):
                    assert server_round == ours.server_round
                    assert working.get(silo) == server_round, "took what nobody asked for"
                    assert (silo, server_round) not in taken, "took twice"
                    taken.add((silo, server_round))
                case Restart(silo):
                    restarted[silo] += 1
                    assert restarted[silo] <= rules.max_restarts
                case Close(server_round, participants, failures):
                    assert {silo for silo, number in taken if number == server_round} == set(participants)
                    assert len(participants) >= rules.min_fit_clients
                    assert not set(participants) & {silo for silo, _ in failures}
                    assert rules.accept_failures or not failures
                    assert not ours.seats
                case Stop():
                    assert ours.handle(Opened(99, ABC)) == []
        _forget_finished_work(event, working)
        if isinstance(event, DeadlinePassed) and event.server_round == ours.server_round:
            assert not ours.is_open, "open after its deadline"


def _forget_finished_work(event, working):
    """An answer to what a silo works on, or its death, ends that work; nothing else does."""
    if isinstance(event, Died):
        working.pop(event.silo, None)
    elif isinstance(event, (Arrived, Refused, Raised)) and working.get(event.silo) == event.server_round:
        working.pop(event.silo)


def test_no_silo_is_ever_in_two_phases_and_gone_is_final():
    ours = machine(max_restarts=0)
    ours.handle(Died("a", "killed"))
    assert ours.phase["a"] is Phase.GONE
    assert ours.handle(Restarted("a")) == []
    assert ours.handle(Died("a", "killed")) == []
    assert ours.phase["a"] is Phase.GONE
