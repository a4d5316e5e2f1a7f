"""L-BFGS for many problems at once, each with its own memory, step and line search.

Liu & Nocedal 1989. Asked for the points it wants evaluated, told values and gradients, it never calls anybody: one
round is one evaluation of every problem that is still running.

The two-loop recursion is done in the space of coefficients: with the last m pairs as rows of S and Y, its first loop is
the triangular system R a = S g (R_ij = s_i.y_j, i <= j) and its second R^T c = diag(R) a - Y r, r = gamma (g - Y^T a).
So a direction costs four batched matrix products and two small solves instead of 4m vector operations.
"""

import torch

from ray_fed.leakage.line_search import Brackets

MIN_CURVATURE = 1e-10
"""Pairs with s.y below this would make the matrix indefinite; torch.optim.LBFGS has the same bound."""


class Lbfgs:
    """Minimises n problems from `start` [n, size].

    line_search: strong Wolfe; without it every step has length `learning_rate`, as in torch.optim.LBFGS's default.
    `points` are where values are wanted; `tell` takes them. A problem is `finished` when its gradient is zero, its
    value is not finite (without a line search), or no step decreases it any more.
    """

    def __init__(self, start: torch.Tensor, learning_rate: float = 1.0, history: int = 50, line_search: bool = True):
        self.x = start.clone()
        self.learning_rate, self.line_search = learning_rate, line_search
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
        """Where values and gradients are wanted [n, size]."""
        return self.x + self.step[:, None].to(self.x.dtype) * self.direction

    def tell(self, values: torch.Tensor, gradients: torch.Tensor) -> None:
        """Take values [n] and gradients [n, size] at `points`; those of finished problems are ignored."""
        values = values.to(torch.float64)
        if not self._begun:
            self._begun = True
            self.value, self.gradient = values, gradients.clone()
            self._set_out(~self.finished & torch.isfinite(values))
            self.finished |= ~torch.isfinite(values)
            return
        running = ~self.finished
        accepted, failed = self._judge(values, gradients)
        self._move(accepted & running, values, gradients)
        self._give_up_or_forget(failed & running)

    def _judge(self, values: torch.Tensor, gradients: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if self.line_search:
            accepted, failed = self._search.judge(values, _dot(gradients, self.direction))
            self.step = self._search.step
            return accepted, failed
        finite = torch.isfinite(values) & torch.isfinite(gradients).all(1)
        self.finished |= ~finite
        return finite, torch.zeros_like(finite)

    def _move(self, where: torch.Tensor, values: torch.Tensor, gradients: torch.Tensor) -> None:
        moved, bent = self.points - self.x, gradients - self.gradient
        self.memory.push(where, moved, bent)
        self.x = torch.where(where[:, None], self.x + moved, self.x)
        self.gradient = torch.where(where[:, None], gradients, self.gradient)
        self.value = torch.where(where, values, self.value)
        self._set_out(where)

    def _give_up_or_forget(self, failed: torch.Tensor) -> None:
        """A search that failed along a quasi-Newton direction tries the gradient; along the gradient it is over."""
        self.finished |= failed & (self.memory.count == 0)
        forgetting = failed & ~self.finished
        self.memory.forget(forgetting)
        self._set_out(forgetting)

    def _set_out(self, where: torch.Tensor) -> None:
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
        self.moved, self.bent = like.new_zeros(n, history, size), like.new_zeros(n, history, size)
        self.products = torch.zeros(n, history, history, dtype=torch.float64, device=like.device)
        """s_i . y_j, by slot."""
        self.count = torch.zeros(n, dtype=torch.int64, device=like.device)
        """Pairs pushed since the memory was last empty."""
        self.scale = torch.ones(n, dtype=torch.float64, device=like.device)
        """gamma = s.y / y.y of the last pair."""

    def forget(self, where: torch.Tensor) -> None:
        self.count = torch.where(where, 0, self.count)
        self.scale = torch.where(where, 1.0, self.scale)

    def push(self, where: torch.Tensor, moved: torch.Tensor, bent: torch.Tensor) -> None:
        """Remember s = moved and y = bent [n, size] of the problems `where` whose s.y is large enough."""
        curvature = _dot(moved, bent)
        index = torch.nonzero(where & (curvature > MIN_CURVATURE)).squeeze(1)
        if len(index) == 0:
            return
        slot = self.count[index] % self.history
        self.moved[index, slot], self.bent[index, slot] = moved[index], bent[index]
        used = min(self.history, int(self.count.max()) + 1)
        # s_i . y of the older i; s . y_j of older j stand below R's diagonal and are never read.
        self.products[index, :used, slot] = _project(self.moved[:, :used], bent)[index]
        self.products[index, slot, slot] = curvature[index]
        self.scale[index] = (curvature / _dot(bent, bent))[index]
        self.count[index] += 1

    def times(self, gradient: torch.Tensor) -> torch.Tensor:
        """Return H g [n, size] with the inverse Hessian approximation H of each problem."""
        used = min(self.history, int(self.count.max()))
        if used == 0:
            return gradient
        moved, bent = self.moved[:, :used], self.bent[:, :used]
        order, is_pair, upper = self._in_order(used)
        onto_moved = _project(moved, gradient).gather(1, order) * is_pair
        first = torch.linalg.solve_triangular(upper, onto_moved[:, :, None], upper=True)
        rest = gradient - _combine(bent, _scatter(first.squeeze(2), order))
        rest = self.scale[:, None].to(rest.dtype) * rest
        diagonal = upper.diagonal(dim1=1, dim2=2)
        right = (diagonal * first.squeeze(2) - _project(bent, rest).gather(1, order)) * is_pair
        second = torch.linalg.solve_triangular(upper.mT, right[:, :, None], upper=False)
        return rest + _combine(moved, _scatter(second.squeeze(2), order))

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
