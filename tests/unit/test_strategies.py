import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, stats

from ray_fed.errors import ConfigError, FedError, UpdateRejected
from ray_fed.federation import norms
from ray_fed.federation.messages import Update
from ray_fed.federation.norms import clipped, distance
from ray_fed.federation.strategies import (
    STRATEGIES,
    CentredClipping,
    CoordinateMedian,
    FedAdagrad,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedNova,
    FedYogi,
    GeometricMedian,
    Krum,
    MultiKrum,
    NormClipping,
    TrimmedMean,
    fed_avg,
    make_strategy,
)
from ray_fed.federation.strategies.robust import geometric_median, krum_scores
from ray_fed.federation.strategies.updates import collected

EVERY = sorted(set(STRATEGIES) - {"scaffold", "scaffold_adam", "dp_fed_avg"})
# scaffold's messages are twice as long (test_client_side.py), scaffold_adam's three times (test_common_moments.py);
# dp_fed_avg never repeats itself (see its own tests)
SERVER_OPTIMIZERS = ["fed_adagrad", "fed_adam", "fed_avg_m", "fed_yogi"]
ROBUST = ["geometric_median", "krum", "median", "multi_krum", "trimmed_mean"]

coordinates = st.integers(-800, 800).map(lambda whole: whole / 8)  # few bits: sums of squares of them are exact


def update(silo, vector, num_examples=1, num_steps=1):
    frozen = np.array(vector, np.float32)
    frozen.flags.writeable = False
    return Update(silo, "s", 1, frozen, num_examples, num_steps, 0.0)


def updates_of(*vectors):
    return [update(f"silo-{number}", vector) for number, vector in enumerate(vectors)]


def aggregate(strategy, updates, initial=None):
    """One round from `initial` (zeros); returns the model."""
    initial = np.zeros(len(updates[0].vector)) if initial is None else initial
    state = strategy.start(np.array(initial, np.float32), [one.silo for one in updates])
    return strategy.models(strategy.aggregate(state, updates))["federated"]


@st.composite
def rounds(draw):
    """Updates of 5 to 8 silos with different rows and steps, three parameters each."""
    vectors = draw(st.lists(st.tuples(coordinates, coordinates, coordinates), min_size=5, max_size=8))
    counts = st.tuples(st.integers(1, 5000), st.integers(1, 40))
    return [update(f"silo-{i}", vector, *draw(counts)) for i, vector in enumerate(vectors)]


# Server optimisers ----------------------------------------------------------------------------------------------


def test_fed_avg_m_takes_the_steps_computed_by_hand():
    """x = 1; round 1: mean 3, m = 2, x = 1 + 0.5 * 2 = 2; round 2: mean 4, m = 0.5 * 2 + 2 = 3, x = 2 + 1.5 = 3.5."""
    strategy = FedAvgM(eta=0.5, beta=0.5)
    state = strategy.start(np.array([1], np.float32), ["a", "b"])
    state = strategy.aggregate(state, [update("a", [2], 1), update("b", [4], 1)])
    assert state["federated"].tolist() == [2.0]
    state = strategy.aggregate(state, [update("a", [4], 1)])
    assert state["federated"].tolist() == [3.5]
    assert state["server.momentum"].tolist() == [3.0]


def test_fed_adam_takes_the_first_step_computed_by_hand():
    """Delta = 2: m = 0.1 * 2 = 0.2; v = 0.99 * 1 + 0.01 * 4 = 1.03; x = 0.5 * 0.2 / (sqrt(1.03) + 1)."""
    strategy = FedAdam(eta=0.5, beta_1=0.9, beta_2=0.99, tau=1.0)
    state = strategy.aggregate(strategy.start(np.zeros(1, np.float32), ["a"]), [update("a", [2])])
    assert state["server.momentum"] == pytest.approx([0.2])
    assert state["server.second"] == pytest.approx([1.03])
    assert state["federated"] == pytest.approx([0.049630533], rel=1e-6)


