from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from ray_fed.errors import DataError
from ray_fed.learning.layout import Layout, bind
from ray_fed.learning.models import seeded_mlp
from ray_fed.learning.standardisation import ColumnMoments, Standardizer, carried, merge_moments, without_rare
from ray_fed.learning.steps import AutogradGradient, DenseReluMseGradient, gradient_for
from ray_fed.learning.trainer import LocalTrainer, TrainingPlan
from ray_fed.metrics import RegressionSums, merged


def rows(num=50, features=5, seed=0):
    random = np.random.default_rng(seed)
    x = torch.from_numpy(random.normal(size=(num, features)).astype(np.float32))
    return x, x.square().sum(1, keepdim=True)


def plan(**changes):
    return TrainingPlan(**{"seed": 0, "epochs": 4, "steps_per_epoch": 5, "num_rounds": 4, **changes})


def trainer(the_plan, seed=0, silo="a", loss=functional.mse_loss):
    x, y = rows()
    return LocalTrainer(seeded_mlp(5, (8, 8), seed), loss, x, y, the_plan, silo)


def test_the_network_of_the_paper_has_55201_parameters():
    assert Layout.of(seeded_mlp(73, (200, 200), 0)).num_parameters == 55_201


def test_initial_weights_depend_on_the_seed_alone_and_leave_the_global_generator_alone():
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    first, second, other = (seeded_mlp(4, (3,), seed)[0].weight for seed in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert torch.equal(torch.rand(2), expected)


def test_flatten_is_the_inverse_of_unflatten():
    layout = Layout.of(seeded_mlp(4, (3,), 0))
    vector = np.arange(layout.num_parameters, dtype=np.float32)
    assert layout.flatten(layout.unflatten(vector)).tolist() == vector.tolist()


def test_flatten_refuses_a_wrong_shape():
    layout = Layout(("w",), ((2, 2),))
    with pytest.raises(ValueError, match="shape"):
        layout.flatten({"w": np.zeros(4, np.float32)})


def test_layouts_differ_when_names_or_shapes_differ():
    digests = {
        Layout(names, shapes).digest for names, shapes in [(("a",), ((2,),)), (("b",), ((2,),)), (("a",), ((3,),))]
    }
    assert len(digests) == 3


def test_writing_the_flat_vector_changes_the_module():
    module = seeded_mlp(4, (3,), 0)
    flat, _ = bind(module)
    flat.fill_(0.5)
    assert module[0].weight.unique().tolist() == [0.5]


@pytest.mark.parametrize("hidden", [(), (7,), (8, 6), (4, 3, 2)])
@pytest.mark.parametrize("batch", [1, 33])
def test_closed_form_back_propagation_equals_autograd(hidden, batch):
    x, y = rows(batch)
    one, other = seeded_mlp(5, hidden, 1), seeded_mlp(5, hidden, 1)
    (_, dense_gradient), (_, auto_gradient) = bind(one), bind(other)
    dense = gradient_for(one, functional.mse_loss, dense_gradient)
    assert isinstance(dense, DenseReluMseGradient)
    auto = AutogradGradient(other, functional.mse_loss, auto_gradient)
    torch.testing.assert_close(dense(x, y), auto(x, y))
    torch.testing.assert_close(dense_gradient, auto_gradient, rtol=1e-5, atol=1e-6)


def test_other_losses_and_modules_go_through_autograd():
    module = seeded_mlp(5, (4,), 0)
    with_tanh = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 1))
    gradient = bind(module)[1]
    assert isinstance(gradient_for(module, functional.l1_loss, gradient), AutogradGradient)
    assert isinstance(gradient_for(with_tanh, functional.mse_loss, bind(with_tanh)[1]), AutogradGradient)


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_the_flat_trainer_takes_the_same_steps_as_a_plain_pytorch_loop(optimizer):
    the_plan = plan(optimizer=optimizer, learning_rate=1e-2)
    flat = trainer(the_plan)
    module = seeded_mlp(5, (8, 8), 0)
    kind = torch.optim.Adam if optimizer == "adam" else torch.optim.SGD
    plain = kind(module.parameters(), lr=1e-2)
    for x, y in flat._batches(range(20)):
        plain.zero_grad()
        functional.mse_loss(module(x), y).backward()
        plain.step()
    got, _ = flat.fit(flat.vector(), range(20))
    want = torch.cat([p.detach().reshape(-1) for p in module.parameters()])
    torch.testing.assert_close(torch.from_numpy(got), want, rtol=1e-4, atol=1e-5)


