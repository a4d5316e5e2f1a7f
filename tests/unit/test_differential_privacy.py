"""DP-SGD, silo-level noise and their account: the mechanism by statistics, the code by hand-computed cases."""

from dataclasses import fields, replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from ray_fed.errors import ConfigError, SiloFailed
from ray_fed.federation.cohort import LocalCohort
from ray_fed.federation.coordinator import Coordinator
from ray_fed.federation.messages import SessionSpec, Update
from ray_fed.federation.rounds.job import EPSILON, Job
from ray_fed.federation.strategies import DPFedAvg
from ray_fed.federation.strategies.private import CLIP
from ray_fed.learning.layout import bind
from ray_fed.learning.private_steps import PrivateGradient, PrivateSteps, Spent, chosen_rows
from ray_fed.learning.trainer import LocalTrainer, TrainingPlan
from ray_fed.privacy.accounting import PrivacyAccount
from ray_fed.privacy.noise import BLOCK, TEST_NOISE, NoiseSource
from tests.synthetic import SyntheticTask, silos

PRIVATE = PrivateSteps(1.0, clip=0.5, public_examples=60)
PLAN = TrainingPlan(seed=0, epochs=4, steps_per_epoch=4, num_rounds=4, optimizer="sgd", private=PRIVATE)


def gradient(module, noise=1e-9, clip=0.5, batch=1.0, loss=nn.functional.mse_loss):
    flat, flat_gradient = bind(module, torch.device("cpu"))
    source = NoiseSource.repeatable(3)
    return PrivateGradient(module, loss, flat_gradient, PrivateSteps(noise, clip), batch, source), flat


def mlp():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1))


def rows(count, seed=0):
    drawn = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, generator=drawn), torch.randn(count, 1, generator=drawn)


# ---- the source


def test_the_noise_is_normal_with_unit_variance_and_its_neighbours_are_independent():
    drawn = NoiseSource.repeatable(1, "test").normal(200_001)
    assert stats.kstest(drawn, "norm").pvalue > 0.001
    assert abs(drawn.std() - 1) < 0.006  # 4 standard errors of 1 / sqrt(2 n)
    assert abs(np.corrcoef(drawn[:-1], drawn[1:])[0, 1]) < 0.009
    halves = drawn[:BLOCK], drawn[BLOCK : 2 * BLOCK]  # cosines and sines of the same angles
    assert abs(np.corrcoef(*halves)[0, 1]) < 4 / BLOCK**0.5
    assert abs(np.corrcoef(*np.square(halves))[0, 1]) < 4 / BLOCK**0.5


def test_the_source_is_the_keystream_of_chacha20():
    """RFC 8439, appendix A.1, test vector 1: key and nonce of zeros."""
    expected = bytes.fromhex("76b8e0ada0f13d90405d6ae55386bd28")
    assert NoiseSource(bytes(32)).bits(2).tobytes() == expected


def test_secret_sources_never_repeat_and_repeatable_ones_do():
    assert not np.array_equal(NoiseSource.secret().bits(4), NoiseSource.secret().bits(4))
    assert np.array_equal(NoiseSource.repeatable(1, "a").bits(4), NoiseSource.repeatable(1, "a").bits(4))
    assert not np.array_equal(NoiseSource.repeatable(1, "a").bits(4), NoiseSource.repeatable(1, "b").bits(4))


def test_rows_are_chosen_one_by_one_with_the_probability_asked_for():
    source = NoiseSource.repeatable(5)
    counts = np.zeros(50)
    sizes = []
    for _ in range(2000):
        chosen = chosen_rows(source, 50, 0.2).numpy()
        counts[chosen] += 1
        sizes.append(len(chosen))
    assert np.abs(counts / 2000 - 0.2).max() < 4.5 * (0.16 / 2000) ** 0.5
    assert abs(np.var(sizes) - 50 * 0.16) < 4 * 8 * (2 / 2000) ** 0.5  # binomial, not constant


# ---- steps


