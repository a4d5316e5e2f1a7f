"""Observations, the attack kernel and the layer inversion."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from ray_fed.errors import ConfigError, DataError
from ray_fed.leakage.attacks import ATTACKS, COSINE, DLG, IDLG, L2_GREY, OURS, SORTED, WDLG, attack_named
from ray_fed.leakage.defences import parse_defence
from ray_fed.leakage.fidelity import difference_interval, mean_squared_errors, psnr, ssim, wilson_interval
from ray_fed.leakage.images import load_images
from ray_fed.leakage.layer_inversion import invert_layers, is_chain
from ray_fed.leakage.observation import AttackObservation, Knowledge, observe, stack
from ray_fed.leakage.reconstruction import Problem, reconstruct, with_restarts
from ray_fed.leakage.study import AttackJob, AttackRecorder, observations_of, run_job
from ray_fed.leakage.targets import PatchConv2d, image_patches, images_from_patches, make_target

SHAPE = (1, 8, 8)


def digits(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    drawn = load_images("digits").sample(count, 3)
    return torch.from_numpy(drawn.images), torch.from_numpy(drawn.labels)


def seen(count: int, model: str = "lenet", samples: int = 1, **knows) -> list[AttackObservation]:
    images, labels = digits(count * samples)
    parts = zip(images.split(samples), labels.split(samples), strict=True)
    known = Knowledge(SHAPE, 10, samples, **knows)
    return [observe(make_target(model, SHAPE, 10, number), x, y, known) for number, (x, y) in enumerate(parts)]


def errors(observations, attack, budget=60, samples=1) -> torch.Tensor:
    images, _ = digits(len(observations) * samples)
    found = reconstruct(observations, attack, budget, range(len(observations)))
    return mean_squared_errors(found.inputs, images.reshape(len(observations), samples, *SHAPE)).mean(1)


# ---- observation


def test_a_stacked_network_gives_each_problem_the_gradient_of_plain_autograd():
    observations = seen(3, "resnet")
    images, labels = digits(3)
    network, _ = stack(observations)
    together = network.gradients(images[:, None], labels[:, None])
    for number in range(3):
        plain = make_target("resnet", SHAPE, 10, number)
        loss = nn.functional.cross_entropy(plain(images[number : number + 1]), labels[number : number + 1])
        for ours, theirs in zip(together, torch.autograd.grad(loss, list(plain.parameters())), strict=True):
            torch.testing.assert_close(ours[number], theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("model", ["lenet", "lenet_relu", "mlp", "resnet", "unet"])
def test_the_double_backward_of_each_target_is_the_one_of_finite_differences(model):
    images, labels = digits(1)
    if model == "unet":
        labels = (images.mean(1) > 0.3).long()
    classes = 2 if model == "unet" else 10
    one = observe(make_target(model, SHAPE, classes, 0), 1 - images, labels, Knowledge(SHAPE, classes))
    attack = L2_GREY if model != "unet" else replace(L2_GREY, labels="joint")
    problem = Problem([_double(one)], attack)
    variables = problem.encode(images[:, None].double(), [0]).requires_grad_()
    value = lambda v: problem.objective(v, problem.labels, problem.network, problem.seen)  # noqa: E731
    (slope,) = torch.autograd.grad(value(variables).sum(), variables)
    direction = torch.randn_like(slope)
    step = 1e-6
    rise = (value(variables + step * direction) - value(variables - step * direction)) / (2 * step)
    torch.testing.assert_close((slope * direction).sum(1), rise, rtol=1e-4, atol=1e-8)


def _double(one: AttackObservation) -> AttackObservation:
    return replace(one, parameters=tuple(p.double() for p in one.parameters),
                   message=tuple(m.double() for m in one.message))  # fmt: skip


def test_an_update_of_one_step_is_the_gradient_and_more_steps_are_sgd():
    images, labels = digits(2)
    network = make_target("mlp", SHAPE, 10, 0)
    gradient = observe(network, images, labels, Knowledge(SHAPE, 10, 2)).message
    update = observe(network, images, labels, Knowledge(SHAPE, 10, 2, 1, 0.1)).message
    for a, b in zip(gradient, update, strict=True):
        torch.testing.assert_close(a, b)
    three = observe(network, images, labels, Knowledge(SHAPE, 10, 2, 3, 0.1)).message
    before = [parameter.detach().clone() for parameter in network.parameters()]
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(images), labels).backward()
        optimizer.step()
    for sent, old, new in zip(three, before, network.parameters(), strict=True):
        torch.testing.assert_close(sent, (old - new.detach()) / 0.1, rtol=1e-3, atol=1e-5)


def test_the_threat_model_has_a_name():
    said = seen(1)[0].threat_model
    assert "honest-but-curious coordinator" in said
    assert "one gradient" in said
    assert "3 local SGD steps" in seen(1, "mlp", local_steps=3, learning_rate=0.1)[0].threat_model


@pytest.mark.parametrize(
    ("images", "labels", "error", "said"),
    [
        (torch.zeros(1, 1, 9, 8), torch.tensor([0]), DataError, r"image of size \(1, 9, 8\)"),
        (torch.zeros(1, 1, 8, 8), torch.tensor([10]), DataError, "label 10 is out of range"),
        (torch.zeros(1, 1, 8, 8), torch.tensor([-1]), DataError, "label -1 is out of range"),
        (torch.zeros(2, 1, 8, 8), torch.tensor([1, 2]), ConfigError, "2 images"),
        (torch.full((1, 1, 8, 8), torch.nan), torch.tensor([1]), DataError, "not finite in 0.weight"),
    ],
)
def test_samples_that_do_not_fit_are_refused_by_name(images, labels, error, said):
    with pytest.raises(error, match=said):
        observe(make_target("lenet", SHAPE, 10, 0), images, labels, Knowledge(SHAPE, 10))


def test_unknown_targets_and_attacks_are_refused_with_the_nearest_name():
    with pytest.raises(ConfigError, match="did you mean 'lenet'"):
        make_target("lennet", SHAPE, 10, 0)
    with pytest.raises(ConfigError, match="did you mean 'wdlg'"):
        attack_named("wdgl")


def test_no_restart_and_no_budget_are_refused():
    with pytest.raises(ConfigError, match="restarts=0"):
        with_restarts(seen(1), L2_GREY, 5, [0], restarts=0)
    with pytest.raises(ConfigError, match="budget=0"):
        reconstruct(seen(1), L2_GREY, 0, [0])


# ---- patches


@pytest.mark.parametrize(("kernel", "padding", "stride"), [(5, 2, 2), (3, 1, 1), (1, 0, 2)])
def test_a_patch_convolution_is_torchs_convolution(kernel, padding, stride):
    layer = PatchConv2d(2, 3, kernel, padding=padding, stride=stride).double()
    images = torch.randn(2, 2, 7, 9, dtype=torch.float64)
    expected = nn.functional.conv2d(images, layer.weight, layer.bias, stride, padding)
    torch.testing.assert_close(layer(images), expected)
    assert torch.autograd.gradgradcheck(lambda x: layer(x).square(), images[:1].requires_grad_())


def test_adding_patches_up_is_the_adjoint_of_taking_them():
    images, patches = torch.randn(2, 3, 6, 6).double(), torch.randn(2, 27, 9).double()
    left = (image_patches(images, 3, 1, 2) * patches).sum()
    right = (images * images_from_patches(patches, (6, 6), 3, 1, 2)).sum()
    torch.testing.assert_close(left, right)


# ---- attacks


@pytest.mark.parametrize("attack", [L2_GREY, OURS], ids=lambda one: one.name)
def test_l2_with_a_line_search_and_a_grey_start_finds_every_digit(attack):
    assert float(errors(seen(6), attack).max()) < 1e-3


def test_clipping_hides_no_digit_from_an_attack_that_fits_the_length():
    clipped = [parse_defence("clip:0.1").on(one) for one in seen(6)]
    assert float(errors(clipped, OURS).max()) < 1e-3


def test_a_batch_is_smoothed_for_half_the_budget_and_then_fitted_without_it():
    told = []
    observations = seen(2, samples=8)
    found = reconstruct(observations, OURS, 20, [0, 1], lambda evaluation, *_: told.append(evaluation))
    assert told == list(range(1, 21))
    assert found.evaluations.tolist() == [20, 20]
    exact = replace(OURS, batch_total_variation=0.0)
    inputs = torch.as_tensor(found.inputs)
    at_end = Problem(observations, exact).objective(inputs.flatten(1), found.labels, *stack(observations))
    torch.testing.assert_close(found.objective, at_end)


def test_a_batch_of_few_is_not_smoothed():
    observations = seen(2, samples=2)
    smoothed, plain = (
        reconstruct(observations, one, 20, [0, 1]) for one in (OURS, replace(OURS, batch_total_variation=0.0))
    )
    torch.testing.assert_close(smoothed.inputs, plain.inputs, rtol=0, atol=0)


@pytest.mark.parametrize("name", sorted(ATTACKS))
def test_every_attack_lowers_its_own_objective_and_equal_seeds_repeat_it(name):
    observations = seen(2, "mlp" if name == "analytic" else "lenet")
    objectives = []

    def follow(evaluation, index, values, inputs):  # noqa: ARG001
        objectives.append(values.clone())

    first = reconstruct(observations, ATTACKS[name], 6, [0, 1], follow)
    again = reconstruct(observations, ATTACKS[name], 6, [0, 1])
    assert torch.equal(first.inputs, again.inputs)
    assert bool((first.objective <= objectives[0]).all())
    assert first.evaluations.max() <= 6


@pytest.mark.parametrize("attack", [DLG, WDLG, COSINE, SORTED], ids=lambda one: one.name)
def test_the_result_of_one_problem_does_not_depend_on_the_others(attack):
    observations = seen(3)
    together = reconstruct(observations, attack, 6, [0, 1, 2])
    alone = reconstruct(observations[1:2], attack, 6, [1])
    torch.testing.assert_close(together.inputs[1], alone.inputs[0], rtol=1e-3, atol=1e-3)


def test_dlg_without_line_search_takes_the_steps_of_the_loop_of_its_authors():
    observation = seen(1)[0]
    problem = Problem([observation], IDLG)
    start = torch.randn(1, 1, *SHAPE, generator=torch.Generator().manual_seed(9))
    x = start[0].clone().requires_grad_()
    label = problem.labels[0]
    network = make_target("lenet", SHAPE, 10, 0)
    optimizer = torch.optim.LBFGS([x], max_iter=8, max_eval=99, history_size=100)

    def closure():
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(network(x), label)
        virtual = torch.autograd.grad(loss, list(network.parameters()), create_graph=True)
        value = sum(((a - b) ** 2).sum() for a, b in zip(virtual, observation.message, strict=True))
        value.backward()
        return value

    optimizer.step(closure)
    from ray_fed.leakage.optimizers import Lbfgs

    ours = Lbfgs(start.flatten(1), history=100, line_search=False)
    for _ in range(8):
        points = ours.points.detach().requires_grad_()
        values = problem.objective(points, problem.labels, problem.network, problem.seen)
        ours.tell(values.detach(), torch.autograd.grad(values.sum(), points)[0])
    torch.testing.assert_close(ours.points.reshape(x.shape), x.detach(), rtol=1e-3, atol=1e-3)


def test_restarts_keep_the_lowest_objective():
    observations = seen(2)
    alone = reconstruct(observations, DLG, 12, [0, 1])
    best = with_restarts(observations, DLG, 12, [0, 1], restarts=3)
    assert bool((best.objective <= alone.objective + 1e-6).all())
    assert best.evaluations.tolist() == [36, 36]


def test_batches_and_local_steps_are_attacked_through_unrolled_training():
    observations = seen(1, "mlp", samples=2, local_steps=2, learning_rate=0.05)
    start = errors(observations, L2_GREY, budget=1, samples=2)
    assert float(errors(observations, L2_GREY, budget=80, samples=2)) < float(start) / 10


def test_a_regression_network_gives_away_its_target():
    network = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 1))
    row, target = torch.rand(1, 5), torch.tensor([[0.7]])
    one = observe(network, row, target, Knowledge((5,), 1), loss="mse")
    found = reconstruct([one], replace(L2_GREY, tolerance=0.0), 300, [0])
    torch.testing.assert_close(found.inputs[0], row, rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(found.labels[0], target, rtol=1e-2, atol=1e-2)


# ---- layer by layer


@pytest.mark.parametrize(("model", "limit"), [("mlp", 1e-10), ("lenet", 1e-4), ("lenet_relu", 1e-4)])
def test_a_chain_is_inverted_by_linear_algebra_alone(model, limit):
    images, _ = digits(4)
    found = invert_layers(seen(4, model))
    assert float((found - images[:, None]).square().flatten(1).mean(1).median()) < limit


def test_what_cannot_be_inverted_is_known_beforehand():
    assert not is_chain(seen(1, "resnet")[0])
    assert not is_chain(seen(1, "lenet", samples=2)[0])


def test_a_useless_inversion_is_left_for_the_grey_start():
    """A withheld bias breaks the inversion; the attack goes on from grey and still works on the label of iDLG."""
    observations = [one.with_message([*one.message[:-1], torch.zeros(10)], "no_output_bias") for one in seen(3)]
    found = reconstruct(observations, OURS, 60, [0, 1, 2])
    assert bool(torch.isfinite(found.inputs).all())


# ---- fidelity and jobs


def test_a_network_that_is_no_chain_is_attacked_from_a_grey_start():
    job = AttackJob("resnet", "networks", "digits", "resnet", OURS, (0, 1), 2, 60)
    assert sum(int(str(row["exact"])) for row in run_job(job).rows) == 2


def test_samples_of_a_batch_are_paired_before_they_are_compared():
    truth = torch.stack([torch.zeros(1, 2, 2), torch.ones(1, 2, 2)])[None]
    assert mean_squared_errors(truth.flip(1), truth).tolist() == [[0.0, 0.0]]
    shifted = truth.flip(1) + 0.1
    assert mean_squared_errors(shifted, truth)[0].tolist() == pytest.approx([0.01, 0.01])


def test_psnr_and_ssim_of_known_images():
    assert psnr(np.array([0.01]))[0] == pytest.approx(20.0)
    image = digits(1)[0][0].numpy()
    assert ssim(image, image) == pytest.approx(1.0)
    assert ssim(1 - image, image) < 0.5


def test_the_wilson_interval_of_8_in_16_is_the_published_one():
    low, high = wilson_interval(8, 16)
    assert (low, high) == (pytest.approx(0.2800, abs=1e-3), pytest.approx(0.7200, abs=1e-3))
    assert wilson_interval(0, 10)[0] == 0
    assert wilson_interval(10, 10)[1] == 1


def test_the_interval_of_a_difference_of_rates_is_the_published_one():
    low, high = difference_interval((56, 70), (48, 80))  # Newcombe 1998, Table II, example (a), method 10
    assert (low, high) == (pytest.approx(0.0524, abs=1e-4), pytest.approx(0.3339, abs=1e-4))
    assert difference_interval((3, 9), (3, 9))[0] < 0 < difference_interval((3, 9), (3, 9))[1]


def test_the_recorder_keeps_the_error_of_the_best_point_so_far():
    truth = torch.zeros(2, 1, 1, 2, 2)
    record = AttackRecorder(truth, 4, (2, 4))
    both = torch.tensor([0, 1])
    record(1, both, torch.tensor([5.0, 5.0]), truth + 1)
    record(2, both, torch.tensor([9.0, 1.0]), truth + 0.01)  # the first problem's objective rose: its point stays
    record(3, torch.tensor([0]), torch.tensor([0.1]), truth[:1])
    assert record.mse[:, 0].tolist() == [1.0, 1.0]
    assert record.mse[:, 3].tolist() == pytest.approx([0.0, 1e-4])
    assert record.evaluations_to(1e-3).tolist() == [3, 2]
    assert float(record.pictures[1, 0].mean()) == pytest.approx(0.01)


def test_a_job_gives_rows_and_one_that_cannot_run_gives_reasons():
    job = AttackJob("k", "compare", "digits", "lenet", L2_GREY, (0, 1), 4, 40, snapshots=(5, 40))
    result = run_job(job)
    assert [row["problem"] for row in result.rows] == [0, 1]
    assert result.arrays["snapshots"].shape == (2, 2, 1, *SHAPE)
    assert all(0 < int(row["evaluations_to_0.001"]) <= 40 for row in result.rows)
    refused = run_job(replace(job, attack=WDLG, output_bias=False))
    assert all("needs a bias in the output layer" in str(row["failed"]) for row in refused.rows)


def test_every_attack_sees_the_same_problem():
    job = AttackJob("k", "compare", "digits", "lenet", L2_GREY, (0, 3), 4, 5)
    first, other = observations_of(job), observations_of(replace(job, attack=DLG, problems=(3,)))
    for a, b in zip(first[0][1].message, other[0][0].message, strict=True):
        assert torch.equal(a, b)


class Syncs(TorchDispatchMode):
    """Counts what makes a processor wait for the device: numbers fetched, and shapes that depend on values."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func.name() in ("aten::_local_scalar_dense", "aten::nonzero", "aten::equal")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ["l2_grey", "cosine"])
def test_the_device_is_waited_for_a_few_times_an_evaluation_however_many_are_attacked(name):
    counts, attack = {}, replace(ATTACKS[name], tolerance=0.0, stop_below=0.0)
    for problems in (2, 8):
        observations = seen(problems)
        for budget in (3, 8):
            with Syncs() as syncs:
                reconstruct(observations, attack, budget, range(problems))
            counts[problems, budget] = syncs.count
    per_evaluation = {problems: (counts[problems, 8] - counts[problems, 3]) / 5 for problems in (2, 8)}
    assert per_evaluation[8] <= MOST_SYNCS, counts
    assert per_evaluation[8] <= per_evaluation[2] + 1


MOST_SYNCS = 4