def test_fed_yogi_moves_its_second_moment_towards_the_square_by_a_hundredth_of_the_square():
    """tau^2 = 1; Delta = 2: 1 - 0.01 * 4 * sign(1 - 4) = 1.04; Delta = 0.5: 1 - 0.01 * 0.25 * sign(1 - 0.25)."""
    strategy = FedYogi(tau=1.0)
    state = strategy.start(np.zeros(3, np.float32), ["a"])
    after = strategy.aggregate(state, [update("a", [2, 0.5, 1])])
    assert after["server.second"] == pytest.approx([1.04, 0.9975, 1.0])


def test_fed_adagrad_adds_up_the_squares():
    """tau^2 = 1; Delta = 2, then 3 - 2 / (sqrt(5) + 1) = 2.381966: v = 1 + 4 + 5.673762."""
    strategy = FedAdagrad(eta=1.0, tau=1.0)
    state = strategy.aggregate(strategy.start(np.zeros(1, np.float32), ["a"]), [update("a", [2])])
    assert state["federated"] == pytest.approx([0.618034])
    assert strategy.aggregate(state, [update("a", [3])])["server.second"] == pytest.approx([10.673762])


@pytest.mark.parametrize(
    ("strategy", "reference"),
    [
        (FedAvgM(eta=0.3, beta=0.8), lambda p: torch.optim.SGD([p], lr=0.3, momentum=0.8)),
        (
            FedAdagrad(eta=0.2, tau=0.01),
            lambda p: torch.optim.Adagrad([p], lr=0.2, eps=0.01, initial_accumulator_value=1e-4),
        ),
    ],
)
def test_server_optimisers_follow_pytorch_on_the_pseudo_gradient(strategy, reference):
    random = np.random.default_rng(0)
    state = strategy.start(random.normal(size=20).astype(np.float32), ["a", "b"])
    parameter = torch.tensor(state["federated"].astype(np.float64), requires_grad=True)
    optimizer = reference(parameter)
    for _ in range(6):
        answers = [update(silo, random.normal(size=20), 1 + i) for i, silo in enumerate("ab")]
        mean = fed_avg(20, answers)
        parameter.grad = parameter.detach() - torch.from_numpy(mean.astype(np.float64))
        optimizer.step()
        state = strategy.aggregate(state, answers)
    np.testing.assert_allclose(state["federated"], parameter.detach().numpy(), rtol=1e-5, atol=1e-6)


@given(rounds(), st.lists(coordinates, min_size=3, max_size=3))
def test_fed_avg_m_without_momentum_has_the_bits_of_fed_avg(updates, initial):
    plain = aggregate(FedAvgM(eta=1.0, beta=0.0), updates, initial)
    assert plain.tobytes() == fed_avg(3, updates).tobytes()


@pytest.mark.parametrize("name", SERVER_OPTIMIZERS)
def test_the_state_of_a_server_optimiser_is_plain_float_arrays_and_one_model(name):
    strategy = make_strategy(name)
    state = strategy.start(np.ones(3, np.float32), ["a"])
    assert {array.dtype.name for array in state.values()} == {"float32", "float64"}
    assert list(strategy.models(state)) == ["federated"]
    after = strategy.aggregate(state, [update("a", [1, 2, 3])])
    assert {key: array.dtype for key, array in after.items()} == {key: array.dtype for key, array in state.items()}


@pytest.mark.parametrize("name", ["fed_adagrad", "fed_adam", "fed_yogi"])
@settings(max_examples=25)
@given(rounds())
def test_an_adaptive_server_never_moves_a_coordinate_further_than_its_largest_step(name, updates):
    """|m| = (1 - beta_1) |Delta| and v >= (1 - beta_2) Delta^2, with beta_2 = 0 for Adagrad."""
    strategy = make_strategy(name, eta=0.5)
    bound = 0.5 * (1 - strategy.beta_1) / np.sqrt(1 - getattr(strategy, "beta_2", 0.0))
    assert np.abs(aggregate(strategy, updates)).max() <= bound * (1 + 1e-6)


