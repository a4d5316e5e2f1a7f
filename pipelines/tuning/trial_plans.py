"""From a trial's config, as Tune gives it, to what silos and coordinator do in it."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Protocol

from pipelines.federated_training import Training
from ray_fed.config import require, unknown_name
from ray_fed.errors import ConfigError
from ray_fed.federation.coordinator import Agreement
from ray_fed.federation.rounds.job import Job
from ray_fed.federation.rounds.machine import RoundRules
from ray_fed.federation.strategies import Strategy, make_strategy
from ray_fed.federation.task import SiloSpec, Task

Config = Mapping[str, Any]
GROUPS = ("training", "rules")
"""Keys of a config that may hold fields of theirs, in a nested space."""


@dataclass(frozen=True)
class TrialPlan:
    """What one trial is."""

    specs: tuple[SiloSpec, ...]
    task: Task
    test: SiloSpec | None
    training: tuple[str, ...]
    """Names of the silos that train."""
    make_job: Callable[[Agreement], Job] = field(repr=False)
    secure_threshold: int = 0
    answer_timeout: float | None = None

    @property
    def key(self) -> str:
        """Equal for trials that can share their silos."""
        from actors.user_code import pickled

        content = pickled((self.specs, self.task, self.test, self.secure_threshold))
        return hashlib.sha256(content).hexdigest()[:16]


class Experiment(Protocol):
    """What is tuned."""

    @property
    def silos(self) -> tuple[SiloSpec, ...]: ...

    @property
    def test(self) -> SiloSpec | None: ...

    def plan(self, config: Config) -> TrialPlan:
        """Return a trial's plan; ConfigError for a key that is none, or values that make no sense together."""
        ...


@dataclass(frozen=True)
class OwnExperiment:
    """A task of the user's own."""

    task: Task | Callable[[Config], Task]
    silos: tuple[SiloSpec, ...]
    test: SiloSpec | None
    training: Training
    strategy: Strategy | str
    rules: RoundRules

    def plan(self, config: Config) -> TrialPlan:
        flat = _flattened(config)
        of_training, of_rules = ({each.name for each in fields(cls)} for cls in (Training, RoundRules))
        if isinstance(self.task, Task):
            known = sorted({*of_training, *of_rules, "strategy", *GROUPS})
            for name in flat:
                if name not in known:
                    raise unknown_name("key of param_space", name, known)
        training = replace(self.training, **{name: value for name, value in flat.items() if name in of_training})
        rules = replace(self.rules, **{name: value for name, value in flat.items() if name in of_rules}, max_restarts=0)
        strategy = strategy_of(flat.get("strategy", self.strategy))
        task = self.task if isinstance(self.task, Task) else self.task(config)
        require(isinstance(task, Task), f"task(config) returned a {type(task).__name__}, not a Task")
        names = tuple(spec.name for spec in self.silos)

        def job(agreement: Agreement) -> Job:
            plans = {name: training.plan(agreement.silos[name].num_examples) for name in names}
            return Job("trial", names, plans, training.seed, strategy, rules)

        return TrialPlan(self.silos, task, self.test, names, job, answer_timeout=rules.round_timeout)


@dataclass(frozen=True)
class PipelineExperiment:
    """A pipeline of `ray-fed`: what its command takes is what can be tuned."""

    pipeline: str
    options: Config
    silos: tuple[SiloSpec, ...]
    test: SiloSpec | None

    @classmethod
    def of(cls, pipeline: str, options: Config) -> "PipelineExperiment":
        """ConfigError for options that make no run, and for silos at sites that their owners run."""
        setup = _setup(pipeline, options)
        return cls(pipeline, dict(options), setup.silos, setup.test)

    def plan(self, config: Config) -> TrialPlan:
        from pipelines.training.setup import jobs

        setup = _setup(self.pipeline, {**self.options, **_flattened(config, everything=True)})
        found, wanted = [[spec.name for spec in specs] for specs in (setup.silos, self.silos)]
        require(found == wanted, f"a trial has silos {found}, the trainable was made for {wanted}")

        def job(agreement: Agreement) -> Job:
            made = jobs(setup, dict(agreement.silos), setup.config.seed)[0]
            return replace(made, rules=replace(made.rules, max_restarts=0), evaluate_silos=setup.test is None)

        threshold = setup.config.threshold(len(setup.training))
        return TrialPlan(
            setup.silos, setup.task, setup.test, setup.training, job, threshold, setup.config.round_timeout
        )  # fmt: skip


def _setup(pipeline: str, options: Config) -> Any:
    from pipelines.training.config import CONFIGS
    from pipelines.training.setup import resolve

    if pipeline not in CONFIGS:
        raise unknown_name("pipeline", pipeline, CONFIGS)
    known = [each.name for each in fields(CONFIGS[pipeline])]
    for name in options:
        if name not in known:
            raise unknown_name("field", name, known)
    setup = resolve(dict(options), pipeline=pipeline)
    require(not setup.sites, "silos at sites that their owners run cannot be shared by trials; use `ray-fed sweep`")
    config = replace(setup.config, baselines=False, repeats=1)
    return replace(setup, config=config, pooled=None)


def strategy_of(given: object) -> Strategy:
    """Return a strategy, given itself, by its name, or as {"name": ..., option: value}."""
    if isinstance(given, str):
        return make_strategy(given)
    if isinstance(given, Mapping):
        options = dict(given)
        name = options.pop("name", None)
        if name is None:
            raise ConfigError(f"strategy={dict(given)} has no 'name'")
        return make_strategy(name, **options)
    return given  # type: ignore[return-value]


def _flattened(config: Config, everything: bool = False) -> dict[str, Any]:
    """Return a config without its groups: their fields stand beside the others. everything: any mapping is one."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        is_group = isinstance(value, Mapping) and (everything or name in GROUPS)
        inner = _flattened(value, everything) if is_group else {name: value}
        twice = sorted(set(flat) & set(inner))
        require(not twice, f"{', '.join(twice)} is given twice in param_space")
        flat |= inner
    return flat


def checked_silos(silos: Sequence[SiloSpec]) -> tuple[SiloSpec, ...]:
    names = [spec.name for spec in silos]
    require(len(names) > 0, "silos is empty; give at least one SiloSpec")
    require(len(set(names)) == len(names), f"silo names {names} must differ")
    return tuple(silos)
