"""Optimisers for many problems at once, each with its own state: L-BFGS and Adam.

All have the ask-and-tell interface: `points` are where values and gradients are needed, `tell` takes them. One call is
one evaluation of every problem that is still running.

Strong-Wolfe line search (Nocedal & Wright, Numerical Optimization, 2006, Sec. 3.5): with phi(t) = f(x + t d) the
accepted t satisfies

    phi(t) <= phi(0) + c1 t phi'(0)      sufficient decrease
    |phi'(t)| <= -c2 phi'(0)             curvature

`low` always satisfies the first condition and has phi' < 0; `high`, where there is one, fails the first condition, lies
above `low`, or has phi' >= 0. So an acceptable step lies between them.

L-BFGS (Liu & Nocedal 1989): the two-loop recursion is done in the space of coefficients. With the last m pairs as rows
of S and Y, its first loop is the triangular system R a = S g (R_ij = s_i.y_j, i <= j) and its second
R^T c = diag(R) a - Y r, r = gamma (g - Y^T a). So a direction costs four batched matrix products and two small solves
instead of 4m vector operations.
"""

from dataclasses import dataclass

import torch

SUFFICIENT_DECREASE, CURVATURE = 1e-4, 0.9
MAX_TRIALS = 20
"""Trials after which the best step so far is taken."""
MARGIN = 0.1
"""A new trial keeps this share of the bracket away from its ends."""