def test_a_server_step_out_of_the_range_of_float32_says_what_to_lower():
    with pytest.raises(FedError, match=r"range of float32.*lower eta=1e\+38"):
        aggregate(FedAvgM(eta=1e38), updates_of([100.0]))


# FedNova --------------------------------------------------------------------------------------------------------


def test_fed_nova_normalises_moves_by_steps_as_computed_by_hand():
    """p = (1/4, 3/4), tau = (1, 4): tau_eff = 13/4; per step (2/4 + 3/4 * 8/4) = 2; x = 1 + 13/4 * 2 = 7.5."""
    updates = [update("a", [3], 1, num_steps=1), update("b", [9], 3, num_steps=4)]
    assert aggregate(FedNova(), updates, [1.0]).tolist() == [7.5]


def test_fed_nova_with_the_silos_rows_ignores_how_often_they_were_seen():
    """Equal rows, 1 and 4 passes: tau_eff = 2.5; per step (2 + 8/4) / 2 = 2; x = 1 + 2.5 * 2 = 6."""
    updates = [update("a", [3], 10, num_steps=1), update("b", [9], 40, num_steps=4)]
    assert aggregate(FedNova(num_examples={"a": 10, "b": 10}), updates, [1.0]).tolist() == [6.0]


@given(rounds(), st.lists(coordinates, min_size=3, max_size=3), st.integers(1, 1000))
def test_fed_nova_equals_fed_avg_when_all_silos_take_as_many_steps(updates, initial, num_steps):
    equal = [replace(one, num_steps=num_steps) for one in updates]
    np.testing.assert_allclose(aggregate(FedNova(), equal, initial), fed_avg(3, equal), rtol=1e-6, atol=2e-5)


def test_fed_nova_reaches_the_optimum_that_fed_avg_misses():
    """Wang et al. 2020, Lemma 1: silos with F_i = (x - e_i)^2 / 2 and unequal steps pull FedAvg to the busy one."""
    optima, steps, rate = {"a": -1.0, "b": 1.0}, {"a": 2, "b": 20}, 1e-3

    def after_many_rounds(strategy):
        state = strategy.start(np.zeros(1, np.float32), list(optima))
        for _ in range(800):
            x = float(state["federated"][0])
            moved = {silo: e + (1 - rate) ** steps[silo] * (x - e) for silo, e in optima.items()}
            state = strategy.aggregate(state, [update(silo, [w], 1, steps[silo]) for silo, w in moved.items()])
        return float(state["federated"][0])

    assert after_many_rounds(FedNova()) == pytest.approx(0, abs=0.02)
    assert after_many_rounds(FedAvg()) == pytest.approx(18 / 22, abs=0.02)


def test_fed_nova_refuses_a_silo_without_steps_and_a_silo_without_rows():
    with pytest.raises(UpdateRejected, match=r"silo 'a'.*num_steps=0"):
        aggregate(FedNova(), [update("a", [1], num_steps=0)])
    with pytest.raises(ConfigError, match="num_examples has no silo 'b'; it has: a"):
        FedNova(num_examples={"a": 3}).start(np.zeros(1, np.float32), ["a", "b"])


# Medians --------------------------------------------------------------------------------------------------------


def test_the_median_takes_the_middle_or_the_mean_of_the_middle_two():
    assert aggregate(CoordinateMedian(), updates_of([1, 9], [5, -7], [2, 8])).tolist() == [2.0, 8.0]
    assert aggregate(CoordinateMedian(), updates_of([1], [100], [2], [4])).tolist() == [3.0]


@given(rounds())
def test_the_median_is_numpys_and_lies_between_the_smallest_and_the_largest_value(updates):
    stack = np.stack([one.vector for one in updates])
    found = aggregate(CoordinateMedian(), updates)
    assert (stack.min(axis=0) <= found).all()
    assert (found <= stack.max(axis=0)).all()
    np.testing.assert_array_equal(found, np.median(stack.astype(np.float64), axis=0).astype(np.float32))


