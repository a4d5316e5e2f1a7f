"""Batched optimisers against torch's own, one problem at a time."""

import pytest
import torch

from ray_fed.leakage.optimizers import Adam, Lbfgs


def bowl(x: torch.Tensor) -> torch.Tensor:
    matrix = torch.randn(6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    matrix = matrix @ matrix.T + torch.eye(6)
    return 0.5 * ((x @ matrix) * x).sum(-1) + 0.01 * (x**4).sum(-1)


def rosenbrock(x: torch.Tensor) -> torch.Tensor:
    return (100 * (x[..., 1:] - x[..., :-1] ** 2) ** 2 + (1 - x[..., :-1]) ** 2).sum(-1)


def told(optimizer, function, evaluations: int) -> None:
    for _ in range(evaluations):
        x = optimizer.points.detach().requires_grad_()
        values = function(x)
        (slopes,) = torch.autograd.grad(values.sum(), x)
        optimizer.tell(values.detach(), slopes)


def starts(n: int, size: int = 6) -> torch.Tensor:
    return torch.randn(n, size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def torchs(make, start: torch.Tensor, function, steps: int) -> torch.Tensor:
    x = start.clone().requires_grad_()
    optimizer = make([x])

    def closure():
        optimizer.zero_grad()
        value = function(x)
        value.backward()
        return value

    for _ in range(steps):
        optimizer.step(closure)
    return x.detach()


@pytest.mark.parametrize("history", [3, 20])
def test_lbfgs_without_a_line_search_walks_where_torch_walks(history):
    start = starts(4)
    ours = Lbfgs(start, history=history, line_search=False)
    told(ours, bowl, 12)
    for number in range(4):
        theirs = torchs(
            lambda p: torch.optim.LBFGS(p, max_iter=12, max_eval=99, history_size=history, tolerance_grad=0,
                                        tolerance_change=0),
            start[number], bowl, 1,
        )  # fmt: skip
        torch.testing.assert_close(ours.points[number], theirs, rtol=1e-9, atol=1e-12)


def test_lbfgs_with_a_line_search_solves_rosenbrock_in_about_as_many_evaluations_as_torch():
    start = 0.2 * starts(6)
    ours, used = Lbfgs(start, history=20), 0
    for _ in range(200):
        told(ours, rosenbrock, 1)
        used += int((ours.value > 1e-10).sum())
    assert bool((ours.value < 1e-10).all())
    theirs = 0
    for row in start:
        values: list[float] = []

        def followed(x, values=values):
            values.append(float(rosenbrock(x.detach())))
            return rosenbrock(x)

        torchs(
            lambda p: torch.optim.LBFGS(p, max_iter=200, max_eval=200, history_size=20, line_search_fn="strong_wolfe",
                                        tolerance_grad=0, tolerance_change=0), row, followed, 1,
        )  # fmt: skip
        theirs += next(number for number, value in enumerate(values) if value < 1e-10)
    assert used < 1.3 * theirs


def test_a_problem_does_not_feel_its_neighbours():
    start = starts(5)
    together, alone = Lbfgs(start, history=5), Lbfgs(start[2:3], history=5)
    told(together, rosenbrock, 40)
    told(alone, rosenbrock, 40)
    torch.testing.assert_close(together.x[2], alone.x[0], rtol=1e-8, atol=1e-10)


def test_every_accepted_step_meets_the_strong_wolfe_conditions():
    optimizer = Lbfgs(starts(8), history=10)
    told(optimizer, rosenbrock, 1)
    for _ in range(60):
        before, direction, x = optimizer.value.clone(), optimizer.direction.clone(), optimizer.x.clone()
        slope, gradient = (optimizer.gradient * direction).sum(1), optimizer.gradient.clone()
        step = optimizer.step.clone()
        told(optimizer, rosenbrock, 1)
        moved = (optimizer.x != x).any(1)
        after = (optimizer.gradient * direction).sum(1)
        assert bool((optimizer.value[moved] <= (before + 1e-4 * step * slope)[moved]).all())
        assert bool((after[moved].abs() <= -0.9 * slope[moved]).all())
        assert torch.equal(optimizer.gradient[~moved], gradient[~moved])


def test_a_value_that_is_not_finite_ends_that_problem_alone():
    optimizer = Lbfgs(starts(3), line_search=False)
    told(optimizer, bowl, 2)
    values, slopes = torch.tensor([1.0, torch.nan, 1.0]), torch.ones(3, 6, dtype=torch.float64)
    optimizer.tell(values, slopes)
    assert optimizer.finished.tolist() == [False, True, False]


def test_a_line_search_steps_back_from_values_that_are_not_finite():
    def log_barrier(x):
        return (x - torch.log(x)).sum(-1)

    optimizer = Lbfgs(torch.full((1, 2), 0.05, dtype=torch.float64), learning_rate=1.0)
    told(optimizer, log_barrier, 60)
    torch.testing.assert_close(optimizer.x, torch.ones(1, 2, dtype=torch.float64))


def test_a_start_at_the_minimum_is_finished_at_once():
    optimizer = Lbfgs(torch.ones(1, 4, dtype=torch.float64))
    told(optimizer, rosenbrock, 1)
    assert bool(optimizer.finished.all())


def test_adam_walks_where_torch_walks():
    start = starts(3)
    ours = Adam(start, 0.05)
    told(ours, bowl, 25)
    for number in range(3):
        theirs = torchs(lambda p: torch.optim.Adam(p, lr=0.05), start[number], bowl, 25)
        torch.testing.assert_close(ours.points[number], theirs, rtol=1e-9, atol=1e-12)


def test_signed_adam_moves_every_entry_by_the_step_size_first_and_stays_inside_its_bounds():
    start = torch.tensor([[0.95, 0.5, 0.02]])
    optimizer = Adam(start, 0.1, signed=True, bounds=(0.0, 1.0))
    optimizer.tell(torch.ones(1), torch.tensor([[-3.0, 1e-4, 7.0]]))
    torch.testing.assert_close(optimizer.points, torch.tensor([[1.0, 0.4, 0.0]]))


def test_signed_adam_decays_its_step_over_the_budget():
    optimizer = Adam(torch.zeros(1, 1), 1.0, budget=8)
    rates = []
    for _ in range(8):
        optimizer.steps += 1
        rates.append(optimizer._rate())
    assert rates == pytest.approx([1.0] * 3 + [0.1] * 2 + [0.01] * 2 + [0.001])
