import torch
from hypothesis import given
from hypothesis import strategies as st

from ray_fed.federation.silo_state import KEPT_ROUNDS, SiloState


def filled(value):
    return {"m": torch.full((3,), float(value)), "steps": torch.tensor(value)}


def recalled(kept, server_round):
    state = filled(-1)
    return int(state["steps"]) if kept.recall(server_round, state) else None


def test_a_round_finds_the_state_before_it(tmp_path):
    kept = SiloState(str(tmp_path), "a", "s")
    for number in (1, 2, 3):
        kept.remember(number, filled(10 * number))
    state = filled(0)
    assert kept.recall(3, state)
    assert state["m"].tolist() == [20.0] * 3
    assert (state["steps"].dtype, int(state["steps"])) == (torch.int64, 20)
    assert not kept.recall(1, state)


@given(st.sets(st.integers(1, 60), min_size=1, max_size=20))
def test_the_last_few_rounds_a_silo_took_part_in_are_kept_however_far_apart(tmp_path_factory, rounds):
    kept, order = SiloState(str(tmp_path_factory.mktemp("state")), "a", "s"), sorted(rounds)
    for number in order:
        kept.remember(number, filled(number))
    last = order[-KEPT_ROUNDS:]
    for before, after in zip(last, [*last[1:], 99], strict=True):
        assert recalled(kept, after) == before


def test_what_another_run_left_behind_is_not_mistaken_for_this_runs(tmp_path):
    kept = SiloState(str(tmp_path), "a", "s")
    for number in range(20, 26):
        kept.remember(number, filled(number))
    kept.remember(1, filled(1))
    assert [recalled(kept, number) for number in (1, 2, 30)] == [None, 1, 1]


def test_without_a_folder_nothing_is_kept():
    kept = SiloState("", "a", "s")
    kept.remember(1, filled(1))
    assert recalled(kept, 2) is None