def test_the_trimmed_mean_drops_the_ends_of_each_coordinate():
    found = aggregate(TrimmedMean(beta=0.2), updates_of([1, 50], [2, 4], [3, 5], [4, 6], [100, -9]))
    assert found.tolist() == [3.0, 5.0]


@pytest.mark.parametrize(
    ("beta", "num_updates", "num_trimmed"), [(0.1, 8, 1), (0.07, 100, 7), (0.2, 5, 1), (0.0, 9, 0)]
)
def test_the_trimmed_mean_trims_at_least_the_fraction_asked_for(beta, num_updates, num_trimmed):
    assert TrimmedMean(beta=beta).num_trimmed(num_updates) == num_trimmed


def test_the_trimmed_mean_equals_scipys():
    points = np.random.default_rng(0).normal(size=(20, 50)).astype(np.float32)
    found = aggregate(TrimmedMean(beta=0.25), updates_of(*points))
    np.testing.assert_allclose(found, stats.trim_mean(points.astype(np.float64), 0.25, axis=0), rtol=1e-6)


def test_a_trimmed_mean_that_would_leave_nothing_says_so_in_numbers():
    with pytest.raises(FedError, match=r"trimmed_mean needs at least 3 updates in a round, got 2; lower beta=0.4"):
        aggregate(TrimmedMean(beta=0.4), updates_of([1], [2]))


# Krum -----------------------------------------------------------------------------------------------------------

ON_A_LINE = [[0.0], [1.0], [3.0], [4.0], [100.0]]


def test_krums_scores_are_the_sums_of_the_nearest_squares_computed_by_hand():
    """n = 5, f = 1: two nearest each. 0: 1 + 9; 1: 1 + 4; 3: 1 + 4; 4: 1 + 9; 100: 96^2 + 97^2."""
    assert krum_scores(updates_of(*ON_A_LINE), 1) == [10, 5, 5, 10, 96**2 + 97**2]


def test_krum_gives_a_tie_to_the_silo_first_by_name():
    assert aggregate(Krum(), updates_of(*ON_A_LINE)).tolist() == [1.0]
    named = [update(silo, vector) for silo, vector in zip("edcba", ON_A_LINE, strict=True)]
    assert aggregate(Krum(), named).tolist() == [3.0]


def test_multi_krum_averages_all_but_the_number_that_may_lie():
    assert aggregate(MultiKrum(), updates_of(*ON_A_LINE)).tolist() == [2.0]
    assert aggregate(MultiKrum(num_selected=2), updates_of(*ON_A_LINE)).tolist() == [2.0]
    assert aggregate(MultiKrum(num_selected=3), updates_of(*ON_A_LINE)).tolist() == [np.float32(4 / 3)]


def test_multi_krum_does_not_believe_the_rows_that_a_silo_claims():
    claimed = [replace(one, num_examples=10**6 if i == 3 else 1) for i, one in enumerate(updates_of(*ON_A_LINE))]
    assert aggregate(MultiKrum(), claimed).tolist() == [2.0]


@settings(max_examples=60)
@given(st.data(), st.integers(0, 2), st.integers(0, 3))
def test_krum_and_multi_krum_take_no_gross_outlier_when_n_is_at_least_2f_plus_3(data, num_byzantine, extra):
    """Honest silos within 1 of each other, liars at least 100 away, together or apart."""
    honest = data.draw(
        st.lists(
            st.tuples(st.floats(0, 0.5), st.floats(0, 0.5)),
            min_size=num_byzantine + 3 + extra,
            max_size=num_byzantine + 3 + extra,
        )
    )
    lies = data.draw(
        st.lists(
            st.tuples(st.integers(100, 1000), st.integers(-1000, 1000)), min_size=num_byzantine, max_size=num_byzantine
        )
    )
    updates = data.draw(st.permutations([*honest, *lies]))
    for strategy in (Krum(num_byzantine=num_byzantine), MultiKrum(num_byzantine=num_byzantine)):
        found = aggregate(strategy, updates_of(*updates))
        assert (found >= 0).all()
        assert (found <= 0.5).all()


