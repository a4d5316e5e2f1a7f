import errno
import os

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ray_fed.errors import DataError
from ray_fed.federation.silo_state import SiloState, num_slots_for, rounds_apart

KEPT_ROUNDS = 5


def filled(value):
    return {"m": torch.full((3,), float(value)), "steps": torch.tensor(value)}


def recalled(kept, server_round):
    state = filled(-1)
    return int(state["steps"]) if kept.recall(server_round, state) else None


def test_a_round_finds_the_state_before_it(tmp_path):
    kept = SiloState(str(tmp_path), "a", "s", KEPT_ROUNDS)
    for number in (1, 2, 3):
        kept.remember(number, filled(10 * number))
    state = filled(0)
    assert kept.recall(3, state)
    assert state["m"].tolist() == [20.0] * 3
    assert (state["steps"].dtype, int(state["steps"])) == (torch.int64, 20)
    assert not kept.recall(1, state)


@given(st.sets(st.integers(1, 60), min_size=1, max_size=20))
def test_the_last_few_rounds_a_silo_took_part_in_are_kept_however_far_apart(tmp_path_factory, rounds):
    kept, order = SiloState(str(tmp_path_factory.mktemp("state")), "a", "s", KEPT_ROUNDS), sorted(rounds)
    for number in order:
        kept.remember(number, filled(number))
    last = order[-KEPT_ROUNDS:]
    for before, after in zip(last, [*last[1:], 99], strict=True):
        assert recalled(kept, after) == before


def test_what_another_run_left_behind_is_not_mistaken_for_this_runs(tmp_path):
    kept = SiloState(str(tmp_path), "a", "s", KEPT_ROUNDS)
    for number in range(20, 26):
        kept.remember(number, filled(number))
    kept.remember(1, filled(1))
    assert [recalled(kept, number) for number in (1, 2, 30)] == [None, 1, 1]


def test_without_a_folder_nothing_is_kept():
    kept = SiloState("", "a", "s", KEPT_ROUNDS)
    kept.remember(1, filled(1))
    assert recalled(kept, 2) is None


def test_a_file_of_another_network_is_made_anew_before_round_1_and_refused_after_it(tmp_path):
    SiloState(str(tmp_path), "a", "s", KEPT_ROUNDS).remember(3, filled(3))
    wider = {"m": torch.zeros(7), "steps": torch.tensor(0)}
    with pytest.raises(DataError, match=r"silo 'a': .*damaged or of another network"):
        SiloState(str(tmp_path), "a", "s", KEPT_ROUNDS).recall(4, wider)
    assert not SiloState(str(tmp_path), "a", "s", KEPT_ROUNDS).recall(1, wider)


def test_a_process_that_dies_while_it_writes_leaves_the_state_before(tmp_path):
    kept = SiloState(str(tmp_path), "a", "s", KEPT_ROUNDS)
    kept.remember(1, filled(1))

    class Dying(dict):
        def items(self):
            yield "m", torch.full((3,), 9.0)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        kept.remember(2, Dying(filled(2)))
    assert recalled(SiloState(str(tmp_path), "a", "s", KEPT_ROUNDS), 3) == 1


def test_small_states_are_kept_by_the_dozen_and_large_ones_a_few():
    assert (rounds_apart(660_000), num_slots_for(rounds_apart(660_000))) == (12, 50)
    assert (rounds_apart(300_000_000), num_slots_for(1)) == (1, 6)


def test_a_full_disk_is_an_error_of_the_silo_and_not_the_end_of_its_process(tmp_path, monkeypatch):
    """Only once per slot is the disk asked: a room that was given stays."""
    kept, asked = SiloState(str(tmp_path), "a", "s", 2), []
    monkeypatch.setattr(os, "posix_fallocate", lambda *place: asked.append(place[1:]))
    for number in (1, 2, 3):
        kept.remember(number, filled(number))
    [first, second] = asked
    assert first[0] + first[1] <= second[0]

    def is_full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", is_full)
    with pytest.raises(DataError, match=r"silo 'a': .*: No space left on device; make room there"):
        SiloState(str(tmp_path / "other"), "a", "s", 2).remember(1, filled(1))
    assert recalled(kept, 4) == 3