def test_an_epoch_shows_every_row_exactly_once_in_batches_that_differ_by_at_most_one():
    worker = trainer(plan(steps_per_epoch=7))
    batches = worker._shuffled(0)
    assert sorted(torch.cat(batches).tolist()) == list(range(50))
    assert {len(batch) for batch in batches} == {7, 8}
    assert torch.cat(worker._shuffled(1)).tolist() != torch.cat(batches).tolist()


@given(st.integers(1, 30), st.integers(1, 9), st.integers(1, 60))
def test_the_rounds_together_take_every_step_once(epochs, steps, rounds_):
    the_plan = plan(epochs=epochs, steps_per_epoch=steps, num_rounds=rounds_)
    taken = [step for number in range(1, rounds_ + 1) for step in the_plan.steps_of_round(number)]
    assert taken == list(range(epochs * steps))


def test_the_received_vector_is_never_written_to():
    worker = trainer(plan())
    received = worker.vector()
    received.flags.writeable = False
    before = received.copy()
    result, _ = worker.fit(received, range(5))
    assert np.array_equal(received, before)
    assert not np.array_equal(result, before)


def test_rounds_without_an_exchange_equal_one_long_round_bit_for_bit():
    split, whole = trainer(plan()), trainer(plan())
    start = whole.vector()
    vector = start
    for number in range(1, 5):
        vector, _ = split.fit(vector, split.plan.steps_of_round(number))
    assert vector.tobytes() == whole.fit(start, range(20))[0].tobytes()


def test_the_optimiser_state_policies_differ_and_reset_starts_from_nothing():
    results = {}
    for policy in ("keep", "reset", "average"):
        worker = trainer(plan(optimizer_state=policy))
        vector, _ = worker.fit(worker.vector(), range(5))
        results[policy], _ = worker.fit(vector, range(5, 10))
    p = worker.layout.num_parameters
    assert len(results["average"]) == 3 * p
    assert results["average"][:p].tobytes() == results["keep"].tobytes()
    assert results["reset"].tobytes() != results["keep"].tobytes()


def test_fedprox_stays_closer_to_the_received_parameters():
    distances = {}
    for mu in (0.0, 10.0):
        worker = trainer(plan(optimizer="sgd", learning_rate=1e-2, proximal_mu=mu))
        start = worker.vector()
        distances[mu] = np.linalg.norm(worker.fit(start, range(20))[0] - start)
    assert distances[10.0] < 0.8 * distances[0.0]


def test_a_vector_of_the_wrong_length_is_refused():
    worker = trainer(plan())
    with pytest.raises(ValueError, match="expected float32"):
        worker.load(np.zeros(3, np.float32))


def test_predicting_leaves_the_trainer_as_it_was():
    worker = trainer(plan())
    before = worker.vector()
    worker.predict(worker.features, np.zeros_like(before))
    assert worker.vector().tobytes() == before.tobytes()


values = st.lists(st.tuples(*[st.floats(-1e3, 1e3)] * 2), min_size=2, max_size=30)


@settings(max_examples=100)
@given(values, st.integers(0, 30))
def test_regression_sums_of_parts_add_up_to_those_of_the_union(pairs, cut):
    truth, predicted = np.array(pairs).T
    whole = RegressionSums.of(truth, predicted)
    parts = merged([RegressionSums.of(truth[:cut], predicted[:cut]), RegressionSums.of(truth[cut:], predicted[cut:])])
    for name in ("num_examples", "sum_absolute_error", "sum_squared_error", "mean_target", "m2_target"):
        assert getattr(parts, name) == pytest.approx(getattr(whole, name), rel=1e-9, abs=1e-6)


def test_mae_and_r2_match_scikit_learn():
    from sklearn.metrics import mean_absolute_error, r2_score

    random = np.random.default_rng(0)
    truth = random.normal(size=99)
    predicted = truth + 0.3 * random.normal(size=99)
    sums = RegressionSums.of(truth, predicted)
    assert sums.mae == pytest.approx(mean_absolute_error(truth, predicted))
    assert sums.r2 == pytest.approx(r2_score(truth, predicted))


def test_metrics_of_nothing_are_nan_and_not_an_error():
    nothing = RegressionSums.of(np.zeros(0), np.zeros(0))
    assert np.isnan([nothing.mae, nothing.mse, nothing.r2]).all()