@pytest.mark.parametrize(
    ("strategy", "name"), [(Krum(num_byzantine=2), "krum"), (MultiKrum(num_byzantine=2), "multi_krum")]
)
def test_krum_with_too_few_silos_says_so_in_numbers(strategy, name):
    message = rf"^{name} with num_byzantine=2 needs at least 7 updates in a round, got 6; lower num_byzantine"
    with pytest.raises(FedError, match=message):
        aggregate(strategy, updates_of([1], [2], [3], [4], [5], [6]))


def test_multi_krum_cannot_select_more_updates_than_there_are():
    with pytest.raises(FedError, match="num_selected=9 needs at least 9 updates in a round, got 5"):
        aggregate(MultiKrum(num_selected=9), updates_of(*ON_A_LINE))


# Geometric median -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("points", "median"),
    [
        ([[0, 0], [1, 0], [0.5, 0.75**0.5]], [0.5, 0.75**0.5 / 3]),  # Fermat point of an equilateral triangle
        ([[0, 0], [10, 1], [-10, 1]], [0, 0]),  # a corner wider than 120 degrees is the Fermat point
        ([[0, 0], [4, 4], [0, 4], [8, 0]], [8 / 3, 8 / 3]),  # where the diagonals of a quadrilateral cross
        ([[0], [-10], [2], [3], [5]], [2]),  # the mean is itself a point here, and not the median
        ([[7, 7]], [7, 7]),
    ],
)
def test_the_geometric_median_of_a_figure_is_where_geometry_puts_it(points, median):
    np.testing.assert_allclose(aggregate(GeometricMedian(), updates_of(*points)), median, atol=2e-5)


def test_weights_pull_the_geometric_median_and_can_be_switched_off():
    """On a line the weighted median: with 5 of 9 rows at 10 that is 10."""
    updates = [update("a", [0], 2), update("b", [1], 2), update("c", [10], 5)]
    assert aggregate(GeometricMedian(), updates) == pytest.approx([10], abs=1e-5)
    assert aggregate(GeometricMedian(weighted=False), updates) == pytest.approx([1], abs=1e-5)


def test_the_geometric_median_has_the_least_sum_of_distances_that_a_general_minimiser_finds():
    random = np.random.default_rng(1)
    points, weights = random.normal(size=(7, 3)).astype(np.float32), random.dirichlet(np.ones(7))
    found = geometric_median(points, weights, 1e-6, 1000, 1e-9)

    def total(z):
        return weights @ np.linalg.norm(points - z, axis=1)

    best = optimize.minimize(total, np.zeros(3), method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-15})
    np.testing.assert_allclose(found, best.x, atol=1e-6)


@given(st.integers(10, 10**6))
def test_a_minority_however_far_cannot_drag_the_geometric_median_out_of_the_honest_cluster(far):
    honest = [[0, 0], [1, 0], [0, 1], [1, 1]]
    found = aggregate(GeometricMedian(), updates_of(*honest, [far, far], [far, -far], [far, 0]))
    assert distance(found, np.array([0.5, 0.5])) < 2.5


# Clipping -------------------------------------------------------------------------------------------------------


def test_norm_clipping_shortens_a_long_move_to_the_bound_and_leaves_a_short_one():
    """From (1, 1): a moves (30, 40), clipped to 5: (3, 4); b moves (0, 2). Mean of (4, 5) and (1, 3), weights 1 : 3."""
    updates = [update("a", [31, 41], 1), update("b", [1, 3], 3)]
    assert aggregate(NormClipping(max_norm=5.0), updates, [1, 1]).tolist() == [1.75, 3.5]


@given(rounds())
def test_norm_clipping_with_a_bound_nobody_reaches_has_the_bits_of_fed_avg(updates):
    assert aggregate(NormClipping(max_norm=1e6), updates).tobytes() == fed_avg(3, updates).tobytes()


wide = st.floats(-(2.0**99), 2.0**99, width=32, allow_subnormal=False)


