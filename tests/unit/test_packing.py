"""Where silos fit: every number of GPUs and silos, against a scheduler that deals out as Ray does, in any order."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.packing import NodeOffer, hardest_first, packed, share
from actors.placement import settle
from ray_fed.errors import ConfigError, PlacementError
from ray_fed.federation.task import SiloSpec

PAIRS = list(itertools.product(range(1, 9), range(1, 33)))


def silos(*gpus, cpus=1.0, site=""):
    return [SiloSpec(f"silo-{number}", None, wish, cpus, site) for number, wish in enumerate(gpus, 1)]


def dealt(specs, nodes, draw):
    """Return how many silos Ray's scheduler places: each in turn on any node with room, on its fullest GPU with room.

    Amounts are ten-thousandths, rounded; of whole GPUs only free ones count.
    """
    rooms = [[round(1e4 * node.cpus), [10_000] * int(node.gpus), node.site] for node in nodes]
    placed = 0
    for spec in specs:
        asked, cpus = round(1e4 * spec.num_gpus), round(1e4 * spec.num_cpus)
        fitting = [
            (room, gpu)
            for room in rooms
            if room[0] >= cpus and (not spec.site or spec.site == room[2])
            for gpu in ([min((g for g in room[1] if g >= asked), default=None)] if asked else [0])
            if gpu is not None
        ]
        if not fitting:
            continue
        room, gpu = fitting[draw.integers(len(fitting))]
        if asked:
            room[1].remove(gpu)
            room[1].append(gpu - asked)
        room[0] -= cpus
        placed += 1
    return placed


def test_even_shares_of_every_pair_of_gpus_and_silos_are_all_placed():
    draw, unplaced = np.random.default_rng(0), []
    for gpus, count in PAIRS:
        settled, notices = settle(silos(*[None] * count), [NodeOffer("box", "", 32.0, gpus)])
        assert notices == []
        assert {spec.num_gpus for spec in settled} == {share(-(-count // gpus))}
        if dealt(settled, [NodeOffer("box", "", 32.0, gpus)], draw) < count:
            unplaced.append((gpus, count))
    assert len(PAIRS) == 256
    assert unplaced == []


def test_the_scheduler_of_this_test_leaves_silos_over_where_shares_are_parts_of_the_sum():
    """As Ray did with hundredths of all GPUs: a fraction does not straddle two."""
    draw, hanging = np.random.default_rng(0), 0
    for gpus, count in PAIRS:
        part = min(1.0, int(100 * gpus / count) / 100)
        if sum([part] * count) > gpus:  # refused, by sums of floats
            continue
        hanging += dealt(silos(*[part] * count), [NodeOffer("box", "", 32.0, gpus)], draw) < count
    assert hanging == 116


@settings(max_examples=60)
@given(
    nodes=st.lists(st.tuples(st.integers(0, 4), st.integers(1, 9)), min_size=1, max_size=3),
    count=st.integers(1, 9),
    cpus=st.sampled_from([0.5, 1.0, 3.0]),
    seed=st.integers(0, 99),
)
def test_what_is_accepted_is_placed_and_what_is_refused_has_no_room(nodes, count, cpus, seed):
    there = [NodeOffer(f"node-{number}", "", float(c), g) for number, (g, c) in enumerate(nodes)]
    specs = silos(*[None] * count, cpus=cpus)
    try:
        settled, _ = settle(specs, there)
    except PlacementError:
        assert sum(int(node.cpus / cpus) for node in there) < count
        return
    assert dealt(hardest_first(settled), there, np.random.default_rng(seed)) == count


@pytest.mark.parametrize(
    ("gpus", "cpus", "nodes", "remedy"),
    [
        ([0.75] * 5, 1.0, [(8, 4)], r"5 x 0.75 GPU and 1 CPU.*num_gpus=0.5 for each would fit"),
        ([0.0] * 3, 3.0, [(4, 0), (5, 0)], r"3 x 0 GPU and 3 CPU.*num_cpus=2 for each would fit"),
        ([1.0] * 3, 1.0, [(8, 2)], r"3 GPUs together, there are 2: .*num_gpus=0.5 for each would fit"),
        ([0.6, 0.6, 0.6], 1.0, [(8, 1), (8, 1)], r"num_gpus=0.5 for each would fit"),
    ],
)
def test_what_cannot_be_placed_is_refused_with_what_would_fit(gpus, cpus, nodes, remedy):
    there = [NodeOffer(f"node-{number}", "", float(c), g) for number, (c, g) in enumerate(nodes)]
    with pytest.raises(PlacementError, match=remedy):
        settle(silos(*gpus, cpus=cpus), there)


def test_thirds_fill_a_gpu_though_their_floats_sum_to_more():
    assert packed(silos(0.3, 0.3, 0.4), [NodeOffer("box", "", 8.0, 1)]) is not None
    settled, _ = settle(silos(*[1 / 3] * 3), [NodeOffer("box", "", 8.0, 1)])
    assert len(settled) == 3


def test_a_silo_without_a_wish_gets_what_stated_wishes_leave_and_is_told_when_nothing_is_left():
    box = [NodeOffer("box", "a", 8.0, 2)]
    settled, notices = settle(silos(1.0, None, None, site="a"), box)
    assert [spec.num_gpus for spec in settled] == [1.0, 0.5, 0.5]
    assert notices == []
    settled, notices = settle(silos(1.0, 1.0, None, site="a"), box)
    assert settled[-1].num_gpus == 0.0
    assert notices == ["no GPU is left at site 'a' for silos 'silo-3': they train on CPU"]


def test_memory_is_counted_node_by_node():
    nodes = [NodeOffer("small", "", 8.0, 0, 4e9), NodeOffer("large", "", 8.0, 0, 9e9)]
    fits = [replace(spec, memory_gb=4.0) for spec in silos(0.0, 0.0, 0.0)]
    assert len(settle(fits, nodes)[0]) == 3
    with pytest.raises(PlacementError, match=r"5 GB of memory"):
        settle([replace(spec, memory_gb=5.0) for spec in fits], nodes)


@pytest.mark.parametrize("wish", [1.5, 2.0, 0.00001, float("nan"), -1.0])
def test_a_silo_has_at_most_one_gpu_and_is_named(wish):
    with pytest.raises(ConfigError, match=r"silo 'silo-1': num_gpus="):
        silos(wish)