def test_the_clipped_sum_is_that_of_a_loop_over_the_examples_with_autograd():
    module, (x, y) = mlp(), rows(7)
    private, _ = gradient(module)
    expected = torch.zeros(26)
    for row, target in zip(x, y, strict=True):
        module.zero_grad(set_to_none=False)
        nn.functional.mse_loss(module(row[None]), target[None]).backward()
        one = torch.cat([p.grad.reshape(-1) for p in module.parameters()])
        expected += one * min(1.0, 0.5 / float(one.norm()))
    torch.testing.assert_close(private.clipped_sum(x, y), expected, rtol=1e-5, atol=1e-6)


def test_one_example_more_changes_the_sum_by_at_most_the_clip():
    module, (x, y) = mlp(), rows(40)
    y[3] *= 1e6
    private, _ = gradient(module, clip=0.3)
    whole = private.clipped_sum(x, y)
    for left_out in range(40):
        kept = torch.arange(40) != left_out
        assert (whole - private.clipped_sum(x[kept], y[kept])).norm() <= 0.3 * (1 + 1e-4)
    assert (whole - private.clipped_sum(x[torch.arange(40) != 3], y[torch.arange(40) != 3])).norm() > 0.299


def test_an_example_whose_gradient_overflows_counts_nothing():
    private, _ = gradient(mlp())
    x, y = rows(3)
    y[1] = 1e38
    kept = torch.tensor([0, 2])
    torch.testing.assert_close(private.clipped_sum(x, y), private.clipped_sum(x[kept], y[kept]))


@pytest.mark.parametrize("hidden", [(), (6,), (6, 4, 5)])
def test_the_closed_form_of_plain_networks_is_the_sum_of_the_single_gradients(hidden):
    torch.manual_seed(1)
    widths = [3, *hidden, 1]
    layers = [part for pair in pairwise(widths) for part in (nn.Linear(*pair), nn.ReLU())][:-1]
    private, _ = gradient(nn.Sequential(*layers), clip=0.7)
    x, y = rows(30)
    y[4], y[5] = 1e38, 1e5
    assert private._dense is not None
    torch.testing.assert_close(private._dense(x, y, 0.7), private.clipped_sum(x, y), rtol=1e-5, atol=1e-5)
    empty = private._dense(x[:0], y[:0], 0.7)
    assert not empty.any()


def test_noise_of_a_step_has_the_promised_standard_deviation_even_without_a_row():
    module = nn.Linear(200, 100)
    private, _ = gradient(module, noise=2.0, clip=0.5, batch=4.0)
    private(torch.zeros(0, 200), torch.zeros(0, 100))
    drawn = private.flat_gradient.numpy() / (2.0 * 0.5 / 4.0)
    assert stats.kstest(drawn, "norm").pvalue > 0.001
    assert abs(drawn.std() - 1) < 4 / (2 * len(drawn)) ** 0.5


def test_portions_of_a_large_batch_add_up_to_the_batch(monkeypatch):
    x, y = rows(11)
    whole, parted = gradient(mlp())[0], gradient(mlp())[0]
    whole(x, y)
    monkeypatch.setattr("ray_fed.learning.private_steps.VALUES_AT_ONCE", 60)
    parted(x, y)
    torch.testing.assert_close(whole.flat_gradient, parted.flat_gradient)


def test_a_network_that_mixes_rows_is_refused_by_the_layers_name():
    with pytest.raises(ConfigError, match=r"\['1'\] is a BatchNorm: use GroupNorm"):
        gradient(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)))


def trainer(plan=PLAN, count=60):
    x, y = rows(count)
    return LocalTrainer(mlp(), nn.functional.mse_loss, x, y, plan, "silo-1")


def test_private_training_tells_neither_its_loss_nor_how_many_rows_chance_took():
    vector = trainer().vector()
    _, result = trainer().fit(vector, range(4))
    assert (result.mean_loss, result.num_examples) == (0.0, 60)


def test_private_training_repeats_itself_only_in_a_process_that_was_started_for_a_test(monkeypatch):
    vector = trainer().vector()
    secret = [trainer().fit(vector, range(4))[0].tobytes() for _ in range(2)]
    monkeypatch.setenv(TEST_NOISE, "7")
    ours = [trainer().fit(vector, range(4))[0].tobytes() for _ in range(2)]
    assert ours[0] == ours[1]
    assert secret[0] != secret[1]
    monkeypatch.delenv("PYTEST_VERSION")
    with pytest.raises(ConfigError, match="RAY_FED_TEST_NOISE is set outside of a test"):
        trainer()