@settings(max_examples=200)
@given(st.lists(st.tuples(wide, wide), min_size=1, max_size=5), st.floats(1e-6, 1e6))
def test_clipping_never_raises_a_norm(pairs, radius):
    vector, centre = np.array(pairs, np.float32).T
    result = clipped(vector, centre, radius)
    assert distance(result, centre) <= distance(vector, centre)
    last_bit = np.spacing(np.maximum(np.abs(vector), np.abs(centre))).astype(np.float64)
    assert distance(result, centre) <= radius * (1 + 1e-12) + distance(last_bit, np.zeros(len(pairs)))


def test_centred_clipping_takes_the_steps_computed_by_hand():
    """tau = 5, x = 0. Round 1 around 0: (3, 4) and clipped (30, 40) -> (3, 4); mean (3, 4).
    Round 2 around x + Delta = (6, 8): (6, 8) stays, (6, 28) -> (6, 13); mean (6, 10.5); Delta = (3, 6.5)."""
    strategy = CentredClipping(tau=5.0)
    state = strategy.start(np.zeros(2, np.float32), ["a", "b"])
    state = strategy.aggregate(state, [update("a", [3, 4], 9), update("b", [30, 40], 1)])
    assert state["federated"].tolist() == [3.0, 4.0]
    state = strategy.aggregate(state, [update("a", [6, 8], 9), update("b", [6, 28], 1)])
    assert state["federated"].tolist() == [6.0, 10.5]
    assert state["server.delta"].tolist() == [3.0, 6.5]


def test_more_iterations_of_centred_clipping_start_where_the_last_one_ended():
    """tau = 1, points 4 and 0: 0 -> (1 + 0) / 2 = 0.5 -> 0.5 + (1 - 0.5) / 2 = 0.75."""
    assert aggregate(CentredClipping(tau=1.0), updates_of([4], [0])).tolist() == [0.5]
    assert aggregate(CentredClipping(tau=1.0, num_iterations=2), updates_of([4], [0])).tolist() == [0.75]


@given(rounds(), st.integers(1, 3))
def test_centred_clipping_moves_by_at_most_tau_per_iteration(updates, num_iterations):
    moved = aggregate(CentredClipping(tau=0.5, num_iterations=num_iterations), updates)
    assert distance(moved, np.zeros(3)) <= 0.5 * num_iterations * (1 + 1e-6)


def test_distances_add_up_over_chunks(monkeypatch):
    monkeypatch.setattr(norms, "CHUNK", 2)
    assert norms.squared_distance(np.arange(5, dtype=np.float32), np.zeros(5)) == 0 + 1 + 4 + 9 + 16


# Laws of all strategies -----------------------------------------------------------------------------------------


def three_rounds(strategy, updates, orders):
    """Three rounds in which every silo moves on from what it got; `orders` are permutations of the silos."""
    state = strategy.start(np.zeros(3, np.float32), [one.silo for one in updates])
    for order in orders:
        model = state["federated"]
        answers = [replace(one, vector=(0.5 * model + one.vector).astype(np.float32)) for one in updates]
        state = strategy.aggregate(state, (answers[i] for i in order))
    return {key: array.tobytes() for key, array in state.items()}


@pytest.mark.parametrize("name", EVERY)
@settings(max_examples=25)
@given(rounds(), st.randoms(use_true_random=False))
def test_the_state_has_the_same_bits_for_every_order_of_arrival(name, updates, random):
    inexact = [replace(one, vector=(one.vector * np.float32(0.1)).astype(np.float32)) for one in updates]
    straight = list(range(len(updates)))
    shuffled = [random.sample(straight, len(straight)) for _ in range(3)]
    strategy = make_strategy(name)
    assert three_rounds(strategy, inexact, [straight] * 3) == three_rounds(strategy, inexact, shuffled)


def test_updates_are_held_by_silo_name_whatever_the_order_of_arrival():
    held = collected([update(silo, [0]) for silo in "cabd"], 1)
    assert [one.silo for one in held] == ["a", "b", "c", "d"]