@settings(max_examples=50)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**31))
def test_merged_moments_are_those_of_the_stacked_rows(n, m, seed):
    random = np.random.default_rng(seed)
    a, b = random.normal(1e6, 1.0, (n, 3)), random.normal(1e6, 1.0, (m, 3))
    got, want = ColumnMoments.of(a).merge(ColumnMoments.of(b)), ColumnMoments.of(np.vstack([a, b]))
    assert got.num_examples == want.num_examples
    assert np.array_equal(got.digits, want.digits)
    rows = np.vstack([a, b])
    np.testing.assert_allclose(got.mean, rows.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(got.m2, np.square(rows - rows.mean(axis=0)).sum(axis=0), rtol=1e-6, atol=1e-6)


@settings(max_examples=50)
@given(st.lists(st.floats(-(2.0**90), 2.0**90).filter(lambda x: x == 0 or abs(x) > 2.0**-40), min_size=1, max_size=20))
def test_sums_and_sums_of_squares_are_exact(values):
    moments, exact = ColumnMoments.of(np.array(values)[:, None]), [Fraction(x) for x in values]
    mean = sum(exact) / len(exact)
    assert moments.mean[0] == float(mean)
    assert moments.m2[0] == float(sum((x - mean) ** 2 for x in exact))
    assert np.array_equal(moments.digits, carried(moments.digits))


def test_moments_of_more_rows_than_are_added_at_once_are_those_of_their_parts(monkeypatch):
    rows = np.random.default_rng(0).normal(size=(1000, 3)) * [1e-9, 1.0, 1e12]
    whole = ColumnMoments.of(rows)
    monkeypatch.setattr("ray_fed.learning.standardisation.ROWS_AT_ONCE", 64)
    assert np.array_equal(ColumnMoments.of(rows).digits, whole.digits)
    assert merge_moments([ColumnMoments.of(rows[:0]), whole]).mean.tolist() == whole.mean.tolist()


@pytest.mark.parametrize("value", [np.inf, np.nan, 1e300])
def test_moments_of_values_beyond_all_digits_are_refused(value):
    with pytest.raises(DataError, match="a column has values above"):
        ColumnMoments.of(np.array([[1.0], [value]]))


def test_what_a_few_rows_alone_have_is_left_out_of_sums():
    rows = np.zeros((1000, 4))
    rows[417, 0], rows[:5, 1], rows[:, 2], rows[:996, 3] = 0.3137, 2.0, np.arange(1000), 7.0
    shown = without_rare(rows, 5)
    assert not shown[:, 0].any()
    assert np.array_equal(shown[:, 1:3], rows[:, 1:3])
    assert (shown[:, 3] == 7.0).all()
    few = np.arange(5.0)[:, None]  # none of these is the value of many
    assert np.array_equal(without_rare(few, 5), few)


def test_the_federated_scaler_is_scikit_learns_on_the_union():
    from sklearn.preprocessing import StandardScaler

    random = np.random.default_rng(1)
    parts = [random.normal(5, 3, (n, 4)) for n in (7, 20, 3)]
    ours = Standardizer.from_moments(merge_moments(ColumnMoments.of(part) for part in parts))
    theirs = StandardScaler().fit(np.vstack(parts))
    np.testing.assert_allclose(ours.mean, theirs.mean_)
    np.testing.assert_allclose(ours.scale, theirs.scale_)


def test_a_constant_column_becomes_zero_even_with_rounding_noise():
    moments = merge_moments([ColumnMoments.of(np.full((n, 1), 0.1)) for n in (3, 7, 11)])
    assert Standardizer.from_moments(moments)(np.full((2, 1), 0.1)).tolist() == [[0.0], [0.0]]


def test_parameters_that_are_kept_local_ignore_what_is_received_and_are_used_to_predict():
    worker = trainer(plan(keep_local=("4.bias",)))
    shared = trainer(plan())
    start = worker.vector()
    first, _ = worker.fit(start, range(5))
    offered = first.copy()
    offered[-1] = 100.0  # the output bias is the last parameter
    own = float(worker.own_values)
    assert own == first[-1] != start[-1]
    torch.testing.assert_close(worker.predict(worker.features, offered), shared.predict(worker.features, first))
    worker.load(offered)
    assert worker.vector()[-1] == np.float32(own)
    assert worker.vector()[:-1].tobytes() == offered[:-1].tobytes()


def test_a_local_parameter_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match=r"keep_local=\['9.bias'\] are not parameters; there are: 0.weight"):
        trainer(plan(keep_local=("9.bias",)))


def test_a_column_that_was_constant_gives_numbers_of_order_one_where_it_is_not():
    """As when fluorides join oxides: 3,437 equal electronegativities have a variance of rounding errors."""
    oxides = np.column_stack([np.full(3437, 3.44), np.full(3437, 0.6), np.full(3437, 317.5), np.arange(3437.0)])
    scaled = Standardizer.from_moments(ColumnMoments.of(oxides))
    assert np.abs(scaled(oxides)[:, :3]).max() < 1e-9
    fluoride = scaled(np.array([[3.98, 0.5, 2750.0, 0.0]]))
    assert np.abs(fluoride).max() < 10
