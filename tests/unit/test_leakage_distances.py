"""Distances of the attacks: hand-solved cases, finite differences, POT and autograd as references."""

import numpy as np
import ot
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_fed.errors import ConfigError
from ray_fed.leakage.distances import (
    DISTANCES,
    SinkhornSettings,
    cosine,
    make_distance,
    scaled_error,
    sorted_entries,
    squared_error,
    total_variation,
    transport_costs,
    transport_plan,
)

FINE = SinkhornSettings(epsilon=1.0, max_iterations=300, threshold=1e-10)


def points(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def layers(seed: int, n: int = 2) -> list[torch.Tensor]:
    return [points(seed, n, 4, 3), points(seed + 1, n, 4)]


ALL = [*DISTANCES.items(), ("rows", make_distance("rows", FINE)),
       ("rows debiased", make_distance("rows", SinkhornSettings(1.0, 300, 1e-10, debias=True))),
       ("rows anchored", make_distance("rows", SinkhornSettings(1.0, 300, 1e-10, anchor=2.0)))]  # fmt: skip


@pytest.mark.parametrize(("name", "distance"), ALL, ids=[name for name, _ in ALL])
def test_the_gradient_of_each_distance_is_the_one_of_finite_differences(name, distance):
    seen = layers(0, 1)
    virtual = [part.clone().requires_grad_() for part in layers(5, 1)]
    slopes = torch.autograd.grad(distance(virtual, seen).sum(), virtual)
    step = 1e-5
    for place, (part, slope) in enumerate(zip(virtual, slopes, strict=True)):
        for index in [(0, 0, 0), (0, 3, 2), (0, 1, 1)] if part.ndim == 3 else [(0, 0), (0, 2)]:
            moved = [[one.detach().clone() for one in virtual] for _ in range(2)]
            moved[0][place][index] += step
            moved[1][place][index] -= step
            up, down = (float(distance(one, seen)[0]) for one in moved)
            assert float(slope[index]) == pytest.approx((up - down) / (2 * step), rel=1e-5, abs=1e-7), name


@pytest.mark.parametrize(("p", "q"), [(5, 5), (4, 7)])
def test_sinkhorn_gives_the_plan_of_pot(p, q):
    a, b = points(1, 3, p, 2), points(2, 3, q, 2)
    cost = (a[:, :, None] - b[:, None]).square().sum(-1)
    plans = transport_plan(cost, SinkhornSettings(0.3, 5000, 1e-13))
    for plan, matrix in zip(plans, cost, strict=True):
        expected = ot.sinkhorn(np.full(p, 1 / p), np.full(q, 1 / q), matrix.numpy(), 0.3, method="sinkhorn_log",
                               numItermax=20_000, stopThr=1e-12)  # fmt: skip
        np.testing.assert_allclose(plan.numpy(), expected, atol=1e-9)


def test_sinkhorn_with_a_small_epsilon_approaches_the_exact_distance_of_pot():
    a, b = points(3, 1, 6, 2), points(4, 1, 6, 2)
    cost = (a[:, :, None] - b[:, None]).square().sum(-1)[0].numpy()
    exact = ot.emd2(np.full(6, 1 / 6), np.full(6, 1 / 6), cost)
    found = float(transport_costs([(a, b)], SinkhornSettings(0.02, 3000, 1e-8))[0][0])
    assert found == pytest.approx(exact, rel=1e-2)


def test_two_points_are_transported_by_the_plan_solved_by_hand():
    """Points 0, 1 and 0, 1 on a line: by symmetry pi = [[s, t], [t, s]], t / s = exp(-1 / epsilon), s + t = 1/2."""
    line = torch.tensor([[[0.0], [1.0]]], dtype=torch.float64)
    ratio = np.exp(-1 / 1.0)
    off = 0.5 * ratio / (1 + ratio)
    assert float(transport_costs([(line, line)], FINE)[0][0]) == pytest.approx(2 * off, abs=1e-12)


def test_entropic_distance_of_equal_sets_is_positive_and_debiasing_removes_it():
    set_ = points(6, 2, 5, 3)
    assert bool((transport_costs([(set_, set_)], FINE)[0] > 0.01).all())
    debiased = SinkhornSettings(1.0, 300, 1e-10, debias=True)
    assert transport_costs([(set_, set_)], debiased)[0].abs().max() < 1e-12


def test_each_problem_stops_by_its_own_threshold():
    cost = torch.stack([torch.zeros(4, 4, dtype=torch.float64), 3 * points(7, 4, 4).abs()])
    rough = SinkhornSettings(0.2, 500, 0.05)
    together = transport_plan(cost, rough)
    for number in range(2):
        torch.testing.assert_close(together[number], transport_plan(cost[number : number + 1], rough)[0])


def test_a_large_anchor_pairs_every_point_with_itself():
    a, b = points(8, 1, 4, 2), points(9, 1, 4, 2)
    anchored = transport_costs([(a, b)], SinkhornSettings(0.1, 500, 1e-9, anchor=1e3))[0]
    torch.testing.assert_close(anchored, (a - b).square().sum(2).mean(1))


def test_sorted_entries_is_the_exact_distance_of_pot_on_a_line():
    a, b = points(10, 1, 12), points(11, 1, 12)
    expected = ot.wasserstein_1d(a[0].numpy(), b[0].numpy(), p=2)
    assert float(sorted_entries([a], [b])[0]) == pytest.approx(float(expected))


def test_distances_over_sets_forget_which_entry_is_which():
    a = torch.tensor([[1.0, 2.0, 3.0]])
    b = torch.tensor([[3.0, 1.0, 2.0]])
    assert float(sorted_entries([a], [b])[0]) == 0
    assert float(squared_error([a], [b])[0]) == 4 + 1 + 1


@given(st.floats(0.1, 10), st.integers(0, 20))
@settings(max_examples=20)
def test_cosine_does_not_see_the_length_of_a_message(factor, seed):
    seen, virtual = layers(seed), layers(seed + 50)
    scaled = [factor * part for part in seen]
    torch.testing.assert_close(cosine(virtual, seen), cosine(virtual, scaled))


def test_the_scaled_error_fits_the_length_of_the_virtual_message():
    virtual, seen = [torch.tensor([[1.0, 0.0]])], [torch.tensor([[3.0, 4.0]])]
    assert float(scaled_error(virtual, seen)) == 16  # the best multiple of (1, 0) is (3, 0)
    assert float(scaled_error([2 * seen[0]], seen)) == pytest.approx(0)


def test_total_variation_of_a_step_is_solved_by_hand():
    image = torch.zeros(1, 1, 1, 4, 4)
    image[..., 2:] = 1.0  # 4 of 12 neighbours side by side differ by 1
    assert float(total_variation(image)[0]) == pytest.approx(4 / 12)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"epsilon": 0.0}, "epsilon=0.0"),
        ({"max_iterations": 0}, "max_iterations=0"),
        ({"threshold": -1.0}, "threshold"),
    ],
)
def test_impossible_sinkhorn_settings_are_refused(options, said):
    with pytest.raises(ConfigError, match=said):
        SinkhornSettings(**options)