@pytest.mark.parametrize("name", EVERY)
@settings(max_examples=25)
@given(st.lists(coordinates, min_size=3, max_size=3), st.lists(st.integers(1, 5000), min_size=5, max_size=7))
def test_updates_that_all_equal_the_model_leave_it_where_it_is(name, vector, counts):
    updates = [update(f"silo-{i}", vector, count, count) for i, count in enumerate(counts)]
    assert aggregate(make_strategy(name), updates, vector).tolist() == vector


@pytest.mark.parametrize("name", ["fed_avg", *ROBUST])
@settings(max_examples=25)
@given(st.lists(coordinates, min_size=3, max_size=3), st.lists(st.integers(1, 5000), min_size=5, max_size=7))
def test_a_kind_of_mean_of_equal_updates_is_the_update(name, vector, counts):
    updates = [update(f"silo-{i}", vector, count, count) for i, count in enumerate(counts)]
    assert aggregate(make_strategy(name), updates).tolist() == vector


@pytest.mark.parametrize("name", EVERY)
@settings(max_examples=25)
@given(rounds(), st.permutations([0, 1, 2]))
def test_renumbering_the_parameters_renumbers_the_model(name, updates, order):
    strategy = make_strategy(name)
    renumbered = [replace(one, vector=one.vector[order].copy()) for one in updates]
    rounding = 1e-5 if name == "geometric_median" else 0.0  # its distances are sums of inexact squares
    np.testing.assert_allclose(
        aggregate(strategy, renumbered), aggregate(strategy, updates)[order], rtol=rounding, atol=rounding
    )


@pytest.mark.parametrize("name", EVERY)
def test_no_strategy_changes_what_it_is_given(name):
    strategy, updates = make_strategy(name), updates_of(*np.random.default_rng(0).normal(size=(7, 4)))
    initial = np.ones(4, np.float32)
    state = strategy.start(initial, [one.silo for one in updates])
    for _ in range(2):
        before = {key: array.tobytes() for key, array in state.items()}
        vectors = [one.vector.tobytes() for one in updates]
        for array in state.values():
            array.flags.writeable = False
        following = strategy.aggregate(state, updates)
        assert {key: array.tobytes() for key, array in state.items()} == before
        assert [one.vector.tobytes() for one in updates] == vectors
        state = following
    assert initial.tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize("name", EVERY)
def test_every_strategy_sends_all_silos_the_model_and_returns_float32(name):
    strategy, updates = make_strategy(name), updates_of(*np.eye(5))
    state = strategy.start(np.zeros(5, np.float32), ["a", "b"])
    for _ in range(2):
        sent = strategy.dispatch(state, ["a", "b"])
        assert list(sent) == ["a", "b"]
        assert sent["b"] is strategy.models(state)["federated"]
        assert sent["b"].dtype == np.float32
        state = strategy.aggregate(state, updates)


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize(
    ("bad", "message"), [([1.0, np.nan], "not finite"), ([np.inf, 0], "not finite"), ([1.0], "shape")]
)
def test_every_strategy_rejects_an_unusable_vector_by_silo_and_round(name, bad, message):
    updates = [*updates_of(*np.zeros((6, 2))), replace(update("mit", bad), server_round=4)]
    with pytest.raises(UpdateRejected, match=rf"silo 'mit', round 4.*{message}"):
        aggregate(make_strategy(name), updates)


@pytest.mark.parametrize("name", ROBUST)
def test_a_strategy_that_holds_all_updates_refuses_a_silo_that_answers_twice(name):
    with pytest.raises(UpdateRejected, match="answered twice"):
        aggregate(make_strategy(name), [*updates_of(*np.zeros((6, 2))), update("silo-0", [1, 1])])


@pytest.mark.parametrize("name", ["fed_avg", *SERVER_OPTIMIZERS, "fed_nova", "norm_clipping", "centred_clipping"])
def test_streaming_strategies_hold_one_update_at_a_time(name):
    """Each update is dead by the time the next is asked for."""
    alive: list[weakref.ref] = []

    def arriving():
        for i in range(6):
            assert sum(reference() is not None for reference in alive) <= 1
            one = update(f"silo-{i}", np.full(10, i))
            alive.append(weakref.ref(one.vector))
            yield one
            del one

    strategy = make_strategy(name)
    strategy.aggregate(strategy.start(np.zeros(10, np.float32), ["x"]), arriving())
    assert len(alive) == 6