@dataclass
class Brackets:
    """State of one search per problem; all tensors are [n]. float64: differences of nearly equal values decide."""

    value: torch.Tensor
    """phi(0)"""
    slope: torch.Tensor
    """phi'(0), negative"""
    step: torch.Tensor
    """The trial under way."""
    low: torch.Tensor
    low_value: torch.Tensor
    low_slope: torch.Tensor
    high: torch.Tensor
    """Infinite while the interval is still growing."""
    high_value: torch.Tensor
    high_slope: torch.Tensor
    trials: torch.Tensor

    @classmethod
    def start(cls, value: torch.Tensor, slope: torch.Tensor, step: torch.Tensor) -> "Brackets":
        """Begin searches at phi(0) = value with first trials `step`."""
        zero, infinite = torch.zeros_like(value), torch.full_like(value, torch.inf)
        return cls(
            value, slope, step.clone(), zero, value, slope, infinite, infinite.clone(), zero.clone(), zero.clone()
        )

    def renew(self, where: torch.Tensor, value: torch.Tensor, slope: torch.Tensor, step: torch.Tensor) -> None:
        """Begin new searches for the problems `where` [n], bool."""
        fresh = Brackets.start(value, slope, step)
        for name, tensor in vars(self).items():
            setattr(self, name, torch.where(where, getattr(fresh, name), tensor))

    def update(self, value: torch.Tensor, slope: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (accepted, failed) [n], bool, for phi and phi' at the trials, and set the next trials of the others.

        failed: no step was found that decreases phi enough; the trials have run out.
        """
        self.trials = self.trials + 1
        finite = torch.isfinite(value) & torch.isfinite(slope)
        enough = finite & (value <= self.value + SUFFICIENT_DECREASE * self.step * self.slope)
        lowest = enough & (value < self.low_value)
        flat = slope.abs() <= -CURVATURE * self.slope
        # Out of trials, a step that decreases phi is better than none.
        accepted = enough & (flat | (self.trials >= MAX_TRIALS))
        failed = ~accepted & (self.trials >= MAX_TRIALS)
        rising = ~lowest | (slope >= 0)
        self._narrow(rising, value, slope, finite)
        self.step = torch.where(accepted | failed, self.step, self._next_trial())
        return accepted, failed

    def _narrow(self, rising: torch.Tensor, value: torch.Tensor, slope: torch.Tensor, finite: torch.Tensor) -> None:
        nothing = torch.full_like(value, torch.nan)
        self.high = torch.where(rising, self.step, self.high)
        self.high_value = torch.where(rising, torch.where(finite, value, nothing), self.high_value)
        self.high_slope = torch.where(rising, torch.where(finite, slope, nothing), self.high_slope)
        self.low = torch.where(rising, self.low, self.step)
        self.low_value = torch.where(rising, self.low_value, value)
        self.low_slope = torch.where(rising, self.low_slope, slope)

    def _next_trial(self) -> torch.Tensor:
        width = self.high - self.low
        inside = torch.nan_to_num(self._cubic_minimum(), nan=torch.nan, posinf=torch.nan, neginf=torch.nan)
        inside = torch.where(torch.isnan(inside), self.low + width / 2, inside)
        inside = torch.minimum(torch.maximum(inside, self.low + MARGIN * width), self.high - MARGIN * width)
        return torch.where(torch.isinf(self.high), 2 * torch.maximum(self.step, self.low), inside)

    def _cubic_minimum(self) -> torch.Tensor:
        """Minimum of the cubic through values and slopes at both ends (Nocedal & Wright, Eq. 3.59)."""
        width = self.high - self.low
        first = self.low_slope + self.high_slope - 3 * (self.high_value - self.low_value) / width
        second = (first.square() - self.low_slope * self.high_slope).clamp_min(0).sqrt()
        share = (self.high_slope + second - first) / (self.high_slope - self.low_slope + 2 * second)
        return self.high - width * share


MIN_CURVATURE = 1e-10
"""Pairs with s.y below this would make the matrix indefinite; torch.optim.LBFGS has the same bound."""


class Lbfgs:
    """Minimises n problems from `start` [n, size].

    line_search: strong Wolfe; without it every step has length `learning_rate`, as in torch.optim.LBFGS's default.
    A problem is `finished` when its gradient is zero, its
    value is not finite (without a line search), or no step decreases it any more; with `tolerances` also where
    torch.optim.LBFGS returns: every entry of the gradient at most the first, or no entry moved by more than the second,
    or the value changed by less than it.
    """

    def __init__(
        self, start: torch.Tensor, learning_rate: float = 1.0, history: int = 50, line_search: bool = True,
        tolerances: tuple[float, float] | None = None,
    ):  # fmt: skip
        self.x = start.clone()
        self.learning_rate, self.line_search, self.tolerances = learning_rate, line_search, tolerances
        n, size = start.shape
        self.memory = PairMemory(n, size, history, start)
        self.finished = torch.zeros(n, dtype=torch.bool, device=start.device)
        self.direction = torch.zeros_like(start)
        self.gradient = torch.zeros_like(start)
        zero = torch.zeros(n, dtype=torch.float64, device=start.device)
        self.value, self.step = zero, zero.clone()
        self._search = Brackets.start(zero, zero, zero)
        self._begun = False

    @property
    def points(self) -> torch.Tensor:
        """Where values and gradients are needed [n, size]."""
        return self.x + self.step[:, None].to(self.x.dtype) * self.direction

    def tell(self, values: torch.Tensor, gradients: torch.Tensor) -> None:
        """Take values [n] and gradients [n, size] at `points`; those of finished problems are ignored."""
        values = values.to(torch.float64)
        if not self._begun:
            self._begun = True
            self.value, self.gradient = values, gradients.clone()
            self._choose_direction(~self.finished & torch.isfinite(values))
            self.finished |= ~torch.isfinite(values)
            return
        running = ~self.finished
        accepted, failed = self._check_step(values, gradients)
        self._move(accepted & running, values, gradients)
        self._restart_or_finish(failed & running)

    def _check_step(self, values: torch.Tensor, gradients: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if self.line_search:
            accepted, failed = self._search.update(values, _dot(gradients, self.direction))
            self.step = self._search.step
            return accepted, failed
        finite = torch.isfinite(values) & torch.isfinite(gradients).all(1)
        self.finished |= ~finite
        return finite, torch.zeros_like(finite)

    def _move(self, where: torch.Tensor, values: torch.Tensor, gradients: torch.Tensor) -> None:
        steps, changes = self.points - self.x, gradients - self.gradient
        if self.tolerances:
            slope, change = self.tolerances
            still = (steps.abs().amax(1) <= change) | ((values - self.value).abs() < change)
            self.finished |= where & (still | (gradients.abs().amax(1) <= slope))
        self.memory.push(where, steps, changes)
        self.x = torch.where(where[:, None], self.x + steps, self.x)
        self.gradient = torch.where(where[:, None], gradients, self.gradient)
        self.value = torch.where(where, values, self.value)
        self._choose_direction(where)

    def _restart_or_finish(self, failed: torch.Tensor) -> None:
        """A search that failed along a quasi-Newton direction tries the gradient; along the gradient it is over."""
        self.finished |= failed & (self.memory.count == 0)
        forgetting = failed & ~self.finished
        self.memory.forget(forgetting)
        self._choose_direction(forgetting)

    def _choose_direction(self, where: torch.Tensor) -> None:
        """Choose new directions and first steps for the problems `where`."""
        if not bool(where.any()):
            return
        direction = -self.memory.times(self.gradient)
        slope = _dot(self.gradient, direction)
        uphill = where & ~(slope < 0)
        self.memory.forget(uphill)
        direction = torch.where(uphill[:, None], -self.gradient, direction)
        slope = torch.where(uphill, -_dot(self.gradient, self.gradient), slope)
        self.finished |= where & ~(slope < 0)  # a zero gradient, or none
        first = self.learning_rate * (1 / self.gradient.abs().sum(1).to(torch.float64)).clamp_max(1)
        step = torch.where(self.memory.count == 0, first, torch.full_like(first, self.learning_rate))
        self.direction = torch.where(where[:, None], direction, self.direction)
        self.step = torch.where(where, step, self.step)
        self._search.renew(where, self.value, slope, step)


class PairMemory:
    """The last `history` pairs (s, y) of each problem, in a ring, and their products."""

    def __init__(self, n: int, size: int, history: int, like: torch.Tensor):
        self.history = history
        self.steps, self.changes = like.new_zeros(n, history, size), like.new_zeros(n, history, size)
        self.products = torch.zeros(n, history, history, dtype=torch.float64, device=like.device)
        """s_i . y_j, by slot."""
        self.count = torch.zeros(n, dtype=torch.int64, device=like.device)
        """Pairs pushed since the memory was last empty."""
        self.scale = torch.ones(n, dtype=torch.float64, device=like.device)
        """gamma = s.y / y.y of the last pair."""

    def forget(self, where: torch.Tensor) -> None:
        self.count = torch.where(where, 0, self.count)
        self.scale = torch.where(where, 1.0, self.scale)

    def push(self, where: torch.Tensor, steps: torch.Tensor, changes: torch.Tensor) -> None:
        """Remember s = steps and y = changes [n, size] of the problems `where` whose s.y is large enough."""
        curvature = _dot(steps, changes)
        index = torch.nonzero(where & (curvature > MIN_CURVATURE)).squeeze(1)
        if len(index) == 0:
            return
        slot = self.count[index] % self.history
        self.steps[index, slot], self.changes[index, slot] = steps[index], changes[index]
        used = min(self.history, int(self.count.max()) + 1)
        # s_i . y of the older i; s . y_j of older j are below R's diagonal and never read.
        self.products[index, :used, slot] = _project(self.steps[:, :used], changes)[index]
        self.products[index, slot, slot] = curvature[index]
        self.scale[index] = (curvature / _dot(changes, changes))[index]
        self.count[index] += 1

    def times(self, gradient: torch.Tensor) -> torch.Tensor:
        """Return H g [n, size] with the inverse Hessian approximation H of each problem."""
        used = min(self.history, int(self.count.max()))
        if used == 0:
            return gradient
        steps, changes = self.steps[:, :used], self.changes[:, :used]
        order, is_pair, upper = self._in_order(used)
        onto_steps = _project(steps, gradient).gather(1, order) * is_pair
        first = torch.linalg.solve_triangular(upper, onto_steps[:, :, None], upper=True)
        rest = gradient - _combine(changes, _scatter(first.squeeze(2), order))
        rest = self.scale[:, None].to(rest.dtype) * rest
        diagonal = upper.diagonal(dim1=1, dim2=2)
        right = (diagonal * first.squeeze(2) - _project(changes, rest).gather(1, order)) * is_pair
        second = torch.linalg.solve_triangular(upper.mT, right[:, :, None], upper=False)
        return rest + _combine(steps, _scatter(second.squeeze(2), order))

    def _in_order(self, used: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return slots from oldest to newest [n, used], which of them hold a pair, and R (identity where none)."""
        slots = torch.arange(used, device=self.count.device)
        last = (self.count[:, None] - 1) % self.history
        age = (last - slots) % self.history
        is_pair = age < self.count[:, None].clamp_max(self.history)
        order = torch.argsort(torch.where(is_pair, age, age + self.history), dim=1, descending=True)
        is_pair = is_pair.gather(1, order)
        products = self.products[:, :used, :used]
        products = products.gather(1, order[:, :, None].expand(-1, -1, used))
        products = products.gather(2, order[:, None].expand(-1, used, -1))
        both = is_pair[:, :, None] & is_pair[:, None]
        identity = torch.eye(used, dtype=products.dtype, device=products.device)
        return order, is_pair, torch.where(both, products, identity).triu()


def _dot(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Products of rows [n], summed in float64."""
    return (a * b).sum(1, dtype=torch.float64)


def _project(rows: torch.Tensor, vector: torch.Tensor) -> torch.Tensor:
    return (rows @ vector[:, :, None]).squeeze(2).double()


def _combine(rows: torch.Tensor, coefficients: torch.Tensor) -> torch.Tensor:
    return (coefficients[:, None].to(rows.dtype) @ rows).squeeze(1)


def _scatter(ordered: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    return torch.zeros_like(ordered).scatter(1, order, ordered)


DECAY_POINTS = (3 / 8, 5 / 8, 7 / 8)
"""Shares of the budget after which the step size falls to a tenth (Geiping et al. 2020, their published settings)."""


class Adam:
    """Adam (Kingma & Ba 2015), on the gradient or on its sign, optionally with step decay over `budget` evaluations."""

    def __init__(
        self, start: torch.Tensor, learning_rate: float, signed: bool = False, budget: int = 0,
        bounds: tuple[float, float] | None = None,
    ):  # fmt: skip
        self.points = start.clone()
        self.learning_rate, self.signed, self.budget, self.bounds = learning_rate, signed, budget, bounds
        self.first, self.second = torch.zeros_like(start), torch.zeros_like(start)
        self.finished = torch.zeros(len(start), dtype=torch.bool, device=start.device)
        self.steps = 0

    def tell(self, values: torch.Tensor, gradients: torch.Tensor) -> None:
        """Take values [n] and gradients [n, size] at `points`."""
        self.finished |= ~torch.isfinite(values)
        gradients = torch.where(self.finished[:, None], 0, gradients)
        gradients = gradients.sign() if self.signed else gradients
        self.steps += 1
        self.first.lerp_(gradients, 0.1)
        self.second.lerp_(gradients.square(), 0.001)
        first = self.first / (1 - 0.9**self.steps)
        second = self.second / (1 - 0.999**self.steps)
        moved = self.points - self._rate() * first / (second.sqrt() + 1e-8)
        moved = moved.clamp(*self.bounds) if self.bounds else moved
        self.points = torch.where(self.finished[:, None], self.points, moved)

    def _rate(self) -> float:
        passed = sum(self.steps > point * self.budget for point in DECAY_POINTS) if self.budget else 0
        return self.learning_rate * 0.1**passed


class Descent:
    """Plain gradient descent, x <- x - rate dL/dx (WDLG, Algorithm 1, line 7)."""

    def __init__(self, start: torch.Tensor, learning_rate: float):
        self.points, self.learning_rate = start.clone(), learning_rate
        self.finished = torch.zeros(len(start), dtype=torch.bool, device=start.device)

    def tell(self, values: torch.Tensor, gradients: torch.Tensor) -> None:
        """Take values [n] and gradients [n, size] at `points`."""
        self.finished |= ~torch.isfinite(values) | ~torch.isfinite(gradients).all(1)
        moved = self.points - self.learning_rate * gradients
        self.points = torch.where(self.finished[:, None], self.points, moved)


class NoOptimizer:
    """Stays where it starts: of an attack that is algebra alone, one evaluation says how well it fits."""

    def __init__(self, start: torch.Tensor):
        self.points = start.clone()
        self.finished = torch.zeros(len(start), dtype=torch.bool, device=start.device)

    def tell(self, values: torch.Tensor, gradients: torch.Tensor) -> None:  # noqa: ARG002
        self.finished = torch.ones_like(self.finished)


Optimizer = Lbfgs | Adam | Descent | NoOptimizer
