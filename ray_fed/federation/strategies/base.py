"""What a strategy is: a pair of pure functions around a state of plain arrays."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np
from torch import nn

from ray_fed.federation.messages import Update, Vector
from ray_fed.learning.layout import Layout
from ray_fed.learning.trainer import TrainingPlan

Models = Mapping[str, Vector]
"""Name -> vector of a model that can be evaluated."""

State = Mapping[str, np.ndarray]
"""Everything a strategy remembers between rounds, as named arrays: it can be written to a checkpoint as it is."""


class Strategy(Protocol):
    """How the silos' updates become the next global model.

    A strategy that has a half in the silos (FedProx, FedBN, SCAFFOLD) also has a method
    `local_plan(plan, module) -> TrainingPlan`, which says what it asks of local training.
    One whose rounds build on what silos keep has `catch_up(state) -> Vector`, which holds all that a silo needs which
    has not answered the last round. One that may end before its last round has `is_done(state) -> bool`, and one whose
    arrays change their shapes `fits(state) -> bool`: whether a checkpoint's state is one of its own.
    One that treats running statistics otherwise than learned values has `start_with(initial, silos, layout) -> State`,
    in place of `start`; one that looks at evaluations, to choose who takes part, say, `observed(state, metrics) ->
    State`, called with the metrics of each round's record, those of round 0 first.

    One that gives single silos numbers has `config_names`, their names, and `configure(state, silos) -> Mapping[silo,
    Mapping[name, number]]`, asked after `dispatch` for the silos that take part: a round's `learning_rate` and
    `num_steps` are known to steps of ours, all others to a loop of the user's own (`context.config`) or Flower clients.
    One that reads numbers of silos' training has `metric_names`: updates then have `metrics`, by these names.

    `start` once; then per round `dispatch`, the silos' work, `aggregate`. No Ray, files, clocks or globals; nothing
    given is changed in place. Law: `aggregate` returns the same bits for every order of `updates`.
    """

    def start(self, initial: Vector, silos: Sequence[str]) -> State:
        """Return the state before round 1."""
        ...

    def dispatch(self, state: State, silos: Sequence[str]) -> Mapping[str, Vector]:
        """Return what each silo starts the round from; silos that are left out do not take part."""
        ...

    def aggregate(self, state: State, updates: Iterable[Update]) -> State:
        """Return the next state; UpdateRejected names a silo whose update cannot be used."""
        ...

    def models(self, state: State) -> Models:
        """Return the models worth evaluating."""
        ...


def started(strategy: Strategy, initial: Vector, silos: Sequence[str], layout: Layout) -> State:
    """Return the state before round 1."""
    start = getattr(strategy, "start_with", None)
    return start(initial, silos, layout) if start else strategy.start(initial, silos)


def local_plan(strategy: Strategy, plan: TrainingPlan, module: nn.Module) -> TrainingPlan:
    """Return the plan with what the strategy asks of local training, if it asks anything."""
    asked = getattr(strategy, "local_plan", None)
    plan = asked(plan, module) if asked else plan
    config, told = (tuple(getattr(strategy, name, ())) for name in ("config_names", "metric_names"))
    return replace(plan, config=config, told=told) if config or told else plan