# Making strategies by name --------------------------------------------------------------------------------------


def test_a_strategy_is_made_by_name_with_options_from_the_command_line():
    made = make_strategy("fed_adam", eta="0.5", beta_2="0.999")
    assert made == FedAdam(eta=0.5, beta_2=0.999)
    assert make_strategy("multi_krum", num_selected="none", name="pooled") == MultiKrum(name="pooled")
    assert make_strategy("geometric_median", weighted="no") == GeometricMedian(weighted=False)
    assert make_strategy("fed_nova", num_examples={"a": 3}) == FedNova(num_examples={"a": 3})


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("fedadam", {}, "unknown strategy 'fedadam'; did you mean 'fed_adam'?"),
        ("fed_adam", {"beta2": 0.9}, "strategy fed_adam: unknown key 'beta2'; did you mean 'beta_2'?"),
        ("fed_adam", {"eta": "fast"}, "strategy fed_adam: eta='fast' must be a number"),
        ("fed_adam", {"eta": -0.1}, "eta=-0.1 must be a positive finite number"),
        ("fed_adam", {"eta": float("inf")}, "eta=inf must be a positive finite number"),
        ("fed_adam", {"tau": 0.0}, "tau=0.0 must be a positive finite number"),
        ("fed_adam", {"beta_1": 1.0}, "beta_1=1.0 must be at least 0 and below 1"),
        ("fed_adam", {"beta_2": -0.1}, "beta_2=-0.1 must be at least 0 and below 1"),
        ("fed_yogi", {"beta_2": 1.5}, "beta_2=1.5 must be at least 0 and below 1"),
        ("fed_adagrad", {"beta_1": float("nan")}, "beta_1=nan must be at least 0 and below 1"),
        ("fed_avg_m", {"beta": 1.0}, "beta=1.0 must be at least 0 and below 1"),
        ("fed_avg_m", {"eta": 0}, "eta=0.0 must be a positive finite number"),
        ("fed_nova", {"num_examples": {"a": 0}}, "num_examples['a']=0 must be a whole number of at least 1"),
        ("trimmed_mean", {"beta": 0.5}, "beta=0.5 must be at least 0 and below 0.5; at 0.5 use median"),
        ("krum", {"num_byzantine": -1}, "num_byzantine=-1 must be a whole number of at least 0"),
        ("multi_krum", {"num_selected": 0}, "num_selected=0 must be a whole number of at least 1"),
        ("geometric_median", {"nu": 0.0}, "nu=0.0 must be a positive finite number"),
        ("geometric_median", {"max_iterations": 0}, "max_iterations=0 must be a whole number of at least 1"),
        ("centred_clipping", {"tau": -1.0}, "tau=-1.0 must be a positive finite number"),
        ("centred_clipping", {"num_iterations": 0}, "num_iterations=0 must be a whole number of at least 1"),
        ("norm_clipping", {"max_norm": 0.0}, "max_norm=0.0 must be a positive finite number"),
        ("median", {"name": "server.delta"}, "name='server.delta' must not start with 'server.'"),
    ],
)
def test_a_wrong_name_or_option_is_a_configuration_error_with_the_remedy(name, options, message):
    with pytest.raises(ConfigError) as caught:
        make_strategy(name, **options)
    assert message in str(caught.value)


@pytest.mark.parametrize("name", EVERY)
def test_every_strategy_has_defaults_and_can_train_a_model_of_another_name(name):
    assert make_strategy(name) == STRATEGIES[name]()
    pooled = make_strategy(name, name="pooled")
    after = pooled.aggregate(pooled.start(np.zeros(2, np.float32), ["a"]), updates_of(*np.ones((5, 2))))
    assert list(pooled.models(after)) == ["pooled"]