def test_nothing_that_a_coordinator_sends_can_ask_for_noise_that_repeats_itself():
    for cls in (PrivateSteps, TrainingPlan, SessionSpec, DPFedAvg):
        assert not [field.name for field in fields(cls) if "test" in field.name or "noise_seed" in field.name]


def test_neither_noise_nor_weight_depends_on_how_many_rows_there_are():
    """One row more or less showed in the length of the noise alone, when the divisor was the silo's own count."""
    plan = replace(PLAN, learning_rate=1.0, private=replace(PRIVATE, noise_multiplier=1e4))
    moves = {count: trainer(plan, count) for count in (60, 120)}
    lengths, weights = {}, {}
    for count, one in moves.items():
        vector, result = one.fit(one.vector(), range(400))
        lengths[count], weights[count] = float(np.std(vector)), result.num_examples
    assert lengths[120] / lengths[60] == pytest.approx(1.0, abs=0.7)  # a divisor of its own would give 1 / 2 or less
    assert weights[120] == weights[60] == 60 * 400 // 4


def test_private_steps_without_a_public_number_of_rows_are_refused():
    with pytest.raises(ConfigError, match="private steps need a number of rows"):
        trainer(replace(PLAN, private=replace(PRIVATE, public_examples=None)))


def test_a_neighbouring_data_set_cannot_be_told_apart_better_than_epsilon_allows():
    """The likelihood-ratio attack on one step, with the worst example there is: its advantage stays below the bound."""
    module = nn.Linear(1, 1, bias=False)
    private, _ = gradient(module, noise=1.0, clip=1.0)
    x, y = torch.ones(1, 1), torch.full((1, 1), -1e6)  # gradient +C after clipping
    seen = {True: [], False: []}
    for _ in range(1500):
        for is_in in seen:
            private(x[: int(is_in)], y[: int(is_in)])
            seen[is_in].append(float(private.flat_gradient))
    delta, epsilon = 1e-5, PrivacyAccount("example", 1.0).epsilon(1)
    caught, false_alarms = (np.mean(np.array(seen[is_in])[:, None] > np.linspace(-2, 3, 51), axis=0) for is_in in seen)
    assert (caught - np.exp(epsilon) * false_alarms <= delta + 0.04).all()
    assert (caught - false_alarms).max() == pytest.approx(2 * stats.norm.cdf(0.5) - 1, abs=0.05)  # exact, Gaussian


def test_a_silo_stops_when_its_steps_are_spent_even_after_a_restart(tmp_path):
    limited = replace(PRIVATE, most_steps=10)
    Spent(limited, str(tmp_path), "silo-1", "s").take(8)
    again = Spent(limited, str(tmp_path), "silo-1", "s")
    with pytest.raises(SiloFailed, match="8 of 10 private steps are taken"):
        again.take(3)
    again.take(2)
    assert Spent(limited, "", "silo-1", "s").steps == 0


# ---- silos


def update(silo, vector):
    return Update(silo, "s", 1, np.asarray(vector, np.float32), 10, 1, 0.0)


def moved(strategy, updates, size=2):
    state = strategy.start(np.zeros(size, np.float32), [update.silo for update in updates])
    return strategy.aggregate(state, updates)


def test_moves_are_clipped_and_averaged_with_equal_weights():
    strategy = DPFedAvg(noise_multiplier=1e-9, clip=5.0)
    state = moved(strategy, [update("a", [30, 40]), update("b", [0, -1])])
    np.testing.assert_allclose(state["federated"], [1.5, 1.5], atol=1e-6)


def test_the_noise_of_the_aggregate_hides_one_silo():
    strategy = DPFedAvg(noise_multiplier=1.5, clip=2.0)
    state = moved(strategy, [update(name, np.zeros(20_000)) for name in "abcd"], 20_000)
    drawn = state["federated"] / (1.5 * 2.0 / 4)
    assert stats.kstest(drawn, "norm").pvalue > 0.001
    assert abs(drawn.std() - 1) < 4 / 40_000**0.5


def test_a_silo_that_fails_does_not_raise_the_weight_of_the_others():
    strategy = DPFedAvg(noise_multiplier=1e-9, clip=5.0)
    state = strategy.start(np.zeros(2, np.float32), ["a", "b"])
    np.testing.assert_allclose(strategy.aggregate(state, [update("a", [3, 4])])["federated"], [1.5, 2], atol=1e-6)


def test_the_adaptive_clip_finds_the_quantile_of_the_norms(monkeypatch):
    """Andrew et al. 2021: with gamma = 0.5 the clip settles at the median of the norms."""
    monkeypatch.setenv(TEST_NOISE, "2")
    strategy = DPFedAvg(noise_multiplier=0.5, clip=100.0, target_quantile=0.5)
    norms = np.linspace(1, 9, 81)
    state = strategy.start(np.zeros(2, np.float32), [str(number) for number in range(81)])
    clips = []
    for _ in range(150):
        centre = state["federated"]
        updates = [update(str(number), centre + np.array([norm, 0])) for number, norm in enumerate(norms)]
        state = strategy.aggregate(state, updates)
        clips.append(state[CLIP][0])
    assert np.mean(clips[75:]) == pytest.approx(5.0, rel=0.1)


def test_moves_and_count_together_cost_what_the_noise_multiplier_says():
    strategy = DPFedAvg(noise_multiplier=2.0, target_quantile=0.5)
    z_delta, sigma_b = strategy._move_noise(4), strategy._sigma_b(4)
    assert (z_delta**-2 + (2 * sigma_b) ** -2) ** -0.5 == pytest.approx(2.0)
    assert z_delta > 2.0


def test_a_count_noise_that_could_not_be_paid_for_is_refused():
    with pytest.raises(ConfigError, match=r"count_noise=0.4 must be above half"):
        DPFedAvg(noise_multiplier=1.0, count_noise=0.4)


# ---- the account


def test_epsilon_of_the_gaussian_mechanism_bounds_the_exact_one():
    """Balle and Wang 2018, Theorem 8: the exact delta of one release; the bound must be above, and not far."""
    account = PrivacyAccount("silo", 2.0)
    epsilon = account.epsilon(1)
    exact = stats.norm.cdf(0.25 - 2 * epsilon) - np.exp(epsilon) * stats.norm.cdf(-0.25 - 2 * epsilon)
    assert exact <= 1e-5
    nearer = 0.85 * epsilon
    assert stats.norm.cdf(0.25 - 2 * nearer) - np.exp(nearer) * stats.norm.cdf(-0.25 - 2 * nearer) > 1e-5


def test_the_budget_allows_the_largest_number_of_steps_that_fits():
    account = PrivacyAccount("example", 1.0, 0.05, budget=3.0)
    most = account.most_steps(10_000)
    assert account.epsilon(most) <= 3.0 < account.epsilon(most + 1)
    assert account.most_steps(most) == most
    assert replace(account, budget=None).most_steps(10_000) == 10_000


def test_less_noise_more_rows_and_more_steps_cost_more():
    account = PrivacyAccount("example", 1.0, 0.05)
    middle = account.epsilon(100)
    assert account.epsilon(0) == 0 < middle < account.epsilon(200)
    assert replace(account, noise_multiplier=0.8).epsilon(100) > middle
    assert replace(account, sampling_probability=0.1).epsilon(100) > middle


# ---- rounds


def private_run(**changes):
    specs = silos(40, 60)
    names = tuple(spec.name for spec in specs)
    task = SyntheticTask()
    ours = Coordinator(LocalCohort(specs, task), task, names)
    ours.agree()
    account = PrivacyAccount("example", 1.0, 0.25)
    job = Job("federated", names, dict.fromkeys(names, PLAN), 0, account=account, evaluate_silos=False, **changes)
    return list(ours.run(job)), account


def test_each_record_has_the_epsilon_of_the_steps_so_far_and_no_loss():
    records, account = private_run()
    assert [record.metrics[EPSILON] for record in records] == [account.epsilon(4 * number) for number in range(5)]
    assert not [name for name in records[-1].metrics if "loss" in name]


def test_a_job_that_its_budget_ends_is_complete_in_its_last_round():
    records, _ = private_run(last_round=2)
    assert [record.server_round for record in records] == [0, 1, 2]
    assert records[-1].models is not None
